"""Schedules for GPUs: what one program of a launch computes, how wide, with how many warps. Only about speed.

A kernel runs in one of four forms:

    elements   pointwise: a block of the flattened axes
    tiles      pointwise where some buffers run along another axis than the rest: blocks of both, turned in shared memory
    rows       with reductions: some whole rows in registers
    loop       with reductions: some rows, in one loop over the reduced axes for each phase (`codegen.phases`)

`candidates` lists several, the preferred one first; whoever assembles takes the first that keeps everything in registers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from dlcompiler.codegen.gpu.device import Device
from dlcompiler.codegen.schedule import EXPENSIVE, Access, schedule_kernel, size_estimate
from dlcompiler.ir import kernel as K
from dlcompiler.ir.expression import Dim, evaluate, product, symbols, terms_of

VECTOR_BYTES = 16  # of the widest load of one thread
WARP = 32
# Elements of one program: enough bytes in flight for each thread, few enough that all multiprocessors get some.
ELEMENTS = 1024
FEWEST_ELEMENTS = 128
TILE = (32, 64)
# Elements of a row that is kept in registers, and of the piece of a longer one that a loop takes at a time.
LONGEST_ROW = 16384
LOOP_PIECE = 2048
ROW_TILE = 1024  # elements of several short rows together
# Reductions along an axis that is not the memory's innermost: rows side by side, and reduced elements at a time.
COLUMN_ROWS, COLUMN_PIECE = 64, 32
ELEMENTS_PER_THREAD = 8
MOST_WARPS = 16
NARROW_LIMIT = 1 << 31

Form = Literal["elements", "tiles", "rows", "loop"]


@dataclass(frozen=True, eq=False)
class GpuSchedule:
    """How a kernel runs; prints on one line.

    axes     axes after merging, with extents
    rows     axes flattened into the first dimension of a block, outermost first
    columns  (tiles) axes flattened into its second; inner: (rows, loop) the reduced axes, flattened into the second
    row_block, second_block   elements of a block along either, powers of two
    narrow   whether indices are computed in 32 bits
    """

    form: Form
    axes: dict[str, Dim]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    inner: tuple[str, ...]
    row_block: int
    second_block: int
    warps: int
    narrow: bool
    accesses: dict[object, Access] = field(repr=False, default_factory=dict)

    @property
    def row_elements(self) -> Dim:
        return product(self.axes[a] for a in self.rows)

    @property
    def second(self) -> tuple[str, ...]:
        """Axes of a block's second dimension."""
        return self.columns or self.inner

    @property
    def second_elements(self) -> Dim:
        return product(self.axes[a] for a in self.second)

    @property
    def grid(self) -> Dim:
        """The number of programs."""
        rows = ceiling(self.row_elements, self.row_block)
        return rows * ceiling(self.second_elements, self.second_block) if self.columns else rows

    def __str__(self) -> str:
        parts = [f"{self.form} {self.row_block} of ({', '.join(self.rows)})"]
        if self.second:
            parts.append(f"x {self.second_block} of {'reduced ' if self.inner else ''}({', '.join(self.second)})")
        return " ".join([*parts, f"{self.warps} warps", "32-bit indices" if self.narrow else "64-bit indices"])


def ceiling(value: Dim, divisor: int) -> Dim:
    """`value / divisor`, rounded up."""
    return value if divisor == 1 else (value + (divisor - 1)) // divisor


def power_of_two(value: int) -> int:
    """The smallest power of two that is at least `value`, and at least 1."""
    return 1 << (max(value, 1) - 1).bit_length()


def candidates(kernel: K.Kernel, device: Device) -> Iterator[GpuSchedule]:
    """Schedules for the kernel, the preferred one first, at least one. Deterministic; never looks at data."""
    base = schedule_kernel(kernel, VECTOR_BYTES)
    common = dict(axes=base.axes, narrow=fits_in_32_bits(kernel, base.axes, base.accesses), accesses=base.accesses)
    reduced_vector = base.vector in base.inner
    rows = base.rows + ((base.vector,) if base.vector is not None and not reduced_vector else ())
    if base.inner:
        yield from _reductions(base.inner, rows, reduced_vector, common, device)
        return
    if base.transposes and base.unroll_axis in rows:
        others = tuple(a for a in rows if a not in (base.unroll_axis, base.vector))
        yield _tiles((*others, base.unroll_axis), base.vector, common)
        return
    yield from _elements(kernel, rows, common, device)


def _elements(kernel: K.Kernel, rows: tuple[str, ...], common: Mapping, device: Device) -> Iterator[GpuSchedule]:
    count = math.prod(size_estimate(common["axes"][a]) for a in rows)
    heavy = sum(4 if isinstance(v, K.Compute) and v.op in EXPENSIVE else 1 for v in kernel.values) > 64
    block = ELEMENTS // 2 if heavy else ELEMENTS
    while block > FEWEST_ELEMENTS and count < 2 * device.multiprocessors * block:
        block //= 2
    while block >= 64:
        yield GpuSchedule("elements", rows=rows, columns=(), inner=(), row_block=block, second_block=1,
                          warps=max(1, min(4, block // (WARP * 4))), **common)  # fmt: skip
        block //= 2


def _tiles(rows: tuple[str, ...], column: str | None, common: Mapping) -> GpuSchedule:
    assert column is not None
    height = min(TILE[0], power_of_two(size_estimate(common["axes"][rows[-1]])))
    width = min(TILE[1], power_of_two(size_estimate(common["axes"][column])))
    return GpuSchedule("tiles", rows=rows, columns=(column,), inner=(), row_block=height, second_block=width,
                       warps=_warps(height * width), **common)  # fmt: skip


def _reductions(
    inner: tuple[str, ...], rows: tuple[str, ...], along_memory: bool, common: Mapping, device: Device
) -> Iterator[GpuSchedule]:
    """Whole rows first, from the most elements a thread to the fewest, then loops."""
    extents = [common["axes"][a] for a in inner]
    length = product(extents)
    count = math.prod(size_estimate(common["axes"][a]) for a in rows)

    def schedule(form: Form, row_block: int, piece: int, warps: int) -> GpuSchedule:
        return GpuSchedule(
            form, rows=rows, columns=(), inner=inner, row_block=row_block, second_block=piece, warps=warps, **common
        )

    longest = LONGEST_ROW if along_memory else 2 * COLUMN_PIECE
    if isinstance(length, int) and length <= longest:
        piece = power_of_two(length)
        most = max(1, (ROW_TILE if along_memory else 2 * ROW_TILE) // piece)
        row_block = _fair(min(most, COLUMN_ROWS if not along_memory else most), count, device)
        while row_block >= 1:
            warps = _warps(row_block * piece)
            yield schedule("rows", row_block, piece, warps)
            if warps * 2 <= MOST_WARPS and row_block * piece >= 2 * warps * WARP:
                yield schedule("rows", row_block, piece, warps * 2)
            row_block //= 4
    if along_memory:
        piece = min(LOOP_PIECE, power_of_two(size_estimate(length)))
        row_block = _fair(max(1, ROW_TILE // piece), count, device)
    else:
        piece = min(COLUMN_PIECE, power_of_two(size_estimate(length)))
        row_block = min(COLUMN_ROWS, power_of_two(count))
    while piece >= 8:
        yield schedule("loop", row_block, piece, _warps(row_block * piece))
        piece //= 4


def _fair(row_block: int, count: int, device: Device) -> int:
    """So few rows a program that every multiprocessor gets some."""
    row_block = 1 << (row_block.bit_length() - 1)
    while row_block > 1 and count < 2 * device.multiprocessors * row_block:
        row_block //= 2
    return row_block


def _warps(elements: int) -> int:
    return max(1, min(MOST_WARPS, power_of_two(elements // (WARP * ELEMENTS_PER_THREAD))))


# -- 32 or 64 bits -----------------------------------------------------------------------------------------------------------


def fits_in_32_bits(kernel: K.Kernel, axes: Mapping[str, Dim], accesses: Mapping[object, Access]) -> bool:
    """Whether no index, nor anything on the way to one, leaves 32 bits. Sizes not known now count as large."""
    largest = {a: _size(extent) for a, extent in axes.items()}
    # an index that data gives is clamped to its buffer
    spans = [_span(b) for b in kernel.buffers]
    if any(s is None or s >= NARROW_LIMIT // 2 for s in (*spans, _size(product(axes.values())))):
        return False
    expressions: list[Dim] = [access.offset for access in accesses.values()]
    for value in kernel.values:
        if isinstance(value, K.Load | K.Within):
            for bound in value.guard if isinstance(value, K.Load) else value.bounds:
                expressions += [bound.expression, bound.extent]
    return all(m is not None and m < NARROW_LIMIT // 2 for m in (_magnitude(e, largest) for e in expressions))


def _size(extent: Dim) -> int | None:
    return extent if isinstance(extent, int) else None


def _span(buffer: K.Buffer) -> int | None:
    if symbols(product(buffer.shape)) or any(symbols(s) for s in buffer.strides):
        return None
    return 1 + sum(abs(evaluate(s, {})) * max(evaluate(n, {}) - 1, 0) for n, s in zip(buffer.shape, buffer.strides))


def _magnitude(expression: Dim, largest: Mapping[str, int | None]) -> int | None:
    """What the absolute value of an expression, and of every part of it, cannot exceed; None if that is not known."""
    total = 0
    for monomial, coefficient in terms_of(expression).items():
        term = abs(coefficient)
        for atom in monomial:
            if atom.kind == "symbol":
                name = atom.operands[0]
                size = 1 if name.startswith("@") else largest.get(name)
            else:
                sizes = [_magnitude(o, largest) for o in atom.operands]
                size = None if None in sizes else sizes[0] if atom.kind in ("div", "mod") else max(sizes)  # type: ignore[type-var]
            if size is None:
                return None
            term *= max(size, 1)
        total += term
    return total
