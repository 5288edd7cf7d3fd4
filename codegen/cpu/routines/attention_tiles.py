"""Attention for many query rows: lanes run along query rows.

    scores.T [keys, rows] = k [keys, width] times q.T [width, rows];  result.T [depth, rows] = v.T times weights.T [keys, rows]

Both products broadcast one number of `k` or `v` after the other, from where it lies and with whatever strides, and multiply it
with vectors of query rows: keys and values are never rearranged. Only the rows of `q` and of the result are, once for an item, by
tiles turned in registers. Maxima and sums over keys go down the lanes, so that softmax has no step across them. Lanes beyond the
last row repeat that row and are not stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dlcompiler.codegen.cpu.emitter import Emitter, Value
from dlcompiler.codegen.cpu.exponential import exp_in
from dlcompiler.codegen.cpu.indexing import Number
from dlcompiler.codegen.cpu.routines.attention_problem import NEGATIVE_INFINITY, Numbers, Problem, Strided


def write_tiles(e: Emitter, problem: Problem, name: str, vectors: int) -> None:
    """A function for work items of up to `vectors` vectors of rows, and more rows than one vector fewer would hold."""
    with e.func(name, problem.argument_names) as (words, query, key, value, *rest):
        *mask, out, row, rows = rest
        _Tiles(e, problem, words, vectors).write(query, key, value, mask[0] if mask else None, out, row, rows)


class _Tiles:
    def __init__(self, e: Emitter, problem: Problem, words: Value, vectors: int) -> None:
        self.e, self.problem, self.vectors = e, problem, vectors
        self.n = Numbers(e, problem, words)
        self.lanes = problem.lanes
        self.rows = vectors * problem.lanes  # of the scratch matrices
        self.buffer_width = -(-max(problem.width, problem.depth) // self.lanes) * self.lanes

    def write(
        self, query: Value, key: Value, value: Value, mask: Value | None, out: Value, row: Value, rows: Value
    ) -> None:
        e, n, problem = self.e, self.n, self.problem
        most_keys = problem.keys + problem.broadcast
        self.turned_query = e.scratch(problem.element, self._padded(problem.width) * self.rows)
        self.turned_result = e.scratch(problem.element, self._padded(problem.depth) * self.rows)
        self.scores = e.scratch(problem.element, most_keys * self.rows)
        self.buffer = e.scratch(problem.element, self.rows * self.buffer_width)
        self.masks = e.scratch(problem.element, most_keys * self.rows) if mask is not None and not problem.mask_of_keys else None
        self.converted = {
            operand: e.scratch(problem.element, most_keys * width)
            for operand, width in ((problem.key, problem.width), (problem.value, problem.depth))
            if operand.memory != problem.element
        }
        self._turn_query(query, row, rows)
        with e.for_loop(0, problem.depth * self.rows, self.lanes) as loop:
            e.store(n.splat(0.0), self.turned_result, loop.index)
        end = n.last_key(row, rows)
        # the last block takes what would be too little for a block of its own
        upper = e.maximum(end - problem.broadcast, e.minimum(end, 1))
        carried = [n.splat(NEGATIVE_INFINITY)] * self.vectors + [n.splat(0.0)] * self.vectors
        with e.for_loop(0, upper, problem.keys, carried) as block:
            start = block.index
            left = end - start
            count = e.select(e.compare("le", left, problem.keys + problem.broadcast), left, problem.keys)
            largest, totals = block.carried[: self.vectors], block.carried[self.vectors :]
            block.next(*self._block(key, value, mask, row, rows, start, count, largest, totals))
        self._finish(block.results[self.vectors :], out, row, rows)

    def _padded(self, width: int) -> int:
        return -(-width // self.lanes) * self.lanes

    # -- rows in and out ---------------------------------------------------------------------------------------------------

    def _copy(
        self, source: Value, place: Callable[[Number, Number], Number], memory: str, count: Number, width: int, contiguous: bool,
        target: Value, target_place: Callable[[Number, Number], Number], target_memory: str, scale: float = 1.0,
    ) -> None:  # fmt: skip
        """target[r, c] = scale * source[r, c] of `count` rows, converted."""
        e, n = self.e, self.n

        def move(row: Number, column: Number, lanes: int) -> None:
            x = n.load(source, place(row, column), memory, lanes)
            if scale != 1.0:
                x = x * scale
            e.store(e.convert(x, target_memory), target, target_place(row, column))

        with e.for_loop(0, count) as loop:
            if contiguous and width >= self.lanes:
                n.windows(width, self.lanes, lambda column, size: move(loop.index, column, size))
            else:
                with e.for_loop(0, width) as column:
                    move(loop.index, column.index, 0)

    def _buffer_place(self, row: Number, column: Number) -> Number:
        return self.n.index.plus(self.n.index.times(row, self.buffer_width), column)

    def _turn_query(self, query: Value, row: Value, rows: Value) -> None:
        """q.T, scaled; beyond the last row, that row again."""
        e, n, q = self.e, self.n, self.problem.query
        last = rows - 1
        self._copy(
            query, lambda r, c: n.place((q.row, q.column), row + e.minimum(r, last), c), q.memory, self.rows,
            self.problem.width, q.column == 1, self.buffer, self._buffer_place, self.problem.element, self.problem.scale,
        )  # fmt: skip
        for group in range(self.vectors):
            with e.for_loop(0, self.problem.width, self.lanes) as loop:
                tile = [
                    e.load(self.buffer, loop.index + (group * self.lanes + k) * self.buffer_width, self.problem.element, self.lanes)
                    for k in range(self.lanes)
                ]
                for k, vector in enumerate(turn(e, tile)):
                    e.store(vector, self.turned_query, (loop.index + k) * self.rows + group * self.lanes)

    def _finish(self, totals: Sequence[Value], out: Value, row: Value, rows: Value) -> None:
        """Divide by the sums, turn, and store the rows that there are."""
        e, n, o = self.e, self.n, self.problem.out
        for group, total in enumerate(totals):
            factor = n.reciprocal(total)
            with e.for_loop(0, self.problem.depth, self.lanes) as loop:
                tile = [
                    e.load(
                        self.turned_result, (loop.index + k) * self.rows + group * self.lanes, self.problem.element, self.lanes
                    )
                    * factor
                    for k in range(self.lanes)
                ]
                for k, vector in enumerate(turn(e, tile)):
                    e.store(vector, self.buffer, loop.index + (group * self.lanes + k) * self.buffer_width)
        self._copy(
            self.buffer, self._buffer_place, self.problem.element, rows, self.problem.depth, o.column == 1,
            out, lambda r, c: n.place((o.row, o.column), row + r, c), o.memory,
        )  # fmt: skip

    # -- one block of keys ---------------------------------------------------------------------------------------------------

    def _block(
        self, key: Value, value: Value, mask: Value | None, row: Value, rows: Value, start: Value, count: Value,
        largest: Sequence[Value], totals: Sequence[Value],
    ) -> list[Value]:  # fmt: skip
        """Scores of `count` keys from `start` on, their exponentials, and the values they weigh. The new maxima and sums."""
        e, n, problem = self.e, self.n, self.problem
        key, key_place = self._narrow_or_as_it_is(problem.key, key, problem.width, start, count)
        if self.masks is not None and mask is not None:
            self._turn_mask(mask, row, rows, start, count)
        n.windows(count, problem.broadcast, lambda at, size: self._scores(key, key_place, mask, start, at, size), self._surely())
        if problem.causal:
            self._hide_later(row, start, count)
        found = self._maxima(count, largest)
        subtract = [n.finite_maximum(x) for x in found]
        factors = [self._exp(old - new) for old, new in zip(largest, subtract)]
        sums = self._exponentials(count, subtract)
        value, value_place = self._narrow_or_as_it_is(problem.value, value, problem.depth, start, count)
        self._weigh(value, value_place, start, count, factors)
        return [*found, *(n.multiply_add(total, factor, s) for total, factor, s in zip(totals, factors, sums))]

    def _surely(self) -> bool:
        """Whether every block has enough keys for a whole tile."""
        problem = self.problem
        enough = isinstance(problem.seen, int) and problem.seen >= problem.broadcast
        if problem.causal:
            enough = enough and isinstance(problem.length, int) and problem.length >= problem.broadcast
        return enough

    def _exp(self, x: Value) -> Value:
        """e^x of an x up to 0, or NaN."""
        return exp_in(self.e, x, self.problem.element)

    def _narrow_or_as_it_is(
        self, operand: Strided, pointer: Value, width: int, start: Value, count: Value
    ) -> tuple[Value, Callable[[Number, Number], Number]]:
        """Keys (or values) of a block: where they are, or converted; and the place of (key in the block, column)."""
        n = self.n
        strides = (operand.row, operand.column)
        pointer = self.e.offset(pointer, n.index.times(start, n.index.write(operand.row)), operand.memory)
        if operand not in self.converted:
            return pointer, lambda r, c: n.place(strides, r, c)
        target = self.converted[operand]

        def place(r: Number, c: Number) -> Number:
            return n.index.plus(n.index.times(r, width), c)

        self._copy(
            pointer, lambda r, c: n.place(strides, r, c), operand.memory, count, width, operand.column == 1,
            target, place, self.problem.element,
        )  # fmt: skip
        return target, place

    def _scores(
        self, key: Value, place: Callable[[Number, Number], Number], mask: Value | None, start: Value, at: Number, size: int
    ) -> None:
        """scores.T of `size` keys from `at` on in the block, masked."""
        e, n, problem = self.e, self.n, self.problem
        pointers = [e.offset(key, place(n.index.plus(at, j), 0), problem.element) for j in range(size)]
        zeros = [n.splat(0.0)] * (size * self.vectors)
        with e.for_loop(0, problem.width, 1, zeros) as loop:
            queries = self._vectors_at(self.turned_query, loop.index)
            column = place(0, loop.index)
            sums = []
            for j, pointer in enumerate(pointers):
                number = e.broadcast(e.load(pointer, column, problem.element), self.lanes)
                sums += [n.multiply_add(number, q, loop.carried[j * self.vectors + v]) for v, q in enumerate(queries)]
            loop.next(*sums)
        for j in range(size):
            scores = loop.results[j * self.vectors : (j + 1) * self.vectors]
            in_block = n.index.plus(at, j)
            self._store_vectors(self._masked(scores, mask, start, in_block), self.scores, in_block)

    def _vectors_at(self, pointer: Value, line: Number) -> list[Value]:
        """One line of a scratch matrix of rows side by side."""
        first = self.n.index.times(line, self.rows)
        return [
            self.e.load(pointer, self.n.index.plus(first, v * self.lanes), self.problem.element, self.lanes)
            for v in range(self.vectors)
        ]

    def _store_vectors(self, vectors: Sequence[Value], pointer: Value, line: Number) -> None:
        first = self.n.index.times(line, self.rows)
        for v, vector in enumerate(vectors):
            self.e.store(vector, pointer, self.n.index.plus(first, v * self.lanes))

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

    def _mask_number(self, pointer: Value, place: Number, lanes: int = 0) -> Value:
        """What a mask adds: of a bool mask 0 where it keeps, -inf where it hides."""
        assert self.problem.mask is not None
        x = self.e.load(pointer, place, self.problem.mask.memory, lanes)
        if x.element != "i1":
            return self.e.convert(x, self.problem.element)
        zero = self.e.constant(0.0, self.problem.element, lanes)
        return self.e.select(x, zero, NEGATIVE_INFINITY)

    def _turn_mask(self, pointer: Value, row: Value, rows: Value, start: Value, count: Value) -> None:
        """mask.T of this item's rows and block's keys, as what is added."""
        e, n, problem, mask = self.e, self.n, self.problem, self.problem.mask
        assert mask is not None and self.masks is not None
        target, strides, last = self.masks, (mask.row, mask.column), row + rows - 1

        def turn_window(at: Number, size: int) -> None:
            for group in range(self.vectors):
                first = row + group * self.lanes
                if size == 1 or mask.column != 1:
                    for column in range(size):
                        in_block = n.index.plus(at, column)
                        for lane in range(self.lanes):
                            place = n.place(strides, e.minimum(first + lane, last), start + in_block)
                            target_place = n.index.plus(n.index.times(in_block, self.rows), group * self.lanes + lane)
                            e.store(self._mask_number(pointer, place), target, target_place)
                    continue
                tile = [
                    self._mask_number(pointer, n.place(strides, e.minimum(first + k, last), start + at), size)
                    for k in range(self.lanes)
                ]
                for k, vector in enumerate(turn(e, tile)):
                    e.store(vector, target, n.index.plus(n.index.times(n.index.plus(at, k), self.rows), group * self.lanes))

        n.windows(count, self.lanes if mask.column == 1 else 1, turn_window)

    def _hide_later(self, row: Value, start: Value, count: Value) -> None:
        """-inf where the key comes after the row: of the keys beyond the first row."""
        e, n = self.e, self.n
        integer = "i32" if self.problem.element == "f32" else "i64"
        first = e.maximum(row + 1 - start, 0)
        with e.for_loop(first, count) as loop:
            later = e.convert(start + loop.index - row, integer)
            scores = self._vectors_at(self.scores, loop.index)
            kept = [
                e.compare("ge", e.constant([v * self.lanes + k for k in range(self.lanes)], integer, self.lanes), later)
                for v in range(self.vectors)
            ]
            self._store_vectors([n.hidden(k, s) for k, s in zip(kept, scores)], self.scores, loop.index)

    # -- softmax and values --------------------------------------------------------------------------------------------------

    def _maxima(self, count: Value, largest: Sequence[Value]) -> list[Value]:
        with self.e.for_loop(0, count, 1, largest) as loop:
            scores = self._vectors_at(self.scores, loop.index)
            loop.next(*(self.n.larger(score, best) for score, best in zip(scores, loop.carried)))
        return list(loop.results)

    def _exponentials(self, count: Value, subtract: Sequence[Value]) -> list[Value]:
        """Scores become weights; their sums."""
        with self.e.for_loop(0, count, 1, [self.n.splat(0.0)] * self.vectors) as loop:
            scores = self._vectors_at(self.scores, loop.index)
            weights = [self._exp(score - m) for score, m in zip(scores, subtract)]
            self._store_vectors(weights, self.scores, loop.index)
            loop.next(*(total + weight for total, weight in zip(loop.carried, weights)))
        return list(loop.results)

    def _weigh(
        self, value: Value, place: Callable[[Number, Number], Number], start: Value, count: Value, factors: Sequence[Value]
    ) -> None:
        """result.T = result.T * factors + v.T @ weights.T"""
        whole = self.problem.depth // self.problem.broadcast * self.problem.broadcast
        with self.e.for_loop(0, whole, self.problem.broadcast) as loop:
            self._weigh_columns(value, place, loop.index, self.problem.broadcast, count, factors)
        if whole < self.problem.depth:
            self._weigh_columns(value, place, whole, self.problem.depth - whole, count, factors)

    def _weigh_columns(
        self, value: Value, place: Callable[[Number, Number], Number], column: Number, size: int, count: Value,
        factors: Sequence[Value],
    ) -> None:  # fmt: skip
        e, n, problem = self.e, self.n, self.problem
        pointers = [e.offset(value, place(0, n.index.plus(column, j)), problem.element) for j in range(size)]
        with e.for_loop(0, count, 1, [n.splat(0.0)] * (size * self.vectors)) as loop:
            weights = self._vectors_at(self.scores, loop.index)
            line = place(loop.index, 0)
            sums = []
            for j, pointer in enumerate(pointers):
                number = e.broadcast(e.load(pointer, line, problem.element), self.lanes)
                sums += [n.multiply_add(number, w, loop.carried[j * self.vectors + v]) for v, w in enumerate(weights)]
            loop.next(*sums)
        for j in range(size):
            found = loop.results[j * self.vectors : (j + 1) * self.vectors]
            line = n.index.plus(column, j)
            before = self._vectors_at(self.turned_result, line)
            after = [n.multiply_add(b, factor, f) for b, factor, f in zip(before, factors, found)]
            self._store_vectors(after, self.turned_result, line)


def turn(e: Emitter, rows: list[Value]) -> list[Value]:
    """Transpose n vectors of n lanes by log2(n) rounds of interleaving the two halves of the list."""
    count = len(rows)
    low = [lane // 2 + (lane % 2) * count for lane in range(count)]
    high = [lane + count // 2 for lane in low]
    for _ in range(count.bit_length() - 1):
        half = count // 2
        rows = [e.shuffle(rows[k // 2], rows[k // 2 + half], high if k % 2 else low) for k in range(count)]
    return rows
