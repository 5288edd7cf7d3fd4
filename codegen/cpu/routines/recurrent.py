"""Recurrent layers: the time loop of `lstm_scan`, `gru_scan` and `rnn_scan`, with packed weights and the cell in registers.

The recurrent weight [G*H, H] is read in panels [H][gates][one or more vectors of hidden units], made by the planner
(`Packs.packing`): one tile computes all gates of some hidden units for some rows of the batch, streaming a panel once, and then
makes their new state. It starts from the gates of the input, and reads the last state where it lies, in the result of the step
before. Scans that keep what gradients read (`lstm_scan_keeping`, ...) store it in the cell as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice

from dlcompiler.codegen.cpu.emitter import Emitter, Value
from dlcompiler.codegen.cpu.machine import Machine
from dlcompiler.codegen.cpu.routines import Written
from dlcompiler.codegen.cpu.routines.cells import gru_cell, gru_cell_kept, lstm_cell, lstm_cell_kept, tanh
from dlcompiler.codegen.cpu.routines.recurrent_form import ScanForm, scan_form
from dlcompiler.codegen.cpu.routines.recurrent_loop import LINE, Range, TimeLoop
from dlcompiler.ir.expression import known
from dlcompiler.ir.graph import Builder, Node
from dlcompiler.ir.ops.recurrent import scanned_cell
from dlcompiler.ir.program import RoutineCall, View
from dlcompiler.ir.types import TensorType, i64


class Recurrent:
    """The routine of the scans of every cell."""

    def applies(self, node: Node, machine: Machine) -> bool:
        """float32 and float64 with a hidden size that is known."""
        state = node.inputs[0].tensor
        return state.dtype.name in ("f32", "f64") and isinstance(state.shape[2], int) and state.shape[2] > 0

    def scratch(self, node: Node, machine: Machine) -> Sequence[TensorType]:
        """Counters, if threads wait for each other."""
        shape = scan_form(node.op.name, [i.type for i in node.inputs], node.attributes, machine)
        return [] if shape.splits else [TensorType(i64, (shape.directions, LINE))]

    def packing(self, node: Node, machine: Machine) -> Mapping[int, Callable[[Builder, Node], Node]]:
        """The recurrent weights and biases in panels."""
        shape = scan_form(node.op.name, [i.type for i in node.inputs], node.attributes, machine)
        numbers = (1, 2) if shape.cell.inner_bias else (1,)
        return {shape.operand(d, number): shape.panels_of for d in range(shape.directions) for number in numbers}

    def in_place(self, node: Node) -> Mapping[int, int]:
        """What is kept may take the place of the gates, which a cell reads first, if they are of one direction."""
        cell = scanned_cell(node.op.name)
        assert cell is not None, node
        keeps = node.op.name.endswith("_keeping") and len(node.attributes["reverse"]) == 1
        return {1 + cell.states: cell.states} if keeps else {}

    def write(self, e: Emitter, call: RoutineCall, machine: Machine, name: str) -> Written:
        shape = scan_form(call.op, call.reads, call.attributes, machine)
        _Scan(e, shape, call, name).write()
        return shape.written(shape.cell.name)


class _Scan(TimeLoop[ScanForm]):
    """Writes the functions of one scan."""

    def __init__(self, e: Emitter, shape: ScanForm, call: RoutineCall, name: str) -> None:
        y, *others = (view for view in call.writes if view is not None)
        super().__init__(e, shape, call, name, y.shape[0])
        states = shape.cell.states
        self.y, self.initial, self.lasts = y, call.reads[:states], others[:states]
        self.kept = others[states : states + len(shape.keeps)]
        # how far apart neighbouring units are; 1 but for operands that a caller laid out otherwise
        steps = {known(call.reads[shape.operand(d, 0)].strides[-1]) for d in range(shape.directions)}
        assert len(steps) == 1, call
        self.gate_step = steps.pop()
        self.y_step = known(y.strides[2])
        self.c_step = known(self.lasts[1].strides[2]) if states == 2 else 1
        self.kept_steps = [known(view.strides[3]) for view in self.kept]
        self.state_step = self.y_step if self.y_step == self.initial[0].strides[2] else 0
        # of a cell's function: what moves from row to row
        self.pointers = ("gates", "h", "y", "c", *("kept", "more")[: len(shape.keeps)])

    def write(self) -> None:
        for last in self._kinds():
            self._write_cell(last)
            for height in self.shape.heights:
                self._write_tile(height, last)
        self._write_step()
        self._write_main()

    # -- the cell ------------------------------------------------------------------------------------------------------------

    def _write_cell(self, last: bool) -> None:
        """One row's new state in one panel, from the sums in `tile`."""
        e, shape = self.e, self.shape
        arguments = [(n, "ptr") for n in ("tile", *self.pointers)]
        with e.func(f"{self.name}_cell{int(last)}", [*arguments, ("h_step", "i64")]) as (tile, gates, h, y, c, *kept, h_step):
            for vector in range(shape.vectors):
                mask = self._mask(vector, last)
                first = vector * shape.lanes
                sums = [
                    e.load(tile, (gate * shape.vectors + vector) * shape.lanes, self.element, shape.lanes)
                    for gate in range(shape.cell.gates)
                ]
                factors: list[Value] = []
                if shape.cell.name == "lstm":
                    old = self._read(c, first, self.c_step, mask)
                    new_c, new, *factors = lstm_cell_kept(e, sums, old) if kept else lstm_cell(e, sums, old)
                    self._store(new_c, c, first, self.c_step, mask)
                elif shape.cell.name == "gru":
                    inner = self._read(gates, 2 * shape.hidden + first, self.gate_step, mask)
                    state = self._read_state(h, h_step, first, mask)
                    new, *factors = gru_cell_kept(e, sums, inner, state) if kept else [gru_cell(e, sums, inner, state)]
                else:
                    new, *factors = self._rnn_cell(sums[0])
                self._store(new, y, first, self.y_step, mask)
                left = iter(factors)
                for pointer, width, step in zip(kept, shape.keeps, self.kept_steps):
                    for number, factor in enumerate(islice(left, width)):
                        self._store(factor, pointer, number * shape.hidden + first, step, mask)

    def _rnn_cell(self, total: Value) -> tuple[Value, Value]:
        """The new state, and the activation's slope."""
        e = self.e
        if self.shape.activation == "tanh":
            new = tanh(e, total)
            return new, 1.0 - new * new
        new = e.maximum(total, 0.0)
        return new, e.select(e.compare("gt", new, 0.0), e.constant(1.0, new), 0.0)

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
        pointers = [(n, "ptr") for n in ("panel", "bias", "whole_h", *self.pointers)]
        strides = [(f"{n}_row", "i64") for n in self.pointers]
        with e.func(f"{self.name}_tile{height}_{int(last)}", [*pointers, *strides, ("h_step", "i64")]) as values:
            panel, bias, whole_h, *rest, h_step = values
            moved, rows_apart = rest[: len(self.pointers)], rest[len(self.pointers) :]
            gates, gates_row, h_row = moved[0], rows_apart[0], rows_apart[1]
            width = shape.columns * shape.lanes
            tile = e.scratch(self.element, height * width)
            rows = [e.offset(whole_h, h_row * row if row else 0, self.element) for row in range(height)]
            gate_rows = [e.offset(gates, gates_row * row if row else 0, self.element) for row in range(height)]
            step = 1 if self.state_step == 1 else h_step
            sums = self._products(panel, rows, step, [self._start(at, bias, last) for at in gate_rows])
            for row in range(height):
                for column, total in enumerate(sums[row]):
                    e.store(total, tile, row * width + column * shape.lanes)
            with e.for_loop(0, height) as loop:
                places = [(tile, e.constant(width, "i64")), *zip(moved, rows_apart)]
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

    # -- one step ------------------------------------------------------------------------------------------------------------

    def _write_step(self) -> None:
        """One time step of one direction for ranges of rows and panels."""
        e, shape = self.e, self.shape
        pointers = [(n, "ptr") for n in ("packed", "bias", *self.pointers)]
        numbers = (*(f"{n}_row" for n in self.pointers), "h_step", "row_low", "row_high", "panel_low", "panel_high")
        with e.func(f"{self.name}_step", [*pointers, *((n, "i64") for n in numbers)]) as values:
            packed, bias, *rest = values
            moved, (*rows_apart, h_step), ranges = rest[: len(self.pointers)], rest[len(self.pointers) : -4], rest[-4:]
            unit_steps = (
                shape.units * self.gate_step, shape.units if self.state_step == 1 else h_step * shape.units,
                shape.units * self.y_step, shape.units * self.c_step, *(shape.units * step for step in self.kept_steps),
            )  # fmt: skip
            streams = [
                (packed, None, shape.panel_elements), (bias, None, shape.columns * shape.lanes), (moved[1], rows_apart[1], 0),
                *zip(moved, rows_apart, unit_steps),
            ]  # fmt: skip
            self._tiles(ranges, streams, [*rows_apart, h_step])

    # -- pieces of a direction -----------------------------------------------------------------------------------------------

    def _operand(self, direction: int, number: int) -> tuple[View, Value]:
        position = self.shape.operand(direction, number)
        return self.call.reads[position], self.reads[position]

    def _packed(self, direction: int) -> Value:
        return self._operand(direction, 1)[1]

    def _begin(self, direction: int, rows: Range, panels: Range) -> None:
        """Copy the initial c to where it is kept."""
        if self.shape.cell.states == 2:
            begin, kept = self.initial[1], self.lasts[1]
            source = self._at(begin, self.reads[1], direction), self._number(begin.strides[1]), self._number(begin.strides[2])
            self._copy(source, kept, self._at(kept, self.writes[2], direction), rows, panels)

    def _first_state(self, direction: int) -> list[Value]:
        """(address, row stride, unit stride) of the initial h."""
        view = self.initial[0]
        return [self._at(view, self.reads[0], direction), self._number(view.strides[1]), self._number(view.strides[2])]

    def _step(
        self, direction: int, packed: Value, number: Value, state: Sequence[Value], rows: Range, panels: Range
    ) -> list[Value]:
        """Call the step function for time step `number`; where the new h lies, as `_first_state`."""
        e, shape = self.e, self.shape
        at = self._number(self.steps) - 1 - number if shape.reverse[direction] else number
        gates_view, gates = self._operand(direction, 0)
        y = self._at(self.y, self.writes[0], at, 0, direction * shape.hidden)
        c = self._at(self.lasts[1], self.writes[2], direction) if shape.cell.states == 2 else y
        c_row = self._number(self.lasts[1].strides[1]) if shape.cell.states == 2 else e.constant(0, "i64")
        bias = self._operand(direction, 2)[1] if shape.cell.inner_bias else y
        h, h_row, h_step = state
        y_row, y_step = self._number(self.y.strides[1]), self._number(self.y.strides[2])
        places = [packed, bias, self._at(gates_view, gates, at), h, y, c]
        rows_apart = [self._number(gates_view.strides[1]), h_row, y_row, c_row]
        for k, view in enumerate(self.kept):
            places.append(self._at(view, self.writes[1 + shape.cell.states + k], direction, at))
            rows_apart.append(self._number(view.strides[2]))
        e.call(f"{self.name}_step", [*places, *rows_apart, h_step, *rows, *panels])
        return [y, y_row, y_step]

    def _finish(self, direction: int, state: Sequence[Value], rows: Range, panels: Range) -> None:
        """Copy the last h to its result."""
        view = self.lasts[0]
        self._copy(state, view, self._at(view, self.writes[1], direction), rows, panels)
