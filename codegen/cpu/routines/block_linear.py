"""Products with a weight of 2, 4 or 8 bits a number and a scale for each block: `block_linear`.

Codes lie in panels of words [panels, K / numbers of a word, W columns]: a word holds the next 32 / bits codes of one column, so a
load gives a vector of words, and shifts take that many vectors of numbers out of it. Two ways, by the number of rows:

    few    each tile of rows reads the words; products of one block are summed in registers, then scaled once and added to the
           rows' totals. What is read of the weight is little more than its bits, which is what a single row waits for
    many   some blocks of a panel are written out as float32 into a core's cache, scaled, and all rows multiplied with them: so
           codes are taken apart once, not once a tile. Totals lie in the result meanwhile

Both sum in parts: a block, or `CHUNK` products. Threads divide the panels, and where these are few for them also the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from dlcompiler.codegen.cpu.emitter import Emitter, Value
from dlcompiler.codegen.cpu.machine import Machine
from dlcompiler.codegen.cpu.routines import Written
from dlcompiler.codegen.cpu.routines.frame import Argument, Frame
from dlcompiler.codegen.schedule import size_estimate
from dlcompiler.ir.expression import Dim, floor_div, known, product, symbols
from dlcompiler.ir.graph import Builder, Node
from dlcompiler.ir.program import RoutineCall
from dlcompiler.ir.types import TensorType, f32

MOST_ROWS = 8  # of a tile
FEW_ROWS = 16  # up to which codes are taken apart for each tile
ROWS_OF_PART = 32  # for which a panel is written out, where panels alone are too few for all threads
CHUNK = 256  # summed positions written out at a time, in whole blocks
PART_WORK = 1 << 16  # multiply-adds that are worth a thread


@dataclass(frozen=True)
class Form:
    """What the code of one product depends on.

    rows       of x: all its dimensions but the last
    blocks     along K, of `block` positions each: the op's, or equal parts of those that are longer than `CHUNK`
    shared     blocks that one scale holds for
    vectors    of columns in a panel
    looks_up   whether one instruction finds all lanes' numbers in a register by the lowest four bits of their words
    """

    rows: Dim
    columns: int
    blocks: int
    block: int
    shared: int
    bits: int
    lanes: int
    vectors: int
    registers: int
    looks_up: bool
    cores: int

    @property
    def numbers(self) -> int:
        """Codes of a word."""
        return 32 // self.bits

    @property
    def words(self) -> int:
        """Words of a block of one column."""
        return self.block // self.numbers

    @property
    def width(self) -> int:
        """Columns of a panel."""
        return self.vectors * self.lanes

    @property
    def scales(self) -> int:
        """Scales of one column."""
        return self.blocks // self.shared

    @property
    def panels(self) -> int:
        return -(-self.columns // self.width)

    @property
    def chunk(self) -> int:
        """Blocks that are written out at a time."""
        return min(self.blocks, max(1, CHUNK // self.block))

    @property
    def parts(self) -> Dim:
        """Parts of the rows that are work items of their own: one where there are a few panels for each core."""
        return 1 if self.panels >= 4 * self.cores else floor_div(self.rows + ROWS_OF_PART - 1, ROWS_OF_PART)

    @cached_property
    def heights(self) -> tuple[int, ...]:
        """Rows of the tiles that rows are cut into, the highest first."""
        most = min(MOST_ROWS, (self.registers - 2 * self.vectors - 2) // self.vectors)
        powers = [height for height in (8, 4, 2, 1) if height <= most]
        if symbols(self.rows):
            return tuple(powers)
        return tuple(height for height in powers if height <= known(self.rows)) or (1,)

    @property
    def ways(self) -> tuple[bool, ...]:
        """Whether there may be few rows, and whether many."""
        if symbols(self.rows):
            return (True, True)
        return (known(self.rows) <= FEW_ROWS, known(self.rows) > FEW_ROWS)

    def word_panels(self, b: Builder, codes: Node) -> Node:
        """codes[N, bytes] as [panels, words of a column, W, 4], zeros beyond the last column."""
        words = self.blocks * self.words
        split = b.reshape(self._padded(b, codes), shape=(self.panels, self.width, words, 4))
        return b.permute(split, dims=(0, 2, 1, 3))

    def scale_panels(self, b: Builder, scales: Node) -> Node:
        """scales[N, count] as [panels, count, W]."""
        split = b.reshape(self._padded(b, scales), shape=(self.panels, self.width, self.scales))
        return b.permute(split, dims=(0, 2, 1))

    def _padded(self, b: Builder, rows: Node) -> Node:
        missing = self.panels * self.width - self.columns
        return b.pad(rows, low=(0, 0), high=(missing, 0), value=0) if missing else rows


def form_of(x_shape: Sequence[Dim], attributes: Mapping[str, object], machine: Machine) -> Form:
    """The form of a product with an operand x of this shape."""
    block, bits, columns = (attributes[name] for name in ("block", "bits", "columns"))
    assert isinstance(block, int) and isinstance(bits, int) and isinstance(columns, int)
    lanes, registers = machine.lanes(4), machine.vector_registers
    vectors = max(1, min(3 if registers >= 32 else 2, -(-columns // lanes)))
    looks_up = bits <= 4 and machine.vector_bytes == 64
    summed = min(block, CHUNK)
    return Form(
        product(x_shape[:-1]), columns, known(x_shape[-1]) // summed, summed, block // summed, bits, lanes, vectors, registers,
        looks_up, machine.cores,
    )  # fmt: skip


class BlockLinear:
    """The routine of `block_linear`."""

    def applies(self, node: Node, machine: Machine) -> bool:
        """float32, with sizes of the weight that are known, and blocks of whole words, long ones in whole chunks."""
        x, codes = node.inputs[0].tensor, node.inputs[1].tensor
        sizes_known = all(isinstance(size, int) and size > 0 for size in codes.shape)
        block, bits = node.attributes["block"], node.attributes["bits"]
        return x.dtype is f32 and sizes_known and block * bits % 32 == 0 and (block <= CHUNK or block % CHUNK == 0)

    def scratch(self, node: Node, machine: Machine) -> Sequence[TensorType]:
        return []

    def packing(self, node: Node, machine: Machine) -> Mapping[int, Callable[[Builder, Node], Node]]:
        """Codes and scales in panels."""
        form = form_of(node.inputs[0].shape, node.attributes, machine)
        return {1: form.word_panels, 2: form.scale_panels}

    def write(self, e: Emitter, call: RoutineCall, machine: Machine, name: str) -> Written:
        form = form_of(call.reads[0].shape, call.attributes, machine)
        _Writer(e, form, call, name).write()
        rows = size_estimate(form.rows) if form.parts == 1 else min(size_estimate(form.rows), ROWS_OF_PART)
        work = max(1, rows) * form.blocks * form.block * form.width
        ways = "/".join(way for way, used in zip(("words", "written out"), form.ways) if used)
        heights = "/".join(map(str, form.heights))
        summary = (
            f"{form.bits} bits in blocks of {form.block * form.shared}: {form.panels} panels of {form.width} columns, {ways}"
        )
        return Written(form.panels * form.parts, -(-PART_WORK // work), f"{summary}; tiles of {heights} rows")


class _Writer:
    """Writes the functions of one product."""

    def __init__(self, e: Emitter, form: Form, call: RoutineCall, name: str) -> None:
        self.e, self.form, self.call, self.name = e, form, call, name
        self.x_step, self.y_step = known(call.reads[0].strides[-1]), known(call.writes[0].strides[-1])

    def write(self) -> None:
        few, many = self.form.ways
        if few:
            for height in self.form.heights:
                self._write_words_tile(height)
        if many:
            self._write_unpack()
            for height in self.form.heights:
                self._write_tile(height)
        self._write_main(few, many)

    # -- pieces ------------------------------------------------------------------------------------------------------------------

    def _multiply_add(self, a: Value, b: Value, c: Value) -> Value:
        # without the instruction, `fma` would be a call for each lane
        return self.e.fma(a, b, c) if self.e.machine is None or self.e.machine.has_fma else a * b + c

    def _words(self, panel: Value, word: Value) -> list[Value]:
        """A word of each column."""
        e, form = self.e, self.form
        first = e.offset(panel, word * form.width, "i32")
        words = [e.load(first, v * form.lanes, "i32", form.lanes, alignment=4) for v in range(form.vectors)]
        if form.looks_up:
            return words
        # the highest bit of each code turned around: the code less 2 ** (bits - 1), in two's complement
        excess = sum(1 << (form.bits * (k + 1) - 1) for k in range(form.numbers))
        flip = e.constant(excess - (1 << 32), "i32", form.lanes)
        return [e.bit_xor(vector, flip) for vector in words]

    def _number(self, words: Value, place: int) -> Value:
        """One number of each word, as float32."""
        e, form = self.e, self.form
        if form.looks_up:
            zero = 1 << (form.bits - 1)
            # bits above a code of two belong to the next one
            table = e.constant([float(k % (2 * zero) - zero) for k in range(form.lanes)], "f32", form.lanes)
            below = e.shr(words, form.bits * place, signed=False) if place else words
            return e.intrinsic("llvm.x86.avx512.permvar.sf.512", table, below, like=table)
        above = 32 - form.bits * (place + 1)
        top = e.shl(words, above) if above else words
        return e.cast("arith.sitofp", e.shr(top, 32 - form.bits, signed=True), "f32")

    def _vectors(self, pointer: Value, first: Value) -> list[Value]:
        """The vectors of a panel's row of float32."""
        e, form = self.e, self.form
        start = e.offset(pointer, first, "f32")
        return [e.load(start, v * form.lanes, "f32", form.lanes, alignment=4) for v in range(form.vectors)]

    def _factors(self, scales: Value, block: Value) -> list[Value]:
        """The scales of a block."""
        number = self.e.div(block, self.form.shared) if self.form.shared > 1 else block
        return self._vectors(scales, number * self.form.width)

    def _multiply(self, sums: list[Value], rows: Sequence[Value], k: Value, columns: Sequence[Value]) -> None:
        """Add the products of the rows' numbers at k, in place."""
        e = self.e
        at = k * self.x_step if self.x_step != 1 else k
        for row, pointer in enumerate(rows):
            scalar = e.broadcast(e.load(pointer, at, "f32"), self.form.lanes)
            for v, vector in enumerate(columns):
                place = row * len(columns) + v
                sums[place] = self._multiply_add(scalar, vector, sums[place])

    def _mask(self, left: Value, vector: int) -> Value | None:
        """Which lanes of a panel's vector are columns, of `left` from the panel on; None for all."""
        form = self.form
        return None if form.columns % form.width == 0 else self.e.create_mask(left - vector * form.lanes, form.lanes)

    def _place(self, pointer: Value, vector: int) -> tuple[Value, Value]:
        """The address of a vector's first element in a row of the result, and each lane's distance from it."""
        e, form = self.e, self.form
        steps = e.constant([self.y_step * k for k in range(form.lanes)], "i64", form.lanes)
        return e.offset(pointer, vector * form.lanes * self.y_step, "f32"), steps

    def _read(self, pointer: Value, vector: int, left: Value) -> Value:
        e, lanes = self.e, self.form.lanes
        first, steps = self._place(pointer, vector)
        mask, zero = self._mask(left, vector), e.constant(0.0, "f32", lanes)
        if self.y_step != 1:
            return e.gather(first, 0, steps, e.constant(True, "i1", lanes) if mask is None else mask, zero)
        return e.load(first, 0, "f32", lanes) if mask is None else e.masked_load(first, 0, mask, zero)

    def _store(self, value: Value, pointer: Value, vector: int, left: Value) -> None:
        e, lanes = self.e, self.form.lanes
        first, steps = self._place(pointer, vector)
        mask = self._mask(left, vector)
        if self.y_step != 1:
            e.scatter(value, first, 0, steps, e.constant(True, "i1", lanes) if mask is None else mask)
        elif mask is None:
            e.store(value, first, 0)
        else:
            e.masked_store(value, first, 0, mask)

    def _zeros(self, count: int) -> list[Value]:
        return [self.e.constant(0.0, "f32", self.form.lanes)] * count

    # -- few rows ----------------------------------------------------------------------------------------------------------------

    def _write_words_tile(self, height: int) -> None:
        """`height` rows times one panel of words."""
        e, form = self.e, self.form
        count = height * form.vectors
        # few sums would wait for each other: then two of each, for even and odd positions
        sets = 2 if count < 8 else 1
        pointers = [(f"{kind}{row}", "ptr") for kind in "xy" for row in range(height)]
        arguments = [("panel", "ptr"), ("scales", "ptr"), ("left", "i64"), *pointers]
        with e.func(f"{self.name}_words{height}", arguments, inline=False) as (panel, scales, left, *given):
            rows, results = given[:height], given[height:]
            with e.for_loop(0, form.blocks, carried=self._zeros(count)) as blocks:
                first = blocks.index * form.words
                with e.for_loop(first, first + form.words, carried=self._zeros(count * sets)) as words:
                    sums = list(words.carried)
                    parts = [sums[count * part : count * (part + 1)] for part in range(sets)]
                    vectors = self._words(panel, words.index)
                    for place in range(form.numbers):
                        numbers = [self._number(vector, place) for vector in vectors]
                        self._multiply(parts[place % sets], rows, words.index * form.numbers + place, numbers)
                    words.next(*(value for part in parts for value in part))
                sums = list(words.results)
                if sets == 2:
                    sums = [e.add(a, b) for a, b in zip(sums[:count], sums[count:])]
                factors = self._factors(scales, blocks.index)
                totals = blocks.carried
                blocks.next(*(self._multiply_add(sums[k], factors[k % form.vectors], totals[k]) for k in range(count)))
            for k, total in enumerate(blocks.results):
                self._store(total, results[k // form.vectors], k % form.vectors, left)

    # -- many rows ---------------------------------------------------------------------------------------------------------------

    def _write_unpack(self) -> None:
        """Some blocks of a panel as float32 [positions, W]."""
        e, form = self.e, self.form
        arguments = [("panel", "ptr"), ("scales", "ptr"), ("target", "ptr"), ("first", "i64"), ("last", "i64")]
        with e.func(f"{self.name}_unpack", arguments, inline=False) as (panel, scales, target, first, last):
            with e.for_loop(first, last) as blocks:
                factors = self._factors(scales, blocks.index)
                start = blocks.index * form.words
                with e.for_loop(start, start + form.words) as words:
                    position = (words.index - first * form.words) * form.numbers
                    to = e.offset(target, position * form.width, "f32")
                    for v, vector in enumerate(self._words(panel, words.index)):
                        for place in range(form.numbers):
                            scaled = e.mul(self._number(vector, place), factors[v])
                            e.store(scaled, to, place * form.width + v * form.lanes)

    def _write_tile(self, height: int) -> None:
        """`height` rows times `count` positions of one panel written out, added to what is in the result if not `begins`."""
        e, form = self.e, self.form
        sums_count = height * form.vectors
        pointers = [(f"{kind}{row}", "ptr") for kind in "xy" for row in range(height)]
        arguments = [("panel", "ptr"), ("count", "i64"), ("begins", "i1"), ("left", "i64"), *pointers]
        with e.func(f"{self.name}_tile{height}", arguments, inline=False) as (panel, count, begins, left, *given):
            rows, results = given[:height], given[height:]
            # words hold four numbers or more, so the count is even
            with e.for_loop(0, count, 2, carried=self._zeros(sums_count)) as loop:
                sums = list(loop.carried)
                for k in range(2):
                    position = loop.index + k if k else loop.index
                    self._multiply(sums, rows, position, self._vectors(panel, position * form.width))
                loop.next(*sums)
            for k, total in enumerate(loop.results):
                pointer, vector = results[k // form.vectors], k % form.vectors

                def later(pointer: Value = pointer, vector: int = vector) -> list[Value]:
                    return [self._read(pointer, vector, left)]

                (before,) = e.if_else(begins, lambda: self._zeros(1), later)
                self._store(e.add(before, total), pointer, vector, left)

    # -- all -----------------------------------------------------------------------------------------------------------------

    def _write_main(self, few: bool, many: bool) -> None:
        e, form = self.e, self.form
        with e.func(self.name, [("args", "ptr"), ("low", "i64"), ("high", "i64")]) as (args, low, high):
            frame = Frame(e, self.call, args)
            x, codes, scales, y = frame.arguments
            rows = frame.size(form.rows)
            buffer = e.scratch("f32", form.chunk * form.block * form.width) if many else None
            parts = frame.size(form.parts)
            with e.for_loop(low, high) as items:
                panel = e.div(items.index, parts)
                first_row: Value = e.rem(items.index, parts) * ROWS_OF_PART
                rows_here = first_row, rows if form.parts == 1 else e.minimum(first_row + ROWS_OF_PART, rows)
                words = e.offset(codes.pointer, panel * (form.blocks * form.words * form.width), "i32")
                factors = e.offset(scales.pointer, panel * (form.scales * form.width), "f32")
                column = panel * form.width
                left = form.columns - column

                def direct() -> None:
                    def tile(height: int, addresses: Sequence[Value]) -> None:
                        e.call(f"{self.name}_words{height}", [words, factors, left, *addresses])

                    self._each_tile(frame, x, y, rows_here, e.constant(0, "i64"), column, tile)

                def written_out() -> None:
                    assert buffer is not None
                    with e.for_loop(0, form.blocks, form.chunk) as chunks:
                        first = chunks.index
                        last = e.minimum(first + form.chunk, form.blocks)
                        e.call(f"{self.name}_unpack", [words, factors, buffer, first, last])
                        count, begins = (last - first) * form.block, e.compare("eq", first, 0)

                        def tile(height: int, addresses: Sequence[Value]) -> None:
                            e.call(f"{self.name}_tile{height}", [buffer, count, begins, left, *addresses])

                        self._each_tile(frame, x, y, rows_here, first * form.block, column, tile)

                if few and many:
                    are_few = e.compare("le", rows, FEW_ROWS)
                    with e.if_then(are_few):
                        direct()
                    with e.if_then(e.bit_not(are_few)):
                        written_out()
                elif few:
                    direct()
                else:
                    written_out()

    def _each_tile(
        self, frame: Frame, x: Argument, y: Argument, rows: tuple[Value, Value], position: Value, column: Value,
        tile: Callable[[int, Sequence[Value]], None],
    ) -> None:  # fmt: skip
        """`tile(height, addresses)` for tiles that cover rows [first, last): of x at a position, then of y at a column."""
        e, form = self.e, self.form
        low, end = rows
        for height in form.heights:
            high = low + e.div(end - low, height) * height
            with e.for_loop(low, high, height) as loop:
                addresses = []
                for argument, last in ((x, position), (y, column)):
                    for k in range(height):
                        place = frame.place(loop.index + k if k else loop.index, argument.view.shape[:-1])
                        offset = argument.offset([*place, last])
                        addresses.append(e.offset(argument.pointer, offset, "f32"))
                tile(height, addresses)
            low = high
