"""Contraction + ContractionSchedule -> MLIR: one function `void kernel(void **words, int64_t low, int64_t high)` over work items.

    for each tile of the item:
        sums = 0                                     rows x vectors registers
        for each summed position:                    loops over the summed axes, sums carried along
            sums[i][v] += rows[i] * columns[v]       one number broadcast, one vector; of narrow types several positions at once
        store sums to a scratch tile, then for each row of it whatever the kernel does to the sums

The last part is written by `KernelWriter`, as every kernel is, from a kernel that reads the scratch tile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dlcompiler.codegen.contraction import ContractionSchedule
from dlcompiler.codegen.cpu import scalars
from dlcompiler.codegen.cpu.emitter import Emitter, Value
from dlcompiler.codegen.cpu.indexing import Number
from dlcompiler.codegen.cpu.machine import Machine
from dlcompiler.codegen.cpu.products import Factor, Product
from dlcompiler.codegen.cpu.writer import KernelWriter
from dlcompiler.ir import kernel as K
from dlcompiler.ir.contraction import find_panels
from dlcompiler.ir.expression import Dim, linear_coefficients, substitute, symbol, symbols


class ContractionWriter:
    """Writes one contraction into an open module."""

    def __init__(self, e: Emitter, kernel: K.Kernel, schedule: ContractionSchedule, machine: Machine) -> None:
        self.e, self.kernel, self.schedule, self.machine = e, kernel, schedule, machine
        self.finishing = KernelWriter(e, schedule.finishing, schedule.finish, machine)
        self.index = self.finishing.index
        self.element = scalars.element_name(schedule.contraction.reduce.dtype)
        self.load = schedule.contraction.load
        columns = schedule.contraction.columns_load
        assert columns is not None
        self.columns, self.panels = columns, find_panels(schedule.contraction.columns, schedule.contraction.reduce.over)
        self.is_lanewise = schedule.contraction.is_lanewise
        self.edge: Number | None = None  # columns that exist, where a tile may reach beyond them
        # what is not the same for all rows, or cannot be skipped as zeros can, is read from a row of what is outside
        reads_outside = schedule.contraction.outside != 0
        self.row_bounds = [b for b in schedule.guards if reads_outside or schedule.row in symbols(b.expression)]
        self.other_bounds = [b for b in schedule.guards if b not in self.row_bounds]

    @property
    def axis_values(self) -> dict[str, Number]:
        """Where the loops are, as the writer of the last part knows it."""
        return self.finishing.axis_values

    @property
    def row(self) -> str:
        """The axis that tiles take several rows of, where there is one."""
        assert self.schedule.row is not None
        return self.schedule.row

    def write(self, name: str) -> None:
        """Write the function."""
        e, kernel, schedule, w = self.e, self.kernel, self.schedule, self.finishing
        with e.func(name, [("words", "ptr"), ("low", "i64"), ("high", "i64")]) as (words, low, high):
            pointers = e.buffers(words, len(kernel.buffers))
            w.memory.pointers = dict(zip(kernel.buffers, pointers))
            for number, size in enumerate(kernel.size_symbols):
                w.sizes[size] = e.load(words, len(kernel.buffers) + number, "i64")
            self.product = self._product()
            self.sums = e.scratch(self.element, schedule.rows * schedule.width)
            self.outside = self._row_outside() if self.row_bounds else None
            w.scopes.append({})
            with e.for_loop(low, high) as loop:
                self._work_item(loop.index)
            w.scopes.pop()

    def _product(self) -> Product:
        """How one step multiplies."""
        schedule, total = self.schedule, self.schedule.contraction.reduce.dtype
        step = self.index.write(schedule.rows_access.stride(schedule.summed[-1]) or 0)
        rows, columns = Factor(self.load.dtype, step), Factor(self.columns.dtype)
        return Product(self.e, self.machine, rows, columns, total, schedule.lanes, schedule.depth)

    def _row_outside(self) -> Value:
        """What rows outside are read from."""
        e = self.e
        count = self.schedule.width if self.is_lanewise else self.schedule.axes[self.schedule.summed[-1]]
        assert isinstance(count, int)
        element = scalars.element_name(self.load.dtype)
        row = e.scratch(element, count)
        with e.for_loop(0, count) as loop:
            e.store(e.constant(self.schedule.contraction.outside, element), row, loop.index)
        return row

    # -- work items --------------------------------------------------------------------------------------------------------

    def _work_item(self, item: Value) -> None:
        """A panel of columns, for a chunk of rows, at one point of the outer axes."""
        e, schedule = self.e, self.schedule
        panels, chunks = self.index.write(schedule.panels), self.index.write(schedule.chunks_of_all)
        outer: list[tuple[str, Dim]] = [(a, schedule.axes[a]) for a in schedule.outer]
        between: list[tuple[str, Dim]] = [*((a, schedule.axes[a]) for a in schedule.between), ("chunk", schedule.chunks)]
        rest: Number = item
        if outer:
            every = self.index.times(panels, chunks)
            places = self._digits(e.div(item, every), outer)
            rest = e.rem(item, every)
        else:
            places = {}
        if schedule.block is None:
            panel, number = self._parts(rest, chunks)
        else:
            block, rest = self._parts(rest, self.index.times(panels, schedule.block))
            begin = self.index.times(block, schedule.block)
            here = e.minimum(self._value(self.index.plus(chunks, self.index.times(begin, -1))), schedule.block)
            panel, number = self._parts(rest, here)
            number = self.index.plus(begin, number)
        places |= self._digits(number, between)
        chunk = places.pop("chunk")
        self.axis_values.update(places)
        self.panel = panel
        self.first_column = self.index.times(panel, schedule.width)
        if self._fills_panels() or (schedule.is_packed and not self.is_lanewise):
            self._chunk(chunk)
        else:
            end = self.index.write(schedule.axes[schedule.column])
            past = self.index.plus(self.first_column, schedule.width)
            past = past if isinstance(past, Value) else e.constant(past, "i64")
            whole = e.compare("le", past, end)
            with e.if_then(whole):
                self._chunk(chunk)
            with e.if_then(e.bit_xor(whole, e.constant(True, "i1"))):
                self.edge = end
                self._chunk(chunk)
                self.edge = None
        for axis in (*schedule.outer, *schedule.between):
            del self.axis_values[axis]

    def _parts(self, number: Number, size: Number) -> tuple[Number, Number]:
        """(number div size, number mod size)."""
        if size == 1:
            return number, 0
        return self.e.div(self._value(number), size), self.e.rem(self._value(number), size)

    def _digits(self, number: Number, axes: Sequence[tuple[str, Dim]]) -> dict[str, Number]:
        """A point of axes, the last one innermost, from its number."""
        places: dict[str, Number] = {}
        for position, (name, extent) in reversed(list(enumerate(axes))):
            if extent == 1:
                places[name] = 0
            elif position == 0:
                places[name] = number
            else:
                number, places[name] = self._parts(number, self.index.write(extent))
        return places

    def _fills_panels(self) -> bool:
        count = self.schedule.axes[self.schedule.column]
        return isinstance(count, int) and count % self.schedule.width == 0

    def _chunk(self, chunk: Number) -> None:
        """The tiles of one work item: whole ones, then one of fewer rows."""
        e, schedule = self.e, self.schedule
        if schedule.row is None:
            self._tile(0, 1)
            return
        height = schedule.axes[schedule.row]
        begin = self.index.times(chunk, schedule.chunk)
        end: Number = self.index.plus(begin, schedule.chunk)
        if not isinstance(height, int) or height % schedule.chunk:
            end = e.minimum(self._value(end), self.index.write(height))
        if schedule.rest == 0:
            with e.for_loop(begin, end, schedule.rows) as loop:
                self._tile(loop.index, schedule.rows)
            return
        count = e.sub(self._value(end), begin)
        whole = self.index.plus(begin, e.mul(e.div(count, schedule.rows), schedule.rows))
        with e.for_loop(begin, whole, schedule.rows) as loop:
            self._tile(loop.index, schedule.rows)
        with e.if_then(e.compare("lt", whole, self._value(end))):
            if schedule.rest is not None:
                self._tile(whole, schedule.rest)
            else:
                self._tile(whole, schedule.rows, count=e.sub(self._value(end), whole))

    def _value(self, number: Number) -> Value:
        return number if isinstance(number, Value) else self.e.constant(number, "i64")

    # -- one tile ----------------------------------------------------------------------------------------------------------

    def _tile(self, first: Number, rows: int, count: Value | None = None) -> None:
        """Rows `first` on; of the `rows` that are computed only `count` exist, if that is given: the last is computed again."""
        e, schedule = self.e, self.schedule
        if schedule.row is not None:
            self.axis_values[schedule.row] = first
        self.axis_values[schedule.column] = self.first_column
        at_begin = {axis: 0 for axis in schedule.summed}
        base = e.offset(
            self.finishing.memory.pointers[self.load.buffer],
            self._value(self.index.write(substitute(schedule.rows_access.offset, at_begin))),
            scalars.element_name(self.load.dtype),
        )
        step = self.index.write(schedule.rows_access.stride(schedule.row) or 0) if schedule.row is not None else 0
        offsets: list[Number] = [self.index.times(step, k) for k in range(rows)]
        if count is not None:
            last = e.sub(count, 1)
            offsets = [0, *(self.index.times(step, e.minimum(last, k)) for k in range(1, rows))]
        columns = self._columns_base(at_begin)
        zeros = [e.constant(0.0, self.element, schedule.lanes)] * ((rows + len(self.product.constant_rows)) * schedule.vectors)
        if schedule.is_summed_in_blocks:
            self._sum_blocks(base, offsets, columns, zeros)
        elif self.row_bounds:
            self._store_sums(self._guarded(first, rows, base, offsets, columns, zeros))
        else:
            self._store_sums(self._nest(schedule.summed, base, offsets, columns, zeros, per_row=False))
        self._finish_rows(first, rows if count is None else count)

    def _store_sums(self, sums: list[Value]) -> None:
        for k, total in enumerate(self.product.settled(sums, self.schedule.vectors)):
            self.e.store(total, self.sums, k * self.schedule.lanes)

    def _sum_blocks(self, base: Value, offsets: list[Number], columns: Value, zeros: list[Value]) -> None:
        """A long sum in parts, which are added up in the scratch tile."""
        e, schedule = self.e, self.schedule
        (axis,) = schedule.summed
        length = self.index.write(schedule.axes[axis])
        self._store_sums(zeros)
        with e.for_loop(0, length, schedule.sum_block) as block:
            end = e.minimum(e.add(block.index, schedule.sum_block), length)
            part = self._nest((axis,), base, offsets, columns, zeros, per_row=False, span=(block.index, end))
            before = (e.load(self.sums, k * schedule.lanes, self.element, schedule.lanes) for k in range(len(part)))
            self._store_sums([total + more for total, more in zip(before, part)])

    def _columns_base(self, at_begin: Mapping[str, Dim]) -> Value:
        """Address of the tile's first column at the first summed position."""
        schedule = self.schedule
        place = self.index.write(substitute(schedule.columns_access.offset, at_begin))
        if self.panels is not None:
            place = self.index.plus(place, self.index.times(self.panel, self.index.write(self.panels.panel_stride())))
        return self.e.offset(
            self.finishing.memory.pointers[self.columns.buffer], self._value(place), self.product.columns.element
        )

    def _guarded(
        self, first: Number, rows: int, base: Value, offsets: list[Number], columns: Value, sums: list[Value]
    ) -> list[Value]:
        """A tile of which rows may lie outside at some summed positions; whether any do is found out once."""
        summed = self.schedule.summed

        def inside() -> list[Value]:
            return self._nest(summed, base, offsets, columns, sums, per_row=False)

        def partly() -> list[Value]:
            return self._nest(summed, base, offsets, columns, sums, per_row=True)

        ever = self._ever_inside(rows)
        if not ever:
            return partly()
        condition = self._all_inside(first, rows)
        return list(self.e.if_else(condition, inside, partly))

    def _ever_inside(self, rows: int) -> bool:
        """Whether any tile lies inside at all summed positions, as far as is known now."""
        row = self.schedule.row
        height = self.schedule.axes[row] if row is not None else 1
        if not isinstance(height, int):
            return all(self._extremes(b, 0, rows) is not None for b in self.row_bounds)
        return any(all(self._holds(b, first, rows) for b in self.row_bounds) for first in range(0, height, self.schedule.rows))

    def _holds(self, bound: K.Bound, first: int, rows: int) -> bool:
        extremes = self._extremes(bound, first, rows)
        if extremes is None:
            return False
        low, high = extremes
        if not isinstance(low, int) or not isinstance(high, int) or not isinstance(bound.extent, int):
            return True
        return low >= 0 and high < bound.extent

    def _extremes(self, bound: K.Bound, first: Dim, rows: int) -> tuple[Dim, Dim] | None:
        """The least and the greatest value of a bound's expression over a tile and all summed positions."""
        schedule = self.schedule
        row = self.row
        coefficients = linear_coefficients(bound.expression, [row, *schedule.summed])
        if coefficients is None:
            return None
        low: Dim = coefficients.get("", 0)
        high = low
        for axis, coefficient in coefficients.items():
            if not axis:
                continue
            extent = schedule.axes[axis] if axis != row else rows
            if not isinstance(coefficient, int):
                return None
            start: Dim = first if axis == row else 0
            near, far = coefficient * start, coefficient * (start + extent - 1)
            low, high = (low + near, high + far) if coefficient > 0 else (low + far, high + near)
        return low, high

    def _all_inside(self, first: Number, rows: int) -> Value:
        e = self.e
        result = e.constant(True, "i1")
        for bound in self.row_bounds:
            extremes = self._extremes(bound, symbol(self.row), rows)
            assert extremes is not None
            for what, inside in ((extremes[0], "low"), (extremes[1], "high")):
                number = self._value(self.index.write(what))
                limit = 0 if inside == "low" else self.index.write(bound.extent)
                result = e.bit_and(result, e.compare("ge" if inside == "low" else "lt", number, limit))
        return result

    def _nest(
        self,
        axes: Sequence[str],
        base: Value,
        offsets: list[Number],
        columns: Value,
        sums: list[Value],
        per_row: bool,
        span: tuple[Number, Number] | None = None,
    ) -> list[Value]:
        """Loops over the summed axes from `axes` on, at whose beginning `base` and `columns` point; over part of the first."""
        e, schedule = self.e, self.schedule
        if not axes:

            def step() -> list[Value]:
                return self._step(self._row_pointers(base, offsets, per_row), columns, sums)

            if not (self.is_lanewise and self.other_bounds):
                return step()
            return list(e.if_else(self._within(self.other_bounds), step, lambda: sums))
        axis, rest = axes[0], axes[1:]
        row_element = scalars.element_name(self.load.dtype)
        row_step, column_step = (
            self.index.write(access.stride(axis) or 0) for access in (schedule.rows_access, schedule.columns_access)
        )

        def at(place: Number, carried: list[Value], pointers: list[Value] | None, count: Number | None = None) -> list[Value]:
            """The sums after one place of the axis, of which `count` positions exist, if that is given."""
            columns_here = e.offset(columns, self._value(self.index.times(place, column_step)), self.product.columns.element)
            along = self._value(self.index.times(place, row_step))
            if pointers is not None:
                here = [e.offset(pointer, along, row_element) for pointer in pointers]
                return self._step(here, columns_here, carried, count)
            return self._nest(rest, e.offset(base, along, row_element), offsets, columns_here, carried, per_row)

        def loop_over(pointers: list[Value] | None) -> list[Value]:
            low, high = span or (0, self.index.write(schedule.axes[axis]))
            depth = 1 if rest else schedule.depth
            whole = self.finishing._whole(low, high, depth) if depth > 1 and not self._divides(axis, depth) else high
            with e.for_loop(low, whole, depth, sums) as loop:
                self.axis_values[axis] = loop.index
                loop.next(*at(loop.index, list(loop.carried), pointers))
                del self.axis_values[axis]
            if whole is high:
                return list(loop.results)
            if isinstance(high, int) and isinstance(whole, int):
                return at(whole, list(loop.results), pointers, high - whole)
            count = e.sub(self._value(high), self._value(whole))
            some = e.compare("gt", count, 0)
            return list(e.if_else(some, lambda: at(whole, list(loop.results), pointers, count), lambda: list(loop.results)))

        if rest or self.is_lanewise:
            return loop_over(None)
        pointers = self._row_pointers(base, offsets, per_row)
        if not self.other_bounds:
            return loop_over(pointers)
        inside = self._within(self.other_bounds)
        return list(e.if_else(inside, lambda: loop_over(pointers), lambda: sums))

    def _divides(self, axis: str, depth: int) -> bool:
        """Whether groups of `depth` positions fill an axis, and each part of it in which sums are made."""
        length = self.schedule.axes[axis]
        return isinstance(length, int) and length % depth == 0

    def _within(self, bounds: Sequence[K.Bound], row: Number | None = None) -> Value:
        """Whether bounds hold at the current position (of the given row)."""
        e, axis = self.e, self.schedule.row
        saved = self.axis_values.get(axis) if axis is not None else None
        if row is not None and axis is not None:
            self.axis_values[axis] = row
        result = e.constant(True, "i1")
        for bound in bounds:
            number = self._value(self.index.write(bound.expression))
            # one unsigned comparison: what is negative is large
            limit = self._value(self.index.write(bound.extent))
            result = e.bit_and(result, e.compare("ult", number, limit))
        if saved is not None and axis is not None:
            self.axis_values[axis] = saved
        return result

    def _row_pointers(self, base: Value, offsets: list[Number], per_row: bool) -> list[Value]:
        """Where each row is read from; of rows outside, a row of what is there."""
        e = self.e
        element = scalars.element_name(self.load.dtype)
        pointers = [base if offset == 0 else e.offset(base, self._value(offset), element) for offset in offsets]
        if not per_row:
            return pointers
        assert self.outside is not None and self.schedule.row is not None
        first = self.axis_values[self.schedule.row]
        chosen = []
        for k, pointer in enumerate(pointers):
            inside = self._within(self.row_bounds, self.index.plus(first, k))
            chosen.append(e.op("ptr", 0, "arith.select {}, {}, {} : !llvm.ptr", inside, pointer, self.outside))
        return chosen

    def _step(self, pointers: list[Value], columns: Value, sums: list[Value], count: Number | None = None) -> list[Value]:
        """One step: a vector of columns for each of `vectors`, for each row a number that is the same for all lanes."""
        vectors = range(self.schedule.vectors)
        loaded = [self._column_vector(columns, v) for v in vectors]
        if not self.is_lanewise:
            return self.product.step(pointers, loaded, sums, count)
        result = []
        for k, pointer in enumerate(pointers):
            result += [self.product.add(self._row_vector(pointer, v), loaded[v], sums[k * len(vectors) + v]) for v in vectors]
        return result

    def _column_vector(self, columns: Value, vector: int) -> Value:
        """Lanes of the columns; panels are filled up, so that there is something to read for every lane."""
        if self.schedule.is_packed:
            return self.product.column_vector(columns, vector)
        return self.product.widened(self._lanes(columns, vector, self.product.columns.element))

    def _row_vector(self, pointer: Value, vector: int) -> Value:
        """Lanes of one row, where each lane has a row of its own."""
        loaded = self._lanes(pointer, vector, scalars.element_name(self.load.dtype))
        return scalars.convert(self.e, loaded, self.load.dtype, self.schedule.contraction.reduce.dtype)

    def _lanes(self, pointer: Value, vector: int, element: str) -> Value:
        e, lanes = self.e, self.schedule.lanes
        if self.edge is None or not self.machine.has_masks:
            return e.load(pointer, vector * lanes, element, lanes)
        first = self.index.plus(self.first_column, vector * lanes)
        mask = e.create_mask(e.sub(self._value(self.edge), first), lanes)
        return e.masked_load(pointer, vector * lanes, mask, e.constant(0.0, element, lanes))

    # -- what is done to the sums --------------------------------------------------------------------------------------------

    def _finish_rows(self, first: Number, count: Number) -> None:
        """Everything that depends on a tile's sums; what is the same for all rows comes before the loop over them."""
        schedule, w = self.schedule, self.finishing
        back = self.index.plus(self.index.times(first, schedule.width), self.first_column)
        back = self.index.times(back, -1)
        w.memory.pointers[schedule.sums] = self.e.offset(self.sums, self._value(back), self.element)
        for axis in (schedule.row, schedule.column):
            if axis is not None:
                del self.axis_values[axis]
        rows = [(schedule.row, first, count)] if schedule.row is not None else []
        w.tile(self.first_column, schedule.vectors, rows)
