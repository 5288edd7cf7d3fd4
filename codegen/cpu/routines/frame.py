"""What every routine begins with: its arguments as pointers, sizes as numbers, and offsets of elements."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dlcompiler.codegen.cpu.emitter import Emitter, Value
from dlcompiler.codegen.cpu.indexing import IndexWriter, Number
from dlcompiler.codegen.cpu.scalars import convert, element_name
from dlcompiler.ir.expression import Dim, product
from dlcompiler.ir.program import RoutineCall, View
from dlcompiler.ir.types import DType, compute_dtype


class Argument:
    """One view that the function is given: elements are read in the dtype that kernels compute in, and written in its own."""

    def __init__(self, frame: Frame, pointer: Value, view: View) -> None:
        self.frame, self.e, self.view = frame, frame.e, view
        self.pointer = pointer
        self.dtype = view.dtype
        self.element = element_name(view.dtype)
        # halves are moved as integers: machines without arithmetic of theirs would call a library that is not there
        self.memory_element = "i16" if self.element in ("f16", "bf16") else self.element
        self.strides: list[Number] = [frame.index.write(s) for s in view.strides]

    def offset(self, place: Sequence[Number]) -> Number:
        """Elements from the first one to the one at `place`."""
        total: Number = 0
        for number, stride in zip(place, self.strides):
            total = self.frame.index.plus(total, self.frame.index.times(number, stride))
        return total

    def load(
        self, offset: Number, lanes: int = 0, stride: Number = 1, mask: Value | None = None, dtype: DType | None = None
    ) -> Value:
        """The element at an offset, or `lanes` of them `stride` apart, where the mask holds, as `dtype` (None: to compute in).

        As its own dtype: as it lies in memory, to be stored again.
        """
        e, value = self.e, self._read(offset, lanes, stride, mask)
        if dtype is not self.dtype:
            value = convert(e, e.bitcast(value, self.element), self.dtype, dtype or compute_dtype(self.dtype))
        return e.broadcast(value, lanes) if lanes else value

    def _read(self, offset: Number, lanes: int, stride: Number, mask: Value | None) -> Value:
        e = self.e
        if not lanes or (isinstance(stride, int) and stride == 0 and mask is None):
            return e.load(self.pointer, offset, self.memory_element)
        if mask is None and stride == 1:
            return e.load(self.pointer, offset, self.memory_element, lanes)
        if mask is None and stride == -1:
            backwards = e.load(self.pointer, self.frame.index.plus(offset, 1 - lanes), self.memory_element, lanes)
            return e.shuffle(backwards, backwards, list(reversed(range(lanes))))
        zero = e.constant(0, self.memory_element, lanes)
        if stride == 1 and mask is not None:
            return e.masked_load(self.pointer, offset, mask, zero)
        held = e.constant(True, "i1", lanes) if mask is None else mask
        return e.gather(self.pointer, offset, self._steps(stride, lanes), held, zero)

    def load_at(self, start: Number, steps: Number, mask: Value | None) -> Value:
        """Elements `steps`, one number a lane, beyond an offset, as they lie in memory."""
        e = self.e
        assert isinstance(steps, Value)
        held = e.constant(True, "i1", steps.lanes) if mask is None else mask
        return e.gather(self.pointer, start, steps, held, e.constant(0, self.memory_element, steps.lanes))

    def store(
        self, value: Value, offset: Number, stride: Number = 1, mask: Value | None = None, dtype: DType | None = None
    ) -> None:
        """Write the value (of `dtype`; None: that kernels compute in) from an offset on, its lanes `stride` apart."""
        e = self.e
        if dtype is not self.dtype:
            value = e.bitcast(convert(e, value, dtype or compute_dtype(self.dtype), self.dtype), self.memory_element)
        if not value.lanes or (mask is None and stride == 1):
            e.store(value, self.pointer, offset)
            return
        if mask is None and stride == -1:
            lanes = value.lanes
            backwards = e.shuffle(value, value, list(reversed(range(lanes))))
            e.store(backwards, self.pointer, self.frame.index.plus(offset, 1 - lanes))
            return
        if stride == 1 and mask is not None:
            e.masked_store(value, self.pointer, offset, mask)
            return
        held = e.constant(True, "i1", value.lanes) if mask is None else mask
        e.scatter(value, self.pointer, offset, self._steps(stride, value.lanes), held)

    def _steps(self, stride: Number, lanes: int) -> Value:
        return self.e.mul(self.e.iota(lanes), stride)


class Frame:
    """The arguments of a routine's function `(words, low, high)`; see the package's docstring."""

    def __init__(self, e: Emitter, call: RoutineCall, words: Value) -> None:
        self.e, self.call = e, call
        views = call.arguments
        sizes = {name: e.load(words, len(views) + k, "i64") for k, name in enumerate(call.size_symbols)}
        self.index = IndexWriter(e, sizes.__getitem__, {})
        self.arguments = [Argument(self, e.load(words, k, "ptr"), view) for k, view in enumerate(views)]

    def size(self, dim: Dim) -> Value:
        """A size as an i64 value."""
        number = self.index.write(dim)
        return number if isinstance(number, Value) else self.e.constant(number, "i64")

    def place(self, linear: Value, sizes: Sequence[Dim]) -> list[Number]:
        """The index of element `linear` of a row-major box of these sizes."""
        place: list[Number] = []
        for dim in reversed(sizes[1:]):
            size = self.index.write(dim)
            if isinstance(size, int) and size == 1:
                place.append(0)
                continue
            place.append(self.e.rem(linear, size, signed=False))
            linear = self.e.div(linear, size, signed=False)
        return [linear, *reversed(place)] if sizes else []


def vector_loop(e: Emitter, count: Number, lanes: int, body: Callable[[Value, int], None], start: Number = 0) -> None:
    """`body(index, lanes)` for whole vectors of [start, count), then `body(index, 0)` for each element that is left."""
    first = start if isinstance(start, Value) else e.constant(start, "i64")
    length = e.sub(count if isinstance(count, Value) else e.constant(count, "i64"), first)
    whole = e.add(first, e.sub(length, e.rem(length, lanes)))
    with e.for_loop(first, whole, lanes) as loop:
        body(loop.index, lanes)
    with e.for_loop(whole, count) as loop:
        body(loop.index, 0)


def vectors_of(e: Emitter, width: int, lanes: int) -> list[tuple[int, Value | None]]:
    """Where the vectors of a row of `width` elements begin, and which lanes exist: None for all."""
    left = width % lanes
    whole: list[tuple[int, Value | None]] = [(first, None) for first in range(0, width - left, lanes)]
    return [*whole, (width - left, e.create_mask(left, lanes))] if left else whole


def load_spread(e: Emitter, pointer: Value, at: Number, step: Number, element: str, lanes: int, mask: Value | None) -> Value:
    """A vector of elements `step` apart from `at` on, 0 where the mask does not hold."""
    if step == 1 and mask is None:
        return e.load(pointer, at, element, lanes)
    zero = e.constant(0, element, lanes)
    if step == 1 and mask is not None:
        return e.masked_load(pointer, at, mask, zero)
    every = e.constant(True, "i1", lanes) if mask is None else mask
    return e.gather(pointer, at, e.mul(e.iota(lanes), step), every, zero)


def store_spread(e: Emitter, value: Value, pointer: Value, at: Number, step: Number, mask: Value | None) -> None:
    """Write a vector's elements `step` apart from `at` on, where the mask holds."""
    if step == 1:
        if mask is None:
            e.store(value, pointer, at)
        else:
            e.masked_store(value, pointer, at, mask)
        return
    every = e.constant(True, "i1", value.lanes) if mask is None else mask
    e.scatter(value, pointer, at, e.mul(e.iota(value.lanes), step), every)


def elements(shape: Sequence[Dim]) -> Dim:
    """How many elements a box has."""
    return product(shape)
