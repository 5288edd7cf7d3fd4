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

# (row, column) -> elements beyond a pointer
Place = Callable[[Number, Number], Number]


def write_tiles(e: Emitter, problem: Problem, name: str) -> None:
    """A function for the rows of one work item."""
    _write_turn(e, problem, f"{name}.turn")
    with e.func(name, problem.argument_names, inline=False) as (words, query, key, value, *rest):
        *mask, out, row, rows = rest
        _Tiles(e, problem, words, f"{name}.turn").write(query, key, value, mask[0] if mask else None, out, row, rows)


def _write_turn(e: Emitter, problem: Problem, name: str) -> None:
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


class _Tiles:
    def __init__(self, e: Emitter, problem: Problem, words: Value, turn_function: str) -> None:
        self.e, self.problem, self.turn_function = e, problem, turn_function
        self.n = Numbers(e, problem, words)
        self.lanes, self.vectors = problem.lanes, problem.vectors
        self.rows = problem.group_rows  # the width of matrices whose lanes are rows
        self.most_keys = self._padded(problem.keys + problem.broadcast)

    def _padded(self, width: int) -> int:
        return -(-width // self.lanes) * self.lanes

    def write(self, query: Value, key: Value, value: Value, mask: Value | None, out: Value, row: Value, rows: Value) -> None:
        e, n, problem = self.e, self.n, self.problem
        self._make_scratch(mask)
        groups = e.div(rows + (self.rows - 1), self.rows)
        with e.for_loop(0, groups) as loop:
            self._begin_group(loop.index, query, row, rows)
        end = e.minimum(n.value(problem.seen), row + rows) if problem.causal else n.value(problem.seen)
        # the last block takes what would be too little for a block of its own
        upper = e.maximum(end - problem.broadcast, e.minimum(end, 1))
        with e.for_loop(0, upper, problem.keys) as block:
            start = block.index
            left = end - start
            count = e.select(e.compare("le", left, problem.keys + problem.broadcast), left, problem.keys)
            keys, key_place = self._as_it_is_or_copied(self.copies[0], problem.key, key, problem.width, start, count)
            values, value_place = self._as_it_is_or_copied(self.copies[1], problem.value, value, problem.depth, start, count)
            with e.for_loop(0, groups) as loop:
                first = row + loop.index * self.rows
                # causal: no more keys than the group's last row sees
                seen = e.minimum(count, first + self.rows - start) if problem.causal else count
                with e.if_then(e.compare("gt", seen, 0)):
                    self._block(loop.index, keys, key_place, values, value_place, mask, first, row + rows, start, seen)
        with e.for_loop(0, groups) as loop:
            self._finish_group(loop.index, out, row, rows)

    def _make_scratch(self, mask: Value | None) -> None:
        e, problem = self.e, self.problem
        groups = problem.groups
        widest = max(self._padded(problem.width), self._padded(problem.depth))
        self.query_group = self._padded(problem.width) * self.rows
        self.result_group = self._padded(problem.depth) * self.rows
        self.turned_query = e.scratch(problem.element, groups * self.query_group)
        self.turned_result = e.scratch(problem.element, groups * self.result_group)
        self.largest = e.scratch(problem.element, groups * self.rows)
        self.totals = e.scratch(problem.element, groups * self.rows)
        self.scores = e.scratch(problem.element, self.most_keys * self.rows)
        self.masks = None
        if mask is not None and not problem.mask_of_keys:
            self.masks = e.scratch(problem.element, self.most_keys * self.rows)
            widest = max(widest, self.most_keys)
        self.buffer_width = widest
        self.buffer = e.scratch(problem.element, self.rows * widest)
        self.copies = [
            e.scratch(problem.element, (problem.keys + problem.broadcast) * width) if wanted else None
            for wanted, width in ((problem.copies_keys, problem.width), (problem.copies_values, problem.depth))
        ]

    # -- rows in and out ---------------------------------------------------------------------------------------------------

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

    def _begin_group(self, group: Value, query: Value, row: Value, rows: Value) -> None:
        """q.T, scaled, beyond the last row that row again; nothing seen so far."""
        e, n, problem, q = self.e, self.n, self.problem, self.problem.query
        first = group * self.rows
        self._copy(
            self.rows, problem.width, q.column == 1,
            query, lambda r, c: n.place((q.row, q.column), row + e.minimum(e.add(first, r), rows - 1), c), q.memory,
            self.buffer, self._row_major(self.buffer_width), problem.element,
            lambda x: e.convert(x, problem.element) * problem.scale,
        )  # fmt: skip
        target = e.offset(self.turned_query, group * self.query_group, problem.element)
        self._turn(problem.width, self.buffer, self.buffer_width, True, target, self.rows)
        result = e.offset(self.turned_result, group * self.result_group, problem.element)
        with e.for_loop(0, problem.depth) as loop:
            self._store_vectors([n.splat(0.0)] * self.vectors, result, loop.index)
        self._store_vectors([n.splat(NEGATIVE_INFINITY)] * self.vectors, self.largest, group)
        self._store_vectors([n.splat(0.0)] * self.vectors, self.totals, group)

    def _finish_group(self, group: Value, out: Value, row: Value, rows: Value) -> None:
        """Divide by the sums, turn, and store the rows that there are."""
        e, n, problem, o = self.e, self.n, self.problem, self.problem.out
        factors = [n.reciprocal(total) for total in self._vectors_at(self.totals, group)]
        result = e.offset(self.turned_result, group * self.result_group, problem.element)
        with e.for_loop(0, problem.depth) as loop:
            sums = self._vectors_at(result, loop.index)
            self._store_vectors([s * factor for s, factor in zip(sums, factors)], result, loop.index)
        self._turn(problem.depth, result, self.rows, False, self.buffer, self.buffer_width)
        first = group * self.rows
        self._copy(
            e.minimum(rows - first, self.rows), problem.depth, o.column == 1,
            self.buffer, self._row_major(self.buffer_width), problem.element,
            out, lambda r, c: n.place((o.row, o.column), e.add(row + first, r), c), o.memory,
        )  # fmt: skip

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

    # -- one block of keys ---------------------------------------------------------------------------------------------------

    def _block(
        self, group: Value, keys: Value, key_place: Place, values: Value, value_place: Place, mask: Value | None,
        first: Value, last: Value, start: Value, count: Value,
    ) -> None:  # fmt: skip
        """For the group's rows, from `first` on: scores of `count` keys from `start` on, weights, and the values they weigh."""
        e, n, problem = self.e, self.n, self.problem
        query = e.offset(self.turned_query, group * self.query_group, problem.element)
        result = e.offset(self.turned_result, group * self.result_group, problem.element)
        if self.masks is not None and mask is not None:
            self._turn_mask(mask, self.masks, first, last, start, count)
        n.windows(
            count, problem.broadcast, lambda at, size: self._scores(query, keys, key_place, mask, start, at, size), self._surely()
        )
        if problem.causal:
            self._hide_later(first, start, count)
        largest, totals = self._vectors_at(self.largest, group), self._vectors_at(self.totals, group)
        found = self._maxima(count, largest)
        subtract = [n.finite_maximum(x) for x in found]
        factors = [self._exp(old - new) for old, new in zip(largest, subtract)]
        sums = self._exponentials(count, subtract)
        self._store_vectors(found, self.largest, group)
        totals = [n.multiply_add(total, factor, s) for total, factor, s in zip(totals, factors, sums)]
        self._store_vectors(totals, self.totals, group)
        self._weigh(result, values, value_place, count, factors)

    def _surely(self) -> bool:
        """Whether every group sees enough keys of every block for a whole tile, if it sees any."""
        problem = self.problem
        enough = isinstance(problem.seen, int) and problem.seen >= problem.broadcast
        if problem.causal:
            # the first group sees as many keys as it has rows
            enough = enough and isinstance(problem.length, int) and min(problem.length, self.rows) >= problem.broadcast
        return enough

    def _exp(self, x: Value) -> Value:
        """e^x of an x up to 0, or NaN."""
        return exp_in(self.e, x, self.problem.element)

    def _scores(self, query: Value, key: Value, place: Place, mask: Value | None, start: Value, at: Number, size: int) -> None:
        """scores.T of `size` keys from `at` on in the block, masked."""
        e, n, problem = self.e, self.n, self.problem
        pointers = [e.offset(key, place(n.index.plus(at, j), 0), problem.element) for j in range(size)]
        zeros = [n.splat(0.0)] * (size * self.vectors)
        with e.for_loop(0, problem.width, 1, zeros) as loop:
            queries = self._vectors_at(query, loop.index)
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

    def _weigh(self, result: Value, value: Value, place: Place, count: Value, factors: Sequence[Value]) -> None:
        """result.T = result.T * factors + v.T @ weights.T"""
        whole = self.problem.depth // self.problem.broadcast * self.problem.broadcast
        with self.e.for_loop(0, whole, self.problem.broadcast) as loop:
            self._weigh_columns(result, value, place, loop.index, self.problem.broadcast, count, factors)
        if whole < self.problem.depth:
            self._weigh_columns(result, value, place, whole, self.problem.depth - whole, count, factors)

    def _weigh_columns(
        self, result: Value, value: Value, place: Place, column: Number, size: int, count: Value, factors: Sequence[Value]
    ) -> None:
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
            before = self._vectors_at(result, line)
            after = [n.multiply_add(b, factor, f) for b, factor, f in zip(before, factors, found)]
            self._store_vectors(after, result, line)
