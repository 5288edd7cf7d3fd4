"""Sorting, and the first few of a sorted row.

Elements become integer keys whose signed order is the order asked for (a NaN the largest, both zeros one key; descending: the
bits inverted), so that one comparison decides and equal keys are equal elements.

Short rows are sorted by rank: an element's place is how many keys come before its own, counted with vectors of other elements'
keys against it; no branch depends on data. Longer ones by a radix sort from the lowest byte (Knuth, TAOCP 3, 5.2.5), whose
passes over a byte that all keys share are left out. Both are stable.

The first k of a row: the best so far lie in registers, in order. A vector of elements none of which beats the last of them is
passed over; one that does is put in its place by comparing it with all at once and moving those behind it one lane on. Few
elements of a random row do: k * ln(n / k).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dlcompiler.codegen.cpu.emitter import Emitter, Value
from dlcompiler.codegen.cpu.indexing import Number
from dlcompiler.codegen.cpu.machine import Machine
from dlcompiler.codegen.cpu.routines import Written
from dlcompiler.codegen.cpu.routines.frame import Argument, Frame, elements, vector_loop
from dlcompiler.ir.expression import minimum
from dlcompiler.ir.graph import Node
from dlcompiler.ir.program import RoutineCall
from dlcompiler.ir.types import DType, TensorType, compute_dtype, i32, i64

# Vectors of keys that are ranked together: each key they are compared with is broadcast once.
RANKED = 4
# Rows that are sorted at once, each in scratch memory of its own: more than there are threads, so that these end together.
ROWS_AT_ONCE = 16
# The most of a row that `topk` keeps in registers, in vectors of keys.
MOST_VECTORS = 8


def key_bits(dtype: DType) -> int:
    """Width of a key: elements of up to 32 bits share one kind of key."""
    return 64 if compute_dtype(dtype).bits == 64 else 32


def make_key(e: Emitter, x: Value, dtype: DType, descending: bool) -> Value:
    """The key of elements of a compute dtype; see the module."""
    bits = key_bits(dtype)
    element = f"i{bits}"
    largest = (1 << bits - 1) - 1
    if dtype.is_float:
        pattern = e.bitcast(e.add(x, 0.0), element)  # -0.0 + 0.0 is 0.0
        negative = e.shr(pattern, bits - 1)
        key = e.select(e.is_nan(x), largest, e.bit_xor(pattern, e.bit_and(negative, largest)))
    elif dtype.kind == "bool":
        key = e.convert(x, element)
    else:
        key = e.convert(x, element, source_signed=dtype.is_signed)
        if dtype.kind == "uint" and dtype.bits == bits:
            key = e.bit_xor(key, -(1 << bits - 1))
    return e.bit_not(key) if descending else key


def element_of_key(e: Emitter, key: Value, dtype: DType) -> Value:
    """The element of a compute dtype that an ascending key was made of. A zero's sign and a NaN's bits are lost."""
    bits = key_bits(dtype)
    largest = (1 << bits - 1) - 1
    if dtype.is_float:
        pattern = e.bit_xor(key, e.bit_and(e.shr(key, bits - 1), largest))
        return e.bitcast(pattern, "f64" if bits == 64 else "f32")
    if dtype.kind == "uint" and dtype.bits == bits:
        key = e.bit_xor(key, -(1 << bits - 1))
    return e.convert(key, f"i{dtype.bits}")


class _Rows:
    """What both routines have: a row of keys at a time."""

    def __init__(self, e: Emitter, call: RoutineCall, machine: Machine, words: Value, descending: bool) -> None:
        self.e, self.call, self.descending = e, call, descending
        self.frame = Frame(e, call, words)
        self.x = self.frame.arguments[0]
        self.values, self.places = self.frame.arguments[1:3]
        self.rows = call.reads[0].shape[:-1]
        self.bits = key_bits(self.x.dtype)
        self.element = f"i{self.bits}"
        self.last_key = (1 << self.bits - 1) - 1
        self.lanes = machine.lanes(self.bits // 8)
        self.block = RANKED * self.lanes
        self.length = self.frame.size(call.reads[0].shape[-1])

    def key(self, start: Number, index: Value, lanes: int) -> Value:
        """Keys of the row's elements from `index` on."""
        stride = self.x.strides[-1]
        wide = compute_dtype(self.x.dtype)
        x = self.x.load(self.frame.index.plus(start, self.frame.index.times(index, stride)), lanes, stride)
        return make_key(self.e, x, wide, self.descending)

    def starts(self, row: Value) -> list[Number]:
        """Offsets of a row's first elements: of the operand, the values and the places."""
        place = self.frame.place(row, self.rows)
        return [a.offset([*place, 0]) for a in (self.x, self.values, self.places)]

    def move(self, starts: Sequence[Number], source: Value, target: Value) -> None:
        """The row's element at place `source` becomes result number `target`. The bits are copied."""
        index = self.frame.index

        def at(argument: Argument, start: Number, number: Value) -> Number:
            return index.plus(start, index.times(number, argument.strides[-1]))

        own = self.x.dtype
        self.values.store(self.x.load(at(self.x, starts[0], source), dtype=own), at(self.values, starts[1], target), dtype=own)
        self.places.store(source, at(self.places, starts[2], target))

    def pad(self, keys: Value, count: Value) -> None:
        """Fill up the last block of keys with the last of all."""
        e = self.e
        with e.for_loop(count, self.rounded(count)) as loop:
            e.store(e.constant(self.last_key, self.element), keys, loop.index)

    def rounded(self, count: Value) -> Value:
        """`count` up to a multiple of the block."""
        e = self.e
        return e.mul(e.div(e.add(count, self.block - 1), self.block), self.block)

    def rank(self, keys: Value, ranks: Value, count: Value) -> None:
        """For each of `count` padded keys, how many come before it: smaller ones, and equal ones that stand before."""
        e, lanes = self.e, self.lanes
        one, zero = e.constant(1, self.element, lanes), e.constant(0, self.element, lanes)
        with e.for_loop(0, count, self.block) as blocks:
            mine = [e.load(keys, e.add(blocks.index, k * lanes), self.element, lanes) for k in range(RANKED)]

            def counted(low: Number, high: Number, counts: Sequence[Value], beats: Callable[[Value, Value, int], Value]):
                with e.for_loop(low, high, 1, counts) as loop:
                    other = e.broadcast(e.load(keys, loop.index, self.element), lanes)
                    loop.next(*(e.add(c, e.select(beats(other, loop.index, k), one, zero)) for k, c in enumerate(loop.carried)))
                return loop.results

            def beside(other: Value, number: Value, k: int) -> Value:
                at = e.add(e.broadcast(e.sub(number, blocks.index), lanes), -k * lanes)
                before = e.compare("lt", e.convert(at, self.element), e.iota(lanes, self.element))
                return e.bit_or(other < mine[k], e.bit_and(e.compare("eq", other, mine[k]), before))

            end = e.minimum(e.add(blocks.index, self.block), count)
            counts: Sequence[Value] = [zero] * RANKED
            counts = counted(0, blocks.index, counts, lambda other, _, k: other <= mine[k])
            counts = counted(blocks.index, end, counts, beside)
            counts = counted(end, count, counts, lambda other, _, k: other < mine[k])
            for k, each in enumerate(counts):
                e.store(each, ranks, e.add(blocks.index, k * lanes))

    def load_index(self, pointer: Value, at: Number) -> Value:
        """A number kept as wide as the keys, as i64."""
        return self.e.convert(self.e.load(pointer, at, self.element), "i64")

    # -- by rank -----------------------------------------------------------------------------------------------------------

    def sort_by_rank(self, starts: Sequence[Number], keys: Value, ranks: Value, keep: Value | None) -> None:
        """A whole row; of the result only the first `keep` elements (None: all)."""
        e = self.e
        vector_loop(e, self.length, self.lanes, lambda i, lanes: e.store(self.key(starts[0], i, lanes), keys, i))
        self.pad(keys, self.length)
        self.rank(keys, ranks, self.length)
        with e.for_loop(0, self.length) as loop:
            rank = self.load_index(ranks, loop.index)
            if keep is None:
                self.move(starts, loop.index, rank)
            else:
                with e.if_then(e.compare("lt", rank, keep)):
                    self.move(starts, loop.index, rank)


class SortRoutine:
    """sort; see the module."""

    def applies(self, node: Node, machine: Machine) -> bool:
        return node.inputs[0].dtype.kind != "complex"

    def scratch(self, node: Node, machine: Machine) -> Sequence[TensorType]:
        """Two rows of keys and places for each of the rows that are sorted at once, if rows may be too long to be ranked."""
        (x,) = node.inputs
        length = x.shape[-1]
        if isinstance(length, int) and length <= most_ranked(machine, x.dtype):
            return ()
        slots = minimum(elements(x.shape[:-1]), max(ROWS_AT_ONCE, machine.cores))
        shape = (slots, 2, length)
        # keys of 32 bits lie in one word with their places
        return (TensorType(i64, shape),) if key_bits(x.dtype) == 32 else (TensorType(i64, shape), TensorType(i32, shape))

    def write(self, e: Emitter, call: RoutineCall, machine: Machine, name: str) -> Written:
        with e.func(name, [("words", "ptr"), ("low", "i64"), ("high", "i64")]) as (words, low, high):
            return _SortWriter(e, call, machine, words).write(low, high)


def most_ranked(machine: Machine, dtype: DType) -> int:
    """The longest row that is sorted by rank."""
    return 8 * machine.lanes(key_bits(dtype) // 8)


class _SortWriter(_Rows):
    def __init__(self, e: Emitter, call: RoutineCall, machine: Machine, words: Value) -> None:
        super().__init__(e, call, machine, words, call.attributes["descending"])
        self.most = most_ranked(machine, self.x.dtype)
        self.scratch = self.frame.arguments[3:]

    def write(self, low: Value, high: Value) -> Written:
        e = self.e
        length, rows = self.call.reads[0].shape[-1], elements(self.rows)
        short = isinstance(length, int) and length <= self.most
        room = self.most if not isinstance(length, int) or short else 1
        keys, ranks = (e.scratch(self.element, room) for _ in range(2))
        each = length if isinstance(length, int) else 64
        if not self.scratch:
            with e.for_loop(low, high) as loop:
                self.sort_by_rank(self.starts(loop.index), keys, ranks, None)
            return Written(rows, max(512 // max(each, 1), 1), "each row by rank")
        slots = self.scratch[0].view.shape[0]
        counts = e.scratch("i32", 256 * (self.bits // 8))
        # slot s has the rows [s * share, (s + 1) * share)
        share = e.div(e.add(self.frame.size(rows), e.sub(self.frame.size(slots), 1)), e.maximum(self.frame.size(slots), 1))
        with e.for_loop(low, high) as loop:
            first = e.mul(loop.index, share)
            last = e.minimum(e.add(first, share), self.frame.size(rows))
            with e.for_loop(first, last) as row:
                starts = self.starts(row.index)
                if isinstance(length, int):
                    self._radix(starts, loop.index, counts)
                else:
                    short_row = e.compare("le", self.length, self.most)
                    e.if_else(
                        short_row,
                        lambda: self._nothing(lambda: self.sort_by_rank(starts, keys, ranks, None)),
                        lambda: self._nothing(lambda: self._radix(starts, loop.index, counts)),
                    )
        return Written(slots, 1, "by radix, a byte at a time")

    @staticmethod
    def _nothing(write: Callable[[], None]) -> tuple[Value, ...]:
        write()
        return ()

    # -- by radix ------------------------------------------------------------------------------------------------------------

    def _radix(self, starts: Sequence[Number], slot: Value, counts: Value) -> None:
        """Sort (key, place) pairs byte by byte between two buffers, then move the elements."""
        e = self.e
        packed = self.bits == 32
        begin = e.mul(slot, e.mul(self.length, 2))
        source = [e.offset(a.pointer, begin, a.element) for a in self.scratch]
        target = [e.offset(p, self.length, a.element) for p, a in zip(source, self.scratch)]
        with e.for_loop(0, 256 * (self.bits // 8)) as loop:
            e.store(e.constant(0, "i32"), counts, loop.index)
        vector_loop(e, self.length, self.lanes, lambda i, lanes: self._fill(starts, source, i, lanes))
        with e.for_loop(0, self.length) as loop:
            key = e.load(source[0], loop.index, "i64")
            for byte in range(self.bits // 8):
                at = self._digit(key, byte, packed)
                e.store(e.load(counts, at, "i32") + 1, counts, at)
        for byte in range(self.bits // 8):
            source, target = self._pass(source, target, counts, byte)
        with e.for_loop(0, self.length) as loop:
            if packed:
                place = e.bit_and(e.load(source[0], loop.index, "i64"), 0xFFFFFFFF)
            else:
                place = e.convert(e.load(source[1], loop.index, "i32"), "i64")
            self.move(starts, place, loop.index)

    def _fill(self, starts: Sequence[Number], target: Sequence[Value], index: Value, lanes: int) -> None:
        """Keys as unsigned numbers, with their places."""
        e = self.e
        key = e.bit_xor(self.key(starts[0], index, lanes), -(1 << self.bits - 1))
        place = e.add(e.broadcast(index, lanes), e.iota(lanes)) if lanes else index
        if self.bits == 32:
            e.store(e.bit_or(e.shl(e.convert(key, "i64", source_signed=False), 32), place), target[0], index)
        else:
            e.store(key, target[0], index)
            e.store(e.convert(place, "i32"), target[1], index)

    def _digit(self, key: Value, byte: int, packed: bool) -> Value:
        """Where a key's byte is counted: each byte has a table of its own."""
        e = self.e
        shifted = e.shr(key, 8 * byte + (32 if packed else 0), signed=False)
        return e.add(e.bit_and(shifted, 255), 256 * byte)

    def _pass(self, source: list[Value], target: list[Value], counts: Value, byte: int) -> tuple[list[Value], list[Value]]:
        """Put every pair where its byte belongs; gives the buffers exchanged. Nothing is to do if all keys share the byte."""
        e, parts = self.e, len(source)
        packed = self.bits == 32
        first = e.load(counts, self._digit(e.load(source[0], 0, "i64"), byte, packed), "i32")
        shared = e.compare("eq", e.convert(first, "i64"), self.length)

        def move() -> tuple[Value, ...]:
            with e.for_loop(0, 256, 1, [e.constant(0, "i32")]) as loop:
                at = e.add(loop.index, 256 * byte)
                count = e.load(counts, at, "i32")
                e.store(loop.carried[0], counts, at)
                loop.next(loop.carried[0] + count)
            with e.for_loop(0, self.length) as loop:
                values = [e.load(p, loop.index, a.element) for p, a in zip(source, self.scratch)]
                at = self._digit(values[0], byte, packed)
                place = e.load(counts, at, "i32")
                e.store(place + 1, counts, at)
                for pointer, value in zip(target, values):
                    e.store(value, pointer, e.convert(place, "i64"))
            return (*target, *source)

        buffers = e.if_else(shared, lambda: (*source, *target), move)
        return list(buffers[:parts]), list(buffers[parts:])


class TopRoutine:
    """topk; see the module."""

    def applies(self, node: Node, machine: Machine) -> bool:
        (x,), k = node.inputs, node.attributes["k"]
        if x.dtype.kind == "complex" or not isinstance(k, int):
            return False
        length = x.shape[-1]
        short = isinstance(length, int) and length <= most_ranked(machine, x.dtype)
        return short or k <= MOST_VECTORS * machine.lanes(key_bits(x.dtype) // 8)

    def scratch(self, node: Node, machine: Machine) -> Sequence[TensorType]:
        return ()

    def write(self, e: Emitter, call: RoutineCall, machine: Machine, name: str) -> Written:
        with e.func(name, [("words", "ptr"), ("low", "i64"), ("high", "i64")]) as (words, low, high):
            return _TopWriter(e, call, machine, words).write(low, high)


class _TopWriter(_Rows):
    def __init__(self, e: Emitter, call: RoutineCall, machine: Machine, words: Value) -> None:
        super().__init__(e, call, machine, words, call.attributes["largest"])
        self.k: int = call.attributes["k"]
        self.most = most_ranked(machine, self.x.dtype)

    def write(self, low: Value, high: Value) -> Written:
        e = self.e
        length, rows = self.call.reads[0].shape[-1], elements(self.rows)
        each = length if isinstance(length, int) else 1024
        ranked = isinstance(length, int) and length <= self.most and 4 * self.k > length
        room = self.most if ranked else -(-self.k // self.lanes) * self.lanes
        keys, ranks = (e.scratch(self.element, max(room, 1)) for _ in range(2))
        with e.for_loop(low, high) as loop:
            starts = self.starts(loop.index)
            if ranked:
                self.sort_by_rank(starts, keys, ranks, e.constant(self.k, "i64"))
            elif self.k:
                self._select(starts, ranks)
        how = "by rank" if ranked else "in registers"
        return Written(rows, max((1 << 13) // max(each, 1), 1), f"the first {self.k} of each row, {how}")

    def _select(self, starts: Sequence[Number], places: Value) -> None:
        e, lanes, k = self.e, self.lanes, self.k
        vectors = -(-k // lanes)
        state = [e.constant(self.last_key, self.element, lanes)] * vectors + [e.constant(0, self.element, lanes)] * vectors
        with e.for_loop(0, k, 1, state) as loop:
            key = self.key(starts[0], loop.index, 0)
            loop.next(*self._insert(list(loop.carried), key, loop.index, loop.index))
        first = e.constant(k, "i64")
        whole = e.add(first, e.mul(e.div(e.sub(self.length, first), lanes), lanes))
        with e.for_loop(first, whole, lanes, list(loop.results)) as scan:
            best = list(scan.carried)
            vector = self.key(starts[0], scan.index, lanes)
            hit = e.any(e.compare("lt", vector, e.broadcast(self._worst(best), lanes)))
            scan.next(*e.if_else(hit, lambda: self._enter_all(best, vector, scan.index), lambda: best))
        with e.for_loop(whole, self.length, 1, list(scan.results)) as rest:
            rest.next(*self._enter(list(rest.carried), self.key(starts[0], rest.index, 0), rest.index))
        for number, vector in enumerate(rest.results[vectors:]):
            e.store(vector, places, number * lanes)
        with e.for_loop(0, k) as out:
            self.move(starts, self.load_index(places, out.index), out.index)

    def _worst(self, state: Sequence[Value]) -> Value:
        """The key of the last of the best k."""
        return self.e.extract(state[(self.k - 1) // self.lanes], (self.k - 1) % self.lanes)

    def _enter_all(self, state: list[Value], vector: Value, index: Value) -> list[Value]:
        """Each lane in turn, from memory so that the code is there once."""
        e = self.e
        held = e.scratch(self.element, self.lanes)
        e.store(vector, held, 0)
        with e.for_loop(0, self.lanes, 1, state) as loop:
            key = e.load(held, loop.index, self.element)
            loop.next(*self._enter(list(loop.carried), key, e.add(index, loop.index)))
        return list(loop.results)

    def _enter(self, state: list[Value], key: Value, index: Value) -> list[Value]:
        """The best k after an element that may or may not be among them."""
        beats = key < self._worst(state)
        return list(self.e.if_else(beats, lambda: self._insert(state, key, index, None), lambda: state))

    def _insert(self, state: list[Value], key: Value, index: Value, count: Value | None) -> list[Value]:
        """Put an element behind those that are not larger. `count`: only so many lanes hold anything yet; None: all do."""
        e, lanes = self.e, self.lanes
        half = len(state) // 2
        keys, places = state[:half], state[half:]
        key, place = e.broadcast(key, lanes), e.broadcast(e.convert(index, self.element), lanes)
        before_all = e.constant(-(1 << self.bits - 1), self.element, lanes)
        pattern = [lane + lanes - 1 for lane in range(lanes)]
        new_keys, new_places = [], []
        for number in range(half):
            moved = e.shuffle(keys[number - 1] if number else before_all, keys[number], pattern)
            moved_place = e.shuffle(places[number - 1] if number else before_all, places[number], pattern)
            behind, next_behind = e.compare("gt", keys[number], key), e.compare("gt", moved, key)
            if count is not None:
                lane = e.add(e.iota(lanes, self.element), number * lanes)
                empty = e.broadcast(e.convert(count, self.element), lanes)
                behind = e.bit_or(behind, e.compare("ge", lane, empty))
                next_behind = e.bit_or(next_behind, e.compare("gt", lane, empty))
            new_keys.append(e.select(behind, e.select(next_behind, moved, key), keys[number]))
            new_places.append(e.select(behind, e.select(next_behind, moved_place, place), places[number]))
        return [*new_keys, *new_places]
