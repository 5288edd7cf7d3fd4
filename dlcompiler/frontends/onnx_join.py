"""Sizes of a model's inputs that a node asks to be equal, though the file gives them different names or none.

    Concat(x: f32[a, 1], y: f32[b, 1], axis=1)  -->  b is a, in all inputs

Exporters leave out names of dimensions, or give each input names of its own. Two open sizes that an operator takes only if they
are equal are one size; a call with different ones is refused, also where an elementwise operator would repeat the one that is 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from onnx import NodeProto, helper

from dlcompiler.ir.expression import Dim, symbol_name
from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import TensorType

# operators whose parameters after the first input lie along its channels
_CHANNELS = frozenset({"BatchNormalization", "InstanceNormalization", "GroupNormalization"})


class SizesToJoin(Exception):
    """Raised while importing: import again with each of these sizes standing for the other."""

    def __init__(self, joined: Mapping[str, str]) -> None:
        self.joined = dict(joined)
        super().__init__(f"sizes to join: {joined}")


def sizes_to_join(node: NodeProto, inputs: Sequence[Any], open_sizes: set[str]) -> dict[str, str]:
    """Names of open sizes, each with another that it must be equal to for the node to take these inputs; empty if none is."""
    tensors = [value if isinstance(value, Node) and isinstance(value.type, TensorType) else None for value in inputs]
    joined: dict[str, str] = {}
    for first, second in _equal_sizes(node, tensors):
        kept, other = symbol_name(first), symbol_name(second)
        if kept is None or other is None or not {kept, other} <= open_sizes:
            continue
        while kept in joined:
            kept = joined[kept]
        while other in joined:
            other = joined[other]
        if kept != other:
            joined[other] = kept
    return joined


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
    elif node.op_type in ("MatMul", "MatMulInteger", "FusedMatMul", "Gemm"):
        if min(len(first), len(second)) >= 2:
            summed = first[-2 if attributes.get("transA") else -1], second[-1 if attributes.get("transB") else -2]
            yield summed
            yield from zip(first[-3::-1], second[-3::-1])
    else:
        for k, shape in enumerate(shapes):
            for other in shapes[k + 1 :]:
                yield from zip(shape[::-1], other[::-1])
