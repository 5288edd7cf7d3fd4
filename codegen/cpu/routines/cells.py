"""What the cells of recurrent layers compute with: sigmoid and tanh as fractions that share their divisions.

Results are within a few units in the last place of a number of size 1; NaN stays NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

from dlcompiler.codegen.cpu.emitter import Emitter
from dlcompiler.codegen.cpu.numerics import at_least, at_most, form, nearest, polynomial, power_of_two, scale
from dlcompiler.codegen.cpu.value import Value

# e^x is asked for within these, where it is a normal number; beyond, sigmoid and tanh are 0 or 1 to the last bit that matters
SIGMOID_RANGE = {"f32": 87.0, "f64": 708.0}
TANH_RANGE = {"f32": 10.0, "f64": 20.0}


def _reduced(e: Emitter, x: Value) -> tuple[Value, Value, Value]:
    """(e^r - 1, n, n as an integer) with x = n ln 2 + r."""
    kind = form(x)
    n, exponent = nearest(e, x, kind.log2e[0])
    r = e.fma(n, -kind.ln2[1], e.fma(n, -kind.ln2[0], x))
    return e.fma(polynomial(e, "exp", r, x.element), r, 1.0) * r, n, exponent


def one_and_decay(e: Emitter, x: Value) -> tuple[Value, Value]:
    """(1 + e^-x, e^-x): sigmoid(x) is one divided by the first."""
    limit = SIGMOID_RANGE[x.element]
    less_one, n, exponent = _reduced(e, at_most(e, at_least(e, -x, -limit), limit))
    p = less_one + 1.0
    has_scale = e.machine is not None and e.machine.has_masks
    decay = scale(e, p, n, exponent) if has_scale else p * power_of_two(e, exponent, x.element)
    return decay + 1.0, decay


def growth(e: Emitter, x: Value) -> Value:
    """e^2x - 1 =: g, to the last bits also near 0: tanh(x) is g / (g + 2)."""
    limit = 2 * TANH_RANGE[x.element]
    less_one, _, exponent = _reduced(e, at_most(e, at_least(e, x + x, -limit), limit))
    power = power_of_two(e, exponent, x.element)
    return e.fma(power, less_one, power - 1.0)


def tanh(e: Emitter, x: Value) -> Value:
    g = growth(e, x)
    return g / (g + 2.0)


def lstm_cell(e: Emitter, sums: Sequence[Value], c: Value) -> tuple[Value, Value]:
    """(c, h) from the sums of the gates i, f, g, o: three divisions instead of five."""
    i, f, g, o = sums
    grown = growth(e, g)
    new_c = c / one_and_decay(e, f)[0] + grown / ((grown + 2.0) * one_and_decay(e, i)[0])
    grown_c = growth(e, new_c)
    return new_c, grown_c / ((grown_c + 2.0) * one_and_decay(e, o)[0])


def lstm_cell_kept(e: Emitter, sums: Sequence[Value], c: Value) -> tuple[Value, ...]:
    """(c, h), and what `ir.ops.recurrent_training` keeps of a step."""
    i, f, g, o = sums
    i, f, g, o = 1.0 / one_and_decay(e, i)[0], 1.0 / one_and_decay(e, f)[0], tanh(e, g), 1.0 / one_and_decay(e, o)[0]
    new_c = e.fma(f, c, i * g)
    grown = tanh(e, new_c)
    h = o * grown
    return new_c, h, g * i * (1.0 - i), c * f * (1.0 - f), i * (1.0 - g * g), h * (1.0 - o), o * (1.0 - grown * grown), f


def gru_cell(e: Emitter, sums: Sequence[Value], inner: Value, h: Value) -> Value:
    """h from the sums of r and z, the recurrent product of n, and n's gate of the input."""
    r, z, product = sums
    n = tanh(e, inner + product / one_and_decay(e, r)[0])
    one, decay = one_and_decay(e, z)
    return e.fma(n, decay, h) / one


def gru_cell_kept(e: Emitter, sums: Sequence[Value], inner: Value, h: Value) -> tuple[Value, ...]:
    """h, and what `ir.ops.recurrent_training` keeps of a step."""
    r, z, product = sums
    r, z = 1.0 / one_and_decay(e, r)[0], 1.0 / one_and_decay(e, z)[0]
    n = tanh(e, e.fma(r, product, inner))
    rest, less = 1.0 - z, h - n
    return e.fma(z, less, n), r, z, rest * (1.0 - n * n), less * z * rest, product * r * (1.0 - r)
