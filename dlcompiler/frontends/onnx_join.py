"""Sizes of a model's inputs that a node asks to be equal, though the file gives them different names or none.

    Concat(x: f32[a, 1], y: f32[b, 1], axis=1)  -->  b is a, in all inputs
    Conv(x: f32[n, c, h, w], weight: f32[8, 3, 1, 1])  -->  c is 3

Exporters leave out names of dimensions, or give each input names of its own. Two open sizes that an operator takes only if they
are equal are one size, and what weights say is that number; a call with other ones is refused, also where an elementwise operator
would repeat the one that is 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from onnx import NodeProto, helper

from dlcompiler.ir.expression import Dim, symbol_name
from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import TensorType

# operators whose operands are repeated along dimensions of size 1, or lie along the last ones
_BROADCAST = frozenset(
    "Add And BiasAdd BiasGelu BiasSoftmax BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal FastGelu Greater GreaterOrEqual "
    "LayerNormalization Less LessOrEqual Max Mean Min Mod Mul Or PRelu Pow RMSNormalization SimplifiedLayerNormalization "
    "SkipLayerNormalization SkipSimplifiedLayerNormalization Sub Sum Where Xor".split()
)
# operators whose parameters after the first input lie along its channels
_CHANNELS = frozenset({"BatchNormalization", "InstanceNormalization", "GroupNormalization"})


class SizesToJoin(Exception):
    """Raised while importing: import again with each of these sizes standing for the other."""

    def __init__(self, joined: Mapping[str, str | int]) -> None:
        self.joined = dict(joined)
        super().__init__(f"sizes to join: {joined}")


Joined = Mapping[str, str | int]


def sizes_to_join(node: NodeProto, inputs: Sequence[Any], open_sizes: set[str]) -> dict[str, str | int]:
    """Names of open sizes, each with another, or a number, that it must be equal to for the node to take these inputs."""
    tensors = [value if isinstance(value, Node) and isinstance(value.type, TensorType) else None for value in inputs]
    joined: dict[str, str | int] = {}
    for pair in _equal_sizes(node, tensors):
        first, second = (joined_size(joined, d if isinstance(d, int) else symbol_name(d)) for d in pair)
        if first == second or any(each is None or (isinstance(each, str) and each not in open_sizes) for each in (first, second)):
            continue
        if isinstance(second, str):
            joined[second] = first
        elif isinstance(first, str) and second != 1:
            joined[first] = second
    return joined


def joined_size(joined: Joined, size: str | int | None) -> str | int | None:
    """What a size is once all are joined."""
    while isinstance(size, str) and size in joined:
        size = joined[size]
    return size


def _equal_sizes(node: NodeProto, tensors: Sequence[Node | None]) -> Iterator[tuple[Dim, Dim]]:
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
    elif node.op_type in ("ConvTranspose",):
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
    elif node.op_type == "GridSample":
        yield from ((first[0], second[0]), (second[-1], len(second) - 2))
    elif node.op_type in _BROADCAST:
        for k, shape in enumerate(shapes):
            for other in shapes[k + 1 :]:
                yield from zip(shape[::-1], other[::-1])
