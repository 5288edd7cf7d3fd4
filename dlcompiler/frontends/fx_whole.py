"""Recurrent layers kept whole through AOTAutograd, which breaks them up step by step before a backend sees them.

    torch.gru(x, h, weights, ...)  -->  torch.ops.dlcompiler.gru(x, h, weights, ...)

Dynamo's graph calls torch's function; an operator of our own takes its place, which nobody knows how to break up. Where gradients
are wanted it is linears and scans (`fx_recurrent`). Layers of dtypes that the target has no scans for, as of half precision on a
CPU, have one call as their backward pass: torch runs the layer again, eagerly, and differentiates it, so that a graph does not
grow with the number of time steps. Dynamo traces the layers of `torch.nn` only under `torch._dynamo.config.allow_rnn`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from dlcompiler.frontends.fx_recurrent import as_list, is_suitable, layers_with_gradients

_SETTINGS = "bool has_biases, int num_layers, float dropout, bool train, bool bidirectional, bool batch_first"
_FUNCTIONS = {"lstm": torch.lstm, "gru": torch.gru, "rnn_tanh": torch.rnn_tanh, "rnn_relu": torch.rnn_relu}
_NAMES = {function: name for name, function in _FUNCTIONS.items()}


def keep_recurrent_layers_whole(module: torch.fx.GraphModule, scanned: Collection[str]) -> None:
    """Replace torch's recurrent functions in a graph of Dynamo's by our operators.

    scanned  names of the dtypes for which the target has scans
    """
    for node in module.graph.nodes:
        name = _NAMES.get(node.target) if node.op == "call_function" else None
        if name is None or not _is_plain(name, node):
            continue
        examples = torch.fx.map_arg(node.args, lambda n: n.meta.get("example_value"))
        if is_suitable(name, examples, scanned):
            node.target = layers_with_gradients(name)
            node.args = (*node.args, {"f16", "bf16"} <= set(scanned))
        elif not (node.args[5] and node.args[6]):
            node.target = _operators()[name]
    module.recompile()


def _is_plain(name: str, node: torch.fx.Node) -> bool:
    """Whether it is a call for sequences of one length, all arguments by position."""
    if len(node.args) != 9 or node.kwargs or not isinstance(node.args[2], list | tuple):
        return False
    return isinstance(node.args[1], list | tuple) == (name == "lstm")


@lru_cache(maxsize=1)
def _operators() -> dict[str, Any]:
    """Our operators by the names of torch's functions, defined when first needed."""
    library = torch.library.Library("dlcompiler", "FRAGMENT")  # torch drops the operators together with this object
    for name, function in _FUNCTIONS.items():
        states, results = ("Tensor[] hx", 3) if name == "lstm" else ("Tensor hx", 2)
        library.define(f"{name}(Tensor input, {states}, Tensor[] params, {_SETTINGS}) -> ({', '.join(['Tensor'] * results)})")
        library.impl(name, function, "CPU")
        library.impl(name, function, "CUDA")
        torch.library.register_fake(f"dlcompiler::{name}", _shapes, lib=library)
        _define_backward(library, name, function, states)
    _operators.library = library  # type: ignore[attr-defined]
    return {name: getattr(torch.ops.dlcompiler, name).default for name in _FUNCTIONS}


def _define_backward(library: torch.library.Library, name: str, function: Any, states: str) -> None:
    """The operator `NAME_backward`: gradients of all tensors that a layer reads, from those of its results; and its use."""
    library.define(f"{name}_backward(Tensor[] grads, Tensor input, {states}, Tensor[] params, {_SETTINGS}) -> Tensor[]")

    def backward(grads: Sequence[Tensor], x: Tensor, hx: Any, params: Sequence[Tensor], *settings: Any) -> list[Tensor]:
        with torch.enable_grad(), torch.inference_mode(False):
            leaves = [t.detach().requires_grad_() for t in (x, *as_list(hx), *params)]
            count = len(as_list(hx))
            state = leaves[1 : 1 + count] if isinstance(hx, list | tuple) else leaves[1]
            results = function(leaves[0], state, leaves[1 + count :], *settings)
            gradients = torch.autograd.grad(results, leaves, list(grads), materialize_grads=True)
        return [g.contiguous() for g in gradients]

    def shapes(grads: Sequence[Tensor], x: Tensor, hx: Any, params: Sequence[Tensor], *settings: Any) -> list[Tensor]:
        tensors = (x, *as_list(hx), *params)
        return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in tensors]

    library.impl(f"{name}_backward", backward, "CPU")
    library.impl(f"{name}_backward", backward, "CUDA")
    torch.library.register_fake(f"dlcompiler::{name}_backward", shapes, lib=library)
    operator = getattr(torch.ops.dlcompiler, f"{name}_backward").default

    def remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, hx, params, *settings = inputs
        ctx.save_for_backward(x, *as_list(hx), *params)
        ctx.states, ctx.settings = len(as_list(hx)) if isinstance(hx, list | tuple) else 0, settings
        ctx.set_materialize_grads(True)

    def differentiate(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, *rest = ctx.saved_tensors
        count = ctx.states or 1
        hx = rest[:count] if ctx.states else rest[0]
        dx, *others = operator(list(grads), x, hx, rest[count:], *ctx.settings)
        return dx, others[:count] if ctx.states else others[0], others[count:], *([None] * len(ctx.settings))

    torch.library.register_autograd(f"dlcompiler::{name}", differentiate, setup_context=remember, lib=library)


def _shapes(x: Tensor, hx: Any, params: Any, *settings: Any) -> tuple[Tensor, ...]:
    """Results of the right shapes, and with the strides that torch's functions give them."""
    bidirectional, batch_first = settings[4:]
    states = list(hx) if isinstance(hx, list | tuple) else [hx]
    width = states[0].shape[2] * (2 if bidirectional else 1)
    if batch_first:
        y = x.new_empty((x.shape[1], x.shape[0], width)).transpose(0, 1)
    else:
        y = x.new_empty((x.shape[0], x.shape[1], width))
    return (y, *(torch.empty_like(h, memory_format=torch.contiguous_format) for h in states))
