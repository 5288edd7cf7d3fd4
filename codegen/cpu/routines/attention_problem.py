"""What the kernels of attention are written for: sizes, strides, types, blocks; and these as values of an open function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dlcompiler.codegen.cpu.emitter import Emitter, Value
from dlcompiler.codegen.cpu.indexing import IndexWriter, Number
from dlcompiler.codegen.cpu.literals import ELEMENT_BITS
from dlcompiler.codegen.cpu.machine import Machine
from dlcompiler.codegen.cpu.scalars import element_name
from dlcompiler.ir.expression import NO_EXTENTS, Dim
from dlcompiler.ir.program import RoutineCall, View

# Keys in a block: their scores for one group of rows stay in the first cache.
KEYS = 128
# Query rows of a work item.
ROWS = 64
# Half as many of both where heads are wider than this: what a thread has on its stack stays below 256 KiB.
WIDE = 128
# Up to this many query rows, lanes that run along rows would be mostly empty.
FEW_ROWS = 7
# Addresses that differ by a multiple of this share lines of the first cache.
PAGE = 4096
NEGATIVE_INFINITY = float("-inf")


@dataclass(frozen=True)
class Strided:
    """One operand or the result: strides in elements, 0 where it is broadcast."""

    memory: str  # the element in memory, as MLIR names it; i1 is a byte
    lead: tuple[Dim, ...]
    row: Dim
    column: Dim


def strided(view: View, lead: tuple[Dim, ...]) -> Strided:
    """A matrix for each of the leading dimensions, some of which it may lack."""
    shape, strides = view.shape, view.strides
    missing = len(lead) + 2 - len(shape)
    steps = [*(0,) * missing, *(0 if size == 1 else step for size, step in zip(shape, strides))]
    return Strided(element_name(view.dtype), tuple(steps[:-2]), steps[-2], steps[-1])


def of_rows(view: View) -> Strided:
    """One number for each row: a single column."""
    *lead, row = view.strides
    return Strided(element_name(view.dtype), tuple(lead), row, 0)


def broadcast_numbers(machine: Machine) -> int:
    """As many numbers as leave registers for the sums, and without fused multiply-adds for products."""
    if machine.vector_registers >= 32:
        return 8
    return 6 if machine.has_fma else 4


@dataclass(frozen=True)
class Problem:
    """One call of attention: q[lead, length, width], k[lead, seen, width], v[lead, seen, depth], out[lead, length, depth].

    groups     of query rows that a work item has at most; they share copies of keys and values
    vectors    of query rows in a group
    broadcast  numbers of as many keys, or of one value, that a step of the micro kernels multiplies with those vectors
    keys       in a block: their scores for a group stay in the first cache
    few        as many query rows or fewer are worked on one by one, since lanes along rows would be mostly empty
    """

    machine: Machine
    element: str  # what is computed in: f32 or f64
    lanes: int
    lead: tuple[Dim, ...]
    length: Dim
    seen: Dim
    width: int
    depth: int
    scale: float
    causal: bool
    query: Strided
    key: Strided
    value: Strided
    mask: Strided | None
    out: Strided
    logsumexp: Strided | None  # of each row, if it is asked for
    sizes: tuple[str, ...]
    vectors: int
    broadcast: int
    keys: int
    few: int
    groups: int

    @staticmethod
    def of(call: RoutineCall, machine: Machine) -> Problem:
        q, k, v, *mask = call.reads
        out, *sums = (view for view in call.writes if view is not None)
        lead = out.shape[:-2]
        wide = q.dtype.name == "f64"
        width, depth = q.shape[-1], v.shape[-1]
        assert isinstance(width, int) and isinstance(depth, int)
        lanes = machine.lanes(8 if wide else 4)
        vectors = 1 if machine.vector_bytes == 64 else 2
        part = 1 if max(width, depth) <= WIDE else 2
        problem = Problem(
            machine, "f64" if wide else "f32", lanes, lead, q.shape[-2], k.shape[-2],
            width, depth, float(call.attributes["scale"]), bool(call.attributes["causal"]),
            strided(q, lead), strided(k, lead), strided(v, lead), strided(mask[0], lead) if mask else None,
            strided(out, lead), of_rows(sums[0]) if sums else None, call.size_symbols,
            vectors=vectors, broadcast=broadcast_numbers(machine), keys=KEYS // part, few=0 if sums else FEW_ROWS,
            groups=max(1, ROWS // part // (vectors * lanes)),
        )  # fmt: skip
        return problem if sums else problem._heads_as_rows()

    def _heads_as_rows(self) -> Problem:
        """With one query row a head, heads that share keys and values are rows of one head, so that these are read once."""
        if self.length != 1 or not self.lead or self.lead[-1] == 1 or self.causal:
            return self
        if self.key.lead[-1] != 0 or self.value.lead[-1] != 0:
            return self

        def turned(x: Strided) -> Strided:
            return replace(x, lead=x.lead[:-1], row=x.lead[-1])

        return replace(
            self, lead=self.lead[:-1], length=self.lead[-1], query=turned(self.query), out=turned(self.out),
            mask=None if self.mask is None else turned(self.mask),
            key=replace(self.key, lead=self.key.lead[:-1]), value=replace(self.value, lead=self.value.lead[:-1]),
        )  # fmt: skip

    @property
    def arguments(self) -> tuple[Strided, ...]:
        """Operands and result in the order of the call's words."""
        return tuple(x for x in (self.query, self.key, self.value, self.mask, self.out, self.logsumexp) if x is not None)

    @property
    def group_rows(self) -> int:
        """Query rows of a group."""
        return self.vectors * self.lanes

    @property
    def item_rows(self) -> int:
        """Query rows of a work item."""
        return self.groups * self.group_rows

    @property
    def copies_keys(self) -> bool:
        """Whether blocks of keys are copied: to convert them."""
        return self.key.memory != self.element

    @property
    def copies_values(self) -> bool:
        """Whether blocks of values are copied: to convert them, or because the same column of all rows, which is read in one go,
        falls into the same few lines of the first cache.
        """
        step, size = self.value.row, ELEMENT_BITS[self.value.memory] // 8
        return self.value.memory != self.element or (isinstance(step, int) and step > 0 and step * size % PAGE == 0)

    @property
    def argument_names(self) -> list[tuple[str, str]]:
        """The arguments of a function for one work item, as `Emitter.func` takes them."""
        masks, sums = (["mask"] if self.mask is not None else []), (["logsumexp"] if self.logsumexp is not None else [])
        names = ["words", "query", "key", "value", *masks, "out", *sums]
        return [*((name, "ptr") for name in names), ("row", "i64"), ("rows", "i64")]

    def may_be_few(self) -> bool:
        """Whether there may be so few query rows that each is worked on alone."""
        few = not isinstance(self.length, int) or self.length <= self.few
        return few and self.few > 0 and self.suits_rows

    @property
    def suits_rows(self) -> bool:
        """Whether keys, values and mask lie as `attention_rows` reads them."""
        wide = min(self.width, self.depth) >= self.lanes
        keys = self.key.column == 1 or self.keys_lie_along_lanes
        return wide and keys and self.value.column == 1 and (self.mask is None or self.mask.column in (0, 1))

    @property
    def keys_lie_along_lanes(self) -> bool:
        """Whether keys are the columns of a transposed matrix."""
        return self.key.row == 1 and self.key.column != 1

    def may_be_many(self) -> bool:
        """Whether there may be too many query rows for that."""
        return not self.few or not self.suits_rows or not isinstance(self.length, int) or self.length > self.few

    @property
    def mask_of_keys(self) -> bool:
        """Whether a mask is the same for all query rows."""
        return self.mask is not None and self.mask.row == 0


class Numbers:
    """Sizes and strides as values in an open function, and the arithmetic that all kernels of attention share."""

    def __init__(self, e: Emitter, problem: Problem, words: Value) -> None:
        self.e, self.problem = e, problem
        first = len(problem.arguments)
        sizes = {name: e.load(words, first + k, "i64") for k, name in enumerate(problem.sizes)}
        self.index = IndexWriter(e, sizes.__getitem__, NO_EXTENTS)

    def value(self, dim: Dim) -> Value:
        """A size or stride as an i64."""
        number = self.index.write(dim)
        return number if isinstance(number, Value) else self.e.constant(number, "i64")

    def heads(self, item: Value, pointers: Sequence[Value]) -> list[Value]:
        """The addresses of the matrices of head number `item`."""
        e, problem = self.e, self.problem
        offsets: list[Number] = [0] * len(pointers)
        for dimension in reversed(range(len(problem.lead))):
            size = problem.lead[dimension]
            if size == 1:
                continue
            digit = e.rem(item, self.value(size))
            item = e.div(item, self.value(size))
            for position, operand in enumerate(problem.arguments):
                step = self.index.times(digit, self.index.write(operand.lead[dimension]))
                offsets[position] = self.index.plus(offsets[position], step)
        return [e.offset(p, o, operand.memory) for p, o, operand in zip(pointers, offsets, problem.arguments)]

    def place(self, strides: tuple[Dim, Dim], row: Number, column: Number) -> Number:
        """Elements from the first to the one at (row, column)."""
        row_step, column_step = (self.index.write(stride) for stride in strides)
        return self.index.plus(self.index.times(row, row_step), self.index.times(column, column_step))

    def splat(self, number: float) -> Value:
        """The same number in all lanes."""
        return self.e.constant(number, self.problem.element, self.problem.lanes)

    def load(self, pointer: Value, at: Number, memory: str, lanes: int = 0) -> Value:
        """Elements from memory as what is computed in."""
        return self.e.convert(self.e.load(pointer, at, memory, lanes), self.problem.element)

    def multiply_add(self, a: Value, b: Value, c: Value) -> Value:
        """a * b + c; without the instruction for it, in two roundings."""
        return self.e.fma(a, b, c) if self.problem.machine.has_fma else a * b + c

    def larger(self, a: Value, b: Value) -> Value:
        """The larger, in one instruction; b if either is NaN: the exponentials carry NaN on."""
        return self.e.select(self.e.compare("gt", a, b), a, b)

    def finite_maximum(self, largest: Value) -> Value:
        """What is subtracted from scores: their maximum, 0 where no key was seen."""
        return self.e.select(self.e.compare("eq", largest, NEGATIVE_INFINITY), 0.0, largest)

    def reciprocal(self, total: Value) -> Value:
        """1 / the sum of exponentials; where nothing was seen, 1 if that gives zeros by the op's meaning."""
        problem = self.problem
        if problem.mask is not None or problem.causal or not isinstance(problem.seen, int) or problem.seen == 0:
            may_be_none = problem.mask is not None or problem.causal
            nothing = self.e.compare("eq", total, 0.0)
            if not may_be_none:
                empty = self.e.compare("eq", self.value(problem.seen), 0)
                nothing = self.e.bit_and(nothing, self.e.broadcast(empty, total.lanes) if total.lanes else empty)
            total = self.e.select(nothing, 1.0, total)
        return 1.0 / total

    def hidden(self, kept: Value, score: Value) -> Value:
        """The score where a bool mask keeps it, else -inf."""
        return self.e.select(kept, score, NEGATIVE_INFINITY)

    def windows(self, count: Number, step: int, body: Callable[[Number, int], None], surely: bool = False) -> None:
        """`body(start, size)` for windows of `step` that cover [0, count), the last one moved back so that it fits.

        What two windows share is done twice. Fewer than `step` (never, if `surely`) are done one by one.
        """
        e = self.e
        if isinstance(count, int):
            surely = count >= step
            count = e.constant(count, "i64")
        if surely:
            with e.for_loop(0, count, step) as loop:
                body(e.minimum(loop.index, count - step), step)
            return
        enough = e.compare("ge", count, step)
        with e.for_loop(0, e.select(enough, count, 0), step) as loop:
            body(e.minimum(loop.index, count - step), step)
        with e.for_loop(0, e.select(enough, 0, count)) as loop:
            body(loop.index, 1)
