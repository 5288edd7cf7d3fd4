"""Running sums, products, extremes: `scan` and `running_extreme`.

Along an axis that is not innermost, neighbouring lanes hold neighbouring rows, and the state is carried in registers. Along the
innermost axis a vector is scanned in its register in log2(lanes) rounds (Hillis and Steele 1986, "Data parallel algorithms"),
and what the vectors before it gave is combined with all of its lanes. Rows are shared among threads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from dlcompiler.codegen.cpu.emitter import Emitter, Value
from dlcompiler.codegen.cpu.indexing import Number
from dlcompiler.codegen.cpu.machine import Machine
from dlcompiler.codegen.cpu.routines import Written
from dlcompiler.codegen.cpu.routines.frame import Argument, Frame, elements
from dlcompiler.codegen.cpu.routines.order import element_of_key, key_bits, make_key
from dlcompiler.codegen.cpu.scalars import compute, convert, element_name
from dlcompiler.ir.expression import Dim, floor_div
from dlcompiler.ir.graph import Node
from dlcompiler.ir.ops.scan import neutral, scan_dtype
from dlcompiler.ir.program import RoutineCall
from dlcompiler.ir.types import DType, TensorType, compute_dtype, i32, i64

State = tuple[Value, ...]
# Elements below which a second thread does not pay.
GRAIN_ELEMENTS = 1 << 14


class Rule(ABC):
    """How states combine. `dtypes` are of the state's parts; `enter` makes a state of elements, `leave` results of a state."""

    dtypes: tuple[DType, ...]
    neutral: tuple[float | int, ...]

    @abstractmethod
    def enter(self, e: Emitter, x: Value, place: Value) -> State: ...

    @abstractmethod
    def combine(self, e: Emitter, before: State, after: State) -> State: ...

    def leave(self, e: Emitter, state: State) -> State:
        return state


class Plain(Rule):
    """add, mul, max, min: the state is the value itself."""

    def __init__(self, kind: str, dtype: DType) -> None:
        self.operation = {"max": "maximum", "min": "minimum"}.get(kind, kind)
        self.dtypes, self.neutral = (dtype,), (neutral(kind, dtype),)

    def enter(self, e: Emitter, x: Value, place: Value) -> State:
        return (x,)

    def combine(self, e: Emitter, before: State, after: State) -> State:
        return (compute(e, self.operation, self.dtypes[0], before[0], after[0]),)


class LogAddExp(Rule):
    """The largest exponent m and the sum s of exp(x - m): log-sum-exp is m + log(s)."""

    def __init__(self, dtype: DType) -> None:
        self.dtypes, self.neutral = (dtype, dtype), (neutral("logaddexp", dtype), 0.0)

    def enter(self, e: Emitter, x: Value, place: Value) -> State:
        return x, e.constant(1.0, x)

    def combine(self, e: Emitter, before: State, after: State) -> State:
        dtype = self.dtypes[0]
        largest = e.maximum(before[0], after[0])

        def part(state: State) -> Value:
            # two equal infinities are no distance apart
            gap = e.select(e.compare("eq", state[0], largest), e.constant(0.0, largest), state[0] - largest)
            return compute(e, "exp", dtype, gap) * state[1]

        return largest, part(before) + part(after)

    def leave(self, e: Emitter, state: State) -> State:
        return (state[0] + compute(e, "log", self.dtypes[0], state[1]),)


class Running(Rule):
    """The extreme and its place; of equal elements the later, and NaN before any number."""

    def __init__(self, dtype: DType, largest: bool) -> None:
        self.largest = largest
        # as wide as the elements, so that both fill the same registers
        self.dtypes = (dtype, i64 if dtype.bits == 64 else i32)
        self.neutral = (neutral("max" if largest else "min", dtype), -1)

    def enter(self, e: Emitter, x: Value, place: Value) -> State:
        return x, e.convert(place, element_name(self.dtypes[1]))

    def combine(self, e: Emitter, before: State, after: State) -> State:
        beats = e.compare("ge" if self.largest else "le", after[0], before[0], signed=self.dtypes[0].is_signed)
        if self.dtypes[0].is_float:
            beats = e.bit_or(e.is_nan(after[0]), e.bit_and(beats, e.bit_not(e.is_nan(before[0]))))
        # the neutral element stands for nothing at all
        beats = e.bit_and(beats, e.compare("ge", after[1], 0))
        return tuple(e.select(beats, b, a) for a, b in zip(before, after))


class Packed(Rule):
    """A running extreme of elements of up to 32 bits: key and place in one integer, whose largest is the answer.

    The later of equal elements is the larger; a NaN's key is the largest of all.
    """

    def __init__(self, dtype: DType, largest: bool) -> None:
        self.dtype, self.largest = dtype, largest
        self.dtypes, self.neutral = (i64,), (-(1 << 63),)

    def enter(self, e: Emitter, x: Value, place: Value) -> State:
        key = make_key(e, x, self.dtype, not self.largest)
        if self.dtype.is_float and not self.largest:
            key = e.select(e.is_nan(x), (1 << 31) - 1, key)
        return (e.bit_or(e.shl(e.convert(key, "i64"), 32), place),)

    def combine(self, e: Emitter, before: State, after: State) -> State:
        return (e.maximum(before[0], after[0]),)


def rule_of(call: RoutineCall | Node, dtype: DType) -> Rule:
    attributes = call.attributes
    if "largest" in attributes:
        return Running(compute_dtype(dtype), attributes["largest"])
    kind = attributes["kind"]
    wide = scan_dtype(dtype, kind)
    return LogAddExp(wide) if kind == "logaddexp" else Plain(kind, wide)


class ScanRoutine:
    """Both ops; see the module."""

    def applies(self, node: Node, machine: Machine) -> bool:
        (x,), axis = node.inputs, node.attributes["axis"]
        # positions take registers and time of their own: one row alone is as quick in a plain loop
        alone = node.op.name == "running_extreme" and elements([n for d, n in enumerate(x.shape) if d != axis]) == 1
        return x.dtype.kind in ("float", "int", "uint") and not alone

    def scratch(self, node: Node, machine: Machine) -> Sequence[TensorType]:
        return ()

    def write(self, e: Emitter, call: RoutineCall, machine: Machine, name: str) -> Written:
        with e.func(name, [("words", "ptr"), ("low", "i64"), ("high", "i64")]) as (words, low, high):
            return _ScanWriter(e, call, machine, words).write(low, high)


class _ScanWriter:
    def __init__(self, e: Emitter, call: RoutineCall, machine: Machine, words: Value) -> None:
        self.e, self.call, self.machine = e, call, machine
        self.frame = Frame(e, call, words)
        self.x, self.outs = self.frame.arguments[0], self.frame.arguments[1:]
        self.shape = call.reads[0].shape
        self.axis = call.attributes["axis"]
        self.exclusive = bool(call.attributes.get("exclusive"))
        self.reverse = bool(call.attributes.get("reverse"))
        self.rule = rule_of(call, self.x.dtype)
        self.lanes = machine.lanes(max(self.rule.dtypes[0].bytes, 4))
        self.others = [d for d in range(len(self.shape)) if d != self.axis]

    def write(self, low: Value, high: Value) -> Written:
        lane = self._lane_dimension()
        length = self.shape[self.axis]
        if lane is None:
            if isinstance(self.rule, Running) and key_bits(self.x.dtype) == 32:
                self.rule = Packed(compute_dtype(self.x.dtype), self.rule.largest)
                self.lanes = self.machine.lanes(8)
            return self._along(low, high, length)
        return self._across(low, high, length, lane)

    def _lane_dimension(self) -> int | None:
        """A dimension of neighbours in memory other than the axis itself, not too short to fill lanes."""
        for d in self.others:
            size = self.shape[d]
            if all(a.view.strides[d] == 1 for a in (self.x, *self.outs)) and (not isinstance(size, int) or size > 1):
                return d
        return None

    # -- lanes across rows -------------------------------------------------------------------------------------------------

    def _across(self, low: Value, high: Value, length: Dim, lane: int) -> Written:
        e, lanes = self.e, self.lanes
        size = self.shape[lane]
        copies = 4 if not isinstance(size, int) or size >= 4 * lanes else max(-(-size // lanes), 1)
        width = copies * lanes
        rest = [d for d in self.others if d != lane]
        sizes = [*(self.shape[d] for d in rest), floor_div(size + width - 1, width)]
        with e.for_loop(low, high) as loop:
            *outer, block = self.frame.place(loop.index, sizes)
            first = self.frame.index.times(block, width)
            place: list[Number] = [0] * len(self.shape)
            for d, number in zip((*rest, lane), (*outer, first)):
                place[d] = number
            left = self.frame.index.plus(self.frame.size(size), self.frame.index.times(first, -1))
            whole = e.compare("ge", left, width)
            masks = [e.create_mask(e.sub(left, lanes * k), lanes) for k in range(copies)]
            e.if_else(whole, lambda: self._column(place, copies, None), lambda: self._column(place, copies, masks))
        work = elements(sizes)
        each = length * width if isinstance(length, int) else 64 * width
        return Written(work, max(GRAIN_ELEMENTS // max(each, 1), 1), f"{width} rows at a time, axis {self.axis} in registers")

    def _column(self, place: list[Number], copies: int, masks: list[Value] | None) -> tuple[Value, ...]:
        """All of the axis for one block of neighbouring rows."""
        e, lanes = self.e, self.lanes
        states = [self._neutral(lanes) for _ in range(copies)]
        flat = [part for state in states for part in state]
        parts = len(states[0])
        starts = [a.offset(place) for a in (self.x, *self.outs)]
        with e.for_loop(0, self.frame.size(self.shape[self.axis]), 1, flat) as loop:
            at = self._position(loop.index)
            offsets = [self._moved(a, start, at) for a, start in zip((self.x, *self.outs), starts)]
            following: list[Value] = []
            for k in range(copies):
                mask = None if masks is None else masks[k]
                state = tuple(loop.carried[k * parts : (k + 1) * parts])
                shifted = [self.frame.index.plus(o, k * lanes) for o in offsets]
                new = self._enter(shifted[0], lanes, mask, e.broadcast(at, lanes))
                after = self.rule.combine(e, state, new)
                self._store(state if self.exclusive else after, shifted[1:], [1] * len(self.outs), mask)
                following += after
            loop.next(*following)
        return ()

    # -- along the innermost axis --------------------------------------------------------------------------------------------

    def _along(self, low: Value, high: Value, length: Dim) -> Written:
        e, lanes = self.e, self.lanes
        sizes = [self.shape[d] for d in self.others]
        with e.for_loop(low, high) as loop:
            place: list[Number] = [0] * len(self.shape)
            for d, number in zip(self.others, self.frame.place(loop.index, sizes)):
                place[d] = number
            count = self.frame.size(length)
            whole = e.sub(count, e.rem(count, lanes))
            starts = [a.offset(place) for a in (self.x, *self.outs)]
            state = self._neutral(lanes)
            with e.for_loop(0, whole, lanes, state) as inner:
                inner.next(*self._vector(inner.index, starts, tuple(inner.carried), None))
            rest = e.sub(count, whole)
            with e.if_then(e.compare("gt", rest, 0)):
                self._vector(whole, starts, inner.results, e.create_mask(rest, lanes))
        each = length if isinstance(length, int) else 64
        return Written(
            elements(sizes), max(GRAIN_ELEMENTS // max(each, 1), 1), f"rows one by one, {lanes} elements scanned in a register"
        )

    def _vector(self, index: Value, starts: Sequence[Number], before: State, mask: Value | None) -> State:
        """Scan `lanes` elements from `index` on; the new state of everything up to there, in every lane."""
        e, lanes = self.e, self.lanes
        first = self._position(index)
        step = -1 if self.reverse else 1
        places = e.add(e.broadcast(first, lanes), e.mul(e.iota(lanes), step))
        strides = [self.frame.index.times(a.strides[self.axis], step) for a in (self.x, *self.outs)]
        offsets = [self._moved(a, start, first) for a, start in zip((self.x, *self.outs), starts)]
        x = self.x.load(offsets[0], lanes, strides[0], mask, None if isinstance(self.rule, Packed) else self.rule.dtypes[0])
        state = self.rule.enter(e, x, places)
        if mask is not None:
            state = tuple(e.select(mask, s, n) for s, n in zip(state, self._neutral(lanes)))
        places_back = 1
        while places_back < lanes:
            state = self.rule.combine(e, self._shifted(state, places_back), state)
            places_back *= 2
        total = self.rule.combine(e, before, state)
        shown = self.rule.combine(e, before, self._shifted(state, 1)) if self.exclusive else total
        if isinstance(self.rule, Packed):
            self._store_packed(shown[0], starts[0], offsets[1:], strides[1:], mask)
        else:
            self._store(shown, offsets[1:], strides[1:], mask)
        return tuple(e.shuffle(part, part, [lanes - 1] * lanes) for part in total)

    def _store_packed(
        self, state: Value, start: Number, offsets: Sequence[Number], strides: Sequence[Number], mask: Value | None
    ) -> None:
        """The element at each lane's place, and the place."""
        e, own = self.e, self.x.dtype
        assert isinstance(self.rule, Packed)
        dtype, largest = self.rule.dtype, self.rule.largest
        place = e.bit_and(state, 0xFFFFFFFF)
        held = e.convert(e.shr(state, 32), "i32")
        key = held if largest else e.bit_not(held)
        value = element_of_key(e, key, dtype)

        def again() -> tuple[Value, ...]:
            same = self.x.load_at(start, self.frame.index.times(place, self.x.strides[self.axis]), mask)
            return (convert(e, e.bitcast(same, element_name(own)), own, dtype),)

        if dtype.is_float:  # zeros have signs, and NaNs bits
            special = e.bit_or(e.compare("eq", key, 0), e.compare("eq", held, (1 << 31) - 1))
            (value,) = e.if_else(e.any(special), again, lambda: (value,))
        self.outs[0].store(value, offsets[0], strides[0], mask, dtype)
        self.outs[1].store(place, offsets[1], strides[1], mask)

    def _shifted(self, state: State, places: int) -> State:
        """Each lane has what the lane `places` before it had; the first ones nothing."""
        lanes = self.lanes
        pattern = [lane + lanes - places for lane in range(lanes)]
        return tuple(self.e.shuffle(empty, part, pattern) for part, empty in zip(state, self._neutral(lanes)))

    # -- both ------------------------------------------------------------------------------------------------------------------

    def _neutral(self, lanes: int) -> State:
        return tuple(self.e.constant(n, element_name(d), lanes) for n, d in zip(self.rule.neutral, self.rule.dtypes))

    def _position(self, step: Value) -> Value:
        """Where on the axis the scan is after so many steps."""
        return self.e.sub(self.e.sub(self.frame.size(self.shape[self.axis]), 1), step) if self.reverse else step

    def _moved(self, argument: Argument, start: Number, at: Value) -> Number:
        return self.frame.index.plus(start, self.frame.index.times(at, argument.strides[self.axis]))

    def _enter(self, offset: Number, lanes: int, mask: Value | None, place: Value, stride: Number = 1) -> State:
        return self.rule.enter(self.e, self.x.load(offset, lanes, stride, mask, self.rule.dtypes[0]), place)

    def _store(self, state: State, offsets: Sequence[Number], strides: Sequence[Number], mask: Value | None) -> None:
        for value, dtype, out, offset, stride in zip(
            self.rule.leave(self.e, state), self.rule.dtypes, self.outs, offsets, strides
        ):
            out.store(value, offset, stride, mask, dtype)
