"""The gradients of recurrent layers' scans: the time loop backwards, one product and one cell a tile.

    dh = dy[t] + dproduct[t + 1] @ w_hidden (+ what went past the product);   dgates[t], dproduct[t] = cell(dh, kept[t])

The weight [G*H, H] is read in panels [G*H][one or more vectors of hidden units]: a tile takes the derivatives of all gates of the
step before where they lie, in the result, and makes those of its own units. What does not go through the product (dc of an lstm,
a gru's dh * z) stays in the memory of the first states' gradients. After the last step one more product gives that of h.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from dlcompiler.codegen.cpu.emitter import Emitter, Value
from dlcompiler.codegen.cpu.machine import Machine
from dlcompiler.codegen.cpu.routines import Written
from dlcompiler.codegen.cpu.routines.recurrent_form import BackForm, back_form
from dlcompiler.codegen.cpu.routines.recurrent_loop import LINE, Range, TimeLoop
from dlcompiler.ir.expression import known
from dlcompiler.ir.graph import Builder, Node
from dlcompiler.ir.ops.recurrent_training import back_cell
from dlcompiler.ir.program import RoutineCall, View
from dlcompiler.ir.types import TensorType, i64


class RecurrentBackward:
    """The routine of the gradients of the scans of every cell."""

    def applies(self, node: Node, machine: Machine) -> bool:
        """As for the scans."""
        state = node.inputs[1].tensor
        return state.dtype.name in ("f32", "f64") and isinstance(state.shape[2], int) and state.shape[2] > 0

    def scratch(self, node: Node, machine: Machine) -> Sequence[TensorType]:
        """Counters, if threads wait for each other."""
        shape = back_form(node.op.name, [i.type for i in node.inputs], node.attributes, machine)
        return [] if shape.splits else [TensorType(i64, (shape.directions, LINE))]

    def packing(self, node: Node, machine: Machine) -> Mapping[int, Callable[[Builder, Node], Node]]:
        """The recurrent weights in panels."""
        shape = back_form(node.op.name, [i.type for i in node.inputs], node.attributes, machine)
        return {shape.operand(d): shape.panels_of for d in range(shape.directions)}

    def in_place(self, node: Node) -> Mapping[int, int]:
        """Derivatives of the gates take the place of what was kept, which a cell reads first."""
        cell = back_cell(node.op.name)
        assert cell is not None, node
        return {0: 1 + cell.states}

    def write(self, e: Emitter, call: RoutineCall, machine: Machine, name: str) -> Written:
        shape = back_form(call.op, call.reads, call.attributes, machine)
        _Back(e, shape, call, name).write()
        return shape.written(f"{shape.cell.name} backwards")


class _Back(TimeLoop[BackForm]):
    """Writes the functions of the gradients of one scan."""

    reads_last = True

    def __init__(self, e: Emitter, shape: BackForm, call: RoutineCall, name: str) -> None:
        super().__init__(e, shape, call, name, call.reads[0].shape[0])
        states, writes = shape.cell.states, [view for view in call.writes if view is not None]
        self.dy, self.lasts = call.reads[0], call.reads[1 : 1 + states]
        self.kept = dict(zip(("kept", "more"), call.reads[1 + states : 1 + states + len(shape.keeps)]))
        first = 2 if shape.cell.inner_bias else 1
        self.gates, self.product, self.firsts = writes[0], writes[first - 1], writes[first : first + states]
        self.first_state = first
        # what a row of the batch moves, its view, and how far apart neighbouring units are
        named = {"dy": self.dy, **self.kept, "dgates": self.gates, "dproduct": self.product}
        named |= {f"d{k}": view for k, view in enumerate(self.firsts)}
        self.moved = named
        self.unit_steps = {role: known(view.strides[-1]) for role, view in named.items()}

    def write(self) -> None:
        for last in self._kinds():
            self._write_cell(last)
            for height in self.shape.heights:
                self._write_tile(height, last, "tile")
                self._write_tile(height, last, "end")
        self._write_step("step", "tile")
        self._write_step("end", "end")
        self._write_main()

    # -- the cell ------------------------------------------------------------------------------------------------------------

    def _write_cell(self, last: bool) -> None:
        """One row's derivatives in one panel, from the sums in `tile`: see `ir.ops.recurrent_training`."""
        e, shape, hidden = self.e, self.shape, self.shape.hidden
        with e.func(f"{self.name}_cell{int(last)}", [(n, "ptr") for n in ("tile", *self.moved)]) as (tile, *pointers):
            at = dict(zip(self.moved, pointers))
            for vector in range(shape.vectors):
                mask, first = self._mask(vector, last), vector * shape.lanes

                def read(role: str, block: int = 0, first: int = first, mask: Value | None = mask) -> Value:
                    return self._read(at[role], block * hidden + first, self.unit_steps[role], mask)

                def store(value: Value, role: str, block: int = 0, first: int = first, mask: Value | None = mask) -> None:
                    self._store(value, at[role], block * hidden + first, self.unit_steps[role], mask)

                through = e.load(tile, first, self.element, shape.lanes)
                dh = read("dy") + through + read("d0")
                kept = [read(role, number) for role, width in zip(self.kept, shape.keeps) for number in range(width)]
                past = e.constant(0.0, dh)
                if shape.cell.name == "lstm":
                    of_i, of_f, of_g, of_o, of_c, f = kept
                    dc = self._multiply_add(dh, of_c, read("d1"))
                    for gate, value in enumerate((dc * of_i, dc * of_f, dc * of_g, dh * of_o)):
                        store(value, "dgates", gate)
                    store(dc * f, "d1")
                elif shape.cell.name == "gru":
                    r, z, of_n, of_z, of_r = kept
                    dn = dh * of_n
                    for role, of_last in (("dgates", dn), ("dproduct", dn * r)):
                        for gate, value in enumerate((dn * of_r, dh * of_z, of_last)):
                            store(value, role, gate)
                    past = dh * z
                else:
                    store(dh * kept[0], "dgates")
                store(past, "d0")

    # -- one tile ------------------------------------------------------------------------------------------------------------

    def _write_tile(self, height: int, last: bool, kind: str) -> None:
        """`height` rows of one panel: the product with the derivatives of the step before, if there was one (`depth` is not 0).

        Then the cell of each row; at the end instead what the product gives for the first state is added to it.
        """
        e, shape = self.e, self.shape
        pointers = [(n, "ptr") for n in ("panel", "before", *self.moved)]
        numbers = [(n, "i64") for n in ("before_row", *(f"{role}_row" for role in self.moved), "depth")]
        with e.func(f"{self.name}_{kind}{height}_{int(last)}", [*pointers, *numbers]) as values:
            panel, before, *rest, depth = values
            pointers_moved, (before_row, *rows_apart) = rest[: len(self.moved)], rest[len(self.moved) :]
            rows = [e.offset(before, before_row * row if row else 0, self.element) for row in range(height)]
            zeros = [e.constant(0.0, self.element, shape.lanes)] * shape.columns
            sums = self._products(panel, rows, self.unit_steps["dproduct"], [zeros] * height, depth)
            if kind == "end":
                place = list(self.moved).index("d0")
                for row, own in enumerate(sums):
                    target = e.offset(pointers_moved[place], rows_apart[place] * row, self.element)
                    self._add(own, target, last)
                return
            width = shape.columns * shape.lanes
            tile = e.scratch(self.element, height * width)
            for row, own in enumerate(sums):
                for column, total in enumerate(own):
                    e.store(total, tile, row * width + column * shape.lanes)
            with e.for_loop(0, height) as loop:
                places = [(tile, e.constant(width, "i64")), *zip(pointers_moved, rows_apart)]
                given = [e.offset(pointer, loop.index * stride, self.element) for pointer, stride in places]
                e.call(f"{self.name}_cell{int(last)}", given)

    def _add(self, vectors: Sequence[Value], target: Value, last: bool) -> None:
        step = self.unit_steps["d0"]
        for column, vector in enumerate(vectors):
            mask, first = self._mask(column, last), column * self.shape.lanes
            self._store(vector + self._read(target, first, step, mask), target, first, step, mask)

    # -- one step ------------------------------------------------------------------------------------------------------------

    def _write_step(self, name: str, kind: str) -> None:
        """One time step of one direction for ranges of rows and panels."""
        e, shape = self.e, self.shape
        pointers = [(n, "ptr") for n in ("packed", "before", *self.moved)]
        numbers = [
            "before_row",
            *(f"{role}_row" for role in self.moved),
            "depth",
            "row_low",
            "row_high",
            "panel_low",
            "panel_high",
        ]
        with e.func(f"{self.name}_{name}", [*pointers, *((n, "i64") for n in numbers)]) as values:
            packed, before, *rest = values
            moved, (before_row, *rows_apart, depth), ranges = rest[: len(self.moved)], rest[len(self.moved) : -4], rest[-4:]
            unit_steps = [shape.units * step for step in self.unit_steps.values()]
            streams = [(packed, None, shape.panel_elements), (before, before_row, 0), *zip(moved, rows_apart, unit_steps)]
            self._tiles(ranges, streams, [before_row, *rows_apart, depth], kind)

    # -- pieces of a direction -----------------------------------------------------------------------------------------------

    def _packed(self, direction: int) -> Value:
        return self.reads[self.shape.operand(direction)]

    def _begin(self, direction: int, rows: Range, panels: Range) -> None:
        """Copy the last states' derivatives to where those of the first ones come to be."""
        for k, (last, first) in enumerate(zip(self.lasts, self.firsts)):
            source = self._at(last, self.reads[1 + k], direction), self._number(last.strides[1]), self._number(last.strides[2])
            self._copy(source, first, self._at(first, self.writes[self.first_state + k], direction), rows, panels)

    def _first_state(self, direction: int) -> list[Value]:
        """(address of the step before's derivatives of the product, how many there are): none."""
        return [self._at(self.product, self.writes[self.first_state - 1], direction), self.e.constant(0, "i64")]

    def _step(
        self, direction: int, packed: Value, number: Value, state: Sequence[Value], rows: Range, panels: Range
    ) -> list[Value]:
        """Call the step function; where its derivatives lie, as `_first_state`."""
        at = number if self.shape.reverse[direction] else self._number(self.steps) - 1 - number
        self._call("step", direction, packed, at, state, rows, panels)
        return [
            self._at(self.product, self.writes[self.first_state - 1], direction, at),
            self.e.constant(self.shape.depth, "i64"),
        ]

    def _finish(self, direction: int, state: Sequence[Value], rows: Range, panels: Range) -> None:
        """The product that gives the first state's derivative."""
        self._call("end", direction, self._packed(direction), self.e.constant(0, "i64"), state, rows, panels)

    def _call(
        self, name: str, direction: int, packed: Value, at: Value, state: Sequence[Value], rows: Range, panels: Range
    ) -> None:  # fmt: skip
        before, depth = state
        states = 1 + self.shape.cell.states
        places = [
            self._at(self.dy, self.reads[0], at, 0, direction * self.shape.hidden),
            *(self._at(view, self.reads[states + k], direction, at) for k, view in enumerate(self.kept.values())),
            self._at(self.gates, self.writes[0], direction, at),
            self._at(self.product, self.writes[self.first_state - 1], direction, at),
            *(self._at(view, self.writes[self.first_state + k], direction) for k, view in enumerate(self.firsts)),
        ]
        rows_apart = [self._row_stride(view) for view in (self.product, *self.moved.values())]
        self.e.call(f"{self.name}_{name}", [packed, before, *places, *rows_apart, depth, *rows, *panels])

    def _row_stride(self, view: View) -> Value:
        """How far apart the rows of the batch are: the dimension before the last."""
        return self._number(view.strides[-2])
