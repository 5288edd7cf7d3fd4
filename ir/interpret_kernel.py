"""The kernel interpreter: one scalar value after another, each for all points of the axes at once.

A value is an array with one dimension for each axis of the kernel, of size 1 where the value does not depend on that axis. What
a kernel leaves unspecified is filled with values that show (NaN, large integers), and a read out of bounds raises.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from dlcompiler.ir import kernel as K
from dlcompiler.ir.errors import InputError, VerifyError
from dlcompiler.ir.expression import Dim, evaluate
from dlcompiler.ir.kernel import Kernel
from dlcompiler.ir.scalar import apply_scalar, bitcast_array, cast_array
from dlcompiler.ir.types import DType

Environment = Mapping[str, Any]  # axis, size or `@k` -> integer array


def interpret_kernel(kernel: Kernel, buffers: Mapping[str, np.ndarray], sizes: Mapping[str, int] | None = None) -> None:
    """Run `kernel`, writing into the arrays of its `out` buffers.

    buffers  for each buffer an array of its shape, or one-dimensional memory that is read through the buffer's strides
    sizes    the value of each of `kernel.size_symbols`

    Raises InputError for arrays that do not fit, VerifyError for a read or write out of bounds.
    """
    sizes = dict(sizes or {})
    if isinstance(kernel, K.Bundle):
        for part, arrays in zip(kernel.parts, kernel.per_part([buffers[b.name] for b in kernel.buffers])):
            own = {b.name: array for b, array in zip(part.buffers, arrays)}
            interpret_kernel(part, own, {s: sizes[s] for s in part.size_symbols})
        return
    views = {b: strided_view(b.name, b.dtype, b.shape, b.strides, buffers, sizes) for b in kernel.buffers}
    run = _Run(kernel, views, sizes)
    last_use = {operand: value for value in kernel.values for operand in value.operands}
    stored = {store.value for store in kernel.stores}
    for value in kernel.values:
        run.values[value] = run.evaluate(value)
        for operand in set(value.operands):
            if last_use[operand] is value and operand not in stored:
                del run.values[operand]
    for store in kernel.stores:
        run.store(store)


def strided_view(
    name: str,
    dtype: DType,
    shape: tuple[Dim, ...],
    strides: tuple[Dim, ...],
    buffers: Mapping[str, np.ndarray],
    sizes: Mapping[str, int],
) -> np.ndarray:
    """The array called `name` with a buffer's shape: as it is, or one-dimensional memory seen through the strides."""
    if name not in buffers:
        raise InputError(f"no array for buffer {name!r}", hint=f"got {', '.join(sorted(buffers))}")
    array = buffers[name]
    try:
        wanted = tuple(evaluate(d, sizes) for d in shape)
        steps = tuple(evaluate(d, sizes) for d in strides)
    except KeyError as error:
        raise InputError(f"the size {error} is not given") from None
    if array.dtype != dtype.numpy:
        raise InputError(f"buffer {name!r} is {dtype}, not {array.dtype}")
    if array.shape == wanted:
        return array
    reach = 1 + sum((n - 1) * s for n, s in zip(wanted, steps)) if 0 not in wanted else 0
    if array.ndim != 1 or array.size < reach:
        raise InputError(f"buffer {name!r} is {dtype}{list(wanted)}, not {array.dtype}{list(array.shape)}")
    item = array.strides[0] if array.size > 1 else array.itemsize
    return np.lib.stride_tricks.as_strided(array, wanted, tuple(s * item for s in steps))


class _Run:
    """One execution: the arrays, the axes' positions, and the values so far."""

    def __init__(self, kernel: Kernel, views: Mapping[K.Buffer, np.ndarray], sizes: Mapping[str, int]) -> None:
        self.kernel, self.views = kernel, views
        self.values: dict[K.Value, np.ndarray] = {}
        self.rank = len(kernel.axes)
        self.extents = {a.name: evaluate(a.extent, sizes) for a in kernel.axes}
        self.dimension = {a.name: d for d, a in enumerate(kernel.axes)}
        self.environment: dict[str, Any] = dict(sizes)
        for name, d in self.dimension.items():
            shape = [1] * self.rank
            shape[d] = self.extents[name]
            self.environment[name] = np.arange(self.extents[name], dtype=np.int64).reshape(shape)

    def evaluate(self, value: K.Value) -> np.ndarray:
        match value:
            case K.Constant():
                result = np.asarray(value.value).astype(value.dtype.numpy)
            case K.Index():
                result = self.index(value.expression).astype(value.dtype.numpy)
            case K.Within():
                result = self.within(value.bounds, self.environment)
            case K.Load():
                result = self.load(value)
            case K.Compute():
                result = self.compute(value)
            case K.Reduce():
                result = self.reduce(value)
            case _:
                raise VerifyError(f"kernel {self.kernel.name}: a {type(value).__name__} is not a value")
        if result.dtype != value.dtype.numpy:
            raise VerifyError(f"kernel {self.kernel.name}: {value} gave {result.dtype}, not {value.dtype}")
        return result

    def index(self, expression: Dim, environment: Environment | None = None) -> np.ndarray:
        """An index expression at every point of the axes that it uses."""
        return np.asarray(_evaluate_index(expression, self.environment if environment is None else environment))

    def within(self, bounds: tuple[K.Bound, ...], environment: Environment) -> np.ndarray:
        holds = np.asarray(True)
        for bound in bounds:
            position = self.index(bound.expression, environment)
            holds = holds & (position >= 0) & (position < self.index(bound.extent, environment))
        return holds

    def load(self, value: K.Load) -> np.ndarray:
        view = self.views[value.buffer]
        environment = self.environment
        if value.indirect:
            environment = {**environment, **{f"@{k}": self.values[v].astype(np.int64) for k, v in enumerate(value.indirect)}}
        held = self.within(value.guard, environment)
        index = [self.index(e, environment) for e in value.index]
        full = np.broadcast_shapes(held.shape, *(i.shape for i in index))
        self._check_bounds(value, view, held, index, full)
        if view.size == 0:
            return _poison(value.dtype, full)
        read = np.asarray(view[tuple(np.clip(i, 0, n - 1) for i, n in zip(index, view.shape))])
        return read if held.all() else np.where(held, read, _poison(value.dtype, ()))

    def _check_bounds(self, value: K.Load, view: np.ndarray, held: np.ndarray, index: list[np.ndarray], full: tuple) -> None:
        if 0 in full:
            return
        for dimension, (position, size) in enumerate(zip(index, view.shape)):
            outside = held & ((position < 0) | (position >= size))
            if outside.any():
                raise VerifyError(
                    f"kernel {self.kernel.name} reads {value.buffer.name}[{', '.join(map(str, value.index))}] out of bounds: "
                    f"index {value.index[dimension]} of dimension {dimension}, size {size}"
                )

    def compute(self, value: K.Compute) -> np.ndarray:
        operands = [self.values[v] for v in value.inputs]
        match value.op:
            case "cast":
                return cast_array(operands[0], value.dtype)
            case "bitcast":
                return bitcast_array(operands[0], value.dtype)
        return apply_scalar(value.op, *operands)

    def reduce(self, value: K.Reduce) -> np.ndarray:
        operand = self.values[value.operand]
        if operand.ndim < self.rank:
            operand = operand.reshape((1,) * self.rank)
        shape = list(operand.shape)
        for name in value.over:
            shape[self.dimension[name]] = self.extents[name]
        operand = np.broadcast_to(operand, shape)
        axes = tuple(self.dimension[name] for name in value.over)
        if value.kind in ("argmax", "argmin"):
            return _first_position(value.kind, operand, axes)
        with np.errstate(all="ignore"):
            return _reduce(value.kind, operand, axes)

    def store(self, store: K.Store) -> None:
        view = self.views[store.buffer]
        value = self.values[store.value]
        if value.dtype != view.dtype:
            raise VerifyError(f"kernel {self.kernel.name} stores {value.dtype} into {store.buffer.name}: {view.dtype}")
        index = [self.index(e) for e in store.index]
        full = np.broadcast_shapes(*(i.shape for i in index))
        if 0 in full or 0 in value.shape:
            return
        for dimension, (position, size) in enumerate(zip(index, view.shape)):
            if ((position < 0) | (position >= size)).any():
                raise VerifyError(f"kernel {self.kernel.name} writes {store.buffer.name} out of bounds in dimension {dimension}")
        # without an index (a buffer of rank 0) or an axis in it the value has one element
        view[tuple(index)] = value if full else value.reshape(())


def _evaluate_index(expression: Dim, environment: Environment) -> Any:
    if isinstance(expression, int):
        return np.int64(expression)
    total: Any = np.int64(0)
    for monomial, coefficient in expression.terms.items():
        term: Any = np.int64(coefficient)
        for atom in monomial:
            if atom.kind == "symbol":
                name = atom.operands[0]
                if name not in environment:
                    raise InputError(f"the size {name!r} is not given")
                term = term * environment[name]
                continue
            left, right = (_evaluate_index(o, environment) for o in atom.operands)
            term = term * _INDEX_OPERATIONS[atom.kind](left, right)
        total = total + term
    return total


_INDEX_OPERATIONS = {"div": np.floor_divide, "mod": np.remainder, "max": np.maximum, "min": np.minimum}


def _poison(dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
    """What an unspecified element holds: NaN, or every second bit."""
    if dtype.kind in ("float", "complex"):
        return np.full(shape, np.nan, dtype.numpy)
    if dtype.kind == "bool":
        return np.full(shape, True)
    pattern = np.frombuffer(b"\x55" * dtype.bytes, dtype.numpy)[0]
    return np.full(shape, pattern, dtype.numpy)


def _reduce(kind: str, operand: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    dtype = operand.dtype
    match kind:
        case "add" | "mul":
            function = np.add if kind == "add" else np.multiply
            # float32 sums are the yardstick for targets that order them otherwise: more exact than any of them
            wide = np.float64 if dtype == np.float32 else dtype
            return function.reduce(operand, axis=axes, keepdims=True, dtype=wide).astype(dtype)
        case "max":
            return np.maximum.reduce(operand, axis=axes, keepdims=True, initial=lowest(dtype))
        case "min":
            return np.minimum.reduce(operand, axis=axes, keepdims=True, initial=highest(dtype))
        case "or":
            return np.logical_or.reduce(operand, axis=axes, keepdims=True)
        case "and":
            return np.logical_and.reduce(operand, axis=axes, keepdims=True)
    raise VerifyError(f"there is no reduction {kind!r}")


def _first_position(kind: str, operand: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    kept = [d for d in range(operand.ndim) if d not in axes]
    count = math.prod(operand.shape[d] for d in axes)
    flat = operand.transpose((*kept, *axes)).reshape((*(operand.shape[d] for d in kept), count))
    function = np.argmax if kind == "argmax" else np.argmin
    found = function(flat, axis=-1) if flat.shape[-1] else np.zeros(flat.shape[:-1], np.int64)
    shape = [1 if d in axes else n for d, n in enumerate(operand.shape)]
    return np.asarray(found, dtype=np.int64).reshape(shape)


def lowest(dtype: np.dtype) -> Any:
    """The identity of maximum."""
    return -np.inf if dtype.kind in "fV" else (False if dtype.kind == "b" else np.iinfo(dtype).min)


def highest(dtype: np.dtype) -> Any:
    """The identity of minimum."""
    return np.inf if dtype.kind in "fV" else (True if dtype.kind == "b" else np.iinfo(dtype).max)
