"""exp and what is made of it: exp2, expm1, sigmoid, tanh, sinh, cosh.

The argument is reduced to x = n ln 2 + r, |r| <= ln(2)/2, with ln 2 in two parts (Cody and Waite, Software Manual for the
Elementary Functions, 1980; n by adding and subtracting a large number); the first product is exact in a fused
multiply-add. exp(r) is 1 + r + r^2 q(r), and 2^n scales it (Muller, Elementary Functions, 3rd edition, chapter 11).
"""

from __future__ import annotations

from dlcompiler.codegen.cpu.emitter import Emitter
from dlcompiler.codegen.cpu.numerics import (
    at_least,
    at_most,
    fast_two_sum,
    form,
    nearest,
    polynomial,
    power_of_two,
    scale,
    scale_normal,
    wide,
)
from dlcompiler.codegen.cpu.value import Value

# where exp is 0 or infinity: a little beyond the last finite results
EXP_RANGE = {"f32": (-104.0, 89.0), "f64": (-745.2, 709.8)}
EXP2_RANGE = {"f32": (-151.0, 129.0), "f64": (-1076.0, 1025.0)}
SATURATION = {"f32": 20.0, "f64": 40.0}


def exp_reduced(e: Emitter, x: Value, grade: str) -> tuple[Value, Value, Value]:
    """(p, n, n as an integer) with exp(x) = p 2^n, p within [0.7, 1.42]."""
    kind = form(x)
    n, exponent = nearest(e, x, kind.log2e[0])
    r = e.fma(n, -kind.ln2[1], e.fma(n, -kind.ln2[0], x))
    tail = e.fma(polynomial(e, "exp", r, grade), r, 1.0)
    return e.fma(tail, r, 1.0), n, exponent


def exp(e: Emitter, x: Value) -> Value:
    """e^x of f32 or f64, any lanes; inf, 0 and denormal results as IEEE 754 has them."""
    form(x)
    return exp_in(e, at_most(e, x, EXP_RANGE[x.element][1]), x.element)


def exp_in(e: Emitter, x: Value, grade: str) -> Value:
    """exp of an x that is at most EXP_RANGE's upper end."""
    p, n, exponent = exp_reduced(e, at_least(e, x, EXP_RANGE[x.element][0]), grade)
    return scale(e, p, n, exponent)


def exp_reduced_double(e: Emitter, x: Value) -> tuple[Value, Value, Value, Value]:
    """(p, its error, n, n as an integer) with exp(x) = (p + error) 2^n."""
    kind = form(x)
    n, exponent = nearest(e, x, kind.log2e[0])
    r = e.fma(n, -kind.ln2[1], e.fma(n, -kind.ln2[0], x))
    tail = e.fma(polynomial(e, "exp", r, x.element), r, 1.0)
    high, low = fast_two_sum(e.constant(1.0, x), tail * r)
    return high, low, n, exponent


def exp2(e: Emitter, x: Value) -> Value:
    """2^x; x - n is exact. f32 has its own polynomial, f64 goes through exp's."""
    kind = form(x)
    x = at_most(e, at_least(e, x, EXP2_RANGE[x.element][0]), EXP2_RANGE[x.element][1])
    n, exponent = nearest(e, x)
    fraction = x - n
    if x.element == "f32":
        return scale(e, e.fma(polynomial(e, "exp2", fraction, "f32"), fraction, 1.0), n, exponent)
    high, low = kind.ln2
    r = fraction * high
    error = e.fma(fraction, low, e.fma(fraction, high, -r))
    tail = e.fma(polynomial(e, "exp", r, "f64"), r, 1.0)
    return scale(e, e.fma(tail, r, error) + 1.0, n, exponent)


def expm1(e: Emitter, x: Value) -> Value:
    """e^x - 1 as (2^n - 1) + 2^n r + 2^n (the rest), the first two added exactly; |x| below half an ulp of 1 is itself."""
    kind = form(x)
    clamped = at_most(e, at_least(e, x, -SATURATION[x.element]), EXP_RANGE[x.element][1])
    n, exponent = nearest(e, clamped, kind.log2e[0])
    first = e.fma(n, -kind.ln2[0], clamped)
    r = e.fma(n, -kind.ln2[1], first)
    lost = e.fma(n, -kind.ln2[1], first - r)
    # half of it, since 2^n itself may overflow where the result does not
    power = power_of_two(e, exponent - 1, x.element)
    high, low = fast_two_sum(power - 0.5, power * r)
    tail = e.fma(polynomial(e, "exp", r, x.element), r * r, lost)
    total = (high + e.fma(power, tail, low)) * 2.0
    return e.select(e.abs(x) < 2.0 ** -(kind.mantissa_bits + 2), x, total)


def sigmoid(e: Emitter, x: Value) -> Value:
    """1 / (1 + e^-x), from z = e^-|x| as 1 / (1 + z) or z / (1 + z), so that small results keep their precision."""
    z = exp_in(e, -e.abs(x), x.element)
    negative = x < 0.0
    top = e.select(negative, z, 1.0)
    bottom, lost = fast_two_sum(e.constant(1.0, x), z)
    quotient = top / bottom
    remainder = e.fma(-quotient, lost, e.fma(-quotient, bottom, top))
    # 1 / bottom, near enough for a correction
    inverse = e.select(negative, 1.0 - quotient, quotient)
    return e.fma(remainder, inverse, quotient)


def tanh(e: Emitter, x: Value) -> Value:
    """An odd polynomial up to 0.625, then 1 - 2 / (e^2|x| + 1), which is 1 from the saturation on."""
    magnitude = e.abs(x)
    square = x * x
    small = e.fma(polynomial(e, "tanh", square, x.element), square * x, x)
    p, _, exponent = exp_reduced(e, at_most(e, magnitude + magnitude, 2 * SATURATION[x.element]), x.element)
    large = 1.0 - 2.0 / (scale_normal(e, p, exponent) + 1.0)
    return e.copysign(e.select(e.compare("ule", magnitude, 0.625), small, large), x)


def half_exp(e: Emitter, x: Value, grade: str) -> Value:
    """e^x / 2 for x >= 0, without overflow before the end."""
    p, n, exponent = exp_reduced(e, at_most(e, x, 712.0), grade)
    return scale(e, p, n - 1.0, exponent - 1)


def sinh_wide(e: Emitter, x: Value, grade: str) -> Value:
    """(e^|x| - e^-|x|) / 2 with x's sign; an odd polynomial up to 1."""
    magnitude = e.abs(x)
    square = x * x
    small = e.fma(polynomial(e, "sinh", square, grade), square * x, x)
    half = half_exp(e, magnitude, grade)
    return e.select(magnitude < 1.0, small, e.copysign(half - 0.25 / half, x))


def cosh_wide(e: Emitter, x: Value, grade: str) -> Value:
    """(e^|x| + e^-|x|) / 2."""
    half = half_exp(e, e.abs(x), grade)
    return half + 0.25 / half


sinh = wide(sinh_wide)
cosh = wide(cosh_wide)
