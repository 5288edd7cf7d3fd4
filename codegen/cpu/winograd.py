"""Convolution + WinogradSchedule -> MLIR: one function `void kernel(void **words, int64_t low, int64_t high)` over work items.

    for each item, a panel of columns for a block of tiles:
        if the block is another one than before:
            inputs[position, tile, channel] = D d D'            for each tile, a vector of channels at a time
        for each position:
            products[position, tile, :] = inputs[position, tile, :] @ weights[panel, position]
        for each tile:
            sums = R products[:, tile, :] R'                    a vector of columns at a time
            whatever the kernel does to the sums, for each of them that exists

The last part is written by `KernelWriter`, as every kernel is, from a kernel that reads the sums.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from dlcompiler.codegen.cpu.emitter import Emitter, Value
from dlcompiler.codegen.cpu.indexing import Number
from dlcompiler.codegen.cpu.machine import Machine
from dlcompiler.codegen.cpu.writer import KernelWriter
from dlcompiler.codegen.winograd import WinogradSchedule
from dlcompiler.ir import kernel as K
from dlcompiler.ir.expression import Dim, known, substitute
from dlcompiler.ir.winograd import Matrix

ELEMENT = "f32"


class _Number(Protocol):
    """A Value, or in tests an array: whatever knows + - and *."""

    def __add__(self, other: Any, /) -> Any: ...
    def __sub__(self, other: Any, /) -> Any: ...
    def __mul__(self, other: Any, /) -> Any: ...


Term = TypeVar("Term", bound=_Number)


def linear_forms(matrix: Matrix, terms: Sequence[Term], multiply_add: Callable[[float, Term, Term], Term]) -> list[Term]:
    """The product of a matrix and a vector of terms, as few operations as pairs of points +p, -p allow.

    Rows that differ in signs alone are a sum and a difference of two parts; so are columns.
    """
    folded, numbers = _fold_columns(matrix, list(terms))
    results: list[Term | None] = [None] * len(matrix)
    for i, row in enumerate(numbers):
        if results[i] is not None:
            continue
        partner = next((j for j in range(i + 1, len(numbers)) if results[j] is None and _mixed_signs(row, numbers[j])), None)
        if partner is None:
            results[i] = _sum(row, folded, multiply_add)
            continue
        same = tuple(a if a == b else 0.0 for a, b in zip(row, numbers[partner]))
        other = tuple(a if a != b else 0.0 for a, b in zip(row, numbers[partner]))
        even, odd = _sum(same, folded, multiply_add), _sum(other, folded, multiply_add)
        results[i], results[partner] = even + odd, even - odd
    return results  # type: ignore[return-value]


def _mixed_signs(row: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two rows have the same magnitudes, some with the same sign and some with the opposite one."""
    pairs = [(a, b) for a, b in zip(row, other) if a or b]
    return all(abs(a) == abs(b) for a, b in pairs) and any(a == b for a, b in pairs) and any(a != b for a, b in pairs)


def _fold_columns(matrix: Matrix, terms: list[Term]) -> tuple[list[Term], list[list[float]]]:
    """Two terms whose columns differ in signs alone, as their sum and their difference: each row needs one of the two."""
    columns = [list(column) for column in zip(*matrix)]
    for j, k in itertools.combinations(range(len(columns)), 2):
        left, right = columns[j], columns[k]
        if sum(map(bool, left)) > 2 and _mixed_signs(left, right):
            terms[j], terms[k] = terms[j] + terms[k], terms[j] - terms[k]
            columns[j] = [a if a == b else 0.0 for a, b in zip(left, right)]
            columns[k] = [a if a != b else 0.0 for a, b in zip(left, right)]
    return terms, [list(row) for row in zip(*columns)]


def _sum(row: Sequence[float], terms: Sequence[Term], multiply_add: Callable[[float, Term, Term], Term]) -> Term:
    """The sum of numbers times terms; those that need no multiplication first."""
    order = sorted((k for k, number in enumerate(row) if number), key=lambda k: (row[k] != 1, abs(row[k]) != 1))
    first, *rest = order
    total = terms[first] if row[first] == 1 else terms[first] * row[first]
    for k in rest:
        if abs(row[k]) == 1:
            total = total + terms[k] if row[k] == 1 else total - terms[k]
        else:
            total = multiply_add(row[k], terms[k], total)
    return total


def transform_tile(
    values: Mapping[tuple[int, ...], Term], matrices: Sequence[Matrix], multiply_add: Callable[[float, Term, Term], Term]
) -> dict[tuple[int, ...], Term]:
    """A tile, by places, with a matrix applied along each of its dimensions, the last one first."""
    for dimension in reversed(range(len(matrices))):
        following: dict[tuple[int, ...], Term] = {}
        lines = dict.fromkeys((*at[:dimension], *at[dimension + 1 :]) for at in values)
        for line in lines:
            places = [(*line[:dimension], k, *line[dimension:]) for k in range(len(matrices[dimension][0]))]
            results = linear_forms(matrices[dimension], [values[at] for at in places], multiply_add)
            following |= {(*line[:dimension], k, *line[dimension:]): value for k, value in enumerate(results)}
        values = following
    return {at: values[at] for at in itertools.product(*(range(len(matrix)) for matrix in matrices))}


class WinogradWriter:
    """Writes one convolution into an open module."""

    def __init__(self, e: Emitter, kernel: K.Kernel, schedule: WinogradSchedule, machine: Machine) -> None:
        assert kernel.winograd is not None
        self.e, self.kernel, self.schedule, self.machine = e, kernel, schedule, machine
        self.weights = kernel.winograd.weights
        self.finishing = KernelWriter(e, schedule.finishing, schedule.finish, machine)
        self.index = self.finishing.index

    def write(self, name: str) -> None:
        """Write the function."""
        e, kernel, schedule, w = self.e, self.kernel, self.schedule, self.finishing
        positions, block = schedule.positions, schedule.block
        with e.func(name, [("words", "ptr"), ("low", "i64"), ("high", "i64")]) as (words, low, high):
            w.memory.pointers = dict(zip(kernel.buffers, e.buffers(words, len(kernel.buffers))))
            for number, size in enumerate(kernel.size_symbols):
                w.sizes[size] = e.load(words, len(kernel.buffers) + number, "i64")
            self.input_plane = block * schedule.input_row + schedule.lanes
            self.inputs = e.scratch(ELEMENT, positions * self.input_plane)
            self.products = e.scratch(ELEMENT, positions * schedule.product_plane)
            self.sums = e.scratch(ELEMENT, math.prod(schedule.sizes) * schedule.width)
            self.places = e.scratch("i64", positions)
            self.zeros = e.scratch(ELEMENT, schedule.channels)
            with e.for_loop(0, schedule.channels, schedule.lanes) as loop:
                e.store(e.constant(0.0, ELEMENT, schedule.lanes), self.zeros, loop.index)
            w.scopes.append({})
            with e.for_loop(low, high, 1, [e.constant(-1, "i64")]) as items:
                block_number, panel = e.div(items.index, schedule.panels), e.rem(items.index, schedule.panels)
                first = e.mul(block_number, block)
                count = e.minimum(e.sub(self._value(self.index.write(schedule.tiles)), first), block)
                with e.if_then(e.compare("ne", block_number, items.carried[0])):
                    self._transform_inputs(first, count)
                self._multiply(panel, count)
                self._finish(panel, first, count)
                items.next(block_number)
            w.scopes.pop()

    def _value(self, number: Number) -> Value:
        return number if isinstance(number, Value) else self.e.constant(number, "i64")

    def _multiply_add(self, number: float, term: Value, total: Value) -> Value:
        return self.e.fma(term, number, total) if self.machine.has_fma else term * number + total

    def _enter_tile(self, number: Value) -> list[Value]:
        """Set the axes of rows to the first row of a tile; its first place along each window."""
        e, schedule, axes = self.e, self.schedule, self.finishing.axis_values
        digits: list[tuple[str, Dim]] = [(axis, schedule.axes[axis]) for axis in schedule.outer]
        digits += [(w.axis, count) for w, count in zip(schedule.windows, schedule.counts)]
        rest = number
        for position, (axis, extent) in reversed(list(enumerate(digits))):
            if position == 0:
                axes[axis] = rest
            else:
                size = self.index.write(extent)
                axes[axis] = e.rem(rest, size)
                rest = e.div(rest, size)
        firsts = []
        for window, size in zip(schedule.windows, schedule.sizes):
            first = self._value(self.index.times(axes[window.axis], size))
            axes[window.axis] = first
            firsts.append(first)
        return firsts

    def _leave_tile(self) -> None:
        for axis in (*self.schedule.outer, *(w.axis for w in self.schedule.windows)):
            self.finishing.axis_values.pop(axis, None)

    # -- inputs --------------------------------------------------------------------------------------------------------------

    def _transform_inputs(self, first: Value, count: Value) -> None:
        """inputs[position, tile, channel] of a block."""
        e, schedule = self.e, self.schedule
        spans = [range(t.positions) for t in schedule.transforms]
        matrices = [t.data for t in schedule.transforms]
        with e.for_loop(0, count) as tiles:
            self._find_places(self._enter_tile(e.add(first, tiles.index)))
            self._leave_tile()
            target = e.offset(self.inputs, e.mul(tiles.index, schedule.input_row), ELEMENT)
            with e.for_loop(0, schedule.channels, schedule.lanes) as channels:
                values = {}
                for number, at in enumerate(itertools.product(*spans)):
                    pointer = e.op("ptr", 0, "llvm.inttoptr {} : i64 to !llvm.ptr", e.load(self.places, number, "i64"))
                    values[at] = e.load(pointer, channels.index, ELEMENT, schedule.lanes)
                here = e.offset(target, channels.index, ELEMENT)
                for number, value in enumerate(transform_tile(values, matrices, self._multiply_add).values()):
                    e.store(value, here, number * self.input_plane)

    def _find_places(self, firsts: Sequence[Value]) -> None:
        """The address of a tile's input at each position; of zeros where that lies outside."""
        e, schedule, w = self.e, self.schedule, self.finishing
        load = schedule.contraction.load
        inner = {axis: 0 for axis in schedule.contraction.reduce.over}
        offset = self._value(self.index.write(substitute(schedule.rows_access.offset, inner)))
        base = e.offset(w.memory.pointers[load.buffer], offset, ELEMENT)
        inside, steps = [], []
        for window, first, matrices in zip(schedule.windows, firsts, schedule.transforms):
            limit = window.extent
            start = window.start
            if limit is None:
                # what is read for results that exist is there; what would be for others need not be
                limit, start = known(schedule.axes[window.axis]) + known(schedule.axes[window.tap]) - 1, 0
            places = [e.add(first, start + k) for k in range(matrices.positions)]
            inside.append([e.compare("ult", place, self._value(self.index.write(limit))) for place in places])
            step = self.index.write(schedule.rows_access.stride(window.axis) or 0)
            steps.append([self.index.times(step, k) for k in range(matrices.positions)])
        zeros = e.op("i64", 0, "llvm.ptrtoint {} : !llvm.ptr to i64", self.zeros)
        for number, at in enumerate(itertools.product(*(range(t.positions) for t in schedule.transforms))):
            distance: Number = 0
            exists = e.constant(True, "i1")
            for k, position in enumerate(at):
                distance = self.index.plus(distance, steps[k][position])
                exists = e.bit_and(exists, inside[k][position])
            there = e.op("i64", 0, "llvm.ptrtoint {} : !llvm.ptr to i64", e.offset(base, self._value(distance), ELEMENT))
            e.store(e.select(exists, there, zeros), self.places, number)

    # -- products ------------------------------------------------------------------------------------------------------------

    def _multiply(self, panel: Value, count: Value) -> None:
        """products[position, tile, column] of a block and a panel; rows beyond `count` are computed from whatever is there."""
        e, schedule = self.e, self.schedule
        rows, (per_panel, per_position, *_) = schedule.rows, self.weights.strides
        pointer = self.finishing.memory.pointers[self.weights]
        base = e.offset(pointer, self._value(self.index.times(panel, self.index.write(per_panel))), ELEMENT)
        with e.for_loop(0, schedule.positions) as position:
            step = self.index.write(per_position)
            weights = e.offset(base, self._value(self.index.times(position.index, step)), ELEMENT)
            inputs = e.offset(self.inputs, e.mul(position.index, self.input_plane), ELEMENT)
            products = e.offset(self.products, e.mul(position.index, schedule.product_plane), ELEMENT)
            with e.for_loop(0, count, rows) as tile:
                left = e.offset(inputs, e.mul(tile.index, schedule.input_row), ELEMENT)
                sums = self._register_tile(left, weights)
                target = e.offset(products, e.mul(tile.index, schedule.width), ELEMENT)
                for k, total in enumerate(sums):
                    e.store(total, target, k * schedule.lanes)

    def _register_tile(self, left: Value, weights: Value) -> tuple[Value, ...]:
        """The sums over all channels of `rows` tiles from `left` on, and a panel."""
        e, schedule = self.e, self.schedule
        lanes, vectors, rows = schedule.lanes, schedule.vectors, schedule.rows
        zeros = [e.constant(0.0, ELEMENT, lanes)] * (rows * vectors)
        with e.for_loop(0, schedule.channels, 1, zeros) as channel:
            here = e.offset(weights, e.mul(channel.index, schedule.width), ELEMENT)
            columns = [e.load(here, v * lanes, ELEMENT, lanes) for v in range(vectors)]
            row = e.offset(left, channel.index, ELEMENT)
            sums = []
            for k in range(rows):
                number = e.load(row, k * schedule.input_row, ELEMENT)
                spread = e.broadcast(number, lanes) if lanes > 1 else number
                for v in range(vectors):
                    total = channel.carried[k * vectors + v]
                    sums.append(e.fma(spread, columns[v], total) if self.machine.has_fma else spread * columns[v] + total)
            channel.next(*sums)
        return channel.results

    # -- what is done to the sums --------------------------------------------------------------------------------------------

    def _finish(self, panel: Value, first: Value, count: Value) -> None:
        """The sums of each tile, and everything that depends on them."""
        e, schedule, w = self.e, self.schedule, self.finishing
        matrices = [t.results for t in schedule.transforms]
        spans = [range(t.positions) for t in schedule.transforms]
        first_column = self.index.times(panel, schedule.width)
        with e.for_loop(0, count) as tiles:
            source = e.offset(self.products, e.mul(tiles.index, schedule.width), ELEMENT)
            with e.for_loop(0, schedule.width, schedule.lanes) as column:
                here = e.offset(source, column.index, ELEMENT)
                values = {
                    at: e.load(here, number * schedule.product_plane, ELEMENT, schedule.lanes)
                    for number, at in enumerate(itertools.product(*spans))
                }
                target = e.offset(self.sums, column.index, ELEMENT)
                for number, value in enumerate(transform_tile(values, matrices, self._multiply_add).values()):
                    e.store(value, target, number * schedule.width)
            firsts = self._enter_tile(e.add(first, tiles.index))
            back: Number = first_column
            rows: list[tuple[str, Number, Number]] = []
            for window, size, place, step in zip(schedule.windows, schedule.sizes, firsts, schedule.sums.strides):
                extent = schedule.axes[window.axis]
                assert isinstance(extent, int)
                left = size if extent % size == 0 else e.minimum(e.sub(e.constant(extent, "i64"), place), size)
                rows.append((window.axis, place, left))
                back = self.index.plus(back, self.index.times(place, self.index.write(step)))
                del w.axis_values[window.axis]
            w.memory.pointers[schedule.sums] = e.offset(self.sums, self._value(self.index.times(back, -1)), ELEMENT)
            w.tile(first_column, schedule.vectors, rows)
            self._leave_tile()
