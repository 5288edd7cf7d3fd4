"""Kernels that pack narrow numbers in groups: panels[..., j, q, r] = source[q, depth*j + r], several numbers in 32 bits.

    source along q   for each r a vector of numbers, moved to its place in 32-bit lanes; the lanes joined
    source along r   a group is 32 bits of the source already: square tiles of groups, turned in registers
    otherwise, and at edges beyond which panels hold zeros: number by number

`ir.contraction.pack_columns` makes such kernels. Every kernel can be written by `KernelWriter`, for which a group is too short a
loop to be quick; a work item here is all of a panel at one point of the axes outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from dlcompiler.codegen.cpu.emitter import Emitter, Value
from dlcompiler.codegen.cpu.indexing import IndexWriter, Number
from dlcompiler.codegen.cpu.machine import Machine
from dlcompiler.codegen.cpu.memory import turned
from dlcompiler.codegen.cpu.scalars import element_name
from dlcompiler.codegen.schedule import size_estimate
from dlcompiler.ir import kernel as K
from dlcompiler.ir.contraction import offset_of
from dlcompiler.ir.expression import Dim, linear_coefficients, product, substitute, symbol, symbols

# Numbers packed below which a second thread costs more than it gives.
GRAIN_NUMBERS = 1 << 15


@dataclass(frozen=True)
class Packing:
    """A kernel that packs groups of `depth` numbers, `width` columns to a panel.

    outer   extents of the axes outside of a panel, each point of which is a work item
    groups  extent of the axis j (None: there is one group), as `group_axis`; lane_axis: q; place_axis: r
    columns, positions   how many columns and summed positions there are, where panels have more
    """

    load: K.Load
    store: K.Store
    outer: dict[str, Dim]
    group_axis: str | None
    lane_axis: str
    place_axis: str
    groups: Dim
    width: int
    depth: int
    columns: K.Bound | None
    positions: K.Bound | None

    @property
    def work(self) -> Dim:
        return product(self.outer.values())

    @property
    def grain(self) -> int:
        return max(1, GRAIN_NUMBERS // max(1, size_estimate(self.groups) * self.width * self.depth))

    def __str__(self) -> str:
        return f"packing rows({', '.join(self.outer)}) groups of {self.depth} of {self.width} columns grain({self.grain})"


def find_packing(kernel: K.Kernel, lanes: int) -> Packing | None:
    """How a kernel packs groups of 32 bits, for panels whose width is a multiple of `lanes`; None for any other kernel."""
    if len(kernel.stores) != 1:
        return None
    (store,) = kernel.stores
    shape, index = store.buffer.shape, store.index
    if len(shape) < 4 or not store.buffer.is_contiguous:
        return None
    groups, width, depth = shape[-3:]
    if not isinstance(width, int) or not isinstance(depth, int) or width % lanes or depth * store.buffer.dtype.bytes != 4:
        return None
    names = [_axis(kernel, e) for e in index]
    if depth < 2 or names[-1] is None or names[-2] is None or (names[-3] is None and groups != 1):
        return None
    inner = {name for name in names[-3:] if name is not None}
    outer = {a: extent for a, extent in kernel.extents.items() if a not in inner}
    if [name for name in names[:-3] if name is not None] != list(outer):
        return None
    load, bounds = _source(store.value)
    if load is None or load.dtype is not store.buffer.dtype or load.indirect:
        return None
    coefficients = linear_coefficients(offset_of(load), kernel.extents)
    limits: dict[str, K.Bound | None] = {"columns": None, "positions": None}
    for bound in bounds:
        used = symbols(bound.expression) & inner
        which = "columns" if used == {names[-2]} else "positions" if used and used <= {names[-3], names[-1]} else None
        if which is None or limits[which] is not None:
            return None
        limits[which] = bound
    if coefficients is None:
        return None
    return Packing(
        load, store, outer, names[-3], names[-2], names[-1], groups, width, depth, limits["columns"], limits["positions"]
    )  # fmt: skip


def _axis(kernel: K.Kernel, expression: Dim) -> str | None:
    return next((name for name in kernel.extents if expression == symbol(name)), None)


def _source(value: K.Value) -> tuple[K.Load | None, tuple[K.Bound, ...]]:
    """The load that is stored, and the bounds beyond which zero is."""
    if isinstance(value, K.Load):
        return (None if value.guard else value), ()
    if isinstance(value, K.Compute) and value.op == "where":
        condition, inside, outside = value.inputs
        is_zero = isinstance(outside, K.Constant) and outside.value == 0
        if is_zero and isinstance(condition, K.Within) and isinstance(inside, K.Load) and inside.guard == condition.bounds:
            return inside, condition.bounds
    return None, ()


class PackingWriter:
    """Writes one such kernel into an open module."""

    def __init__(self, e: Emitter, kernel: K.Kernel, packing: Packing, machine: Machine) -> None:
        self.e, self.kernel, self.packing = e, kernel, packing
        self.lanes = machine.lanes(4)
        self.values: dict[str, Number] = {}
        self.index = IndexWriter(e, lambda name: self.values[name], kernel.extents)
        self.element = element_name(packing.load.dtype)
        self.size = packing.load.dtype.bytes

    def write(self, name: str) -> None:
        """Write the function."""
        e, kernel = self.e, self.kernel
        with e.func(name, [("words", "ptr"), ("low", "i64"), ("high", "i64")]) as (words, low, high):
            pointers = dict(zip(kernel.buffers, e.buffers(words, len(kernel.buffers))))
            for number, size in enumerate(kernel.size_symbols):
                self.values[size] = e.load(words, len(kernel.buffers) + number, "i64")
            with e.for_loop(low, high) as loop:
                self._panel(pointers, loop.index)

    def _value(self, number: Number) -> Value:
        return number if isinstance(number, Value) else self.e.constant(number, "i64")

    def _panel(self, pointers: dict[K.Buffer, Value], item: Value) -> None:
        e, packing, index = self.e, self.packing, self.index
        rest: Number = item
        for position, (axis, extent) in reversed(list(enumerate(packing.outer.items()))):
            size = index.write(extent)
            self.values[axis] = rest if position == 0 else e.rem(self._value(rest), size)
            rest = e.div(self._value(rest), size) if position else rest
        offset = offset_of(packing.load)
        inner = (packing.lane_axis, packing.place_axis, *([packing.group_axis] if packing.group_axis else []))
        start = {axis: 0 for axis in inner}
        steps = linear_coefficients(offset, inner)
        assert steps is not None
        self.lane_step, self.place_step = (index.write(steps.get(axis, 0)) for axis in inner[:2])
        self.group_step = index.write(steps.get(packing.group_axis, 0)) if packing.group_axis else 0
        load, store = packing.load.buffer, packing.store.buffer
        self.source = e.offset(pointers[load], self._value(index.write(substitute(offset, start))), self.element)
        at = index.write(substitute(store.offset(packing.store.index), start))
        self.target = e.offset(pointers[store], self._value(at), self.element)
        self.columns, self.positions = self._limits(start)
        self.groups = index.write(packing.groups)
        whole = self._value(self.positions) if packing.positions else None
        groups = self.groups if whole is None else e.div(whole, packing.depth)
        columns = self._down(self.columns, self.lanes)
        if self.place_step == 1:
            groups = self._down(groups, self.lanes)
            self._turned_tiles(0, columns, groups)
            if packing.columns is not None:
                self._turned_tiles(columns, packing.width, groups)
            columns = packing.width
        elif self.lane_step == 1:
            self._joined_rows(columns, groups)
        else:
            columns, groups = 0, 0
        if not (isinstance(columns, int) and columns == packing.width):
            self._numbers(columns, packing.width, 0, groups)
        if not (isinstance(groups, int) and groups == self.groups):
            self._numbers(0, packing.width, groups, self.groups)
        for axis in packing.outer:
            del self.values[axis]

    def _limits(self, start: dict[str, int]) -> tuple[Number, Number]:
        """Columns of this panel and summed positions that exist."""
        e, packing = self.e, self.packing
        columns: Number = packing.width
        if packing.columns is not None:
            bound = packing.columns
            columns = e.minimum(self._value(self.index.write(bound.extent - substitute(bound.expression, start))), packing.width)
        positions = packing.positions
        limit = self.index.times(self.index.write(packing.groups), packing.depth)
        return columns, limit if positions is None else self.index.write(positions.extent)

    def _down(self, count: Number, step: int) -> Number:
        """The multiple of `step` at or below a count."""
        return count // step * step if isinstance(count, int) else self.e.mul(self.e.div(count, step), step)

    def _place(self, column: Number, group: Number) -> Value:
        """Where a group of the panel lies."""
        index = self.index
        at = index.times(index.plus(index.times(group, self.packing.width), column), self.packing.depth)
        return self.e.offset(self.target, self._value(at), self.element)

    def _from(self, column: Number, group: Number, place: Number = 0) -> Value:
        """Where a number of the source lies."""
        index = self.index
        at = index.plus(index.times(self.lane_step, column), index.times(self.group_step, group))
        return self.e.offset(self.source, self._value(index.plus(at, index.times(self.place_step, place))), self.element)

    def _turned_tiles(self, first: Number, end: Number, groups: Number) -> None:
        """Tiles of these columns; the last column stands in for those that do not exist, and zeros for its numbers there."""
        e, lanes, plus = self.e, self.lanes, self.index.plus
        is_edge = first != 0

        def row(column: Value, group: Value) -> Value:
            if not is_edge:
                return e.load(self._from(column, group), 0, "i32", lanes, alignment=self.size)
            last = e.sub(self._value(self.columns), 1)
            numbers = e.load(self._from(e.minimum(column, last), group), 0, "i32", lanes, alignment=self.size)
            return e.select(e.compare("le", column, last), numbers, e.constant(0, numbers))

        with e.for_loop(first, end, lanes) as column, e.for_loop(0, groups, lanes) as group:
            rows = [row(self._value(plus(column.index, k)), group.index) for k in range(lanes)]
            for k, turned_row in enumerate(turned(e, rows)):
                e.store(turned_row, self._place(column.index, plus(group.index, k)), 0, alignment=self.size)

    def _joined_rows(self, columns: Number, groups: Number) -> None:
        e, bits = self.e, 8 * self.size
        with e.for_loop(0, groups) as group, e.for_loop(0, columns, self.lanes) as column:
            total: Value | None = None
            for place in range(self.packing.depth):
                numbers = e.load(self._from(column.index, group.index, place), 0, f"i{bits}", self.lanes)
                wide = e.cast("arith.extui", numbers, "i32")
                moved = e.shl(wide, bits * place) if place else wide
                total = moved if total is None else e.bit_or(total, moved)
            assert total is not None
            e.store(total, self._place(column.index, group.index), 0, alignment=self.size)

    def _number(self, column: Number, group: Number, place: int, kind: str) -> list[Value]:
        return [self.e.load(self._from(column, group, place), 0, kind)]

    def _numbers(self, column: Number, end: Number, group: Number, last: Number) -> None:
        """Some columns of some groups, one number after the other; zeros beyond the edges."""
        e, depth, kind = self.e, self.packing.depth, f"i{8 * self.size}"
        zero = e.constant(0, kind)
        with e.for_loop(group, last) as j, e.for_loop(column, end) as q:
            inside = e.compare("lt", q.index, self.columns)
            for place in range(depth):
                position = self.index.plus(self.index.times(j.index, depth), place)
                holds = e.bit_and(inside, e.compare("lt", self._value(position), self.positions))
                (number,) = e.if_else(holds, partial(self._number, q.index, j.index, place, kind), lambda: [zero])
                e.store(number, self._place(q.index, j.index), place)
