"""Elementwise operators: arithmetic, comparison, logic, rounding, casts."""

from __future__ import annotations

import functools
import math

import numpy as np

from dlcompiler.frontends.onnx_registry import Call, element_type, operator
from dlcompiler.ir.graph import Node
from dlcompiler.ir.narrow import MINIFLOATS
from dlcompiler.ir.types import DType, boolean, f32, f64

UNARY = {
    "Abs": "abs", "Acos": "acos", "Acosh": "acosh", "Asin": "asin", "Asinh": "asinh", "Atan": "atan", "Atanh": "atanh",
    "Ceil": "ceil", "Cos": "cos", "Cosh": "cosh", "Erf": "erf", "Exp": "exp", "Floor": "floor", "IsNaN": "isnan", "Log": "log",
    "Neg": "neg", "Reciprocal": "reciprocal", "Round": "round", "Sigmoid": "sigmoid", "Sign": "sign", "Sin": "sin",
    "Sinh": "sinh", "Sqrt": "sqrt", "Tan": "tan", "Tanh": "tanh", "Not": "bitwise_not", "BitwiseNot": "bitwise_not",
}  # fmt: skip
BINARY = {
    "Add": "add", "Sub": "sub", "Mul": "mul", "And": "bitwise_and", "Or": "bitwise_or", "Xor": "bitwise_xor",
    "BitwiseAnd": "bitwise_and", "BitwiseOr": "bitwise_or", "BitwiseXor": "bitwise_xor", "Equal": "eq", "Greater": "gt",
    "GreaterOrEqual": "ge", "Less": "lt", "LessOrEqual": "le",
}  # fmt: skip
VARIADIC = {"Sum": "add", "Max": "maximum", "Min": "minimum"}


@operator(*UNARY)
def unary(call: Call) -> Node:
    return call.b(UNARY[call.op_type], call[0])


def aligned(call: Call) -> tuple[Node, Node]:
    """The two operands. Before opset 7 the second broadcast only on request, from `axis` on, not by NumPy's rule."""
    a, b = call[0], call[1]
    if call.version >= 7 or not call.flag("broadcast"):
        return a, b
    axis = call.attribute("axis")
    if axis is None or b.tensor.rank == 0:
        return a, b
    axis = call.normalize(axis, a.tensor.rank, end=True)
    behind = a.tensor.rank - axis - b.tensor.rank
    if behind < 0:
        call.misfit(f"operand {b.type} does not fit {a.type} from axis {axis}")
    return a, call.reshape(b, (*b.shape, *(1,) * behind))


@operator(*BINARY)
def binary(call: Call) -> Node:
    return call.b(BINARY[call.op_type], *aligned(call))


@operator(*VARIADIC)
def variadic(call: Call) -> Node:
    return functools.reduce(lambda a, b: call.b(VARIADIC[call.op_type], a, b), call.all)


@operator("Mean")
def mean_of_inputs(call: Call) -> Node:
    total = functools.reduce(call.b.add, (call.wide(n) for n in call.all))
    return call.cast(call.b.div(total, float(len(call.inputs))), call[0].dtype)


@operator("Div")
def div(call: Call) -> Node:
    """Integers divide towards zero."""
    a, b = aligned(call)
    return call.b.trunc_div(a, b) if a.dtype.is_integer else call.b.div(a, b)


@operator("Mod")
def mod(call: Call) -> Node:
    """The sign of the divisor, or with `fmod` that of the dividend."""
    return call.b("fmod" if call.flag("fmod") else "remainder", call[0], call[1])


@operator("Pow")
def power(call: Call) -> Node:
    """The exponent may have another dtype than the base, whose dtype the result has."""
    a, b = aligned(call)
    if a.dtype is b.dtype:
        return call.b.pow(a, b)
    if a.dtype.is_integer and b.dtype.is_float:
        return call.cast(call.b.pow(call.cast(a, f64), call.cast(b, f64)), a.dtype)
    return call.b.pow(a, call.cast(b, a.dtype))


@operator("BitShift")
def bit_shift(call: Call) -> Node:
    direction = call.attribute("direction")
    if direction not in ("LEFT", "RIGHT"):
        call.invalid(f"direction is {direction!r}, not LEFT or RIGHT")
    return call.b("shift_left" if direction == "LEFT" else "shift_right", call[0], call[1])


@operator("Where")
def where(call: Call) -> Node:
    return call.b.where(call[0], call[1], call[2])


@operator("IsInf")
def is_inf(call: Call) -> Node:
    x = call[0]
    positive, negative = call.flag("detect_positive", 1), call.flag("detect_negative", 1)
    if positive and negative:
        return call.b.isinf(x)
    if positive or negative:
        return call.b.eq(x, call.number(math.inf if positive else -math.inf, x))
    return call.full(False, boolean, x.shape)


@operator("Clip")
def clip(call: Call) -> Node:
    """Bounds are attributes before opset 11, optional inputs since; the upper bound wins where they cross."""
    x = call[0]
    if call.version < 11:
        for op, name in (("maximum", "min"), ("minimum", "max")):
            bound = call.attribute(name)
            if bound is not None:
                x = call.b(op, x, call.number(bound, x))
        return x
    for op, index in (("maximum", 1), ("minimum", 2)):
        bound = call.get(index)
        if bound is not None:
            x = call.b(op, x, call.reshape(bound, ()) if bound.tensor.rank else bound)
    return x


def saturated(call: Call, x: Node, dtype: DType) -> Node:
    """`x` within the finite range of a small float; NaN stays."""
    largest = float(np.uint8(MINIFLOATS[dtype.name].largest).view(dtype.numpy))
    return call.b.maximum(call.b.minimum(x, call.number(largest, x)), call.number(-largest, x))


# -- casts -----------------------------------------------------------------------------------------------------------------


def converted(call: Call, x: Node, dtype: DType) -> Node:
    """As `Cast`: 8-bit floats saturate unless told otherwise; a power of two (float8e8m0) is rounded as told."""
    if dtype.name == "f8e8m0":
        return _power_of_two(call, x, dtype)
    if dtype.name in MINIFLOATS and x.dtype.is_float and call.flag("saturate", 1):
        x = saturated(call, x, dtype)
    if dtype.is_integer and dtype.bits < 32 and x.dtype.is_float:
        # out-of-range floats wrap, as from a wider integer
        x = call.b.cast(x, dtype="i32")
    return call.cast(x, dtype)


@operator("Cast")
def cast(call: Call) -> Node:
    to = call.attribute("to")
    if isinstance(to, str):  # opset 1 names the type
        from onnx import TensorProto

        if to.upper() not in TensorProto.DataType.keys():
            call.invalid(f"there is no element type {to!r}")
        to = TensorProto.DataType.Value(to.upper())
    return converted(call, call[0], element_type(to))


@operator("CastLike")
def cast_like(call: Call) -> Node:
    return converted(call, call[0], call[1].dtype)


def _power_of_two(call: Call, x: Node, dtype: DType) -> Node:
    """The exponent field of |x| as a float32, rounded by `round_mode`; what is not finite is NaN (all bits set)."""
    mode = call.attribute("round_mode", "up")
    if mode not in ("up", "down", "nearest"):
        call.invalid(f"round_mode is {mode!r}, not up, down or nearest")
    bits = call.b.bitwise_and(call.b.bitcast(call.cast(x, f32), dtype="u32"), 0x7FFFFFFF)
    code = call.b.shift_right(bits, 23)
    fraction = call.b.bitwise_and(bits, 0x7FFFFF)
    if mode != "down":
        if mode == "up":
            rounds_up = call.b.gt(fraction, 0)
        else:  # halfway goes up, but below the normal numbers
            rounds_up = call.b.ge(fraction, call.b.where(call.b.gt(code, 0), call.number(0x400000, code), 0x400001))
        if call.flag("saturate", 1):
            rounds_up = call.b.bitwise_and(rounds_up, call.b.ne(code, 254))
        code = call.b.add(code, call.b.cast(rounds_up, dtype="u32"))
    return call.b.bitcast(call.b.cast(call.b.minimum(code, 255), dtype="u8"), dtype=dtype.name)


@operator("BitCast")
def bit_cast(call: Call) -> Node:
    dtype = element_type(call.attribute("to"))
    if dtype.bits != call[0].dtype.bits:
        call.invalid(f"{call[0].dtype} and {dtype} differ in size")
    return call.b.bitcast(call[0], dtype=dtype.name)


# -- scans -----------------------------------------------------------------------------------------------------------------


def _scan(call: Call, kind: str) -> Node:
    x = call.require_rank(0, 1)
    axis = call.normalize(int(call.scalar(1, "axis")), x.tensor.rank)
    return call.b.scan(x, axis=axis, kind=kind, exclusive=call.flag("exclusive"), reverse=call.flag("reverse"))


@operator("CumSum")
def cumulative_sum(call: Call) -> Node:
    return _scan(call, "add")


@operator("CumProd")
def cumulative_product(call: Call) -> Node:
    return _scan(call, "mul")
