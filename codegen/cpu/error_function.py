"""erf and erfc.

Near zero erf(x) = x + x P(x^2). Further out f32 takes 1 - exp(g(x)) with a polynomial for g = log(erfc), which is cheap;
f64, and erfc, take erfc(x) = exp(-x^2) Q(t) / (1 + 2 x) with t = (x - k) / (x + k), after Shepherd and Laframboise
(Chebyshev Approximation of (1 + 2x) exp(x^2) erfc x, Mathematics of Computation 36, 1981), with x^2 in two parts.
"""

from __future__ import annotations

from dlcompiler.codegen.cpu.emitter import Emitter
from dlcompiler.codegen.cpu.exponential import exp_reduced, exp_reduced_double
from dlcompiler.codegen.cpu.numerics import (
    at_least,
    at_most,
    form,
    polynomial,
    scale,
    scale_normal,
    two_product,
    wide,
)
from dlcompiler.codegen.cpu.value import Value

SMALL = 0.925
# (k, the end of the polynomial, where erfc is 0)
ERFC = {"wide": (2.0, 10.1), "f64": (3.0, 28.0)}


def erf(e: Emitter, x: Value) -> Value:
    """The error function of f32 or f64; 1 from about 4 (f32) or 6 (f64) on."""
    kind = form(x)
    a = e.abs(x)
    small = erf_small(e, x)
    if kind.mantissa_bits == 23:
        p, _, exponent = exp_reduced(e, polynomial(e, "erf_log", at_most(e, a, 4.0), "f32"), "f32")
        large = 1.0 - scale_normal(e, p, exponent)
    else:
        large = 1.0 - erfc_positive(e, at_least(e, at_most(e, a, 6.5), 0.5), "f64")
    return e.select(e.compare("ule", a, SMALL), small, e.copysign(large, x))


def erf_small(e: Emitter, x: Value) -> Value:
    """x + x P(x^2)."""
    return e.fma(polynomial(e, "erf", x * x, x.element), x, x)


def erfc_positive(e: Emitter, x: Value, grade: str) -> Value:
    """erfc of x >= 0 in f64 (grade f64: x >= 0.4)."""
    center, end = ERFC[grade]
    x = at_most(e, x, end)
    square, lost = two_product(e, x, x)
    t = (x - center) / (x + center)
    series = polynomial(e, "erfcx", t, grade)
    if grade == "wide":
        p, n, exponent = exp_reduced(e, -square, grade)
        return scale(e, p * series / e.fma(x, 2.0, 1.0), n, exponent)
    p, p_lost, n, exponent = exp_reduced_double(e, -square)
    bottom = e.fma(x, 2.0, 1.0)
    product, product_lost = two_product(e, p, series)
    quotient = product / bottom
    # what the roundings of x^2, of exp, of the product, of 1 + 2 x and of the quotient left over
    product_lost = e.fma(p_lost, series, e.fma(-lost, product, product_lost))
    bottom_lost = e.fma(x, 2.0, 1.0 - bottom)
    remainder = e.fma(-quotient, bottom, product) + e.fma(-quotient, bottom_lost, product_lost)
    return scale(e, quotient + remainder / bottom, n, exponent)


def erfc_wide(e: Emitter, x: Value, grade: str) -> Value:
    """1 - erf(x), precise where it is small; denormal results too."""
    a = e.abs(x)
    if grade == "wide":
        positive = erfc_positive(e, a, grade)
        return e.select(x < 0.0, 2.0 - positive, positive)
    positive = erfc_positive(e, at_least(e, a, 0.45), grade)
    outside = e.select(x < 0.0, 2.0 - positive, positive)
    return e.select(a < 0.5, 1.0 - erf_small(e, x), outside)


erfc = wide(erfc_wide)
