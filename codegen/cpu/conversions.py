"""Conversions between every two elements, exact where IEEE 754 says what exact is.

Narrowing floats rounds to nearest even and keeps NaN. bf16 goes through integer steps, since the processor's own
instruction flushes denormals. Float to integer truncates; what does not fit gives what x86 gives (the wide integer's
least value, then its low bits), never an LLVM poison.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlcompiler.codegen.cpu.literals import ELEMENT_BITS, FLOATS
from dlcompiler.codegen.cpu.value import Value

if TYPE_CHECKING:
    from dlcompiler.codegen.cpu.emitter import Emitter


def convert(e: Emitter, x: Value, element: str, signed: bool, source_signed: bool) -> Value:
    """`x` as `element`, same lanes. `signed` and `source_signed` say how integers read; i1 is always 0 or 1."""
    if x.element == element:
        return x
    if x.is_float and element in FLOATS:
        return float_to_float(e, x, element)
    if x.is_float:
        return float_to_integer(e, x, element, signed)
    if element in FLOATS:
        return integer_to_float(e, x, element, source_signed and x.element != "i1")
    if element == "i1":
        return e.compare("ne", x, 0)
    if ELEMENT_BITS[element] < x.bits:
        return e.cast("arith.trunci", x, element)
    return e.cast("arith.extsi" if source_signed and x.element != "i1" else "arith.extui", x, element)


def float_to_float(e: Emitter, x: Value, element: str) -> Value:
    if x.element == "bf16":
        widened = e.shl(e.cast("arith.extui", e.bitcast(x, "i16"), "i32"), 16)
        return convert(e, e.bitcast(widened, "f32"), element, True, True)
    if element == "bf16":
        return single_to_bfloat(e, narrow_to_odd(e, x) if x.element == "f64" else convert(e, x, "f32", True, True))
    if x.element == "f16" and element == "f64":
        return e.cast("arith.extf", e.cast("arith.extf", x, "f32"), "f64")
    if x.element == "f64" and element == "f16":
        return e.cast("arith.truncf", narrow_to_odd(e, x), "f16")
    return e.cast("arith.extf" if ELEMENT_BITS[element] > x.bits else "arith.truncf", x, element)


def single_to_bfloat(e: Emitter, x: Value) -> Value:
    """f32 to bf16: add just under half of the part cut off, or exactly half where the part kept is odd (nearest even);
    NaN is kept quiet.
    """
    bits = e.bitcast(x, "i32")
    odd = e.shr(bits, 16, signed=False) & 1
    rounded = e.shr(bits + (odd + 0x7FFF), 16, signed=False)
    quiet = e.shr(bits, 16, signed=False) | 0x40
    return e.bitcast(e.cast("arith.trunci", e.select(e.is_nan(x), quiet, rounded), "i16"), "bf16")


def narrow_to_odd(e: Emitter, x: Value) -> Value:
    """f64 to f32 "rounded to odd": an inexact result has its last bit set, so rounding it again is as if x were rounded once.

    Boldo and Melquiond, "When double rounding is odd" (2005).
    """
    nearest = e.cast("arith.truncf", x, "f32")
    back = e.cast("arith.extf", nearest, "f64")
    bits = e.bitcast(nearest, "i32")
    away = e.compare("gt", e.abs(back), e.abs(x))
    stepped = e.select(away, bits - 1, bits + 1)
    even = e.compare("eq", bits & 1, 0)
    inexact = e.compare("one", back, x)
    return e.bitcast(e.select(even & inexact, stepped, bits), "f32")


def float_to_integer(e: Emitter, x: Value, element: str, signed: bool) -> Value:
    """Truncation towards zero, by way of i32 or i64 where those are wider; to i1 it is `x != 0`, true for NaN."""
    if x.element in ("f16", "bf16"):
        x = convert(e, x, "f32", True, True)
    if element == "i1":
        return e.compare("ne", x, 0.0)
    if element == "i64" and not signed:
        return float_to_unsigned64(e, x)
    wide = "i64" if element == "i64" or (element == "i32" and not signed) else "i32"
    limit = 2.0 ** (ELEMENT_BITS[wide] - 1)
    fits = (x < limit) & (x >= -limit)
    truncated = e.cast("arith.fptosi", e.select(fits, x, -limit), wide)
    return truncated if wide == element else e.cast("arith.trunci", truncated, element)


def float_to_unsigned64(e: Emitter, x: Value) -> Value:
    """Values from 2^63 on are brought down by 2^63, whose bit is put back afterwards."""
    big = x >= 2.0**63
    low = float_to_integer(e, e.select(big, x - 2.0**63, x), "i64", True)
    return e.select(big, low ^ -(2**63), low)


def integer_to_float(e: Emitter, x: Value, element: str, signed: bool) -> Value:
    """Rounded to nearest even; to f16 and bf16 by way of f32, as NumPy does."""
    if x.bits < 32:
        x, signed = e.cast("arith.extsi" if signed else "arith.extui", x, "i32"), True
    operation = "arith.sitofp" if signed else "arith.uitofp"
    if element in ("f32", "f64"):
        return e.cast(operation, x, element)
    return convert(e, e.cast(operation, x, "f32"), element, True, True)
