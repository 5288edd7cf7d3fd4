"""How a Python number is spelled as an MLIR literal, to the bit."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import TypeAlias

Number: TypeAlias = int | float | bool

ELEMENT_BITS = {
    "f32": 32, "f64": 64, "f16": 16, "bf16": 16, "i1": 1, "i8": 8, "i16": 16, "i32": 32, "i64": 64, "i128": 128, "ptr": 64,
}  # fmt: skip
FLOATS = ("f32", "f64", "f16", "bf16")
PACK_CODE = {"f64": ("<d", "<Q"), "f32": ("<f", "<I"), "f16": ("<e", "<H")}


def float_bits(value: float, element: str) -> int:
    """The bit pattern of `value` rounded to nearest even in `element`; values too large become infinity."""
    if element == "bf16":
        bits = float_bits(value, "f32")
        if math.isnan(value):
            return bits >> 16 | 0x40
        return bits + 0x7FFF + (bits >> 16 & 1) >> 16
    code, integer = PACK_CODE[element]
    try:
        packed = struct.pack(code, value)
    except OverflowError:
        packed = struct.pack(code, math.copysign(math.inf, value))
    return int(struct.unpack(integer, packed)[0])


def float_literal(value: float, element: str) -> str:
    """Decimal where that is exact and readable, else the bit pattern (nan, infinities, -0.0, f16 and bf16)."""
    bits = float_bits(value, element)
    if element in ("f32", "f64"):
        code, integer = PACK_CODE[element]
        rounded = struct.unpack(code, struct.pack(integer, bits))[0]
        if math.isfinite(rounded) and (rounded != 0.0 or bits == 0):
            text = repr(rounded)
            return text if "." in text else text.replace("e", ".0e")
    return f"0x{bits:0{ELEMENT_BITS[element] // 4}X}"


def scalar_literal(value: Number, element: str) -> str:
    """One number as `element`; integers wrap around to the signed range of their width."""
    if element in FLOATS:
        return float_literal(float(value), element)
    if element == "i1":
        return "true" if value else "false"
    bits = ELEMENT_BITS[element]
    if int(value) != value:
        raise TypeError(f"{value!r} is no integer, so it cannot be a constant of {element}")
    wrapped = int(value) & (1 << bits) - 1
    return str(wrapped - (1 << bits) if wrapped >> bits - 1 else wrapped)


def literal(value: Number | Sequence[Number], element: str, lanes: int) -> str:
    """The attribute of an `arith.constant`, without its type: a number, a splat or a list with one number a lane."""
    if isinstance(value, (list, tuple)):
        if len(value) != lanes:
            raise ValueError(f"{len(value)} numbers for {lanes} lanes")
        return f"dense<[{', '.join(scalar_literal(number, element) for number in value)}]>"
    assert not isinstance(value, Sequence)
    text = scalar_literal(value, element)
    return f"dense<{text}>" if lanes else text
