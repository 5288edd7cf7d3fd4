"""Rules for operators that sort, search and scan."""

from __future__ import annotations

from typing import Any

from dlcompiler.frontends.fx_rules import NoRule, rule
from dlcompiler.frontends.fx_view import axis_of, cut, expand, permute, reshape
from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import boolean, i64, u8

# -- running sums and the like -----------------------------------------------------------------------------------------------


def _scan_rule(kind: str):
    def apply(i, x, dim, dtype=None):
        x = i.cast(x, i.dtype)
        if not x.tensor.rank or x.shape[axis_of(dim, x.tensor.rank)] == 1:
            return x
        return i.b.scan(x, axis=axis_of(dim, x.tensor.rank), kind=kind, exclusive=False, reverse=False)

    return apply


rule("cumsum.default")(_scan_rule("add"))
rule("cumprod.default")(_scan_rule("mul"))
rule("logcumsumexp.default")(_scan_rule("logaddexp"))


def _running_rule(name: str, largest: bool) -> None:
    @rule(f"{name}.default")
    def _running(i, x, dim):
        if not x.tensor.rank:
            return x, i.number(0, i64)
        wide = i.cast(x, u8) if x.dtype is boolean else x
        both = i.b.running_extreme(wide, axis=axis_of(dim, x.tensor.rank), largest=largest)
        values, places = i.elements(both)
        return values and i.cast(values, x.dtype), places


_running_rule("cummax", True)
_running_rule("cummin", False)

# -- sorting -----------------------------------------------------------------------------------------------------------------


def _last(i: Any, x: Node, axis: int) -> tuple[Node, list[int]]:
    """`x` with an axis last, and the permutation that puts it back."""
    rank = x.tensor.rank
    order = [*(d for d in range(rank) if d != axis), axis]
    return permute(i, x, order), [order.index(d) for d in range(rank)]


def _sort(i: Any, x: Node, dim: int, descending: bool) -> tuple[Node | None, Node | None]:
    if not x.tensor.rank:
        return x, i.number(0, i64)
    moved, back = _last(i, x, axis_of(dim, x.tensor.rank))
    values, places = i.elements(i.b.sort(moved, descending=bool(descending)))
    return values and permute(i, values, back), places and permute(i, places, back)


@rule("sort.default")
def _sort_default(i, x, dim=-1, descending=False):
    return _sort(i, x, dim, descending)


@rule("sort.stable")
def _sort_stable(i, x, *, stable=None, dim=-1, descending=False):
    return _sort(i, x, dim, descending)


@rule("topk.default")
def _topk(i, x, k, dim=-1, largest=True, sorted=True):
    if not x.tensor.rank:
        if k != 1:
            raise NoRule("not the one element of a 0-d tensor")
        return x, i.number(0, i64)
    moved, back = _last(i, x, axis_of(dim, x.tensor.rank))
    both = i.elements(i.b.topk(moved, k=k, largest=bool(largest)))
    return tuple(each and permute(i, each, back) for each in both)


def _sorted_row(i: Any, x: Node, axis: int) -> tuple[Node, Node, list[int]]:
    """Values and places in order along the last axis, and how the axis is put back."""
    moved, back = _last(i, x, axis)
    both = i.b.sort(moved, descending=False)
    return i.b("tuple.get", both, index=0), i.b("tuple.get", both, index=1), back


def _without_last(i: Any, node: Node, back: list[int], keepdim: bool) -> Node:
    """One element a row, [..., 1], where the reduced axis belongs."""
    placed = permute(i, node, back)
    if keepdim:
        return placed
    axis = back.index(len(back) - 1)
    return reshape(i, placed, (*placed.shape[:axis], *placed.shape[axis + 1 :]))


@rule("kthvalue.default")
def _kthvalue(i, x, k, dim=-1, keepdim=False):
    if not x.tensor.rank:
        return x, i.number(0, i64)
    axis = axis_of(dim, x.tensor.rank)
    values, places, back = _sorted_row(i, x, axis)
    last = values.tensor.rank - 1
    return tuple(_without_last(i, cut(i, each, last, k - 1, k), back, keepdim) for each in (values, places))


@rule("median.dim")
def _median(i, x, dim=-1, keepdim=False):
    """The lower of the two in the middle; a NaN, the first one, if there is any."""
    if not x.tensor.rank:
        return x, i.number(0, i64)
    axis = axis_of(dim, x.tensor.rank)
    size = x.shape[axis]
    if not isinstance(size, int) or not size:
        raise NoRule("a median of an unknown number of elements")
    values, places, back = _sorted_row(i, x, axis)
    last = values.tensor.rank - 1
    middle = (size - 1) // 2
    value, place = (cut(i, each, last, middle, middle + 1) for each in (values, places))
    if x.dtype.is_float:
        largest = cut(i, values, last, size - 1, size)
        first = i.b.argmax(i.cast(i.b.isnan(_last(i, x, axis)[0]), u8), axes=(last,), keepdims=True)
        value, place = i.b.where(i.b.isnan(largest), largest, value), i.b.where(i.b.isnan(largest), first, place)
    return tuple(_without_last(i, each, back, keepdim) for each in (value, place))


@rule("median.default")
def _median_of_all(i, x):
    return _median(i, reshape(i, x, (x.tensor.numel,)), 0)[0]


# -- searching ---------------------------------------------------------------------------------------------------------------


def _search(i: Any, sorted_rows: Node, x: Node, right: bool, order: Node | None) -> Node:
    """How many elements of a sorted row come before each of `x`: a binary search without branches, unrolled.

    pos += step if row[pos + step - 1] comes before x, for steps 2**k, ..., 2, 1
    """
    size = sorted_rows.shape[-1]
    if not isinstance(size, int):
        raise NoRule("a search in a row of unknown length")
    if size == 0 or 0 in x.shape:
        return expand(i, i.number(0, i.dtype), i.shape)
    last = sorted_rows.tensor.rank - 1

    def element(row: Node, at: Node) -> Node:
        if row.tensor.rank == 1:
            return i.b.index(row, at, axes=(0,))
        return i.b.gather(row, at, axis=last)

    position = expand(i, i.number(0, i64), x.shape)
    step = 1 << (size.bit_length() - 1)
    while step:
        there = i.b.add(position, i.number(step, i64))
        at = i.b.minimum(i.b.sub(there, i.number(1, i64)), i.number(size - 1, i64))
        found = element(sorted_rows, at if order is None else element(order, at))
        # a NaN, which no comparison holds for, comes after everything
        behind = i.b("gt" if right else "ge", found, x)
        before = i.b.bitwise_and(i.b.le(there, i.number(size, i64)), i.b.bitwise_not(behind))
        position = i.b.where(before, there, position)
        step //= 2
    return i.cast(position, i.dtype)


def _side(right: bool, side: str | None) -> bool:
    return right if side is None else side == "right"


@rule("searchsorted.Tensor")
def _searchsorted(i, sorted_rows, x, *, out_int32=False, right=False, side=None, sorter=None):
    if sorted_rows.dtype is not x.dtype:
        raise NoRule("a search among elements of another dtype")
    if sorted_rows.tensor.rank > 1 and (not x.tensor.rank or x.shape[:-1] != sorted_rows.shape[:-1]):
        raise NoRule("a search in rows of another number")
    return _search(i, sorted_rows, x, _side(right, side), sorter)


@rule("searchsorted.Scalar")
def _searchsorted_number(i, sorted_rows, value, *, out_int32=False, right=False, side=None, sorter=None):
    if sorted_rows.tensor.rank != 1 or (isinstance(value, float) and not sorted_rows.dtype.is_float):
        raise NoRule("a search for a number of another dtype")
    return _search(i, sorted_rows, i.number(value, sorted_rows.dtype), _side(right, side), sorter)


@rule("bucketize.Tensor")
def _bucketize(i, x, boundaries, *, out_int32=False, right=False):
    if boundaries.dtype is not x.dtype:
        raise NoRule("a search among elements of another dtype")
    return _search(i, boundaries, x, right, None)
