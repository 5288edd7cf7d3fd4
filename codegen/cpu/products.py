"""How one step of a contraction multiplies: what is read of a row and of the columns, widened in registers, and added to sums.

    plain     sums += broadcast(x[k]) * columns[k]                         each lane one product
    groups    sums += x[k] * columns[k] + x[k+1] * columns[k+1] + ...      a lane holds `depth` narrow numbers side by side

A group of narrow numbers is as wide as a sum. It is read as one 32-bit number, of a row for all lanes, and either multiplied
whole by an instruction for such sums of products, or taken apart by shifts and multiplied part by part.

AVX512-VNNI's instruction multiplies unsigned bytes by signed ones and never saturates. Rows of signed bytes become unsigned by
adding 128 to each; one more row, all 128, says what has to be taken from the sums afterwards. AVX2's own instruction for bytes
saturates at 16 bits, so elsewhere bytes are widened to 16 bits, whose products fit. Integers are exact (sums modulo 2^32).

AVX512-BF16's instruction rounds each of its two additions to nearest even, as a multiply-add does (a product of two bfloat16 is
exact in float32), but takes denormal numbers for zero, in and out, whatever the processor's mode is. ATen's products of
bfloat16 use the same instruction. Taken apart, nothing is lost.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from dlcompiler.codegen.cpu import scalars
from dlcompiler.codegen.cpu.emitter import Emitter, Value
from dlcompiler.codegen.cpu.indexing import Number
from dlcompiler.codegen.cpu.machine import Machine
from dlcompiler.ir.types import DType, bf16, f32, i32

# Bits of a vector -> the function for its instruction that multiplies 16-bit numbers and adds neighbouring products.
PAIRS_OF_WORDS = {128: "llvm.x86.sse2.pmadd.wd", 256: "llvm.x86.avx2.pmadd.wd", 512: "llvm.x86.avx512.pmaddw.d.512"}
# The sign bits of four bytes: signed ones with these turned over are unsigned ones, 128 larger.
OFFSETS = 0x80808080


@dataclass(frozen=True)
class Factor:
    """How numbers of one factor lie: their type, and elements from one summed position to the next (in a group: 1)."""

    dtype: DType
    step: Number = 1

    @property
    def element(self) -> str:
        return scalars.element_name(self.dtype)


@dataclass(frozen=True)
class Product:
    """Multiplies `depth` summed positions in a step, `lanes` columns at once, into sums of dtype `total`."""

    e: Emitter
    machine: Machine
    rows: Factor
    columns: Factor
    total: DType
    lanes: int
    depth: int

    @property
    def form(self) -> str:
        """`bfloats` and `bytes`: an instruction for whole groups; `words`: one for pairs of 16 bits; else number by number."""
        rows, columns = self.rows.dtype, self.columns.dtype
        fills = self.depth > 1 and rows.bytes * self.depth == 4
        if fills and rows is bf16 and columns is bf16 and self.machine.has_bfloat_products and self.lanes == 16:
            return "bfloats"
        if fills and self.total is i32 and rows.bytes == columns.bytes == 1 and self.lanes * 32 in PAIRS_OF_WORDS:
            if self.machine.has_byte_products and self.lanes == 16 and columns.is_signed:
                return "bytes"
            return "words" if self.machine.name.startswith("x86") else "numbers"
        return "numbers"

    @property
    def parts(self) -> int:
        """In how many multiplications a step is done."""
        return {"bfloats": 1, "bytes": 1, "words": 2}.get(self.form, self.depth)

    @property
    def is_shifted(self) -> bool:
        """Whether rows of signed bytes are read as unsigned ones, 128 larger, because the instruction wants them so."""
        return self.form == "bytes" and self.rows.dtype.is_signed

    @property
    def constant_rows(self) -> list[Value]:
        """Rows that are multiplied along with those of a tile, for `settled`: what was added to each number."""
        return [self.part(self.e.constant(OFFSETS, "i32", self.lanes), self.rows.dtype, 0)] if self.is_shifted else []

    def settled(self, sums: Sequence[Value], vectors: int) -> list[Value]:
        """The sums of a tile's own rows, from those of all rows."""
        if not self.is_shifted:
            return list(sums)
        own, more = sums[:-vectors], sums[-vectors:]
        return [self.e.sub(total, more[k % vectors]) for k, total in enumerate(own)]

    # -- what is read --------------------------------------------------------------------------------------------------------

    def column_vector(self, pointer: Value, vector: int) -> Value:
        """One vector of packed columns: of each column a group, as an i32, or one number."""
        start = self.e.offset(pointer, vector * self.lanes * self.depth, self.columns.element)
        if self.depth > 1:
            return self.e.load(start, 0, "i32", self.lanes, alignment=self.columns.dtype.bytes)
        return self.widened(self.e.load(start, 0, self.columns.element, self.lanes))

    def widened(self, columns: Value) -> Value:
        """Columns of which each lane has one number, in the type of the sums."""
        return scalars.convert(self.e, columns, self.columns.dtype, self.total)

    def row(self, pointer: Value, part: int, count: Number | None = None) -> Value:
        """One part of what a step needs of one row, for all lanes; of a group only the first `count`, if that is given."""
        if self.depth == 1 or self.rows.dtype.bytes * self.depth != 4:
            return self._number(pointer, part, count)
        group = self.e.broadcast(self._group(pointer, count), self.lanes)
        return self.part(self.e.bit_xor(group, OFFSETS) if self.is_shifted else group, self.rows.dtype, part)

    def _number(self, pointer: Value, position: int, count: Number | None) -> Value:
        """One number of a row in every lane; 0 beyond `count`."""
        e, bits = self.e, self._element(pointer, position, count)
        # widened in all lanes at once: half precision is widened by an instruction for vectors
        spread = e.broadcast(bits, self.lanes) if self.lanes > 1 else bits
        return scalars.convert(e, e.bitcast(spread, self.rows.element), self.rows.dtype, self.total)

    def _element(self, pointer: Value, position: int, count: Number | None) -> Value:
        """The bits of one number of a row; 0 beyond `count`."""
        e, element = self.e, f"i{self.rows.dtype.bits}" if self.depth > 1 or self.rows.dtype.bits < 32 else self.rows.element
        at = self.rows.step * position if isinstance(self.rows.step, int) else e.mul(self.rows.step, position)

        def read() -> list[Value]:
            return [e.load(pointer, at, element)]

        # a group that is read in part has one number or more
        if count is None or position == 0 or (isinstance(count, int) and position < count):
            return read()[0]
        zero = [e.constant(0, element)]
        if isinstance(count, int):
            return zero[0]
        return e.if_else(e.compare("gt", count, position), read, lambda: zero)[0]

    def _group(self, pointer: Value, count: Number | None) -> Value:
        """The group of a row as an i32."""
        e, size = self.e, self.rows.dtype.bytes
        if count is None and self.rows.step == 1:
            return e.load(pointer, 0, "i32", alignment=size)
        total: Value | None = None
        for position in range(self.depth):
            bits = e.cast("arith.extui", self._element(pointer, position, count), "i32")
            placed = e.shl(bits, 8 * size * position) if position else bits
            total = placed if total is None else e.bit_or(total, placed)
        assert total is not None
        return total

    # -- widening and multiplying --------------------------------------------------------------------------------------------

    def part(self, groups: Value, dtype: DType, part: int) -> Value:
        """What is multiplied in one part of a step, of groups of a dtype."""
        match self.form:
            case "bfloats":
                return self.e.reinterpret(groups, "bf16")
            case "bytes":
                return self.e.reinterpret(groups, "i8")
            case "words":
                return self._words(groups, dtype, part)
        return self._part(groups, dtype, part)

    def _part(self, group: Value, dtype: DType, part: int) -> Value:
        """The number at one place of each lane's group, in the type of the sums."""
        e, bits = self.e, dtype.bits
        above = 32 - bits * (part + 1)
        if dtype is bf16:
            high = e.shl(group, above) if above else e.bit_and(group, -1 << bits)
            return scalars.convert(e, e.bitcast(high, "f32"), f32, self.total)
        top = e.shl(group, above) if above else group
        number = e.shr(top, 32 - bits, signed=dtype.is_signed)
        return scalars.convert(e, number, i32, self.total)

    def _words(self, groups: Value, dtype: DType, part: int) -> Value:
        """Of each 16 bits the low byte (part 0) or the high one, as a 16-bit number."""
        e, words = self.e, self.e.reinterpret(groups, "i16")
        if part:
            return e.shr(words, 8, signed=dtype.is_signed)
        return e.shr(e.shl(words, 8), 8) if dtype.is_signed else e.bit_and(words, 0xFF)

    def add(self, row: Value, columns: Value, total: Value) -> Value:
        """`total` and the products of one part."""
        e = self.e
        match self.form:
            case "bfloats":
                return e.intrinsic("llvm.x86.avx512bf16.dpbf16ps.512", total, row, columns, like=total)
            case "bytes":
                return e.intrinsic("llvm.x86.avx512.vpdpbusd.512", total, row, columns, like=total)
            case "words":
                return e.add(e.intrinsic(PAIRS_OF_WORDS[self.lanes * 32], row, columns, like=total), total)
        # without the instruction, `fma` would be a call for each lane
        return e.fma(row, columns, total) if total.is_float and self.machine.has_fma else row * columns + total

    def step(
        self, pointers: Sequence[Value], columns: Sequence[Value], sums: Sequence[Value], count: Number | None = None
    ) -> list[Value]:
        """All sums of a tile, row by row, after one step; of a group only the first `count` positions exist, if that is given.

        A row is read, and a part taken, where it is multiplied: what is there early takes registers that sums need.
        """
        result = list(sums)
        for part in range(self.parts):
            vectors = [self.part(vector, self.columns.dtype, part) if self.depth > 1 else vector for vector in columns]
            rows = itertools.chain((self.row(pointer, part, count) for pointer in pointers), self.constant_rows)
            for k, row in enumerate(rows):
                for v, vector in enumerate(vectors):
                    place = k * len(vectors) + v
                    result[place] = self.add(row, vector, result[place])
        return result
