"""The gradients of attention as one kernel: scores made again, block by block, from the logarithms of their sums.

    p = exp(scale * q @ k.T + mask - logsumexp)         as in the forward pass
    ds = scale * p * (grad @ v.T - delta)               delta: of each row the sum of grad * out
    dq = ds @ k,   dk = ds.T @ q,   dv = p.T @ grad

(Dao, FlashAttention-2, 2023, section 3.1.2.) A work item is one head. For each block of query rows it walks over blocks of keys:
p.T and ds.T [keys, rows] are made with lanes along rows, as `attention_tiles` makes scores; dq.T is summed up in scratch, dk and
dv where they are stored, lanes along their columns. So each product is made once, and since nobody else adds to what a head gets,
sums have a fixed order. Where heads are too few for the cores, an item is every n-th block of keys of a head, and the last of
the n to finish adds up their shares of dq, in order.

Values of `v` and `grad` at pairs that a causal mask hides from a whole block are not read, so 0 * NaN does not spread from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dlcompiler.codegen.cpu.emitter import Emitter, Value
from dlcompiler.codegen.cpu.exponential import exp
from dlcompiler.codegen.cpu.indexing import Number
from dlcompiler.codegen.cpu.routines.attention import GUESS, WORTH_A_THREAD, suits
from dlcompiler.codegen.cpu.routines.attention_gradients import (
    KEPT_KEYS,
    GradientProblem,
    gradient_problem,
    scratch_types,
)
from dlcompiler.codegen.cpu.routines.attention_lanes import Place, RowLanes, write_turn
from dlcompiler.codegen.cpu.routines.attention_problem import Numbers, Strided
from dlcompiler.codegen.cpu.routines.frame import load_spread, store_spread, vectors_of
from dlcompiler.ir.expression import product
from dlcompiler.ir.types import TensorType

if TYPE_CHECKING:
    from dlcompiler.codegen.cpu.machine import Machine
    from dlcompiler.codegen.cpu.routines import Written
    from dlcompiler.ir.graph import Node
    from dlcompiler.ir.program import RoutineCall


class AttentionBackward:
    """The routine of the op `attention_backward`."""

    def applies(self, node: Node, machine: Machine) -> bool:
        """As for `attention`."""
        _, query, _, value, _, _, *mask = (operand.tensor for operand in node.inputs)
        return suits(node, machine, (query.shape[-1], value.shape[-1])) and all(operand.rank > 0 for operand in mask)

    def scratch(self, node: Node, machine: Machine) -> Sequence[TensorType]:
        """Sums of narrow gradients, and each part's share of dq with counters."""
        return scratch_types(node, machine)

    def write(self, e: Emitter, call: RoutineCall, machine: Machine, name: str) -> Written:
        """One function over the work items, one for an item, and one each for sums of dk and of dv."""
        from dlcompiler.codegen.cpu.routines import Written

        problem = gradient_problem(call, machine)
        write_turn(e, problem, f"{name}.turn")
        head = f"{name}.head"
        for kind, place, width in zip("kv", problem.sums, (problem.width, problem.depth)):
            _write_sums(e, problem, f"{name}.d{kind}", place, width)
        with e.func(
            head, [("words", "ptr"), *((role, "ptr") for role in problem.named), ("part", "i64")], inline=False
        ) as values:
            words, *pointers, part = values
            _Gradients(e, problem, words, name, pointers, part).write()
        with e.func(name, [("words", "ptr"), ("low", "i64"), ("high", "i64")]) as (words, low, high):
            n = Numbers(e, problem, words)
            pointers = list(e.buffers(words, len(problem.arguments)))
            with e.for_loop(low, high) as loop:
                part, rest = e.rem(loop.index, problem.parts), e.div(loop.index, problem.parts)
                e.call(head, [words, *n.heads(rest, pointers), part])
        length, seen = (size if isinstance(size, int) else GUESS for size in (problem.length, problem.seen))
        cost = length * seen * (3 * problem.width + 2 * problem.depth) // problem.parts
        divided = f", keys in {problem.parts} parts" if problem.parts > 1 else ""
        summary = f"attention's gradients, {problem.item_rows} rows by {problem.keys} keys at a time{divided}"
        work = product(problem.lead) * problem.parts
        return Written(work, max(1, WORTH_A_THREAD // max(cost, 1)), f"{summary}, {problem.lanes} lanes of {problem.element}")


class _Gradients(RowLanes):
    """The function of one work item."""

    problem: GradientProblem

    def __init__(
        self, e: Emitter, problem: GradientProblem, words: Value, name: str, pointers: Sequence[Value], part: Value
    ) -> None:
        super().__init__(e, problem, words, f"{name}.turn")
        self.problem, self.name, self.part = problem, name, part
        given = dict(zip(problem.named, pointers))
        self.grad, self.query, self.key, self.value = (given[role] for role in ("grad", "query", "key", "value"))
        self.logsumexp, self.delta, self.mask = given["logsumexp"], given["delta"], given.get("mask")
        self.gradients = [given[role] for role in ("dq", "dk", "dv")]
        self.sums = [given.get("sum_k", given["dk"]), given.get("sum_v", given["dv"])]
        self.share, self.counter = given.get("share"), given.get("counter")
        self.words = words
        self._make_scratch()

    def _make_scratch(self) -> None:
        e, problem = self.e, self.problem
        self.block_rows = problem.item_rows
        self.widths = self._padded(problem.width), self._padded(problem.depth)
        widest_block = self._padded(problem.keys)
        self.row_major = [e.scratch(problem.element, self.block_rows * width) for width in self.widths]
        self.turned = [e.scratch(problem.element, self.block_rows * width) for width in self.widths]
        self.turned_result = e.scratch(problem.element, self.block_rows * self.widths[0])
        self.weights = e.scratch(problem.element, self.block_rows * problem.keys)
        self.slopes = e.scratch(problem.element, self.block_rows * problem.keys)
        self.numbers = [e.scratch(problem.element, self.block_rows) for _ in range(2)]
        turns_mask = problem.mask is not None and not problem.mask_of_keys
        self.masks = e.scratch(problem.element, widest_block * self.rows) if turns_mask else None
        self.buffer_width = max(self.widths[0], widest_block if turns_mask else 0)
        self.buffer = e.scratch(problem.element, self.rows * self.buffer_width)
        self.copies = [
            e.scratch(problem.element, problem.keys * width) if wanted else None
            for wanted, width in ((problem.copies_keys, problem.width), (problem.copies_values, problem.depth))
        ]

    def write(self) -> None:
        """All blocks of rows of a head with the part's blocks of keys."""
        e, n, problem = self.e, self.n, self.problem
        length, seen = n.value(problem.length), n.value(problem.seen)
        with self._own_blocks(seen) as (start, count):
            for pointer, place, width in zip(self.sums, problem.sums, (problem.width, problem.depth)):
                self._fill(pointer, place, start, count, width)
        with e.for_loop(0, length, self.block_rows) as loop:
            row = loop.index
            rows = e.minimum(length - row, self.block_rows)
            self._rows(row, rows, e.minimum(seen, row + rows) if problem.causal else seen)
        for k, width in ((1, problem.width), (2, problem.depth)):
            own, target = problem.sums[k - 1], problem.gradients[k]
            if own is not target:
                with self._own_blocks(seen) as (start, count):
                    self._narrow(self.sums[k - 1], own, self.gradients[k], target, start, count, width)
        if self.share is not None and self.counter is not None:
            before = e.op("i64", 0, "llvm.atomicrmw add {}, {} acq_rel : !llvm.ptr, i64", self.counter, e.constant(1, "i64"))
            with e.if_then(e.compare("eq", before, problem.parts - 1)):
                self._add_shares(self.share, length)

    # -- rows ------------------------------------------------------------------------------------------------------------------

    def _rows(self, row: Value, rows: Value, end: Value) -> None:
        """The gradients that come from rows [row, row + rows), which see keys up to `end`."""
        e, n, problem = self.e, self.n, self.problem
        groups = e.div(rows + (self.rows - 1), self.rows)
        with e.for_loop(0, groups) as loop:
            self._begin_group(loop.index, row, rows)
        with self._own_blocks(end) as (start, count):
            keys, key_place = self._as_it_is_or_copied(self.copies[0], problem.key, self.key, problem.width, start, count)
            values, value_place = self._as_it_is_or_copied(self.copies[1], problem.value, self.value, problem.depth, start, count)
            with e.for_loop(0, groups) as loop:
                first = row + loop.index * self.rows
                self._block(loop.index, keys, key_place, values, value_place, first, row + rows, start, count)
            for kind, lines, k in (("k", self.slopes, 0), ("v", self.weights, 1)):
                step = n.index.write(problem.sums[k].row)
                target = e.offset(self.sums[k], n.index.times(start, step), problem.element)
                e.call(f"{self.name}.d{kind}", [self.words, lines, self.row_major[k], target, count, rows])
        with e.for_loop(0, groups) as loop:
            self._finish_group(loop.index, row, rows)

    def _begin_group(self, group: Value, row: Value, rows: Value) -> None:
        """Rows of q and grad as they are, and turned and scaled; beyond the last row that row again. dq is 0."""
        e, n, problem = self.e, self.n, self.problem
        first = group * self.rows

        def at(r: Number) -> Value:
            return e.add(row, e.minimum(e.add(first, r), rows - 1))

        def take(k: int, pointer: Value, given: Strided, width: int) -> None:
            wide = self.widths[k]
            own = e.offset(self.row_major[k], first * wide, problem.element)
            self._copy(
                self.rows, width, given.column == 1,
                pointer, lambda r, c: n.place((given.row, given.column), at(r), c), given.memory,
                own, self._row_major(wide), problem.element, lambda x: e.convert(x, problem.element),
            )  # fmt: skip
            turned = e.offset(self.turned[k], first * wide, problem.element)
            self._turn(width, own, wide, True, turned, self.rows)
            with e.for_loop(0, width) as loop:
                self._store_vectors([x * problem.scale for x in self._vectors_at(turned, loop.index)], turned, loop.index)

        take(0, self.query, problem.query, problem.width)
        take(1, self.grad, problem.out, problem.depth)
        result = e.offset(self.turned_result, first * self.widths[0], problem.element)
        with e.for_loop(0, problem.width) as loop:
            self._store_vectors([n.splat(0.0)] * self.vectors, result, loop.index)
        assert problem.logsumexp is not None
        rows_numbers = ((self.logsumexp, problem.logsumexp, 1.0), (self.delta, problem.delta, problem.scale))
        with e.for_loop(0, self.rows) as loop:
            for target, (pointer, place, factor) in zip(self.numbers, rows_numbers):
                number = n.load(pointer, n.place((place.row, 0), at(loop.index), 0), place.memory)
                e.store(number * factor if factor != 1.0 else number, target, first + loop.index)

    def _finish_group(self, group: Value, row: Value, rows: Value) -> None:
        """Turn dq, and store the rows that there are: where they belong, or as the part's share."""
        e, n, problem = self.e, self.n, self.problem
        first = group * self.rows
        result = e.offset(self.turned_result, first * self.widths[0], problem.element)
        self._turn(problem.width, result, self.rows, False, self.buffer, self.buffer_width)
        target, place = self.gradients[0], problem.gradients[0]
        if self.share is not None and problem.share is not None:
            place = problem.share
            target = self._share_of(self.share, self.part)
        self._copy(
            e.minimum(rows - first, self.rows), problem.width, place.column == 1,
            self.buffer, self._row_major(self.buffer_width), problem.element,
            target, lambda r, c: n.place((place.row, place.column), e.add(row + first, r), c), place.memory,
        )  # fmt: skip

    # -- a block of keys -------------------------------------------------------------------------------------------------------

    def _block(
        self, group: Value, keys: Value, key_place: Place, values: Value, value_place: Place, first: Value, last: Value,
        start: Value, count: Value,
    ) -> None:  # fmt: skip
        """Weights and slopes of the group's rows, from `first` on, at `count` keys from `start` on; what these add to dq."""
        e, n, problem = self.e, self.n, self.problem
        at = group * self.rows
        weights, slopes = (e.offset(x, at, problem.element) for x in (self.weights, self.slopes))
        query, grad = (e.offset(x, at * wide, problem.element) for x, wide in zip(self.turned, self.widths))
        logsumexp, delta = (self._vectors_at(e.offset(x, at, problem.element), 0) for x in self.numbers)
        # causal: no more keys than the group's last row sees
        seen = e.maximum(e.minimum(count, first + self.rows - start), 0) if problem.causal else count
        if self.masks is not None and self.mask is not None:
            self._turn_mask(self.mask, self.masks, first, last, start, seen)

        def make_weights(key: Number, size: int) -> None:
            for j, scores in enumerate(self._rows_times(keys, key_place, key, size, query, problem.width)):
                line = n.index.plus(key, j)
                masked = self._masked(scores, self.mask, start, line)
                self._store_vectors([exp(e, s - l) for s, l in zip(masked, logsumexp)], weights, line, self.block_rows)

        def make_slopes(key: Number, size: int) -> None:
            for j, products in enumerate(self._rows_times(values, value_place, key, size, grad, problem.depth)):
                line = n.index.plus(key, j)
                own = self._vectors_at(weights, line, self.block_rows)
                found = [w * (p - d) for w, p, d in zip(own, products, delta)]
                self._store_vectors(found, slopes, line, self.block_rows)

        n.windows(seen, problem.broadcast, make_weights)
        if problem.causal:
            self._hide_later_weights(weights, first, start, seen, count)
        n.windows(seen, problem.broadcast, make_slopes)
        if problem.causal:
            with e.for_loop(seen, count) as loop:
                self._store_vectors([n.splat(0.0)] * self.vectors, slopes, loop.index, self.block_rows)
        self._add_to_query(group, keys, key_place, slopes, seen)

    def _hide_later_weights(self, weights: Value, first: Value, start: Value, seen: Value, count: Value) -> None:
        """0 where the key comes after the row: of the keys beyond the first row, and of those that no row of the group sees."""
        e = self.e
        with e.for_loop(e.maximum(first + 1 - start, 0), seen) as loop:
            kept = self._not_before(start + loop.index - first)
            own = self._vectors_at(weights, loop.index, self.block_rows)
            self._store_vectors([e.select(k, w, 0.0) for k, w in zip(kept, own)], weights, loop.index, self.block_rows)
        with e.for_loop(seen, count) as loop:
            self._store_vectors([self.n.splat(0.0)] * self.vectors, weights, loop.index, self.block_rows)

    def _add_to_query(self, group: Value, keys: Value, place: Place, slopes: Value, count: Value) -> None:
        """dq.T += k.T @ ds.T"""
        e, n, problem = self.e, self.n, self.problem
        result = e.offset(self.turned_result, group * (self.rows * self.widths[0]), problem.element)

        def add(column: Number, size: int) -> None:
            for j, found in enumerate(self._columns_times(keys, place, column, size, slopes, count, self.block_rows)):
                line = n.index.plus(column, j)
                before = self._vectors_at(result, line)
                self._store_vectors([b + f for b, f in zip(before, found)], result, line)

        whole = problem.width // problem.broadcast * problem.broadcast
        with e.for_loop(0, whole, problem.broadcast) as loop:
            add(loop.index, problem.broadcast)
        if whole < problem.width:
            add(whole, problem.width - whole)

    # -- memory ----------------------------------------------------------------------------------------------------------------

    @contextmanager
    def _own_blocks(self, end: Value) -> Iterator[tuple[Value, Value]]:
        """A loop over the part's blocks of keys below `end`: (first key, how many)."""
        e, problem = self.e, self.problem
        with e.for_loop(self.part * problem.keys, end, problem.parts * problem.keys) as loop:
            yield loop.index, e.minimum(end - loop.index, problem.keys)

    def _fill(self, pointer: Value, place: Strided, start: Value, count: Value, width: int) -> None:
        """Zeros in rows [start, start + count)."""
        zeros = self.e.constant(0.0, self.problem.element, self.lanes)
        with self.e.for_loop(start, start + count) as loop:
            for first, mask in vectors_of(self.e, width, self.lanes):
                at = self.n.place((place.row, place.column), loop.index, first)
                store_spread(self.e, zeros, pointer, at, self.n.index.write(place.column), mask)

    def _narrow(
        self, source: Value, own: Strided, target: Value, place: Strided, start: Value, count: Value, width: int
    ) -> None:  # fmt: skip
        """Sums of the rows [start, start + count) as what is stored."""
        n, e = self.n, self.e
        self._copy(
            count, width, own.column == 1 and place.column == 1,
            source, lambda r, c: n.place((own.row, own.column), e.add(start, r), c), own.memory,
            target, lambda r, c: n.place((place.row, place.column), e.add(start, r), c), place.memory,
        )  # fmt: skip

    def _share_of(self, share: Value, part: Number) -> Value:
        """dq of one part."""
        assert self.problem.share is not None
        step = self.n.index.write(self.problem.share.lead[-1])
        return self.e.offset(share, self.n.index.times(part, step), self.problem.element)

    def _add_shares(self, share: Value, length: Value) -> None:
        """dq = the sum of all parts' shares, in order."""
        e, n, problem = self.e, self.n, self.problem
        place, target = problem.share, problem.gradients[0]
        assert place is not None
        shares = [self._share_of(share, part) for part in range(problem.parts)]
        with e.for_loop(0, length) as loop:
            for first, mask in vectors_of(e, problem.width, self.lanes):
                at = n.place((place.row, place.column), loop.index, first)
                total = load_spread(e, shares[0], at, 1, problem.element, self.lanes, mask)
                for other in shares[1:]:
                    total = total + load_spread(e, other, at, 1, problem.element, self.lanes, mask)
                to = n.place((target.row, target.column), loop.index, first)
                store_spread(e, e.convert(total, target.memory), self.gradients[0], to, n.index.write(target.column), mask)


# -- sums along columns ----------------------------------------------------------------------------------------------------------


def _write_sums(e: Emitter, problem: GradientProblem, name: str, place: Strided, width: int) -> None:
    """A function that adds lines [count, rows] @ source [rows, width] to rows of a matrix that lies as `place` says.

    Sums of some keys and some vectors of columns stay in registers. Lines lie a block of rows apart, rows of the source side by
    side.
    """
    arguments = [("words", "ptr"), ("lines", "ptr"), ("source", "ptr"), ("target", "ptr"), ("count", "i64"), ("rows", "i64")]
    most = 4 if problem.machine.vector_registers >= 32 else 2
    with e.func(name, arguments, inline=False) as (words, lines, source, target, count, rows):
        n = Numbers(e, problem, words)
        vectors = vectors_of(e, width, problem.lanes)
        full = width // problem.lanes // most * most

        def add(key: Value, keys: int) -> None:
            if full:
                with e.for_loop(0, full * problem.lanes, most * problem.lanes) as loop:
                    columns = [(loop.index + k * problem.lanes, None) for k in range(most)]
                    _add_tile(n, problem, place, (lines, source, target), key, keys, columns, rows, width)
            if full < len(vectors):
                rest: list[tuple[Number, Value | None]] = [*vectors[full:]]
                _add_tile(n, problem, place, (lines, source, target), key, keys, rest, rows, width)

        whole = e.sub(count, e.rem(count, KEPT_KEYS))
        with e.for_loop(0, whole, KEPT_KEYS) as loop:
            add(loop.index, KEPT_KEYS)
        with e.for_loop(whole, count) as loop:
            add(loop.index, 1)


def _add_tile(
    n: Numbers, problem: GradientProblem, place: Strided, pointers: tuple[Value, Value, Value], key: Value, keys: int,
    columns: Sequence[tuple[Number, Value | None]], rows: Value, width: int,
) -> None:  # fmt: skip
    """target[key + j, columns] += the sum over rows of lines[key + j, row] * source[row, columns]."""
    e, lanes = n.e, problem.lanes
    lines, source, target = pointers
    step = n.index.write(place.column)
    wide = -(-width // lanes) * lanes
    places = [[n.place((place.row, place.column), n.index.plus(key, j), c) for c, _ in columns] for j in range(keys)]
    sums = [
        load_spread(e, target, at, step, problem.element, lanes, mask)
        for own in places
        for at, (_, mask) in zip(own, columns)
    ]  # fmt: skip
    numbers = [e.offset(lines, (key + j) * problem.item_rows, problem.element) for j in range(keys)]
    with e.for_loop(0, rows, 1, sums) as loop:
        line = loop.index * wide
        vectors = [e.load(source, n.index.plus(line, c), problem.element, lanes) for c, _ in columns]
        following = []
        for j, pointer in enumerate(numbers):
            number = e.broadcast(e.load(pointer, loop.index, problem.element), lanes)
            following += [n.multiply_add(number, x, loop.carried[j * len(columns) + k]) for k, x in enumerate(vectors)]
        loop.next(*following)
    for j, own in enumerate(places):
        for k, (at, (_, mask)) in enumerate(zip(own, columns)):
            store_spread(e, loop.results[j * len(columns) + k], target, at, step, mask)
