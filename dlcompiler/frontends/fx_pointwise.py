"""Rules for pointwise operators: explicit promotion, then one op of the IR."""

from __future__ import annotations

from typing import Any

from dlcompiler.frontends.fx_rules import NoRule, moving, rule
from dlcompiler.frontends.fx_types import is_scalar, promote
from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import DType, boolean, compute_dtype

# ops whose kernels do not round a number to the tensor's dtype
_EXACT_NUMBERS = frozenset(("mul", "div", "floor_div", "trunc_div"))


def pointwise(i: Any, op: str, *values: Any, dtype: DType | None = None) -> Node:
    """`op` of nodes and numbers, computed in `dtype` (the result's by default) and given in it."""
    own = dtype or i.dtype
    operands = i.operands(own, *values, exact_numbers=op in _EXACT_NUMBERS)
    return i.cast(i.b(op, *operands), own)


def broadcast(i: Any, node: Node) -> Node:
    """A result whose operands were fewer than torch's, expanded to torch's shape."""
    return node if node.shape == i.shape else i.b.expand(node, shape=i.shape)


# -- one operand -------------------------------------------------------------------------------------------------------------

_FLOAT = {
    "exp": "exp", "exp2": "exp2", "expm1": "expm1", "log": "log", "log2": "log2", "log10": "log10", "log1p": "log1p",
    "sqrt": "sqrt", "rsqrt": "rsqrt", "sin": "sin", "cos": "cos", "tan": "tan", "sinh": "sinh", "cosh": "cosh", "tanh": "tanh",
    "asin": "asin", "acos": "acos", "atan": "atan", "asinh": "asinh", "acosh": "acosh", "atanh": "atanh", "sigmoid": "sigmoid",
    "erf": "erf", "erfc": "erfc", "erfinv": "erfinv", "lgamma": "lgamma", "digamma": "digamma", "reciprocal": "reciprocal",
    "special_erfinv": "erfinv",
}  # fmt: skip


def _float_rule(op: str):
    return lambda i, x: pointwise(i, op, x)


for _aten, _op in _FLOAT.items():
    rule(f"{_aten}.default")(_float_rule(_op))


def _rounding_rule(op: str):
    def apply(i, x):
        return pointwise(i, op, x) if x.dtype.is_float else x

    return apply


for _name in ("floor", "ceil", "trunc", "round"):
    rule(f"{_name}.default")(_rounding_rule(_name))


def _test_rule(op: str, of_integers: bool):
    def apply(i, x):
        if x.dtype.is_float:
            return i.b(op, x)
        return broadcast(i, i.b.constant(of_integers, boolean))

    return apply


for _name, _value in (("isnan", False), ("isinf", False), ("isfinite", True)):
    rule(f"{_name}.default")(_test_rule(_name, _value))


@rule("signbit.default")
def _signbit(i, x):
    if x.dtype is boolean:
        return broadcast(i, i.b.constant(False, boolean))
    return i.b.signbit(x) if x.dtype.is_float else i.b.lt(x, 0)


@rule("neg.default")
def _neg(i, x):
    return pointwise(i, "neg", x)


@rule("abs.default")
def _abs(i, x):
    return x if x.dtype.kind in ("bool", "uint") else i.b.abs(x)


@rule("sign.default")
def _sign(i, x):
    return x if x.dtype is boolean else i.b.sign(x)


@rule("logical_not.default")
def _logical_not(i, x):
    return i.b.bitwise_not(as_bool(i, x))


@rule("bitwise_not.default")
def _bitwise_not(i, x):
    return i.b.bitwise_not(x)


def as_bool(i: Any, x: Any) -> Node:
    """`x != 0`."""
    return i.tensor(x, boolean)


# -- two operands ------------------------------------------------------------------------------------------------------------


def _sum(i: Any, op: str, x: Any, y: Any, alpha: Any) -> Node:
    """`x + alpha * y` or `x - alpha * y`, rounded once to a narrow dtype."""
    if is_scalar(alpha) and not isinstance(alpha, bool) and alpha == 1:
        return pointwise(i, op, x, y)
    wide = compute_dtype(i.dtype)
    x, y, alpha = (i.cast(operand, wide) for operand in i.operands(i.dtype, x, y, alpha))
    return i.cast(i.b(op, x, i.b.mul(y, alpha)), i.dtype)


@rule("add.Tensor", "add.Scalar")
def _add(i, x, y, alpha=1):
    if i.dtype is boolean:
        if alpha == 0:
            return i.b.bitwise_or(x, i.b.constant(False, boolean)) if x.shape == i.shape else broadcast(i, x)
        return i.b.bitwise_or(*i.operands(boolean, x, y))
    return _sum(i, "add", x, y, alpha)


@rule("sub.Tensor", "sub.Scalar")
def _sub(i, x, y, alpha=1):
    return _sum(i, "sub", x, y, alpha)


@rule("rsub.Tensor", "rsub.Scalar")
def _rsub(i, x, y, alpha=1):
    return _sum(i, "sub", y, x, alpha)


@rule("mul.Tensor", "mul.Scalar")
def _mul(i, x, y):
    if i.dtype is boolean:
        return i.b.bitwise_and(*i.operands(boolean, x, y))
    return pointwise(i, "mul", x, y)


@rule("div.Tensor", "div.Scalar", "true_divide.Tensor")
def _div(i, x, y):
    return pointwise(i, "div", x, y)


@rule("div.Tensor_mode", "div.Scalar_mode")
def _div_mode(i, x, y, rounding_mode=None):
    match rounding_mode:
        case None:
            return pointwise(i, "div", x, y)
        case "floor":
            return pointwise(i, "floor_div", x, y)
        case "trunc":
            return pointwise(i, "trunc_div", x, y)
    raise NoRule(f"rounding mode {rounding_mode!r}")


@rule("floor_divide.default", "floor_divide.Scalar")
def _floor_divide(i, x, y):
    return pointwise(i, "floor_div", x, y)


def _binary_rule(op: str):
    return lambda i, x, y: pointwise(i, op, x, y)


for _aten, _op in {
    "remainder.Tensor": "remainder", "remainder.Scalar": "remainder", "remainder.Scalar_Tensor": "remainder",
    "fmod.Tensor": "fmod", "fmod.Scalar": "fmod", "atan2.default": "atan2", "hypot.default": "hypot",
    "copysign.Tensor": "copysign", "copysign.Scalar": "copysign", "maximum.default": "maximum", "minimum.default": "minimum",
    "bitwise_left_shift.Tensor": "shift_left", "bitwise_left_shift.Tensor_Scalar": "shift_left",
    "bitwise_right_shift.Tensor": "shift_right", "bitwise_right_shift.Tensor_Scalar": "shift_right",
    "__lshift__.Tensor": "shift_left", "__lshift__.Scalar": "shift_left",
    "__rshift__.Tensor": "shift_right", "__rshift__.Scalar": "shift_right",
    **{f"bitwise_{k}.{o}": f"bitwise_{k}" for k in ("and", "or", "xor") for o in ("Tensor", "Scalar")},
}.items():  # fmt: skip
    rule(_aten)(_binary_rule(_op))


def _extreme_ignoring_nan(op: str):
    def apply(i, x, y):
        x, y = i.operands(i.dtype, x, y)
        if not x.dtype.is_float:
            return i.b(op, x, y)
        return i.b.where(i.b.isnan(x), y, i.b.where(i.b.isnan(y), x, i.b(op, x, y)))

    return apply


rule("fmax.default")(_extreme_ignoring_nan("maximum"))
rule("fmin.default")(_extreme_ignoring_nan("minimum"))


def _comparison_rule(op: str):
    def apply(i, x, y):
        dtype = promote(x, y)
        return i.b(op, *i.operands(dtype, x, y))

    return apply


for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    rule(f"{_name}.Tensor", f"{_name}.Scalar")(_comparison_rule(_name))


def _logical_rule(op: str):
    return lambda i, x, y: i.b(op, as_bool(i, x), as_bool(i, y))


for _name in ("and", "or", "xor"):
    rule(f"logical_{_name}.default")(_logical_rule(f"bitwise_{_name}"))

# -- powers ------------------------------------------------------------------------------------------------------------------


@rule("pow.Tensor_Scalar")
def _pow_scalar(i, x, exponent):
    if not isinstance(exponent, int | float) or i.dtype is boolean:
        return _pow(i, x, exponent)
    if exponent == 0:
        return broadcast(i, i.number(1, i.dtype))
    wide = compute_dtype(i.dtype)
    base = i.tensor(x, wide)
    result = _small_power(i, base, exponent)
    return i.cast(result, i.dtype) if result is not None else _pow(i, x, exponent)


def _small_power(i: Any, base: Node, exponent: float) -> Node | None:
    """Products and roots for the exponents that models use; None for any other."""
    if exponent in (1, 2, 3, 4):
        square = i.b.mul(base, base) if exponent > 1 else base
        return {1: base, 2: square, 3: None, 4: None}[int(exponent)] or i.b.mul(square, base if exponent == 3 else square)
    if not base.dtype.is_float:
        return None
    if exponent == 0.5:
        return i.b.sqrt(base)
    if exponent == -0.5:
        return i.b.rsqrt(base)
    if exponent in (-1, -2):
        return i.b.reciprocal(base if exponent == -1 else i.b.mul(base, base))
    return None


@rule("pow.Tensor_Tensor", "pow.Scalar")
def _pow(i, x, exponent):
    if i.dtype is boolean:
        raise NoRule("a power of bools")
    return pointwise(i, "pow", x, exponent)


@rule("ldexp.Tensor")
def _ldexp(i, x, exponent):
    return pointwise(i, "mul", x, pointwise(i, "pow", 2.0, exponent))


# -- choices -----------------------------------------------------------------------------------------------------------------


@moving("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar")
def _where(i, condition, x, y):
    return i.b.where(as_bool(i, condition), i.tensor(x, i.dtype), i.tensor(y, i.dtype))


@rule("masked_fill.Scalar", "masked_fill.Tensor")
def _masked_fill(i, x, mask, value):
    return i.b.where(mask, i.tensor(value, i.dtype), i.tensor(x, i.dtype))


@rule("clamp.default", "clamp.Tensor")
def _clamp(i, x, low=None, high=None):
    numbers = [v for v in (low, high) if v is not None]
    if not numbers:
        return x
    x, *bounds = i.operands(i.dtype, x, *numbers)
    if low is not None:
        x = i.b.maximum(x, bounds[0])
    if high is not None:
        x = i.b.minimum(x, bounds[-1])
    return x


@rule("clamp_min.default", "clamp_min.Tensor")
def _clamp_min(i, x, low):
    return _clamp(i, x, low, None)


@rule("clamp_max.default", "clamp_max.Tensor")
def _clamp_max(i, x, high):
    return _clamp(i, x, None, high)


@rule("hardtanh.default")
def _hardtanh(i, x, low=-1, high=1):
    return _clamp(i, x, low, high)


@rule("relu6.default")
def _relu6(i, x):
    return _clamp(i, x, 0, 6)


# -- activations -------------------------------------------------------------------------------------------------------------


@rule("relu.default")
def _relu(i, x):
    return i.b.relu(x)


@rule("gelu.default")
def _gelu(i, x, approximate="none"):
    return i.b.gelu(x, approximate=approximate)


@rule("leaky_relu.default")
def _leaky_relu(i, x, slope=0.01):
    x, _ = i.operands(i.dtype, x, slope, exact_numbers=True)
    return i.cast(i.b.leaky_relu(x, slope=slope), i.dtype)


@rule("elu.default")
def _elu(i, x, alpha=1, scale=1, input_scale=1):
    return i.b.elu(x, alpha=float(alpha), scale=float(scale), input_scale=float(input_scale))


@rule("softplus.default")
def _softplus(i, x, beta=1, threshold=20):
    return i.b.softplus(x, beta=float(beta), threshold=float(threshold))


def _activation_rule(op: str):
    return lambda i, x: i.b(op, x)


for _name in ("silu", "mish", "hardsigmoid", "hardswish"):
    rule(f"{_name}.default")(_activation_rule(_name))


# -- dtype and identity --------------------------------------------------------------------------------------------------------


def _identity(i: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    return x


moving(
    "clone.default", "detach.default", "alias.default", "lift_fresh_copy.default", "lift_fresh.default", "positive.default",
    "contiguous.default", "_conj.default", "conj.default", "resolve_conj.default", "resolve_neg.default", "real.default",
    "conj_physical.default",
)(_identity)  # fmt: skip


@moving("_to_copy.default", "prims.convert_element_type.default", "to.dtype", "prims.device_put.default")
def _to_copy(i, x, *args, **kwargs):
    if i.meta.device.type != "cpu" and i.meta.device != i.node.args[0].meta["val"].device:
        raise NoRule("a copy to another device")
    return i.cast(x, i.dtype)


@moving("copy.default")
def _copy(i, x, source, non_blocking=False):
    return broadcast(i, i.cast(source, x.dtype))


@moving("copy_.default", takes_complex=True)
def _copy_in_place(i, target, source, non_blocking=False):
    """The functionalised graph's last word on a mutated input."""
    if target not in i.b.inputs:
        raise NoRule("a mutation of something that is no input")
    if target.dtype.kind == "complex" and source.type != target.type:
        raise NoRule("complex numbers")
    value = broadcast(i, i.cast(source, target.dtype))
    i.writebacks[target] = value
    return value


@moving("scalar_tensor.default")
def _scalar_tensor(i, value, **kwargs):
    return i.number(value, i.dtype)


@rule("prims.fma.default")
def _fused_multiply_add(i, x, y, z):
    wide = compute_dtype(i.dtype)
    x, y, z = (i.cast(operand, wide) for operand in i.operands(i.dtype, x, y, z))
    return i.cast(i.b.add(i.b.mul(x, y), z), i.dtype)
