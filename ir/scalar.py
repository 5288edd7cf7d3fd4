"""The scalar operations: what a kernel computes on one element, and what a pointwise op computes on all.

One entry an operation: its NumPy meaning, how many operands, and which element types go in and come out. Integer arithmetic
wraps; integer division by zero gives 0 (eager raises; a vector unit cannot); `maximum` and `minimum` propagate NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from dlcompiler.ir import narrow
from dlcompiler.ir.philox import philox
from dlcompiler.ir.types import DType, boolean, dtype_of, i64


@dataclass(frozen=True)
class Scalar:
    """takes: number (all but bool), float, integer (also bool), i64, any. gives: same (as operand 0, or 1 for select) or bool."""

    name: str
    numpy: Callable[..., Any]
    arity: int
    takes: str = "number"
    gives: str = "same"
    commutative: bool = False

    def result(self, dtype: DType) -> DType:
        return boolean if self.gives == "bool" else dtype

    def accepts(self, dtype: DType) -> bool:
        if dtype.is_narrow:
            return self.name == "where"
        match self.takes:
            case "float":
                return dtype.is_float
            case "integer":
                return dtype.is_integer or dtype is boolean
            case "number":
                return dtype is not boolean
            case "i64":
                return dtype is i64
        return True


SCALARS: dict[str, Scalar] = {}


def _scalar(name: str, numpy: Callable[..., Any], arity: int, takes: str = "number", gives: str = "same", **flags: bool) -> None:
    SCALARS[name] = Scalar(name, numpy, arity, takes, gives, **flags)


def _elementwise(function: Callable[[float], float]) -> Callable[[np.ndarray], np.ndarray]:
    """A Python function of one float as a function of arrays, computed in float64, NaN kept."""
    mapped = np.frompyfunc(lambda x: function(float(x)), 1, 1)

    def apply(x: np.ndarray) -> np.ndarray:
        return np.asarray(mapped(x), dtype=np.float64).astype(np.asarray(x).dtype)

    return apply


def _lgamma(x: float) -> float:
    if math.isinf(x) or (x <= 0 and x == math.floor(x)):
        return math.inf
    return math.lgamma(x)


def _digamma(x: float) -> float:
    """Recurrence up to 10, then the asymptotic series (Abramowitz and Stegun 6.3.18); reflection below zero."""
    if math.isnan(x) or x == -math.inf:
        return math.nan
    if x == 0:
        return math.copysign(math.inf, -x)
    if x < 0:
        if x == math.floor(x):
            return math.nan
        return _digamma(1 - x) - math.pi / math.tan(math.pi * x)
    shift = 0.0
    while x < 10:
        shift -= 1 / x
        x += 1
    if math.isinf(x):
        return x
    inverse = 1 / (x * x)
    series = inverse * (1 / 12 - inverse * (1 / 120 - inverse * (1 / 252 - inverse * (1 / 240 - inverse / 132))))
    return shift + math.log(x) - 0.5 / x - series


def _erfinv(x: float) -> float:
    """Newton's method on `math.erf` from Giles' starting point."""
    if not -1 <= x <= 1:
        return math.nan
    if abs(x) == 1:
        return math.copysign(math.inf, x)
    w = -math.log1p(-x * x)
    guess = 2 / (math.pi * 0.147) + math.log1p(-x * x) / 2
    y = math.copysign(math.sqrt(math.sqrt(guess * guess + w / 0.147) - guess), x)
    for _ in range(60):
        error = math.erf(y) - x if abs(x) < 0.9 else math.copysign(1, x) * ((1 - abs(x)) - math.erfc(abs(y)))
        step = error / (2 / math.sqrt(math.pi) * math.exp(-y * y))
        y -= step
        if abs(step) <= 1e-16 * abs(y):
            break
    return y


def _sigmoid(x: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(x))
    return np.where(np.signbit(x), small / (1 + small), 1 / (1 + small)).astype(np.asarray(x).dtype)


def _is_integer(x: np.ndarray) -> bool:
    return np.asarray(x).dtype.kind in "iub"


def _floor_div(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if _is_integer(a):
        return np.where(b == 0, 0, np.floor_divide(a, np.where(b == 0, 1, b))).astype(np.asarray(a).dtype)
    return np.floor_divide(a, b) if np.asarray(a).dtype.name != "bfloat16" else np.floor(a / b)


def _trunc_div(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if not _is_integer(a):
        return np.trunc(a / b)
    safe = np.where(b == 0, 1, b).astype(np.asarray(b).dtype)
    whole = np.floor_divide(a, safe)
    inexact = (whole * safe != a) & ((a < 0) != (safe < 0))
    return np.where(b == 0, 0, whole + inexact).astype(np.asarray(a).dtype)


def _remainder(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if _is_integer(a):
        return np.where(b == 0, 0, np.remainder(a, np.where(b == 0, 1, b))).astype(np.asarray(a).dtype)
    return np.remainder(a, b)


def _fmod(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if _is_integer(a):
        return np.where(b == 0, 0, np.fmod(a, np.where(b == 0, 1, b))).astype(np.asarray(a).dtype)
    return np.fmod(a, b)


def _pow(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if _is_integer(a):
        # as torch: a negative integer power is 0 except of 1 and -1
        powered = np.power(a, np.where(b < 0, 0, b))
        of_unit = np.where(a == 1, 1, np.where(a == -1, np.where(b % 2 == 0, 1, -1), 0))
        return np.where(b < 0, of_unit, powered).astype(np.asarray(a).dtype)
    return np.power(a, b)


def _shift_left(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    bits = np.asarray(a).dtype.itemsize * 8
    outside = (b < 0) | (b >= bits)
    return np.where(outside, 0, np.left_shift(a, np.where(outside, 0, b))).astype(np.asarray(a).dtype)


def _shift_right(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    bits = np.asarray(a).dtype.itemsize * 8
    outside = (b < 0) | (b >= bits)
    return (
        np.right_shift(a, np.where(outside, bits - 1, b))
        if np.asarray(a).dtype.kind == "i"
        else _shift_right_unsigned(a, b, outside)
    )


def _shift_right_unsigned(a: np.ndarray, b: np.ndarray, outside: np.ndarray) -> np.ndarray:
    return np.where(outside, 0, np.right_shift(a, np.where(outside, 0, b))).astype(np.asarray(a).dtype)


def _sign(x: np.ndarray) -> np.ndarray:
    # torch.sign(nan) is 0
    return np.where(np.isnan(x), 0, np.sign(x)).astype(np.asarray(x).dtype) if np.asarray(x).dtype.kind in "fV" else np.sign(x)


for _name in ("exp exp2 expm1 log log2 log10 log1p sqrt sin cos tan sinh cosh tanh floor ceil trunc").split():
    _scalar(_name, getattr(np, _name), 1, "float")
_OTHER_NAMES: dict[str, Callable[..., Any]] = {
    "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "asinh": np.arcsinh, "acosh": np.arccosh, "atanh": np.arctanh,
    "round": np.rint, "rsqrt": lambda x: 1 / np.sqrt(x), "sigmoid": _sigmoid, "erf": _elementwise(math.erf),
    "erfc": _elementwise(math.erfc), "erfinv": _elementwise(_erfinv), "lgamma": _elementwise(_lgamma),
    "digamma": _elementwise(_digamma),
}  # fmt: skip
for _name, _function in _OTHER_NAMES.items():
    _scalar(_name, _function, 1, "float")
for _name in ("isnan", "isinf", "isfinite", "signbit"):
    _scalar(_name, getattr(np, _name), 1, "float", "bool")
_scalar("neg", np.negative, 1)
_scalar("abs", np.abs, 1)
_scalar("sign", _sign, 1)
_scalar("bitwise_not", np.invert, 1, "integer")
_scalar("add", np.add, 2, commutative=True)
_scalar("sub", np.subtract, 2)
_scalar("mul", np.multiply, 2, commutative=True)
_scalar("div", np.true_divide, 2, "float")
_scalar("floor_div", _floor_div, 2)
_scalar("trunc_div", _trunc_div, 2)
_scalar("remainder", _remainder, 2)
_scalar("fmod", _fmod, 2)
_scalar("pow", _pow, 2)
_scalar("atan2", np.arctan2, 2, "float")
_scalar("hypot", np.hypot, 2, "float")
_scalar("copysign", np.copysign, 2, "float")
_scalar("maximum", np.maximum, 2, "any", commutative=True)
_scalar("minimum", np.minimum, 2, "any", commutative=True)
_scalar("bitwise_and", np.bitwise_and, 2, "integer", commutative=True)
_scalar("bitwise_or", np.bitwise_or, 2, "integer", commutative=True)
_scalar("bitwise_xor", np.bitwise_xor, 2, "integer", commutative=True)
_scalar("shift_left", _shift_left, 2, "integer")
_scalar("shift_right", _shift_right, 2, "integer")
_scalar("eq", np.equal, 2, "any", "bool", commutative=True)
_scalar("ne", np.not_equal, 2, "any", "bool", commutative=True)
_scalar("lt", np.less, 2, "any", "bool")
_scalar("le", np.less_equal, 2, "any", "bool")
_scalar("gt", np.greater, 2, "any", "bool")
_scalar("ge", np.greater_equal, 2, "any", "bool")
_scalar("where", np.where, 3, "any")
# random bits: (index of the element, position of the draw, seed of the call)
_scalar("philox", philox, 3, "i64")


def bitcast_array(x: np.ndarray, dtype: DType) -> np.ndarray:
    """The same bits as another element type of the same width."""
    return np.ascontiguousarray(x).view(dtype.numpy).reshape(np.shape(x))


def cast_array(x: np.ndarray, dtype: DType) -> np.ndarray:
    """`x` converted as torch converts: to bool by `!= 0`, float to integer towards zero (out of range: unspecified).

    Narrow integers keep the low bits; narrow floats are as in `ir.narrow`.
    """
    x = np.asarray(x)
    source = dtype_of(x)
    if source.is_narrow:
        x = x.astype(np.int32 if source.name in narrow.INTEGERS else np.float32)
    if dtype.is_narrow:
        return _to_narrow(x, dtype)
    if dtype is boolean:
        return x != 0
    with np.errstate(all="ignore"):
        if x.dtype.name == "bfloat16" and dtype.numpy.kind not in "fV":
            x = x.astype(np.float32)
        return x.astype(dtype.numpy)


def _to_narrow(x: np.ndarray, dtype: DType) -> np.ndarray:
    with np.errstate(all="ignore"):
        if dtype.name not in narrow.INTEGERS:
            return x.astype(np.float32).astype(dtype.numpy)
        bits, _ = narrow.INTEGERS[dtype.name]
        low = x.astype(np.float32 if x.dtype.name == "bfloat16" else x.dtype).astype(np.int32) & ((1 << bits) - 1)
        return low.astype(np.uint8).view(dtype.numpy).reshape(x.shape)


def apply_scalar(name: str, *operands: np.ndarray) -> np.ndarray:
    """The operation on arrays, float16 and bfloat16 computed in float32 and rounded once at the end."""
    arrays = [np.asarray(x) for x in operands]
    narrow = next((a.dtype for a in arrays if a.dtype.name in ("float16", "bfloat16")), None)
    with np.errstate(all="ignore"):
        if narrow is None:
            return np.asarray(SCALARS[name].numpy(*arrays))
        wide = [a.astype(np.float32) if a.dtype == narrow else a for a in arrays]
        result = np.asarray(SCALARS[name].numpy(*wide))
        return result.astype(narrow) if result.dtype == np.float32 else result
