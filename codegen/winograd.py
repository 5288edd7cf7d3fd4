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
import math
from collections.abc import Sequence, Set
from dataclasses import dataclass

from dlcompiler.codegen.contraction import GRAIN_PRODUCTS, LATENCY, TileMachine, finishing_kernel
from dlcompiler.codegen.schedule import Access, Schedule, merge_axes, size_estimate
from dlcompiler.ir import kernel as K
from dlcompiler.ir.contraction import Contraction, find_contraction, offset_of, pack_columns
from dlcompiler.ir.expression import Dim, floor_div, known, linear_coefficients, product, symbol
from dlcompiler.ir.types import DTYPES
from dlcompiler.ir.winograd import POINTS, Transforms, Window, find_windows, transform_panels, transforms

# Rows of a register tile: what it reads is packed, so that no two rows share a set of the first cache.
MOST_ROWS = 14
# Elements between rows, and between positions, beyond their own: one cache line, for the same reason.
GAP = 16
# The part of the second cache that a block takes; the rest is for weights on their way through. It lies on the stack.
SHARE = 0.75
MOST_BYTES = 1 << 20
# Larger tiles gain less than their transforms and their rounding errors cost.
LARGEST_SIZE = 5
SMALL_SIZE = 2
# Bytes of weights that come from memory in a cycle, to all cores together: between calls they do not stay in caches. Reading
# them hides behind computing but for this part (measured: 256 and 512 channels, all sizes of tiles).
BYTES_A_CYCLE = 8.5
NOT_HIDDEN = 0.45
# Bytes of weights that one core gets in a cycle, from the last cache or memory.
WEIGHTS_A_CYCLE = 8.0
# Bytes of transformed weights that all cores together write in a cycle, where that has to be done in each call (measured: 64 to
# 256 channels).
TRANSFORMED_A_CYCLE = 4.5
# Direct tiles reach this part of one vector multiply-add in each cycle.
DIRECT_SPEED = 0.95
# What must be won by the model for a convolution to be computed this way, as the model is not exact.
GAIN = 0.9
# The same where weights change: what writes them, and what else a training step holds, takes its part of the caches.
GAIN_OF_CHANGING = 0.8


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
        return math.prod(t.positions for t in self.transforms)

    @property
    def counts(self) -> tuple[int, ...]:
        """Tiles along each window."""
        return tuple(-(-known(self.axes[w.axis]) // size) for w, size in zip(self.windows, self.sizes))

    @property
    def tiles(self) -> Dim:
        return product(self.axes[a] for a in self.outer) * math.prod(self.counts)

    @property
    def blocks(self) -> Dim:
        return floor_div(self.tiles + (self.block - 1), self.block)

    @property
    def panels(self) -> int:
        return -(-known(self.axes[self.column]) // self.width)

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


@dataclass(frozen=True)
class Blocking:
    """How a block is done: its tiles, and the register tile of its products. `cycles` of one core for all of them, estimated."""

    cycles: float
    block: int
    rows: int
    vectors: int


def choose_blocking(
    tiles: Dim, positions: int, channels: int, columns: int, machine: TileMachine, widths: Sequence[int] = (2, 4, 3, 1)
) -> Blocking | None:
    """Equal blocks that fit, register tiles of one of these numbers of vectors, and work for all cores; None if none fits."""
    best: Blocking | None = None
    count, lanes = size_estimate(tiles), _lanes(machine)
    for vectors in widths:
        panels = -(-columns // (vectors * lanes))
        most_rows = max(1, min(MOST_ROWS, (machine.registers - 1 - vectors) // vectors))
        most = min(
            min(int(SHARE * machine.second_cache), MOST_BYTES) // scratch_bytes(1, positions, channels, vectors * lanes), count
        )
        if most < 1:
            continue
        least = -(-count // most)
        for blocks in range(least, least + 2 * machine.cores):
            block = -(-count // blocks)
            high = -(-block // most_rows)
            rows = -(-block // high)
            # of the rows only the first tile waits for weights from afar; all wait for their own loads
            step = max(rows * vectors, rows / 2 + vectors, LATENCY)
            first = max(step, vectors * machine.vector_bytes / WEIGHTS_A_CYCLE)
            shares = -(-blocks * panels // machine.cores) * machine.cores
            cycles = shares * (first + (high - 1) * step) * positions * channels
            if best is None or cycles < best.cycles * 0.99:
                best = Blocking(cycles, rows * high, rows, vectors)
    return best


def _lanes(machine: TileMachine) -> int:
    return machine.vector_bytes // 4


def winograd_width(kernel: K.Kernel, fixed: Set[K.Buffer], sizes: tuple[int, ...], machine: TileMachine) -> int | None:
    """How wide panels of the columns should be for Winograd's algorithm; None where it does not compute the kernel.

    `fixed`: buffers that keep their contents between calls. Others are put in panels and transformed in each call.
    """
    found = find_contraction(kernel, fixed)
    if found is None or found.packed is not None:
        return None
    windows = find_windows(kernel, found)
    columns = kernel.extents[found.vector]
    if windows is None or len(windows) != len(sizes) or not isinstance(columns, int):
        return None
    if any(transforms_missing(size, kernel.extents[w.tap]) for w, size in zip(windows, sizes)):
        return None
    (channel,) = set(found.reduce.over) - {w.tap for w in windows}
    channels, tiles = kernel.extents[channel], _tiles(kernel, found, windows, sizes)
    if not isinstance(channels, int):
        return None
    blocking = choose_blocking(tiles, _positions(kernel, windows, sizes), channels, columns, machine)
    if blocking is None:
        return None
    width = blocking.vectors * _lanes(machine)
    packed = pack_columns(kernel, found, width)[1]
    again = find_contraction(packed)
    if again is None:
        return None
    return width if schedule_winograd(transform_panels(packed, again, sizes)[2], machine) is not None else None


def _tiles(kernel: K.Kernel, found: Contraction, windows: Sequence[Window], sizes: Sequence[int]) -> Dim:
    """Tiles in all: along the windows, for each point of the rows' other axes."""
    extents = dict(kernel.extents)
    along = [-(-extents.pop(w.axis) // size) for w, size in zip(windows, sizes)]
    return product(along) * product(extents[a] for a in found.row_axes if a in extents)


def _positions(kernel: K.Kernel, windows: Sequence[Window], sizes: Sequence[int]) -> int:
    """Multiplications of a tile."""
    return math.prod(size + known(kernel.extents[w.tap]) - 1 for w, size in zip(windows, sizes))


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
    of_loads = {found.load: load, found.packed: Access(found.packed, 0, None)}
    axes, merged = merge_axes(kernel, of_loads, keep=frozenset(kernel.extents))
    accesses = {access.statement: access for access in merged}
    matrices = tuple(transforms(size, axes[w.tap]) for w, size in zip(windows, sizes))
    positions = _positions(kernel, windows, sizes)
    vectors = width // lanes
    outer = tuple(a for a in found.row_axes if a not in {w.axis for w in windows})
    tiles = _tiles(kernel, found, windows, sizes)
    blocking = choose_blocking(tiles, positions, channels, columns, machine, (vectors,))
    if blocking is None:
        return None
    shape = (*(axes[w.axis] for w in windows), columns)
    strides = [width * math.prod(sizes[k + 1 :]) for k in range(len(sizes))]
    sums = K.Buffer("sums", found.reduce.dtype, shape, (*strides, 1))
    place = (*(symbol(w.axis) for w in windows), symbol(found.vector))
    finishing, finish = finishing_kernel(
        kernel,
        found,
        axes,
        accesses,
        (*outer, *(w.axis for w in windows)),
        K.Load(found.reduce.dtype, sums, place),
        lanes,
        vectors,
    )
    products = blocking.block * positions * channels * width
    return WinogradSchedule(
        found, windows, sizes, matrices, axes, outer, found.vector, channel, channels, blocking.block, blocking.rows, vectors,
        lanes, load, finishing, finish, sums, max(1, GRAIN_PRODUCTS // products),
    )  # fmt: skip


# -- whether it pays ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Convolution:
    """What the choice looks at: images, results along each dimension, taps along each, channels and columns.

    changes   whether the weights have to be put in order, and transformed, in each call
    """

    batch: int
    results: tuple[int, ...]
    taps: tuple[int, ...]
    channels: int
    columns: int
    changes: bool = False


def choose_sizes(convolution: Convolution, machine: TileMachine) -> tuple[int, ...] | None:
    """Tiles by which a convolution is expected to be clearly quicker than as it stands; None if there are none.

    Results of a tile along each dimension in which the filter has more than one tap.
    """
    lanes = _lanes(machine)
    if convolution.channels % lanes or convolution.columns < lanes:
        return None
    best: tuple[float, tuple[int, ...]] | None = None
    # errors multiply from dimension to dimension
    most = LARGEST_SIZE if sum(taps > 1 for taps in convolution.taps) < 3 else SMALL_SIZE
    choices = [
        [1] if taps == 1 else [size for size in range(2, most + 1) if not transforms_missing(size, taps)]
        for taps in convolution.taps
    ]
    for sizes in itertools.product(*choices):
        cost = _cycles(convolution, sizes, machine)
        if best is None or cost < best[0]:
            best = (cost, sizes)
    gain = GAIN_OF_CHANGING if convolution.changes else GAIN
    if best is None or best[0] > gain * _direct_cycles(convolution, machine):
        return None
    return tuple(size for size, taps in zip(best[1], convolution.taps) if taps > 1)


def _direct_cycles(c: Convolution, machine: TileMachine) -> float:
    products = c.batch * math.prod(c.results) * math.prod(c.taps) * c.channels * c.columns
    return _with_weights(products / _lanes(machine) / DIRECT_SPEED / machine.cores, math.prod(c.taps), c)


def _with_weights(cycles: float, positions: int, c: Convolution) -> float:
    """Cycles of computing, and of reading so many numbers for each channel and column."""
    reading = 4 * positions * c.channels * c.columns / BYTES_A_CYCLE
    return max(reading, cycles + NOT_HIDDEN * reading)


def _cycles(c: Convolution, sizes: tuple[int, ...], machine: TileMachine) -> float:
    """Cycles of all cores together, from transforms, products, and the weights that have to be read."""
    lanes = _lanes(machine)
    tiles = c.batch * math.prod(-(-count // size) for count, size in zip(c.results, sizes))
    positions = math.prod(size + taps - 1 for size, taps in zip(sizes, c.taps))
    blocking = choose_blocking(tiles, positions, c.channels, c.columns, machine)
    if blocking is None:
        return math.inf
    # loads, stores and additions of one tile for one vector of channels, and of columns; measured
    forward = tiles * c.channels / lanes * positions * 6.0
    back = tiles * c.columns / lanes * (positions * 4.5 + math.prod(sizes) * 5.0)
    cycles = _with_weights((blocking.cycles + forward + back) / machine.cores, positions, c)
    return cycles + 4 * positions * c.channels * c.columns / TRANSFORMED_A_CYCLE if c.changes else cycles
