"""Rules for operators whose results are as long as data says: the places of a mask, what lies there, repeated elements, counts.

    nonzero(mask)  -->  begins = exclusive sums of counts of the mask's blocks; u0 = their end; places(mask, begins) {count = u0}

How many there are is computed and read first (`fx_told`), so that what follows is planned as any other program.
"""

from __future__ import annotations

from typing import Any

from dlcompiler.frontends.fx_rules import NoRule, moving, rule
from dlcompiler.frontends.fx_types import dim_from_torch
from dlcompiler.frontends.fx_view import expand, reshape
from dlcompiler.ir.expression import Dim, product
from dlcompiler.ir.graph import Node
from dlcompiler.ir.ops.compaction import BLOCK, blocks_of
from dlcompiler.ir.types import boolean, compute_dtype, i64, u8


def numbered(i: Any, mask: Node) -> Node:
    """How many places before each one a mask holds, flattened."""
    ones = i.cast(reshape(i, mask, (mask.tensor.numel,)), i64)
    return i.b.scan(ones, axis=0, kind="add", exclusive=True, reverse=False)


def places(i: Any, mask: Node, count: Dim) -> Node:
    """Where a mask holds, flattened, in order: `count` numbers, which is told here."""
    b, length = i.b, mask.tensor.numel
    flat = reshape(i, mask, (length,))
    blocks = blocks_of(length)
    whole = flat if blocks * BLOCK == length else b.pad(flat, low=(0,), high=(blocks * BLOCK - length,), value=False)
    counts = b.reduce_sum(i.cast(reshape(i, whole, (blocks, BLOCK)), i64), axes=(1,))
    i.told.tell(b.reduce_sum(counts, axes=(0,)), count)
    return b.places(flat, b.scan(counts, axis=0, kind="add", exclusive=True, reverse=False), count=count)


def _truth(i: Any, x: Node) -> Node:
    return x if x.dtype is boolean else i.b.ne(x, i.number(0, x.dtype))


@rule("nonzero.default")
def _nonzero(i, x):
    shape = x.shape
    if not shape:
        raise NoRule("nonzero of a number")
    flat = places(i, _truth(i, x), i.shape[0])
    columns = []
    for axis, size in enumerate(shape):
        step = product(shape[axis + 1 :])
        at = flat if axis == len(shape) - 1 else i.b.floor_div(flat, i.number(step, i64))
        at = at if axis == 0 else i.b.remainder(at, i.number(size, i64))
        columns.append(reshape(i, at, (i.shape[0], 1)))
    return columns[0] if len(columns) == 1 else i.b.concat(*columns, axis=1)


def index_by_mask(i: Any, x: Node, axis: int, mask: Node) -> Node:
    """x[:, mask]: the dimensions that the mask is of become one, of the elements that it holds."""
    after = axis + mask.tensor.rank
    at = places(i, mask, i.shape[axis])
    flat = reshape(i, x, (*x.shape[:axis], mask.tensor.numel, *x.shape[after:]))
    return i.b.index(flat, at, axes=(axis,))


@moving("masked_select.default")
def _masked_select(i, x, mask):
    shape = _broadcast(x.shape, mask.shape)
    return index_by_mask(i, expand(i, x, shape), 0, expand(i, mask, shape))


def _broadcast(first: tuple[Dim, ...], second: tuple[Dim, ...]) -> tuple[Dim, ...]:
    rank = max(len(first), len(second))
    shapes = [(*(1,) * (rank - len(s)), *s) for s in (first, second)]
    for a, b in zip(*shapes):
        if a != b and 1 not in (a, b):
            raise NoRule(f"sizes {a} and {b}, which only a call shows to be equal")
    return tuple(b if a == 1 else a for a, b in zip(*shapes))


@rule("repeat_interleave.Tensor")
def _repeat_interleave(i, repeats, *, output_size=None):
    """Each row's number as often as it says: how many rows have begun before each place, less one."""
    (length,) = repeats.shape
    counts = i.cast(repeats, i64)
    if output_size is None:
        i.told.tell(i.b.reduce_sum(counts, axes=(0,)), i.shape[0])
    begins = i.b.scan(counts, axis=0, kind="add", exclusive=True, reverse=False)
    ones = expand(i, i.number(1, i64), (length,))
    begun = i.b.index_update(i.number(0, i64), ones, begins, axes=(0,), kind="add", shape=i.shape)
    rows = i.b.scan(begun, axis=0, kind="add", exclusive=False, reverse=False)
    return i.cast(i.b.sub(rows, i.number(1, i64)), i.dtype)


@rule("bincount.default")
def _bincount(i, x, weights=None, minlength=0):
    length = x.shape[0]
    if not isinstance(length, int) or not length:
        raise NoRule("bincount of what may have no element")
    at = i.cast(x, i64)
    most = i.b.add(i.b.reduce_max(at, axes=(0,)), i.number(1, i64))
    i.told.tell(i.b.maximum(most, i.number(minlength, i64)), i.shape[0])
    added = expand(i, i.number(1, i.dtype), (length,)) if weights is None else i.cast(weights, i.dtype)
    return i.b.index_update(i.number(0, i.dtype), added, at, axes=(0,), kind="add", shape=i.shape)


@rule("histc.default")
def _histc(i, x, bins=100, min=0, max=0):
    """How many elements lie in each of `bins` equal parts of [min, max]; those outside, and NaN, in none."""
    if min >= max or not x.dtype.is_float:
        raise NoRule("a histogram whose range depends on data, or of integers")
    b, dtype = i.b, compute_dtype(x.dtype)
    line = i.cast(reshape(i, x, (x.tensor.numel,)), dtype)
    low, high = (i.number(float(bound), dtype) for bound in (min, max))
    part = b.div(b.mul(b.sub(line, low), i.number(bins, dtype)), i.number(float(max) - float(min), dtype))
    at = b.minimum(i.cast(b.trunc(part), i64), i.number(bins - 1, i64))
    inside = b.bitwise_and(b.ge(line, low), b.le(line, high))
    ones = expand(i, i.number(1, i64), line.shape)
    at = b.where(inside, at, i.number(-1, i64))
    counts = b.index_update(i.number(0, i64), ones, at, axes=(0,), kind="add", shape=i.shape)
    return i.cast(counts, i.dtype)


def told_size(i: Any, result: int, axis: int = 0) -> Dim:
    """A size of one of the results of the operator at hand."""
    return dim_from_torch(i.meta[result].shape[axis])


# -- what differs from what is before it -------------------------------------------------------------------------------------


def _distinct(i: Any, line: Node, order: Node | None, shape: tuple[Dim, ...]) -> tuple[Node | None, Node | None, Node | None]:
    """(values, which of them each element is, how often each occurs) of a line whose equal elements stand together.

    order   the place that each element of the line had before it was sorted, among elements of that shape
    """
    b, (length,) = i.b, line.shape
    at = b.iota(size=length)
    before = b.index(line, b.maximum(b.sub(at, i.number(1, i64)), i.number(0, i64)), axes=(0,))
    is_new = b.bitwise_or(b.eq(at, i.number(0, i64)), b.ne(line, before))
    count = told_size(i, 0)
    values = b.index(line, places(i, is_new, count), axes=(0,))
    which = counts = None
    if i.uses(1) or i.uses(2):
        rank = b.sub(b.scan(i.cast(is_new, i64), axis=0, kind="add", exclusive=False, reverse=False), i.number(1, i64))
        which = rank if order is None else b.index_update(i.number(0, i64), rank, order, axes=(0,), kind="set", shape=(length,))
        which = _of_its_size(i, 1, reshape(i, which, shape))
        ones = expand(i, i.number(1, i64), (length,))
        counted = b.index_update(i.number(0, i64), ones, rank, axes=(0,), kind="add", shape=(count,))
        counts = _of_its_size(i, 2, counted)
    return values, which, counts


def _of_its_size(i: Any, result: int, value: Node) -> Node:
    """The value, or nothing where the caller has not asked for it."""
    wanted = i.type_of(i.meta[result]).shape
    return value if wanted == value.shape else expand(i, i.number(0, i64), wanted)


def _line_of(i: Any, x: Node) -> Node:
    length = x.tensor.numel
    if not isinstance(length, int) or not length or x.dtype.is_narrow:
        raise NoRule("different elements of what may have none")
    line = reshape(i, x, (length,))
    return i.cast(line, u8) if x.dtype is boolean else line


@rule("_unique2.default")
def _unique(i, x, sorted=True, return_inverse=False, return_counts=False):
    """Of equal elements, which stand together once they are sorted, the first; each NaN is an element of its own."""
    both = i.b.sort(_line_of(i, x), descending=False)
    line, order = (i.b("tuple.get", both, index=k) for k in range(2))
    values, *others = _distinct(i, line, order, x.shape)
    return i.cast(values, x.dtype), *others


@rule("unique_consecutive.default")
def _unique_consecutive(i, x, return_inverse=False, return_counts=False, dim=None):
    if dim is not None and x.tensor.rank > 1:
        raise NoRule("different rows")
    values, *others = _distinct(i, _line_of(i, x), None, x.shape)
    return i.cast(values, x.dtype), *others
