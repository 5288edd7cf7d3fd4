"""Sizes of a model's inputs that a node asks to be equal, though the file gives them different names or none.

    Concat(x: f32[a, 1], y: f32[b, 1], axis=1)  -->  b is a, in all inputs
    Conv(x: f32[n, c, h, w], weight: f32[8, 3, 1, 1])  -->  c is 3
    Add(scores: f32[n, q, past + q], mask: f32[n, 1, total])  -->  total is past + q

Exporters leave out names of dimensions, or give each input names of its own. Two open sizes that an operator takes only if they
are equal are one size, a size may be the sum of others, and what weights say is that number; a call with other ones is refused,
also where an elementwise operator would repeat the one that is 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from onnx import NodeProto, helper

from dlcompiler.frontends.onnx_fold import FoldingBuilder
from dlcompiler.ir.expression import (
    OPERATIONS,
    Dim,
    is_non_negative,
    linear_coefficients,
    substitute,
    symbol,
    symbols,
    terms_of,
)
from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import TensorType

# operators whose operands are repeated along dimensions of size 1, or lie along the last ones
_BROADCAST = frozenset(
    "Add And BiasAdd BiasGelu BiasSoftmax BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal FastGelu Greater GreaterOrEqual "
    "LayerNormalization Less LessOrEqual Max Mean Min Mod Mul Or PRelu Pow RMSNormalization SimplifiedLayerNormalization "
    "SkipLayerNormalization SkipSimplifiedLayerNormalization Sub Sum Where Xor".split()
)
# where the operators with caches of keys and of values take them
_PAST = {"MultiHeadAttention": (6, 8), "GroupQueryAttention": (3, 5)}
# operators whose parameters after the first input lie along its channels
_CHANNELS = frozenset({"BatchNormalization", "InstanceNormalization"})


Joined = Mapping[str, Dim]
MOST_CLAMPS = 4


class SizesToJoin(Exception):
    """Raised while importing: import again with each of these sizes standing for the other."""

    def __init__(self, joined: Joined) -> None:
        self.joined = dict(joined)
        super().__init__(f"sizes to join: {joined}")


def sizes_to_join(node: NodeProto, inputs: Sequence[Any], b: FoldingBuilder, open_sizes: set[str]) -> Joined:
    """Names of open sizes, each with what it must be for the node to take these inputs: another, a sum of them, a number."""
    tensors = [value if isinstance(value, Node) and isinstance(value.type, TensorType) else None for value in inputs]
    joined: dict[str, Dim] = {}
    for first, second in _equal_sizes(node, tensors, b):
        found = _solved(substitute(first, joined), substitute(second, joined), open_sizes)
        if found is not None:
            joined = {**with_joined(joined, found), **found}
    return joined


def with_joined(joined: Joined, more: Joined) -> dict[str, Dim]:
    """What sizes are once more are joined."""
    return {**{name: substitute(size, more) for name, size in joined.items()}, **more}


def _solved(first: Dim, second: Dim, open_sizes: set[str]) -> dict[str, Dim] | None:
    """What one open size must be for two sizes to be equal; None if that is not told, or one of them is 1 and repeated."""
    if first == second or 1 in (first, second) or not symbols(first) | symbols(second) <= open_sizes:
        return None
    for left, right in product(_unclamped(first), _unclamped(second)):
        for name, size in _solutions(left - right):
            found = {name: size}
            if substitute(first, found) == substitute(second, found):
                return found
    return None


def _solutions(difference: Dim) -> Iterator[tuple[str, Dim]]:
    """Sizes by which `difference` is 0; none of them is ever negative. The size that is named last comes first."""
    for name in sorted(symbols(difference), reverse=True):
        parts = linear_coefficients(difference, [name])
        if parts is None or parts.get(name) not in (1, -1):
            continue
        size = parts.get("", 0) * (-1 if parts[name] == 1 else 1)
        if is_non_negative(size):
            yield name, size


def _unclamped(size: Dim) -> Iterator[Dim]:
    """`size`, then what it is if of each minimum and maximum in it one operand is always the one."""
    yield size
    clamps: list[Any] = []
    stack = [size]
    while stack:
        for monomial in terms_of(stack.pop()):
            for atom in monomial:
                if atom.kind in ("min", "max") and atom not in clamps:
                    clamps.append(atom)
                stack.extend(atom.operands if atom.kind != "symbol" else ())
    if 0 < len(clamps) <= MOST_CLAMPS:
        for chosen in product(range(2), repeat=len(clamps)):
            yield _with_chosen(size, dict(zip(clamps, chosen)))


def _with_chosen(size: Dim, chosen: Mapping[Any, int]) -> Dim:
    total: Dim = 0
    for monomial, coefficient in terms_of(size).items():
        term: Dim = coefficient
        for atom in monomial:
            if atom.kind == "symbol":
                factor: Dim = symbol(atom.operands[0])
            elif atom in chosen:
                factor = _with_chosen(atom.operands[chosen[atom]], chosen)
            else:
                factor = OPERATIONS[atom.kind](*(_with_chosen(o, chosen) for o in atom.operands))
            term = term * factor
        total = total + term
    return total


def _equal_sizes(node: NodeProto, tensors: Sequence[Node | None], b: FoldingBuilder) -> Iterator[tuple[Dim, Dim]]:
    """Pairs of sizes that the operator takes only if they are equal."""
    shapes = [t.shape for t in tensors if t is not None]
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute if not a.ref_attr_name}
    if len(shapes) < 2:
        return
    first, second = shapes[:2]
    if node.op_type in _CHANNELS:
        yield from ((first[1], s[0]) for s in shapes[1:] if len(first) > 1 and len(s) == 1)
    elif node.op_type == "Concat":
        axis = attributes.get("axis", 0)
        for other in shapes[1:]:
            if len(other) == len(first):
                yield from (pair for d, pair in enumerate(zip(first, other)) if d != axis % len(first))
    elif node.op_type in ("Conv", "FusedConv"):
        if min(len(first), len(second)) >= 2:
            yield first[1], second[1] * attributes.get("group", 1)
    elif node.op_type == "ConvTranspose":
        if min(len(first), len(second)) >= 2:
            yield first[1], second[0]
    elif node.op_type in ("LSTM", "GRU", "RNN"):
        if len(first) == len(second) == 3:
            yield first[2], second[2]
            yield from ((first[1], t.shape[0]) for t in tensors[4:5] if t is not None and len(t.shape) == 1)
            yield from ((first[1], t.shape[1]) for t in tensors[5:7] if t is not None and len(t.shape) == 3)
    elif node.op_type in ("MatMul", "MatMulInteger", "FusedMatMul", "Gemm"):
        if min(len(first), len(second)) >= 2:
            summed = first[-2 if attributes.get("transA") else -1], second[-1 if attributes.get("transB") else -2]
            yield summed
            yield from zip(first[-3::-1], second[-3::-1])
    elif node.op_type == "Reshape":
        target = b.dims(tensors[1]) if tensors[1] is not None else None
        yield from ((own, wanted) for own, wanted in zip(first[:1], target or ()) if not isinstance(wanted, int))
    elif node.op_type == "Attention" and len(first) == len(second) == 4:
        for other in shapes[2:3]:
            yield from zip(second[:3], other[:3])
        yield first[0], second[0]
        for mask in tensors[3:4]:
            if mask is not None and mask.tensor.rank >= 2:
                yield from ((mask.shape[-1], second[2]), (mask.shape[-2], first[2]))
    elif node.op_type in _PAST:
        past = [t for t in tensors[slice(*_PAST[node.op_type])] if t is not None]
        if len(past) == 2:
            yield from zip(past[0].shape, past[1].shape)
    elif node.op_type == "GridSample":
        yield from ((first[0], second[0]), (second[-1], len(second) - 2))
    elif node.op_type in _BROADCAST:
        for k, shape in enumerate(shapes):
            for other in shapes[k + 1 :]:
                yield from zip(shape[::-1], other[::-1])
