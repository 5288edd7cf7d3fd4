"""Kernel + Schedule -> MLIR: one function `void kernel(void **words, int64_t low, int64_t high)` over work items.

A work item is one point of the schedule's rows (and one block of the vector axis). Inside it, reductions run in phases: a phase
is one pass over the reduced axes, computing every reduction whose operand is ready and every store that no later reduction feeds.
Values are written at the outermost loop where all their axes are known. Expensive values that several phases need are kept in a
scratch row. A vector loop runs unrolled over whole vectors, then masked (or, without mask registers, element by element) over the
rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from dlcompiler.codegen.cpu import scalars
from dlcompiler.codegen.cpu.emitter import Emitter, Value
from dlcompiler.codegen.cpu.indexing import IndexWriter, Number
from dlcompiler.codegen.cpu.machine import Machine
from dlcompiler.codegen.cpu.memory import MemoryWriter
from dlcompiler.codegen.cpu.reductions import Accumulator, accumulator_for
from dlcompiler.codegen.phases import Phases
from dlcompiler.codegen.schedule import EXPENSIVE, MAXIMUM_SCRATCH_BYTES, Schedule
from dlcompiler.ir import kernel as K
from dlcompiler.ir.expression import Dim, known, product, symbols
from dlcompiler.ir.types import i64


@dataclass
class Lanes:
    """How values that move along the vector or unrolled axis are held right now.

    copies    vectors computed side by side; width: lanes of each, 0 for single elements
    base      index of the first element along the vector axis; mask: which lanes are real, None for all
    """

    copies: int
    width: int
    base: Value | None = None
    mask: Value | None = None


class KernelWriter:
    """Writes one kernel into an open module."""

    def __init__(self, e: Emitter, kernel: K.Kernel, schedule: Schedule, machine: Machine) -> None:
        self.e = e
        self.vector_bytes, has_masks = machine.vector_bytes, machine.has_masks
        self.streaming = False
        self.kernel = kernel
        self.schedule = schedule
        self.has_masks = has_masks
        self.axis_values: dict[str, Number] = {}
        self.sizes: dict[str, Value] = {}
        self.scopes: list[dict[K.Value, tuple[Value, ...]]] = []
        self.lanes = Lanes(1, 0)
        self.index = IndexWriter(e, self.symbol_value, schedule.axes)
        self.memory = MemoryWriter(self)
        self.phases = Phases(kernel, schedule)
        self.axes_of, self.phase_of = self.phases.axes_of, self.phases.phase_of
        self.phase = 0
        self.scratch: dict[K.Value, Value] = {}
        self.kept: set[K.Value] = set()
        self.kept = self._values_to_keep()

    # -- analysis ----------------------------------------------------------------------------------------------------------

    def _needed(self, roots: Iterable[K.Value]) -> list[K.Value]:
        return self.phases.needed(roots, self._comes_from_scratch)

    def _values_to_keep(self) -> set[K.Value]:
        """Expensive inner values that more than one phase needs, if a row of them fits."""
        inner = [self.schedule.axes[a] for a in self.schedule.inner]
        elements = product(inner)
        if not inner or not isinstance(elements, int):
            return set()
        count: dict[K.Value, int] = {}
        for phase in range(self.phases.last + 1):
            self.phase = phase
            reduces, stores = self.phases.targets(phase)
            for value in self._needed([*(r.operand for r in reduces), *(s.value for s in stores)]):
                if isinstance(value, K.Compute) and value.op in EXPENSIVE and self.phases.is_inner(value):
                    count[value] = count.get(value, 0) + 1
        self.phase = 0
        width = 1 if self.schedule.vector_is_reduced else max(self.schedule.lanes, 1) * self.schedule.unroll
        kept, room = set(), MAXIMUM_SCRATCH_BYTES
        for value, phases in count.items():
            size = elements * width * value.dtype.bytes
            if phases > 1 and size <= room and not value.dtype.name == "bool":
                kept.add(value)
                room -= size
        return kept

    def _comes_from_scratch(self, value: K.Value) -> bool:
        return value in self.kept and value in self.scratch and self.phase > self.phase_of[value]

    # -- the function ------------------------------------------------------------------------------------------------------

    def write(self, name: str) -> None:
        """Write the function."""
        e, kernel = self.e, self.kernel
        with e.func(name, [("words", "ptr"), ("low", "i64"), ("high", "i64")]) as (words, low, high):
            pointers = e.buffers(words, len(kernel.buffers))
            self.memory.pointers = dict(zip(kernel.buffers, pointers))
            for number, size in enumerate(kernel.size_symbols):
                self.sizes[size] = e.load(words, len(kernel.buffers) + number, "i64")
            self._make_scratch()
            self.scopes.append({})
            outer = self._needed([*(s.value for s in kernel.stores)])
            self._hoist(v for v in outer if self.phase_of[v] == 0)
            if self.schedule.streams:
                self._stream_if_aligned(low, high)
            else:
                self._work_items(low, high)
            self.scopes.pop()

    def _work_items(self, low: Value, high: Value) -> None:
        with self.e.for_loop(low, high) as loop:
            self._work_item(loop.index)

    def _stream_if_aligned(self, low: Value, high: Value) -> None:
        """Stores past the caches need aligned memory, which is only known when called; and a fence before others may read."""
        e = self.e
        aligned = e.constant(True, "i1")
        for buffer in self.kernel.buffers:
            if buffer.role == "out":
                address = e.op("i64", 0, "llvm.ptrtoint {} : !llvm.ptr to i64", self.memory.pointers[buffer])
                aligned = e.bit_and(aligned, e.compare("eq", e.bit_and(address, self.vector_bytes - 1), 0))
        with e.if_then(aligned):
            self.streaming = True
            self._work_items(low, high)
            e.line('llvm.call_intrinsic "llvm.x86.sse.sfence"() : () -> ()')
            self.streaming = False
        with e.if_then(e.bit_xor(aligned, e.constant(True, "i1"))):
            self._work_items(low, high)

    def _make_scratch(self) -> None:
        schedule = self.schedule
        elements = product(schedule.axes[a] for a in schedule.inner)
        for value in sorted(self.kept, key=self.kernel.values.index):
            width = max(schedule.lanes, 1) * schedule.unroll
            # a whole vector may be stored past the row's end
            count = known(elements) + width if schedule.vector_is_reduced else known(elements) * width
            self.scratch[value] = self.e.scratch(scalars.element_name(value.dtype), count)

    def symbol_value(self, name: str) -> Number:
        """The i64 of an axis or a size."""
        if name in self.axis_values:
            return self.axis_values[name]
        return self.sizes[name]

    def extent(self, axis: str) -> Number:
        return self.index.write(self.schedule.axes[axis])

    def _work_item(self, item: Value) -> None:
        """Find the row (and block) that a work item is, then compute it."""
        e, schedule = self.e, self.schedule
        rest: Number = item
        digits: list[tuple[str, Dim]] = list(zip(schedule.rows, schedule.row_extents))
        if schedule.blocks != 1:
            digits.append(("", schedule.blocks))
        places: dict[str, Number] = {}
        for position, (axis, extent) in reversed(list(enumerate(digits))):
            if position == 0:
                places[axis] = rest
            else:
                size = self.index.write(extent)
                places[axis] = e.rem(rest, size)
                rest = e.div(rest, size)
        self.scopes.append({})
        for axis in schedule.rows:
            turned = schedule.transposes and axis == schedule.unroll_axis
            self.axis_values[axis] = self.index.times(places[axis], schedule.tile) if turned else places[axis]
        if schedule.vector is None or schedule.vector_is_reduced:
            self._hoist_phase_zero()
            self._row()
        else:
            self._vector_block(places.get(""))
        self.scopes.pop()

    def _hoist_phase_zero(self) -> None:
        self._hoist(v for v in self._needed(s.value for s in self.kernel.stores) if self.phase_of[v] == 0)

    # -- part of a kernel ------------------------------------------------------------------------------------------------------

    def tile(self, begin: Number, vectors: int, rows: Sequence[tuple[str, Number, Number]]) -> None:
        """Everything at `vectors` vectors from `begin` on along the vector axis, for some rows; other axes have values already.

        `rows`: each axis with its first value and how many there are, outermost first. What is the same for all rows is computed
        once. Beyond the vector axis' end nothing is done.
        """
        e, schedule, axis = self.e, self.schedule, self.schedule.lane_axis
        width = vectors * schedule.lanes
        extent = schedule.axes[axis]
        self.scopes.append({})
        if isinstance(extent, int) and extent % width == 0:
            first = begin if isinstance(begin, Value) else e.constant(begin, "i64")
            self._enter(axis, begin, Lanes(vectors, schedule.lanes, first))
            self._tile_rows(rows)
            self._leave(axis)
            self.lanes = Lanes(1, 0)
        else:
            past = self.index.plus(begin, width)
            past = past if isinstance(past, Value) else e.constant(past, "i64")
            self._vector_loops(begin, e.minimum(past, self.index.write(extent)), vectors, lambda: self._tile_rows(rows))
        self.scopes.pop()

    def _tile_rows(self, rows: Sequence[tuple[str, Number, Number]]) -> None:
        self._hoist_phase_zero()
        if not rows:
            self._row()
            return
        (axis, first, count), *rest = rows
        with self.e.for_loop(0, count) as loop:
            self._enter(axis, self.index.plus(loop.index, first))
            self._tile_rows(rest)
            self._leave(axis)

    # -- the vector axis outside ---------------------------------------------------------------------------------------------

    def _vector_block(self, block: Number | None) -> None:
        """Run over one block of the (not reduced) vector axis."""
        e, schedule = self.e, self.schedule
        extent = self.extent(schedule.lane_axis)
        begin: Number = 0
        end = extent
        if block is not None and schedule.block is not None:
            begin = self.index.times(block, schedule.block)
            end = e.minimum(e.add(begin, schedule.block), extent)
        if schedule.transposes:
            self._tiles(begin, end)
        else:
            self._hoist_phase_zero()
            self._vector_loops(begin, end, schedule.unroll, lambda: self._row())

    def _vector_loops(self, begin: Number, end: Number, copies: int, body) -> None:
        """`body` over whole vectors, unrolled, then over the rest; it runs with `self.lanes` and the vector axis set."""

        def run(first: Number, last: Number, step: int, lanes: Lanes, masked: Number | None = None) -> None:
            self._vector_loop(first, last, step, lanes, body, masked)

        self._split_vector_range(begin, end, copies, run)

    def _split_vector_range(self, begin: Number, end: Number, copies: int, run) -> None:
        """`run(begin, end, step, lanes)` over whole unrolled vectors, then over the rest, masked or one element at a time."""
        lanes = self.schedule.lanes
        step = copies * lanes
        static = isinstance(begin, int) and isinstance(end, int)
        rest = begin
        if not static or end - begin >= step:
            whole = self._whole(begin, end, step)
            run(begin, whole, step, Lanes(copies, lanes))
            rest = whole
        if static and rest == end:
            return
        if self.has_masks:
            run(rest, end, lanes, Lanes(1, lanes), masked=end)
            return
        if copies > 1 and (not static or end - rest >= lanes):
            whole = self._whole(rest, end, lanes)
            run(rest, whole, lanes, Lanes(1, lanes))
            rest = whole
        if not (static and rest == end):
            run(rest, end, 1, Lanes(1, 0))

    def _whole(self, begin: Number, end: Number, step: int) -> Number:
        """The end of the last whole step from `begin`; `begin` itself if the range is empty."""
        if isinstance(begin, int) and isinstance(end, int):
            return begin + (end - begin) // step * step
        count = self.e.sub(end, begin)
        return self.index.plus(begin, self.e.mul(self.e.div(count, step), step))

    def _vector_loop(self, begin: Number, end: Number, step: int, lanes: Lanes, body, masked: Number | None = None) -> None:
        e, axis = self.e, self.schedule.lane_axis
        saved = self.lanes
        with e.for_loop(begin, end, step) as loop:
            mask = e.create_mask(e.sub(masked, loop.index), lanes.width) if masked is not None else None
            self._enter(axis, loop.index, Lanes(lanes.copies, lanes.width, loop.index, mask))
            body()
            self._leave(axis)
        self.lanes = saved

    def _enter(self, axis: str, value: Number, lanes: Lanes | None = None) -> None:
        self.axis_values[axis] = value
        self.scopes.append({})
        if lanes is not None:
            self.lanes = lanes

    def _leave(self, axis: str) -> None:
        self.scopes.pop()
        del self.axis_values[axis]

    def _tiles(self, begin: Number, end: Number) -> None:
        """Square tiles of the vector and the unrolled axis, turned in registers; what is left at the edges, one row at a time.

        Tiles of one work item lie side by side along the unrolled axis, so that each cache line of a turned buffer is used whole.
        """
        e, schedule = self.e, self.schedule
        size, axis = schedule.lanes, schedule.turned_axis
        first = self.axis_values.pop(axis)
        last = e.minimum(e.add(first, schedule.tile), self.extent(axis))
        whole_last, whole_end = self._whole(first, last, size), self._whole(begin, end, size)
        self._hoist_phase_zero()
        with e.for_loop(begin, whole_end, size) as column:
            self._enter(schedule.lane_axis, column.index, Lanes(1, size, column.index))
            with e.for_loop(first, whole_last, size) as row:
                self._enter(axis, row.index, Lanes(size, size, column.index))
                self._row()
                self._leave(axis)
            self._leave(schedule.lane_axis)
        self.lanes = Lanes(1, 0)
        self._edge_rows(first, whole_last, whole_end, end)
        self._edge_rows(whole_last, last, begin, end)

    def _edge_rows(self, first: Number, last: Number, begin: Number, end: Number) -> None:
        """Rows `first` to `last` of the unrolled axis, one by one, over part of the vector axis."""
        axis = self.schedule.turned_axis
        with self.e.for_loop(first, last) as row:
            self._enter(axis, row.index)
            if self.has_masks:
                self._vector_loop(begin, end, self.schedule.lanes, Lanes(1, self.schedule.lanes), self._row, masked=end)
            else:
                self._vector_loop(begin, end, 1, Lanes(1, 0), self._row)
            self._leave(axis)

    # -- one row: phases ---------------------------------------------------------------------------------------------------

    def _row(self) -> None:
        """Everything at one point of the rows (and one step of the vector axis, if that is not reduced)."""
        if not self.schedule.inner:
            self._emit_all(s.value for s in self.kernel.stores)
            for store in self.kernel.stores:
                self.memory.store(store, self.lookup(store.value))
            return
        for phase in range(self.phases.last + 1):
            self.phase = phase
            reduces, stores = self.phases.targets(phase)
            self._hoist(self.phases.between(phase))
            if reduces or stores:
                self._pass(reduces, stores)
        self.phase = 0
        for store in self.kernel.stores:
            if not self.phases.is_inner_store(store):
                self._emit_all([store.value])
                self.memory.store(store, self.lookup(store.value))

    def _pass(self, reduces: Sequence[K.Reduce], stores: Sequence[K.Store]) -> None:
        """One pass over the reduced axes."""
        schedule = self.schedule
        copies = schedule.unroll if schedule.vector_is_reduced else self.lanes.copies
        width = schedule.lanes if schedule.vector_is_reduced else self.lanes.width
        accumulators = [accumulator_for(self, r, copies, width) for r in reduces]
        needed = self._needed([*(r.operand for r in reduces), *(s.value for s in stores)])
        state = [v for a in accumulators for v in a.initial()]
        state = self._nest(list(schedule.inner), needed, accumulators, stores, state)
        for accumulator in accumulators:
            taken, state = state[: accumulator.size], state[accumulator.size :]
            self.scopes[-1][accumulator.reduce] = accumulator.finish(taken)

    def _nest(
        self, axes: list[str], needed: list[K.Value], accumulators: list[Accumulator], stores, state: list[Value]
    ) -> list[Value]:
        """The loops over `axes`, innermost last, carrying the accumulators' state through."""
        e, schedule = self.e, self.schedule
        self._hoist(needed)
        if not axes:
            return self._point(needed, accumulators, stores, state)
        axis, rest = axes[0], axes[1:]
        if axis == schedule.vector:
            return self._reduced_vector_loops(needed, accumulators, stores, state)
        with ExitStack() as stack:
            loop = stack.enter_context(e.for_loop(0, self.extent(axis), 1, state))
            self._enter(axis, loop.index)
            following = self._nest(rest, needed, accumulators, stores, list(loop.carried))
            if state:
                loop.next(*following)
            self._leave(axis)
        return list(loop.results)

    def _point(self, needed, accumulators: list[Accumulator], stores, state: list[Value]) -> list[Value]:
        """The innermost body: values, then stores, then one step of each accumulator."""
        self._emit_all(needed)
        for store in stores:
            self.memory.store(store, self.lookup(store.value))
        following: list[Value] = []
        for accumulator in accumulators:
            taken, state = state[: accumulator.size], state[accumulator.size :]
            following += accumulator.step(taken, self.lookup(accumulator.reduce.operand))
        return following

    def _reduced_vector_loops(self, needed, accumulators, stores, state: list[Value]) -> list[Value]:
        """The innermost reduced axis in vectors: whole ones unrolled, then the rest into the first copy."""
        end = self.extent(self.schedule.lane_axis)
        holder = [state]

        def body_loop(begin, limit, step, lanes: Lanes, masked=None) -> None:
            e, axis, saved = self.e, self.schedule.lane_axis, self.lanes
            with ExitStack() as stack:
                loop = stack.enter_context(e.for_loop(begin, limit, step, holder[0]))
                mask = e.create_mask(e.sub(masked, loop.index), lanes.width) if masked is not None else None
                self._enter(axis, loop.index, Lanes(lanes.copies, lanes.width, loop.index, mask))
                following = self._point(needed, accumulators, stores, list(loop.carried))
                if holder[0]:
                    loop.next(*following)
                self._leave(axis)
            holder[0] = list(loop.results)
            self.lanes = saved

        self._split_vector_range(0, end, self.schedule.unroll, body_loop)
        return holder[0]

    # -- values --------------------------------------------------------------------------------------------------------------

    def lookup(self, value: K.Value) -> tuple[Value, ...]:
        """The value as it was written: one scalar or vector if it is the same for all copies, else one for each copy."""
        for scope in reversed(self.scopes):
            if value in scope:
                return scope[value]
        raise KeyError(f"{value} was not written yet")

    def known(self, value: K.Value) -> bool:
        return any(value in scope for scope in self.scopes)

    def _bound(self, value: K.Value) -> bool:
        return self.axes_of[value] <= self.axis_values.keys()

    def _hoist(self, values: Iterable[K.Value]) -> None:
        """Write those of the values whose axes and operands are all known here."""
        for value in values:
            if not self.known(value) and self._bound(value) and all(self.known(o) for o in value.operands):
                self._emit(value)

    def _emit_all(self, values: Iterable[K.Value]) -> None:
        for value in self._needed(values):
            if not self.known(value):
                self._emit(value)

    def varies(self, value: K.Value) -> bool:
        """Whether the copies of a value differ: it moves along the vector or the unrolled axis."""
        axes = self.axes_of[value]
        moving = {self.schedule.vector, self.schedule.unroll_axis} if self.lanes.base is not None else set()
        return bool(axes & moving)

    def _emit(self, value: K.Value) -> None:
        if self._comes_from_scratch(value):
            self.scopes[-1][value] = self.memory.load_scratch(value)
            return
        copies = self.lanes.copies if self.varies(value) else 1
        match value:
            case K.Load():
                result = self.memory.load(value)
            case K.Constant():
                result = (self._constant(value),)
            case K.Index():
                result = tuple(self._index_number(value, k) for k in range(copies))
            case K.Within():
                result = tuple(self.memory.within(value.bounds, k) for k in range(copies))
            case K.Compute():
                result = tuple(self._compute(value, k) for k in range(copies))
            case _:
                raise KeyError(f"{value} is not ready in this phase")
        self.scopes[-1][value] = result
        if value in self.kept and self.phase == self.phase_of[value] and self.lanes_cover(value):
            self.memory.store_scratch(value, result)

    def lanes_cover(self, value: K.Value) -> bool:
        return set(self.schedule.inner) <= self.axis_values.keys()

    def _constant(self, value: K.Constant) -> Value:
        return self.e.constant(value.value, scalars.element_name(value.dtype), 0)

    def _index_number(self, value: K.Index, copy: int) -> Value:
        number = self.lane_index(value.expression, copy)
        number = number if isinstance(number, Value) else self.e.constant(number, "i64")
        return scalars.convert(self.e, number, i64, value.dtype)

    def _compute(self, value: K.Compute, copy: int) -> Value:
        operands = [self.copy_of(o, copy) for o in value.inputs]
        if value.op == "cast":
            return scalars.convert(self.e, operands[0], value.inputs[0].dtype, value.dtype)
        if value.op == "bitcast":
            return scalars.bitcast(self.e, operands[0], value.inputs[0].dtype, value.dtype)
        operands = list(self.e.unify(*operands)) if value.op != "where" else self._unify_where(operands)
        return scalars.compute(self.e, value.op, value.inputs[-1].dtype, *operands)

    def _unify_where(self, operands: list[Value]) -> list[Value]:
        width = max(o.lanes for o in operands)
        return [self.e.broadcast(o, width) if width else o for o in operands]

    def copy_of(self, value: K.Value, copy: int) -> Value:
        copies = self.lookup(value)
        return copies[copy] if len(copies) > 1 else copies[0]

    def lane_steps(self, stride: Dim) -> Value:
        """How far each lane lies from the first, `stride` elements from one to the next."""
        steps = self.index.times(self.index.write(stride), self.e.iota(self.lanes.width))
        assert isinstance(steps, Value)
        return steps

    def lane_indices(self, expression: Dim, copy: int) -> Value:
        """As `lane_index`, of an expression that moves along the lanes."""
        indices = self.lane_index(expression, copy)
        assert isinstance(indices, Value)
        return indices

    def lane_index(self, expression: Dim, copy: int) -> Number:
        """An index expression for one copy: a vector of i64 if it moves along the lanes, else a scalar."""
        names = symbols(expression)
        schedule, lanes = self.schedule, self.lanes
        if lanes.base is None or not {schedule.vector, schedule.unroll_axis} & names:
            return self.index.write(expression)
        e, saved = self.e, dict(self.axis_values)
        step = copy * max(lanes.width, 1) if not schedule.transposes else 0
        base = self.index.plus(lanes.base, step)
        if lanes.width and schedule.vector in names:
            self.axis_values[schedule.lane_axis] = e.add(e.iota(lanes.width), base)
        else:
            self.axis_values[schedule.lane_axis] = base
        if schedule.transposes and lanes.copies > 1:
            self.axis_values[schedule.turned_axis] = self.index.plus(saved[schedule.turned_axis], copy)
        number = self.index.write(expression)
        self.axis_values = saved
        return number
