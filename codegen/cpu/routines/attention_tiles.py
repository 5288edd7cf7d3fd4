"""Attention for many query rows: lanes run along query rows.

    scores.T [keys, rows] = k [keys, width] times q.T [width, rows];  result.T [depth, rows] = v.T times weights.T [keys, rows]

Both products broadcast one number of `k` or `v` after the other, from where it lies and with whatever strides, and multiply it
with vectors of query rows: keys and values are never rearranged. Only the rows of `q` and of the result are, once for an item, by
tiles turned in registers. Maxima and sums over keys go down the lanes, so that softmax has no step across them. Lanes beyond the
last row repeat that row and are not stored.
"""

from __future__ import annotations

from collections.abc import Sequence

from dlcompiler.codegen.cpu.emitter import Emitter, Value
from dlcompiler.codegen.cpu.indexing import Number
from dlcompiler.codegen.cpu.logarithm import log
from dlcompiler.codegen.cpu.routines.attention_lanes import Place, RowLanes, write_turn
from dlcompiler.codegen.cpu.routines.attention_problem import NEGATIVE_INFINITY, Problem


def write_tiles(e: Emitter, problem: Problem, name: str) -> None:
    """A function for the rows of one work item."""
    write_turn(e, problem, f"{name}.turn")
    with e.func(name, problem.argument_names, inline=False) as (words, query, key, value, *rest):
        *pointers, row, rows = rest
        mask = pointers.pop(0) if problem.mask is not None else None
        _Tiles(e, problem, words, f"{name}.turn").write(query, key, value, mask, pointers, row, rows)


class _Tiles(RowLanes):
    def __init__(self, e: Emitter, problem: Problem, words: Value, turn_function: str) -> None:
        super().__init__(e, problem, words, turn_function)
        self.most_keys = self._padded(problem.keys + problem.broadcast)

    def write(
        self, query: Value, key: Value, value: Value, mask: Value | None, results: Sequence[Value], row: Value, rows: Value
    ) -> None:
        """`results`: the output and, if it is asked for, the logarithms of the sums."""
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
            self._finish_group(loop.index, results, row, rows)

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

    def _finish_group(self, group: Value, results: Sequence[Value], row: Value, rows: Value) -> None:
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
            results[0], lambda r, c: n.place((o.row, o.column), e.add(row + first, r), c), o.memory,
        )  # fmt: skip
        if problem.logsumexp is not None:
            self._write_logsumexp(group, results[1], row + first, e.minimum(rows - first, self.rows))

    def _write_logsumexp(self, group: Value, target: Value, first: Value, count: Value) -> None:
        """largest + log(sum of exponentials) of the group's rows; +inf for those that see nothing."""
        e, n, place = self.e, self.n, self.problem.logsumexp
        assert place is not None
        found = []
        for total, largest in zip(self._vectors_at(self.totals, group), self._vectors_at(self.largest, group)):
            is_blind = e.compare("eq", total, 0.0)
            found.append(e.select(is_blind, float("inf"), log(e, total) + n.finite_maximum(largest)))
        self._store_vectors(found, self.totals, group)
        with e.for_loop(0, count) as loop:
            value = e.load(self.totals, group * self.rows + loop.index, self.problem.element)
            e.store(value, target, n.place((place.row, 0), first + loop.index, 0))

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

    def _scores(self, query: Value, key: Value, place: Place, mask: Value | None, start: Value, at: Number, size: int) -> None:
        """scores.T of `size` keys from `at` on in the block, masked."""
        for j, scores in enumerate(self._rows_times(key, place, at, size, query, self.problem.width)):
            in_block = self.n.index.plus(at, j)
            self._store_vectors(self._masked(scores, mask, start, in_block), self.scores, in_block)

    # -- masks ---------------------------------------------------------------------------------------------------------------

    def _hide_later(self, row: Value, start: Value, count: Value) -> None:
        """-inf where the key comes after the row: of the keys beyond the first row."""
        e, n = self.e, self.n
        with e.for_loop(e.maximum(row + 1 - start, 0), count) as loop:
            scores = self._vectors_at(self.scores, loop.index)
            kept = self._not_before(start + loop.index - row)
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
        n = self.n
        for j, found in enumerate(self._columns_times(value, place, column, size, self.scores, count)):
            line = n.index.plus(column, j)
            before = self._vectors_at(result, line)
            after = [n.multiply_add(b, factor, f) for b, factor, f in zip(before, factors, found)]
            self._store_vectors(after, result, line)
