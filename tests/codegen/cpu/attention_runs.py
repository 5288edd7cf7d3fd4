"""Operands of attention in any layout, and the calls of its hand-written kernels that tests make."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from dlcompiler.codegen.cpu.compile import write_kernel
from dlcompiler.codegen.cpu.jit import compile_mlir
from dlcompiler.codegen.cpu.machine import Machine
from dlcompiler.codegen.cpu.routines import routines
from dlcompiler.ir.expression import Dim, evaluate
from dlcompiler.ir.graph import Builder, Node
from dlcompiler.ir.interpret import interpret_graph
from dlcompiler.ir.program import RoutineCall, Slot, View
from dlcompiler.ir.types import DType, TensorType, bf16, boolean, contiguous_strides, dtype_of, f16, f32, f64

# largest error of a result, as a part of the largest result
TOLERANCE = {f32: 1e-5, f64: 1e-13, f16: 1e-3, bf16: 8e-3}

# -- operands ----------------------------------------------------------------------------------------------------------------


def laid_out(array: np.ndarray, order: Sequence[int], step: int = 1) -> np.ndarray:
    """The same elements in memory where dimensions follow each other in `order` and the innermost has stride `step`."""
    memory = np.zeros([array.shape[d] * (step if d == order[-1] else 1) for d in order], array.dtype)
    slices = [slice(None, None, step if d == order[-1] else None) for d in order]
    result = memory[tuple(slices)].transpose(np.argsort(order))
    result[...] = array
    return result


def guarded(array: np.ndarray, at_end: bool) -> np.ndarray:
    """A row major copy whose last byte (or first) lies beside a page that no one may touch."""
    page = mmap.PAGESIZE
    size = -(-max(array.nbytes, 1) // page) * page
    memory = mmap.mmap(-1, size + 2 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for beside in (start, start + page + size):
        if protect(beside, page, 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = page + (size - array.nbytes if at_end else 0)
    copy = np.frombuffer(memory, array.dtype, array.size, offset).reshape(array.shape)
    copy[...] = array
    return copy


def element_strides(array: np.ndarray) -> tuple[int, ...]:
    return tuple(step // array.itemsize for step in array.strides)


def random(rng: np.random.Generator, shape: Sequence[int], dtype: DType) -> np.ndarray:
    if dtype is boolean:
        return rng.random(tuple(shape)) < 0.6
    return rng.standard_normal(tuple(shape)).astype(np.float32).astype(dtype.numpy)


# -- running -----------------------------------------------------------------------------------------------------------------


@cache
def compiled(text: str):
    """The entry point of a module; many calls differ in their numbers only."""
    return compile_mlir(text, ["kernel"]).function("kernel")


# symbolic shapes and strides of arrays
Views = Sequence[tuple[tuple[Dim, ...], tuple[Dim, ...]]]


def run_routine(
    op: str,
    operands: Sequence[np.ndarray],
    outs: Sequence[np.ndarray],
    described: Machine,
    attributes: Mapping[str, Any],
    views: Views = (),
    sizes: Mapping[str, int] | None = None,
    parts: int = 3,
) -> None:
    """Run a routine over its whole range in `parts` calls. `views` are for all arrays or none.

    Scratch begins as NaN, counters as 0. The code is also run for machines on which a library is quicker.
    """
    sizes = sizes or {}
    arrays = [*operands, *outs]
    shown = list(views) or [(a.shape, element_strides(a)) for a in arrays]
    node = node_of(op, [TensorType(dtype_of(a), shape) for a, (shape, _) in zip(operands, shown)], attributes)
    for type in routines()[op].scratch(node, described):
        shape = tuple(evaluate(size, sizes) for size in type.shape)
        arrays.append(np.full(shape, 0 if type.dtype.is_integer else np.nan, type.dtype.numpy))
        shown.append((type.shape, contiguous_strides(type.shape)))
    slots = [View(Slot(f"x{k}", dtype_of(a), *v, "intermediate"), *v) for k, (a, v) in enumerate(zip(arrays, shown))]
    call = RoutineCall(op, tuple(slots[: len(operands)]), tuple(slots[len(operands) :]), dict(attributes))
    text, written = write_kernel(call, described)
    function = compiled(text)
    numbers = [sizes[name] for name in call.size_symbols]
    words = (ctypes.c_int64 * (len(arrays) + len(numbers)))(*(a.ctypes.data for a in arrays), *numbers)
    work = evaluate(written.work, sizes)
    ends = [work * k // parts for k in range(parts + 1)]
    for low, high in zip(ends, ends[1:]):
        function(ctypes.addressof(words), low, high)


def node_of(op: str, types: Sequence[TensorType], attributes: Mapping[str, Any]) -> Node:
    b = Builder()
    return b(op, *(b.input(f"x{k}", type) for k, type in enumerate(types)), **attributes)


def meanings(op: str, operands: Sequence[np.ndarray], attributes: Mapping[str, Any]) -> list[np.ndarray]:
    """What the op's definition gives, in float64: all its results."""
    b = Builder()
    wide = [x if x.dtype == bool else x.astype(np.float64) for x in operands]
    node = b(op, *(b.input(f"x{k}", TensorType(dtype_of(x), x.shape)) for k, x in enumerate(wide)), **attributes)
    count = len(node.type.elements) if not isinstance(node.type, TensorType) else 0
    results = [b("tuple.get", node, index=k) for k in range(count)] if count else [node]
    return [np.asarray(x) for x in interpret_graph(b.finish(results), wide)]


def assert_close(out: np.ndarray, want: np.ndarray, tolerance: float | None = None, floor: float = 1e-30) -> None:
    """Errors are parts of the largest result, or of `floor` if that is larger."""
    got = out.astype(np.float64)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_array_equal(got[np.isinf(want)], want[np.isinf(want)])
    known = np.isfinite(want)
    error = np.abs(got[known] - want[known]).max(initial=0) / np.abs(want[known]).max(initial=floor)
    assert error <= (tolerance or TOLERANCE[dtype_of(out)]), f"relative error {error:.2g}"
