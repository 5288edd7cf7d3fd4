"""sin, cos, tan and their inverses.

The quadrant n and the rest r = x - n pi/2 come from Cody and Waite's reduction with pi/2 in parts (Software Manual for the
Elementary Functions, 1980); |r| <= pi/4 then goes through an odd or even polynomial. f32 reduces in f64, where two parts
are enough up to 2^30, and beyond that by Payne and Hanek's method (Radian Reduction for Trigonometric Functions, SIGNUM
1983) in 64-bit integers. f64 uses three parts up to 2^24, and the C library's function for lanes beyond that.
The inverses follow Muller, Elementary Functions, 3rd edition, chapter 11.
"""

from __future__ import annotations

from dlcompiler.codegen.cpu.emitter import Emitter
from dlcompiler.codegen.cpu.library import call_lanes
from dlcompiler.codegen.cpu.numerics import (
    INFINITY,
    NAN,
    fast_two_sum,
    form,
    nearest,
    polynomial,
    two_product,
    two_sum,
)
from dlcompiler.codegen.cpu.value import Value

TWO_OVER_PI = 0.6366197723675814
HALF_PI_PARTS = (1.5707963267948966, 6.123233995736766e-17, -1.4973849048591698e-33)
# 2/pi in fixed point, 2 bits before the point and 254 after it
TWO_OVER_PI_WORDS = (0x28BE60DB9391054A, 0x7F09D5F47D4D3770, 0x36D8A5664F10E410, 0x7F9458EAF7AEF158)
SINGLE_LIMIT = 2.0**30
DOUBLE_LIMIT = 2.0**24
TAN_EIGHTH = 0.41421356237309503
TAN_THREE_EIGHTHS = 2.414213562373095


def reduce_single(e: Emitter, x: Value) -> tuple[Value, Value]:
    """(r in f64, quadrant in i64) for an f32 x of any size; r is NaN for infinities and NaN."""
    double = e.convert(x, "f64")
    n, quadrant = nearest(e, double, TWO_OVER_PI)
    r = e.fma(n, -HALF_PI_PARTS[1], e.fma(n, -HALF_PI_PARTS[0], double))
    huge = e.compare("oge", e.abs(x), SINGLE_LIMIT)

    def slow() -> tuple[Value, Value]:
        slow_r, slow_quadrant = reduce_huge(e, x)
        return e.select(huge, slow_r, r), e.select(huge, slow_quadrant, quadrant)

    result = e.if_else(e.any(huge), slow, lambda: (r, quadrant))
    return result[0], result[1]


def reduce_huge(e: Emitter, x: Value) -> tuple[Value, Value]:
    """Payne and Hanek for |x| = M 2^E, M of 24 bits and E from 0 to 104.

    Bits of 2/pi whose product with 2^E is a multiple of 4 say nothing about the quadrant, so a window of 96 bits from
    bit E on is enough; M times it, modulo 2^64 in units of 2^-62, holds the quadrant in its two highest bits.
    """
    bits = e.convert(e.bitcast(x, "i32"), "i64", source_signed=False)
    mantissa = (bits & 0x7FFFFF) | 0x800000
    exponent = e.minimum(e.maximum((e.shr(bits, 23, signed=False) & 255) - 150, 0), 127)
    first = e.compare("lt", exponent, 64)
    words = [e.constant(word, "i64", x.lanes) for word in TWO_OVER_PI_WORDS]
    a, b, c = (e.select(first, words[i], words[i + 1]) for i in range(3))
    shift = exponent & 63
    left = 63 - shift
    high = (a << shift) | e.shr(e.shr(b, 1, signed=False), left, signed=False)
    low = (b << shift) | e.shr(e.shr(c, 1, signed=False), left, signed=False)
    turns = mantissa * high + e.shr(mantissa * e.shr(low, 32, signed=False), 32, signed=False)
    quadrant = (turns + (1 << 61)) >> 62
    fraction = e.convert(turns - (quadrant << 62), "f64") * (HALF_PI_PARTS[0] * 2.0**-62)
    negative = x < 0.0
    r = e.select(negative, -fraction, fraction)
    return e.select(e.abs(x) < INFINITY, r, NAN), e.select(negative, -quadrant, quadrant)


def reduce_double(e: Emitter, x: Value) -> tuple[Value, Value, Value]:
    """(r, its error, quadrant in i64) for an f64 |x| up to 2^24; the first product and difference are exact."""
    n, quadrant = nearest(e, x, TWO_OVER_PI)
    first = e.fma(n, -HALF_PI_PARTS[0], x)
    product, error = two_product(e, n, e.constant(-HALF_PI_PARTS[1], x))
    high, low = two_sum(first, product)
    return *fast_two_sum(high, low + e.fma(n, -HALF_PI_PARTS[2], error)), quadrant


def sine_parts(e: Emitter, r: Value, error: Value | None, grade: str) -> tuple[Value, Value]:
    """sin(r + error) as r plus a small rest."""
    square = r * r
    cube = square * r
    rest = polynomial(e, "sin", square, grade)
    if error is None:
        return r, cube * rest
    return r, e.fma(cube, rest, error * e.fma(square, -0.5, 1.0))


def cosine_parts(e: Emitter, r: Value, error: Value | None, grade: str) -> tuple[Value, Value]:
    """cos(r + error) as 1 - r^2/2 rounded plus a small rest."""
    square = r * r
    leading = e.fma(square, -0.5, 1.0)
    lost = e.fma(square, -0.5, 1.0 - leading)
    rest = e.fma(square * square, polynomial(e, "cos", square, grade), lost)
    return leading, rest if error is None else e.fma(r, -error, rest)


def turn(e: Emitter, r: Value, error: Value | None, quadrant: Value, grade: str) -> Value:
    """The sine of r + quadrant * pi/2; a cosine is that of quadrant + 1."""
    # a sum of zeros loses the sign of -0
    sine = e.copysign(_sum(sine_parts(e, r, error, grade)), r)
    cosine = _sum(cosine_parts(e, r, error, grade))
    value = e.select(e.compare("ne", quadrant & 1, 0), cosine, sine)
    sign = (quadrant & 2) << (value.bits - 2)
    return e.bitcast(e.bitcast(value, quadrant.element) ^ sign, value.element)


def _sum(parts: tuple[Value, Value]) -> Value:
    return parts[0] + parts[1]


def _turned(e: Emitter, x: Value, quarters: int, name: str) -> Value:
    """sin(x + quarters * pi/2); `name` is the C function of f64 for huge x."""
    if form(x).mantissa_bits == 23:
        r, quadrant = reduce_single(e, x)
        return turn(e, e.convert(r, "f32"), None, e.convert(quadrant + quarters, "i32"), "f32")
    r, error, quadrant = reduce_double(e, x)
    result = or_library(e, x, name, turn(e, r, error, quadrant + quarters, "f64"))
    return e.select(e.compare("eq", x, 0.0), x, result) if quarters == 0 else result


def or_library(e: Emitter, x: Value, name: str, result: Value) -> Value:
    """`result`, but the C library's `name` for f64 lanes with |x| above 2^24, where the reduction ends; NaN at infinity."""
    huge = e.abs(x) > DOUBLE_LIMIT
    slow = e.if_else(e.any(huge), lambda: (e.select(huge, call_lanes(e, name, x), result),), lambda: (result,))
    return slow[0]


def sin(e: Emitter, x: Value) -> Value:
    """The sine; NaN at infinity."""
    return _turned(e, x, 0, "sin")


def cos(e: Emitter, x: Value) -> Value:
    """The cosine; NaN at infinity."""
    return _turned(e, x, 1, "cos")


def tan(e: Emitter, x: Value) -> Value:
    """Sine over cosine, or minus cosine over sine in odd quadrants; in f64 both in two parts, one Newton step after."""
    if form(x).mantissa_bits == 23:
        r, quadrant = reduce_single(e, x)
        parts = [_sum(sine_parts(e, r, None, "wide")), _sum(cosine_parts(e, r, None, "wide"))]
        odd = e.compare("ne", quadrant & 1, 0)
        quotient = e.select(odd, -parts[1], parts[0]) / e.select(odd, parts[0], parts[1])
        return e.select(e.compare("eq", x, 0.0), x, e.convert(quotient, "f32"))
    r, error, quadrant = reduce_double(e, x)
    odd = e.compare("ne", quadrant & 1, 0)
    sine, cosine = (fast_two_sum(*parts(e, r, error, "f64")) for parts in (sine_parts, cosine_parts))
    top, top_rest = (e.select(odd, -c, s) for s, c in zip(sine, cosine, strict=True))
    bottom, bottom_rest = (e.select(odd, s, c) for s, c in zip(sine, cosine, strict=True))
    quotient = top / bottom
    remainder = e.fma(-quotient, bottom, top) + e.fma(-quotient, bottom_rest, top_rest)
    corrected = quotient + remainder / bottom
    return or_library(e, x, "tan", e.select(e.compare("eq", x, 0.0), x, corrected))


def asin_half(e: Emitter, x: Value) -> tuple[Value, Value, Value, Value]:
    """(|x| > 1/2, s, the rest, |x|): asin|x| is s + rest up to 1/2, pi/2 - 2 (s + rest) beyond, by the half-angle formula."""
    a = e.abs(x)
    big = a > 0.5
    square = e.select(big, (1.0 - a) * 0.5, a * a)
    s = e.select(big, e.sqrt(square), a)
    return big, s, (s * square) * polynomial(e, "asin", square, x.element), a


def asin(e: Emitter, x: Value) -> Value:
    """The arc sine; NaN beyond 1."""
    high, low = form(x).half_pi
    big, s, rest, _ = asin_half(e, x)
    leading, lost = fast_two_sum(e.constant(high, x), s * -2.0)
    far = leading + (lost + (low - rest * 2.0))
    return e.copysign(e.select(big, far, s + rest), x)


def acos(e: Emitter, x: Value) -> Value:
    """The arc cosine; NaN beyond 1."""
    high, low = form(x).half_pi
    big, s, rest, _ = asin_half(e, x)
    twice = (s + rest) * 2.0
    middle = high - (x - (low - e.copysign(rest, x)))
    return e.select(big, e.select(x < 0.0, 2 * high - (twice - 2 * low), twice), middle)


def atan_unit(e: Emitter, t: Value) -> Value:
    """atan(t) of an f32 t in [0, 1]."""
    square = t * t
    return e.fma(polynomial(e, "atan", square, "f32"), square * t, t)


def atan(e: Emitter, x: Value) -> Value:
    """f32: by the reciprocal above 1. f64: by (a - 1) / (a + 1) in the middle too, which keeps the polynomial short."""
    a = e.abs(x)
    high, low = form(x).half_pi
    far = a > (1.0 if x.element == "f32" else TAN_THREE_EIGHTHS)
    if x.element == "f32":
        near = atan_unit(e, e.select(far, 1.0, a) / e.select(far, a, 1.0))
        return e.copysign(e.select(far, high - (near - low), near), x)
    middle = a > TAN_EIGHTH
    top = e.select(far, -1.0, e.select(middle, a - 1.0, a))
    bottom = e.select(far, a, e.select(middle, a + 1.0, 1.0))
    t = top / bottom
    square = t * t
    rest = (square * t) * polynomial(e, "atan_eighth", square, "f64")
    zero = e.constant(0.0, x)
    base = e.select(far, high, e.select(middle, high / 2, zero))
    base_low = e.select(far, low, e.select(middle, low / 2, zero))
    return e.copysign(base + (t + (rest + base_low)), x)


def atan2_single(e: Emitter, y: Value, x: Value) -> Value:
    """The angle of (x, y) in f32, from the quotient of the smaller by the larger; all signs of zero as IEEE 754 has them."""
    across, up = e.abs(x), e.abs(y)
    steep = up > across
    small, large = e.select(steep, across, up), e.select(steep, up, across)
    # 0/0 is 0 here and inf/inf 1
    quotient = e.select(e.compare("eq", small, large), 1.0, small / large)
    quotient = e.select(e.compare("eq", small + large, 0.0), 0.0, quotient)
    near = atan_unit(e, quotient)
    left = e.compare("lt", e.bitcast(x, "i32"), 0)
    high, low = form(x).half_pi
    zero = e.constant(0.0, x)
    base = e.select(steep, high, e.select(left, 2 * high, zero))
    base_low = e.select(steep, low, e.select(left, 2 * low, zero))
    part = e.select(left ^ steep, -near, near)
    return e.copysign(base + (part + base_low), y)
