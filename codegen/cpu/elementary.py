"""The elementary functions as inline vector code: `TABLE[name](e, *values)` for f32 and f64 of any number of lanes.

Results are within 2 units in the last place, with infinities, NaN, signed zeros and denormals as IEEE 754 has them; for f32
all inputs of the functions of one argument have been tried (docs/elementary.md). f16 and bf16 are converted first.
"""

from __future__ import annotations

from collections.abc import Callable

from dlcompiler.codegen.cpu import error_function, exponential, logarithm, special, trigonometric
from dlcompiler.codegen.cpu.emitter import Emitter
from dlcompiler.codegen.cpu.library import call_lanes
from dlcompiler.codegen.cpu.numerics import INFINITY, form, two_product
from dlcompiler.codegen.cpu.value import Value


def sqrt(e: Emitter, x: Value) -> Value:
    """One instruction, correctly rounded; NaN below zero."""
    form(x)
    return e.sqrt(x)


def rsqrt(e: Emitter, x: Value) -> Value:
    """1 / sqrt(x): two correctly rounded instructions; -inf at -0."""
    form(x)
    return 1.0 / e.sqrt(x)


def pow(e: Emitter, x: Value, y: Value) -> Value:
    """x^y: f32 as vectors, f64 by the C library."""
    return logarithm.pow_single(e, x, y) if form(x).mantissa_bits == 23 else call_lanes(e, "pow", x, y)


def atan2(e: Emitter, y: Value, x: Value) -> Value:
    """The angle of the point (x, y): f32 as vectors, f64 by the C library."""
    return trigonometric.atan2_single(e, y, x) if form(x).mantissa_bits == 23 else call_lanes(e, "atan2", y, x)


def hypot(e: Emitter, x: Value, y: Value) -> Value:
    """sqrt(x^2 + y^2): f32 in f64, where nothing overflows; infinity beside NaN is infinity. f64 by the C library."""
    if form(x).mantissa_bits == 52:
        return call_lanes(e, "hypot", x, y)
    a, b = e.convert(x, "f64"), e.convert(y, "f64")
    length = e.convert(e.sqrt(e.fma(a, a, b * b)), "f32")
    infinite = e.compare("eq", e.abs(x), INFINITY) | e.compare("eq", e.abs(y), INFINITY)
    return e.select(infinite, INFINITY, length)


def cbrt(e: Emitter, x: Value) -> Value:
    """The cube root: the C library's, and one Newton step with an exact remainder, since that one is 4 units off at times."""
    form(x)
    wide = e.convert(x, "f64")
    # away from underflow, where the products' errors are exact
    tiny = e.abs(wide) < 2.0**-700
    wide = e.select(tiny, wide * 2.0**600, wide)
    root = call_lanes(e, "cbrt", wide)
    square, square_lost = two_product(e, root, root)
    cube, cube_lost = two_product(e, square, root)
    remainder = (cube - wide) + e.fma(square_lost, root, cube_lost)
    better = root - remainder / (square * 3.0)
    finite = (e.abs(wide) < INFINITY) & e.compare("one", wide, 0.0)
    result = e.select(finite, better, root)
    return e.convert(e.select(tiny, result * 2.0**-200, result), x.element)


def by_library(name: str) -> Callable[[Emitter, Value], Value]:
    """A function that only the C library has: f32 goes through f64."""

    def apply(e: Emitter, x: Value) -> Value:
        form(x)
        return e.convert(call_lanes(e, name, e.convert(x, "f64")), x.element)

    apply.__doc__ = f"The C library's {name}, one lane at a time."
    return apply


TABLE: dict[str, Callable[..., Value]] = {
    "exp": exponential.exp,
    "exp2": exponential.exp2,
    "expm1": exponential.expm1,
    "sigmoid": exponential.sigmoid,
    "tanh": exponential.tanh,
    "sinh": exponential.sinh,
    "cosh": exponential.cosh,
    "log": logarithm.log,
    "log2": logarithm.log2,
    "log10": logarithm.log10,
    "log1p": logarithm.log1p,
    "asinh": logarithm.asinh,
    "acosh": logarithm.acosh,
    "atanh": logarithm.atanh,
    "sin": trigonometric.sin,
    "cos": trigonometric.cos,
    "tan": trigonometric.tan,
    "asin": trigonometric.asin,
    "acos": trigonometric.acos,
    "atan": trigonometric.atan,
    "erf": error_function.erf,
    "erfc": error_function.erfc,
    "sqrt": sqrt,
    "rsqrt": rsqrt,
    "pow": pow,
    "atan2": atan2,
    "hypot": hypot,
    "cbrt": cbrt,
    "lgamma": by_library("lgamma"),
    "digamma": special.digamma,
    "erfinv": special.erfinv,
}
