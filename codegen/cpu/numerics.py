"""The small pieces that the elementary functions are made of: polynomials, exact sums, powers of two, ranges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dlcompiler.codegen.cpu.emitter import Emitter
from dlcompiler.codegen.cpu.polynomials import COEFFICIENTS
from dlcompiler.codegen.cpu.value import Value

Function = Callable[..., Value]


@dataclass(frozen=True)
class Format:
    """The constants of a float format; pairs are a value rounded to the format and what that leaves over."""

    integer: str
    mantissa_bits: int
    bias: int
    smallest_normal: float
    infinity_bits: int
    log2e: tuple[float, float]
    ln2: tuple[float, float]
    log10e: tuple[float, float]
    log10_2: tuple[float, float]
    half_pi: tuple[float, float]

    @property
    def rounder(self) -> float:
        """Added to a small number, it leaves the nearest integer in the low mantissa bits."""
        return 1.5 * 2.0**self.mantissa_bits


FORMATS = {
    "f32": Format(
        "i32", 23, 127, 2.0**-126, 0x7F800000,
        log2e=(1.4426950216293335, 1.925963033500011e-08),
        ln2=(0.6931471824645996, -1.9046542121259336e-09),
        log10e=(0.4342944920063019, -1.0103049952192578e-08),
        log10_2=(0.3010300099849701, -1.432098883924482e-08),
        half_pi=(1.5707963705062866, -4.371138828673793e-08),
    ),
    "f64": Format(
        "i64", 52, 1023, 2.0**-1022, 0x7FF0000000000000,
        log2e=(1.4426950408889634, 2.0355273740931033e-17),
        ln2=(0.6931471805599453, 2.3190468138462996e-17),
        log10e=(0.4342944819032518, 1.098319650216765e-17),
        log10_2=(0.3010299956639812, -2.8037281277851704e-18),
        half_pi=(1.5707963267948966, 6.123233995736766e-17),
    ),
}  # fmt: skip
INFINITY = float("inf")
NAN = float("nan")


def form(x: Value) -> Format:
    """The format of a float value; TypeError for one that has no arithmetic."""
    if x.element not in FORMATS:
        raise TypeError(f"elementary functions take f32 or f64, not {x.type}: convert first")
    return FORMATS[x.element]


def wide(function: Function) -> Function:
    """`function(e, *values, grade=...)` in f64 arithmetic: f32 values go there and back, with shorter polynomials."""

    def apply(e: Emitter, *values: Value) -> Value:
        if form(values[0]) is FORMATS["f64"]:
            return function(e, *values, grade="f64")
        return e.convert(function(e, *(e.convert(value, "f64") for value in values), grade="wide"), "f32")

    apply.__doc__ = function.__doc__
    return apply


def horner(e: Emitter, x: Value, coefficients: Sequence[float]) -> Value:
    """The polynomial with these coefficients, lowest power first, by fused multiply-adds."""
    result = e.constant(coefficients[-1], x)
    for coefficient in reversed(coefficients[:-1]):
        result = e.fma(result, x, coefficient)
    return result


def polynomial(e: Emitter, name: str, x: Value, grade: str) -> Value:
    """A polynomial of polynomials.py at x."""
    return horner(e, x, COEFFICIENTS[name, grade])


def at_least(e: Emitter, x: Value, low: float) -> Value:
    """max(x, low), NaN kept; one instruction."""
    return e.select(x < low, low, x)


def at_most(e: Emitter, x: Value, high: float) -> Value:
    """min(x, high), NaN kept; one instruction."""
    return e.select(x > high, high, x)


def fast_two_sum(a: Value, b: Value) -> tuple[Value, Value]:
    """a + b rounded, and its error, if |a| >= |b| or a = 0 (Dekker 1971)."""
    total = a + b
    return total, b - (total - a)


def two_sum(a: Value, b: Value) -> tuple[Value, Value]:
    """a + b rounded, and its error (Knuth, TAOCP 4.2.2)."""
    total = a + b
    other = total - a
    return total, (a - (total - other)) + (b - other)


def two_product(e: Emitter, a: Value, b: Value) -> tuple[Value, Value]:
    """a * b rounded, and its error."""
    product = a * b
    return product, e.fma(a, b, -product)


def nearest(e: Emitter, x: Value, factor: float = 1.0) -> tuple[Value, Value]:
    """The integer nearest to x * factor, as a float and as an integer; |x * factor| must be below 2^(mantissa bits - 2)."""
    kind = form(x)
    shifted = e.fma(x, factor, kind.rounder)
    return shifted - kind.rounder, e.bitcast(shifted, kind.integer) - e.bitcast(e.constant(kind.rounder, x), kind.integer)


def power_of_two(e: Emitter, exponent: Value, element: str) -> Value:
    """2^exponent of an integer in the normal range."""
    kind = FORMATS[element]
    return e.bitcast((exponent + kind.bias) << kind.mantissa_bits, element)


def scale(e: Emitter, x: Value, n: Value, exponent: Value) -> Value:
    """x * 2^n, rounded once, for |x| about 1 and |n| < 2 * bias; `exponent` is n as an integer.

    By AVX-512's own instruction if the machine has it, else in two steps: the first is exact, the second may underflow.
    """
    if e.machine is not None and e.machine.has_masks and x.lanes * x.bits % 512 == 0 and x.lanes:
        return by_registers(e, _scale_register, x, n)
    half = exponent >> 1
    return (x * power_of_two(e, half, x.element)) * power_of_two(e, exponent - half, x.element)


def _scale_register(e: Emitter, x: Value, n: Value) -> Value:
    """VSCALEF of one 512-bit register."""
    name, mask = ("ps", "i16") if x.element == "f32" else ("pd", "i8")
    everywhere, rounding = e.constant(-1, mask), e.constant(4, "i32")
    kinds = f"({x.type}, {x.type}, {x.type}, {mask}, i32) -> {x.type}"
    call = f'llvm.call_intrinsic "llvm.x86.avx512.mask.scalef.{name}.512"({{}}, {{}}, {{}}, {{}}, {{}}) : {kinds}'
    return e.op(x.element, x.lanes, call, x, n, x, everywhere, rounding)


def by_registers(e: Emitter, function: Function, *values: Value) -> Value:
    """A function of 512-bit registers applied to longer vectors piece by piece."""
    lanes = 512 // values[0].bits
    if values[0].lanes == lanes:
        return function(e, *values)
    half = values[0].lanes // 2
    parts = [
        by_registers(e, function, *(e.shuffle(value, value, range(start, start + half)) for value in values))
        for start in (0, half)
    ]
    return e.shuffle(parts[0], parts[1], range(2 * half))


def scale_normal(e: Emitter, x: Value, exponent: Value) -> Value:
    """x * 2^exponent where neither under- nor overflows: an addition to the exponent field."""
    kind = form(x)
    return e.bitcast(e.bitcast(x, kind.integer) + (exponent << kind.mantissa_bits), x.element)
