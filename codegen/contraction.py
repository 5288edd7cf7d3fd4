"""Schedules for contractions on CPUs: how a sum of products is cut into tiles that stay in registers.

A tile is `rows` rows by `vectors` vectors of columns; its sums live in registers while the loop runs over the summed axes. One
step of that loop loads a vector of columns for each of `vectors`, and one number of each row, which is broadcast. A work item is
one panel of columns for a few tiles of rows; items go through all rows of a panel before the next one, so that the panel stays
in the second cache. Rows are read where they lie: eight of them at most, as a first cache keeps eight lines with equal low
addresses.
"""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import dataclass, field

from dlcompiler.codegen.choices import NOTHING, Answer
from dlcompiler.codegen.schedule import Access, Schedule, merge_axes, size_estimate
from dlcompiler.ir import kernel as K
from dlcompiler.ir.contraction import (
    Contraction,
    find_contraction,
    find_panels,
    group_size,
    loads_under,
    offset_of,
    pack_columns,
    replace_values,
    stored,
    summation_order,
)
from dlcompiler.ir.expression import Dim, floor_div, linear_coefficients, product, symbol, symbols
from dlcompiler.ir.types import bf16

MOST_ROWS = 8
# Tiles of rows in one work item: enough to hide the cost of starting it, few enough to share out.
TILES_AN_ITEM = 4
# Rows that have to be multiplied with a panel that comes from beyond the second cache.
LEAST_ROWS_IN_CACHE = 96
# Multiplications below which a second thread costs more than it gives.
GRAIN_PRODUCTS = 1 << 17
# Rows from which columns that lie the wrong way, or far apart, are worth packing in each call.
PACKED_ROWS = 24
# Summed positions after which a tile's sums are added to those before: rounding errors grow with the length of one sum.
SUM_BLOCK = 512
# Cycles from one multiply-add to the next that needs its result.
LATENCY = 4
# Registers that numbers take which are taken out of groups.
REGISTERS_OF_PARTS = 4


@dataclass(frozen=True, eq=False)
class ContractionSchedule:
    """How a contraction runs.

    axes      axes after merging, with extents
    outer     axes that columns depend on and whose every point is a work item of its own: outside of the panels
    between   such axes that only rows have: between panels and chunks of rows, so that a panel is used for all of them in turn
    row       the axis that tiles take `rows` of; None for a single row. column: the axis in vectors
    summed    summed axes, outermost first
    rows, vectors, lanes   the tile
    rest      rows of the last tile, 0 if all are whole, None if that is only known when it runs
    tiles     tiles of rows in one work item
    sum_block summed positions after which sums are added to those before, where they are long
    block     chunks of rows for which all panels of columns are gone through before the next ones; None: a panel, for all chunks
    is_packed whether columns lie in panels of the tile's width
    depth     neighbouring positions of the innermost summed axis that lie side by side in panels: one step takes them all
    accesses  of the rows' and the columns' load
    finish    the schedule of what is done to the sums, and `finishing` the kernel that says it: it reads them from `sums`
    """

    contraction: Contraction
    axes: dict[str, Dim]
    outer: tuple[str, ...]
    between: tuple[str, ...]
    row: str | None
    column: str
    summed: tuple[str, ...]
    rows: int
    vectors: int
    lanes: int
    rest: int | None
    is_packed: bool
    rows_access: Access
    columns_access: Access
    finishing: K.Kernel
    finish: Schedule
    sums: K.Buffer
    depth: int = 1
    grain: int = 1
    guards: tuple[K.Bound, ...] = field(default=())
    tiles: int = TILES_AN_ITEM
    sum_block: int = SUM_BLOCK
    block: int | None = None

    @property
    def width(self) -> int:
        """Columns of a tile."""
        return self.vectors * self.lanes

    @property
    def chunk(self) -> int:
        """Rows of a work item."""
        return self.rows * self.tiles

    @property
    def is_summed_in_blocks(self) -> bool:
        """Whether sums are so long that they are made in parts."""
        if len(self.summed) != 1 or self.guards or not self.contraction.reduce.dtype.is_float:
            return False
        length = self.axes[self.summed[0]]
        return not isinstance(length, int) or length >= 2 * SUM_BLOCK

    @property
    def panels(self) -> Dim:
        return floor_div(self.axes[self.column] + (self.width - 1), self.width)

    @property
    def chunks(self) -> Dim:
        return 1 if self.row is None else floor_div(self.axes[self.row] + (self.chunk - 1), self.chunk)

    @property
    def chunks_of_all(self) -> Dim:
        """Chunks of rows at all points of the axes between."""
        return product(self.axes[a] for a in self.between) * self.chunks

    @property
    def work(self) -> Dim:
        return product(self.axes[a] for a in self.outer) * self.panels * self.chunks_of_all

    def __str__(self) -> str:
        tile = f"tile({self.row or '-'} {self.rows} x {self.column} {self.vectors} vectors of {self.lanes} lanes)"
        axes = (*self.outer, *self.between)
        outer = f"rows({', '.join(axes)}) " if axes else ""
        columns = "packed" if self.is_packed else "in place"
        columns += f" by {self.depth}" if self.depth > 1 else ""
        sums = ", ".join(self.summed) + (f" in parts of {self.sum_block}" if self.sum_block != SUM_BLOCK else "")
        order = "" if self.block is None else ", panels first" if self.block == 1 else f", panels first for {self.block}"
        items = f" items({self.tiles} tiles{order})"
        usual = self.tiles == TILES_AN_ITEM and self.block is None
        return f"contraction {outer}{tile} sum({sums}) columns {columns}{'' if usual else items} grain({self.grain})"


def choose_tile(columns: Dim, rows: Dim, lanes: int, registers: int, most_rows: int = MOST_ROWS) -> tuple[int, int]:
    """(rows, vectors) of the tile of at most `most_rows` that computes so many rows and columns in the fewest cycles.

    A step of a tile takes as long as its multiply-adds, its loads, or the latency of one sum, whichever is longest.
    """
    best: tuple[float, int, int] | None = None
    count, height = size_estimate(columns), size_estimate(rows)
    for vectors in (3, 4, 2, 1):
        most = min(most_rows, (registers - 1 - vectors) // vectors, max(height, 1))
        for tile in range(most, 0, -1):

            def cycles(rows: int, vectors: int = vectors) -> float:
                return max(rows * vectors, rows / 2 + vectors, LATENCY) if rows else 0.0

            whole, rest = divmod(height, tile)
            if not isinstance(rows, int):
                rest = 0
            # a tile's start and end cost about as much as 8 steps, which short sums feel
            total = -(-count // (vectors * lanes)) * (whole * (cycles(tile) + 0.5) + (cycles(rest) + 0.5 if rest else 0))
            if best is None or total < best[0] * 0.995:
                best = (total, tile, vectors)
    assert best is not None
    return best[1], best[2]


@dataclass(frozen=True)
class TileMachine:
    """What schedules of contractions ask of a machine.

    Bytes of a vector register, how many there are, masked loads; bytes of a core's second cache, and the number of cores;
    instructions for sums of products of two bfloat16 and of four bytes.
    """

    vector_bytes: int
    registers: int
    has_masks: bool
    second_cache: int = 512 << 10
    cores: int = 1
    has_bfloat_products: bool = False
    has_byte_products: bool = False

    def registers_for(self, found: Contraction) -> int:
        """Registers for a tile. Groups that no instruction multiplies whole are taken apart, which takes a few."""
        kept = stored(found.columns)
        if found.is_lanewise or group_size(kept.dtype, found.reduce.dtype) == 1:
            return self.registers
        whole = self.has_bfloat_products if kept.dtype is bf16 else self.has_byte_products and kept.dtype.is_signed
        return self.registers if whole and found.load.dtype.bytes == kept.dtype.bytes else self.registers - REGISTERS_OF_PARTS


def panel_width(kernel: K.Kernel, fixed: Set[K.Buffer], machine: TileMachine, chosen: Answer = NOTHING) -> int | None:
    """How wide panels of the columns should be; None to read them where they lie.

    `fixed`: buffers that keep their contents between calls: what is packed from them alone is packed once.
    `chosen`: {"vectors": vectors in a panel, 0 for where they lie}, if that was chosen.
    """
    found = find_contraction(kernel, fixed)
    if found is None or found.packed is not None:
        return None
    if "vectors" in chosen:
        return int(chosen["vectors"]) * (machine.vector_bytes // found.reduce.dtype.bytes) or None
    extents = kernel.extents
    rows = math.prod(size_estimate(extents[a]) for a in found.row_axes)
    is_fixed = all(load.buffer in fixed for load in loads_under(found.columns))
    if not is_fixed and rows < PACKED_ROWS:
        return None
    tallest = max((extents[a] for a in found.row_axes), key=size_estimate, default=1)
    lanes = machine.vector_bytes // found.reduce.dtype.bytes
    if found.is_lanewise:
        return _lanewise_vectors(extents[found.vector], lanes) * lanes
    return choose_tile(extents[found.vector], tallest, lanes, machine.registers_for(found))[1] * lanes


def _lanewise_vectors(count: Dim, lanes: int) -> int:
    """Vectors of a tile whose rows are vectors too: two, where no lane is wasted by that."""
    vectors = -(-size_estimate(count) // lanes)
    return 2 if vectors % 2 == 0 else 1


def is_worth_it(kernel: K.Kernel, fixed: Set[K.Buffer], machine: TileMachine) -> bool:
    """Whether a kernel is a contraction whose tiled loop is at least as quick as a library."""
    found = find_contraction(kernel, fixed)
    if found is None:
        return False
    rows = math.prod(size_estimate(kernel.extents[a]) for a in found.row_axes)
    lanes = machine.vector_bytes // found.reduce.dtype.bytes
    if found.batch_axes and not found.is_lanewise and 2 * size_estimate(kernel.extents[found.vector]) <= lanes:
        return False  # groups of few channels leave most lanes empty
    widest = max((size_estimate(kernel.extents[a]) for a in found.column_axes), default=0)
    if size_estimate(kernel.extents[found.vector]) < lanes <= widest:
        return False  # the result's order makes a short axis fill the lanes, where a long one is there
    if not _stores_agree(kernel, found.vector):
        return False
    width = panel_width(kernel, fixed, machine)
    if width is None:
        # one row: the sums of a matrix's rows, which every kernel computes well
        return rows == 1 and not found.batch_axes or schedule_contraction(kernel, machine) is not None
    return schedule_contraction(pack_columns(kernel, found, width)[1], machine) is not None


def _stores_agree(kernel: K.Kernel, vector: str) -> bool:
    """Whether no store scatters the vectors that another one writes whole."""
    offsets = (linear_coefficients(store.buffer.offset(store.index), kernel.extents) for store in kernel.stores)
    steps = {1 if coefficients is None else coefficients.get(vector, 0) for coefficients in offsets}
    return len(steps - {0}) <= 1


def schedule_contraction(kernel: K.Kernel, machine: TileMachine, chosen: Answer = NOTHING) -> ContractionSchedule | None:
    """Choose how a contraction runs; None for a kernel that is none, or that the tiled loop cannot do or would do slowly.

    `chosen` may say rows, vectors (of columns that are not packed), tiles, sum_block, order ("panels", "rows") and grain.
    """
    found = find_contraction(kernel)
    if found is None or 0 in kernel.extents.values():
        return None
    lanes = machine.vector_bytes // found.reduce.dtype.bytes
    if found.packed is None and not (found.is_row_major() and machine.has_masks):
        return None
    loads = {found.load: _access(found.load, offset_of(found.load), kernel)}
    columns, panels = found.columns_load, find_panels(found.columns, found.reduce.over)
    assert columns is not None
    offset = offset_of(columns) if panels is None else panels.linear_offset()
    loads[columns] = _access(columns, offset, kernel)
    if any(access.coefficients is None for access in loads.values()):
        return None
    axes, merged = merge_axes(kernel, loads, keep=frozenset((found.vector,)))
    accesses = {access.statement: access for access in merged}
    guards = found.load.guard
    rows_access, columns_access = accesses[found.load], accesses[columns]
    row_axes = [a for a in found.row_axes if a in axes]
    summed = tuple(a for a in summation_order(kernel, found) if a in axes)
    if guards and not found.is_lanewise and not _can_be_guarded(guards, axes, summed, rows_access):
        return None
    filled = axes[found.vector]
    if found.is_lanewise and not machine.has_masks and not (isinstance(filled, int) and filled % lanes == 0):
        return None
    row = _row_axis(row_axes, axes, rows_access)
    if found.outside != 0 and (row is None or found.is_lanewise):
        return None  # what is outside is no reason to skip a position
    height = axes[row] if row is not None else 1
    if found.is_lanewise and panels is None or panels is not None and panels.width % lanes:
        return None
    packed_vectors = None if panels is None else panels.width // lanes
    rows, vectors = _tile(packed_vectors, axes[found.vector], height, lanes, machine.registers_for(found), chosen)
    outer = tuple(a for a in axes if a not in summed and a not in (row, found.vector))
    sums = K.Buffer("sums", found.reduce.dtype, (height, axes[found.vector]), (vectors * lanes, 1))
    between = tuple(a for a in outer if columns_access.stride(a) == 0)
    outer = tuple(a for a in outer if a not in between)
    rows_of_tiles = (row,) if row is not None else ()
    place = (symbol(row) if row is not None else 0, symbol(found.vector))
    finishing, finish = finishing_kernel(
        kernel, found, axes, accesses, (*outer, *between, *rows_of_tiles), K.Load(found.reduce.dtype, sums, place), lanes, vectors
    )
    rest = (height % rows if isinstance(height, int) else None) if row is not None else 0
    inner = math.prod(size_estimate(axes[a]) for a in summed)
    tiles = max(1, int(chosen.get("tiles", TILES_AN_ITEM)))
    grain = max(1, GRAIN_PRODUCTS // max(inner * vectors * lanes * min(rows * tiles, size_estimate(height)), 1))
    sum_block = max(found.depth, min(int(chosen.get("sum_block", SUM_BLOCK)), SUM_BLOCK))
    block = 1 if chosen.get("order") == "panels" else None
    if "order" not in chosen and not guards and not found.is_lanewise and row is not None and packed_vectors is not None:
        points = math.prod(size_estimate(axes[a]) for a in (*between, row))
        block = _rows_in_cache(found, points, inner, vectors * lanes, rows * tiles, machine.second_cache)
    return ContractionSchedule(
        found, axes, outer, between, row, found.vector, summed, rows, vectors, lanes, rest, found.packed is not None, rows_access,
        columns_access, finishing, finish, sums, found.depth, max(1, int(chosen.get("grain", grain))), guards, tiles,
        sum_block - sum_block % found.depth, block,
    )  # fmt: skip


def _rows_in_cache(found: Contraction, rows: int, inner: int, width: int, chunk: int, cache: int) -> int | None:
    """Chunks of rows that stay in the second cache while panels go by; None where a panel may as well stay for all rows.

    rows, inner  how many there are, and how many numbers of each are summed; width: columns of a panel; chunk: rows of one
    cache        bytes

    Of a tile rows are fewer than columns, so that rows which come from further away cost more than panels do: each of them is a
    stream of its own, too short to be foreseen. Enough rows have to share a panel that it costs less.
    """
    row_bytes, column_bytes = inner * found.load.dtype.bytes, inner * stored(found.columns).dtype.bytes
    if rows * row_bytes + width * column_bytes <= cache:
        return None
    chunks = max(1, cache // 2 // (row_bytes * chunk))
    return chunks if chunks * chunk >= LEAST_ROWS_IN_CACHE else None


def _tile(packed_vectors: int | None, columns: Dim, height: Dim, lanes: int, registers: int, chosen: Answer) -> tuple[int, int]:
    """(rows, vectors) of a tile; panels say how many vectors."""
    if packed_vectors is None and "vectors" not in chosen:
        rows, vectors = choose_tile(columns, height, lanes, registers)
    else:
        vectors = packed_vectors or min(int(chosen["vectors"]), most_vectors(registers))
        rows = _rows_for(vectors, height, registers)
    if height == 1:
        return rows, vectors
    return max(1, min(int(chosen.get("rows", rows)), most_rows(vectors, registers))), vectors


def most_vectors(registers: int) -> int:
    """Of a tile of one row: its sums, its columns and one number of a row are in registers."""
    return (registers - 1) // 2


def most_rows(vectors: int, registers: int) -> int:
    """Rows of the tallest tile whose sums stay in registers."""
    return max(1, (registers - 1 - vectors) // vectors)


def _rows_for(vectors: int, height: Dim, registers: int) -> int:
    """Rows of tiles whose width is given."""
    most = max(1, min(MOST_ROWS, (registers - 1 - vectors) // vectors))
    if not isinstance(height, int):
        return most
    whole = -(-max(height, 1) // most)  # tiles; as even as can be
    return -(-max(height, 1) // whole)


def _access(load: K.Load, offset: Dim, kernel: K.Kernel) -> Access:
    return Access(load, offset, linear_coefficients(offset, kernel.extents))


def _row_axis(names: list[str], axes: dict[str, Dim], access: Access) -> str | None:
    """The axis whose neighbours make the fewest tiles: of those that nearly fill them the one with the smallest step."""

    def waste(axis: str) -> float:
        size = size_estimate(axes[axis])
        return -(-size // MOST_ROWS) * MOST_ROWS / size if size >= MOST_ROWS else MOST_ROWS / size

    return min(names, key=lambda a: (round(waste(a), 1), size_estimate(access.stride(a) or 0)), default=None)


def _can_be_guarded(guards: tuple[K.Bound, ...], axes: dict[str, Dim], summed: tuple[str, ...], access: Access) -> bool:
    """Whether rows outside can be read from a row of zeros: the innermost summed axis runs through it without gaps."""
    if not summed or access.stride(summed[-1]) != 1 or not isinstance(axes[summed[-1]], int):
        return False
    return all(summed[-1] not in symbols(bound.expression) for bound in guards)


def finishing_kernel(
    kernel: K.Kernel, found: Contraction, axes: dict[str, Dim], accesses: dict, rows: tuple[str, ...], load: K.Load, lanes: int,
    vectors: int,
) -> tuple[K.Kernel, Schedule]:  # fmt: skip
    """What is done to the sums as a kernel of its own, which reads them by `load`, and its schedule over `rows`."""
    sums = load.buffer
    stores = replace_values(kernel.stores, {found.reduce: load})
    kept = {a: e for a, e in axes.items() if a not in found.reduce.over}
    finishing = K.Kernel(
        kernel.name, tuple(K.Axis(a, e) for a, e in kernel.extents.items() if a not in found.reduce.over),
        (*kernel.buffers, sums), stores,
    )  # fmt: skip
    offset = sums.offset(load.index)
    known: dict[object, Access] = {load: Access(load, offset, linear_coefficients(offset, kept))}
    for old, new in zip(kernel.stores, finishing.stores):
        access = accesses[old]
        known[new] = Access(new, access.offset, access.coefficients)
    known.update({s: a for s, a in accesses.items() if s not in known})
    schedule = Schedule(kept, rows, (), found.vector, lanes, vectors, found.vector, None, 1, False, known)
    return finishing, schedule
