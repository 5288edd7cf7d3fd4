"""Element types of fewer than 16 bits that are only stored and moved: 8-bit, 6-bit and 4-bit floats, 4-bit and 2-bit integers.

Each takes one byte. A kernel sees them as bytes; `cast` from or to one of them is arithmetic on those bytes, written here once
in Kernel IR, so that it fuses with what reads or makes the numbers and every target has it. Formats and rounding are those of
`ml_dtypes` (OCP 8-bit and microscaling formats): to the nearest, ties to even.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dlcompiler.ir.types import DType, f32, i32, u8, u32

if TYPE_CHECKING:
    from dlcompiler.ir.kernel import Value
    from dlcompiler.ir.kernel_builder import KernelBuilder

SINGLE_BIAS, SINGLE_MANTISSA = 127, 23


@dataclass(frozen=True)
class Minifloat:
    """A float of a sign, `exponent` and `mantissa` bits. `largest` is the code of the largest finite number.

    overflow  code of what is too large
    nan       code that a NaN without sign is written as: `0x80` for every NaN, elsewhere one with a sign gets the other sign bit
    infinity  code of infinity, or None if there is none
    """

    exponent: int
    mantissa: int
    bias: int
    largest: int
    overflow: int
    nan: int
    infinity: int | None = None
    has_nan: bool = True

    @property
    def sign(self) -> int:
        """The bit that is set in negative numbers."""
        return 1 << (self.exponent + self.mantissa)

    @property
    def has_minus_zero(self) -> bool:
        return self.nan != self.sign or not self.has_nan


MINIFLOATS = {
    "f8e4m3fn": Minifloat(4, 3, 7, largest=0x7E, overflow=0x7F, nan=0x7F),
    "f8e4m3fnuz": Minifloat(4, 3, 8, largest=0x7F, overflow=0x80, nan=0x80),
    "f8e5m2": Minifloat(5, 2, 15, largest=0x7B, overflow=0x7C, nan=0x7E, infinity=0x7C),
    "f8e5m2fnuz": Minifloat(5, 2, 16, largest=0x7F, overflow=0x80, nan=0x80),
    "f6e2m3": Minifloat(2, 3, 1, largest=0x1F, overflow=0x1F, nan=0x20, has_nan=False),
    "f6e3m2": Minifloat(3, 2, 3, largest=0x1F, overflow=0x1F, nan=0x20, has_nan=False),
    "f4e2m1": Minifloat(2, 1, 1, largest=0x07, overflow=0x07, nan=0x08, has_nan=False),
}
# bits, and whether negative numbers exist
INTEGERS = {"i4": (4, True), "u4": (4, False), "i2": (2, True), "u2": (2, False)}


def decode(b: KernelBuilder, value: Value, dtype: DType) -> Value:
    """A stored number as `dtype`, any that kernels compute or store."""
    wide = _decode_integer(b, value) if value.dtype.name in INTEGERS else _decode_float(b, value)
    return b.cast(wide, dtype)


def encode(b: KernelBuilder, value: Value, dtype: DType) -> Value:
    """A number as `dtype`, one of those here. Integers keep their low bits."""
    if dtype.name in INTEGERS:
        bits, _ = INTEGERS[dtype.name]
        low = b.compute("bitwise_and", b.cast(value, i32), b.constant((1 << bits) - 1, i32))
        return b.bitcast(b.cast(low, u8), dtype)
    wide = b.cast(value, f32)
    code = _encode_scale(b, wide) if dtype.name == "f8e8m0" else _encode_minifloat(b, wide, MINIFLOATS[dtype.name])
    return b.bitcast(b.cast(code, u8), dtype)


def _decode_integer(b: KernelBuilder, value: Value) -> Value:
    bits, signed = INTEGERS[value.dtype.name]
    code = b.cast(b.bitcast(value, u8), i32)
    if not signed:
        return b.compute("bitwise_and", code, b.constant((1 << bits) - 1, i32))
    up = b.constant(32 - bits, i32)
    return b.compute("shift_right", b.compute("shift_left", code, up), up)


def _power_of_two(b: KernelBuilder, exponent: Value) -> Value:
    """2**exponent as f32, of an i32 within f32's normal range."""
    biased = b.compute("add", exponent, b.constant(SINGLE_BIAS, i32))
    bits = b.compute("shift_left", biased, b.constant(SINGLE_MANTISSA, i32))
    return b.bitcast(b.cast(bits, u32), f32)


def _decode_float(b: KernelBuilder, value: Value) -> Value:
    code = b.cast(b.bitcast(value, u8), i32)

    def number(x: int) -> Value:
        return b.constant(x, i32)

    if value.dtype.name == "f8e8m0":
        # the code is the exponent field of an f32, but for 2**-127, which is below the normal numbers
        bits = b.compute("shift_left", code, number(SINGLE_MANTISSA))
        bits = b.compute("where", b.compute("eq", code, number(0)), number(0x400000), bits)
        is_nan = b.compute("eq", code, number(255))
        return b.compute("where", is_nan, b.constant(float("nan"), f32), b.bitcast(b.cast(bits, u32), f32))
    format = MINIFLOATS[value.dtype.name]
    magnitude = b.compute("bitwise_and", code, number(format.sign - 1))
    exponent = b.compute("shift_right", magnitude, number(format.mantissa))
    fraction = b.compute("bitwise_and", magnitude, number((1 << format.mantissa) - 1))
    is_normal = b.compute("ne", exponent, number(0))
    whole = b.compute("where", is_normal, b.compute("bitwise_or", fraction, number(1 << format.mantissa)), fraction)
    scale = b.compute("sub", b.compute("maximum", exponent, number(1)), number(format.bias + format.mantissa))
    result = b.compute("mul", b.cast(whole, f32), _power_of_two(b, scale))
    nan = b.constant(float("nan"), f32)
    if format.infinity is not None:
        special = b.compute("eq", magnitude, number(format.infinity))
        result = b.compute("where", special, b.constant(float("inf"), f32), result)
        result = b.compute("where", b.compute("gt", magnitude, number(format.infinity)), nan, result)
    is_negative = b.compute("ne", b.compute("bitwise_and", code, number(format.sign)), number(0))
    result = b.compute("where", is_negative, b.compute("neg", result), result)
    if format.infinity is None and format.has_nan:
        tested = magnitude if format.nan < format.sign else code
        result = b.compute("where", b.compute("eq", tested, number(format.nan)), nan, result)
    return result


def _encode_minifloat(b: KernelBuilder, x: Value, format: Minifloat) -> Value:
    """The code of an f32 as i32.

    With e the exponent, at least the least normal one, |x| / 2**(e - mantissa bits) rounded to a whole number n is exact in f32,
    and the code is n plus the exponent's steps above the least: a carry of the rounding moves into the exponent by itself.
    """

    def number(value: int) -> Value:
        return b.constant(value, i32)

    bits = b.cast(b.bitcast(x, u32), i32)
    magnitude = b.compute("bitwise_and", bits, number(0x7FFFFFFF))
    least = 1 - format.bias
    exponent = b.compute("sub", b.compute("shift_right", magnitude, number(SINGLE_MANTISSA)), number(SINGLE_BIAS))
    exponent = b.compute("minimum", b.compute("maximum", exponent, number(least)), number(100))
    quantum = _power_of_two(b, b.compute("sub", number(format.mantissa), exponent))
    size = b.compute("minimum", b.bitcast(b.cast(magnitude, u32), f32), b.constant(2.0**100, f32))
    n = b.cast(b.compute("round", b.compute("mul", size, quantum)), i32)
    steps = b.compute("shift_left", b.compute("sub", exponent, number(least)), number(format.mantissa))
    code = b.compute("add", n, steps)
    code = b.compute("where", b.compute("gt", code, number(format.largest)), number(format.overflow), code)
    is_negative = b.compute("lt", bits, number(0))
    if not format.has_minus_zero:
        is_negative = b.compute("bitwise_and", is_negative, b.compute("ne", code, number(0)))
    code = b.compute("where", is_negative, b.compute("bitwise_or", code, number(format.sign)), code)
    is_nan = b.compute("isnan", x)
    nan = number(format.nan)
    if format.nan != 0x80:
        nan = b.compute("where", b.compute("lt", bits, number(0)), number(format.nan ^ format.sign), nan)
    return b.compute("where", is_nan, nan, code)


def _encode_scale(b: KernelBuilder, x: Value) -> Value:
    """The code of a power of two near an f32, as i32: its exponent. Halfway goes up; what is not positive and finite is NaN."""

    def number(value: int) -> Value:
        return b.constant(value, i32)

    bits = b.cast(b.bitcast(x, u32), i32)
    finite = b.compute("minimum", bits, number(0x7F800000))
    rounded = b.compute("shift_right", b.compute("add", finite, number(1 << (SINGLE_MANTISSA - 1))), number(SINGLE_MANTISSA))
    # below 2**-126 the exponent field is 0: up to 2**-127 the code is 0, as in `ml_dtypes`
    small = b.compute("le", bits, number(0x400000))
    code = b.compute("where", small, number(0), rounded)
    outside = b.compute("le", bits, number(0))
    return b.compute("where", outside, number(255), code)
