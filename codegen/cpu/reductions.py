"""Accumulators: how a reduction is carried through its loops, and how its lanes become one value at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from dlcompiler.codegen.cpu.emitter import Value
from dlcompiler.codegen.cpu.scalars import compute, element_name
from dlcompiler.ir import kernel as K
from dlcompiler.ir.expression import Dim, symbol
from dlcompiler.ir.types import DType, contiguous_strides

if TYPE_CHECKING:
    from dlcompiler.codegen.cpu.writer import KernelWriter

_COMBINE = {"add": "add", "mul": "mul", "max": "maximum", "min": "minimum", "and": "bitwise_and", "or": "bitwise_or"}


def identity(kind: str, dtype: DType):
    """What a reduction of nothing gives."""
    match kind:
        case "add" | "or":
            return 0
        case "mul" | "and":
            return 1
    lowest = kind in ("max", "argmax")
    if dtype.is_float:
        return -np.inf if lowest else np.inf
    if dtype.kind == "bool":
        return 0 if lowest else 1
    info = np.iinfo(dtype.numpy)
    return int(info.min if lowest else info.max)


class Accumulator:
    """State of one reduction: `copies` vectors (or scalars) carried through the loops, and one scalar for the elements that no
    vector holds on machines without masks."""

    def __init__(self, writer: KernelWriter, reduce: K.Reduce, copies: int, width: int) -> None:
        self.writer = writer
        self.e = writer.e
        self.reduce = reduce
        self.copies = copies
        self.width = width
        self.dtype = reduce.operand.dtype
        self.needs_scalar = writer.schedule.vector_is_reduced and not writer.has_masks and width > 0

    @property
    def size(self) -> int:
        return self.copies + self.needs_scalar

    def initial(self) -> list[Value]:
        e, element = self.e, element_name(self.dtype)
        start = identity(self.reduce.kind, self.dtype)
        state = [e.constant(start, element, self.width) for _ in range(self.copies)]
        return state + ([e.constant(start, element)] if self.needs_scalar else [])

    def step(self, state: list[Value], operand: tuple[Value, ...]) -> list[Value]:
        """One point of the loops: the operand's copies into the accumulators of the same number."""
        w, e = self.writer, self.e
        lanes = w.lanes
        if self.needs_scalar and not lanes.width:
            return [*state[:-1], self.combine(state[-1], operand[0])]
        following = list(state)
        for copy in range(lanes.copies if self.width else 1):
            x = operand[copy] if len(operand) > 1 else operand[0]
            if self.width:
                x = e.broadcast(x, self.width)
            if lanes.mask is not None and w.schedule.vector_is_reduced:
                x = e.select(lanes.mask, x, e.constant(identity(self.reduce.kind, self.dtype), x))
            following[copy] = self.combine(state[copy], x)
        return following

    def combine(self, a: Value, b: Value) -> Value:
        return compute(self.e, _COMBINE[self.reduce.kind], self.dtype, a, b)

    def finish(self, state: list[Value]) -> tuple[Value, ...]:
        """The reduction's value: a scalar if the lanes ran along a reduced axis, else one vector for each copy."""
        if not self.writer.schedule.vector_is_reduced:
            return tuple(state)
        vectors = state[: self.copies]
        while len(vectors) > 1:
            vectors = [
                self.combine(*pair) if len(pair) == 2 else pair[0]
                for pair in (vectors[k : k + 2] for k in range(0, len(vectors), 2))
            ]
        result = self._across(vectors[0]) if self.width else vectors[0]
        if self.needs_scalar:
            result = self.combine(result, state[-1])
        return (result,)

    def _across(self, vector: Value) -> Value:
        kind = {"and": "and", "or": "or"}.get(self.reduce.kind, self.reduce.kind)
        return self.e.reduce(kind, vector, signed=self.dtype.is_signed)


class PositionAccumulator(Accumulator):
    """argmax and argmin: pairs of the best value so far and its position. NaN beats all; of equal values the first wins."""

    @property
    def size(self) -> int:
        return 2 * (self.copies + self.needs_scalar)

    def initial(self) -> list[Value]:
        e = self.e
        count = self.copies + self.needs_scalar
        values = super().initial()
        widths = [self.width] * self.copies + ([0] if self.needs_scalar else [])
        # beyond every real position, so that a real element of the same value wins
        return values + [e.constant(np.iinfo(np.int64).max, "i64", widths[k]) for k in range(count)]

    def _position(self, copy: int) -> Value:
        """Row-major position over the reduced axes, of each lane of a copy."""
        w = self.writer
        extents = tuple(w.kernel.extents[a] for a in self.reduce.over)
        place: Dim = 0
        for axis, stride in zip(self.reduce.over, contiguous_strides(extents)):
            place = place + symbol(axis) * stride
        number = w.lane_index(place, copy)
        return number if isinstance(number, Value) else self.e.constant(number, "i64")

    def step(self, state: list[Value], operand: tuple[Value, ...]) -> list[Value]:
        w, e = self.writer, self.e
        lanes = w.lanes
        count = self.copies + self.needs_scalar
        values, places = list(state[:count]), list(state[count:])
        if self.needs_scalar and not lanes.width:
            values[-1], places[-1] = self._better(values[-1], places[-1], operand[0], self._position(0))
            return values + places
        for copy in range(lanes.copies if self.width else 1):
            x, place = operand[copy] if len(operand) > 1 else operand[0], self._position(copy)
            if self.width:
                x, place = e.broadcast(x, self.width), e.broadcast(place, self.width)
            if lanes.mask is not None and w.schedule.vector_is_reduced:
                x = e.select(lanes.mask, x, e.constant(identity(self.reduce.kind, self.dtype), x))
                place = e.select(lanes.mask, place, e.constant(np.iinfo(np.int64).max, place))
            values[copy], places[copy] = self._better(values[copy], places[copy], x, place)
        return values + places

    def _better(self, a: Value, place_a: Value, b: Value, place_b: Value) -> tuple[Value, Value]:
        """The pair that wins; associative and commutative, so lanes may be combined in any order."""
        e = self.e
        wins = e.compare("gt" if self.reduce.kind == "argmax" else "lt", b, a, signed=self.dtype.is_signed)
        equal = e.compare("eq", a, b)
        if self.dtype.is_float:
            nan_a, nan_b = e.is_nan(a), e.is_nan(b)
            wins = e.bit_or(e.bit_and(wins, e.bit_not(nan_a)), e.bit_and(nan_b, e.bit_not(nan_a)))
            equal = e.bit_or(equal, e.bit_and(nan_a, nan_b))
        wins = e.bit_or(wins, e.bit_and(equal, e.compare("lt", place_b, place_a)))
        return e.select(wins, b, a), e.select(wins, place_b, place_a)

    def finish(self, state: list[Value]) -> tuple[Value, ...]:
        count = self.copies + self.needs_scalar
        pairs = list(zip(state[:count], state[count:]))
        if not self.writer.schedule.vector_is_reduced:
            return tuple(place for _, place in pairs)
        scalar = pairs.pop() if self.needs_scalar else None
        best = pairs[0]
        for pair in pairs[1:]:
            best = self._better(*best, *pair)
        if self.width:
            best = self._across_pairs(*best)
        if scalar is not None:
            best = self._better(*best, *scalar)
        return (best[1],)

    def _across_pairs(self, value: Value, place: Value) -> tuple[Value, Value]:
        e, lanes = self.e, value.lanes
        while lanes > 1:
            lanes //= 2
            low, high = range(lanes), range(lanes, 2 * lanes)
            halves = [(e.shuffle(value, value, list(r)), e.shuffle(place, place, list(r))) for r in (low, high)]
            value, place = self._better(*halves[0], *halves[1])
        return e.extract(value, 0), e.extract(place, 0)


def accumulator_for(writer: KernelWriter, reduce: K.Reduce, copies: int, width: int) -> Accumulator:
    """The accumulator of a reduction's kind."""
    kind = PositionAccumulator if reduce.kind in ("argmax", "argmin") else Accumulator
    return kind(writer, reduce, copies, width)
