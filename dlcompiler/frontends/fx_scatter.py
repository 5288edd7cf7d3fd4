"""Rules for operators that write where data says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dlcompiler.frontends.fx_compaction import numbered, places
from dlcompiler.frontends.fx_index import wrapped
from dlcompiler.frontends.fx_rules import NoRule, rule
from dlcompiler.frontends.fx_view import axis_of, cut, expand, permute, reshape
from dlcompiler.ir.expression import Dim, product
from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import DType, boolean, i64

# what torch calls a reduction -> the kind of update
_KINDS = {"sum": "add", "add": "add", "prod": "mul", "multiply": "mul", "amax": "max", "amin": "min"}


def _kind(kind: str, dtype: DType) -> str:
    """Of bools, a sum is `or` and a product `and`."""
    return {"add": "max", "mul": "min"}.get(kind, kind) if dtype is boolean else kind


def _base(x: Node) -> Node:
    """What `x` is broadcast from: filling a tensor with one number and copying it is work for nothing."""
    return x.inputs[0] if x.op.name == "expand" else x


def _at_least_1d(i: Any, x: Node) -> Node:
    return x if x.tensor.rank else reshape(i, x, (1,))


def scatter(i: Any, x: Node, dim: int, index: Node, source: Any, kind: str) -> Node:
    """torch.scatter and its kin; `source` is a node or a number."""
    shape = x.shape
    x, index = _at_least_1d(i, x), _at_least_1d(i, index)
    axis = axis_of(dim, x.tensor.rank)
    if isinstance(source, Node) and source.shape != ():
        for d, size in enumerate(index.shape):
            source = cut(i, source, d, 0, size)
        updates = i.cast(source, x.dtype)
    else:
        updates = expand(i, i.tensor(source, x.dtype), index.shape)
    kind = _kind(kind, x.dtype)
    others = [d for d in range(x.tensor.rank) if d != axis]
    if index.shape[axis] == 1 and all(index.shape[d] == x.shape[d] for d in others):
        return reshape(i, _scatter_one(i, x, axis, index, updates, kind), shape)
    return reshape(i, i.b.scatter(_base(x), updates, index, axis=axis, kind=kind, shape=x.shape), shape)


def _scatter_one(i: Any, x: Node, axis: int, index: Node, updates: Node, kind: str) -> Node:
    """One update in each row: every element asks whether it is the one, which fuses with what is around it."""
    line = reshape(i, i.b.iota(size=x.shape[axis]), (x.shape[axis], *(1,) * (x.tensor.rank - axis - 1)))
    operation = {"set": None, "max": "maximum", "min": "minimum"}.get(kind, kind)
    new = updates if operation is None else i.b(operation, x, updates)
    return i.b.where(i.b.eq(line, i.cast(index, i64)), new, x)


@rule("scatter.src", "scatter.value")
def _scatter(i, x, dim, index, source):
    return scatter(i, x, dim, index, source, "set")


@rule("scatter.reduce", "scatter.value_reduce")
def _scatter_with(i, x, dim, index, source, *, reduce):
    return scatter(i, x, dim, index, source, _KINDS[reduce])


@rule("scatter_add.default")
def _scatter_add(i, x, dim, index, source):
    return scatter(i, x, dim, index, source, "add")


def _neutral(i: Any, kind: str, dtype: DType) -> Node:
    """A number that changes nothing."""
    if kind in ("add", "mul"):
        return i.number(0 if kind == "add" else 1, dtype)
    lowest = kind == "max"
    if dtype.is_float:
        return i.number(-math.inf if lowest else math.inf, dtype)
    limits = np.iinfo(dtype.numpy) if dtype is not boolean else np.iinfo(np.uint8)
    return i.number((limits.min if lowest else limits.max) if dtype is not boolean else not lowest, dtype)


def _reduced(i: Any, x: Node, write: Any, reduce: str, include_self: bool) -> Node:
    """`write(x, source, kind)` makes the updates, `source` None for the operator's own; a mean divides by their number.

    Without `include_self`, an element that any update reaches counts for nothing itself.
    """
    kind = "add" if reduce == "mean" else _KINDS[reduce]
    reached = None
    if not include_self:
        reached = write(expand(i, i.number(False, boolean), x.shape), i.number(True, boolean), "set")
    start = x if reached is None else i.b.where(reached, _neutral(i, _kind(kind, x.dtype), x.dtype), x)
    total = write(start, None, kind)
    if reduce != "mean":
        return total
    one = i.number(1, x.dtype)
    counted = expand(i, one, x.shape) if reached is None else i.b.where(reached, i.number(0, x.dtype), one)
    count = write(counted, one, "add")
    return i.b("div" if x.dtype.is_float else "floor_div", total, count)


@rule("scatter_reduce.two")
def _scatter_reduce(i, x, dim, index, source, reduce, include_self=True):
    def write(target: Node, value: Node | None, kind: str) -> Node:
        return scatter(i, target, dim, index, source if value is None else value, kind)

    return _reduced(i, x, write, reduce, include_self)


# -- x[i0, i1] = y ---------------------------------------------------------------------------------------------------------------


def index_update(i: Any, x: Node, axes: Sequence[int], indices: Sequence[Node], values: Node, kind: str) -> Node:
    """`x` with values, broadcast, written where the indices of those axes say."""
    rank, axes = x.tensor.rank, list(axes)
    shape = x.shape
    together = axes == list(range(axes[0], axes[0] + len(axes)))
    order = list(range(rank)) if together else [*axes, *(d for d in range(rank) if d not in axes)]
    first = axes[0] if together else 0
    base = _base(x)
    if not together:
        base = base if not base.tensor.rank else permute(i, x, order)
        shape = tuple(shape[d] for d in order)
    at = [wrapped(i, i.cast(g, i64), shape[first + k]) for k, g in enumerate(indices)]
    lead = _broadcast([a.shape for a in at])
    written = (*shape[:first], *lead, *shape[first + len(axes) :])
    updates = expand(i, i.cast(values, x.dtype), written)
    named = tuple(range(first, first + len(axes)))
    result = i.b.index_update(base, updates, *at, axes=named, kind=_kind(kind, x.dtype), shape=shape)
    return permute(i, result, [order.index(d) for d in range(rank)])


def _broadcast(shapes: Sequence[tuple[Dim, ...]]) -> tuple[Dim, ...]:
    rank = max(map(len, shapes))
    result: list[Dim] = [1] * rank
    for shape in shapes:
        for d, size in enumerate(shape, rank - len(shape)):
            if size != 1:
                result[d] = size
    return tuple(result)


@rule("index_put.default", "_unsafe_index_put.default")
def _index_put(i, x, indices, values, accumulate=False):
    given = {axis: at for axis, at in enumerate(indices) if at is not None}
    kind = "add" if accumulate else "set"
    if not given:
        raise NoRule("an index of nothing")
    if any(at.dtype is boolean or at.dtype.name == "u8" for at in given.values()):
        return _masked_put(i, x, list(given), list(given.values()), values, kind)
    return index_update(i, x, list(given), list(given.values()), values, kind)


def _masked_put(i: Any, x: Node, axes: Sequence[int], indices: Sequence[Node], values: Node, kind: str) -> Node:
    """`x[:, mask] = y` is a choice for each element where y is the same for all that the mask holds; else they are numbered."""
    if len(indices) != 1 or indices[0].dtype is not boolean:
        raise NoRule("a mask among other indices")
    (mask,), (axis,) = indices, axes
    after = axis + mask.tensor.rank
    counted = len(x.shape) - after  # dimensions behind that of the elements which the mask holds
    held = values.shape[-1 - counted] if values.tensor.rank > counted else 1
    if held != 1:
        at = places(i, mask, held)
        flat = reshape(i, x, (*x.shape[:axis], mask.tensor.numel, *x.shape[after:]))
        return reshape(i, index_update(i, flat, [axis], [at], values, kind), x.shape)
    lead = values.shape[: max(values.tensor.rank - counted - 1, 0)]
    behind = values.shape[max(values.tensor.rank - counted, 0) :]
    value = i.cast(reshape(i, values, (*lead, *(1,) * mask.tensor.rank, *behind) if lead else behind), x.dtype)
    mask = reshape(i, mask, (*mask.shape, *(1,) * counted))
    operation = {"add": "add", "max": "maximum"}.get(_kind(kind, x.dtype))
    return i.b.where(mask, value if operation is None else i.b(operation, x, value), x)


@rule("index_reduce.default")
def _index_reduce(i, x, dim, index, source, reduce, include_self=True):
    axis = axis_of(dim, x.tensor.rank)

    def write(target: Node, value: Node | None, kind: str) -> Node:
        at = _at_least_1d(i, index)
        if not x.tensor.rank:
            raise NoRule("index_reduce of a 0-d tensor")
        return index_update(i, target, [axis], [at], source if value is None else value, kind)

    return _reduced(i, x, write, reduce, include_self)


@rule("put.default")
def _put(i, x, index, source, accumulate=False):
    flat = reshape(i, x, (x.tensor.numel,))
    at, new = reshape(i, index, (index.tensor.numel,)), reshape(i, source, (source.tensor.numel,))
    return reshape(i, index_update(i, flat, [0], [at], new, "add" if accumulate else "set"), x.shape)


@rule("masked_scatter_backward.default")
def _masked_scatter_backward(i, gradient, mask, sizes):
    mask = expand(i, mask, gradient.shape)
    number = i.b.where(reshape(i, mask, (mask.tensor.numel,)), numbered(i, mask), i.number(-1, i64))
    flat = reshape(i, gradient, (gradient.tensor.numel,))
    zero, count = i.number(0, gradient.dtype), product(i.shape)
    return reshape(i, i.b.index_update(zero, flat, number, axes=(0,), kind="set", shape=(count,)), i.shape)


@rule("masked_scatter.default")
def _masked_scatter(i, x, mask, source):
    """The k-th place that the mask holds takes the k-th element of the source."""
    x, mask = expand(i, x, i.shape), expand(i, mask, i.shape)
    number = numbered(i, mask)
    if 0 in source.shape or 0 in x.shape:
        raise NoRule("elements out of nothing")
    taken = i.b.index(reshape(i, source, (source.tensor.numel,)), number, axes=(0,))
    return i.b.where(mask, reshape(i, i.cast(taken, x.dtype), x.shape), x)


@rule("diagonal_scatter.default")
def _diagonal_scatter(i, x, source, offset=0, dim1=0, dim2=1):
    rank = x.tensor.rank
    first, second = axis_of(dim1, rank), axis_of(dim2, rank)
    if not isinstance(offset, int):
        raise NoRule("a diagonal that is not known at compile time")
    order = [*(d for d in range(rank) if d not in (first, second)), first, second]
    line = i.b.iota(size=source.shape[-1])
    row, column = (i.b.add(line, i.number(max(o, 0), i64)) for o in (-offset, offset))
    result = index_update(i, permute(i, x, order), [rank - 2, rank - 1], [row, column], source, "set")
    return permute(i, result, [order.index(d) for d in range(rank)])


@rule("embedding_dense_backward.default")
def _embedding_backward(i, gradient, indices, count, padding_idx, scale_by_frequency):
    """Each row of the gradient is added to the row that its index names; the padding's to none."""
    width = gradient.shape[-1]
    places = indices.tensor.numel
    at = reshape(i, i.cast(indices, i64), (places,))
    rows = reshape(i, gradient, (places, width))
    if scale_by_frequency:
        one = expand(i, i.number(1, gradient.dtype), (places,))
        often = i.b.index_update(i.number(0, gradient.dtype), one, at, axes=(0,), kind="add", shape=(count,))
        rows = i.b.div(rows, reshape(i, i.b.index(often, at, axes=(0,)), (places, 1)))
    if i.hint(padding_idx) >= 0:
        at = i.b.where(i.b.eq(at, i.number(padding_idx, i64)), i.number(-1, i64), at)
    return i.b.index_update(i.number(0, gradient.dtype), rows, at, axes=(0,), kind="add", shape=(count, width))
