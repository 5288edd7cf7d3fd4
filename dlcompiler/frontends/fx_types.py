"""torch's dtypes, promotion and symbolic sizes in the IR's terms."""

from __future__ import annotations

import math
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

from dlcompiler.ir.errors import UnsupportedError
from dlcompiler.ir.expression import Dim, Expression, floor_div, maximum, minimum, modulo, product, symbol
from dlcompiler.ir.graph import Node
from dlcompiler.ir.narrow import MINIFLOATS
from dlcompiler.ir.types import (
    DTYPES,
    DType,
    TensorType,
    bf16,
    boolean,
    c64,
    c128,
    contiguous_strides,
    f16,
    f32,
    f64,
    i8,
    i16,
    i32,
    i64,
    u8,
    u16,
    u32,
    u64,
)  # fmt: skip

FROM_TORCH: dict[torch.dtype, DType] = {
    torch.float64: f64, torch.float32: f32, torch.float16: f16, torch.bfloat16: bf16,
    torch.int64: i64, torch.int32: i32, torch.int16: i16, torch.int8: i8,
    torch.uint64: u64, torch.uint32: u32, torch.uint16: u16, torch.uint8: u8,
    torch.bool: boolean, torch.complex64: c64, torch.complex128: c128,
    torch.float8_e4m3fn: DTYPES["f8e4m3fn"], torch.float8_e5m2: DTYPES["f8e5m2"],
    torch.float8_e4m3fnuz: DTYPES["f8e4m3fnuz"], torch.float8_e5m2fnuz: DTYPES["f8e5m2fnuz"],
    torch.float8_e8m0fnu: DTYPES["f8e8m0"],
}  # fmt: skip
TO_TORCH: dict[DType, torch.dtype] = {ours: theirs for theirs, ours in FROM_TORCH.items()}


def dtype_from_torch(dtype: torch.dtype) -> DType:
    """The IR's dtype. Raises UnsupportedError for one it does not have (quantised, packed)."""
    found = FROM_TORCH.get(dtype)
    if found is None:
        raise UnsupportedError(f"there is no dtype {dtype}", items=(str(dtype),))
    return found


@cache
def largest_of(dtype: DType) -> float | None:
    """The largest finite number of an 8-bit float that this torch gives for all that is larger; None if it gives another.

    Releases differ: float8_e4m3fn was NaN beyond its range in some.
    """
    theirs = TO_TORCH[dtype]
    if not dtype.is_narrow or dtype.name not in MINIFLOATS:
        return None
    with unset_fake_temporarily():
        beyond = torch.tensor(float("inf")).to(theirs).float().item()
    return beyond if math.isfinite(beyond) else None


class WeakNumber:
    """A number known only when called (a SymFloat or SymBool): a 0-d f64 or bool node that promotes as a Python number does."""

    __slots__ = ("node",)

    def __init__(self, node: Node) -> None:
        self.node = node


def is_scalar(value: Any) -> bool:
    """Whether a value promotes as a Python number does."""
    return isinstance(value, bool | int | float | complex | Expression | WeakNumber)


def _scalar_dtype(value: Any) -> torch.dtype:
    if isinstance(value, bool) or (isinstance(value, WeakNumber) and value.node.dtype is boolean):
        return torch.bool
    if isinstance(value, int | Expression):
        return torch.int64
    if isinstance(value, float | WeakNumber):
        return torch.get_default_dtype()
    return torch.complex128 if torch.get_default_dtype() is torch.float64 else torch.complex64


def promote(*operands: Any) -> DType:
    """torch's result type of nodes and Python numbers: 0-d tensors and numbers matter only if of a higher category.

    Categories are bool < integer < float < complex (ATen's `result_type`).
    """
    groups: tuple[list[torch.dtype], ...] = ([], [], [])  # tensors with dimensions, 0-d tensors, numbers
    for operand in operands:
        if isinstance(operand, Node):
            groups[0 if operand.tensor.rank else 1].append(TO_TORCH[operand.dtype])
        elif is_scalar(operand):
            groups[2].append(_scalar_dtype(operand))
    result: torch.dtype | None = None
    for group in groups:
        if not group:
            continue
        own = group[0]
        for dtype in group[1:]:
            own = torch.promote_types(own, dtype)
        result = own if result is None else _combine(result, own)
    assert result is not None, "nothing to promote"
    return dtype_from_torch(result)


def _combine(higher: torch.dtype, lower: torch.dtype) -> torch.dtype:
    if _category(lower) > _category(higher):
        return torch.promote_types(higher, lower)
    return higher


def _category(dtype: torch.dtype) -> int:
    return 3 if dtype.is_complex else 2 if dtype.is_floating_point else 0 if dtype is torch.bool else 1


# -- sizes ------------------------------------------------------------------------------------------------------------------


# Of each of torch's environments: expressions, and what they are as dimensions where dimensions cannot say them, or where the
# model asserts it. A forward and a backward graph share one.
_stand_ins: WeakKeyDictionary[Any, dict[Any, Dim]] = WeakKeyDictionary()


def stand_in(environment: Any, expression: Any, dim: Dim | None) -> Dim | None:
    """Let a sympy expression be that dimension from here on, or what it says (None); what it was before."""
    known = _stand_ins.setdefault(environment, {})
    before = known.pop(expression, None)
    if dim is not None:
        known[expression] = dim
    return before


def is_told_by_data(name: str) -> bool:
    """Whether a symbol of torch's, by its name, is a number that is read out of a tensor: an integer u0, a float zuf0."""
    return name.removeprefix("zuf").removeprefix("u").isdigit() and not name[0].isdigit()


def dim_from_sympy(expression: Any, environment: Any = None) -> Dim:
    """A sympy integer expression as a dimension. Raises UnsupportedError for one that dimensions cannot say.

    Taken: integers, symbols, sums, products, integer powers, FloorDiv, CleanDiv, Mod, PythonMod, ModularIndexing, Max, Min.

    environment   torch's ShapeEnv. What `stand_in` says of its expressions is taken first. A number that data tells, and that it
                  does not know to be no less than zero, is the difference of two sizes, u0.plus - u0.minus, since symbols of
                  ours are never negative
    """
    if expression.is_Integer:
        return int(expression)
    if environment is not None:
        found = _stand_ins.get(environment, {}).get(expression)
        if found is not None:
            return found
    if expression.is_Symbol:
        name = expression.name
        if is_told_by_data(name) and environment is not None and not _is_non_negative(expression, environment):
            return symbol(f"{name}.plus") - symbol(f"{name}.minus")
        return symbol(name)
    kind = type(expression).__name__
    if kind == "Pow" and expression.args[1].is_Integer and int(expression.args[1]) > 0:
        base = dim_from_sympy(expression.args[0], environment)
        return product([base] * int(expression.args[1]))
    operation = _SYMPY.get(kind)
    if operation is None:
        raise UnsupportedError(f"the size {expression} has no form as a dimension", items=(kind,))
    return operation(*(dim_from_sympy(each, environment) for each in expression.args))


def _is_non_negative(number: Any, environment: Any) -> bool:
    known = environment.var_to_range.get(number)
    return known is not None and bool(known.lower >= 0)


def _fold(function):
    def fold(first: Dim, *rest: Dim) -> Dim:
        for each in rest:
            first = function(first, each)
        return first

    return fold


_SYMPY = {
    "Add": _fold(lambda a, b: a + b), "Mul": _fold(lambda a, b: a * b), "Max": _fold(maximum), "Min": _fold(minimum),
    "FloorDiv": floor_div, "CleanDiv": floor_div, "Mod": modulo, "PythonMod": modulo,
    "ModularIndexing": lambda value, divisor, modulus: modulo(floor_div(value, divisor), modulus),
}  # fmt: skip


def dim_from_torch(size: int | torch.SymInt) -> Dim:
    """An int or SymInt as a dimension."""
    if isinstance(size, torch.SymInt):
        return dim_from_sympy(size.node.expr, size.node.shape_env)
    return int(size)


def non_negative(number: int | torch.SymInt) -> int | torch.SymInt:
    """An integer argument as a symbol of ours may stand for it, which are never negative: guarded to be so in later calls.

    A negative one becomes a plain int, for which torch guards, so that another number is compiled for itself.
    """
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    if not isinstance(number, torch.SymInt) or not number.node.has_hint() or statically_known_true(number >= 0):
        return number
    return number if bool(number >= 0) else int(number)


def type_of_fake(value: torch.Tensor) -> TensorType:
    """The IR's type of a (fake) tensor. Raises UnsupportedError for sparse and quantised tensors."""
    if value.layout is not torch.strided or value.is_quantized:
        raise UnsupportedError(f"a tensor of layout {value.layout}", items=("sparse or quantised tensor",))
    return TensorType(dtype_from_torch(value.dtype), tuple(dim_from_torch(d) for d in value.shape))


def strides_of_fake(value: torch.Tensor, *, exact: bool = False) -> tuple[Dim, ...] | None:
    """Strides in elements, None where row major.

    A dimension of size 1 may have any stride in a row-major tensor, and an empty tensor's strides do not matter, unless `exact`.
    Where torch does not know whether one is empty, it says so in strides, max(1, u0), which is left out.
    """
    strides = tuple(_stride(s) for s in value.stride())
    shape = tuple(dim_from_torch(d) for d in value.shape)
    expected = contiguous_strides(shape)
    if not exact and 0 in shape:
        return None
    same = all(a == b or (size == 1 and not exact) for a, b, size in zip(strides, expected, shape))
    return None if same else strides


def _stride(size: int | torch.SymInt) -> Dim:
    """max(1, u0) * max(1, u1) --> u0 * u1"""
    if not isinstance(size, torch.SymInt):
        return int(size)
    full = size.node.expr.replace(
        lambda e: type(e).__name__ == "Max" and len(e.args) == 2 and 1 in e.args,
        lambda e: next(each for each in e.args if each != 1),
    )
    return dim_from_sympy(full, size.node.shape_env)
