"""digamma and the inverse of erf, in f64 arithmetic: rare functions, written for precision before speed."""

from __future__ import annotations

import math

from dlcompiler.codegen.cpu.emitter import Emitter
from dlcompiler.codegen.cpu.error_function import erf_small, erfc_positive
from dlcompiler.codegen.cpu.exponential import exp
from dlcompiler.codegen.cpu.logarithm import log
from dlcompiler.codegen.cpu.numerics import INFINITY, NAN, at_least, at_most, horner, wide
from dlcompiler.codegen.cpu.trigonometric import tan
from dlcompiler.codegen.cpu.value import Value

# B(2k) / (2k): log(x) - 1/(2x) - digamma(x) in powers of 1/x^2 (Abramowitz and Stegun 6.3.18)
DIGAMMA_SERIES = (1 / 12, -1 / 120, 1 / 252, -1 / 240, 1 / 132, -691 / 32760, 1 / 12, -3617 / 8160)
WINITZKI = 0.147


def digamma_wide(e: Emitter, x: Value, grade: str) -> Value:
    """The recurrence up to 10, then the asymptotic series; below zero by reflection.

    NaN at negative integers and -inf, an infinity of the other sign at zeros. The error is absolute near the function's
    zeros: f32 results are within 2 units, f64 results there are not.
    """
    negative = x < 0.0
    y = e.select(negative, 1.0 - x, x)
    total = e.constant(0.0, x)
    for _ in range(10):
        low = y < 10.0
        total = e.select(low, total - 1.0 / y, total)
        y = e.select(low, y + 1.0, y)
    inverse = 1.0 / y
    square = inverse * inverse
    series = horner(e, square, DIGAMMA_SERIES) * square
    positive = log(e, y) + (total - (inverse * 0.5 + series))
    fraction = x - e.math("roundeven", x)
    reflected = positive - math.pi / tan(e, fraction * math.pi)
    undefined = negative & (e.compare("eq", fraction, 0.0) | e.compare("eq", x, -INFINITY))
    result = e.select(undefined, NAN, e.select(negative, reflected, e.select(x < INFINITY, positive, x)))
    return e.select(e.compare("eq", x, 0.0), e.copysign(INFINITY, -x), result)


def erfinv_wide(e: Emitter, x: Value, grade: str) -> Value:
    """Halley's iteration on erf from Winitzki's approximation (2008), within 2e-3: two steps for f32 results, three for f64.

    Beyond y = 1/2 the equation is erfc(y) = 1 - |x|, whose right side is exact. Infinite at 1, NaN beyond.
    """
    a = e.abs(x)
    rest = 1.0 - a
    inner = at_most(e, a, 1.0 - 2.0**-53)
    logarithm = log(e, (1.0 - inner) * (inner + 1.0))
    middle = logarithm * 0.5 + 2 / (math.pi * WINITZKI)
    distance = e.sqrt(e.fma(middle, middle, logarithm * (-1 / WINITZKI))) - middle
    y = e.sqrt(at_least(e, distance, 0.0))
    for _ in range(2 if grade == "wide" else 3):
        tail = rest - erfc_positive(e, at_least(e, y, 0.45), "f64")
        error = e.select(y < 0.5, erf_small(e, y) - a, tail)
        step = error * exp(e, y * y) * (math.sqrt(math.pi) / 2)
        y = y - step / e.fma(y, step, 1.0)
    inside = e.select(a < 1.0, y, INFINITY)
    return e.select(a <= 1.0, e.copysign(inside, x), NAN)


digamma = wide(digamma_wide)
erfinv = wide(erfinv_wide)
