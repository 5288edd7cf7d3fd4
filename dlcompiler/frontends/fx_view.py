"""Rules for operators that move elements without computing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlcompiler.frontends.fx_rules import NoRule, moving
from dlcompiler.frontends.fx_told import tells_sizes
from dlcompiler.frontends.fx_types import dim_from_torch
from dlcompiler.ir.expression import Dim, is_non_negative
from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import bf16, boolean, f16, i64


def axis_of(axis: int, rank: int) -> int:
    """`axis` counted from the front."""
    return axis % rank if rank else 0


def reshape(i: Any, x: Node, shape: Sequence[Dim]) -> Node:
    """`x` in that shape; `x` itself where it has it. A reshape of a reshape is one."""
    while x.op.name == "reshape" and x.shape != tuple(shape):
        x = x.inputs[0]
    return x if x.shape == tuple(shape) else i.b.reshape(x, shape=tuple(shape))


def permute(i: Any, x: Node, dims: Sequence[int]) -> Node:
    """`x` with its dimensions in that order. A permutation of a permutation is one."""
    dims = tuple(dims)
    if x.op.name == "permute":
        inner = x.attributes["dims"]
        return permute(i, x.inputs[0], [inner[d] for d in dims])
    return x if dims == tuple(range(len(dims))) else i.b.permute(x, dims=dims)


def expand(i: Any, x: Node, shape: Sequence[Dim]) -> Node:
    return x if x.shape == tuple(shape) else i.b.expand(x, shape=tuple(shape))


def cut(i: Any, x: Node, axis: int, start: Dim, limit: Dim, step: int = 1) -> Node:
    """`x[..., start:limit:step, ...]` along one axis, `0 <= start <= limit <= size`."""
    if start == 0 and limit == x.shape[axis] and step == 1:
        return x
    rank = x.tensor.rank
    starts = tuple(start if d == axis else 0 for d in range(rank))
    limits = tuple(limit if d == axis else x.shape[d] for d in range(rank))
    return i.b.slice(x, starts=starts, limits=limits, steps=tuple(step if d == axis else 1 for d in range(rank)))


@moving("view.default", "_unsafe_view.default", "reshape.default", "_reshape_alias.default", "unsqueeze.default",
      "squeeze.default", "squeeze.dim", "squeeze.dims", "flatten.using_ints", "view_copy.default")  # fmt: skip
def _reshape(i, x, *shape):
    return reshape(i, x, i.shape)


@moving("view.dtype")
def _view_dtype(i, x, dtype):
    if i.dtype is x.dtype:
        return x
    if i.dtype.bits != x.dtype.bits or any(d in (boolean, f16, bf16) or d.kind == "complex" for d in (i.dtype, x.dtype)):
        # the bits of a float16 that is no number would not survive being widened
        raise NoRule("bits read as another dtype")
    return i.b.bitcast(x, dtype=i.dtype.name)


@moving("permute.default", "permute_copy.default")
def _permute(i, x, dims):
    rank = x.tensor.rank
    return permute(i, x, [axis_of(d, rank) for d in dims])


@moving("t.default")
def _t(i, x):
    return permute(i, x, range(x.tensor.rank)[::-1])


@moving("transpose.int")
def _transpose(i, x, first, second):
    dims = list(range(x.tensor.rank))
    if dims:
        first, second = axis_of(first, len(dims)), axis_of(second, len(dims))
        dims[first], dims[second] = dims[second], dims[first]
    return permute(i, x, dims)


@moving("expand.default", "expand_copy.default")
def _expand(i, x, size, implicit=False):
    return expand(i, x, i.shape)


# -- slices ------------------------------------------------------------------------------------------------------------------


def clamped(i: Any, position: Dim | None, size: Dim, default: Dim) -> Dim:
    """A slice bound as Python counts it: from the end if negative, and kept inside.

    Which case it is, the size at capture tells: torch has guarded on it. What data tells is inside, or torch would not know how
    long the slice is.
    """
    if position is None:
        return default
    if i.told.is_of(position) and is_non_negative(position):
        return position
    if i.hint(position) < 0:
        position = position + size
        if i.hint(position) < 0:
            return 0
    return size if i.hint(position) > i.hint(size) else position


def slice_bounds(i: Any, size: Dim, out: Dim, start: Dim | None, step: int) -> tuple[Dim, Dim]:
    """(start, limit) of a slice of `out` elements, such that the limit is the end of the last one."""
    first = clamped(i, start, size, 0)
    if out == 0:
        return first, first
    return first, first + (out - 1) * step + 1


@moving("slice.Tensor", "slice_copy.Tensor")
def _slice(i, x, dim=0, start=None, end=None, step=1):
    axis = axis_of(dim, x.tensor.rank)
    if not isinstance(step, int):
        raise NoRule("a slice whose step is not known at compile time")
    if tells_sizes(i.node):
        return _told_slice(i, x, axis, start, end, step)
    first, limit = slice_bounds(i, x.shape[axis], i.shape[axis], start, step)
    return cut(i, x, axis, first, limit, step)


def _from_the_front(i: Any, position: Dim, size: Dim) -> Node:
    """A position of any sign, as a number, counted from the front."""
    at = i.size(position)
    return i.b.where(i.b.lt(at, i.number(0, i64)), i.b.add(at, i.size(size)), at)


def _told_bound(i: Any, position: Dim | None, size: Dim, default: Dim) -> Node:
    """A slice bound as a number, kept inside."""
    if position is None:
        return i.size(default)
    return i.b.minimum(i.b.maximum(_from_the_front(i, position, size), i.number(0, i64)), i.size(size))


def _tell_place(i: Any, axis: int, first: Node) -> None:
    """Where in eager's memory a view begins, if torch has a symbol for it: a backward pass may be given that."""
    source, place = i.node.args[0].meta["val"], i.meta.storage_offset()
    if not isinstance(place, int) and not i.told.is_known(dim_from_torch(place)):
        step, before = (i.size(dim_from_torch(n)) for n in (source.stride()[axis], source.storage_offset()))
        i.told.tell(i.b.add(before, i.b.mul(first, step)), dim_from_torch(place))


def _told_slice(i: Any, x: Node, axis: int, start: Dim | None, end: Dim | None, step: int) -> Node:
    """x[start:end] with bounds that may lie anywhere: how many elements there are is computed and told."""
    b, size = i.b, x.shape[axis]
    first, last = _told_bound(i, start, size, 0), _told_bound(i, end, size, size)
    _tell_place(i, axis, first)
    count = b.floor_div(b.add(b.sub(last, first), i.number(step - 1, i64)), i.number(step, i64))
    i.told.tell(b.maximum(count, i.number(0, i64)), i.shape[axis])
    line = b.mul(b.iota(size=i.shape[axis]), i.number(step, i64))
    return b.index(x, b.add(first, line), axes=(axis,))


@moving("select.int", "select_copy.int")
def _select(i, x, dim, index):
    axis = axis_of(dim, x.tensor.rank)
    if i.told.is_of(index):
        at = _from_the_front(i, index, x.shape[axis])
        _tell_place(i, axis, at)
        return i.b.index(x, at, axes=(axis,))
    at = index + x.shape[axis] if i.hint(index) < 0 else index
    return reshape(i, cut(i, x, axis, at, at + 1), i.shape)


@moving("narrow.default", "narrow_copy.default")
def _narrow(i, x, dim, start, length):
    axis = axis_of(dim, x.tensor.rank)
    first = clamped(i, start, x.shape[axis], 0)
    return cut(i, x, axis, first, first + length)


def _pieces(i: Any, x: Node, axis: int, sizes: Sequence[Dim]) -> tuple[Node | None, ...]:
    pieces: list[Node | None] = []
    start: Dim = 0
    for k, size in enumerate(sizes):
        pieces.append(cut(i, x, axis, start, start + size) if i.uses(k) else None)
        start = start + size
    return tuple(pieces)


@moving("split.Tensor", "split_with_sizes.default", "unsafe_split.Tensor", "unsafe_split_with_sizes.default", "chunk.default",
      "unsafe_chunk.default", "tensor_split.sections", "split_copy.Tensor", "split_with_sizes_copy.default")  # fmt: skip
def _split(i, x, sizes, dim=0):
    axis = axis_of(dim, x.tensor.rank)
    return _pieces(i, x, axis, [i.type_of(m).shape[axis] for m in i.meta])


@moving("unbind.int", "unbind_copy.int")
def _unbind(i, x, dim=0):
    axis = axis_of(dim, x.tensor.rank)
    pieces = _pieces(i, x, axis, [1] * len(i.meta))
    return tuple(p and reshape(i, p, i.shape) for p in pieces)


# -- joining -----------------------------------------------------------------------------------------------------------------


@moving("cat.default")
def _cat(i, tensors, dim=0):
    axis = axis_of(dim, len(i.shape))
    # torch lets an empty 1-D tensor join anything
    parts = [i.cast(t, i.dtype) for t in tensors if t.tensor.rank == len(i.shape) and (t.shape != (0,) or len(i.shape) == 1)]
    return join(i, parts, axis)


def join(i: Any, parts: Sequence[Node], axis: int) -> Node:
    parts = [p for p in parts if p.shape[axis] != 0] or list(parts[:1])
    return parts[0] if len(parts) == 1 else i.b.concat(*parts, axis=axis)


@moving("stack.default")
def _stack(i, tensors, dim=0):
    axis = axis_of(dim, len(i.shape))
    each = (*i.shape[:axis], 1, *i.shape[axis + 1 :])
    return join(i, [reshape(i, i.cast(t, i.dtype), each) for t in tensors], axis)


@moving("constant_pad_nd.default")
def _pad(i, x, pad, value=0):
    rank = x.tensor.rank
    amounts = [(0, 0)] * (rank - len(pad) // 2) + [(pad[2 * k], pad[2 * k + 1]) for k in reversed(range(len(pad) // 2))]
    for axis, (low, high) in enumerate(amounts):
        # a negative amount takes elements away
        less = tuple(-p if i.hint(p) < 0 else 0 for p in (low, high))
        if less != (0, 0):
            x = cut(i, x, axis, less[0], x.shape[axis] - less[1])
    grown = [tuple(0 if i.hint(p) < 0 else p for p in pair) for pair in amounts]
    if all(pair == (0, 0) for pair in grown):
        return x
    low, high = zip(*grown)
    return i.b.pad(x, low=low, high=high, value=_pad_value(i, value, x))


def _pad_value(i: Any, value: Any, x: Node) -> Any:
    if not isinstance(value, bool | int | float):
        raise NoRule("padding with a number that is not known at compile time")
    return i.number(value, x.dtype).attributes["value"].item() if not x.dtype.name.startswith("bf") else float(value)


@moving("flip.default")
def _flip(i, x, dims):
    axes = tuple(sorted({axis_of(d, x.tensor.rank) for d in dims}))
    return i.b.flip(x, axes=axes) if axes and x.tensor.rank else x


@moving("roll.default")
def _roll(i, x, shifts, dims=()):
    original = x.shape
    if not dims:
        x = reshape(i, x, (x.tensor.numel,))
        dims = [0]
    for shift, dim in zip(shifts, dims):
        axis = axis_of(dim, x.tensor.rank)
        size = x.shape[axis]
        if not isinstance(size, int) or not isinstance(shift, int):
            raise NoRule("a roll by or along a size that is not known at compile time")
        if size and shift % size:
            cut_at = size - shift % size
            x = join(i, [cut(i, x, axis, cut_at, size), cut(i, x, axis, 0, cut_at)], axis)
    return reshape(i, x, original)


@moving("repeat.default")
def _repeat(i, x, repeats):
    lead = len(repeats) - x.tensor.rank
    shape = (*(1,) * lead, *x.shape)
    if all(r == 1 for r in repeats):
        return reshape(i, x, shape)
    # [a, b] --> [1, a, 1, b] --> [r, a, s, b] --> [r*a, s*b]
    spread, wide = [], []
    for size, count in zip(shape, repeats):
        if count == 1 or size == 1:
            spread.append(size)
            wide.append(count if size == 1 else size)
        else:
            spread += [1, size]
            wide += [count, size]
    return reshape(i, expand(i, reshape(i, x, spread), wide), i.shape)


# -- writing into a part -----------------------------------------------------------------------------------------------------


def _update(i: Any, x: Node, part: Node, axis: int, start: Dim, step: int) -> Node:
    rank = x.tensor.rank
    return i.b.slice_update(
        x,
        i.cast(part, x.dtype),
        starts=tuple(start if d == axis else 0 for d in range(rank)),
        steps=tuple(step if d == axis else 1 for d in range(rank)),
    )


@moving("slice_scatter.default")
def _slice_scatter(i, x, source, dim=0, start=None, end=None, step=1):
    axis = axis_of(dim, x.tensor.rank)
    size, count = x.shape[axis], source.shape[axis]
    if not isinstance(step, int):
        raise NoRule("a slice whose step is not known at compile time")
    if count == size and step == 1:
        return i.cast(source, x.dtype)
    if start is not None and i.told.is_of(start):
        line = i.b.mul(i.b.iota(size=count), i.number(step, i64))
        at = i.b.add(_told_bound(i, start, size, 0), line)
        return i.b.index_update(x, i.cast(source, x.dtype), at, axes=(axis,), kind="set", shape=x.shape)
    first, _ = slice_bounds(i, size, count, start, step)
    return _update(i, x, source, axis, first, step)


@moving("select_scatter.default")
def _select_scatter(i, x, source, dim, index):
    axis = axis_of(dim, x.tensor.rank)
    if i.told.is_of(index):
        places = reshape(i, i.b.iota(size=x.shape[axis]), (x.shape[axis], *(1,) * (x.tensor.rank - axis - 1)))
        part = reshape(i, i.cast(source, x.dtype), (*x.shape[:axis], 1, *x.shape[axis + 1 :]))
        return i.b.where(i.b.eq(places, _from_the_front(i, index, x.shape[axis])), part, x)
    at = index + x.shape[axis] if i.hint(index) < 0 else index
    part = reshape(i, source, (*x.shape[:axis], 1, *x.shape[axis + 1 :]))
    return _update(i, x, part, axis, at, 1)


# -- windows and diagonals ------------------------------------------------------------------------------------------------------


@moving("unfold.default")
def _unfold(i, x, dimension, size, step):
    axis = axis_of(dimension, x.tensor.rank)
    if not x.tensor.rank or not isinstance(size, int) or not isinstance(step, int):
        raise NoRule("windows of a size that is not known at compile time")
    if size == 0:
        raise NoRule("windows of no element")
    return i.b.window(x, axes=(axis,), sizes=(size,), strides=(step,), dilations=(1,))


@moving("diagonal.default")
def _diagonal(i, x, offset=0, dim1=0, dim2=1):
    rank = x.tensor.rank
    first, second = axis_of(dim1, rank), axis_of(dim2, rank)
    if not isinstance(offset, int):
        raise NoRule("a diagonal that is not known at compile time")
    x = permute(i, x, [*(d for d in range(rank) if d not in (first, second)), first, second])
    length = i.shape[-1]
    line = i.b.iota(size=length)
    row = i.b.add(line, i.number(max(-offset, 0), i64))
    column = i.b.add(line, i.number(max(offset, 0), i64))
    if length == 0:
        raise NoRule("an empty diagonal")
    return i.b.index(x, row, column, axes=(rank - 2, rank - 1))
