"""Recurrent layers: the time loop of `lstm_scan`, `gru_scan` and `rnn_scan`, with packed weights and the cell in registers.

The recurrent weight [G*H, H] is read in panels [H][gates][one or more vectors of hidden units], made by the planner
(`Packs.packing`): one tile computes all gates of some hidden units for some rows of the batch, streaming a panel once, and then
makes their new state. It starts from the gates of the input, and reads the last state where it lies, in the result of the step
before.

Threads divide either the batch, or the hidden units. There every step needs the whole state of the step before, so the parts
count themselves off in an atomic counter after each step and wait for the others. That is safe since the driver runs the parts
of one step on different threads of one team, or all of it as one part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dlcompiler.codegen.cpu.emitter import Emitter, Value
from dlcompiler.codegen.cpu.indexing import IndexWriter
from dlcompiler.codegen.cpu.machine import Machine
from dlcompiler.codegen.cpu.routines import Written
from dlcompiler.codegen.cpu.routines.cells import gru_cell, lstm_cell, tanh
from dlcompiler.codegen.cpu.scalars import element_name
from dlcompiler.ir.expression import Dim, evaluate, known, symbols
from dlcompiler.ir.graph import Builder, Node
from dlcompiler.ir.ops.recurrent import Cell, scanned_cell
from dlcompiler.ir.program import RoutineCall, View
from dlcompiler.ir.types import DType, TensorType, i64

MOST_ROWS = 8  # of the batch in one tile
PART_WORK = 1 << 14  # multiply-adds in one step that are worth a thread
SPINS = 2000  # looks at a counter before the processor is offered to others
ROWS_OF_PART = 4  # of the batch, to let each thread have all hidden units of some rows
LINE = 8  # counters of two directions lie this many words apart: on different cache lines


@dataclass(frozen=True)
class Form:
    """What the code of one scan depends on.

    lanes      elements of a vector
    vectors    vectors of hidden units in a panel, for each gate
    splits     parts of the batch, if threads divide it; 0 if they divide the hidden units
    """

    cell: Cell
    dtype: DType
    batch: Dim
    hidden: int
    reverse: tuple[bool, ...]
    activation: str
    lanes: int
    vectors: int
    registers: int
    splits: int

    @property
    def directions(self) -> int:
        return len(self.reverse)

    @property
    def columns(self) -> int:
        """Vectors of one row of a tile."""
        return self.cell.gates * self.vectors

    @property
    def units(self) -> int:
        """Hidden units of a panel."""
        return self.vectors * self.lanes

    @property
    def panels(self) -> int:
        return -(-self.hidden // self.units)

    @property
    def panel_elements(self) -> int:
        return self.hidden * self.columns * self.lanes

    def operand(self, direction: int, number: int) -> int:
        """The position of the gates (0), weight (1) or bias (2) of a direction."""
        return self.cell.states + direction * (3 if self.cell.inner_bias else 2) + number

    def panels_of(self, b: Builder, operand: Node) -> Node:
        """A weight [gates * H, H] as [panels, H, gates, vectors, lanes], zeros beyond the last unit; a bias without its H."""
        gates, rest = self.cell.gates, operand.shape[1:]
        none = (0,) * len(rest)
        blocks = b.reshape(operand, shape=(gates, self.hidden, *rest))
        padded = b.pad(blocks, low=(0, 0, *none), high=(0, self.panels * self.units - self.hidden, *none), value=0)
        units = b.reshape(padded, shape=(gates, self.panels, self.vectors, self.lanes, *rest))
        return b.permute(units, dims=(1, 4, 0, 2, 3) if rest else (1, 0, 2, 3))

    @property
    def last_units(self) -> int:
        """Hidden units of the last panel."""
        return self.hidden - (self.panels - 1) * self.units

    @cached_property
    def heights(self) -> tuple[int, ...]:
        """Rows of the tiles that are needed, the highest first: parts of the batch are cut into these, as even as can be."""
        most = max(1, min(MOST_ROWS, (self.registers - self.columns - 2) // self.columns))
        if symbols(self.batch):
            return (most, 1) if most > 1 else (1,)
        batch, splits = evaluate(self.batch, {}), max(self.splits, 1)
        sizes = {batch * (k + 1) // splits - batch * k // splits for k in range(splits)} - {0}
        largest = max(sizes, default=1)
        height = -(-largest // -(-largest // most))
        return tuple(sorted({height, *(size % height for size in sizes)} - {0}, reverse=True))


def form_of(op: str, types: Sequence[Any], attributes: Mapping[str, Any], machine: Machine) -> Form:
    """The form of a scan whose operands have these types (or are these views)."""
    cell = scanned_cell(op)
    assert cell is not None, op
    dtype, (_, batch, hidden) = types[0].dtype, types[0].shape
    lanes = machine.lanes(dtype.bytes)
    vectors = 1 if cell.gates > 1 else min(4, -(-hidden // lanes))
    directions = len(attributes["reverse"])
    splits = _splits(batch, hidden, directions, machine)
    return Form(
        cell, dtype, batch, hidden, tuple(attributes["reverse"]), attributes.get("activation", "tanh"), lanes, vectors,
        machine.vector_registers, splits,
    )  # fmt: skip


def _splits(batch: Dim, hidden: int, directions: int, machine: Machine) -> int:
    """Into how many parts to cut the batch; 0 to divide the hidden units instead.

    Parts of the batch need not wait for each other, but each streams all of the weight: that is worth it for some rows.
    """
    if machine.cores <= directions:
        return 1
    parts = -(-machine.cores // directions)
    return parts if not symbols(batch) and evaluate(batch, {}) >= ROWS_OF_PART * parts else 0


class Recurrent:
    """The routine of the scans of every cell."""

    def applies(self, node: Node, machine: Machine) -> bool:
        """float32 and float64 with a hidden size that is known."""
        state = node.inputs[0].tensor
        return state.dtype.name in ("f32", "f64") and isinstance(state.shape[2], int) and state.shape[2] > 0

    def scratch(self, node: Node, machine: Machine) -> Sequence[TensorType]:
        """Counters, if threads wait for each other."""
        shape = form_of(node.op.name, [i.type for i in node.inputs], node.attributes, machine)
        return [] if shape.splits else [TensorType(i64, (shape.directions, LINE))]

    def packing(self, node: Node, machine: Machine) -> Mapping[int, Callable[[Builder, Node], Node]]:
        """The recurrent weights and biases in panels."""
        shape = form_of(node.op.name, [i.type for i in node.inputs], node.attributes, machine)
        numbers = (1, 2) if shape.cell.inner_bias else (1,)
        return {shape.operand(d, number): shape.panels_of for d in range(shape.directions) for number in numbers}

    def write(self, e: Emitter, call: RoutineCall, machine: Machine, name: str) -> Written:
        shape = form_of(call.op, call.reads, call.attributes, machine)
        _Writer(e, shape, call, name).write()
        step = evaluate(shape.batch, {}) if not symbols(shape.batch) else 1
        panel = step * shape.panel_elements
        if shape.splits:
            summary = f"{shape.cell.name}: {shape.directions} x {shape.splits} parts of the batch"
            work, grain = shape.directions * shape.splits, 1
        else:
            summary = f"{shape.cell.name}: {shape.directions} x {shape.panels} panels of {shape.units} units, in step"
            work, grain = shape.directions * shape.panels, -(-PART_WORK // max(panel, 1))
        return Written(work, grain, f"{summary}; tiles of {'/'.join(map(str, shape.heights))} rows")


# the first of some rows or panels, and the one after the last
Range = tuple[Value, Value]


class _Writer:
    """Writes the functions of one scan."""

    def __init__(self, e: Emitter, shape: Form, call: RoutineCall, name: str) -> None:
        self.e, self.shape, self.call, self.name = e, shape, call, name
        self.element = element_name(shape.dtype)
        states = shape.cell.states
        self.initial, self.lasts = call.reads[:states], [v for v in call.writes[1 : 1 + states] if v is not None]
        y = call.writes[0]
        assert y is not None
        self.y = y
        # how far apart neighbouring units are; 1 but for operands that a caller laid out otherwise
        steps = {known(call.reads[shape.operand(d, 0)].strides[-1]) for d in range(shape.directions)}
        assert len(steps) == 1, call
        self.gate_step = steps.pop()
        self.y_step = known(y.strides[2])
        self.c_step = known(self.lasts[1].strides[2]) if states == 2 else 1
        self.state_step = self.y_step if self.y_step == self.initial[0].strides[2] else 0

    def write(self) -> None:
        for last in self._kinds():
            self._write_cell(last)
            for height in self.shape.heights:
                self._write_tile(height, last)
        self._write_step()
        self._write_main()

    def _kinds(self) -> tuple[bool, ...]:
        """Whether panels are full, or the last one with units missing."""
        partial = self.shape.last_units < self.shape.units
        return (*((False,) if self.shape.panels > 1 or not partial else ()), *((True,) if partial else ()))

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

    # -- the cell ------------------------------------------------------------------------------------------------------------

    def _write_cell(self, last: bool) -> None:
        """One row's new state in one panel, from the sums in `tile`."""
        e, shape = self.e, self.shape
        arguments = [(n, "ptr") for n in ("tile", "gates", "h", "y", "c")]
        with e.func(f"{self.name}_cell{int(last)}", [*arguments, ("h_step", "i64")]) as (tile, gates, h, y, c, h_step):
            for vector in range(shape.vectors):
                mask = self._mask(vector, last)
                first = vector * shape.lanes
                sums = [
                    e.load(tile, (gate * shape.vectors + vector) * shape.lanes, self.element, shape.lanes)
                    for gate in range(shape.cell.gates)
                ]
                if shape.cell.name == "lstm":
                    new_c, new = lstm_cell(e, sums, self._read(c, first, self.c_step, mask))
                    self._store(new_c, c, first, self.c_step, mask)
                elif shape.cell.name == "gru":
                    inner = self._read(gates, 2 * shape.hidden + first, self.gate_step, mask)
                    new = gru_cell(e, sums, inner, self._read_state(h, h_step, first, mask))
                else:
                    new = tanh(e, sums[0]) if shape.activation == "tanh" else e.maximum(sums[0], 0.0)
                self._store(new, y, first, self.y_step, mask)

    def _read_state(self, h: Value, h_step: Value, first: int, mask: Value | None) -> Value:
        if self.state_step == 1:
            return self._read(h, first, 1, mask)
        e, lanes = self.e, self.shape.lanes
        every = mask if mask is not None else e.constant(True, "i1", lanes)
        steps = e.mul(e.iota(lanes) + first, h_step)
        return e.gather(h, 0, steps, every, e.constant(0.0, self.element, lanes))

    # -- one tile ------------------------------------------------------------------------------------------------------------

    def _write_tile(self, height: int, last: bool) -> None:
        """`height` rows of one panel: the product with the state of the step before, then the cell of each row."""
        e, shape = self.e, self.shape
        pointers = [(n, "ptr") for n in ("panel", "h", "h_units", "gates", "y", "c", "bias")]
        strides = [(n, "i64") for n in ("h_row", "h_step", "gates_row", "y_row", "c_row")]
        with e.func(f"{self.name}_tile{height}_{int(last)}", [*pointers, *strides]) as values:
            panel, h, h_units, gates, y, c, bias, h_row, h_step, gates_row, y_row, c_row = values
            width = shape.columns * shape.lanes
            tile = e.scratch(self.element, height * width)
            rows = [e.offset(h, h_row * row if row else 0, self.element) for row in range(height)]
            gate_rows = [e.offset(gates, gates_row * row if row else 0, self.element) for row in range(height)]
            sums = self._products(panel, rows, h_step, [self._start(at, bias, last) for at in gate_rows])
            for row in range(height):
                for column, total in enumerate(sums[row]):
                    e.store(total, tile, row * width + column * shape.lanes)
            with e.for_loop(0, height) as loop:
                places = [(tile, e.constant(width, "i64")), (gates, gates_row), (h_units, h_row), (y, y_row), (c, c_row)]
                given = [e.offset(pointer, loop.index * stride, self.element) for pointer, stride in places]
                e.call(f"{self.name}_cell{int(last)}", [*given, h_step])

    def _start(self, gates: Value, bias: Value, last: bool) -> list[Value]:
        """What a row's sums begin with: the gates of the input and the recurrent bias; of gru's last gate only the bias."""
        e, shape = self.e, self.shape
        found = []
        for gate in range(shape.cell.gates):
            for vector in range(shape.vectors):
                mask, at = self._mask(vector, last), gate * shape.hidden + vector * shape.lanes
                column = gate * shape.vectors + vector
                added = e.load(bias, column * shape.lanes, self.element, shape.lanes) if shape.cell.inner_bias else None
                if shape.cell.inner_bias and gate == shape.cell.gates - 1:
                    assert added is not None
                    found.append(added)
                    continue
                value = self._read(gates, at, self.gate_step, mask)
                found.append(value if added is None else e.add(value, added))
        return found

    def _products(self, panel: Value, rows: list[Value], h_step: Value, starts: list[list[Value]]) -> list[list[Value]]:
        """sums[row][column] = start + sum over k of h[row, k] * panel[k, column]."""
        e, shape = self.e, self.shape
        count = len(rows) * shape.columns
        # few sums would wait for each other: then two of each, for even and odd k
        sets = 2 if count < 8 else 1
        unroll = 4 if count <= 8 else 2
        zero = e.constant(0.0, self.element, shape.lanes)
        flat = [value for start in starts for value in start] + [zero] * (count * (sets - 1))
        whole = shape.hidden // unroll * unroll

        def advance(sums: list[Value], k: Value, offset: int) -> None:
            at = k + offset if offset else k
            first = at * (shape.columns * shape.lanes)
            base = (offset % sets) * count
            weights = [
                e.load(e.offset(panel, first, self.element), column * shape.lanes, self.element, shape.lanes)
                for column in range(shape.columns)
            ]
            place = at if self.state_step == 1 else at * h_step
            for row, pointer in enumerate(rows):
                scalar = e.broadcast(e.load(pointer, place, self.element), shape.lanes)
                for column, weight in enumerate(weights):
                    number = base + row * shape.columns + column
                    sums[number] = self._multiply_add(scalar, weight, sums[number])

        if whole:
            with e.for_loop(0, whole, unroll, carried=flat) as loop:
                inside = list(loop.carried)
                for offset in range(unroll):
                    advance(inside, loop.index, offset)
                loop.next(*inside)
            flat = list(loop.results)
        for offset in range(shape.hidden - whole):
            advance(flat, e.constant(whole, "i64"), offset)
        if sets == 2:
            flat = [e.add(a, b) for a, b in zip(flat[:count], flat[count:])]
        return [flat[row * shape.columns : (row + 1) * shape.columns] for row in range(len(rows))]

    def _multiply_add(self, a: Value, b: Value, c: Value) -> Value:
        if self.e.machine is not None and not self.e.machine.has_fma:
            return a * b + c
        return self.e.fma(a, b, c)

    # -- one step ------------------------------------------------------------------------------------------------------------

    def _write_step(self) -> None:
        """One time step of one direction for ranges of rows and panels: a panel is streamed once for all rows."""
        e, shape = self.e, self.shape
        pointers = [(n, "ptr") for n in ("packed", "h", "gates", "y", "c", "bias")]
        numbers = ("h_row", "h_step", "gates_row", "y_row", "c_row", "row_low", "row_high", "panel_low", "panel_high")
        with e.func(f"{self.name}_step", [*pointers, *((n, "i64") for n in numbers)]) as values:
            packed, h, gates, y, c, bias, h_row, h_step, gates_row, y_row, c_row, *ranges = values
            row_low, row_high, panel_low, panel_high = ranges

            def rows_of(panel: Value, last: bool) -> None:
                unit = panel * shape.units
                at = {
                    "panel": e.offset(packed, panel * shape.panel_elements, self.element),
                    "h_units": e.offset(h, unit if self.state_step == 1 else unit * h_step, self.element),
                    "gates": e.offset(gates, unit * self.gate_step, self.element),
                    "y": e.offset(y, unit * self.y_step, self.element),
                    "c": e.offset(c, unit * self.c_step, self.element),
                    "bias": e.offset(bias, panel * (shape.columns * shape.lanes), self.element),
                }
                low = row_low
                for height in shape.heights:
                    count = e.div(row_high - low, height)
                    high = low + count * height
                    with e.for_loop(low, high, height) as loop:
                        row = loop.index
                        given = [
                            at["panel"],
                            *(e.offset(p, row * s, self.element) for p, s in
                              ((h, h_row), (at["h_units"], h_row), (at["gates"], gates_row), (at["y"], y_row), (at["c"], c_row))),
                            at["bias"], h_row, h_step, gates_row, y_row, c_row,
                        ]  # fmt: skip
                        e.call(f"{self.name}_tile{height}_{int(last)}", given)
                    low = high

            kinds = self._kinds()
            full = shape.panels - (1 if True in kinds else 0)
            if False in kinds:
                with e.for_loop(panel_low, e.minimum(panel_high, full)) as loop:
                    rows_of(loop.index, False)
            if True in kinds:
                with e.for_loop(e.maximum(panel_low, full), panel_high) as loop:
                    rows_of(loop.index, True)

    # -- all steps -----------------------------------------------------------------------------------------------------------

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
                packed = self._operand(direction, 1)[1]
                self._begin(direction, rows, panels)
                with e.for_loop(0, self._number(self.y.shape[0]), carried=self._first_state(direction)) as steps:
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
            packed.append(self._operand(direction, 1)[1])
            self._begin(direction, rows, ranges[-1])
        directions = range(shape.directions)
        carried = [value for direction in directions for value in self._first_state(direction)]
        count = self._number(self.y.shape[0])
        with e.for_loop(0, count, carried=carried) as steps:
            following = []
            for direction in directions:
                states = steps.carried[3 * direction : 3 * direction + 3]
                following += self._step(direction, packed[direction], steps.index, states, rows, ranges[direction])
                counter = e.offset(self.writes[-1], direction * LINE, "i64")
                mine = ranges[direction][1] - ranges[direction][0]
                e.op("i64", 0, "llvm.atomicrmw add {}, {} acq_rel : !llvm.ptr, i64", counter, mine)
            for direction in directions:
                # who has no part of a direction waits for none, and nobody waits after the last step
                begin, end = ranges[direction]
                waits = e.bit_and(e.compare("lt", begin, end), e.compare("lt", steps.index + 1, count))
                with e.if_then(waits):
                    self._wait(e.offset(self.writes[-1], direction * LINE, "i64"), (steps.index + 1) * shape.panels)
            steps.next(*following)
        for direction in directions:
            self._finish(direction, steps.results[3 * direction : 3 * direction + 3], rows, ranges[direction])

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

    # -- pieces of a direction -----------------------------------------------------------------------------------------------

    def _at(self, view: View, pointer: Value, *index: Value | int) -> Value:
        """The address of the element at the leading indices."""
        e, place = self.e, self.index
        offset: Value | int = 0
        for number, stride in zip(index, view.strides):
            offset = place.plus(offset, place.times(number, place.write(stride)))
        return e.offset(pointer, offset, self.element)

    def _operand(self, direction: int, number: int) -> tuple[View, Value]:
        position = self.shape.operand(direction, number)
        return self.call.reads[position], self.reads[position]

    def _begin(self, direction: int, rows: Range, panels: Range) -> None:
        """Copy the initial c to where it is kept."""
        if self.shape.cell.states == 2:
            begin, kept = self.initial[1], self.lasts[1]
            source = self._at(begin, self.reads[1], direction), self._number(begin.strides[1]), self._number(begin.strides[2])
            self._copy(source, kept, self._at(kept, self.writes[2], direction), rows, panels)

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

    def _first_state(self, direction: int) -> list[Value]:
        """(address, row stride, unit stride) of the initial h."""
        view = self.initial[0]
        return [self._at(view, self.reads[0], direction), self._number(view.strides[1]), self._number(view.strides[2])]

    def _step(
        self, direction: int, packed: Value, number: Value, state: Sequence[Value], rows: Range, panels: Range
    ) -> list[Value]:
        """Call the step function for time step `number`; where the new h lies, as `_first_state`."""
        e, shape = self.e, self.shape
        at = self._number(self.y.shape[0]) - 1 - number if shape.reverse[direction] else number
        gates_view, gates = self._operand(direction, 0)
        y = self._at(self.y, self.writes[0], at, 0, direction * shape.hidden)
        c = self._at(self.lasts[1], self.writes[2], direction) if shape.cell.states == 2 else y
        c_row = self._number(self.lasts[1].strides[1]) if shape.cell.states == 2 else e.constant(0, "i64")
        bias = self._operand(direction, 2)[1] if shape.cell.inner_bias else y
        h, h_row, h_step = state
        y_row, y_step = self._number(self.y.strides[1]), self._number(self.y.strides[2])
        places = [packed, h, self._at(gates_view, gates, at), y, c, bias]
        e.call(f"{self.name}_step", [*places, h_row, h_step, self._number(gates_view.strides[1]), y_row, c_row, *rows, *panels])
        return [y, y_row, y_step]

    def _finish(self, direction: int, state: Sequence[Value], rows: Range, panels: Range) -> None:
        """Copy the last h to its result."""
        view = self.lasts[0]
        self._copy(state, view, self._at(view, self.writes[1], direction), rows, panels)
