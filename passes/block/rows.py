"""Which ops work on each row of a tensor by itself, and where the rows of their operands and results lie.

`rows_of(node, at)` is asked of one node at a time, in order: `at` says along which dimension the rows lie of the values that
have been found to have rows so far; other operands of the node belong to rows too where a dimension lies beside theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dlcompiler.ir.expression import product
from dlcompiler.ir.graph import Node
from dlcompiler.ir.ops import Trait


@dataclass(frozen=True)
class Rows:
    """axis: of the result, along which rows lie; None if it is the sum over them. operands: likewise; None if without rows."""

    axis: int | None
    operands: tuple[int | None, ...]


def rows_of(node: Node, at: Mapping[Node, int], count: int) -> Rows | None:
    """How a node treats `count` rows; None if it mixes them, or is not known not to."""
    if node.has(Trait.POINTWISE) or node.op.name == "expand":
        return _of_pointwise(node, at, count)
    if node.has(Trait.REDUCTION):
        return _of_reduction(node, at)
    match node.op.name:
        case "permute":
            return Rows(tuple(node.attributes["dims"]).index(at[node.inputs[0]]), (at[node.inputs[0]],))
        case "reshape":
            return _of_reshape(node, at, count)
        case "gather":
            return _of_gather(node, at, count)
        case "linear":
            return _of_product(node, at, count, node.inputs[1].tensor.rank - 1)
        case "matmul":
            return _of_product(node, at, count, node.inputs[1].tensor.rank - 2)
    return None


def _of_pointwise(node: Node, at: Mapping[Node, int], count: int) -> Rows | None:
    rank = node.tensor.rank
    (axis, *others) = {at[i] + rank - i.tensor.rank for i in node.inputs if i in at}
    return None if others else rows_of_made(node, axis, count)


def rows_of_made(node: Node, axis: int, count: int) -> Rows | None:
    """How a node treats rows that lie along `axis` of its result, of whose operands nothing is known; None as `rows_of`."""
    rank = node.tensor.rank
    if node.shape[axis] != count:
        return None
    if node.has(Trait.REDUCTION):
        (x,) = node.inputs
        gone = () if node.attributes.get("keepdims", False) else node.attributes["axes"]
        of_result = [d for d in range(x.tensor.rank) if d not in gone]
        return None if of_result[axis] in node.attributes["axes"] else Rows(axis, (of_result[axis],))
    if not (node.has(Trait.POINTWISE) or node.op.name == "expand"):
        return None
    places = [axis - (rank - i.tensor.rank) for i in node.inputs]
    return Rows(axis, tuple(p if p >= 0 and i.shape[p] == count else None for i, p in zip(node.inputs, places)))


def _of_reduction(node: Node, at: Mapping[Node, int]) -> Rows | None:
    axis, axes = at[node.inputs[0]], node.attributes["axes"]
    if axis in axes:
        return Rows(None, (axis,)) if node.op.name == "reduce_sum" else None
    gone = 0 if node.attributes.get("keepdims", False) else sum(a < axis for a in axes)
    return Rows(axis - gone, (axis,))


def _of_reshape(node: Node, at: Mapping[Node, int], count: int) -> Rows | None:
    (x,) = node.inputs
    before = product(x.shape[: at[x]])
    for axis, size in enumerate(node.shape):
        if size == count and product(node.shape[:axis]) == before:
            return Rows(axis, (at[x],))
    return None


def _of_gather(node: Node, at: Mapping[Node, int], count: int) -> Rows | None:
    x, indices = node.inputs
    axis = at.get(x, at.get(indices, 0))
    if at.get(indices, axis) != axis or axis == node.attributes["axis"] or x.shape[axis] != count or node.shape[axis] != count:
        return None
    return Rows(axis, (axis, axis))


def _of_product(node: Node, at: Mapping[Node, int], count: int, summed: int) -> Rows | None:
    """Of linear and matmul; `summed`: the dimension of operand 1 that is summed over."""
    x, w, *bias = node.inputs
    last = x.tensor.rank - 1
    if w.tensor.rank != 2 or any(i in at for i in bias):
        return None
    if at.get(x, last) == last and at.get(w, summed) == summed and x.shape[last] == count:
        return None if bias or x.tensor.rank != 2 else Rows(None, (last, summed))
    if x in at and w not in at:
        return Rows(at[x], (at[x], None, *(None for _ in bias)))
    return None
