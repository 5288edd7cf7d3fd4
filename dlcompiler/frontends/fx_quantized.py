"""Rules for quantised numbers: products of bytes, and what PT2E writes around a model's operators."""

from __future__ import annotations

from typing import Any

from dlcompiler.frontends.fx_rules import NoRule, rule
from dlcompiler.frontends.fx_types import dtype_from_torch
from dlcompiler.frontends.fx_view import reshape
from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import f32


@rule("_int_mm.default")
def _integer_product(i, x, y):
    return i.b.matmul(i.b.cast(x, dtype="i32"), i.b.cast(y, dtype="i32"))


@rule("_weight_int8pack_mm.default")
def _product_with_bytes(i, x, weight, scales):
    """x @ weight.T, a scale for each column. Bytes are exact in every type that `x` may have."""
    return i.b.mul(i.b.linear(x, i.cast(weight, x.dtype)), i.cast(scales, x.dtype))


@rule("_scaled_mm.default", takes_narrow=True)
def _scaled_product(i, x, y, scale_x, scale_y, bias=None, scale_result=None, out_dtype=None, use_fast_accum=False):
    """(x @ y) * scale_x * scale_y + bias of 8-bit floats, summed in float32; fast accumulation is allowed and not needed.

    A scale is one number, or one for each row of x, [M, 1], and each column of y, [1, N].
    """
    rows, columns = x.shape[0], y.shape[1]
    for scale, along in ((scale_x, (rows, 1)), (scale_y, (1, columns))):
        if scale.dtype is not f32 or (scale.tensor.numel != 1 and scale.shape != along):
            raise NoRule(f"scales {scale.type} of blocks")
    if scale_result is not None:
        raise NoRule("a scale of the result")
    result = i.b.matmul(i.cast(x, f32), i.cast(y, f32))
    for scale in (scale_x, scale_y):
        result = i.b.mul(result, reshape(i, scale, ()) if scale.tensor.numel == 1 else scale)
    return i.cast(result if bias is None else i.b.add(result, i.cast(bias, f32)), i.dtype)


def _along(i: Any, parameter: Node, axis: int, rank: int) -> Node:
    """A number for each position of one axis, shaped to broadcast."""
    axis %= rank
    return reshape(i, parameter, (1,) * axis + parameter.shape + (1,) * (rank - 1 - axis))


def _quantize(i: Any, x: Node, scale: Any, zero: Any, low: int, high: int, dtype: Any) -> Node:
    """As `quantized_decomposed` does it: times the reciprocal of the scale, to the nearest, ties to even."""
    reciprocal = 1.0 / scale if isinstance(scale, float) else i.b.reciprocal(i.cast(scale, f32))
    rounded = i.b.add(i.b.round(i.b.mul(i.cast(x, f32), reciprocal)), _number(i, zero))
    whole = i.b.cast(i.b.clamp(rounded, low=float(low), high=float(high)), dtype="i32")
    return i.cast(whole, dtype_from_torch(dtype))


def _dequantize(i: Any, x: Node, scale: Any, zero: Any, out_dtype: Any) -> Node:
    wide = i.cast(x, f32)
    if zero is not None:
        wide = i.b.sub(wide, _number(i, zero))
    result = i.b.mul(wide, scale if isinstance(scale, float) else i.cast(scale, f32))
    return result if out_dtype is None else i.cast(result, dtype_from_torch(out_dtype))


def _number(i: Any, value: Any) -> Any:
    """A zero point as an operand of float32."""
    return i.cast(value, f32) if isinstance(value, Node) else float(value)


def _check(x: Node, scale: Any) -> None:
    if isinstance(scale, Node) and scale.dtype.bits > 32 and scale.tensor.numel != 1:
        raise NoRule("scales in float64, which take part in the rounding")
    if x.dtype.bits > 32:
        raise NoRule(f"quantisation of {x.dtype}")


@rule("quantized_decomposed.quantize_per_tensor.default", "quantized_decomposed.quantize_per_tensor.tensor")
def _quantize_per_tensor(i, x, scale, zero, low, high, dtype):
    _check(x, scale)
    return _quantize(i, x, scale, zero, low, high, dtype)


@rule("quantized_decomposed.dequantize_per_tensor.default", "quantized_decomposed.dequantize_per_tensor.tensor")
def _dequantize_per_tensor(i, x, scale, zero, low, high, dtype, *, out_dtype=None):
    _check(x, scale)
    return _dequantize(i, x, scale, zero, out_dtype)


@rule("quantized_decomposed.quantize_per_channel.default")
def _quantize_per_channel(i, x, scales, zeros, axis, low, high, dtype):
    _check(x, scales)
    scales, zeros = (_along(i, parameter, axis, x.tensor.rank) for parameter in (scales, zeros))
    return _quantize(i, x, scales, zeros, low, high, dtype)


@rule("quantized_decomposed.dequantize_per_channel.default")
def _dequantize_per_channel(i, x, scales, zeros, axis, low, high, dtype, *, out_dtype=None):
    _check(x, scales)
    zeros = None if zeros is None else _along(i, zeros, axis, x.tensor.rank)
    return _dequantize(i, x, _along(i, scales, axis, x.tensor.rank), zeros, out_dtype)
