"""One scalar operation of Kernel IR as an expression of Triton's language."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from dlcompiler.ir.errors import UnsupportedError
from dlcompiler.ir.scalar import SCALARS
from dlcompiler.ir.types import DType, bf16, boolean

_NAMES = {"f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16", "bool": "int1"}
_POINTERS = {"f64": "fp64", "f32": "fp32", "f16": "fp16", "bf16": "bf16", "bool": "i1"}
# 8-bit floats that GPUs from sm_89 on convert and multiply
EIGHT_BIT = {"f8e4m3fn": "tl.float8e4nv", "f8e5m2": "tl.float8e5"}
_OPERATORS = {"add": "+", "sub": "-", "mul": "*", "bitwise_and": "&", "bitwise_or": "|", "bitwise_xor": "^"}
_COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}

# Functions of CUDA's libdevice; errors are those of its documentation, at most 2 ulp for nearly all.
LIBDEVICE = {
    name: name for name in "expm1 log10 log1p tan asin acos atan sinh cosh tanh asinh acosh atanh erfc erfinv lgamma".split()
}
LIBDEVICE |= {
    "atan2": "atan2",
    "hypot": "hypot",
    "copysign": "copysign",
    "fmod": "fmod",
    "pow": "pow",
    "round": "rint",
    "trunc": "trunc",
}
_LANGUAGE = {
    "exp": "exp",
    "exp2": "exp2",
    "log": "log",
    "log2": "log2",
    "sin": "sin",
    "cos": "cos",
    "rsqrt": "rsqrt",
    "erf": "erf",
}
_LANGUAGE |= {"floor": "floor", "ceil": "ceil", "abs": "abs"}


def type_name(dtype: DType) -> str:
    """As `tl.float32`."""
    _require_real(dtype)
    return "tl." + _NAMES.get(dtype.name, f"{'u' if dtype.kind in ('uint', 'narrow') else ''}int{dtype.bits}")


def pointer_name(dtype: DType) -> str:
    """As `*fp32`, what `ASTSource` calls a pointer to the dtype."""
    _require_real(dtype)
    return "*" + _POINTERS.get(dtype.name, f"u{dtype.bits}" if dtype.is_narrow else dtype.name)


def _require_real(dtype: DType) -> None:
    if dtype.kind == "complex":
        raise UnsupportedError(f"kernels do not compute with {dtype}", items=(dtype.name,))


def constant(value: object, dtype: DType, shape: str = "[]") -> str:
    """A number with exactly this type: a bare literal would be float32 beside a float64 tensor. `shape` is text, as `[ROWS]`."""
    text = repr(value)
    if dtype.is_float:
        number = float(value)  # type: ignore[arg-type]
        text = f'float("{number}")' if not math.isfinite(number) else repr(number)
    return f"tl.full({shape}, {text}, {type_name(dtype)})"


def compute(op: str, dtype: DType, *x: str) -> str:
    """The operation on operands of `dtype` (of `where`: its last two). Raises UnsupportedError naming op and dtype."""
    if op == "where":
        return f"tl.where({', '.join(x)})"
    if op in _COMPARISONS:
        return f"{x[0]} {_COMPARISONS[op]} {x[1]}"
    table = _FLOATS if dtype.is_float else _BOOLS if dtype is boolean else _INTEGERS
    if op in table:
        return table[op](dtype, *x)
    if op in _OPERATORS and dtype is not boolean or op.startswith("bitwise_") and op in _OPERATORS:
        return f"{x[0]} {_OPERATORS[op]} {x[1]}"
    if dtype.is_float and op in _LANGUAGE:
        return f"tl.{_LANGUAGE[op]}({', '.join(x)})"
    if dtype.is_float and op in LIBDEVICE:
        return f"libdevice.{LIBDEVICE[op]}({', '.join(x)})"
    raise UnsupportedError(f"the Triton target does not spell {op} of {dtype}", items=(f"{op}[{dtype}]",))


def spelled(op: str, dtype: DType) -> bool:
    """Whether `compute` knows the operation for the dtype."""
    if op == "where" or op in _COMPARISONS:
        return dtype.kind != "complex"
    table = _FLOATS if dtype.is_float else _BOOLS if dtype is boolean else _INTEGERS
    operator = op in _OPERATORS and (dtype is not boolean or op.startswith("bitwise_")) and SCALARS[op].accepts(dtype)
    return (op in table and SCALARS[op].accepts(dtype)) or operator or (dtype.is_float and (op in _LANGUAGE or op in LIBDEVICE))


def cast(x: str, source: DType, target: DType) -> str:
    """`x` converted as torch converts: integers become bfloat16 by way of float32."""
    if target is bf16 and not source.is_float:
        return f"({x}).to(tl.float32).to(tl.bfloat16)"
    return f"{x} != 0" if target is boolean else f"({x}).to({type_name(target)})"


def bitcast(x: str, source: DType, target: DType) -> str:
    """The same bits as `target`, which is as wide."""
    if boolean in (source, target):
        return cast(x, source, target)
    return f"({x}).to({type_name(target)}, bitcast=True)"


def half_of_eighth(x: str, dtype: DType) -> str:
    """An 8-bit float, given as bytes, as float16, which holds all of them; for GPUs that do not know them."""
    return f"_half_of_{dtype.name}({x})"


def _bits(dtype: DType) -> str:
    return f"tl.int{dtype.bits}"


def _nan_aware(name: str) -> Callable[..., str]:
    return lambda d, a, b: f"tl.{name}({a}, {b}, propagate_nan=tl.PropagateNan.ALL)"


_FLOATS: dict[str, Callable[..., str]] = {
    # `/` and tl.sqrt are approximate for float32
    "div": lambda d, a, b: f"tl.div_rn({a}, {b})" if d.bits == 32 else f"{a} / {b}",
    "sqrt": lambda d, x: f"tl.sqrt_rn({x})" if d.bits == 32 else f"tl.sqrt({x})",
    "neg": lambda d, x: f"-{x}",
    "maximum": _nan_aware("maximum"),
    "minimum": _nan_aware("minimum"),
    "sign": lambda d, x: f"({x} > 0).to({type_name(d)}) - ({x} < 0).to({type_name(d)})",
    "sigmoid": lambda d, x: f"1 / (1 + tl.exp(-{x}))",
    "isnan": lambda d, x: f"{x} != {x}",
    "isinf": lambda d, x: f'tl.abs({x}) == float("inf")',
    "isfinite": lambda d, x: f'tl.abs({x}) < float("inf")',
    "signbit": lambda d, x: f"{x}.to({_bits(d)}, bitcast=True) < 0",
    "trunc_div": lambda d, a, b: f"libdevice.trunc({a} / {b})",
    "remainder": lambda d, a, b: f"_float_remainder({a}, {b})",
    "floor_div": lambda d, a, b: f"_float_floor_div({a}, {b})",
}

_BOOLS: dict[str, Callable[..., str]] = {
    "bitwise_not": lambda d, x: f"{x} == 0",
    "maximum": lambda d, a, b: f"{a} | {b}",
    "minimum": lambda d, a, b: f"{a} & {b}",
}


def _safe(b: str) -> str:
    return f"tl.where({b} == 0, 1, {b})"


_INTEGERS: dict[str, Callable[..., str]] = {
    "neg": lambda d, x: f"0 - {x}",
    "abs": lambda d, x: f"tl.abs({x})" if d.is_signed else x,
    "sign": lambda d, x: f"({x} > 0).to({type_name(d)}) - ({x} < 0).to({type_name(d)})",
    "maximum": lambda d, a, b: f"tl.maximum({a}, {b})",
    "minimum": lambda d, a, b: f"tl.minimum({a}, {b})",
    "bitwise_not": lambda d, x: f"~{x}",
    # integer division by zero gives 0; `//` and `%` round towards zero, as in C
    "trunc_div": lambda d, a, b: f"tl.where({b} == 0, 0, {a} // {_safe(b)}).to({type_name(d)})",
    "fmod": lambda d, a, b: f"tl.where({b} == 0, 0, {a} % {_safe(b)}).to({type_name(d)})",
    "floor_div": lambda d, a, b: f"_floor_div({a}, {b}).to({type_name(d)})",
    "remainder": lambda d, a, b: f"_remainder({a}, {b}).to({type_name(d)})",
    "shift_left": lambda d, a, b: f"tl.where(({b} >= 0) & ({b} < {d.bits}), {a} << ({b} & {d.bits - 1}), 0).to({type_name(d)})",
    "shift_right": lambda d, a, b: (
        f"({a} >> tl.where(({b} >= 0) & ({b} < {d.bits}), {b}, {d.bits - 1}).to({type_name(d)}))"
        if d.is_signed
        else f"tl.where({b} < {d.bits}, {a} >> ({b} & {d.bits - 1}), 0).to({type_name(d)})"
    ),
    "philox": lambda d, index, position, seed: f"_philox({index}, {position}, {seed})",
}

# Functions that a kernel may call, by name; a file of kernels has those that it needs at its top.
HELPERS: dict[str, str] = {
    "_half_of_f8e4m3fn": '''
@triton.jit
def _half_of_f8e4m3fn(code):
    """Seven bits are where float16 has them, but for the exponent's bias."""
    bits = code.to(tl.uint16)
    number = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True) * 256.0
    return tl.where((bits & 0x7F) == 0x7F, float("nan"), number).to(tl.float16)
''',
    "_half_of_f8e5m2": '''
@triton.jit
def _half_of_f8e5m2(code):
    """The upper half of a float16."""
    return (code.to(tl.uint16) << 8).to(tl.float16, bitcast=True)
''',
    "_maximum": """
@triton.jit
def _maximum(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
""",
    "_minimum": """
@triton.jit
def _minimum(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)
""",
    "_add": """
@triton.jit
def _add(a, b):
    return a + b
""",
    "_mul": """
@triton.jit
def _mul(a, b):
    return a * b
""",
    "_and": """
@triton.jit
def _and(a, b):
    return a & b
""",
    "_or": """
@triton.jit
def _or(a, b):
    return a | b
""",
    "_argmax": '''
@triton.jit
def _argmax(a, i, b, j):
    """NaN beats all; of equal values the first position wins."""
    wins = ((b > a) & (a == a)) | ((b != b) & (a == a)) | (((b == a) | ((b != b) & (a != a))) & (j < i))
    return tl.where(wins, b, a), tl.where(wins, j, i)
''',
    "_argmin": """
@triton.jit
def _argmin(a, i, b, j):
    wins = ((b < a) & (a == a)) | ((b != b) & (a == a)) | (((b == a) | ((b != b) & (a != a))) & (j < i))
    return tl.where(wins, b, a), tl.where(wins, j, i)
""",
    "_floor_div": """
@triton.jit
def _floor_div(a, b):
    safe = tl.where(b == 0, 1, b)
    whole = a // safe
    return tl.where(b == 0, 0, whole - ((a - whole * safe != 0) & ((a < 0) != (b < 0))).to(whole.dtype))
""",
    "_remainder": """
@triton.jit
def _remainder(a, b):
    safe = tl.where(b == 0, 1, b)
    rest = a % safe
    return tl.where(b == 0, 0, tl.where((rest != 0) & ((rest < 0) != (b < 0)), rest + b, rest))
""",
    "_philox": '''
@triton.jit
def _philox(index, position, seed):
    """Random bits: two words of Philox 4x32-10 for a counter of index and position."""
    c0, c1 = index.to(tl.uint32), (index >> 32).to(tl.uint32)
    c2, c3 = position.to(tl.uint32), (position >> 32).to(tl.uint32)
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        first, second = c0.to(tl.uint64) * 0xD2511F53, c2.to(tl.uint64) * 0xCD9E8D57
        c0, c1 = (second >> 32).to(tl.uint32) ^ c1 ^ k0, second.to(tl.uint32)
        c2, c3 = (first >> 32).to(tl.uint32) ^ c3 ^ k1, first.to(tl.uint32)
        k0, k1 = (k0 + 0x9E3779B9).to(tl.uint32), (k1 + 0xBB67AE85).to(tl.uint32)
    return c0.to(tl.int64) | (c1.to(tl.int64) << 32)
''',
    "_float_remainder": """
@triton.jit
def _float_remainder(a, b):
    rest = libdevice.fmod(a, b)
    return tl.where((rest != 0) & ((rest < 0) != (b < 0)), rest + b, rest)
""",
    "_float_floor_div": """
@triton.jit
def _float_floor_div(a, b):
    rest = libdevice.fmod(a, b)
    whole = (a - rest) / b - ((rest != 0) & ((rest < 0) != (b < 0))).to(a.dtype)
    low = tl.floor(whole)
    return tl.where(b == 0, a / b, tl.where(whole - low > 0.5, low + 1, low))
""",
}


def helpers_used(text: str) -> str:
    """The helper functions that a kernel's text calls, as text."""
    return "".join(body for name, body in HELPERS.items() if re.search(rf"\b{name}\b", text))
