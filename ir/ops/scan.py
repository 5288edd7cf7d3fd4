"""Scans: each element of the result combines the operand's elements up to its own place along one axis."""

from __future__ import annotations

import numpy as np
from dlcompiler.ir.errors import DTypeError, ShapeError
from dlcompiler.ir.ops import Trait, register
from dlcompiler.ir.ops.rules import distinct_axes, require_float, require_numbers, require_operands
from dlcompiler.ir.scalar import cast_array
from dlcompiler.ir.types import DType, TensorType, TupleType, compute_dtype, dtype_of, f32, f64, i64

# kind -> how two elements combine
SCANS = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum, "logaddexp": np.logaddexp}


def scan_dtype(dtype: DType, kind: str) -> DType:
    """What a scan computes in: sums and products of f32 in f64, as eager's kernels do, since their errors add up."""
    return f64 if dtype is f32 and kind not in ("max", "min") else compute_dtype(dtype)


def neutral(kind: str, dtype: DType) -> float | int:
    """What changes nothing when combined."""
    match kind:
        case "add" | "mul":
            return 0 if kind == "add" else 1
        case "max" | "logaddexp":
            return -np.inf if dtype.is_float else int(np.iinfo(dtype.numpy).min)
    return np.inf if dtype.is_float else int(np.iinfo(dtype.numpy).max)


def _infer_scan(types, attributes):
    """attributes: axis; kind (of `SCANS`); exclusive (an element's own value is left out); reverse (from the end)."""
    require_operands("scan", types, 1)
    (type,) = types
    distinct_axes("scan", (attributes["axis"],), type.rank)
    if attributes["kind"] not in SCANS:
        raise ShapeError(f"there is no scan of kind {attributes['kind']!r}")
    (require_float if attributes["kind"] == "logaddexp" else require_numbers)("scan", type.dtype)
    return type


def _evaluate_scan(operands, attributes):
    (x,), axis, kind = operands, attributes["axis"], attributes["kind"]
    dtype = dtype_of(x)
    wide = np.moveaxis(cast_array(x, scan_dtype(dtype, kind)), axis, 0)
    wide = wide[::-1] if attributes["reverse"] else wide
    if wide.shape[0]:
        first = np.full_like(wide[:1], neutral(kind, dtype_of(wide)))
        wide = np.concatenate([first, wide[:-1]]) if attributes["exclusive"] else wide
        wide = SCANS[kind].accumulate(wide, axis=0, dtype=wide.dtype)
    wide = wide[::-1] if attributes["reverse"] else wide
    return cast_array(np.moveaxis(wide, 0, axis), dtype)


def _expand_scan(b, operands, attributes):
    """In log2(n) rounds (Hillis and Steele), each combining what lies 1, 2, 4, ... places before.

    Along an axis of unknown size: of every element's whole row, with what lies behind the element masked out.
    """
    (x,), axis, kind = operands, attributes["axis"], attributes["kind"]
    dtype, rank = x.dtype, x.tensor.rank
    wide = b.cast(x, dtype=compute_dtype(dtype).name)
    size, reverse = x.shape[axis], attributes["reverse"]
    fill = neutral(kind, wide.dtype)

    def moved(value, places):
        """`value` moved along the axis by that many places, the neutral element coming in."""
        cut = tuple(slice(0, n) for n in value.shape)
        start, limit = (places, size) if reverse else (0, size - places)
        starts = tuple(start if d == axis else s.start for d, s in enumerate(cut))
        limits = tuple(limit if d == axis else s.stop for d, s in enumerate(cut))
        kept = b.slice(value, starts=starts, limits=limits, steps=(1,) * rank)
        before = tuple(places if d == axis else 0 for d in range(rank))
        none = (0,) * rank
        return b.pad(kept, low=none if reverse else before, high=before if reverse else none, value=fill)

    if not isinstance(size, int):
        return b.cast(_masked_scan(b, wide, axis, attributes), dtype=dtype.name)
    if attributes["exclusive"] and size:
        wide = moved(wide, 1)
    places = 1
    while places < size:
        wide = _combine(b, kind, wide, moved(wide, places))
        places *= 2
    return b.cast(wide, dtype=dtype.name)


def _combine(b, kind, x, y):
    if kind == "logaddexp":
        largest, least = b.maximum(x, y), b.minimum(x, y)
        gap = b.where(b.eq(largest, least), b.constant(0, x.dtype), b.sub(least, largest))
        return b.add(largest, b.log1p(b.exp(gap)))
    return b({"max": "maximum", "min": "minimum"}.get(kind, kind), x, y)


def _masked_scan(b, x, axis, attributes):
    size, kind, rank = x.shape[axis], attributes["kind"], x.tensor.rank
    row, column = b.reshape(b.iota(size=size), shape=(size, 1)), b.reshape(b.iota(size=size), shape=(1, size))
    first, second = (row, column) if attributes["reverse"] else (column, row)
    seen = b("lt" if attributes["exclusive"] else "le", first, second)
    spread = b.reshape(x, shape=(*x.shape[:axis], 1, *x.shape[axis:]))
    masked = b.where(b.reshape(seen, shape=(size, size, *(1,) * (rank - axis - 1))), spread, neutral(kind, x.dtype))
    reduction = {"add": "reduce_sum", "mul": "reduce_prod", "max": "reduce_max", "min": "reduce_min", "logaddexp": "logsumexp"}
    return b(reduction[kind], masked, axes=(axis + 1,), keepdims=False)


register("scan", _infer_scan, Trait.COMPOSITE, evaluate=_evaluate_scan, expand=_expand_scan)


def _infer_running(types, attributes):
    """`running_extreme(x)` -> (the largest element up to each place, its position): attributes: axis, largest (or the least).

    Of equal elements the last one counts; a NaN stands from its place on.
    """
    require_operands("running_extreme", types, 1)
    (type,) = types
    distinct_axes("running_extreme", (attributes["axis"],), type.rank)
    if type.dtype.kind == "bool":
        raise DTypeError("running_extreme does not take bool", hint="insert a cast")
    return TupleType((type, TensorType(i64, type.shape)))


def _evaluate_running(operands, attributes):
    (x,), axis = operands, attributes["axis"]
    moved = np.moveaxis(cast_array(x, compute_dtype(dtype_of(x))), axis, 0)
    values, places = moved.copy(), np.zeros(moved.shape, np.int64)
    for k in range(1, moved.shape[0]):
        before, now = values[k - 1], moved[k]
        beats = now >= before if attributes["largest"] else now <= before
        if moved.dtype.kind == "f":
            beats = np.isnan(now) | (~np.isnan(before) & beats)
        values[k], places[k] = np.where(beats, now, before), np.where(beats, k, places[k - 1])
    return cast_array(np.moveaxis(values, 0, axis), dtype_of(x)), np.ascontiguousarray(np.moveaxis(places, 0, axis))


register("running_extreme", _infer_running, Trait.LIBRARY, evaluate=_evaluate_running)
