"""One scalar operation of Kernel IR as MLIR, on a scalar or a vector of any number of lanes."""

from __future__ import annotations

from collections.abc import Callable

from dlcompiler.codegen.cpu.elementary import TABLE
from dlcompiler.codegen.cpu.emitter import Emitter, Value
from dlcompiler.ir.errors import UnsupportedError
from dlcompiler.ir.philox import INCREMENTS, MULTIPLIERS, ROUNDS, WORD
from dlcompiler.ir.scalar import SCALARS
from dlcompiler.ir.types import DType, boolean

_MLIR_NAMES = {"f64": "f64", "f32": "f32", "f16": "f16", "bf16": "bf16", "bool": "i1"}
_COMPARISONS = frozenset({"eq", "ne", "lt", "le", "gt", "ge"})


def element_name(dtype: DType) -> str:
    """MLIR's name for the element type; integers are signless, and complex numbers, which are only moved, as many bits."""
    return _MLIR_NAMES.get(dtype.name, f"i{dtype.bits}")


def convert(e: Emitter, x: Value, source: DType, target: DType) -> Value:
    """`x` of dtype `source` as `target`, as torch converts: to bool by `!= 0`, float to integer towards zero."""
    if source is target:
        return x
    if target is boolean:
        return e.compare("ne", x, 0.0 if x.is_float else 0)
    return e.convert(x, element_name(target), signed=target.kind == "int", source_signed=source.kind == "int")


def bitcast(e: Emitter, x: Value, source: DType, target: DType) -> Value:
    """The same bits as `target`, which is as wide; a bool, one bit in a register, counts as the byte 0 or 1."""
    if boolean in (source, target):
        return convert(e, x, source, target)
    return x if element_name(source) == element_name(target) else e.bitcast(x, element_name(target))


def compute(e: Emitter, op: str, dtype: DType, *operands: Value) -> Value:
    """The operation on operands of `dtype` (of `where`: its last two). Raises UnsupportedError naming op and dtype."""
    if op == "where":
        return e.select(*operands)
    if op in _COMPARISONS:
        return _compare(e, op, dtype, *operands)
    table = _FLOATS if dtype.is_float else _BOOLS if dtype is boolean else _INTEGERS
    if op in table:
        return table[op](e, *operands) if table is not _INTEGERS else table[op](e, dtype, *operands)
    if dtype.is_float and op in TABLE:
        return TABLE[op](e, *operands)
    raise UnsupportedError(f"the CPU target does not spell {op} of {dtype}", items=(f"{op}[{dtype}]",))


def _compare(e: Emitter, op: str, dtype: DType, a: Value, b: Value) -> Value:
    return e.compare(op, a, b, signed=dtype.is_signed)


# -- floats ------------------------------------------------------------------------------------------------------------


def _maximum(e: Emitter, a: Value, b: Value) -> Value:
    return e.maximum(a, b)


def _minimum(e: Emitter, a: Value, b: Value) -> Value:
    return e.minimum(a, b)


def _sign(e: Emitter, x: Value) -> Value:
    """-1, 0 or 1; of NaN 0, as torch."""
    return e.select(
        e.compare("gt", x, 0.0), e.constant(1.0, x), e.select(e.compare("lt", x, 0.0), e.constant(-1.0, x), e.constant(0.0, x))
    )


def _float_fmod(e: Emitter, a: Value, b: Value) -> Value:
    """C's fmod, exact: a loop of the library for each lane."""
    return e.op(a.element, a.lanes, f"arith.remf {{}}, {{}} : {a.type}", a, b)


def _float_remainder(e: Emitter, a: Value, b: Value) -> Value:
    """Python's %: fmod, moved to the divisor's sign; a zero takes the divisor's sign."""
    rest = _float_fmod(e, a, b)
    opposite = e.bit_and(e.compare("ne", rest, 0.0), e.bit_xor(e.compare("lt", rest, 0.0), e.compare("lt", b, 0.0)))
    shifted = e.select(opposite, rest + b, rest)
    return e.select(e.compare("eq", shifted, 0.0), e.copysign(e.constant(0.0, b), b), shifted)


def _float_floor_div(e: Emitter, a: Value, b: Value) -> Value:
    """NumPy's and torch's floor division: from the remainder, so that it agrees with `a - remainder(a, b)` over b."""
    rest = _float_fmod(e, a, b)
    whole = (a - rest) / b
    opposite = e.bit_and(e.compare("ne", rest, 0.0), e.bit_xor(e.compare("lt", rest, 0.0), e.compare("lt", b, 0.0)))
    whole = e.select(opposite, whole - 1.0, whole)
    floored = e.math("floor", whole)
    floored = e.select(e.compare("gt", whole - floored, 0.5), floored + 1.0, floored)
    floored = e.select(e.compare("eq", whole, 0.0), e.copysign(e.constant(0.0, a), a / b), floored)
    return e.select(e.compare("eq", b, 0.0), a / b, floored)


def _is_infinite(e: Emitter, x: Value) -> Value:
    return e.compare("eq", e.abs(x), float("inf"))


def _signbit(e: Emitter, x: Value) -> Value:
    bits = "i64" if x.element == "f64" else "i32"
    return e.compare("lt", e.bitcast(x, bits), 0)


_FLOATS: dict[str, Callable[..., Value]] = {
    "add": lambda e, a, b: e.add(a, b),
    "sub": lambda e, a, b: e.sub(a, b),
    "mul": lambda e, a, b: e.mul(a, b),
    "div": lambda e, a, b: e.div(a, b),
    "neg": lambda e, x: e.neg(x),
    "abs": lambda e, x: e.abs(x),
    "sqrt": lambda e, x: e.sqrt(x),
    "floor": lambda e, x: e.math("floor", x),
    "ceil": lambda e, x: e.math("ceil", x),
    "trunc": lambda e, x: e.math("trunc", x),
    "round": lambda e, x: e.math("roundeven", x),
    "maximum": _maximum,
    "minimum": _minimum,
    "sign": _sign,
    "copysign": lambda e, a, b: e.copysign(a, b),
    "fmod": _float_fmod,
    "remainder": _float_remainder,
    "floor_div": _float_floor_div,
    "trunc_div": lambda e, a, b: e.math("trunc", e.div(a, b)),
    "isnan": lambda e, x: e.is_nan(x),
    "isinf": _is_infinite,
    "isfinite": lambda e, x: e.compare("lt", e.abs(x), float("inf")),
    "signbit": _signbit,
}

# -- bool --------------------------------------------------------------------------------------------------------------

_BOOLS: dict[str, Callable[..., Value]] = {
    "bitwise_and": lambda e, a, b: e.bit_and(a, b),
    "bitwise_or": lambda e, a, b: e.bit_or(a, b),
    "bitwise_xor": lambda e, a, b: e.bit_xor(a, b),
    "bitwise_not": lambda e, x: e.bit_xor(x, e.constant(True, x)),
    "maximum": lambda e, a, b: e.bit_or(a, b),
    "minimum": lambda e, a, b: e.bit_and(a, b),
}

# -- integers ------------------------------------------------------------------------------------------------------------


def _safe_divisor(e: Emitter, dtype: DType, a: Value, b: Value) -> Value:
    """The divisor with what traps taken out: 0, and -1 (the least integer over -1 overflows; x / -1 is handled by `_restore`)."""
    unsafe = e.compare("eq", b, 0)
    if dtype.is_signed:
        unsafe = e.bit_or(unsafe, e.compare("eq", b, -1))
    return e.select(unsafe, e.constant(1, b), b)


def _restore(e: Emitter, dtype: DType, a: Value, b: Value, result: Value, of_minus_one: Callable[[Value], Value]) -> Value:
    """The results that `_safe_divisor` changed: by zero 0, by -1 what `of_minus_one(a)` says."""
    if dtype.is_signed:
        result = e.select(e.compare("eq", b, -1), of_minus_one(a), result)
    return e.select(e.compare("eq", b, 0), e.constant(0, a), result)


def _divide(e: Emitter, dtype: DType, a: Value, b: Value) -> Value:
    quotient = e.div(a, _safe_divisor(e, dtype, a, b), signed=dtype.is_signed)
    return _restore(e, dtype, a, b, quotient, lambda x: e.sub(0, x))


def _rest(e: Emitter, dtype: DType, a: Value, b: Value) -> Value:
    rest = e.rem(a, _safe_divisor(e, dtype, a, b), signed=dtype.is_signed)
    return _restore(e, dtype, a, b, rest, lambda x: e.constant(0, x))


def _rest_has_other_sign(e: Emitter, rest: Value, b: Value) -> Value:
    return e.bit_and(e.compare("ne", rest, 0), e.compare("lt", e.bit_xor(rest, b), 0))


def _integer_floor_div(e: Emitter, dtype: DType, a: Value, b: Value) -> Value:
    quotient = _divide(e, dtype, a, b)
    if not dtype.is_signed:
        return quotient
    return e.select(_rest_has_other_sign(e, _rest(e, dtype, a, b), b), quotient - 1, quotient)


def _integer_remainder(e: Emitter, dtype: DType, a: Value, b: Value) -> Value:
    rest = _rest(e, dtype, a, b)
    return e.select(_rest_has_other_sign(e, rest, b), rest + b, rest) if dtype.is_signed else rest


def _integer_sign(e: Emitter, dtype: DType, x: Value) -> Value:
    positive = e.select(e.compare("ne", x, 0), e.constant(1, x), e.constant(0, x))
    return e.select(e.compare("lt", x, 0), e.constant(-1, x), positive) if dtype.is_signed else positive


def _integer_pow(e: Emitter, dtype: DType, a: Value, b: Value) -> Value:
    """By squaring, one step a bit of the exponent; a negative power is 0 except of 1 and -1."""
    result, base = e.constant(1, a), a
    for bit in range(min(dtype.bits, 6)):  # 2**63 steps: beyond the width every power of |a| > 1 has wrapped to 0 or repeats
        odd = e.compare("ne", e.bit_and(e.shr(b, bit, signed=False), 1), 0)
        result = e.select(odd, result * base, result)
        base = base * base
    if dtype.bits > 6:
        result = _high_power(e, a, b, result, base, dtype)
    if not dtype.is_signed:
        return result
    sign = e.select(e.compare("eq", e.bit_and(b, 1), 0), e.constant(1, a), e.constant(-1, a))
    unit = e.select(e.compare("eq", a, 1), e.constant(1, a), e.select(e.compare("eq", a, -1), sign, e.constant(0, a)))
    return e.select(e.compare("lt", b, 0), unit, result)


def _high_power(e: Emitter, a: Value, b: Value, result: Value, base: Value, dtype: DType) -> Value:
    """The rest of the exponent's bits, in a loop: few exponents have any."""
    rest = e.shr(b, 6, signed=False)
    with e.for_loop(0, dtype.bits - 6, 1, [result, base, rest]) as loop:
        power, square, bits = loop.carried
        odd = e.compare("ne", e.bit_and(bits, 1), 0)
        loop.next(e.select(odd, power * square, power), square * square, e.shr(bits, 1, signed=False))
    return loop.results[0]


def _shift_left(e: Emitter, dtype: DType, a: Value, b: Value) -> Value:
    outside = e.compare("ge", b, dtype.bits, signed=False)
    return e.select(outside, e.constant(0, a), e.shl(a, e.select(outside, e.constant(0, b), b)))


def _shift_right(e: Emitter, dtype: DType, a: Value, b: Value) -> Value:
    outside = e.compare("ge", b, dtype.bits, signed=False)
    if dtype.is_signed:
        return e.shr(a, e.select(outside, e.constant(dtype.bits - 1, b), b), signed=True)
    return e.select(outside, e.constant(0, a), e.shr(a, e.select(outside, e.constant(0, b), b), signed=False))


def _philox(e: Emitter, dtype: DType, index: Value, position: Value, seed: Value) -> Value:
    """Words of the counter are kept in lanes of 64 bits, whose upper halves hold anything: a product reads the lower ones."""

    def low(x: Value) -> Value:
        return e.bit_and(x, WORD)

    def high(x: Value) -> Value:
        return e.shr(x, 32, signed=False)

    c0, c1, c2, c3 = index, high(index), position, high(position)
    k0, k1 = seed, high(seed)
    for number in range(ROUNDS):
        first, second = e.mul(low(c0), MULTIPLIERS[0]), e.mul(low(c2), MULTIPLIERS[1])
        c0, c2 = e.bit_xor(high(second), e.bit_xor(c1, k0)), e.bit_xor(high(first), e.bit_xor(c3, k1))
        c1, c3 = second, first
        if number + 1 < ROUNDS:
            k0, k1 = e.add(k0, INCREMENTS[0]), e.add(k1, INCREMENTS[1])
    return e.bit_or(low(c0), e.shl(c1, 32))


_INTEGERS: dict[str, Callable[..., Value]] = {
    "add": lambda e, d, a, b: e.add(a, b),
    "sub": lambda e, d, a, b: e.sub(a, b),
    "mul": lambda e, d, a, b: e.mul(a, b),
    "neg": lambda e, d, x: e.sub(0, x),
    "abs": lambda e, d, x: e.abs(x) if d.is_signed else x,
    "sign": _integer_sign,
    "maximum": lambda e, d, a, b: e.maximum(a, b, signed=d.is_signed),
    "minimum": lambda e, d, a, b: e.minimum(a, b, signed=d.is_signed),
    "trunc_div": _divide,
    "floor_div": _integer_floor_div,
    "fmod": _rest,
    "remainder": _integer_remainder,
    "pow": _integer_pow,
    "bitwise_and": lambda e, d, a, b: e.bit_and(a, b),
    "bitwise_or": lambda e, d, a, b: e.bit_or(a, b),
    "bitwise_xor": lambda e, d, a, b: e.bit_xor(a, b),
    "bitwise_not": lambda e, d, x: e.bit_xor(x, e.constant(-1, x)),
    "shift_left": _shift_left,
    "shift_right": _shift_right,
    "philox": _philox,
}


def spelled(op: str, dtype: DType) -> bool:
    """Whether `compute` knows the operation for the dtype."""
    if op == "where" or op in _COMPARISONS:
        return dtype.kind != "complex"
    table = _FLOATS if dtype.is_float else _BOOLS if dtype is boolean else _INTEGERS
    return (op in table and SCALARS[op].accepts(dtype)) or (dtype.is_float and op in TABLE)
