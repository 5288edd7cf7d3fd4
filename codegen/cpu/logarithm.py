"""log and what is made of it: log2, log10, log1p, asinh, acosh, atanh, pow.

x = 2^k m with m in [2/3, 4/3), split in the integer bits, and f = m - 1 is exact. In f32 log(1 + f) is f - f^2/2 + f^3 q(f);
in f64 it goes through s = f / (2 + f) and 2 atanh(s), put together as in Sun's fdlibm (Ng, 1993) so that the leading f
stays exact: f - (f^2/2 - s (f^2/2 + R)). Muller, Elementary Functions, 3rd edition, chapter 11.
"""

from __future__ import annotations

from dlcompiler.codegen.cpu.emitter import Emitter
from dlcompiler.codegen.cpu.exponential import exp_in
from dlcompiler.codegen.cpu.numerics import (
    INFINITY,
    NAN,
    at_most,
    form,
    polynomial,
    power_of_two,
    two_sum,
    wide,
)
from dlcompiler.codegen.cpu.value import Value

TWO_THIRDS_BITS = {"f32": 0x3F2AAAAB, "f64": 0x3FE5555555555555}
# from here on 1 + x is x and sqrt(x^2 + 1) is x to the last bit, and x^2 may overflow
LARGE = 2.0**60


def split_exponent(e: Emitter, x: Value) -> tuple[Value, Value]:
    """(k as an integer, f) with x = 2^k (1 + f), f in [-1/3, 1/3), for positive normal x."""
    kind = form(x)
    bits = e.bitcast(x, kind.integer)
    exponent = (bits - TWO_THIRDS_BITS[x.element]) >> kind.mantissa_bits
    return exponent, e.bitcast(bits - (exponent << kind.mantissa_bits), x.element) - 1.0


def split_any(e: Emitter, x: Value) -> tuple[Value, Value]:
    """As `split_exponent` but k as a float, denormal x too."""
    kind = form(x)
    steps = kind.mantissa_bits + 2
    tiny = x < kind.smallest_normal
    exponent, f = split_exponent(e, e.select(tiny, x * 2.0**steps, x))
    adjusted = e.select(tiny, exponent - steps, exponent)
    return e.convert(adjusted, x.element), f


def log1p_rest(e: Emitter, f: Value, grade: str) -> Value:
    """log(1 + f) - f."""
    if grade == "f32":
        return (f * f) * e.fma(polynomial(e, "log", f, grade), f, -0.5)
    half_square = f * f * 0.5
    s = f / (f + 2.0)
    square = s * s
    ratio = polynomial(e, "log_ratio", square, grade) * square
    return e.fma(s, half_square + ratio, -half_square)


def log_edges(e: Emitter, x: Value, result: Value) -> Value:
    """-inf at 0, NaN below and for NaN, infinity at infinity."""
    result = e.select(x < INFINITY, result, x)
    return e.select(e.compare("ult", x, 0.0), NAN, e.select(e.compare("eq", x, 0.0), -INFINITY, result))


def log_sum(e: Emitter, k: Value, f: Value, rest: Value) -> Value:
    """k ln 2 + f + rest."""
    high, low = form(f).ln2
    return e.fma(k, high, f + e.fma(k, low, rest))


def log(e: Emitter, x: Value, grade: str | None = None) -> Value:
    """The natural logarithm of f32 or f64."""
    k, f = split_any(e, x)
    return log_edges(e, x, log_sum(e, k, f, log1p_rest(e, f, grade or x.element)))


def log2(e: Emitter, x: Value) -> Value:
    """k + log(m) log2(e), the factor in two parts."""
    k, f = split_any(e, x)
    high, low = form(x).log2e
    rest = e.fma(f, low, log1p_rest(e, f, x.element) * high)
    leading = e.fma(f, high, k)
    lost = e.fma(f, high, k - leading)
    return log_edges(e, x, leading + (lost + rest))


def log10(e: Emitter, x: Value) -> Value:
    """k log10(2) + log(m) log10(e), both factors in two parts."""
    k, f = split_any(e, x)
    high, low = form(x).log10_2
    factor, factor_low = form(x).log10e
    rest = e.fma(k, low, e.fma(f, factor_low, log1p_rest(e, f, x.element) * factor))
    return log_edges(e, x, e.fma(k, high, e.fma(f, factor, rest)))


def log1p(e: Emitter, x: Value, grade: str | None = None) -> Value:
    """log(1 + x): the logarithm of the rounded sum, whose error is added to f. |x| below half an ulp of 1 is itself."""
    kind = form(x)
    total, lost = two_sum(e.constant(1.0, x), x)
    exponent, f = split_exponent(e, total)
    # beyond the mantissa's length the error does not count, so the exponent may stop where 2^-k is still normal
    inverse = power_of_two(e, -e.minimum(exponent, kind.bias - 1), x.element)
    lost = lost * inverse
    k = e.convert(exponent, x.element)
    result = log_sum(e, k, f, log1p_rest(e, f + lost, grade or x.element) + lost)
    result = e.select(e.abs(x) < 2.0 ** -(kind.mantissa_bits + 2), x, result)
    result = e.select(x < INFINITY, result, x)
    return e.select(e.compare("ult", x, -1.0), NAN, e.select(e.compare("eq", x, -1.0), -INFINITY, result))


def asinh_wide(e: Emitter, x: Value, grade: str) -> Value:
    """log1p(a + a^2 / (1 + sqrt(1 + a^2))) with x's sign; from 2^60 on log(a) + log(2)."""
    a = e.abs(x)
    square = a * a
    big = a > LARGE
    inner = a + square / (e.sqrt(square + 1.0) + 1.0)
    result = log1p(e, e.select(big, a, inner), grade)
    return e.copysign(e.select(big, result + form(x).ln2[0], result), x)


def acosh_wide(e: Emitter, x: Value, grade: str) -> Value:
    """log1p(t + sqrt(t (2 + t))) with t = x - 1; from 2^60 on log(x) + log(2); NaN below 1."""
    t = x - 1.0
    big = x > LARGE
    inner = t + e.sqrt(e.fma(t, t, t + t))
    result = log1p(e, e.select(big, x, inner), grade)
    return e.select(e.compare("ult", x, 1.0), NAN, e.select(big, result + form(x).ln2[0], result))


def atanh_wide(e: Emitter, x: Value, grade: str) -> Value:
    """log1p(2 a / (1 - a)) / 2 with x's sign; infinity at 1, NaN beyond."""
    a = e.abs(x)
    result = log1p(e, (a + a) / (1.0 - a), grade) * 0.5
    return e.select(a <= 1.0, e.copysign(result, x), NAN)


def pow_single(e: Emitter, x: Value, y: Value) -> Value:
    """x^y of f32 by exp(y log|x|) in f64, with the edges of IEEE 754-2019 section 9.2."""
    base, exponent = e.convert(e.abs(x), "f64"), e.convert(y, "f64")
    logarithm = log(e, base, "wide")
    # the range of f32 ends long before that of f64, and 0 * inf must not arise: pow(0, 0) is set below
    argument = at_most(e, exponent * logarithm, 200.0)
    magnitude = e.convert(exp_in(e, argument, "wide"), "f32")
    whole = e.compare("eq", e.math("roundeven", y), y)
    half = y * 0.5
    odd = whole & e.compare("ne", e.math("roundeven", half), half)
    signed = e.select(odd, e.copysign(magnitude, x), magnitude)
    negative = (x < 0.0) & e.compare("ogt", x, -INFINITY)
    result = e.select(negative & e.bit_not(whole), NAN, signed)
    # |x| = 1 to an infinite power is 1, by C and IEEE, even for -1
    infinite = e.compare("eq", e.abs(y), INFINITY)
    unit = e.compare("eq", e.abs(x), 1.0) & infinite
    one = unit | e.compare("eq", x, 1.0) | e.compare("eq", y, 0.0)
    return e.select(one, 1.0, result)


asinh = wide(asinh_wide)
acosh = wide(acosh_wide)
atanh = wide(atanh_wide)
