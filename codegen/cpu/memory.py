"""Loads and stores of a kernel: contiguous vectors, the same element for all lanes, gathers, and tiles turned in registers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dlcompiler.codegen.cpu.emitter import Emitter, Value
from dlcompiler.codegen.cpu.indexing import Number
from dlcompiler.codegen.cpu.scalars import element_name
from dlcompiler.ir import kernel as K
from dlcompiler.ir.expression import Dim, linear_coefficients, symbol, symbols
from dlcompiler.ir.types import contiguous_strides

if TYPE_CHECKING:
    from dlcompiler.codegen.cpu.writer import KernelWriter


def turned(e: Emitter, rows: list[Value]) -> list[Value]:
    """Transpose n vectors of n lanes by log2(n) rounds of interleaving the two halves of the list."""
    count = len(rows)
    low = [lane // 2 + (lane % 2) * count for lane in range(count)]
    high = [lane + count // 2 for lane in low]
    half = count // 2
    for _ in range(count.bit_length() - 1):
        rows = [e.shuffle(rows[k // 2], rows[k // 2 + half], high if k % 2 else low) for k in range(count)]
    return rows


class MemoryWriter:
    """Writes the memory statements of one kernel for the lanes that its KernelWriter holds."""

    def __init__(self, writer: KernelWriter) -> None:
        self.writer = writer
        self.e = writer.e
        self.pointers: dict[K.Buffer, Value] = {}

    # -- loads -------------------------------------------------------------------------------------------------------------

    def load(self, load: K.Load) -> tuple[Value, ...]:
        """The loaded element, or one vector for each copy."""
        w = self.writer
        if not w.varies(load):
            return (self._load_one(load, 0),)
        if w.lanes.width and self._is_turned(load):
            return self._load_turned(load)
        return tuple(
            self._load_lanes(load, copy) if self._moves_with_lanes(load) else self._load_one(load, copy)
            for copy in range(w.lanes.copies)
        )

    def _moves_with_lanes(self, load: K.Load) -> bool:
        """Whether lanes read different elements (or under different conditions)."""
        return bool(self.writer.lanes.width) and self.writer.schedule.vector in self.writer.axes_of[load]

    def _load_one(self, load: K.Load, copy: int) -> Value:
        """A single element."""
        w, e = self.writer, self.e
        element = element_name(load.dtype)
        with_indirect = self._bind_indirect(load, copy)
        offset = w.lane_index(w.schedule.accesses[load].offset, copy)
        self._unbind(with_indirect)
        pointer = self.pointers[load.buffer]
        if not load.guard:
            return e.load(pointer, offset, element)
        condition = self.within(load.guard, copy)
        (value,) = e.if_else(condition, lambda: [e.load(pointer, offset, element)], lambda: [e.constant(0, element)])
        return value

    def _load_lanes(self, load: K.Load, copy: int) -> Value:
        w, e = self.writer, self.e
        access = w.schedule.accesses[load]
        mask = self._mask(load.guard, copy)
        zero = e.constant(0, element_name(load.dtype), w.lanes.width)
        stride = self._lane_stride(load)
        pointer = self.pointers[load.buffer]
        with_indirect = self._bind_indirect(load, copy)
        if stride is None:
            offsets = w.lane_indices(access.offset, copy)
            self._unbind(with_indirect)
            return self._if_any(load, mask, zero, lambda: self._gather(pointer, offsets, mask, zero))
        base = self._first(access.offset, copy)
        self._unbind(with_indirect)
        if stride == 0:  # only the guard moves with the lanes: read where any lane may
            return self._load_under(pointer, base, mask, zero)
        if stride == 1:
            if mask is None:
                return e.load(pointer, base, element_name(load.dtype), w.lanes.width)
            return e.masked_load(pointer, base, mask, zero)
        if stride == -1:
            return self._if_any(load, mask, zero, lambda: self._load_backwards(pointer, base, mask, zero))
        steps = w.lane_steps(stride)
        held = mask if mask is not None else self._all()
        return self._if_any(load, mask, zero, lambda: e.gather(pointer, base, steps, held, zero))

    def _if_any(self, load: K.Load, mask: Value | None, zero: Value, read: Callable[[], Value]) -> Value:
        """`read()`, for a guarded load only if some lane is inside: at most places a guard holds for all lanes or none."""
        if not load.guard or mask is None:
            return read()
        (value,) = self.e.if_else(self.e.any(mask), lambda: [read()], lambda: [zero])
        return value

    def _load_backwards(self, pointer: Value, base: Number, mask: Value | None, zero: Value) -> Value:
        """Lane k from k elements before the first."""
        e, lanes = self.e, zero.lanes
        turned = list(reversed(range(lanes)))
        start = self.writer.index.plus(base, 1 - lanes)
        if mask is None:
            backwards = e.load(pointer, start, zero.element, lanes)
        else:
            backwards = e.masked_load(pointer, start, e.shuffle(mask, mask, turned), zero)
        return e.shuffle(backwards, backwards, turned)

    def _lane_stride(self, load: K.Load) -> Dim | None:
        """Elements from one lane's to the next; None if not evenly spaced. An index that data gives may be one for all lanes."""
        w = self.writer
        access, vector = w.schedule.accesses[load], w.schedule.vector
        if not load.indirect:
            return access.stride(vector)
        if vector is None or any(vector in w.axes_of[value] for value in load.indirect):
            return None
        coefficients = linear_coefficients(access.offset, w.schedule.axes)
        return None if coefficients is None else coefficients.get(vector, 0)

    def _load_under(self, pointer: Value, base: Number, mask: Value | None, zero: Value) -> Value:
        e = self.e
        if mask is None:
            return e.broadcast(e.load(pointer, base, zero.element), zero.lanes)
        return e.if_else(
            e.any(mask),
            lambda: [e.select(mask, e.broadcast(e.load(pointer, base, zero.element), zero.lanes), zero)],
            lambda: [zero],
        )[0]

    def _gather(self, pointer: Value, offsets: Number, mask: Value | None, zero: Value) -> Value:
        e = self.e
        if not isinstance(offsets, Value) or not offsets.lanes:
            return self._load_under(pointer, offsets, mask, zero)
        return e.gather(pointer, 0, offsets, mask if mask is not None else self._all(), zero)

    def _all(self) -> Value:
        return self.e.constant(True, "i1", self.writer.lanes.width)

    # -- where ---------------------------------------------------------------------------------------------------------------

    def _first(self, offset: Dim, copy: int) -> Number:
        """The offset of a copy's first lane."""
        w = self.writer
        number = w.index.write(offset)
        stride: Number
        if w.schedule.transposes:
            access_axis, amount = w.schedule.unroll_axis, copy
        else:
            access_axis, amount = w.schedule.vector, copy * w.lanes.width
        if not amount or access_axis not in symbols(offset):
            return number
        coefficients = linear_coefficients(offset, w.schedule.axes)
        assert coefficients is not None
        stride = w.index.write(coefficients.get(access_axis, 0))
        return w.index.plus(number, w.index.times(stride, amount))

    def _bind_indirect(self, load: K.Load, copy: int) -> list[str]:
        names = []
        for number, value in enumerate(load.indirect):
            name = f"@{number}"
            self.writer.axis_values[name] = self.writer.copy_of(value, copy)
            names.append(name)
        return names

    def _unbind(self, names: Sequence[str]) -> None:
        for name in names:
            del self.writer.axis_values[name]

    def within(self, bounds: Sequence[K.Bound], copy: int) -> Value:
        """Whether all bounds hold: an i1, or lanes of it."""
        e, w = self.e, self.writer
        result: Value | None = None
        for bound in bounds:
            number = w.lane_index(bound.expression, copy)
            number = number if isinstance(number, Value) else e.constant(number, "i64")
            # one unsigned comparison: a negative number is a huge one
            holds = e.compare("lt", number, w.lane_index(bound.extent, copy), signed=False)
            if result is not None:
                width = max(result.lanes, holds.lanes)
                holds = e.bit_and(e.broadcast(result, width), e.broadcast(holds, width)) if width else e.bit_and(result, holds)
            result = holds
        assert result is not None
        return result

    def _mask(self, guard: Sequence[K.Bound], copy: int) -> Value | None:
        e, lanes = self.e, self.writer.lanes
        if not guard:
            return lanes.mask
        condition = e.broadcast(self.within(guard, copy), lanes.width)
        return condition if lanes.mask is None else e.bit_and(condition, lanes.mask)

    # -- stores --------------------------------------------------------------------------------------------------------------

    def store(self, store: K.Store, copies: tuple[Value, ...]) -> None:
        """Store the value: at one element, or one vector for each copy."""
        w, e = self.writer, self.e
        access = w.schedule.accesses[store]
        pointer = self.pointers[store.buffer]
        axes = symbols(access.offset)
        moving = {w.schedule.vector, w.schedule.unroll_axis} & axes if w.lanes.base is not None else set()
        if not moving or not w.lanes.width:
            e.store(copies[0], pointer, w.index.write(access.offset))
            return
        values = [e.broadcast(copies[k] if len(copies) > 1 else copies[0], w.lanes.width) for k in range(w.lanes.copies)]
        if self._is_turned(store):
            self._store_turned(store, values)
            return
        stride = access.stride(w.schedule.vector)
        held = w.lanes.mask if w.lanes.mask is not None else self._all()
        for copy, value in enumerate(values):
            if stride is None:
                offsets = w.lane_indices(access.offset, copy)
                e.scatter(value, pointer, 0, offsets, held)
                continue
            base = self._first(access.offset, copy)
            if stride == 1 and w.lanes.mask is None:
                e.store(value, pointer, base, nontemporal=w.streaming)
            elif stride == 1:
                e.masked_store(value, pointer, base, held)
            else:
                steps = w.lane_steps(stride)
                e.scatter(value, pointer, base, steps, held)

    # -- tiles turned in registers -------------------------------------------------------------------------------------------

    def _is_turned(self, statement: K.Load | K.Store) -> bool:
        w = self.writer
        if not w.schedule.transposes or w.lanes.copies != w.lanes.width or not w.lanes.width:
            return False
        access = w.schedule.accesses[statement]
        return access.stride(w.schedule.vector) not in (0, 1, None) and access.stride(w.schedule.unroll_axis) == 1

    def _rows_along_unrolled(self, statement: K.Load | K.Store) -> list[Number]:
        """Offsets of the tile's rows that run along the unrolled axis, one for each step of the vector axis."""
        w = self.writer
        access = w.schedule.accesses[statement]
        base = w.index.write(access.offset)
        step = access.stride(w.schedule.vector)
        assert step is not None
        stride = w.index.write(step)
        return [w.index.plus(base, w.index.times(stride, k)) for k in range(w.lanes.width)]

    def _load_turned(self, load: K.Load) -> tuple[Value, ...]:
        e, width = self.e, self.writer.lanes.width
        pointer, element = self.pointers[load.buffer], element_name(load.dtype)
        offsets = self._rows_along_unrolled(load)

        def whole() -> list[Value]:
            return [e.load(pointer, offset, element, width) for offset in offsets]

        if not load.guard:
            return tuple(turned(e, whole()))
        # of a row of the tile all numbers are inside or none: a guard that moved along it would not have been turned
        inside = e.broadcast(self.within(load.guard, 0), width)
        zero = e.constant(0, element, width)

        def partly() -> list[Value]:
            masks = [e.broadcast(e.extract(inside, k), width) for k in range(width)]
            return [e.masked_load(pointer, offset, mask, zero) for offset, mask in zip(offsets, masks)]

        return tuple(turned(e, list(e.if_else(e.any(e.bit_not(inside)), partly, whole))))

    def _store_turned(self, store: K.Store, values: list[Value]) -> None:
        for offset, row in zip(self._rows_along_unrolled(store), turned(self.e, values)):
            self.e.store(row, self.pointers[store.buffer], offset)

    # -- scratch rows ----------------------------------------------------------------------------------------------------------

    def _scratch_offset(self, copy: int) -> Number:
        """Where the current point of the reduced axes (and copy) lies in a scratch row."""
        w = self.writer
        schedule = w.schedule
        inner = schedule.inner
        strides = contiguous_strides(tuple(schedule.axes[a] for a in inner))
        place: Dim = 0
        for axis, stride in zip(inner, strides):
            place = place + symbol(axis) * stride
        number = w.index.write(place)
        width = max(w.lanes.width, 1)
        if schedule.vector_is_reduced:
            return w.index.plus(number, copy * width)
        return w.index.plus(w.index.times(number, max(schedule.lanes, 1) * schedule.unroll), copy * width)

    def store_scratch(self, value: K.Value, copies: tuple[Value, ...]) -> None:
        w = self.writer
        for copy in range(w.lanes.copies if w.lanes.base is not None else 1):
            vector = copies[copy] if len(copies) > 1 else copies[0]
            if w.lanes.width:
                vector = self.e.broadcast(vector, w.lanes.width)
            self.e.store(vector, w.scratch[value], self._scratch_offset(copy))

    def load_scratch(self, value: K.Value) -> tuple[Value, ...]:
        w = self.writer
        count = w.lanes.copies if w.lanes.base is not None else 1
        width = w.lanes.width if w.lanes.base is not None else 0
        element = element_name(value.dtype)
        return tuple(self.e.load(w.scratch[value], self._scratch_offset(copy), element, width) for copy in range(count))
