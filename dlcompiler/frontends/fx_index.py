"""Rules for operators that read where data says."""

from __future__ import annotations

from typing import Any

import numpy as np

from dlcompiler.frontends.fx_compaction import index_by_mask
from dlcompiler.frontends.fx_rules import NoRule, moving
from dlcompiler.frontends.fx_view import axis_of, permute, reshape
from dlcompiler.ir.expression import Dim
from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import boolean, i64

# ops whose results are non-negative if their operands are
_KEEP_SIGN = frozenset(("reshape", "expand", "permute", "slice", "cast", "add", "mul", "maximum", "concat", "copy"))
_NON_NEGATIVE = frozenset(("iota", "dim", "size"))
# ops whose results have all elements of their operand, and no others
_KEEP_ELEMENTS = frozenset(("reshape", "expand", "permute", "cast", "copy"))


def is_non_negative(i: Any, node: Node) -> bool:
    """Whether a node's elements are known not to be negative: positions made from ranges and constants."""
    known = i.non_negative
    stack = [node]
    while stack:
        top = stack[-1]
        if top in known:
            stack.pop()
        elif top.op.name == "constant":
            value = top.attributes["value"]
            known[top] = value.size == 0 or bool(np.all(value >= 0))
        elif top.op.name in _KEEP_SIGN and top.dtype.kind != "float":
            waiting = [x for x in top.inputs if x not in known]
            if waiting:
                stack.extend(waiting)
            else:
                known[top] = all(known[x] for x in top.inputs)
        else:
            known[top] = top.op.name in _NON_NEGATIVE or (top.op.name != "input" and top.dtype.kind in ("uint", "bool"))
    return known[node]


def state_positions(i: Any, at: Node, size: Dim, *, from_end: bool = False) -> None:
    """Let each call check that what it gives for `at` are positions in a dimension of that size, as eager does.

    Only an input's own elements are checked, moved or not: token numbers, labels. Kernels stay within memory whatever they read.
    """
    source, allowed = _source(at)
    if source.op.name == "input" and i.is_whole and source in i.b.inputs:
        i.b.state_positions(source, -size if from_end else 0, size - 1, allowed)


def _source(at: Node) -> tuple[Node, int | None]:
    """What `at` has the elements of, and the number that it replaces: `where(x != -100, x, 0)` is (x, -100)."""
    allowed = None
    while at.op.name in _KEEP_ELEMENTS or (at.op.name == "where" and allowed is None):
        if at.op.name == "where":
            condition, kept, other = at.inputs
            number = condition.inputs[1] if condition.op.name == "ne" else None
            if number is None or kept not in condition.inputs or any(x.op.name != "constant" for x in (number, other)):
                break
            if number.attributes["value"].size != 1:
                break
            allowed = int(number.attributes["value"].reshape(()))
            at = kept
        elif at.dtype.is_integer and at.inputs[0].dtype.is_integer:
            at = at.inputs[0]
        else:
            break
    return at, allowed


def wrapped(i: Any, at: Node, size: Dim) -> Node:
    """Positions that may count from the end: `where(at < 0, at + size, at)`."""
    state_positions(i, at, size, from_end=True)
    if is_non_negative(i, at):
        return at
    return i.b.where(i.b.lt(at, i.number(0, at.dtype)), i.b.add(at, i.number(size, at.dtype)), at)


@moving("index.Tensor", "_unsafe_index.Tensor")
def _index(i, x, indices):
    """x[:, i0, :, i1]: the indexed axes are brought together, indexed, and the result put where torch puts it."""
    given = {axis: at for axis, at in enumerate(indices) if at is not None}
    if not given:
        return x
    if any(at.dtype is boolean or at.dtype.name == "u8" for at in given.values()):
        ((axis, mask), *others) = given.items()
        if not others and mask.dtype is boolean:
            return index_by_mask(i, x, axis, mask)
        raise NoRule("a mask among other indices: the result's size depends on data")
    rank = x.tensor.rank
    axes = list(given)
    together = axes == list(range(axes[0], axes[0] + len(axes)))
    if not together:
        # torch puts the indices' dimensions in front
        x = permute(i, x, [*axes, *(d for d in range(rank) if d not in given)])
    first = axes[0] if together else 0
    at = [wrapped(i, i.cast(g, i64), x.shape[first + k]) for k, g in enumerate(given.values())]
    return i.b.index(x, *at, axes=tuple(range(first, first + len(at))))


@moving("index_select.default")
def _index_select(i, x, dim, index):
    if not x.tensor.rank:
        return reshape(i, x, i.shape)
    axis = axis_of(dim, x.tensor.rank)
    state_positions(i, index, x.shape[axis])
    at = index if index.tensor.rank else reshape(i, index, (1,))
    return i.b.index(x, i.cast(at, i64), axes=(axis,))


@moving("gather.default")
def _gather(i, x, dim, index, sparse_grad=False):
    state_positions(i, index, x.shape[axis_of(dim, x.tensor.rank)] if x.tensor.rank else 1)
    if not x.tensor.rank or not index.tensor.rank:
        # a 0-d tensor counts as one of one element
        source, at = (reshape(i, t, (1,)) if not t.tensor.rank else t for t in (x, index))
        return reshape(i, i.b.gather(source, i.cast(at, i64), axis=0), i.shape)
    return i.b.gather(x, i.cast(index, i64), axis=axis_of(dim, x.tensor.rank))


@moving("embedding.default")
def _embedding(i, weight, indices, padding_idx=-1, scale_grad_by_freq=False, sparse=False):
    state_positions(i, indices, weight.shape[0])
    return i.b.index(weight, indices, axes=(0,))


@moving("take.default")
def _take(i, x, index):
    size = x.tensor.numel
    return i.b.index(reshape(i, x, (size,)), wrapped(i, i.cast(index, i64), size), axes=(0,))
