"""Quantisation: integers with a scale and a zero point."""

from __future__ import annotations

from dlcompiler.frontends.onnx_ops_contraction import convolution_of_integers, product_of_integers
from dlcompiler.frontends.onnx_ops_elementwise import converted
from dlcompiler.frontends.onnx_registry import Call, element_type, operator
from dlcompiler.ir.expression import floor_div
from dlcompiler.ir.graph import Node
from dlcompiler.ir.narrow import INTEGERS, MINIFLOATS
from dlcompiler.ir.types import DType, compute_dtype, u8


def spread(call: Call, x: Node, parameter: Node) -> Node:
    """A scale or zero point shaped to broadcast over `x`: one number, one along `axis`, or one for each block along it."""
    if parameter.tensor.rank == 0 or parameter.shape == (1,):
        return call.reshape(parameter, ())
    axis = call.axis(1, x.tensor.rank)
    block = call.attribute("block_size", 0)
    if parameter.tensor.rank == 1 and not block:
        if parameter.shape[0] != x.shape[axis]:
            call.misfit(f"{parameter.type} does not fit dimension {axis} of {x.type}")
        return call.along(parameter, axis, x.tensor.rank)
    if parameter.tensor.rank != x.tensor.rank:
        call.misfit(f"blocks {parameter.type} do not fit {x.type}")
    if block == 0:
        block = floor_div(x.shape[axis] + parameter.shape[axis] - 1, parameter.shape[axis])
    place = call.b.floor_div(call.b.iota(size=x.shape[axis]), call.b.constant(block, call.b.iota(size=1).dtype))
    return call.b.index(parameter, place, axes=(axis,))


def _range(dtype: DType) -> tuple[int, int]:
    """The least and the largest integer."""
    bits, signed = INTEGERS.get(dtype.name, (dtype.bits, dtype.is_signed))
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)


def saturated(call: Call, wide: Node, zero: Node | None, dtype: DType) -> Node:
    """Rounded to the nearest, ties to even, moved by the zero point and clipped to the dtype's range."""
    if dtype.name in MINIFLOATS:
        moved = wide if zero is None else call.b.add(wide, call.cast(zero, wide.dtype))
        return converted(call, moved, dtype)
    if not (dtype.is_integer or dtype.name in INTEGERS) or dtype.bits > 16:
        call.unsupported(f"quantisation to {dtype}")
    least, most = _range(dtype)
    rounded = call.b.round(wide)
    if zero is not None:
        rounded = call.b.add(rounded, call.cast(zero, wide.dtype))
    clipped = call.b.clamp(rounded, low=float(least), high=float(most))
    return call.cast(call.b.cast(clipped, dtype="i32"), dtype)


@operator("QuantizeLinear")
def quantize_linear(call: Call) -> Node:
    x, scale, zero = call[0], call[1], call.get(2)
    code = call.attribute("output_dtype", 0)
    dtype = zero.dtype if zero is not None else element_type(code) if code else element_type(2)
    precision = element_type(call.attribute("precision", 0) or 1)
    wide = precision if precision.bits > 32 else compute_dtype(scale.dtype)
    quotient = call.b.div(call.cast(x, wide), call.cast(spread(call, x, scale), wide))
    return saturated(call, quotient, None if zero is None else spread(call, x, zero), dtype)


@operator("DequantizeLinear")
def dequantize_linear(call: Call) -> Node:
    x, scale, zero = call[0], call[1], call.get(2)
    wide = compute_dtype(scale.dtype)
    moved = call.cast(x, wide)
    if zero is not None:
        moved = call.b.sub(moved, call.cast(spread(call, x, zero), wide))
    code = call.attribute("output_dtype", 0)
    result = call.b.mul(moved, call.cast(spread(call, x, scale), wide))
    return call.cast(result, element_type(code) if code else scale.dtype)


def dynamic_bytes(call: Call, x: Node) -> tuple[Node, Node, Node]:
    """`x` as u8 with the scale and the zero point that its own range, made to hold 0, asks for.

    The scale of what is 0 everywhere is 1.
    """
    axes = tuple(range(x.tensor.rank))
    low = call.b.minimum(call.b.reduce_min(x, axes=axes, keepdims=False), 0.0)
    high = call.b.maximum(call.b.reduce_max(x, axes=axes, keepdims=False), 0.0)
    width = call.b.sub(high, low)
    one = call.number(1, width)
    scale = call.b.where(call.b.gt(width, call.number(0, width)), call.b.div(width, call.number(255, width)), one)
    zero = saturated(call, call.b.neg(call.b.div(low, scale)), None, u8)
    return saturated(call, call.b.div(x, scale), zero, u8), scale, zero


@operator("DynamicQuantizeLinear")
def dynamic_quantize_linear(call: Call) -> tuple[Node, Node, Node]:
    return dynamic_bytes(call, call[0])


def last(call: Call, parameter: Node, rank: int, axis: int) -> Node:
    """A scale for each row or column, shaped to broadcast; a single one as a number."""
    if parameter.tensor.rank == 0 or parameter.shape == (1,):
        return call.reshape(parameter, ())
    return call.along(parameter, axis % rank, rank) if parameter.tensor.rank == 1 else parameter


def requantized(call: Call, total: Node, scales: tuple[Node, Node, Node], zero: Node) -> Node:
    """Exact sums times both scales over the output's, rounded into the output's dtype.

    Sums of bytes are multiplied in float32 by the three scales made into one number, as ONNX's reference makes it, and as ONNX
    Runtime computes.
    """
    wide = "f32" if total.dtype.is_integer else "f64"
    a, b, y = (call.b.cast(s, dtype=wide) for s in scales)
    scaled = call.b.mul(call.b.cast(total, dtype=wide), call.b.div(call.b.mul(a, b), y))
    return saturated(call, scaled, zero, zero.dtype)


@operator("QLinearMatMul")
def quantized_matmul(call: Call) -> Node:
    a, b = call.require_rank(0, 1), call.require_rank(3, 1)
    total = product_of_integers(call, (a, call[2]), (b, call[5]))
    rank = max(total.tensor.rank, 1)
    scales = (last(call, call[1], rank, -2), last(call, call[4], rank, -1), call.reshape(call[6], ()))
    return requantized(call, total, scales, call.reshape(call[7], ()))


@operator("QLinearConv")
def quantized_conv(call: Call) -> Node:
    total = convolution_of_integers(call, (call.require_rank(0, 3), call[2]), (call[3], call[5]), call.get(8))
    scales = (call.reshape(call[1], ()), last(call, call[4], total.tensor.rank, 1), call.reshape(call[6], ()))
    return requantized(call, total, scales, call.reshape(call[7], ()))
