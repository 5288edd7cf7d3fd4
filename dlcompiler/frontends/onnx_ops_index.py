"""Operators that read where data says."""

from __future__ import annotations

import numpy as np

from dlcompiler.frontends.onnx_registry import Call, operator
from dlcompiler.ir.expression import Dim
from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import i64


def wrapped(call: Call, indices: Node, size: Dim) -> Node:
    """Indices counted from the front: negative ones count from the end."""
    if not indices.dtype.is_integer:
        call.invalid(f"indices are {indices.dtype}, not integers")
    if not indices.dtype.is_signed:
        return indices
    known = call.b.array(indices)
    if known is not None and known.size:
        if isinstance(size, int) and not (-size <= known.min() and known.max() < size):
            call.invalid(f"an index lies outside a dimension of {size}: {known.min()} to {known.max()}")
        if known.min() >= 0:
            return indices
    extent = call.size(size, indices.dtype)
    return call.b.where(call.b.lt(indices, call.number(0, indices)), call.b.add(indices, extent), indices)


@operator("Gather")
def gather(call: Call) -> Node:
    """One known index is a slice; else the indices' shape replaces the dimension."""
    x = call.require_rank(0, 1)
    axis = call.axis(0, x.tensor.rank)
    known = call.b.array(call[1])
    size = x.shape[axis]
    if known is not None and known.size == 1 and call[1].dtype.is_integer:
        place = int(known.reshape(()).item())
        if isinstance(size, int) and not -size <= place < size:
            call.invalid(f"index {place} lies outside a dimension of {size}")
        start = place + size if place < 0 else place
        if not (call.b.at_most(0, start, always=True) and call.b.at_most(start + 1, size, always=True)):
            return call.b.index(x, wrapped(call, call[1], size), axes=(axis,))
        one = call.slice(x, axis, start, start + 1)
        return call.reshape(one, (*x.shape[:axis], *call[1].shape, *x.shape[axis + 1 :]))
    return call.b.index(x, wrapped(call, call[1], size), axes=(axis,))


@operator("GatherElements")
def gather_elements(call: Call) -> Node:
    x = call.require_rank(0, 1)
    if call.rank(1) != x.tensor.rank:
        call.invalid(f"indices {call[1].type} have another rank than {x.type}")
    axis = call.axis(0, x.tensor.rank)
    return call.b.gather(x, wrapped(call, call[1], x.shape[axis]), axis=axis)


@operator("GatherND")
def gather_nd(call: Call) -> Node:
    """The last dimension of the indices is a place in `x` behind the batch dimensions."""
    x, indices = call.require_rank(0, 1), call.require_rank(1, 1)
    batch = call.attribute("batch_dims", 0)
    length = indices.shape[-1]
    if not isinstance(length, int):
        call.unsupported("places of symbolic length")
    if not (0 <= batch < indices.tensor.rank and batch <= x.tensor.rank and 0 < length <= x.tensor.rank - batch):
        call.invalid(f"indices {indices.type} do not fit {x.type} with {batch} batch dimensions")
    lead = indices.tensor.rank - 1
    columns = [
        wrapped(call, call.reshape(call.slice(indices, lead, k, k + 1), indices.shape[:-1]), x.shape[batch + k])
        for k in range(length)
    ]
    places = [call.along(call.b.iota(size=x.shape[d]), d, lead) for d in range(batch)]
    places += [call.cast(c, i64) for c in columns]
    return call.b.index(x, *places, axes=tuple(range(batch + length)))


def _depth(call: Call) -> Dim:
    """The second input: one number, which may be a float."""
    if call[1].dtype.is_integer:
        depth = call.dims(1, "depth")
    else:
        depth = tuple(int(d) if np.isfinite(d) else -1 for d in call.array(1, "depth").astype(np.float64).reshape(-1))
    if len(depth) != 1 or (isinstance(depth[0], int) and depth[0] < 0):
        call.invalid("depth must be one non-negative number")
    return depth[0]


@operator("OneHot")
def one_hot(call: Call) -> Node:
    """An index outside the range gives a row of off values."""
    indices, values = call[0], call[2]
    size = _depth(call)
    if values.shape != (2,):
        call.misfit(f"values are {values.type}, not two numbers")
    rank = indices.tensor.rank
    axis = call.axis(-1, rank + 1)
    whole = call.cast(indices, i64)
    extent = call.size(size, i64)
    whole = call.b.where(call.b.lt(whole, 0), call.b.add(whole, extent), whole)
    spread = call.reshape(whole, (*indices.shape[:axis], 1, *indices.shape[axis:]))
    hot = call.b.eq(spread, call.along(call.b.iota(size=size), axis, rank + 1))
    off, on = (call.reshape(call.slice(values, 0, k, k + 1), ()) for k in range(2))
    return call.b.where(hot, on, off)


@operator("ReverseSequence")
def reverse_sequence(call: Call) -> Node:
    """The first `lengths[b]` steps of each batch entry in reverse order, the rest as they are."""
    x, lengths = call.require_rank(0, 2), call[1]
    time, batch = call.attribute("time_axis", 0), call.attribute("batch_axis", 1)
    if {time, batch} != {0, 1}:
        call.invalid(f"time_axis {time} and batch_axis {batch} are not 0 and 1")
    if lengths.shape != (x.shape[batch],):
        call.misfit(f"lengths {lengths.type} do not fit {x.type}")
    step = call.along(call.b.iota(size=x.shape[time]), time, 2)
    entry = call.along(call.b.iota(size=x.shape[batch]), batch, 2)
    length = call.along(lengths, batch, 2)
    mirrored = call.b.sub(call.b.sub(length, 1), step)
    source = call.b.where(call.b.lt(step, length), mirrored, step)
    return call.b.index(x, *((source, entry) if time == 0 else (entry, source)), axes=(0, 1))


@operator("Compress")
def compress(call: Call) -> Node:
    """The slices whose condition is true; which they are must be known now."""
    x, condition = call[0], call.array(1, "the condition").reshape(-1)
    axis = call.attribute("axis")
    if axis is None:
        x, axis = call.reshape(x, (x.tensor.numel,)), 0
    axis = call.normalize(axis, x.tensor.rank)
    places = np.flatnonzero(condition)
    size = x.shape[axis]
    if isinstance(size, int) and places.size and places[-1] >= size:
        call.invalid(f"the condition is longer than a dimension of {size}")
    return call.b.index(x, call.b.constant(places.astype(np.int64)), axes=(axis,))


# -- scatter -----------------------------------------------------------------------------------------------------------------


@operator("TensorScatter")
def tensor_scatter(call: Call) -> Node:
    """A cache of keys or values with the new steps written from `write_indices[b]` on, around the end if circular."""
    past, update = call.require_rank(0, 2), call[1]
    rank = past.tensor.rank
    if update.tensor.rank != rank:
        call.invalid(f"the update has {update.tensor.rank} dimensions and the cache {rank}")
    if call.get(2) is not None and call[2].tensor.rank != 1:
        call.invalid(f"write_indices has {call[2].tensor.rank} dimensions, not one")
    axis = call.axis(-2, rank)
    circular = call.attribute("mode", "linear") == "circular"
    size, steps = past.shape[axis], update.shape[axis]
    start = call[2] if call.get(2) is not None else call.full(0, i64, (past.shape[0],))
    place = call.along(call.b.iota(size=size), axis, rank)
    step = call.b.sub(place, call.along(call.cast(start, i64), 0, rank))
    if circular:
        step = call.b.remainder(step, call.size(size, i64))
    written = call.b.bitwise_and(call.b.ge(step, 0), call.b.lt(step, call.size(steps, i64)))
    source = call.b.minimum(call.b.maximum(step, 0), call.size(steps - 1, i64))
    shape = tuple(size if d == axis else s for d, s in enumerate(update.shape))
    moved = call.b.gather(update, call.expand(source, shape), axis=axis)
    return call.b.where(written, moved, past)
