"""Writing where data says: `scatter` and `index_update`.

Each thread has elements of its own that no other touches: places that share no index, and of these a range of neighbouring
columns. There it copies the operand and then makes the updates in the order of their indices, so that results do not depend on
the number of threads. Where all columns of a range share an index (rows of an embedding), they are combined as vectors. An index
outside its dimension updates nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from dlcompiler.codegen.cpu.emitter import Emitter, Value
from dlcompiler.codegen.cpu.indexing import Number
from dlcompiler.codegen.cpu.machine import Machine
from dlcompiler.codegen.cpu.routines import Written
from dlcompiler.codegen.cpu.routines.frame import Argument, Frame, elements, vector_loop
from dlcompiler.codegen.cpu.scalars import compute
from dlcompiler.ir.expression import Dim, floor_div
from dlcompiler.ir.graph import Node
from dlcompiler.ir.ops.scatter import UPDATES
from dlcompiler.ir.program import RoutineCall
from dlcompiler.ir.types import TensorType, compute_dtype

# Elements below which a second thread does not pay.
GRAIN_ELEMENTS = 1 << 14
# Neighbouring elements with indices of their own that one thread does together: they share cache lines.
COLUMNS = 16


class UpdateRoutine:
    """Both ops; see the module."""

    def applies(self, node: Node, machine: Machine) -> bool:
        return node.dtype.kind != "complex"

    def scratch(self, node: Node, machine: Machine) -> Sequence[TensorType]:
        return ()

    def write(self, e: Emitter, call: RoutineCall, machine: Machine, name: str) -> Written:
        writer = _ScatterWriter if call.op == "scatter" else _IndexUpdateWriter
        with e.func(name, [("words", "ptr"), ("low", "i64"), ("high", "i64")]) as (words, low, high):
            return writer(e, call, machine, words).write(low, high)


class _Writer(ABC):
    """What both ops share: `indexed` are the dimensions that indices name, `free` all others."""

    indexed: tuple[int, ...]

    def __init__(self, e: Emitter, call: RoutineCall, machine: Machine, words: Value) -> None:
        self.e, self.call = e, call
        self.frame = Frame(e, call, words)
        self.x, self.updates, *self.indices = self.frame.arguments[:-1]
        self.out = self.frame.arguments[-1]
        self.shape = call.writes[0].shape
        own = call.reads[0]
        missing = len(self.shape) - len(own.shape)
        spread: list[Dim] = [*(0 for _ in range(missing)), *(0 if n == 1 else s for n, s in zip(own.shape, own.strides))]
        self.x.strides = [self.frame.index.write(s) for s in spread]
        self.dtype = compute_dtype(self.out.dtype)
        self.vector = machine.lanes(self.dtype.bytes)

    def prepare(self) -> None:
        """Choose the columns: neighbours in memory among the free dimensions."""
        self.free = [d for d in range(len(self.shape)) if d not in self.indexed]
        self.column = next((d for d in self.free if self.out.view.strides[d] == 1 and self.shape[d] != 1), None)
        self.lanes = self.vector if self.column is not None and self._shares_indices(self.column) else 0
        self.outer = [d for d in self.free if d != self.column]

    @abstractmethod
    def _shares_indices(self, column: int) -> bool:
        """Whether all columns have one index, and their updates are neighbours too."""

    @abstractmethod
    def count(self) -> Dim:
        """Updates of one element of the free dimensions."""

    @abstractmethod
    def update_all(self, place: Sequence[Number], low: Value, high: Value) -> None:
        """Make the updates at a place of the outer dimensions, columns [low, high)."""

    def write(self, low: Value, high: Value) -> Written:
        e, frame = self.e, self.frame
        width = max(self.lanes, COLUMNS)
        columns: Dim = 1 if self.column is None else self.shape[self.column]
        blocks = floor_div(columns + width - 1, width)
        sizes = [self.shape[d] for d in self.outer]
        per_outer = frame.size(blocks)
        some = e.compare("lt", low, high)
        first = e.select(some, e.div(low, e.maximum(per_outer, 1)), e.constant(0, "i64"))
        last = e.select(some, e.div(e.sub(high, 1), e.maximum(per_outer, 1)), e.constant(-1, "i64"))
        with e.for_loop(first, e.add(last, 1)) as loop:
            start = e.mul(loop.index, per_outer)
            begin = e.mul(e.maximum(e.sub(low, start), 0), width)
            end = e.minimum(e.mul(e.minimum(e.sub(high, start), per_outer), width), frame.size(columns))
            place: list[Number] = [0] * len(self.shape)
            for d, number in zip(self.outer, frame.place(loop.index, sizes)):
                place[d] = number
            self._copy(place, begin, end)
            self.update_all(place, begin, end)
        extent = elements([self.shape[d] for d in self.indexed]) + self.count()
        each = extent * width if isinstance(extent, int) else 1024 * width
        how = "columns that share an index, as vectors" if self.lanes else "elements with an index each"
        return Written(elements([*sizes, blocks]), max(GRAIN_ELEMENTS // max(each, 1), 1), how)

    # -- what is there before ------------------------------------------------------------------------------------------------

    def _copy(self, place: list[Number], low: Value, high: Value) -> None:
        """The operand's elements at a place of the outer dimensions, columns [low, high)."""
        e, frame = self.e, self.frame
        x, out = self.x, self.out
        same = None if any(s != 0 for s in x.strides) else x.load(0, dtype=x.dtype)
        # the innermost loop is along what is contiguous: the columns, or the last indexed dimension
        inner = self.column if self.column is not None else self.indexed[-1]
        around = [d for d in self.indexed if d != inner]
        start, end = (low, high) if self.column is not None else (e.constant(0, "i64"), frame.size(self.shape[inner]))

        def write_along(at: list[Number]) -> None:
            begin_x, begin_out = x.offset(at), out.offset(at)

            def body(index: Value, lanes: int) -> None:
                if same is not None:
                    value = e.broadcast(same, lanes) if lanes else same
                else:
                    value = x.load(self._moved(begin_x, index, x.strides[inner]), lanes, x.strides[inner], dtype=x.dtype)
                out.store(value, self._moved(begin_out, index, out.strides[inner]), out.strides[inner], dtype=x.dtype)

            vector_loop(e, end, self.vector, body, start)

        if not around:
            write_along([0 if d == inner else n for d, n in enumerate(place)])
            return
        sizes = [self.shape[d] for d in around]
        with e.for_loop(0, frame.size(elements(sizes))) as loop:
            at = list(place)
            for d, number in zip(around, frame.place(loop.index, sizes)):
                at[d] = number
            write_along(at)

    # -- updates -------------------------------------------------------------------------------------------------------------

    def combine(self, target: Number, source: Number, lanes: int, stride: Number = 1) -> None:
        """One update of the element (or vector) at an offset of the result with that at an offset of the updates."""
        out = self.out
        operation = UPDATES[self.call.attributes["kind"]]
        if operation is None:
            out.store(self.updates.load(source, lanes, stride, dtype=out.dtype), target, dtype=out.dtype)
            return
        new = self.updates.load(source, lanes, stride)
        out.store(compute(self.e, operation, self.dtype, out.load(target, lanes), new), target)

    def if_inside(self, indices: Sequence[tuple[Value, int]], then: Callable[[Number], None]) -> None:
        """`then(offset)` if each index lies in its dimension of the result; the offset is what they add up to."""
        e = self.e
        offset: Number = 0
        inside: Value | None = None
        for at, d in indices:
            holds = e.compare("lt", at, self.frame.size(self.shape[d]), signed=False)
            inside = holds if inside is None else e.bit_and(inside, holds)
            offset = self._moved(offset, at, self.out.strides[d])
        assert inside is not None
        with e.if_then(inside):
            then(offset)

    def load_index(self, argument: Argument, place: Sequence[Number]) -> Value:
        e = self.e
        value = argument.load(argument.offset(place), dtype=argument.dtype)
        return e.convert(value, "i64", source_signed=argument.dtype.is_signed)

    def columns(self, target: Number, source: Number, low: Value, high: Value, stride: Number) -> None:
        """An update of the columns [low, high) from offsets of their first ones."""

        def body(column: Value, lanes: int) -> None:
            self.combine(self.frame.index.plus(target, column), self._moved(source, column, stride), lanes, stride)

        if self.lanes:
            vector_loop(self.e, high, self.lanes, body, low)
        else:
            with self.e.for_loop(low, high) as loop:
                body(loop.index, 0)

    def _moved(self, offset: Number, steps: Number, stride: Number) -> Number:
        return self.frame.index.plus(offset, self.frame.index.times(steps, stride))


class _ScatterWriter(_Writer):
    def __init__(self, e: Emitter, call: RoutineCall, machine: Machine, words: Value) -> None:
        super().__init__(e, call, machine, words)
        self.axis: int = call.attributes["axis"]
        self.indexed = (self.axis,)
        self.prepare()

    def _shares_indices(self, column: int) -> bool:
        (indices,) = self.indices
        return indices.view.strides[column] == 0 and self.updates.view.strides[column] == 1

    def count(self) -> Dim:
        return self.updates.view.shape[self.axis]

    def update_all(self, place: Sequence[Number], low: Value, high: Value) -> None:
        """The updates may have fewer elements than the result in the other dimensions."""
        e, frame = self.e, self.frame
        (indices,) = self.indices
        covered = e.constant(True, "i1")
        for d in self.outer:
            covered = e.bit_and(covered, e.compare("lt", frame.size(0) + place[d], frame.size(indices.view.shape[d])))
        end = high if self.column is None else e.minimum(high, frame.size(indices.view.shape[self.column]))
        with e.if_then(covered), e.for_loop(0, frame.size(self.count())) as loop:
            at = list(place)
            at[self.axis] = loop.index
            if self.lanes:
                self._shared(place, at, low, end)
            elif self.column is None:
                self._one(place, at)
            else:
                with e.for_loop(low, end) as column:
                    own, source = list(place), list(at)
                    own[self.column] = source[self.column] = column.index
                    self._one(own, source)

    def _shared(self, place: Sequence[Number], at: Sequence[Number], low: Value, high: Value) -> None:
        base, source = self.out.offset(place), self.updates.offset(at)
        index = self.load_index(self.indices[0], at)
        self.if_inside(
            [(index, self.axis)],
            lambda offset: self.columns(self.frame.index.plus(base, offset), source, low, high, 1),
        )

    def _one(self, place: Sequence[Number], at: Sequence[Number]) -> None:
        base, source = self.out.offset(place), self.updates.offset(at)
        index = self.load_index(self.indices[0], at)
        self.if_inside([(index, self.axis)], lambda offset: self.combine(self.frame.index.plus(base, offset), source, 0))


class _IndexUpdateWriter(_Writer):
    def __init__(self, e: Emitter, call: RoutineCall, machine: Machine, words: Value) -> None:
        super().__init__(e, call, machine, words)
        self.indexed = tuple(call.attributes["axes"])
        first = self.indexed[0]
        behind = len(self.shape) - first - len(self.indexed)
        self.positions = self.updates.view.shape[first : len(self.updates.view.shape) - behind]
        self.prepare()

    def _update_dimension(self, d: int) -> int:
        """Where a free dimension of the result stands among those of the updates."""
        return d if d < self.indexed[0] else d - len(self.indexed) + len(self.positions)

    def _shares_indices(self, column: int) -> bool:
        return self.updates.view.strides[self._update_dimension(column)] in (0, 1)

    def count(self) -> Dim:
        return elements(self.positions)

    def update_all(self, place: Sequence[Number], low: Value, high: Value) -> None:
        e, frame = self.e, self.frame
        first = self.indexed[0]
        with e.for_loop(0, frame.size(self.count())) as loop:
            position = frame.place(loop.index, self.positions)
            at: list[Number] = [0] * len(self.updates.strides)
            at[first : first + len(position)] = position
            for d in self.outer:
                at[self._update_dimension(d)] = place[d]
            indices = [(self._index(argument, position), d) for argument, d in zip(self.indices, self.indexed)]
            base, source = self.out.offset(place), self.updates.offset(at)
            stride = 0 if self.column is None else self.updates.strides[self._update_dimension(self.column)]

            def update(offset: Number) -> None:
                target = frame.index.plus(base, offset)
                if self.column is None:
                    self.combine(target, source, 0)
                else:
                    self.columns(target, source, low, high, stride)

            self.if_inside(indices, update)

    def _index(self, argument: Argument, position: Sequence[Number]) -> Value:
        """An index of the broadcast position."""
        own = argument.view.shape
        place = [0 if size == 1 else n for n, size in zip(position[len(position) - len(own) :], own)]
        return self.load_index(argument, place)
