"""The time loop of recurrent layers: tiles of rows of the batch by panels of hidden units, step after step.

Threads divide either the batch, or the hidden units. There every step needs what all units made in the step before, so the parts
count themselves off in an atomic counter after each step and wait for the others. That is safe since the driver runs the parts
of one step on different threads of one team, or all of it as one part.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

from dlcompiler.codegen.cpu.emitter import Emitter, Value
from dlcompiler.codegen.cpu.indexing import IndexWriter, Number
from dlcompiler.codegen.cpu.routines.recurrent_form import Form
from dlcompiler.codegen.cpu.scalars import element_name
from dlcompiler.ir.expression import Dim
from dlcompiler.ir.program import RoutineCall, View

SPINS = 2000  # looks at a counter before the processor is offered to others
LINE = 8  # counters of two directions lie this many words apart: on different cache lines

# the first of some rows or panels, and the one after the last
Range = tuple[Value, Value]
AnyForm = TypeVar("AnyForm", bound=Form)


class TimeLoop(ABC, Generic[AnyForm]):
    """Writes the functions of one loop over time steps; what a step does is said by who derives from it."""

    # whether something is done after the last step with what all units made in it
    reads_last = False

    def __init__(self, e: Emitter, shape: AnyForm, call: RoutineCall, name: str, steps: Dim) -> None:
        self.e, self.shape, self.call, self.name, self.steps = e, shape, call, name, steps
        self.element = element_name(shape.dtype)

    # -- what a loop does ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def _packed(self, direction: int) -> Value:
        """The weight of a direction, in panels."""

    @abstractmethod
    def _begin(self, direction: int, rows: Range, panels: Range) -> None:
        """Before the first step."""

    @abstractmethod
    def _first_state(self, direction: int) -> list[Value]:
        """What goes from step to step."""

    @abstractmethod
    def _step(
        self, direction: int, packed: Value, number: Value, state: Sequence[Value], rows: Range, panels: Range
    ) -> list[Value]:
        """Step `number` of the loop; what goes to the next one."""

    @abstractmethod
    def _finish(self, direction: int, state: Sequence[Value], rows: Range, panels: Range) -> None:
        """After the last step."""

    # -- all steps -------------------------------------------------------------------------------------------------------------

    def _write_main(self) -> None:
        e, call = self.e, self.call
        with e.func(self.name, [("args", "ptr"), ("low", "i64"), ("high", "i64")]) as (args, low, high):
            arguments = call.arguments
            addresses = e.buffers(args, len(arguments))
            sizes = {name: e.load(args, len(arguments) + k, "i64") for k, name in enumerate(call.size_symbols)}
            self.index = IndexWriter(e, sizes.__getitem__, {})
            self.reads = addresses[: len(call.reads)]
            self.writes = addresses[len(call.reads) :]
            if self.shape.splits:
                self._divide_batch(low, high)
            else:
                self._divide_units(low, high)

    def _number(self, dim: Dim) -> Value:
        """A dimension as an i64."""
        number = self.index.write(dim)
        return number if isinstance(number, Value) else self.e.constant(number, "i64")

    def _divide_batch(self, low: Value, high: Value) -> None:
        e, shape = self.e, self.shape
        batch, splits = self._number(shape.batch), shape.splits
        for direction in range(shape.directions):
            first = direction * splits
            with e.for_loop(e.maximum(low, first), e.minimum(high, first + splits)) as loop:
                part = loop.index - first
                rows = e.div(batch * part, splits), e.div(batch * (part + 1), splits)
                panels = e.constant(0, "i64"), e.constant(shape.panels, "i64")
                packed = self._packed(direction)
                self._begin(direction, rows, panels)
                with e.for_loop(0, self._number(self.steps), carried=self._first_state(direction)) as steps:
                    steps.next(*self._step(direction, packed, steps.index, steps.carried, rows, panels))
                self._finish(direction, steps.results, rows, panels)

    def _divide_units(self, low: Value, high: Value) -> None:
        """Each part has panels of its own, of any direction, and waits after each step for those who have the others."""
        e, shape = self.e, self.shape
        rows = e.constant(0, "i64"), self._number(shape.batch)
        packed, ranges = [], []
        for direction in range(shape.directions):
            first = direction * shape.panels
            start = e.minimum(e.maximum(low - first, 0), shape.panels)
            ranges.append((start, e.minimum(e.maximum(high - first, 0), shape.panels)))
            packed.append(self._packed(direction))
            self._begin(direction, rows, ranges[-1])
        directions = range(shape.directions)
        carried = [value for direction in directions for value in self._first_state(direction)]
        size = len(carried) // shape.directions
        count = self._number(self.steps)
        with e.for_loop(0, count, carried=carried) as steps:
            following = []
            for direction in directions:
                states = steps.carried[size * direction : size * (direction + 1)]
                following += self._step(direction, packed[direction], steps.index, states, rows, ranges[direction])
                counter = e.offset(self.writes[-1], direction * LINE, "i64")
                mine = ranges[direction][1] - ranges[direction][0]
                e.op("i64", 0, "llvm.atomicrmw add {}, {} acq_rel : !llvm.ptr, i64", counter, mine)
            for direction in directions:
                # who has no part of a direction waits for none, and nobody needs to after the last step of a scan
                begin, end = ranges[direction]
                waits = e.compare("lt", begin, end)
                if not self.reads_last:
                    waits = e.bit_and(waits, e.compare("lt", steps.index + 1, count))
                with e.if_then(waits):
                    self._wait(e.offset(self.writes[-1], direction * LINE, "i64"), (steps.index + 1) * shape.panels)
            steps.next(*following)
        for direction in directions:
            self._finish(direction, steps.results[size * direction : size * (direction + 1)], rows, ranges[direction])

    def _wait(self, counter: Value, wanted: Value) -> None:
        """Look at the counter until it is `wanted` or more; after many looks give the core away, should one of ours need it."""
        e = self.e
        e.declare("sched_yield", [], "i32")
        zero, one, spins = e.constant(0, "i64"), e.constant(1, "i64"), e.constant(SPINS, "i64")
        looked, again, inside = e.value("i64"), e.value("i64"), e.value("i64")
        e.line(f"{looked.name} = scf.while ({inside.name} = {{}}) : (i64) -> i64 {{", zero)
        seen = e.op("i64", 0, "llvm.load {} atomic acquire {alignment = 8 : i64} : !llvm.ptr -> i64", counter)
        e.line(f"scf.condition({{}}) {inside.name} : i64", e.compare("lt", seen, wanted))
        e.line("} do {")
        e.line(f"^bb0({again.name}: i64):")
        if e.machine is not None and e.machine.name.startswith("x86"):
            e.line('llvm.call_intrinsic "llvm.x86.sse2.pause"() : () -> ()')
        with e.if_then(e.compare("ge", again, spins)):
            e.call("sched_yield", [], "i32")
        e.line("scf.yield {} : i64", e.add(again, one))
        e.line("}")

    # -- one step --------------------------------------------------------------------------------------------------------------

    def _kinds(self) -> tuple[bool, ...]:
        """Whether panels are full, or the last one with units missing."""
        partial = self.shape.last_units < self.shape.units
        return (*((False,) if self.shape.panels > 1 or not partial else ()), *((True,) if partial else ()))

    def _tiles(
        self,
        ranges: Sequence[Value],
        streams: Sequence[tuple[Value, Value | None, Number]],
        others: Sequence[Value],
        kind: str = "tile",
    ) -> None:
        """Call the function of every tile in ranges of rows and panels: a panel is streamed once for all rows.

        `streams`: (address, what a row of the batch moves it by, what a panel does); `others` are handed on as they are.
        """
        e, shape = self.e, self.shape
        row_low, row_high, panel_low, panel_high = ranges

        def rows_of(panel: Value, last: bool) -> None:
            at = [e.offset(p, self._times(panel, step), self.element) for p, _, step in streams]
            low = row_low
            for height in shape.heights:
                high = low + e.div(row_high - low, height) * height
                with e.for_loop(low, high, height) as loop:
                    given = [
                        p if step is None else e.offset(p, loop.index * step, self.element)
                        for p, (_, step, _) in zip(at, streams)
                    ]
                    e.call(f"{self.name}_{kind}{height}_{int(last)}", [*given, *others])
                low = high

        kinds = self._kinds()
        full = shape.panels - (1 if True in kinds else 0)
        if False in kinds:
            with e.for_loop(panel_low, e.minimum(panel_high, full)) as loop:
                rows_of(loop.index, False)
        if True in kinds:
            with e.for_loop(e.maximum(panel_low, full), panel_high) as loop:
                rows_of(loop.index, True)

    def _times(self, panel: Value, step: Number) -> Number:
        return 0 if isinstance(step, int) and step == 0 else panel * step

    def _products(
        self, panel: Value, rows: list[Value], step: Number, starts: list[list[Value]], depth: Value | None = None
    ) -> list[list[Value]]:
        """sums[row][column] = start + sum over k of rows[row][k * step] * panel[k, column].

        k goes to the form's depth, or to `depth`, which is that or 0.
        """
        e, shape = self.e, self.shape
        count = len(rows) * shape.columns
        # few sums would wait for each other: then two of each, for even and odd k
        sets = 2 if count < 8 else 1
        unroll = 4 if count <= 8 else 2
        zero = e.constant(0.0, self.element, shape.lanes)
        flat = [value for start in starts for value in start] + [zero] * (count * (sets - 1))

        def advance(sums: list[Value], k: Value, offset: int) -> None:
            at = k + offset if offset else k
            first = at * (shape.columns * shape.lanes)
            base = (offset % sets) * count
            weights = [
                e.load(e.offset(panel, first, self.element), column * shape.lanes, self.element, shape.lanes)
                for column in range(shape.columns)
            ]
            place = at if isinstance(step, int) and step == 1 else at * step
            for row, pointer in enumerate(rows):
                scalar = e.broadcast(e.load(pointer, place, self.element), shape.lanes)
                for column, weight in enumerate(weights):
                    number = base + row * shape.columns + column
                    sums[number] = self._multiply_add(scalar, weight, sums[number])

        def advance_in_loop(low: Number, high: Number, by: int) -> None:
            with e.for_loop(low, high, by, carried=flat) as loop:
                inside = list(loop.carried)
                for offset in range(by):
                    advance(inside, loop.index, offset)
                loop.next(*inside)
            flat[:] = loop.results

        whole = shape.depth // unroll * unroll
        advance_in_loop(0, whole if depth is None else e.minimum(depth, whole), unroll)
        if depth is None:
            for offset in range(shape.depth - whole):
                advance(flat, e.constant(whole, "i64"), offset)
        elif whole < shape.depth:
            advance_in_loop(whole, depth, 1)
        if sets == 2:
            flat = [e.add(a, b) for a, b in zip(flat[:count], flat[count:])]
        return [flat[row * shape.columns : (row + 1) * shape.columns] for row in range(len(rows))]

    def _multiply_add(self, a: Value, b: Value, c: Value) -> Value:
        if self.e.machine is not None and not self.e.machine.has_fma:
            return a * b + c
        return self.e.fma(a, b, c)

    # -- memory --------------------------------------------------------------------------------------------------------------

    def _mask(self, vector: int, last: bool) -> Value | None:
        """Which lanes of a panel's vector are hidden units; None for all."""
        count = (self.shape.last_units if last else self.shape.units) - vector * self.shape.lanes
        return None if count >= self.shape.lanes else self.e.create_mask(max(count, 0), self.shape.lanes)

    def _read(self, pointer: Value, index: int, step: int, mask: Value | None) -> Value:
        """A vector of units from `pointer[index * step]` on."""
        e, lanes = self.e, self.shape.lanes
        zero = e.constant(0.0, self.element, lanes)
        if step != 1:
            every = mask if mask is not None else e.constant(True, "i1", lanes)
            return e.gather(pointer, index * step, e.constant([step * k for k in range(lanes)], "i64", lanes), every, zero)
        return e.load(pointer, index, self.element, lanes) if mask is None else e.masked_load(pointer, index, mask, zero)

    def _store(self, value: Value, pointer: Value, index: int, step: int, mask: Value | None) -> None:
        e, lanes = self.e, self.shape.lanes
        if step != 1:
            every = mask if mask is not None else e.constant(True, "i1", lanes)
            e.scatter(value, pointer, index * step, e.constant([step * k for k in range(lanes)], "i64", lanes), every)
        elif mask is None:
            e.store(value, pointer, index)
        else:
            e.masked_store(value, pointer, index, mask)

    def _at(self, view: View, pointer: Value, *index: Value | int) -> Value:
        """The address of the element at the leading indices."""
        e, place = self.e, self.index
        offset: Value | int = 0
        for number, stride in zip(index, view.strides):
            offset = place.plus(offset, place.times(number, place.write(stride)))
        return e.offset(pointer, offset, self.element)

    def _copy(self, state: Sequence[Value], view: View, target: Value, rows: Range, panels: Range) -> None:
        """Copy rows and units of a state, (address, row stride, unit stride), to an address in a view [..., B, H]."""
        e, shape = self.e, self.shape
        source, row, step = state
        low, high = panels[0] * shape.units, e.minimum(panels[1] * shape.units, shape.hidden)
        with e.for_loop(*rows) as loop:
            from_row = e.offset(source, loop.index * row, self.element)
            to_row = self._at_row(view, target, loop.index)
            with e.for_loop(low, high) as unit:
                value = e.load(from_row, unit.index * step, self.element)
                e.store(value, to_row, unit.index * self._number(view.strides[-1]))

    def _at_row(self, view: View, pointer: Value, row: Value) -> Value:
        return self.e.offset(pointer, row * self._number(view.strides[-2]), self.element)
