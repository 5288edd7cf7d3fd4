"""Resize and Upsample. Interpolation is separable: each axis is resampled on its own.

Places in the input are index arithmetic in float64 on the position in the output. Static ones are folded into constants while
the graph is built; symbolic ones are computed where they are read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from dlcompiler.frontends.onnx_registry import Call, operator
from dlcompiler.ir.expression import Dim, floor_div, known
from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import compute_dtype, f64, i64

MOST_TAPS = 64
MODES = ("nearest", "linear", "cubic")
TRANSFORMATIONS = (
    "half_pixel", "pytorch_half_pixel", "half_pixel_symmetric", "align_corners", "asymmetric", "tf_crop_and_resize",
    "tf_half_pixel_for_nn",
)  # fmt: skip
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


@dataclass(frozen=True)
class Axis:
    """One axis to resample: from `size` to `result` elements. `scale` is a number, or None for result / size."""

    axis: int
    size: Dim
    result: Dim
    scale: float | None
    roi: tuple[float, float]


@operator("Resize", "Upsample")
def resize(call: Call) -> Node:
    """Nearest, linear or cubic."""
    x = call[0]
    mode = call.attribute("mode", "nearest")
    mode = "linear" if mode == "bilinear" else mode
    if mode not in MODES:
        call.invalid(f"mode is {mode!r}, not nearest, linear or cubic")
    for axis in _axes(call, x):
        x = _resampled(call, x, axis, mode)
    return x


# -- what the node says ------------------------------------------------------------------------------------------------------


def _axes(call: Call, x: Node) -> list[Axis]:
    """The axes whose size or content changes."""
    rank = x.tensor.rank
    axes = call.normalize_all(call.attribute("axes", tuple(range(rank))), rank)
    scales, sizes, roi = _scales_and_sizes(call)
    given = sizes if scales is None else scales
    if given is None or len(given) != len(axes) or (roi and len(roi) != 2 * len(axes)):
        call.invalid(f"{len(given or ())} scales or sizes do not fit {len(axes)} axes")
    inputs = [x.shape[a] for a in axes]
    if scales is None:
        assert sizes is not None
        results, factors = _kept_aspect(call, inputs, list(sizes))
    else:
        factors = list(scales)
        results = [_scaled(call, size, scale) for size, scale in zip(inputs, scales)]
    found = []
    for k, (axis, size, result, factor) in enumerate(zip(axes, inputs, results, factors)):
        if isinstance(result, int) and result < 0:
            call.invalid(f"a size is {result}")
        window = (roi[k], roi[len(axes) + k]) if roi else (0.0, 1.0)
        if (
            size != result
            or factor not in (None, 1.0)
            or (window != (0.0, 1.0) and _transformation(call) == "tf_crop_and_resize")
        ):
            found.append(Axis(axis, size, result, factor, window))
    return found


def _scales_and_sizes(call: Call) -> tuple[list[float] | None, tuple[Dim, ...] | None, list[float]]:
    if call.op_type == "Upsample" and call.version < 9:
        if "scales" not in call.attributes:
            call.unsupported("its form before opset 7")
        return list(call.attribute("scales")), None, []
    if call.version < 11:
        return [float(s) for s in call.array(1, "scales").reshape(-1)], None, []
    roi: list[float] = []
    if _transformation(call) == "tf_crop_and_resize":
        roi = [float(r) for r in call.array(1, "roi").reshape(-1)]
    if call.get(2) is not None and call[2].tensor.numel != 0:
        scales = [float(s) for s in call.array(2, "scales").reshape(-1)]
        if not all(s > 0 and math.isfinite(s) for s in scales):
            call.invalid(f"scales {scales} must be positive")
        return scales, None, roi
    return None, call.dims(3, "sizes") if call.get(3) is not None else None, roi


def _scaled(call: Call, size: Dim, scale: float) -> Dim:
    """floor(size * scale); of a symbolic size for a scale that is a fraction of small numbers."""
    if not (scale > 0 and math.isfinite(scale)):
        call.invalid(f"a scale is {scale}")
    if isinstance(size, int):
        return math.floor(size * scale)
    fraction = Fraction(scale).limit_denominator(1024)
    if np.float32(float(fraction)) != np.float32(scale):
        call.unsupported(f"scale {scale} of a symbolic size")
    return floor_div(size * fraction.numerator, fraction.denominator)


def _kept_aspect(call: Call, inputs: list[Dim], sizes: list[Dim]) -> tuple[list[Dim], list[float | None]]:
    """Sizes, made smaller or larger where one scale is asked for all axes."""
    policy = call.attribute("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return sizes, [None] * len(sizes)
    if policy not in ("not_larger", "not_smaller"):
        call.invalid(f"keep_aspect_ratio_policy is {policy!r}, not stretch, not_larger or not_smaller")
    if any(not isinstance(s, int) for s in (*inputs, *sizes)):
        call.unsupported(f"keep_aspect_ratio_policy {policy} with symbolic sizes")
    known_inputs = [known(have) for have in inputs]
    ratios = [known(want) / have for want, have in zip(sizes, known_inputs) if have]
    scale = (min if policy == "not_larger" else max)(ratios)
    return [int(scale * have + 0.5) for have in known_inputs], [scale] * len(sizes)


def _transformation(call: Call) -> str:
    if call.version < 11:
        return "asymmetric"
    mode = call.attribute("coordinate_transformation_mode", "half_pixel")
    if mode not in TRANSFORMATIONS:
        call.invalid(f"there is no coordinate_transformation_mode {mode!r}")
    return mode


def _rounding(call: Call) -> str:
    mode = call.attribute("nearest_mode", "round_prefer_floor") if call.version >= 11 else "floor"
    if mode not in ROUNDINGS:
        call.invalid(f"there is no nearest_mode {mode!r}")
    return mode


# -- one axis ----------------------------------------------------------------------------------------------------------------


def _resampled(call: Call, x: Node, axis: Axis, mode: str) -> Node:
    if axis.size == 0:
        if axis.result == 0:
            return x
        call.invalid("cannot resize an empty dimension")
    if mode == "nearest":
        repeat = _whole_repeat(call, axis)
        if repeat is not None:
            return _repeated(call, x, axis.axis, repeat)
    place = _place(call, axis)
    if mode == "nearest":
        result = call.b.index(x, _inside(call, _rounded(call, place), axis), axes=(axis.axis,))
    else:
        result = _interpolated(call, x, place, axis, mode)
    if _transformation(call) != "tf_crop_and_resize":
        return result
    last = call.size(axis.size - 1, f64)
    outside = call.b.bitwise_or(call.b.lt(place, call.number(0, place)), call.b.gt(place, last))
    value = call.number(call.attribute("extrapolation_value", 0.0), result)
    return call.b.where(call.along(outside, axis.axis, result.tensor.rank), value, result)


def _whole_repeat(call: Call, axis: Axis) -> int | None:
    """How often each element is repeated where that is all: a whole scale, and rounding that never crosses over."""
    transformation, rounding = _transformation(call), _rounding(call)
    plain = (transformation == "asymmetric" and rounding == "floor") or (
        transformation in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric") and rounding.startswith("round")
    )
    repeat = floor_div(axis.result, axis.size)
    if not plain or not isinstance(repeat, int) or repeat * axis.size != axis.result or axis.scale not in (None, float(repeat)):
        return None
    # a single result sits in the middle
    return None if transformation == "pytorch_half_pixel" and axis.result == 1 else repeat


def _repeated(call: Call, x: Node, axis: int, repeat: int) -> Node:
    shape = x.shape
    spread = call.expand(
        call.reshape(x, (*shape[: axis + 1], 1, *shape[axis + 1 :])), (*shape[: axis + 1], repeat, *shape[axis + 1 :])
    )
    return call.reshape(spread, (*shape[:axis], shape[axis] * repeat, *shape[axis + 1 :]))


def _place(call: Call, axis: Axis) -> Node:
    """Where each result lies in the input: f64[result]."""
    b = call.b
    at = b.cast(b.iota(size=axis.result), dtype="f64")
    size, result = call.size(axis.size, f64), call.size(axis.result, f64)
    scale = b.div(result, size) if axis.scale is None else b.constant(axis.scale, f64)
    # the size before it was cut down to a whole number
    exact = result if axis.scale is None else b.mul(scale, size)
    transformation = _transformation(call)
    half = b.sub(b.div(b.add(at, 0.5), scale), 0.5)
    single = b.le(exact, 1.0)
    match transformation:
        case "asymmetric":
            return b.div(at, scale)
        case "half_pixel":
            return half
        case "tf_half_pixel_for_nn":
            return b.div(b.add(at, 0.5), scale)
        case "pytorch_half_pixel":
            return b.where(single, b.constant(-0.5, f64), half)
        case "half_pixel_symmetric":
            shift = b.mul(b.div(size, 2.0), b.sub(1.0, b.div(result, exact)))
            return b.add(half, shift)
    steps = b.where(single, b.constant(1.0, f64), b.sub(exact, 1.0))
    last = b.sub(size, 1.0)
    if transformation == "align_corners":
        return b.where(single, b.constant(0.0, f64), b.div(b.mul(at, last), steps))
    start, end = axis.roi
    middle = b.mul(last, (end - start) / 2)
    moved = b.where(single, middle, b.div(b.mul(b.mul(at, end - start), last), steps))
    return b.add(moved, b.mul(last, start))


def _rounded(call: Call, place: Node) -> Node:
    b = call.b
    match _rounding(call):
        case "round_prefer_floor":
            return b.ceil(b.sub(place, 0.5))
        case "round_prefer_ceil":
            return b.floor(b.add(place, 0.5))
        case "floor":
            return b.floor(place)
    return b.ceil(place)


def _inside(call: Call, place: Node, axis: Axis) -> Node:
    """Whole places as indices, those outside moved to the edge."""
    last = call.size(axis.size - 1, i64)
    return call.b.minimum(call.b.maximum(call.b.cast(place, dtype="i64"), 0), last)


def _interpolated(call: Call, x: Node, place: Node, axis: Axis, mode: str) -> Node:
    """The weighted sum of the neighbours on both sides."""
    b = call.b
    first = b.floor(place)
    ratio = b.sub(place, first)
    offsets, weigh = _taps(call, axis, mode)
    places = [b.add(first, float(o)) for o in offsets]
    weights = [weigh(b.sub(float(o), ratio)) for o in offsets]
    if call.flag("exclude_outside"):
        size = call.size(axis.size, f64)
        inside = [b.bitwise_and(b.ge(p, call.number(0, p)), b.lt(p, size)) for p in places]
        weights = [b.where(i, w, call.number(0, w)) for i, w in zip(inside, weights)]
    if call.flag("exclude_outside") or call.flag("antialias"):
        total = weights[0]
        for weight in weights[1:]:
            total = b.add(total, weight)
        weights = [b.div(w, total) for w in weights]
    dtype = compute_dtype(x.dtype) if x.dtype.is_float else f64
    wide, rank = call.cast(x, dtype), x.tensor.rank
    result = None
    for at, weight in zip(places, weights):
        part = b.mul(
            b.index(wide, _inside(call, at, axis), axes=(axis.axis,)), call.along(call.cast(weight, dtype), axis.axis, rank)
        )
        result = part if result is None else b.add(result, part)
    assert result is not None
    if x.dtype.is_integer:
        limits = np.iinfo(x.dtype.numpy)
        result = b.clamp(b.round(result), low=float(limits.min), high=float(limits.max))
    return call.cast(result, x.dtype)


def _taps(call: Call, axis: Axis, mode: str) -> tuple[range, Callable[[Node], Node]]:
    """Offsets of the neighbours from the place rounded down, and the weight of one at a signed distance.

    With `antialias` the kernel is stretched over the elements that become one when the axis shrinks.
    """
    b = call.b
    stretch = 1.0
    if call.flag("antialias"):
        if axis.scale is None and not (isinstance(axis.size, int) and isinstance(axis.result, int)):
            call.unsupported("antialias with symbolic sizes")
        scale = axis.scale if axis.scale is not None else known(axis.result) / known(axis.size)
        stretch = min(scale, 1.0)
    reach = 1 if mode == "linear" else 2
    if reach / max(stretch, 1e-9) > MOST_TAPS / 2:
        call.unsupported(f"antialias at scale {stretch:.3g}")
    start = math.floor(-reach / stretch) + 1
    a = call.attribute("cubic_coeff_a", -0.75)

    def weigh(distance: Node) -> Node:
        far = b.abs(b.mul(distance, stretch))
        if mode == "linear":
            return b.maximum(b.sub(1.0, far), 0.0)
        # Keys' cubic convolution: one polynomial up to distance 1, another up to 2
        near = b.add(b.mul(b.mul(b.sub(b.mul(far, a + 2), a + 3), far), far), 1.0)
        behind = b.mul(b.sub(b.mul(b.add(b.mul(b.sub(far, 5.0), far), 8.0), far), 4.0), a)
        zero = call.number(0, far)
        return b.where(b.le(far, call.number(1, far)), near, b.where(b.lt(far, call.number(2, far)), behind, zero))

    return range(start, 2 - start), weigh
