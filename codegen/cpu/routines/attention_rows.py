"""Attention for few query rows, as when a model writes one token after another: each row alone, lanes along the head's width.

Time goes into reading keys and values, as whole vectors, from far away only once for all rows. A vector's worth of keys is done
together, so that their products are summed across lanes by one tree of shuffles.
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
    """A function for the rows of one work item: at most `problem.few`."""
    with e.func(name, problem.argument_names, inline=False) as (words, query, key, value, *rest):
        *mask, out, row, rows = rest
        _Rows(e, problem, words, key, value, mask[0] if mask else None).write(query, out, row, rows)


class _Rows:
    def __init__(self, e: Emitter, problem: Problem, words: Value, key: Value, value: Value, mask: Value | None) -> None:
        self.e, self.problem = e, problem
        self.n = Numbers(e, problem, words)
        self.lanes = problem.lanes
        self.key, self.value, self.mask = key, value, mask
        # columns of the vectors that cover a row of keys, or of values; the last one is moved back so that it fits
        self.key_columns = starts(problem.width, self.lanes)
        self.value_columns = starts(problem.depth, self.lanes)
        self.result_width = len(self.value_columns) * self.lanes
        # a vector may be written behind the last score
        self.scores = e.scratch(problem.element, KEYS + 2 * self.lanes)
        self.queries = e.scratch(problem.element, problem.few * problem.width)
        self.results = e.scratch(problem.element, problem.few * self.result_width)
        self.largest = e.scratch(problem.element, problem.few)
        self.totals = e.scratch(problem.element, problem.few)

    def write(self, query: Value, out: Value, row: Value, rows: Value) -> None:
        e, n, problem = self.e, self.n, self.problem
        with e.for_loop(0, rows) as loop:
            self._begin(query, row, loop.index)
        seen = n.value(problem.seen)
        end = e.minimum(seen, row + rows) if problem.causal else seen
        # the last block takes what would be too little for a block of its own
        upper = e.maximum(end - self.lanes, e.minimum(end, 1))
        with e.for_loop(0, upper, KEYS) as block:
            start = block.index
            left = end - start
            count = e.select(e.compare("le", left, KEYS + self.lanes), left, KEYS)
            # one row after the other reads the block's keys and values, which by then are in the second cache
            with e.for_loop(0, rows) as loop:
                own = e.minimum(count, row + loop.index + 1 - start) if problem.causal else count
                with e.if_then(e.compare("gt", own, 0)):
                    self._block(row, loop.index, start, own)
        with e.for_loop(0, rows) as loop:
            self._finish(out, row, loop.index)

    def _begin(self, query: Value, row: Value, number: Value) -> None:
        """The scaled query; nothing seen so far."""
        e, n, problem, q = self.e, self.n, self.problem, self.problem.query

        def scaled(column: Number, lanes: int) -> None:
            x = n.load(query, n.place((q.row, q.column), row + number, column), q.memory, lanes)
            e.store(x * problem.scale, self.queries, n.index.plus(number * problem.width, column))

        if q.column == 1:
            n.windows(problem.width, self.lanes, scaled)
        else:
            with e.for_loop(0, problem.width) as loop:
                scaled(loop.index, 0)
        with e.for_loop(0, self.result_width, self.lanes) as loop:
            e.store(n.splat(0.0), self.results, number * self.result_width + loop.index)
        e.store(e.constant(NEGATIVE_INFINITY, problem.element), self.largest, number)
        e.store(e.constant(0.0, problem.element), self.totals, number)

    def _block(self, row: Value, number: Value, start: Value, count: Value) -> None:
        """One row's scores of `count` keys from `start` on, weights, and the values they weigh."""
        e, n, problem = self.e, self.n, self.problem
        query = e.offset(self.queries, number * problem.width, problem.element)
        products = self._along_keys if problem.keys_lie_along_lanes else self._along_width

        def scores(at: Number, size: int) -> None:
            first = n.index.plus(start, at)
            e.store(self._masked(products(query, first, size), row + number, first), self.scores, at)

        n.windows(count, self.lanes, scores, self._surely())
        # whole vectors from here on: what lies behind the last score weighs nothing
        e.store(n.splat(NEGATIVE_INFINITY), self.scores, count)
        largest = e.load(self.largest, number, problem.element)
        found = self._maximum(count, largest)
        subtract = n.finite_maximum(found)
        factor = exp_in(e, largest - subtract, problem.element)
        added = self._exponentials(count, subtract)
        self._weigh(e.offset(self.results, number * self.result_width, problem.element), start, count, factor)
        e.store(found, self.largest, number)
        e.store(n.multiply_add(e.load(self.totals, number, problem.element), factor, added), self.totals, number)

    def _finish(self, out: Value, row: Value, number: Value) -> None:
        """Divide by the sum, and store."""
        e, n, problem, o = self.e, self.n, self.problem, self.problem.out
        factor = n.reciprocal(e.load(self.totals, number, problem.element))
        for vector, column in enumerate(self.value_columns):
            source = number * self.result_width + vector * self.lanes
            if o.column == 1:
                x = e.load(self.results, source, problem.element, self.lanes) * factor
                e.store(e.convert(x, o.memory), out, n.place((o.row, o.column), row + number, column))
                continue
            with e.for_loop(0, self.lanes) as loop:
                x = e.load(self.results, source + loop.index, problem.element) * factor
                e.store(e.convert(x, o.memory), out, n.place((o.row, o.column), row + number, loop.index + column))

    def _surely(self) -> bool:
        return isinstance(self.problem.seen, int) and self.problem.seen >= self.lanes and not self.problem.causal

    def _along_width(self, query: Value, first: Number, size: int) -> Value:
        """Products of the query with `size` keys (a vector's worth, or one) from `first` on, whose numbers lie side by side."""
        e, n, k = self.e, self.n, self.problem.key
        queries = [self._fresh(column, n.load(query, column, self.problem.element, self.lanes)) for column in self.key_columns]
        products: list[Value] = []
        for j in range(size):
            pointer = e.offset(self.key, n.place((k.row, k.column), n.index.plus(first, j), 0), k.memory)
            keys = [self._fresh(column, n.load(pointer, column, k.memory, self.lanes)) for column in self.key_columns]
            total = keys[0] * queries[0]
            for part, vector in zip(keys[1:], queries[1:]):
                total = n.multiply_add(part, vector, total)
            products.append(total)
        return add_across(e, products) if size > 1 else e.reduce("add", products[0])

    def _fresh(self, column: int, vector: Value) -> Value:
        """A vector of a row that begins at `column`, 0 in lanes that the vector before has too."""
        shared = -column % self.lanes
        if not shared:
            return vector
        own = self.e.constant([lane >= shared for lane in range(self.lanes)], "i1", self.lanes)
        return self.e.select(own, vector, 0.0)

    def _along_keys(self, query: Value, first: Number, size: int) -> Value:
        """The same where keys lie side by side, as the columns of a transposed matrix."""
        e, n, k, problem = self.e, self.n, self.problem.key, self.problem
        lanes = size if size > 1 else 0
        with e.for_loop(0, problem.width, 1, [e.constant(0.0, problem.element, lanes)]) as loop:
            keys = n.load(self.key, n.place((k.row, k.column), first, loop.index), k.memory, lanes)
            number = e.load(query, loop.index, problem.element)
            loop.next(n.multiply_add(e.broadcast(number, lanes) if lanes else number, keys, loop.carried[0]))
        return loop.results[0]

    def _masked(self, scores: Value, row: Value, first: Number) -> Value:
        e, n, mask = self.e, self.n, self.problem.mask
        if mask is None or self.mask is None:
            return scores
        place = n.place((mask.row, mask.column), row, first)
        given = e.load(self.mask, place, mask.memory, scores.lanes if mask.column == 1 else 0)
        return n.hidden(given, scores) if mask.memory == "i1" else e.convert(given, self.problem.element) + scores

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

    def _weigh(self, result: Value, start: Value, count: Value, factor: Value) -> None:
        """result = result * factor + weights @ v"""
        e, n, v, problem = self.e, self.n, self.problem.value, self.problem
        for panel in range(0, len(self.value_columns), ACCUMULATORS):
            own = self.value_columns[panel : panel + ACCUMULATORS]
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
            for position in range(len(own)):
                line = (panel + position) * self.lanes
                total = sums[position] + sums[position + len(own)] if together > 1 else sums[position]
                before = e.load(result, line, problem.element, self.lanes)
                e.store(n.multiply_add(before, e.broadcast(factor, self.lanes), total), result, line)


def starts(width: int, lanes: int) -> list[int]:
    """Where vectors begin that cover a row of `width` numbers, `lanes` or more."""
    return [*range(0, width - lanes + 1, lanes), *([width - lanes] if width % lanes else [])]


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
