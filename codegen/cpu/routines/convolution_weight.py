"""The gradient of a convolution's weight, by direct sums or by Winograd's algorithm.

    for each work item, a block of input channels for a panel of output channels:
        sums[channel, tap, :] = 0
        for each block of places of the convolution's result, as many as stay in the first cache:
            for each tap, for each tile of channels:
                sums[channels, tap, :] += x[places moved by the tap, channels] (outer product) dy[places, panel]
        turn the sums into dw[output channel, channel, tap]

A tile of channels by vectors of output channels stays in registers while the places of a block go by; only places whose input
exists are visited, so that padding costs nothing. Where a group has fewer output channels than a vector has lanes, several groups
share one, and each lane is given its own group's input by a shuffle. Depthwise convolutions are left to a library.

`convolution_weight_winograd` has the way with fewer multiplications.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dlcompiler.codegen.cpu.emitter import Emitter, Value
from dlcompiler.codegen.cpu.indexing import Number
from dlcompiler.codegen.cpu.routines.attention_lanes import turn
from dlcompiler.codegen.cpu.routines.convolution_weight_form import WeightProblem, weight_problem
from dlcompiler.codegen.cpu.routines.frame import Argument, Frame
from dlcompiler.ir.types import TensorType

if TYPE_CHECKING:
    from dlcompiler.codegen.cpu.machine import Machine
    from dlcompiler.codegen.cpu.routines import Written
    from dlcompiler.ir.graph import Node
    from dlcompiler.ir.program import RoutineCall

# Multiplications below which a second thread does not pay.
GRAIN_PRODUCTS = 1 << 20
# What a batch that is known when called is taken for.
GUESS_IMAGES = 8


class ConvolutionWeight:
    """The routine of the op `convolution_weight`."""

    def applies(self, node: Node, machine: Machine) -> bool:
        """Not for one tap over many channels: that is a matrix product, into which an optimizer's update may be fused. Nor for
        depthwise convolutions, in which two loads come on each multiplication here, and oneDNN is up to twice as quick.
        """
        x, dy = (operand.tensor for operand in node.inputs)
        problem = weight_problem(x, dy, node.attributes, machine)
        if problem is None or (problem.shared > 1 and problem.channels == 1):
            return False
        return problem.tap_count > 1 or problem.groups > 1 or problem.channels < problem.lanes

    def scratch(self, node: Node, machine: Machine) -> Sequence[TensorType]:
        return ()

    def write(self, e: Emitter, call: RoutineCall, machine: Machine, name: str) -> Written:
        """One function over blocks, panels and parts."""
        from dlcompiler.codegen.cpu.routines import Written
        from dlcompiler.codegen.cpu.routines.convolution_weight_winograd import WinogradSums, tiles_of

        x, dy = call.reads
        types = [TensorType(view.dtype, view.shape) for view in (x, dy)]
        problem = weight_problem(types[0], types[1], call.attributes, machine)
        assert problem is not None
        images = x.shape[0] if isinstance(x.shape[0], int) else GUESS_IMAGES
        tiles = tiles_of(problem, images, machine)
        if tiles is not None:
            problem = tiles.problem
        with e.func(name, [("words", "ptr"), ("low", "i64"), ("high", "i64")]) as (words, low, high):
            frame = Frame(e, call, words)
            writer = Sums(frame, problem, machine) if tiles is None else WinogradSums(frame, tiles, machine)
            with e.for_loop(low, high) as items:
                writer.item(items.index)
        places = images * problem.out[0] * problem.out[1] * problem.out[2]
        products = places * problem.block * problem.taps_at_once * problem.width
        way = "direct sums" if tiles is None else str(tiles)
        summary = (
            f"weight's gradient, {way}, {problem.block} channels by {problem.width}, {problem.lanes} lanes of {problem.element}"
        )
        return Written(problem.work, max(1, GRAIN_PRODUCTS // max(products, 1)), summary)


class Sums:
    """Writes the code of one work item: direct sums."""

    def __init__(self, frame: Frame, problem: WeightProblem, machine: Machine) -> None:
        self.frame, self.problem, self.machine = frame, problem, machine
        self.e = frame.e
        self.x, self.dy, self.out = frame.arguments
        self.sums = self.e.scratch(problem.element, problem.block * problem.taps_at_once * problem.width)

    def item(self, number: Value) -> None:
        """The item `number`: parts of the taps go first, then blocks of channels, panels, groups."""
        e, p = self.e, self.problem
        part, rest = e.rem(number, p.parts), e.div(number, p.parts)
        block, rest = e.rem(rest, p.blocks), e.div(rest, p.blocks)
        panel, self.group = e.rem(rest, p.panels), e.div(rest, p.panels)
        self.first_tap = part * p.taps_at_once
        self.tap_limit = e.minimum(e.sub(p.tap_count, self.first_tap), p.taps_at_once)
        self.first_channel = block * p.block
        self.channel_limit = e.minimum(e.sub(p.channels, self.first_channel), p.block)
        self.first_column = panel * p.width
        self.masks = self._masks()
        self.fill()
        self.store()

    def _masks(self) -> list[Value | None]:
        """Which columns of each vector exist; None for all."""
        e, p = self.e, self.problem
        if p.columns_together % p.width == 0:
            return [None] * p.vectors
        left = e.sub(p.columns_together, self.first_column)
        return [e.create_mask(left - v * p.lanes, p.lanes) for v in range(p.vectors)]

    def place(self, channel: Number, tap: Number) -> Value:
        """Where in `sums` the columns of a channel at a tap lie."""
        return self._number(self._plus(self._times(channel, self.problem.taps_at_once), tap)) * self.problem.width

    def _plus(self, a: Number, b: Number) -> Number:
        return self.frame.index.plus(a, b)

    def _times(self, a: Number, b: Number) -> Number:
        return self.frame.index.times(a, b)

    def _number(self, a: Number) -> Value:
        return a if isinstance(a, Value) else self.e.constant(a, "i64")

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        return self.e.fma(a, b, c) if self.machine.has_fma else a * b + c

    # -- sums ------------------------------------------------------------------------------------------------------------------

    def fill(self) -> None:
        """Make the sums of the item."""
        e, p = self.e, self.problem
        zero = e.constant(0.0, p.element, p.lanes)
        with e.for_loop(0, p.block * p.taps_at_once * p.width, p.lanes) as loop:
            e.store(zero, self.sums, loop.index)
        images = self.frame.size(self.x.view.shape[0])
        with e.for_loop(0, images, p.images) as outer, e.for_loop(0, p.out[0]) as depths:
            self.images = outer.index, e.minimum(outer.index + p.images, images)
            with e.for_loop(0, p.out[1], p.lines) as lines:
                bounds = lines.index, e.minimum(lines.index + p.lines, p.out[1])
                with e.for_loop(0, self.tap_limit) as taps:
                    self._tap(taps.index, depths.index, bounds)

    def _tap(self, tap: Value, depth: Value, lines: tuple[Value, Value]) -> None:
        """Add what a block of places gives to one tap."""
        e, p = self.e, self.problem
        whole = self.first_tap + tap
        third, rest = e.rem(whole, p.taps[2]), e.div(whole, p.taps[2])
        second, first = e.rem(rest, p.taps[1]), e.div(rest, p.taps[1])
        moved = [self._plus(self._times(k, d), -q) for k, d, q in zip((first, second, third), p.dilations, p.padding)]
        plane = e.add(depth * p.strides[0], moved[0])
        low, high = self._range(1, moved[1])
        rows = e.maximum(low, lines[0]), e.minimum(high, lines[1])
        columns = self._range(2, moved[2])

        def add() -> None:
            start = [self._times(at, self._stride(self.x, k)) for k, at in enumerate((plane, *moved[1:]))]
            at_x = self._plus(self._plus(start[0], start[1]), start[2])
            at_y = self._times(depth, self._stride(self.dy, 0))
            self._tiles(tap, at_x, at_y, rows, columns)

        if p.size[0] == 1 and p.taps[0] == 1:
            add()
            return
        with e.if_then(e.compare("ult", plane, p.size[0])):
            add()

    def _range(self, dimension: int, moved: Number) -> tuple[Value, Value]:
        """The places along a dimension whose input exists, for a tap that reads `moved` beyond place * stride."""
        e, step = self.e, self.problem.strides[dimension]
        size, out = self.problem.size[dimension], self.problem.out[dimension]
        # ceil(-moved / step) and floor((size - 1 - moved) / step) + 1, of numbers that are not negative
        back = self._number(self._times(moved, -1))
        low = e.div(e.maximum(back + (step - 1), 0), step)
        high = e.div(e.maximum(back + (size - 1 + step), 0), step)
        return low, e.minimum(high, out)

    def _stride(self, argument: Argument, dimension: int) -> Number:
        """Elements from one place to the next along depth, height or width; of dimensions that are not there 0."""
        strides = argument.strides[2:]
        missing = 3 - len(strides)
        return 0 if dimension < missing else strides[dimension - missing]

    def _tiles(self, tap: Value, at_x: Number, at_y: Number, rows: tuple[Value, Value], columns: tuple[Value, Value]) -> None:
        """All channels of the item."""
        e, p = self.e, self.problem
        if p.shared > 1:
            self._accumulate(self._shared_factors, 0, p.channels, tap, at_x, at_y, rows, columns)
            return
        whole = self.channel_limit - e.rem(self.channel_limit, p.rows)
        with e.for_loop(0, whole, p.rows) as loop:
            self._accumulate(self._factors, loop.index, p.rows, tap, at_x, at_y, rows, columns)
        rest = p.channels % p.rows
        if rest:
            with e.if_then(e.compare("lt", whole, self.channel_limit)):
                self._accumulate(self._factors, whole, rest, tap, at_x, at_y, rows, columns)

    def _accumulate(
        self,
        factors: Callable[[Value, Number, int], list[list[Value]]],
        channel: Number,
        height: int,
        tap: Value,
        at_x: Number,
        at_y: Number,
        rows: tuple[Value, Value],
        columns: tuple[Value, Value],
    ) -> None:
        """Add to `height` channels from `channel` on. `factors(at, channel, height)`: of each channel, one for each vector."""
        e, p = self.e, self.problem
        at = [self.place(self._plus(channel, k), tap) for k in range(height)]
        before = [e.load(self.sums, a + v * p.lanes, p.element, p.lanes) for a in at for v in range(p.vectors)]
        column = self._plus(self.first_column, self._times(self.group, p.columns) if p.shared == 1 else 0)
        x_line, y_line = (self._stride(a, 1) for a in (self.x, self.dy))
        x_step, y_step = (self._stride(a, 2) for a in (self.x, self.dy))
        with e.for_loop(*self.images, 1, before) as images:
            image_x = self._plus(self._times(images.index, self.x.strides[0]), at_x)
            image_y = self._plus(self._plus(self._times(images.index, self.dy.strides[0]), at_y), column)
            with e.for_loop(*rows, 1, images.carried) as lines:
                line_x = self._plus(image_x, self._times(lines.index, self._times(x_line, p.strides[1])))
                line_y = self._plus(image_y, self._times(lines.index, y_line))
                with e.for_loop(*columns, 1, lines.carried) as places:
                    here = self._plus(line_x, self._times(places.index, self._times(x_step, p.strides[2])))
                    there = self._plus(line_y, self._times(places.index, y_step))
                    slopes = [self._load(self.dy.pointer, self._plus(there, v * p.lanes), m) for v, m in enumerate(self.masks)]
                    inputs = factors(self._number(here), channel, height)
                    places.next(*(
                        self.fma(inputs[k][v], slopes[v], places.carried[k * p.vectors + v])
                        for k in range(height) for v in range(p.vectors)
                    ))  # fmt: skip
                lines.next(*places.results)
            images.next(*lines.results)
        for k, a in enumerate(at):
            for v in range(p.vectors):
                e.store(images.results[k * p.vectors + v], self.sums, a + v * p.lanes)

    def _load(self, pointer: Value, at: Number, mask: Value | None) -> Value:
        e, p = self.e, self.problem
        if mask is None:
            return e.load(pointer, at, p.element, p.lanes)
        return e.masked_load(pointer, at, mask, e.constant(0.0, p.element, p.lanes))

    def _factors(self, at: Value, channel: Number, height: int) -> list[list[Value]]:
        """One number of the input for all columns."""
        e, p = self.e, self.problem
        first = self._plus(self._plus(self.first_channel, channel), self._times(self.group, p.channels))
        start = self._plus(at, first)
        spread = [e.broadcast(e.load(self.x.pointer, self._plus(start, k), p.element), p.lanes) for k in range(height)]
        return [[number] * p.vectors for number in spread]

    def _shared_factors(self, at: Value, channel: Number, height: int) -> list[list[Value]]:
        """A vector of inputs, each lane its own group's."""
        e, p = self.e, self.problem
        span = p.shared * p.channels
        found: list[list[Value]] = [[] for _ in range(height)]
        for v, own_mask in enumerate(self.masks):
            first = e.div(self.first_column + v * p.lanes, p.columns) * p.channels
            held: Value | None = None
            if own_mask is not None:
                held = e.create_mask(e.minimum(e.sub(p.groups * p.channels, first), span), p.lanes)
            elif span != p.lanes:
                held = e.create_mask(span, p.lanes)
            inputs = self._load(self.x.pointer, e.add(at, first), held)
            for k in range(height):
                own = [(lane // p.columns) * p.channels + k for lane in range(p.lanes)]
                found[k].append(e.shuffle(inputs, inputs, own))
        return found

    # -- results ---------------------------------------------------------------------------------------------------------------

    def store(self) -> None:
        """Write dw[output channel, channel, tap] of the item, by tiles turned in registers where it lies row by row."""
        e, p = self.e, self.problem
        column = self._plus(self.first_column, self._times(self.group, p.columns) if p.shared == 1 else 0)
        done: Value = e.constant(0, "i64")
        if self._is_row_major() and p.parts == 1 and p.columns_together % p.width == 0:
            elements = self.channel_limit * p.tap_count
            done = elements - e.rem(elements, p.lanes)
            base = self._plus(self._times(column, self.out.strides[0]), self._times(self.first_channel, p.tap_count))
            with e.for_loop(0, done, p.lanes) as loop:
                for v in range(p.vectors):
                    at = loop.index * p.width + v * p.lanes
                    lines = [e.load(self.sums, at + k * p.width, p.element, p.lanes) for k in range(p.lanes)]
                    for k, line in enumerate(turn(e, lines)):
                        row = self._plus(base, self._times(self.out.strides[0], v * p.lanes + k))
                        e.store(line, self.out.pointer, self._plus(row, loop.index))
        with e.for_loop(done, self.channel_limit * self.tap_limit) as loop:
            channel, tap = e.div(loop.index, self.tap_limit), e.rem(loop.index, self.tap_limit)
            whole = self.first_tap + tap
            spatial: list[Number] = []
            for size in reversed(self.out.view.shape[2:]):
                assert isinstance(size, int)
                spatial.insert(0, e.rem(whole, size))
                whole = e.div(whole, size)
            target = self.out.offset([column, self.first_channel + channel, *spatial])
            source = self.place(channel, tap)
            for v, mask in enumerate(self.masks):
                value = e.load(self.sums, source + v * p.lanes, p.element, p.lanes)
                step = self.out.strides[0]
                self.out.store(value, self._plus(target, self._times(step, v * p.lanes)), step, mask)

    def _is_row_major(self) -> bool:
        from dlcompiler.ir.types import contiguous_strides

        view = self.out.view
        return tuple(view.strides) == contiguous_strides(view.shape)
