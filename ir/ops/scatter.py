"""Writing where data says: what `gather` and `index` read, `scatter` and `index_update` write.

attributes of both: shape, of the result, to which operand 0 is broadcast; kind, how an update combines with what is there:
set, add, mul, max or min. Updates are done in the order of their indices, so that every run gives the same bits. An update whose
index lies outside [0, size) is left out: memory is never written out of bounds.
"""

from __future__ import annotations

import numpy as np
from dlcompiler.ir.errors import DTypeError, ShapeError
from dlcompiler.ir.expression import Dim
from dlcompiler.ir.ops import Trait, register
from dlcompiler.ir.ops.rules import broadcast_shapes, distinct_axes, require_operands, require_sizes, same_dtype, show
from dlcompiler.ir.scalar import apply_scalar
from dlcompiler.ir.types import TensorType, boolean

# kind -> the scalar operation that combines
UPDATES = {"set": None, "add": "add", "mul": "mul", "max": "maximum", "min": "minimum"}


def _target(name: str, types, attributes) -> TensorType:
    """The result's type. Raises for what both ops refuse."""
    dtype = same_dtype(name, types[:2])
    shape = require_sizes(name, attributes["shape"])
    if attributes["kind"] not in UPDATES:
        raise ShapeError(f"{name}: there is no update of kind {attributes['kind']!r}")
    if dtype is boolean and attributes["kind"] in ("add", "mul"):
        raise DTypeError(f"{name} does not {attributes['kind']} bool", hint="insert a cast")
    if broadcast_shapes([shape, types[0].shape]) != shape:
        raise ShapeError(f"{name}: {types[0]} does not broadcast to {show(shape)}")
    for type in types[2:]:
        if not type.dtype.is_integer:
            raise DTypeError(f"{name} needs integer indices, not {type.dtype}")
    return TensorType(dtype, shape)


def _combined(kind: str, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    operation = UPDATES[kind]
    return new if operation is None else apply_scalar(operation, old, new)


def _infer_scatter(types, attributes):
    """`scatter(x, updates, indices; axis)`: y[i][j], for axis 0, is combined with updates[k][j] if indices[k][j] is i."""
    require_operands("scatter", types, 3)
    target, (_, updates, indices), axis = _target("scatter", types, attributes), types, attributes["axis"]
    distinct_axes("scatter", (axis,), target.rank)
    if indices.shape != updates.shape or indices.rank != target.rank:
        raise ShapeError(f"scatter of {updates} at {indices} into {target}: the shapes do not fit")
    for d, (size, written) in enumerate(zip(target.shape, indices.shape)):
        if d != axis and isinstance(size, int) and isinstance(written, int) and written > size:
            raise ShapeError(f"scatter of {updates} into {target}: dimension {d} has too few elements")
    return target


def _evaluate_scatter(operands, attributes):
    x, updates, indices = operands
    axis = attributes["axis"]
    result = np.moveaxis(np.broadcast_to(x, attributes["shape"]).copy(), axis, 0)
    updates, indices = np.moveaxis(updates, axis, 0), np.moveaxis(indices, axis, 0).astype(np.int64)
    others = np.indices(indices.shape[1:], sparse=True)
    for new, at in zip(updates, indices):
        inside = (at >= 0) & (at < result.shape[0])
        places = tuple(np.broadcast_to(p, at.shape)[inside] for p in (at, *others))
        result[places] = _combined(attributes["kind"], result[places], new[inside])
    return np.ascontiguousarray(np.moveaxis(result, 0, axis))


register("scatter", _infer_scatter, Trait.LIBRARY, evaluate=_evaluate_scatter)


def _infer_index_update(types, attributes):
    """`index_update(x, updates, i0, i1, ...; axes)`: `x[..., i0, i1, ...]` on consecutive `axes` combined with the updates.

    The updates have the type of `index(x, i0, i1, ...; axes)`.
    """
    axes = tuple(attributes["axes"])
    require_operands("index_update", types, 2 + len(axes))
    target = _target("index_update", types, attributes)
    if not axes or list(axes) != list(range(axes[0], axes[0] + len(axes))):
        raise ShapeError(f"index_update needs consecutive axes, not {axes}")
    distinct_axes("index_update", axes, target.rank)
    at = broadcast_shapes(t.shape for t in types[2:])
    wanted: tuple[Dim, ...] = (*target.shape[: axes[0]], *at, *target.shape[axes[-1] + 1 :])
    if types[1].shape != wanted:
        raise ShapeError(f"index_update of {target} with {types[1]}, not {show(wanted)}")
    return target


def _evaluate_index_update(operands, attributes):
    x, updates, *indices = operands
    axes = attributes["axes"]
    at = [i.reshape(-1).astype(np.int64) for i in np.broadcast_arrays(*indices)]
    shape, first, rank = attributes["shape"], axes[0], np.broadcast_arrays(*indices)[0].ndim
    result = np.broadcast_to(x, shape).copy()
    flat = updates.reshape((*updates.shape[:first], -1, *updates.shape[first + rank :])) if updates.size else updates
    for k, place in enumerate(zip(*at)):
        if updates.size and all(0 <= p < shape[a] for p, a in zip(place, axes)):
            whole = (*(slice(None),) * first, *place)
            result[whole] = _combined(attributes["kind"], result[whole], flat[(*(slice(None),) * first, k)])
    return result


register("index_update", _infer_index_update, Trait.LIBRARY, evaluate=_evaluate_index_update)
