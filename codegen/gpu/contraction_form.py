"""A kernel as a product of two matrices for tensor cores: which axes are rows, columns and summed, and what is multiplied.

    v2 = mul(v0, v1)                        left     v0, over batch, rows, summed
    v3 = reduce.add(v2) over summed   -->   right    v1, over batch, columns, summed

More is allowed of the factors than `ir.contraction.find_contraction` does: each may be computed from loads (a cast, a scale, a
quantised weight times its step), as long as that is cheap enough to be done again for every tile.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from dlcompiler.codegen.schedule import EXPENSIVE, Access, merge_axes, size_estimate
from dlcompiler.ir import kernel as K
from dlcompiler.ir.contraction import loads_under, offset_of
from dlcompiler.ir.expression import Dim, linear_coefficients, product, substitute, symbol, symbols
from dlcompiler.ir.narrow_form import decoded
from dlcompiler.ir.types import DTYPES, DType, bf16, f16, f32, i8, i32

NARROW = (f16, bf16)
# 8-bit floats that tensor cores multiply, where they multiply any
EIGHTH = (DTYPES["f8e4m3fn"], DTYPES["f8e5m2"])
# scalar operations of a factor that may be repeated for every tile
CHEAP_OPERATIONS = 6


@dataclass(frozen=True, eq=False)
class Form:
    """The parts of a kernel that is a matrix product. Axis names are those left after merging, outermost first.

    axes       every axis and its extent
    left, right  the factors as they are multiplied: of `dtype` (of 8-bit floats each of its own), without casts that a tensor
                 core does by itself
    factors    both as the kernel has them
    accesses   of every load and store
    """

    kernel: K.Kernel
    reduce: K.Reduce
    left: K.Value
    right: K.Value
    dtype: DType
    factors: tuple[K.Value, K.Value]
    axes: dict[str, Dim]
    batch: tuple[str, ...]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    summed: tuple[str, ...]
    accesses: dict[object, Access]

    def size(self, names: tuple[str, ...]) -> Dim:
        """Points of several axes."""
        return product(self.axes[a] for a in names)

    @property
    def is_tiled(self) -> bool:
        """Whether there are rows and columns; otherwise it is a matrix times a vector, or each column has rows of its own."""
        return bool(self.rows and self.columns)

    def stride(self, factor: K.Value, axis: str) -> Dim | None:
        """Elements between neighbours of the factor's largest load along an axis; None if they do not lie regularly."""
        load = max(loads_under(factor), key=lambda v: (len(self.kernel.axes_of[v]), v.dtype.bytes), default=None)
        return None if load is None else self.accesses[load].stride(axis)


# What was found in kernels that are still in use: fusion, planning and writing ask about the same ones.
_found: WeakKeyDictionary[K.Kernel, Form | None] = WeakKeyDictionary()


def find_form(kernel: K.Kernel) -> Form | None:
    """The matrix product that a kernel is, with whatever it does to each sum; None if it is none."""
    if kernel not in _found:
        _found[kernel] = _look_for_form(kernel)
    return _found[kernel]


def _look_for_form(kernel: K.Kernel) -> Form | None:
    reduces = [value for value in kernel.values if isinstance(value, K.Reduce)]
    if len(reduces) != 1:
        return None
    (reduce,) = reduces
    times = reduce.operand
    if reduce.kind != "add" or reduce.dtype not in (f32, i32) or not isinstance(times, K.Compute) or times.op != "mul":
        return None
    first, second = times.inputs
    summed = frozenset(reduce.over)
    axes_of = kernel.axes_of
    outer = frozenset(kernel.extents) - summed
    if first is second or axes_of[reduce] != outer or any(not summed <= axes_of[factor] for factor in (first, second)):
        return None
    for store in kernel.stores:
        if summed & axes_of[store.value].union(*map(symbols, store.index)):
            return None  # what is done to a sum runs over the summed axes again
    if any(load.indirect for load in loads_under(times)):
        return None
    axes, accesses = _simple_accesses(kernel)
    merged: dict[object, Access] = {a.statement: a for a in accesses}
    left, right = _in_order(kernel, first, second, merged)
    of_left, of_right = axes_of[left] & outer & axes.keys(), axes_of[right] & outer & axes.keys()
    order = _memory_order(kernel, axes, merged)

    def ordered(names: Set[str]) -> tuple[str, ...]:
        return tuple(name for name in order if name in names)

    batch, rows = ordered(of_left & of_right), ordered(of_left - of_right)
    columns = _columns_order(ordered(of_right - of_left), merged, right)
    walk = _summed_order(summed & axes.keys(), axes, merged, left)
    operands = _operands(left, right)
    if operands is None or (operands[2] is i8 and not _fits_in_32_bits(product(axes[a] for a in walk))):
        return None
    return Form(kernel, reduce, *operands, (left, right), axes, batch, rows, columns, walk, merged)


def _fits_in_32_bits(length: Dim) -> bool:
    """Whether a sum of so many products of signed bytes does: instructions before sm_90 cut off what does not."""
    return isinstance(length, int) and length * 128 * 128 < 2**31


def is_sum_of_integers(kernel: K.Kernel) -> bool:
    """Whether a kernel is one sum of products of integers that no tensor core multiplies: an ordinary reduction."""
    reduces = [value for value in kernel.values if isinstance(value, K.Reduce)]
    if len(reduces) != 1 or not reduces[0].dtype.is_integer:
        return False
    times = reduces[0].operand
    if not isinstance(times, K.Compute) or times.op != "mul":
        return False
    left, right = times.inputs
    length = product(kernel.extents[axis] for axis in reduces[0].over)
    return left.dtype is not i32 or _operands(left, right) is None or not _fits_in_32_bits(length)


def _simple_accesses(kernel: K.Kernel) -> tuple[dict[str, Dim], list[Access]]:
    """Axes merged where every access allows it; offsets put together again where they were split."""
    known = {}
    for load in (v for v in kernel.values if isinstance(v, K.Load) and not v.indirect):
        offset = substitute(offset_of(load), {a: symbol(a) for a in kernel.extents}, kernel.extents)
        known[load] = Access(load, offset, linear_coefficients(offset, kernel.extents))
    return merge_axes(kernel, known)


def _in_order(kernel: K.Kernel, first: K.Value, second: K.Value, accesses: dict) -> tuple[K.Value, K.Value]:
    """(left, right): the right one has the axis along which the first result's elements are neighbours."""
    access = accesses[kernel.stores[0]]
    outer = frozenset(kernel.extents) - kernel.reduced_axes

    def step(factor: K.Value, other: K.Value) -> int:
        own = (kernel.axes_of[factor] - kernel.axes_of[other]) & outer
        return min((_size(access.stride(a)) for a in own if _size(access.stride(a))), default=1 << 60)

    return (first, second) if step(second, first) <= step(first, second) else (second, first)


def _size(stride: Dim | None) -> int:
    return 1 << 40 if stride is None else size_estimate(stride) if stride != 0 else 0


def _memory_order(kernel: K.Kernel, axes: dict[str, Dim], accesses: dict) -> list[str]:
    """Axes from the largest step of the first store to the smallest."""
    access = accesses[kernel.stores[0]]
    return sorted(axes, key=lambda a: -_size(access.stride(a)))


def _columns_order(columns: tuple[str, ...], accesses: dict, right: K.Value) -> tuple[str, ...]:
    """Columns along which neighbours lie side by side in the right factor, last: they are loaded again and again, stored once."""
    load = max(loads_under(right), key=lambda v: len(v.index), default=None)
    access = accesses.get(load)
    if access is None or not any(access.stride(a) == 1 for a in columns):
        return columns
    return tuple(sorted(columns, key=lambda a: -_size(access.stride(a))))


def _summed_order(summed: Set[str], axes: dict[str, Dim], accesses: dict, left: K.Value) -> tuple[str, ...]:
    """Summed axes, outermost first: the left factor, of images the pixels, is walked through in the order of its memory."""
    load = max(loads_under(left), key=lambda v: len(v.index), default=None)
    access = accesses.get(load)
    return tuple(sorted((a for a in axes if a in summed), key=lambda a: -_size(access.stride(a) if access else 0)))


# -- operands ----------------------------------------------------------------------------------------------------------------


def _operands(left: K.Value, right: K.Value) -> tuple[K.Value, K.Value, DType] | None:
    """Both factors as a tensor core takes them: narrow if both are narrow numbers widened, else float32.

    8-bit floats that no tensor core takes are float16, which holds all of them. Of integers only signed bytes are taken.
    """
    for dtype in (i8,) if left.dtype is i32 else NARROW:
        narrow = _narrowed(left, dtype), _narrowed(right, dtype)
        if narrow[0] is not None and narrow[1] is not None:
            return narrow[0], narrow[1], dtype
    if left.dtype is i32:
        return None
    eighths = _eighth(left), _eighth(right)
    if eighths[0] is not None and eighths[1] is not None:
        if eighths[0].dtype in EIGHTH and eighths[1].dtype in EIGHTH:
            return eighths[0], eighths[1], eighths[0].dtype
        first, second = (K.Compute(f16, "cast", (_without_guard(value),)) for value in (left, right))
        return first, second, f16
    return _without_guard(left), _without_guard(right), f32


def _eighth(value: K.Value) -> K.Load | None:
    """The load of an 8-bit float that a value is the conversion of, 0 where that is masked."""
    return decoded(_without_guard(value))


def _narrowed(value: K.Value, dtype: DType) -> K.Value | None:
    """The number of `dtype` that a value is a widened form of; None if it is not."""
    match value:
        case K.Compute(op="cast") if value.inputs[0].dtype is dtype:
            (inner,) = value.inputs
            if isinstance(inner, K.Compute) and inner.op == "cast":
                # rounding what was narrow before changes nothing
                return _narrowed(inner.inputs[0], dtype) or inner
            return inner
        case K.Compute(op="where"):
            condition, inside, outside = value.inputs
            number = _narrowed(inside, dtype)
            if number is None or not _is_zero(outside):
                return None
            if _is_masked_alike(condition, number):
                return number
            return K.Compute(dtype, "where", (condition, number, K.Constant(dtype, 0.0 if dtype.is_float else 0)))
    return None


def _without_guard(value: K.Value) -> K.Value:
    """where(inside, load, 0) of a load that gives 0 outside by itself."""
    if isinstance(value, K.Compute) and value.op == "where" and _is_zero(value.inputs[2]):
        condition, inside, _ = value.inputs
        if _is_masked_alike(condition, inside):
            return inside
    return value


def _is_zero(value: K.Value) -> bool:
    return isinstance(value, K.Constant) and value.value == 0


def _is_masked_alike(condition: K.Value, value: K.Value) -> bool:
    """Whether a load, perhaps cast, is masked by just this condition: elements masked out are read as 0."""
    while isinstance(value, K.Compute) and value.op == "cast":
        (value,) = value.inputs
    value = decoded(value) or value
    return isinstance(condition, K.Within) and isinstance(value, K.Load) and set(condition.bounds) == set(value.guard)


# -- cost --------------------------------------------------------------------------------------------------------------------


def operations_of(factor: K.Value) -> int | None:
    """Scalar operations of a factor besides casts and guards; None if one is expensive."""
    count, seen, stack = 0, set(), [factor]
    while stack:
        value = stack.pop()
        if value in seen:
            continue
        seen.add(value)
        if decoded(value) is not None:
            continue
        stack.extend(value.operands)
        if isinstance(value, K.Compute) and value.op not in ("cast", "where"):
            if value.op in EXPENSIVE:
                return None
            count += 1
    return count


def has_plain_factors(form: Form) -> bool:
    """Whether both factors are loads, of neighbouring numbers along one axis, that nothing guards."""
    for factor, own in ((form.left, form.rows), (form.right, form.columns)):
        if not isinstance(factor, K.Load) or factor.guard or len(own) != 1 or len(form.summed) != 1:
            return False
        strides = [form.accesses[factor].stride(axis) for axis in (*own, *form.summed)]
        if any(not isinstance(s, int) for s in strides) or 1 not in strides:
            return False
        if any(s != 1 and s * factor.dtype.bytes % 16 for s in strides if isinstance(s, int)):
            return False
    return True
