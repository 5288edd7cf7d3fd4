"""What attention's kernels for many query rows share: lanes that run along query rows.

Products broadcast one number of an operand after the other, from where it lies and with whatever strides, and multiply it with
vectors of query rows. Rows are turned in tiles of registers when they come in and go out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dlcompiler.codegen.cpu.emitter import Emitter, Value
from dlcompiler.codegen.cpu.exponential import exp_in
from dlcompiler.codegen.cpu.indexing import Number
from dlcompiler.codegen.cpu.routines.attention_problem import NEGATIVE_INFINITY, Numbers, Problem, Strided

# (row, column) -> elements beyond a pointer
Place = Callable[[Number, Number], Number]


def write_turn(e: Emitter, problem: Problem, name: str) -> None:
    """A function that transposes one tile of lanes by lanes: `name(source, its stride, target, its stride)`."""
    lanes = problem.lanes
    arguments = [("source", "ptr"), ("source_stride", "i64"), ("target", "ptr"), ("target_stride", "i64")]
    with e.func(name, arguments, inline=False) as (source, source_stride, target, target_stride):
        rows = [e.load(source, source_stride * k, problem.element, lanes) for k in range(lanes)]
        for k, row in enumerate(turn(e, rows)):
            e.store(row, target, target_stride * k)


def turn(e: Emitter, rows: list[Value]) -> list[Value]:
    """Transpose n vectors of n lanes by log2(n) rounds of interleaving the two halves of the list."""
    count = len(rows)
    low = [lane // 2 + (lane % 2) * count for lane in range(count)]
    high = [lane + count // 2 for lane in low]
    for _ in range(count.bit_length() - 1):
        half = count // 2
        rows = [e.shuffle(rows[k // 2], rows[k // 2 + half], high if k % 2 else low) for k in range(count)]
    return rows


class RowLanes:
    """Rows of a group in the lanes of `problem.vectors` vectors: scratch matrices of them, and the steps on these."""

    scores: Value
    masks: Value | None
    buffer: Value
    buffer_width: int

    def __init__(self, e: Emitter, problem: Problem, words: Value, turn_function: str) -> None:
        self.e, self.problem, self.turn_function = e, problem, turn_function
        self.n = Numbers(e, problem, words)
        self.lanes, self.vectors = problem.lanes, problem.vectors
        self.rows = problem.group_rows  # the width of matrices whose lanes are rows

    def _padded(self, width: int) -> int:
        return -(-width // self.lanes) * self.lanes

    def _copy(
        self, count: Number, width: Number, contiguous: bool, source: Value, place: Place, memory: str,
        target: Value, target_place: Place, target_memory: str, change: Callable[[Value], Value] = lambda x: x,
    ) -> None:  # fmt: skip
        """target[r, c] = change(source[r, c]) of `count` rows; whole vectors where both are contiguous along a row."""
        e, n = self.e, self.n

        def move(row: Number, column: Number, lanes: int) -> None:
            x = change(e.load(source, place(row, column), memory, lanes))
            e.store(e.convert(x, target_memory), target, target_place(row, column))

        with e.for_loop(0, count) as loop:
            if contiguous:
                n.windows(width, self.lanes, lambda column, size: move(loop.index, column, size if size > 1 else 0))
            else:
                with e.for_loop(0, width) as column:
                    move(loop.index, column.index, 0)

    def _row_major(self, width: int) -> Place:
        return lambda row, column: self.n.index.plus(self.n.index.times(row, width), column)

    def _turn(
        self, count: Number, source: Value, source_width: int, along_source: bool, target: Value, target_width: int
    ) -> None:
        """Transpose a strip of tiles: `count` columns of the source, or with `along_source` false as many rows of it."""
        e = self.e
        groups = self.rows // self.lanes
        with e.for_loop(0, count, self.lanes) as loop:
            for group in range(groups):
                across = group * self.lanes
                wide, tall = (source_width, target_width) if along_source else (target_width, source_width)
                row_major, turned = loop.index + across * wide, loop.index * tall + across
                source_at, target_at = (row_major, turned) if along_source else (turned, row_major)
                e.call(
                    self.turn_function,
                    [
                        e.offset(source, source_at, self.problem.element),
                        e.constant(source_width, "i64"),
                        e.offset(target, target_at, self.problem.element),
                        e.constant(target_width, "i64"),
                    ],
                )

    def _as_it_is_or_copied(
        self, target: Value | None, operand: Strided, pointer: Value, width: int, start: Value, count: Value
    ) -> tuple[Value, Place]:
        """Keys (or values) of a block: where they are, or a copy; and the place of (key in the block, column)."""
        n = self.n
        pointer = self.e.offset(pointer, n.index.times(start, n.index.write(operand.row)), operand.memory)

        def place(row: Number, column: Number) -> Number:
            return n.place((operand.row, operand.column), row, column)

        if target is None:
            return pointer, place
        target_place = self._row_major(width)
        self._copy(
            count, width, operand.column == 1, pointer, place, operand.memory, target, target_place, self.problem.element,
            lambda x: self.e.convert(x, self.problem.element),
        )  # fmt: skip
        return target, target_place

    def _exp(self, x: Value) -> Value:
        """e^x of an x up to 0, or NaN."""
        return exp_in(self.e, x, self.problem.element)

    def _vectors_at(self, pointer: Value, line: Number, stride: int | None = None) -> list[Value]:
        """One line of a scratch matrix of rows side by side, its lines `stride` numbers apart (None: as long as a group)."""
        first = self.n.index.times(line, stride or self.rows)
        return [
            self.e.load(pointer, self.n.index.plus(first, v * self.lanes), self.problem.element, self.lanes)
            for v in range(self.vectors)
        ]

    def _store_vectors(self, vectors: Sequence[Value], pointer: Value, line: Number, stride: int | None = None) -> None:
        first = self.n.index.times(line, stride or self.rows)
        for v, vector in enumerate(vectors):
            self.e.store(vector, pointer, self.n.index.plus(first, v * self.lanes))

    # -- products ------------------------------------------------------------------------------------------------------------

    def _rows_times(self, operand: Value, place: Place, at: Number, size: int, turned: Value, width: int) -> list[list[Value]]:
        """Of `size` rows of an operand [.., width] from `at` on, each times turned [width, rows]."""
        e, n, problem = self.e, self.n, self.problem
        pointers = [e.offset(operand, place(n.index.plus(at, j), 0), problem.element) for j in range(size)]
        with e.for_loop(0, width, 1, [n.splat(0.0)] * (size * self.vectors)) as loop:
            vectors = self._vectors_at(turned, loop.index)
            loop.next(*self._broadcast_products(pointers, place(0, loop.index), vectors, loop.carried))
        return [list(loop.results[j * self.vectors : (j + 1) * self.vectors]) for j in range(size)]

    def _columns_times(
        self, operand: Value, place: Place, column: Number, size: int, lines: Value, count: Number, stride: int | None = None
    ) -> list[list[Value]]:
        """Of `size` columns of an operand [count, ..] from `column` on, each times lines [count, rows]."""
        e, n, problem = self.e, self.n, self.problem
        pointers = [e.offset(operand, place(0, n.index.plus(column, j)), problem.element) for j in range(size)]
        with e.for_loop(0, count, 1, [n.splat(0.0)] * (size * self.vectors)) as loop:
            vectors = self._vectors_at(lines, loop.index, stride)
            loop.next(*self._broadcast_products(pointers, place(loop.index, 0), vectors, loop.carried))
        return [list(loop.results[j * self.vectors : (j + 1) * self.vectors]) for j in range(size)]

    def _broadcast_products(
        self, pointers: Sequence[Value], place: Number, vectors: Sequence[Value], sums: Sequence[Value]
    ) -> list[Value]:
        """sums + the number at `place` of each pointer times the vectors."""
        found = []
        for j, pointer in enumerate(pointers):
            number = self.e.broadcast(self.e.load(pointer, place, self.problem.element), self.lanes)
            found += [self.n.multiply_add(number, x, sums[j * self.vectors + v]) for v, x in enumerate(vectors)]
        return found

    # -- masks ---------------------------------------------------------------------------------------------------------------

    def _masked(self, scores: Sequence[Value], pointer: Value | None, start: Value, in_block: Number) -> list[Value]:
        e, n, mask = self.e, self.n, self.problem.mask
        if mask is None or pointer is None:
            return list(scores)
        if self.masks is not None:
            addends = self._vectors_at(self.masks, in_block)
            if mask.memory == "i1":
                return [e.select(e.compare("eq", a, 0.0), score, NEGATIVE_INFINITY) for a, score in zip(addends, scores)]
            return [a + score for a, score in zip(addends, scores)]
        place = n.place((mask.row, mask.column), 0, n.index.plus(start, in_block))
        if mask.memory == "i1":
            kept = e.broadcast(e.load(pointer, place, "i1"), self.lanes)
            return [n.hidden(kept, score) for score in scores]
        addend = e.broadcast(n.load(pointer, place, mask.memory), self.lanes)
        return [addend + score for score in scores]

    def _turn_mask(self, pointer: Value, target: Value, first: Value, last: Value, start: Value, count: Value) -> None:
        """mask.T of the group's rows and the block's keys as what is added: for a bool mask 0 or -inf."""
        e, n, problem, mask = self.e, self.n, self.problem, self.problem.mask
        assert mask is not None

        def addend(x: Value) -> Value:
            if x.element != "i1":
                return e.convert(x, problem.element)
            return e.select(x, e.constant(0.0, problem.element, x.lanes), NEGATIVE_INFINITY)

        self._copy(
            self.rows, count, mask.column == 1,
            pointer, lambda r, c: n.place((mask.row, mask.column), e.minimum(e.add(first, r), last - 1), e.add(start, c)),
            mask.memory, self.buffer, self._row_major(self.buffer_width), problem.element, addend,
        )  # fmt: skip
        self._turn(count, self.buffer, self.buffer_width, True, target, self.rows)

    def _not_before(self, row: Value) -> list[Value]:
        """Which of the group's rows are row number `row` of it, or come later."""
        e = self.e
        integer = "i32" if self.problem.element == "f32" else "i64"
        first = e.convert(row, integer)
        rows = ([v * self.lanes + k for k in range(self.lanes)] for v in range(self.vectors))
        return [e.compare("ge", e.constant(own, integer, self.lanes), first) for own in rows]
