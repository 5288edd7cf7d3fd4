"""Attention for few query rows, as when a model writes one token after another: each row alone, lanes along the head's width.

All time goes into reading keys and values once, as whole vectors. A vector's worth of keys is done together, so that their
products are summed across lanes by one tree of shuffles.
"""

from __future__ import annotations

from collections.abc import Sequence

from dlcompiler.codegen.cpu.emitter import Emitter, Value
from dlcompiler.codegen.cpu.exponential import exp_in
from dlcompiler.codegen.cpu.indexing import Number
from dlcompiler.codegen.cpu.routines.attention_problem import NEGATIVE_INFINITY, Numbers, Problem

# Keys in a block: their scores for one row are a few KiB.
KEYS = 512
# Accumulators of the weighted sum of values that are held in registers at once.
ACCUMULATORS = 8


def write_rows(e: Emitter, problem: Problem, name: str) -> None:
    """A function for the rows of one work item, one after the other."""
    with e.func(name, problem.argument_names) as (words, query, key, value, *rest):
        *mask, out, row, rows = rest
        writer = _Rows(e, problem, words, key, value, mask[0] if mask else None)
        with e.for_loop(row, row + rows) as loop:
            writer.row(query, out, loop.index)


class _Rows:
    def __init__(self, e: Emitter, problem: Problem, words: Value, key: Value, value: Value, mask: Value | None) -> None:
        self.e, self.problem = e, problem
        self.n = Numbers(e, problem, words)
        self.lanes = problem.lanes
        self.key, self.value, self.mask = key, value, mask
        # a vector may be written behind the last score
        self.scores = e.scratch(problem.element, KEYS + 2 * self.lanes)
        self.result = e.scratch(problem.element, problem.depth)

    def row(self, query: Value, out: Value, row: Value) -> None:
        """One query row."""
        e, n, problem = self.e, self.n, self.problem
        queries = self._query(query, row)
        for column in range(0, problem.depth, self.lanes):
            e.store(n.splat(0.0), self.result, column)
        seen = n.value(problem.seen)
        end = e.minimum(seen, row + 1) if problem.causal else seen
        upper = e.maximum(end - self.lanes, e.minimum(end, 1))
        carried = [e.constant(NEGATIVE_INFINITY, problem.element), e.constant(0.0, problem.element)]
        with e.for_loop(0, upper, KEYS, carried) as block:
            start, (largest, total) = block.index, block.carried
            left = end - start
            count = e.select(e.compare("le", left, KEYS + self.lanes), left, KEYS)
            n.windows(count, self.lanes, lambda at, size: self._scores(queries, row, start, at, size), self._surely())
            # whole vectors from here on: what lies behind the last score weighs nothing
            e.store(n.splat(NEGATIVE_INFINITY), self.scores, count)
            found = self._maximum(count, largest)
            subtract = n.finite_maximum(found)
            factor = exp_in(e, largest - subtract, problem.element)
            added = self._exponentials(count, subtract)
            self._weigh(start, count, factor)
            block.next(found, n.multiply_add(total, factor, added))
        factor = n.reciprocal(block.results[1])
        o = problem.out
        for column in range(0, problem.depth, self.lanes):
            vector = e.load(self.result, column, problem.element, self.lanes) * factor
            if o.column == 1:
                e.store(e.convert(vector, o.memory), out, n.place((o.row, o.column), row, column))
                continue
            for lane in range(self.lanes):
                number = e.convert(e.extract(vector, lane), o.memory)
                e.store(number, out, n.place((o.row, o.column), row, column + lane))

    def _surely(self) -> bool:
        return isinstance(self.problem.seen, int) and self.problem.seen >= self.lanes and not self.problem.causal

    def _query(self, query: Value, row: Value) -> list[Value]:
        """The row's vectors, scaled."""
        e, n, q = self.e, self.n, self.problem.query
        if q.column == 1:
            vectors = [
                n.load(query, n.place((q.row, q.column), row, column), q.memory, self.lanes)
                for column in range(0, self.problem.width, self.lanes)
            ]
        else:
            copy = e.scratch(self.problem.element, self.problem.width)
            with e.for_loop(0, self.problem.width) as loop:
                e.store(n.load(query, n.place((q.row, q.column), row, loop.index), q.memory), copy, loop.index)
            vectors = [
                e.load(copy, column, self.problem.element, self.lanes) for column in range(0, self.problem.width, self.lanes)
            ]
        return [vector * self.problem.scale for vector in vectors]

    def _scores(self, queries: Sequence[Value], row: Value, start: Value, at: Number, size: int) -> None:
        """Scores of `size` keys (a vector's worth, or one) from `at` on in the block, masked."""
        e, n, k, mask = self.e, self.n, self.problem.key, self.problem.mask
        first = n.index.plus(start, at)
        products: list[Value] = []
        for j in range(size):
            pointer = e.offset(self.key, n.place((k.row, k.column), n.index.plus(first, j), 0), k.memory)
            keys = [n.load(pointer, number * self.lanes, k.memory, self.lanes) for number in range(len(queries))]
            total = keys[0] * queries[0]
            for part, vector in zip(keys[1:], queries[1:]):
                total = n.multiply_add(part, vector, total)
            products.append(total)
        scores = add_across(e, products) if size > 1 else e.reduce("add", products[0])
        if mask is not None and self.mask is not None:
            place = n.place((mask.row, mask.column), row, first)
            given = e.load(self.mask, place, mask.memory, scores.lanes if mask.column == 1 else 0)
            if mask.memory == "i1":
                scores = n.hidden(given, scores)
            else:
                scores = e.convert(given, self.problem.element) + scores
        e.store(scores, self.scores, at)

    def _maximum(self, count: Value, largest: Value) -> Value:
        e, n = self.e, self.n
        with e.for_loop(0, count, self.lanes, [e.broadcast(largest, self.lanes)]) as loop:
            loop.next(n.larger(e.load(self.scores, loop.index, self.problem.element, self.lanes), *loop.carried))
        return across(e, loop.results[0], n.larger)

    def _exponentials(self, count: Value, subtract: Value) -> Value:
        """Scores become weights; their sum."""
        e = self.e
        with e.for_loop(0, count, self.lanes, [self.n.splat(0.0)]) as loop:
            scores = e.load(self.scores, loop.index, self.problem.element, self.lanes)
            weights = exp_in(e, scores - subtract, self.problem.element)
            e.store(weights, self.scores, loop.index)
            loop.next(loop.carried[0] + weights)
        return e.reduce("add", loop.results[0])

    def _weigh(self, start: Value, count: Value, factor: Value) -> None:
        """result = result * factor + weights @ v"""
        e, n, v, problem = self.e, self.n, self.problem.value, self.problem
        columns = list(range(0, problem.depth, self.lanes))
        for panel in range(0, len(columns), ACCUMULATORS):
            own = columns[panel : panel + ACCUMULATORS]
            # two keys at a time where one alone has too few sums to hide how long each takes
            together = 2 if len(own) <= ACCUMULATORS // 2 else 1
            sums: Sequence[Value] = [n.splat(0.0)] * (len(own) * together)
            whole = count - e.rem(count, together) if together > 1 else count
            for low, high, step in ((0, whole, together), (whole, count, 1))[:together]:
                with e.for_loop(low, high, step, sums) as loop:
                    following = list(loop.carried)
                    for k in range(step):
                        at = n.index.plus(loop.index, k)
                        weight = e.broadcast(e.load(self.scores, at, problem.element), self.lanes)
                        line = n.place((v.row, v.column), n.index.plus(start, at), 0)
                        for position, column in enumerate(own):
                            values = n.load(self.value, n.index.plus(line, column), v.memory, self.lanes)
                            place = k * len(own) + position
                            following[place] = n.multiply_add(weight, values, following[place])
                    loop.next(*following)
                sums = loop.results
            for position, column in enumerate(own):
                total = sums[position] + sums[position + len(own)] if together > 1 else sums[position]
                before = e.load(self.result, column, problem.element, self.lanes)
                e.store(n.multiply_add(before, e.broadcast(factor, self.lanes), total), self.result, column)


def across(e: Emitter, vector: Value, combine) -> Value:
    """All lanes as one scalar, halves against each other."""
    lanes = vector.lanes
    while lanes > 1:
        lanes //= 2
        vector = combine(e.shuffle(vector, vector, range(lanes)), e.shuffle(vector, vector, range(lanes, 2 * lanes)))
    return e.extract(vector, 0)


def add_across(e: Emitter, vectors: Sequence[Value]) -> Value:
    """The sum of each of n vectors of n lanes, one a lane: neighbours are added, and two vectors become one."""
    lanes = vectors[0].lanes
    even, odd = list(range(0, 2 * lanes, 2)), list(range(1, 2 * lanes, 2))
    while len(vectors) > 1:
        vectors = [e.shuffle(a, b, even) + e.shuffle(a, b, odd) for a, b in zip(vectors[::2], vectors[1::2])]
    return vectors[0]
