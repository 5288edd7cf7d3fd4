"""Rules for pooling with positions, and for the backward passes of pooling, padding and interpolation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dlcompiler.frontends.fx_layer import _adaptive_kernel, _each, _pool_attributes
from dlcompiler.frontends.fx_rules import NoRule, rule
from dlcompiler.frontends.fx_scatter import index_update, scatter
from dlcompiler.frontends.fx_view import cut, expand, join, reshape
from dlcompiler.frontends.resample import (
    adaptive_matrix,
    antialias_matrix,
    cubic,
    reflect_matrix,
    replicate_matrix,
    resample_all,
    triangle,
    windows_matrix,
)
from dlcompiler.ir.expression import Dim, product
from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import compute_dtype, i64

# Windows of up to so many elements are compared one element after the other, in one kernel without a reduction.
MOST_TAPS = 27

# -- maxima and where they are -------------------------------------------------------------------------------------------------


def _line(i: Any, size: Dim, d: int, rank: int) -> Node:
    """0, 1, 2, ... along dimension d of `rank`."""
    return reshape(i, i.b.iota(size=size), (size, *(1,) * (rank - d - 1)))


def _lowest(x: Node) -> float | int:
    return -math.inf if x.dtype.is_float else int(np.iinfo(x.dtype.numpy).min)


@rule("max_pool2d_with_indices.default", "max_pool3d_with_indices.default")
def _max_pool(i, x, kernel, stride=(), padding=0, dilation=1, ceil_mode=False):
    spatial = 3 if "3d" in str(i.node.target) else 2
    attributes = _pool_attributes(i, x, kernel, stride, padding, dilation, ceil_mode, spatial)
    if not i.uses(1):
        return i.b.max_pool(x, **attributes), None
    if x.dtype.kind == "bool" or math.prod(attributes["kernel"]) > MOST_TAPS:
        raise NoRule("the positions of maxima in large windows")
    return _largest_and_where(i, x, attributes, spatial)


def _largest_and_where(i: Any, x: Node, attributes: dict[str, Any], spatial: int) -> tuple[Node, Node]:
    """The largest element of each window, and its place in the flattened image.

    As eager compares: an element counts if it is larger than those before it, or NaN; else the first that is no padding.
    """
    rank, sizes, out = x.tensor.rank, x.shape[-spatial:], i.shape[-spatial:]
    lead = rank - spatial
    kernel, strides, padding, dilations = (attributes[k] for k in ("kernel", "strides", "padding", "dilations"))
    extra = attributes.get("ceil_extra", (0,) * spatial)
    padded = x
    if any(padding) or any(extra):
        high = tuple(p + e for p, e in zip(padding, extra))
        padded = i.b.pad(x, low=(*(0,) * lead, *padding), high=(*(0,) * lead, *high), value=_lowest(x))
    best: Node | None = None
    place: Node | None = None
    for tap in itertools.product(*map(range, kernel)):
        starts = (*(0,) * lead, *(t * d for t, d in zip(tap, dilations)))
        limits = (*x.shape[:lead], *(s + (n - 1) * st + 1 for s, n, st in zip(starts[lead:], out, strides)))
        element = i.b.slice(padded, starts=starts, limits=limits, steps=(*(1,) * lead, *strides))
        at = i.number(0, i64)
        for d in range(spatial):
            along = i.b.add(i.b.mul(_line(i, out[d], d, spatial), strides[d]), tap[d] * dilations[d] - padding[d])
            if best is None and padding[d]:
                # the first element may be padding, and stay if all others are no larger
                missing = i.b.floor_div(i.b.add(i.b.neg(i.b.minimum(along, 0)), dilations[d] - 1), dilations[d])
                along = i.b.add(along, i.b.mul(missing, dilations[d]))
            at = i.b.add(i.b.mul(at, i.size(sizes[d])), along)
        if best is None:
            best, place = element, expand(i, at, i.shape)
            continue
        beats = i.b.gt(element, best)
        if x.dtype.is_float:
            beats = i.b.bitwise_or(beats, i.b.isnan(element))
        best, place = i.b.where(beats, element, best), i.b.where(beats, at, place)
    assert best is not None and place is not None  # windows are not empty
    return best, place


def _adaptive_windows(i: Any, x: Node, output_size: Sequence[int]) -> tuple[Node, Node]:
    """Windows of unequal sizes: window k of n over size s is [floor(k*s/n), ceil((k+1)*s/n)).

    Returns the windows, x[..., o1, k1, o2, k2, ...] with every k as long as the longest, and which of their elements count.
    """
    spatial, rank = len(output_size), x.tensor.rank
    positions, inside = [], np.ones((1,) * (2 * spatial), dtype=bool)
    for axis, (size, out) in enumerate(zip(_known_sizes(x, spatial), output_size)):
        starts = np.arange(out) * size // out
        ends = -(-(np.arange(1, out + 1) * size) // out)
        taps = np.arange((ends - starts).max())
        shape = (1,) * (2 * axis) + (out, len(taps)) + (1,) * (2 * (spatial - axis - 1))
        at = starts[:, None] + taps
        inside = inside & (at < ends[:, None]).reshape(shape)
        positions.append(i.b.constant(np.minimum(at, size - 1).reshape(shape)))
    windows = i.b.index(x, *positions, axes=tuple(range(rank - spatial, rank)))
    return windows, i.b.constant(inside)


def _window_axes(rank: int, spatial: int) -> tuple[int, ...]:
    """Where `_adaptive_windows` puts the elements of a window."""
    return tuple(rank - spatial + 2 * k + 1 for k in range(spatial))


@rule("adaptive_max_pool2d.default", "adaptive_max_pool3d.default")
def _adaptive_max(i, x, output_size):
    spatial, rank = len(output_size), x.tensor.rank
    kernel = _adaptive_kernel(x, output_size)
    if kernel is not None:
        attributes = {"kernel": kernel, "strides": kernel, "padding": (0,) * spatial, "dilations": (1,) * spatial}
        if not i.uses(1):
            return i.b.max_pool(x, **attributes), None
        if math.prod(kernel) <= MOST_TAPS:
            return _largest_and_where(i, x, attributes, spatial)
    windows, inside = _adaptive_windows(i, x, output_size)
    masked = i.b.where(inside, windows, i.number(_lowest(x), x.dtype))
    values = reshape(i, i.b.reduce_max(masked, axes=_window_axes(rank, spatial), keepdims=True), i.shape)
    if not i.uses(1):
        return values, None
    order = [*range(rank - spatial), *(rank - spatial + 2 * k for k in range(spatial)), *_window_axes(rank, spatial)]
    taps = masked.shape[rank - spatial + 1 :: 2]
    flat = i.b.reshape(i.b.permute(masked, dims=tuple(order)), shape=(*i.shape, math.prod(taps)))
    tap = i.b.argmax(flat, axes=(rank,), keepdims=False)
    at = i.number(0, i64)
    for d, (size, out) in enumerate(zip(x.shape[-spatial:], output_size)):
        start = reshape(i, i.b.constant(np.arange(out) * size // out), (out, *(1,) * (spatial - d - 1)))
        own = i.b.remainder(i.b.floor_div(tap, math.prod(taps[d + 1 :])), taps[d])
        at = i.b.add(i.b.mul(at, i.size(size)), i.b.add(start, own))
    return values, at


def _scatter_back(i: Any, gradient: Node, indices: Node, shape: Sequence[Dim], spatial: int) -> Node:
    """Each element of the gradient is added where its maximum was."""
    lead = tuple(shape[:-spatial])
    pixels, places = product(shape[-spatial:]), product(gradient.shape[-spatial:])
    empty = expand(i, i.number(0, gradient.dtype), (*lead, pixels))
    flat, at = (reshape(i, each, (*lead, places)) for each in (gradient, indices))
    return reshape(i, scatter(i, empty, len(lead), at, flat, "add"), shape)


@rule("max_pool2d_with_indices_backward.default", "max_pool3d_with_indices_backward.default")
def _max_pool_backward(i, gradient, x, kernel, stride, padding, dilation, ceil_mode, indices):
    return _scatter_back(i, gradient, indices, x.shape, 3 if "3d" in str(i.node.target) else 2)


@rule("adaptive_max_pool2d_backward.default", "adaptive_max_pool3d_backward.default")
def _adaptive_max_backward(i, gradient, x, indices):
    return _scatter_back(i, gradient, indices, x.shape, 3 if "3d" in str(i.node.target) else 2)


@rule("max_unpool2d.default", "max_unpool3d.default")
def _max_unpool(i, x, indices, output_size, *rest):
    spatial = len(output_size)
    lead = x.shape[:-spatial]
    count = product(lead)
    pixels, places = product(output_size), product(x.shape[-spatial:])
    row = reshape(i, i.b.iota(size=count), (count, 1))
    empty = expand(i, i.number(0, x.dtype), (count, pixels))
    flat, at = (reshape(i, each, (count, places)) for each in (x, indices))
    return reshape(i, index_update(i, empty, [0, 1], [row, at], flat, "set"), (*lead, *output_size))


# -- averages ------------------------------------------------------------------------------------------------------------------


def _known_sizes(x: Node, spatial: int) -> tuple[int, ...]:
    sizes = tuple(size for size in x.shape[-spatial:] if isinstance(size, int) and size)
    if len(sizes) != spatial:
        raise NoRule("a size that is not known at compile time, or nothing")
    return sizes


def _average_backward_rule(spatial: int) -> None:
    @rule(f"avg_pool{spatial}d_backward.default")
    def _average_backward(i, gradient, x, kernel, stride, padding, ceil_mode, count_include_pad, divisor):
        sizes, out = _known_sizes(x, spatial), _known_sizes(gradient, spatial)
        kernel, padding = _each(kernel, spatial), _each(padding, spatial)
        strides = _each(stride, spatial) if stride else kernel
        geometry = list(zip(sizes, out, kernel, strides, padding))
        matrices = [windows_matrix(*each) for each in geometry]
        if divisor is not None:
            matrices[0] = matrices[0] / divisor
        else:
            # the count of a window is the product of its extents
            counts = [_extents(*each) if count_include_pad else m.sum(axis=1) for m, each in zip(matrices, geometry)]
            matrices = [m / np.maximum(count, 1)[:, None] for m, count in zip(matrices, counts)]
        return resample_all(i.b, gradient, [m.T for m in matrices])


def _extents(size: int, out: int, kernel: int, stride: int, padding: int) -> np.ndarray:
    """How long each window is, padding included, cut off where rounding up made it reach beyond that."""
    start = np.arange(out) * stride - padding
    return np.minimum(start + kernel, size + padding) - start


for _spatial in (2, 3):
    _average_backward_rule(_spatial)


@rule("_adaptive_avg_pool2d_backward.default", "_adaptive_avg_pool3d_backward.default")
def _adaptive_average_backward(i, gradient, x):
    spatial = 3 if "3d" in str(i.node.target) else 2
    matrices = [adaptive_matrix(*pair) for pair in zip(_known_sizes(x, spatial), _known_sizes(gradient, spatial))]
    return resample_all(i.b, gradient, [(m / m.sum(axis=1, keepdims=True)).T for m in matrices])


# -- padding -------------------------------------------------------------------------------------------------------------------


def _amounts(padding: Sequence[Any], spatial: int) -> list[tuple[int, int]]:
    """(before, after) of each of the last axes; torch gives the last axis first."""
    if not all(isinstance(p, int) for p in padding):
        raise NoRule("padding that is not known at compile time")
    return [(padding[2 * k], padding[2 * k + 1]) for k in reversed(range(spatial))]


def _mirrored(i: Any, x: Node, axis: int, low: int, high: int) -> Node:
    size = x.shape[axis]
    before, after = cut(i, x, axis, 1, 1 + low), cut(i, x, axis, size - 1 - high, size - 1)
    return join(i, [i.b.flip(before, axes=(axis,)), x, i.b.flip(after, axes=(axis,))], axis)


def _prolonged(i: Any, x: Node, axis: int, low: int, high: int) -> Node:
    size = x.shape[axis]
    ends = [cut(i, x, axis, 0, 1), cut(i, x, axis, size - 1, size)]
    wide = [expand(i, e, (*x.shape[:axis], n, *x.shape[axis + 1 :])) for e, n in zip(ends, (low, high))]
    return join(i, [wide[0], x, wide[1]], axis)


def _padding_rules(name: str, spatial: int, matrix_of: Callable[..., np.ndarray], padded: Callable[..., Node]) -> None:
    @rule(f"{name}_pad{spatial}d.default")
    def _pad(i, x, padding):
        amounts = _amounts(padding, spatial)
        sizes = x.shape[-spatial:]
        if all(isinstance(size, int) for size in sizes) and compute_dtype(x.dtype) is x.dtype:
            return resample_all(i.b, x, [matrix_of(size, *pair) for size, pair in zip(sizes, amounts)])
        for axis, (low, high) in enumerate(amounts, x.tensor.rank - spatial):
            if low < 0 or high < 0:
                raise NoRule("negative padding of a size that is not known at compile time")
            x = padded(i, x, axis, low, high)
        return x

    @rule(f"{name}_pad{spatial}d_backward.default")
    def _pad_backward(i, gradient, x, padding):
        pairs = zip(_known_sizes(x, spatial), _amounts(padding, spatial))
        return resample_all(i.b, gradient, [matrix_of(size, *pair).T for size, pair in pairs])


for _spatial in (1, 2, 3):
    _padding_rules("replication", _spatial, replicate_matrix, _prolonged)
    _padding_rules("reflection", _spatial, reflect_matrix, _mirrored)

# -- antialiased interpolation -------------------------------------------------------------------------------------------------


def _antialias_matrices(
    sizes: Sequence[int], out: Sequence[int], align_corners: bool, scales: Sequence[float | None], name: str
) -> list[np.ndarray]:
    radius, weigh = (1.0, triangle) if name == "bilinear" else (2.0, cubic)

    def scale_of(size: int, wanted: int, given: float | None) -> float:
        if align_corners:
            return (size - 1) / (wanted - 1) if wanted > 1 else 0.0
        return 1 / given if given else size / wanted

    return [
        antialias_matrix(size, wanted, scale_of(size, wanted, given), radius, weigh)
        for size, wanted, given in zip(sizes, out, scales)
    ]


def _antialias_rules(name: str) -> None:
    @rule(f"_upsample_{name}2d_aa.default")
    def _upsample(i, x, output_size, align_corners, scales_h=None, scales_w=None):
        if not x.dtype.is_float:
            raise NoRule(f"interpolation of {x.dtype}")
        out = _each(output_size, 2)
        return resample_all(i.b, x, _antialias_matrices(_known_sizes(x, 2), out, align_corners, (scales_h, scales_w), name))

    @rule(f"_upsample_{name}2d_aa_backward.default")
    def _upsample_backward(i, gradient, output_size, input_size, align_corners, scales_h=None, scales_w=None):
        sizes = _each(input_size[-2:], 2)
        matrices = _antialias_matrices(sizes, _known_sizes(gradient, 2), align_corners, (scales_h, scales_w), name)
        return resample_all(i.b, gradient, [m.T for m in matrices])


for _name in ("bilinear", "bicubic"):
    _antialias_rules(_name)
