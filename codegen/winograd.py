"""Schedules for convolutions computed by Winograd's algorithm on CPUs, and when that pays.

A block of tiles is done at once, as many as their transformed inputs leave room for in the second cache. They are transformed,
lanes along channels; then for each panel of columns, at each position of a tile, the block is multiplied by the transformed
weights as a matrix of tiles by channels; and the products are transformed back, lanes along columns, and handed to whatever the
kernel does with its sums. So nothing but the image, the weights and the result is ever outside of a core's own caches.

A work item is one panel for one block. Items follow each other panel by panel, and whoever does several items of one block in a
row transforms its inputs once.
"""

from __future__ import annotations

import itertools
from collections.abc import Set
from dataclasses import dataclass

from dlcompiler.codegen.contraction import (
    GRAIN_PRODUCTS,
    TileMachine,
    choose_tile,
    finishing_kernel,
)
from dlcompiler.codegen.schedule import Access, Schedule, merge_axes, size_estimate
from dlcompiler.ir import kernel as K
from dlcompiler.ir.contraction import Contraction, find_contraction, loads_under, offset_of, pack_columns
from dlcompiler.ir.expression import Dim, floor_div, linear_coefficients, product, symbol
from dlcompiler.ir.types import DTYPES
from dlcompiler.ir.winograd import POINTS, Transforms, Window, find_windows, transform_panels, transforms

# Rows of a register tile: what it reads is packed, so that no two rows share a set of the first cache.
MOST_ROWS = 14
# Elements between rows, and between positions, beyond their own: one cache line, for the same reason.
GAP = 16
# The part of the second cache that a block takes; the rest is for weights on their way through.
SHARE = 0.75
# Larger tiles gain less than their transforms and their rounding errors cost.
LARGEST_SIZE = 5
# Bytes that come from memory in a cycle, to all cores together: transformed weights do not stay in caches between calls.
BYTES_A_CYCLE = 10.0
# Direct tiles reach this part of one vector multiply-add in each cycle.
DIRECT_SPEED = 0.95
# What must be won by the model for a convolution to be computed this way, as the model is not exact.
GAIN = 0.9


@dataclass(frozen=True, eq=False)
class WinogradSchedule:
    """How such a convolution runs.

    axes      of the kernel, with extents
    outer     of the rows, those that are no window (the batch); tiles are counted along these, then along the windows
    transforms  the matrices for each window
    block     tiles done at once; rows, vectors, lanes: the register tile of the products. A block is a multiple of its rows
    rows_access  the rows' load
    finish    the schedule of what is done to the sums, and `finishing` the kernel that says it: it reads them from `sums`,
              [windows..., columns], which holds one tile
    """

    contraction: Contraction
    windows: tuple[Window, ...]
    sizes: tuple[int, ...]
    transforms: tuple[Transforms, ...]
    axes: dict[str, Dim]
    outer: tuple[str, ...]
    column: str
    channel: str
    channels: int
    block: int
    rows: int
    vectors: int
    lanes: int
    rows_access: Access
    finishing: K.Kernel
    finish: Schedule
    sums: K.Buffer
    grain: int

    @property
    def width(self) -> int:
        """Columns of a panel."""
        return self.vectors * self.lanes

    @property
    def positions(self) -> int:
        """Multiplications of a tile, for each channel and column."""
        return product(t.positions for t in self.transforms)

    @property
    def counts(self) -> tuple[int, ...]:
        """Tiles along each window."""
        return tuple(-(-self.axes[w.axis] // size) for w, size in zip(self.windows, self.sizes))

    @property
    def tiles(self) -> Dim:
        return product(self.axes[a] for a in self.outer) * product(self.counts)

    @property
    def blocks(self) -> Dim:
        return floor_div(self.tiles + (self.block - 1), self.block)

    @property
    def panels(self) -> int:
        return -(-self.axes[self.column] // self.width)

    @property
    def work(self) -> Dim:
        return self.blocks * self.panels

    @property
    def input_row(self) -> int:
        """Elements from one tile's transformed inputs to the next tile's, at one position."""
        return self.channels + GAP

    @property
    def product_plane(self) -> int:
        """Elements from a block's products at one position to those at the next."""
        return self.block * self.width + GAP

    def __str__(self) -> str:
        sizes = "x".join(map(str, self.sizes))
        taps = "x".join(str(self.axes[w.tap]) for w in self.windows)
        tile = f"tile({self.rows} x {self.column} {self.vectors} vectors of {self.lanes} lanes)"
        return f"winograd F({sizes}, {taps}) block({self.block} tiles) {tile} grain({self.grain})"


def scratch_bytes(tiles: int, positions: int, channels: int, width: int) -> int:
    """What a block of tiles takes: transformed inputs, and products for one panel."""
    return 4 * positions * (tiles * (channels + GAP) + tiles * width + GAP)


def _block(tiles: Dim, positions: int, channels: int, columns: int, width: int, machine: TileMachine) -> tuple[int, int]:
    """(tiles of a block, rows of a register tile), so that blocks fit, are equal, and give all cores something to do."""
    most_rows = max(1, min(MOST_ROWS, (machine.registers - 1 - width) // width))
    panels = -(-columns // (width * _lanes(machine)))
    count = size_estimate(tiles)
    each = scratch_bytes(1, positions, channels, width * _lanes(machine))
    most = max(1, min(int(SHARE * machine.second_cache) // each, count))
    least = -(-count // most)
    best: tuple[float, int, int] | None = None
    for blocks in range(least, least + 2 * machine.cores):
        block = -(-count // blocks)
        high = -(-block // most_rows)
        rows = -(-block // high)
        # a register tile of few rows waits for its loads
        cost = -(-blocks * panels // machine.cores) * high * max(rows * width, rows / 2 + width, 4)
        if best is None or cost < best[0] * 0.98:
            best = (cost, rows * high, rows)
    assert best is not None
    return best[1], best[2]


def _lanes(machine: TileMachine) -> int:
    return machine.vector_bytes // 4


def winograd_width(kernel: K.Kernel, fixed: Set[K.Buffer], sizes: tuple[int, ...], machine: TileMachine) -> int | None:
    """How wide panels of the columns should be for Winograd's algorithm; None where it does not compute the kernel.

    `fixed`: buffers that keep their contents between calls; only what is transformed once is worth transforming.
    """
    found = find_contraction(kernel, fixed)
    if found is None or found.packed is not None or not all(load.buffer in fixed for load in loads_under(found.columns)):
        return None
    windows = find_windows(kernel, found)
    columns = kernel.extents[found.vector]
    if windows is None or len(windows) != len(sizes) or not isinstance(columns, int):
        return None
    tiles = product(-(-size_estimate(kernel.extents[w.axis]) // size) for w, size in zip(windows, sizes))
    rows = tiles * product(size_estimate(kernel.extents[a]) for a in found.row_axes if a not in {w.axis for w in windows})
    width = choose_tile(columns, rows, _lanes(machine), machine.registers, MOST_ROWS)[1] * _lanes(machine)
    packed = pack_columns(kernel, found, width)[1]
    again = find_contraction(packed)
    if again is None or any(transforms_missing(size, kernel.extents[w.tap]) for w, size in zip(windows, sizes)):
        return None
    return width if schedule_winograd(transform_panels(packed, again, sizes)[2], machine) is not None else None


def transforms_missing(size: int, taps: Dim) -> bool:
    """Whether there are no matrices for tiles of so many results."""
    return not isinstance(taps, int) or size + taps - 1 not in POINTS


def schedule_winograd(kernel: K.Kernel, machine: TileMachine) -> WinogradSchedule | None:
    """Choose how a convolution with transformed weights runs; None for a kernel without, or that this cannot do.

    It does float32 images whose channels lie next to each other and fill whole vectors.
    """
    found = find_contraction(kernel)
    if kernel.winograd is None or found is None or found.packed is None or found.reduce.dtype is not DTYPES["f32"]:
        return None
    windows, sizes = find_windows(kernel, found), kernel.winograd.sizes
    if windows is None or found.load.dtype is not found.reduce.dtype or 0 in kernel.extents.values():
        return None
    load = Access(found.load, offset_of(found.load), linear_coefficients(offset_of(found.load), kernel.extents))
    lanes = _lanes(machine)
    (channel,) = set(found.reduce.over) - {w.tap for w in windows}
    channels, columns, width = kernel.extents[channel], kernel.extents[found.vector], found.packed.buffer.shape[-1]
    assert isinstance(width, int)
    if load.coefficients is None or load.stride(channel) != 1 or not isinstance(columns, int) or width % lanes:
        return None
    if not isinstance(channels, int) or channels % lanes or any(load.stride(w.axis) != load.stride(w.tap) for w in windows):
        return None
    known = {found.load: load, found.columns: Access(found.packed, 0, None)}
    axes, merged = merge_axes(kernel, known, keep=frozenset(kernel.extents))
    accesses = {access.statement: access for access in merged}
    matrices = tuple(transforms(size, axes[w.tap]) for w, size in zip(windows, sizes))
    positions = product(t.positions for t in matrices)
    vectors = width // lanes
    outer = tuple(a for a in found.row_axes if a not in {w.axis for w in windows})
    tiles = product(-(-axes[w.axis] // size) for w, size in zip(windows, sizes)) * product(axes[a] for a in outer)
    block, rows = _block(tiles, positions, channels, columns, vectors, machine)
    if scratch_bytes(block, positions, channels, width) > machine.second_cache:
        return None
    shape = (*(axes[w.axis] for w in windows), columns)
    strides = [width * product(sizes[k + 1 :]) for k in range(len(sizes))]
    sums = K.Buffer("sums", found.reduce.dtype, shape, (*strides, 1))
    place = (*(symbol(w.axis) for w in windows), symbol(found.vector))
    finishing, finish = finishing_kernel(
        kernel, found, axes, accesses, (*outer, *(w.axis for w in windows)), K.Load(found.reduce.dtype, sums, place), lanes, vectors
    )
    products = block * positions * channels * width
    return WinogradSchedule(
        found, windows, sizes, matrices, axes, outer, found.vector, channel, channels, block, rows, vectors, lanes, load,
        finishing, finish, sums, max(1, GRAIN_PRODUCTS // products),
    )  # fmt: skip


# -- whether it pays ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Convolution:
    """What the choice looks at: images, results along each dimension, taps along each, channels and columns."""

    batch: int
    results: tuple[int, ...]
    taps: tuple[int, ...]
    channels: int
    columns: int


def choose_sizes(convolution: Convolution, machine: TileMachine) -> tuple[int, ...] | None:
    """Tiles by which a convolution is expected to be clearly quicker than as it stands; None if there are none."""
    lanes = _lanes(machine)
    if convolution.channels % lanes or convolution.columns < lanes:
        return None
    best: tuple[float, tuple[int, ...]] | None = None
    choices = [
        [1] if taps == 1 else [size for size in range(2, LARGEST_SIZE + 1) if not transforms_missing(size, taps)]
        for taps in convolution.taps
    ]
    for sizes in itertools.product(*choices):
        if max(sizes) - min(s for s, t in zip((*sizes, max(sizes)), (*convolution.taps, 2)) if t > 1) > 1:
            continue
        cost = _cycles(convolution, sizes, machine)
        if best is None or cost < best[0]:
            best = (cost, sizes)
    if best is None or best[0] > GAIN * _direct_cycles(convolution, machine):
        return None
    return best[1]


def _direct_cycles(c: Convolution, machine: TileMachine) -> float:
    products = c.batch * product(c.results) * product(c.taps) * c.channels * c.columns
    weights = 4 * product(c.taps) * c.channels * c.columns
    return max(products / _lanes(machine) / DIRECT_SPEED / machine.cores, weights / BYTES_A_CYCLE)


def _cycles(c: Convolution, sizes: tuple[int, ...], machine: TileMachine) -> float:
    """Cycles of all cores together, from transforms, products, and the weights that have to be read."""
    lanes = _lanes(machine)
    tiles = c.batch * product(-(-count // size) for count, size in zip(c.results, sizes))
    matrices = [transforms(size, taps) for size, taps in zip(sizes, c.taps)]
    positions = product(t.positions for t in matrices)
    if scratch_bytes(1, positions, c.channels, 4 * lanes) > machine.second_cache:
        return float("inf")
    rows, vectors = choose_tile(c.columns, tiles, lanes, machine.registers, MOST_ROWS)
    filled = -(-tiles // rows) * max(rows * vectors, rows / 2 + vectors, 4) * -(-c.columns // (vectors * lanes))
    products = filled * positions * c.channels
    # loads, stores and additions of one tile for one vector of channels, and of columns; measured
    forward = tiles * c.channels / lanes * positions * 6.0
    back = tiles * c.columns / lanes * (positions * 4.5 + product(sizes) * 5.0)
    weights = 4 * positions * c.channels * c.columns
    return max((products + forward + back) / machine.cores, weights / BYTES_A_CYCLE)
