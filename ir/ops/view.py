"""Views and data movement: nothing is computed; whoever reads the result reads the operand at another index."""

from __future__ import annotations

from typing import Any

import numpy as np
from dlcompiler.ir.errors import DTypeError, ShapeError
from dlcompiler.ir.expression import Dim, floor_div, known, product
from dlcompiler.ir.ops import Trait, register
from dlcompiler.ir.ops.rules import broadcast_shapes, distinct_axes, require_operands, require_sizes, same_dtype, show
from dlcompiler.ir.types import TensorType, compute_dtype, contiguous_strides

# -- reshape -------------------------------------------------------------------------------------------------------------


def _infer_reshape(types, attributes):
    require_operands("reshape", types, 1)
    type = types[0].with_shape(require_sizes("reshape", attributes["shape"]))
    if type.numel != types[0].numel:
        raise ShapeError(f"cannot reshape {types[0]} to {show(type.shape)}")
    return type


def _matched_runs(old: tuple[Dim, ...], new: tuple[Dim, ...]) -> list[tuple[range, range]]:
    """Shortest runs of dimensions with equal products, front to back: ([6, 4], [2, 3, 4]) --> (0:1, 0:2), (1:2, 2:3)."""
    runs = []
    i = j = 0
    while i < len(old) or j < len(new):
        start_i, start_j = i, j
        left: Dim = 1
        right: Dim = 1
        if i < len(old):
            left, i = old[i], i + 1
        if j < len(new):
            right, j = new[j], j + 1
        while left != right:
            both_known = isinstance(left, int) and isinstance(right, int)
            if j < len(new) and (not both_known or known(right) < known(left) or i == len(old)):
                # a symbolic product: grow the side that divides the other, else both
                if not both_known and i < len(old) and _divides(left, right):
                    left, i = left * old[i], i + 1
                else:
                    right, j = right * new[j], j + 1
            elif i < len(old):
                left, i = left * old[i], i + 1
            else:
                return [(range(len(old)), range(len(new)))]
        runs.append((range(start_i, i), range(start_j, j)))
    return runs


def _divides(divisor: Dim, value: Dim) -> bool:
    return divisor == 1 or (divisor != 0 and value != 0 and floor_div(value, divisor) * divisor == value)


def reshape_index(source, target, index, div, mod) -> tuple[Dim, ...]:
    """The index in shape `target` of the element at `index` in shape `source`; `div` and `mod` divide index expressions."""
    if 0 in source:  # nothing to divide by; on an axis without positions nothing is read
        return (index[source.index(0)],) * len(target)
    at: list[Dim] = []
    for target_run, source_run in _matched_runs(target, source):
        flat: Dim = 0
        for k in source_run:
            flat = flat * source[k] + index[k]
        sizes = [target[k] for k in target_run]
        for position, size in enumerate(sizes):
            part = div(flat, product(sizes[position + 1 :]))
            at.append(part if position == 0 else mod(part, size))
    return tuple(at)


def _reshape_element(builder, node, index):
    return builder.operand(node, 0, reshape_index(node.shape, node.inputs[0].shape, index, builder.div, builder.mod))


register(
    "reshape",
    _infer_reshape,
    Trait.VIEW,
    evaluate=lambda operands, attributes: operands[0].reshape(attributes["shape"]),
    element=_reshape_element,
)

# -- kept ----------------------------------------------------------------------------------------------------------------


def _infer_kept(types, attributes):
    """The operand itself, read from memory: fusion puts nothing that reads it this way into the kernel that makes it."""
    require_operands("kept", types, 1)
    return types[0]


register(
    "kept",
    _infer_kept,
    Trait.VIEW,
    evaluate=lambda operands, attributes: operands[0],
    element=lambda builder, node, index: builder.operand(node, 0, index),
)

# -- permute, expand, flip -------------------------------------------------------------------------------------------------


def _infer_permute(types, attributes):
    require_operands("permute", types, 1)
    dims = attributes["dims"]
    if sorted(dims) != list(range(types[0].rank)):
        raise ShapeError(f"{tuple(dims)} does not permute the dimensions of {types[0]}")
    return types[0].with_shape(types[0].shape[d] for d in dims)


def _permute_element(builder, node, index):
    at: list[Dim] = [0] * len(index)
    for position, dim in enumerate(node.attributes["dims"]):
        at[dim] = index[position]
    return builder.operand(node, 0, at)


register(
    "permute",
    _infer_permute,
    Trait.VIEW,
    evaluate=lambda operands, attributes: operands[0].transpose(attributes["dims"]),
    element=_permute_element,
)


def _infer_expand(types, attributes):
    require_operands("expand", types, 1)
    type = types[0].with_shape(require_sizes("expand", attributes["shape"]))
    if broadcast_shapes([types[0].shape, type.shape]) != type.shape:
        raise ShapeError(f"cannot expand {types[0]} to {show(type.shape)}")
    return type


register(
    "expand",
    _infer_expand,
    Trait.VIEW,
    evaluate=lambda operands, attributes: np.broadcast_to(operands[0], attributes["shape"]),
    element=lambda builder, node, index: builder.broadcast_operand(node, 0, index),
)


def _infer_flip(types, attributes):
    require_operands("flip", types, 1)
    distinct_axes("flip", attributes["axes"], types[0].rank)
    return types[0]


def _flip_element(builder, node, index):
    axes = node.attributes["axes"]
    return builder.operand(node, 0, [size - 1 - i if d in axes else i for d, (i, size) in enumerate(zip(index, node.shape))])


register(
    "flip",
    _infer_flip,
    Trait.VIEW,
    evaluate=lambda operands, attributes: np.flip(operands[0], tuple(attributes["axes"])),
    element=_flip_element,
)

# -- slice, pad, concat, slice_update ----------------------------------------------------------------------------------------


def slice_size(start: Dim, limit: Dim, step: int) -> Dim:
    """How many positions `start, start+step, ...` lie below `limit`."""
    return floor_div(limit - start + (step - 1), step)


def _infer_slice(types, attributes):
    """attributes: starts, limits, steps (positive), one for each dimension, `0 <= start <= limit <= size`."""
    require_operands("slice", types, 1)
    starts, limits, steps = attributes["starts"], attributes["limits"], attributes["steps"]
    if not len(starts) == len(limits) == len(steps) == types[0].rank:
        raise ShapeError(f"slice of {types[0]} needs {types[0].rank} starts, limits and steps")
    for start, limit, step, size in zip(starts, limits, steps, types[0].shape):
        known = isinstance(start, int) and isinstance(limit, int)
        if step < 1 or (known and not 0 <= start <= limit) or (known and isinstance(size, int) and limit > size):
            raise ShapeError(f"slice {start}:{limit}:{step} is outside a dimension of {size}")
    return types[0].with_shape(slice_size(*each) for each in zip(starts, limits, steps))


def _slices(attributes):
    return tuple(slice(*each) for each in zip(attributes["starts"], attributes["limits"], attributes["steps"]))


def _slice_element(builder, node, index):
    starts, steps = node.attributes["starts"], node.attributes["steps"]
    return builder.operand(node, 0, [i * step + start for i, start, step in zip(index, starts, steps)])


register(
    "slice",
    _infer_slice,
    Trait.VIEW,
    evaluate=lambda operands, attributes: operands[0][_slices(attributes)],
    element=_slice_element,
)


def _infer_pad(types, attributes):
    """attributes: low, high (elements added, not negative), value (a number)."""
    require_operands("pad", types, 1)
    low, high, _ = (attributes[name] for name in ("low", "high", "value"))
    if not len(low) == len(high) == types[0].rank or any(isinstance(p, int) and p < 0 for p in (*low, *high)):
        raise ShapeError(f"pad of {types[0]} needs {types[0].rank} non-negative amounts on each side")
    return types[0].with_shape(size + a + b for size, a, b in zip(types[0].shape, low, high))


def _evaluate_pad(operands, attributes):
    (x,) = operands
    low, high = attributes["low"], attributes["high"]
    result = np.full([n + a + b for n, a, b in zip(x.shape, low, high)], attributes["value"]).astype(x.dtype)
    result[tuple(slice(a, a + n) for n, a in zip(x.shape, low))] = x
    return result


def _pad_element(builder, node, index):
    source = node.inputs[0]
    at = [i - low for i, low in zip(index, node.attributes["low"])]
    bounds = [
        (e, size)
        for e, size, low, high in zip(at, source.shape, *(node.attributes[k] for k in ("low", "high")))
        if (low, high) != (0, 0)
    ]
    fill = builder.constant(node.attributes["value"], compute_dtype(node.dtype))
    return builder.select_within(bounds, lambda: builder.operand(node, 0, at), lambda: fill)


register(
    "pad",
    _infer_pad,
    Trait.VIEW,
    Trait.PARTIAL,
    evaluate=_evaluate_pad,
    element=_pad_element,
)


def _infer_concat(types, attributes):
    axis = attributes["axis"]
    if not types:
        raise ShapeError("concat needs an operand")
    dtype = same_dtype("concat", types)
    first = types[0].shape
    distinct_axes("concat", (axis,), len(first))
    for type in types:
        if type.rank != len(first) or any(d != axis and a != b for d, (a, b) in enumerate(zip(type.shape, first))):
            raise ShapeError(f"concat along axis {axis}: {', '.join(map(str, types))} do not fit")
    total = sum((t.shape[axis] for t in types), 0)
    return TensorType(dtype, (*first[:axis], total, *first[axis + 1 :]))


def _concat_element(builder, node, index):
    """The first operand whose range holds the position: a chain of guarded selects, the last operand outermost."""
    axis = node.attributes["axis"]
    starts: list[Dim] = []
    start: Dim = 0
    for operand in node.inputs:
        starts.append(start)
        start = start + operand.shape[axis]
    value = builder.constant(0, compute_dtype(node.dtype))
    for k in reversed(range(len(node.inputs))):
        size = node.inputs[k].shape[axis]
        if size == 0:
            continue
        at = [*index[:axis], index[axis] - starts[k], *index[axis + 1 :]]
        before = value
        value = builder.select_within(
            [(at[axis], size)], lambda k=k, at=at: builder.operand(node, k, at), lambda before=before: before
        )
    return value


register(
    "concat",
    _infer_concat,
    Trait.VIEW,
    Trait.PARTIAL,
    evaluate=lambda operands, attributes: np.concatenate(operands, axis=attributes["axis"]),
    element=_concat_element,
)


def _infer_slice_update(types, attributes):
    """Operand 0 with operand 1 written at starts, starts+steps, ... (a functional `x[a:b:c] = y`)."""
    require_operands("slice_update", types, 2)
    same_dtype("slice_update", types)
    target, source = types
    starts, steps = attributes["starts"], attributes["steps"]
    if not len(starts) == len(steps) == source.rank == target.rank:
        raise ShapeError(f"slice_update of {target} with {source} needs {target.rank} starts and steps")
    for start, step, written, size in zip(starts, steps, source.shape, target.shape):
        if all(isinstance(d, int) for d in (start, written, size)):
            end = start + (written - 1) * step + 1 if written else start
            if step < 1 or start < 0 or end > size:
                raise ShapeError(f"slice_update of {target} with {source} at {tuple(starts)}, steps {tuple(steps)}: outside")
    return target


def _evaluate_slice_update(operands, attributes):
    result = operands[0].copy()
    limits = [
        start + (size - 1) * step + 1 if size else start
        for start, size, step in zip(attributes["starts"], operands[1].shape, attributes["steps"])
    ]
    result[tuple(slice(*each) for each in zip(attributes["starts"], limits, attributes["steps"]))] = operands[1]
    return result


def _slice_update_element(builder, node, index):
    source = node.inputs[1]
    bounds: list[tuple[Dim, Dim]] = []
    at: list[Dim] = []
    for i, start, step, size in zip(index, node.attributes["starts"], node.attributes["steps"], source.shape):
        shifted = i - start
        position = builder.div(shifted, step)
        at.append(position)
        bounds.append((position, size))
        if step != 1:
            bounds.append((builder.mod(shifted, step), 1))
    return builder.select_within(bounds, lambda: builder.operand(node, 1, at), lambda: builder.operand(node, 0, index))


register(
    "slice_update",
    _infer_slice_update,
    Trait.VIEW,
    Trait.PARTIAL,
    evaluate=_evaluate_slice_update,
    element=_slice_update_element,
)

# -- window: the sliding views that pooling and convolution read ---------------------------------------------------------------


def _infer_window(types, attributes):
    """attributes: axes, sizes, strides, dilations. Each axis shrinks to its number of windows; the sizes are appended."""
    require_operands("window", types, 1)
    axes, *numbers = (tuple(attributes[k]) for k in ("axes", "sizes", "strides", "dilations"))
    distinct_axes("window", axes, types[0].rank)
    if any(len(each) != len(axes) or any(n < 1 for n in each) for each in numbers):
        raise ShapeError(f"window over axes {axes} needs positive sizes, strides and dilations, one for each axis")
    shape = list(types[0].shape)
    for axis, size, stride, dilation in zip(axes, *numbers):
        span = dilation * (size - 1) + 1
        if isinstance(shape[axis], int) and shape[axis] < span:
            raise ShapeError(f"a window of {span} does not fit dimension {axis} of {types[0]}")
        shape[axis] = floor_div(shape[axis] - span, stride) + 1
    return types[0].with_shape((*shape, *attributes["sizes"]))


def _evaluate_window(operands, attributes):
    x = operands[0]
    shape, strides, extra = list(x.shape), list(x.strides), []
    for axis, size, stride, dilation in zip(*(attributes[k] for k in ("axes", "sizes", "strides", "dilations"))):
        extra.append(x.strides[axis] * dilation)
        shape[axis] = (shape[axis] - dilation * (size - 1) - 1) // stride + 1
        strides[axis] = strides[axis] * stride
    return np.lib.stride_tricks.as_strided(x, (*shape, *attributes["sizes"]), (*strides, *extra), writeable=False)


def _window_element(builder, node, index):
    rank = node.inputs[0].tensor.rank
    at = list(index[:rank])
    for k, (axis, stride, dilation) in enumerate(zip(*(node.attributes[n] for n in ("axes", "strides", "dilations")))):
        at[axis] = at[axis] * stride + index[rank + k] * dilation
    return builder.operand(node, 0, at)


register("window", _infer_window, Trait.VIEW, evaluate=_evaluate_window, element=_window_element)

# -- reading where data says ---------------------------------------------------------------------------------------------------


def _require_integer(name: str, type: TensorType) -> None:
    if not type.dtype.is_integer:
        raise DTypeError(f"{name} needs integer indices, not {type.dtype}")


def _require_elements(name: str, sizes: list[Dim], at: tuple[Dim, ...]) -> None:
    if 0 in sizes and all(isinstance(d, int) and d > 0 for d in at):
        raise ShapeError(f"{name} into a dimension of size 0")


def _infer_index(types, attributes):
    """`index(x, i0, i1, ...; axes)`: `x[..., i0, i1, ...]` on consecutive `axes`; the broadcast indices' shape replaces them."""
    axes = attributes["axes"]
    if len(types) < 2 or len(axes) != len(types) - 1 or list(axes) != list(range(axes[0], axes[0] + len(axes))):
        raise ShapeError(f"index of {', '.join(map(str, types))} needs consecutive axes, one for each index: {tuple(axes)}")
    distinct_axes("index", axes, types[0].rank)
    for type in types[1:]:
        _require_integer("index", type)
    at = broadcast_shapes(t.shape for t in types[1:])
    _require_elements("index", [types[0].shape[a] for a in axes], at)
    return types[0].with_shape((*types[0].shape[: axes[0]], *at, *types[0].shape[axes[-1] + 1 :]))


def _clamped(index: np.ndarray, size: int) -> np.ndarray:
    return np.clip(index, 0, max(size - 1, 0))


def _evaluate_index(operands, attributes):
    x, axes = operands[0], attributes["axes"]
    at = np.broadcast_arrays(*operands[1:])
    return x[(slice(None),) * axes[0] + tuple(_clamped(i, x.shape[a]) for i, a in zip(at, axes))]


def _index_element(builder, node, index):
    first, count = node.attributes["axes"][0], len(node.inputs) - 1
    rank = max(i.tensor.rank for i in node.inputs[1:])
    inner = index[first : first + rank]
    at = []
    for k in range(1, count + 1):
        own_rank = node.inputs[k].tensor.rank
        value = builder.operand(node, k, inner[rank - own_rank :] if own_rank else ())
        at.append(builder.indirect_index(value, node.inputs[0].shape[first + k - 1]))
    return builder.operand(node, 0, [*index[:first], *at, *index[first + rank :]])


# indices lie in [0, size); one outside is clamped, so that memory is never read out of bounds
register("index", _infer_index, Trait.INDEXING, evaluate=_evaluate_index, element=_index_element)


def _infer_gather(types, attributes):
    require_operands("gather", types, 2)
    (x, indices), axis = types, attributes["axis"]
    distinct_axes("gather", (axis,), x.rank)
    _require_integer("gather", indices)
    if indices.rank != x.rank:
        raise ShapeError(f"gather from {x} with indices {indices}: the ranks differ")
    for d, (size, wanted) in enumerate(zip(x.shape, indices.shape)):
        if d != axis and isinstance(size, int) and isinstance(wanted, int) and wanted > size:
            raise ShapeError(f"gather from {x} with indices {indices}: dimension {d} has too few elements")
    _require_elements("gather", [x.shape[axis]], indices.shape)
    return x.with_shape(indices.shape)


def _evaluate_gather(operands, attributes):
    x, indices = operands
    axis = attributes["axis"]
    cut = tuple(slice(None) if d == axis else slice(0, size) for d, size in enumerate(indices.shape))
    return np.take_along_axis(x[cut], _clamped(indices, x.shape[axis]), axis)


def _gather_element(builder, node, index):
    axis = node.attributes["axis"]
    at = builder.indirect_index(builder.operand(node, 1, index), node.inputs[0].shape[axis])
    return builder.operand(node, 0, [*index[:axis], at, *index[axis + 1 :]])


# y[i][j] = x[index[i][j]][j] for axis 0 (torch.gather)
register("gather", _infer_gather, Trait.INDEXING, evaluate=_evaluate_gather, element=_gather_element)


def is_identity_view(node: Any) -> bool:
    """Whether a view node changes neither shape nor order, so that its operand can stand for it."""
    source = node.inputs[0]
    match node.op.name:
        case "reshape" | "expand" | "slice" | "pad":
            return source.type == node.type
        case "permute":
            return tuple(node.attributes["dims"]) == tuple(range(source.tensor.rank))
        case "concat":
            return len(node.inputs) == 1
    return False


def view_strides(node: Any, strides: tuple[Dim, ...]) -> tuple[tuple[Dim, ...], Dim] | None:
    """(strides, offset in elements) of a view node over an operand with `strides`, or None if only a copy can hold it."""
    source = node.inputs[0]
    match node.op.name:
        case "kept":
            return strides, 0
        case "permute":
            return tuple(strides[d] for d in node.attributes["dims"]), 0
        case "expand":
            lead = len(node.shape) - source.tensor.rank
            return tuple(
                0 if d < lead or source.shape[d - lead] != size else strides[d - lead] for d, size in enumerate(node.shape)
            ), 0
        case "slice":
            offset: Dim = 0
            for start, stride in zip(node.attributes["starts"], strides):
                offset = offset + start * stride
            return tuple(s * step for s, step in zip(strides, node.attributes["steps"])), offset
        case "reshape":
            return _reshape_strides(source.shape, node.shape, strides)
    return None


def _reshape_strides(old, new, strides) -> tuple[tuple[Dim, ...], Dim] | None:
    result: list[Dim] = []
    for old_run, new_run in _matched_runs(old, new):
        kept = [k for k in old_run if old[k] != 1]
        if any(strides[a] != strides[b] * old[b] for a, b in zip(kept, kept[1:])):
            return None
        step = strides[kept[-1]] if kept else 1
        sizes = contiguous_strides(tuple(new[k] for k in new_run))
        result.extend(s * step for s in sizes)
    return tuple(result), 0
