"""One scalar operation of Kernel IR as an expression of CUDA C++, with no header included."""

from __future__ import annotations

import math
from collections.abc import Callable

from dlcompiler.ir.errors import UnsupportedError
from dlcompiler.ir.types import DType, boolean

# What a value is computed in, and what an element is stored as (half precision: its bits).
COMPUTED = {"f64": "double", "f32": "float", "bool": "bool"}
INTEGERS = {8: "signed char", 16: "short", 32: "int", 64: "long long"}
_COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_OPERATORS = {"add": "+", "sub": "-", "mul": "*", "bitwise_and": "&", "bitwise_or": "|", "bitwise_xor": "^"}
# functions that C++ calls the same, with an f for float
_FUNCTIONS = {
    name: name
    for name in (
        "exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh erf erfc erfinv lgamma "
        "floor ceil trunc sqrt rsqrt atan2 hypot copysign fmod pow"
    ).split()
} | {"abs": "fabs", "round": "rint"}


def computed_type(dtype: DType) -> str:
    """The C++ type in which values of a dtype are computed. Raises UnsupportedError for one that kernels do not compute with."""
    if dtype.name in ("f16", "bf16"):
        return "float"
    if dtype.name in COMPUTED:
        return COMPUTED[dtype.name]
    if dtype.kind not in ("int", "uint"):
        raise UnsupportedError(f"kernels do not compute with {dtype}", items=(dtype.name,))
    return INTEGERS[dtype.bits] if dtype.kind == "int" else f"unsigned {INTEGERS[dtype.bits].removeprefix('signed ')}"


def stored_type(dtype: DType) -> str:
    """The C++ type of an element in memory."""
    return "unsigned short" if dtype.name in ("f16", "bf16") else "unsigned char" if dtype is boolean else computed_type(dtype)


def loaded(text: str, dtype: DType) -> str:
    """A stored element as a number."""
    return f"{dtype.name}_to_float({text})" if dtype.name in ("f16", "bf16") else f"({text} != 0)" if dtype is boolean else text


def stored(text: str, dtype: DType) -> str:
    """A number as a stored element."""
    return f"float_to_{dtype.name}({text})" if dtype.name in ("f16", "bf16") else text


def rounded(text: str, dtype: DType) -> str:
    """A number as it is after it was stored: half precision is computed in float."""
    return f"{dtype.name}_to_float(float_to_{dtype.name}({text}))" if dtype.name in ("f16", "bf16") else text


def constant(value: object, dtype: DType) -> str:
    """A number with exactly this type."""
    if dtype is boolean:
        return "true" if value else "false"
    kind = computed_type(dtype)
    if not dtype.is_float:
        low = dtype.kind == "int" and int(value) == -(1 << 63)  # type: ignore[call-overload]
        return f"{kind}(-9223372036854775807LL - 1)" if low else f"({kind})({value}{'ULL' if dtype.kind == 'uint' else 'LL'})"
    number = float(value)  # type: ignore[arg-type]
    if math.isnan(number):
        return f"({kind})(__longlong_as_double(0x7ff8000000000000LL))"
    if math.isinf(number):
        return f"{'-' if number < 0 else ''}({kind})(__longlong_as_double(0x7ff0000000000000LL))"
    return f"{number!r}{'f' if kind == 'float' else ''}"


def compute(op: str, dtype: DType, *x: str) -> str:
    """The operation on operands of `dtype` (of `where`: its last two). Raises UnsupportedError naming op and dtype."""
    if op == "where":
        return f"{x[0]} ? {x[1]} : {x[2]}"
    if op in _COMPARISONS:
        return f"{x[0]} {_COMPARISONS[op]} {x[1]}"
    table = _FLOATS if dtype.is_float else _BOOLS if dtype is boolean else _INTEGERS
    if op in table:
        return table[op](dtype, *x)
    if op in _OPERATORS and not (dtype.is_float and op.startswith("bitwise")) and not (dtype is boolean and "bitwise" not in op):
        text = f"{x[0]} {_OPERATORS[op]} {x[1]}"
        return text if dtype.is_float else f"({computed_type(dtype)})({text})"  # small integers are widened by C++
    if dtype.is_float and op in _FUNCTIONS:
        return f"{_FUNCTIONS[op]}{'' if dtype.bits == 64 else 'f'}({', '.join(x)})"
    raise UnsupportedError(f"the CUDA writer does not spell {op} of {dtype}", items=(f"{op}[{dtype}]",))


def cast(x: str, source: DType, target: DType) -> str:
    """`x` converted as torch converts."""
    if target.name in ("f16", "bf16") and source.is_float:
        return f"({computed_type(target)})({x})"  # rounded when it is stored
    return f"{x} != 0" if target is boolean else f"({computed_type(target)})({x})"


_FLOATS: dict[str, Callable[..., str]] = {
    "div": lambda d, a, b: f"{a} / {b}",
    "neg": lambda d, x: f"-{x}",
    "maximum": lambda d, a, b: f"maximum({a}, {b})",
    "minimum": lambda d, a, b: f"minimum({a}, {b})",
    "sign": lambda d, x: f"({computed_type(d)})(({x} > 0) - ({x} < 0))",
    "sigmoid": lambda d, x: f"1 / (1 + exp{'' if d.bits == 64 else 'f'}(-{x}))",
    "isnan": lambda d, x: f"{x} != {x}",
    "isinf": lambda d, x: f"isinf({x})",
    "isfinite": lambda d, x: f"isfinite({x})",
    "signbit": lambda d, x: f"signbit({x})",
}
_BOOLS: dict[str, Callable[..., str]] = {
    "bitwise_not": lambda d, x: f"!{x}",
    "maximum": lambda d, a, b: f"{a} || {b}",
    "minimum": lambda d, a, b: f"{a} && {b}",
}
_INTEGERS: dict[str, Callable[..., str]] = {
    "neg": lambda d, x: f"({computed_type(d)})(0 - {x})",
    "abs": lambda d, x: f"({computed_type(d)})({x} < 0 ? 0 - {x} : {x})" if d.is_signed else x,
    "sign": lambda d, x: f"({computed_type(d)})(({x} > 0) - ({x} < 0))",
    "maximum": lambda d, a, b: f"maximum({a}, {b})",
    "minimum": lambda d, a, b: f"minimum({a}, {b})",
    "bitwise_not": lambda d, x: f"({computed_type(d)})(~{x})",
    "trunc_div": lambda d, a, b: f"({computed_type(d)})({b} == 0 ? 0 : {a} / {b})",
    "fmod": lambda d, a, b: f"({computed_type(d)})({b} == 0 ? 0 : {a} % {b})",
    "philox": lambda d, index, position, seed: f"philox({index}, {position}, {seed})",
}

# Device functions that a kernel may call, by name.
HELPERS = {
    "maximum": """template <typename T> __device__ T maximum(T a, T b) { return (a > b || a != a) ? a : b; }  // NaN beats all
""",
    "minimum": """template <typename T> __device__ T minimum(T a, T b) { return (a < b || a != a) ? a : b; }
""",
    "floor_div": """template <typename T> __device__ T floor_div(T a, T b) {
    const T q = a / b;
    return q - (a % b != 0 && (a < 0) != (b < 0));
}
""",
    "floor_mod": """template <typename T> __device__ T floor_mod(T a, T b) {
    const T r = a % b;
    return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}
""",
    "philox": """__device__ long long philox(long long index, long long position, long long seed) {  // Philox 4x32-10
    unsigned c0 = (unsigned)index, c1 = (unsigned)(index >> 32), c2 = (unsigned)position, c3 = (unsigned)(position >> 32);
    unsigned k0 = (unsigned)seed, k1 = (unsigned)(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const unsigned long long first = 0xD2511F53ULL * c0, second = 0xCD9E8D57ULL * c2;
        c0 = (unsigned)(second >> 32) ^ c1 ^ k0;
        c1 = (unsigned)second;
        c2 = (unsigned)(first >> 32) ^ c3 ^ k1;
        c3 = (unsigned)first;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (long long)(c0 | (unsigned long long)c1 << 32);
}
""",
    "bf16_to_float": """__device__ float bf16_to_float(unsigned short x) { return __int_as_float((int)x << 16); }
""",
    "float_to_bf16": """__device__ unsigned short float_to_bf16(float x) {  // to nearest, ties to even
    unsigned bits = (unsigned)__float_as_int(x);
    return x != x ? 0x7fff : (unsigned short)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
""",
    "f16_to_float": """__device__ float f16_to_float(unsigned short x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}
""",
    "float_to_f16": """__device__ unsigned short float_to_f16(float x) {
    unsigned short y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}
""",
}
