"""What a training step normalises is computed again in its backward pass from the statistics, and not held for it.

    y, mean, rstd = native_layer_norm(x, w, b)   -->   y = (x - mean) * rstd * w + b       marked to be computed again

In AOTAutograd's joint graph, before it is cut in two. The backward pass of a normalisation reads its operand and its statistics
anyway, so that to hold the result as well takes memory twice. Pointwise operations join the kernels that read them. Statistics
stay those of the operator.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy

_WIDE = (torch.float32, torch.float64)  # what is narrower is rounded between the steps
_OWN_META = ("val", "tensor_meta", "recompute", "desc")


def compute_normalized_again(module: torch.fx.GraphModule) -> None:
    """Write normalised values of a joint graph as functions of statistics."""
    rules = _rules()
    changed = False
    for node in list(module.graph.nodes):
        rule = rules.get(node.target) if node.op == "call_function" else None
        if rule is not None and _is_wide(node):
            with module.graph.inserting_after(_last_part(node)):
                changed |= rule(_Writer(module.graph, node), node)
    if changed:
        module.graph.eliminate_dead_code()
        module.recompile()


def _is_wide(node: torch.fx.Node) -> bool:
    operands = [x.meta.get("val") for x in node.args if isinstance(x, torch.fx.Node)]
    value = node.meta.get("val")
    made = value[0] if isinstance(value, tuple | list) else value
    tensors = [x for x in (*operands, made) if isinstance(x, torch.Tensor)]
    return bool(tensors) and all(x.dtype in _WIDE and x.dtype is tensors[0].dtype for x in tensors)


def _last_part(node: torch.fx.Node) -> torch.fx.Node:
    """The last node that takes a result out of the tuple, or the node itself."""
    following, last = node.next, node
    while following.op == "call_function" and following.target is operator.getitem:
        if following.args[0] is node:
            last = following
        following = following.next
    return last


class _Writer:
    """Adds operators one after another, with what is known of the node that they stand for."""

    def __init__(self, graph: torch.fx.Graph, source: torch.fx.Node) -> None:
        self.graph, self.source = graph, source
        self._meta = {key: value for key, value in source.meta.items() if key not in _OWN_META}

    def __call__(self, operator: Any, *operands: Any, again: bool = True) -> torch.fx.Node:
        """`again`: computed anew where the backward pass reads it."""
        from torch._guards import detect_fake_mode

        examples = [x.meta["val"] if isinstance(x, torch.fx.Node) else x for x in operands]
        mode = detect_fake_mode([x for x in examples if isinstance(x, torch.Tensor)])
        assert mode is not None
        with mode:
            value = operator(*examples)
        node = self.graph.call_function(operator, operands)
        node.meta.update(self._meta, val=value)
        if again:
            node.meta["recompute"] = CheckpointPolicy.PREFER_RECOMPUTE
        self.graph._insert = node.append  # the next one after it
        return node


def _part(node: torch.fx.Node, number: int) -> torch.fx.Node | None:
    """The node that takes a result out of a tuple."""
    return next((user for user in node.users if user.target is operator.getitem and user.args[1] == number), None)


def _affine(write: _Writer, x: torch.fx.Node, mean: Any, scale: Any, weight: Any, bias: Any) -> torch.fx.Node:
    aten = torch.ops.aten
    result = write(aten.mul.Tensor, write(aten.sub.Tensor, x, mean), scale)
    if weight is not None:
        result = write(aten.mul.Tensor, result, weight)
    return result if bias is None else write(aten.add.Tensor, result, bias)


def _layer_norm(write: _Writer, node: torch.fx.Node) -> bool:
    x, _, weight, bias, *_ = node.args
    return _replace(node, lambda mean, scale: _affine(write, x, mean, scale, weight, bias))  # type: ignore[arg-type]


def _batch_norm(write: _Writer, node: torch.fx.Node) -> bool:
    x, weight, bias, _, _, training, *_ = node.args
    if not training:
        return False
    rank = x.meta["val"].dim()  # type: ignore[union-attr]

    def spread(each: Any) -> Any:
        """Along the channels."""
        return None if each is None else write(torch.ops.aten.view.default, each, [1, -1, *[1] * (rank - 2)])

    return _replace(node, lambda mean, scale: _affine(write, x, *map(spread, (mean, scale, weight, bias))))  # type: ignore[arg-type]


def _replace(node: torch.fx.Node, make: Callable[[torch.fx.Node, torch.fx.Node], torch.fx.Node]) -> bool:
    """Let what `make` gives stand for the first result, if there are all of the first three."""
    result, mean, scale = (_part(node, k) for k in range(3))
    if result is None or mean is None or scale is None:
        return False
    result.replace_all_uses_with(make(mean, scale))
    return True


def _rules() -> dict[Any, Callable[[_Writer, torch.fx.Node], bool]]:
    aten = torch.ops.aten
    return {
        aten.native_layer_norm.default: _layer_norm,
        aten._native_batch_norm_legit_functional.default: _batch_norm,
    }
