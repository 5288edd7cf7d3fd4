"""The gradient of a convolution's weight in fewer multiplications, by Winograd's algorithm.

A tile of m x m places of dy is a filter of m x m taps over the window of x that it belongs to, and its share of dw are the r x r
results (Lavin and Gray 2016, "Fast algorithms for convolutional neural networks", the weights' gradients). So

    dw = R (sum over tiles of (G dy G') (D x D')) R'            F(r x r, m x m), matrices as in `ir.winograd`

and since the sum is taken before R, that is done once for each weight. A work item is a block of input channels for a panel of
output channels: a block of tiles is transformed into the core's cache, then at each position of a tile the two are multiplied and
added to the sums, which stay there until the last tile.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dlcompiler.codegen.cpu.emitter import Value
from dlcompiler.codegen.cpu.indexing import Number
from dlcompiler.codegen.cpu.machine import Machine
from dlcompiler.codegen.cpu.routines.convolution_weight import Sums
from dlcompiler.codegen.cpu.routines.convolution_weight_form import WeightProblem
from dlcompiler.codegen.cpu.routines.frame import Argument, Frame
from dlcompiler.codegen.cpu.winograd import transform_tile
from dlcompiler.codegen.winograd import GAP, LARGEST_SIZE, MOST_BYTES, SHARE, transforms_missing
from dlcompiler.ir.winograd import Matrix, Transforms, transforms

# Tiles between which the sums are loaded and stored.
MOST_TILES = 32
LEAST_TILES = 4
# What must be won by the model below.
GAIN = 0.85
# Cycles of a transform for each number that it gives, of x and of dy, and for each number that the last one takes; of finding
# where a tile's places lie, for each of them.
TRANSFORM_X, TRANSFORM_DY, TRANSFORM_SUMS, FIND = 6.0, 5.0, 5.0, 4.0


@dataclass(frozen=True)
class WeightTiles:
    """How one gradient is made: places of a tile along height and width, and tiles done at once."""

    problem: WeightProblem
    sizes: tuple[int, int]
    count: int

    @property
    def matrices(self) -> tuple[Transforms, Transforms]:
        first, second = (transforms(taps, size) for taps, size in zip(self.problem.taps[1:], self.sizes))
        return first, second

    @property
    def positions(self) -> int:
        return math.prod(size + taps - 1 for size, taps in zip(self.sizes, self.problem.taps[1:]))

    @property
    def along(self) -> tuple[int, int]:
        """Tiles along height and width."""
        first, second = (-(-out // size) for out, size in zip(self.problem.out[1:], self.sizes))
        return first, second

    def __str__(self) -> str:
        taps = "x".join(map(str, self.problem.taps[1:]))
        return f"winograd F({taps}, {'x'.join(map(str, self.sizes))}), {self.count} tiles at once"


def tiles_of(problem: WeightProblem, images: int, machine: Machine) -> WeightTiles | None:
    """The tiles by which a gradient is expected to be clearly quicker than by direct sums; None if there are none."""
    p = problem
    steps = {*p.strides, *p.dilations}
    if p.element != "f32" or p.groups != 1 or steps != {1} or p.size[0] != 1 or p.taps[0] != 1 or p.padding[0] != 0:
        return None
    if p.channels % p.lanes or p.columns % p.lanes or p.tap_count == 1:
        return None
    places = images * math.prod(p.out)
    direct = places * p.tap_count * p.channels * (p.columns / p.lanes) / min(machine.cores, p.work)
    best: tuple[float, WeightTiles] | None = None
    choices = [
        [1] if taps == 1 else [size for size in range(2, LARGEST_SIZE + 1) if not transforms_missing(size, taps)]
        for taps in p.taps[1:]
    ]
    blocks = [k * p.lanes for k in (1, 2, 3, 4) if p.channels % (k * p.lanes) == 0]
    for first, second in itertools.product(*choices):
        for block in blocks:
            tiles = _blocked(p, (first, second), block, images, machine)
            if tiles is not None and (best is None or _cycles(tiles, images, machine) < best[0]):
                best = (_cycles(tiles, images, machine), tiles)
    return best[1] if best is not None and best[0] < GAIN * direct else None


def _blocked(p: WeightProblem, sizes: tuple[int, int], block: int, images: int, machine: Machine) -> WeightTiles | None:
    """Tiles of a size, as many at once as there is room for."""
    vectors = next(v for v in ((4, 3, 2, 1) if machine.vector_registers >= 32 else (2, 1)) if p.columns % (v * p.lanes) == 0)
    rows = next(r for r in (8, 4, 2, 1) if r * vectors <= machine.vector_registers // 2 and block % r == 0)
    tiles = WeightTiles(replace(p, block=block, parts=1, rows=rows, vectors=vectors), sizes, 1)
    width, positions = vectors * p.lanes, tiles.positions
    room = min(int(SHARE * machine.cache_bytes[1]), MOST_BYTES) // 4
    room -= positions * (block * width + GAP) + block * p.tap_count * width
    count = min(MOST_TILES, room // (positions * (block + width)), images * math.prod(tiles.along))
    if count < min(LEAST_TILES, images * math.prod(tiles.along)) or count < 1:
        return None
    return replace(tiles, count=count)


def _cycles(tiles: WeightTiles, images: int, machine: Machine) -> float:
    """Cycles of the core that has most to do."""
    p = tiles.problem
    count, positions, inputs = images * math.prod(tiles.along), tiles.positions, p.block / p.lanes
    products = positions * p.block * p.vectors
    moving = 3 * products * -(-count // tiles.count)
    each = products + positions * (TRANSFORM_X * inputs + TRANSFORM_DY * p.vectors + FIND) + math.prod(tiles.sizes) * FIND
    end = p.block * p.vectors * positions * TRANSFORM_SUMS
    return -(-p.work // machine.cores) * (count * each + moving + end)


class WinogradSums(Sums):
    """Writes the code of one work item."""

    def __init__(self, frame: Frame, tiles: WeightTiles, machine: Machine) -> None:
        super().__init__(frame, tiles.problem, machine)
        self.tiles = tiles
        e, p = self.e, self.problem
        self.data_plane = tiles.count * p.block + GAP
        self.slope_plane = tiles.count * p.width + GAP
        self.product_plane = p.block * p.width + GAP
        planes = (self.data_plane, self.slope_plane, self.product_plane)
        self.data, self.slopes, self.products = (e.scratch(p.element, tiles.positions * plane) for plane in planes)
        self.places = e.scratch("i64", tiles.positions)
        self.zeros = e.scratch(p.element, max(p.block, p.width))
        self._clear(self.zeros, max(p.block, p.width))

    def _clear(self, target: Value, count: int) -> None:
        e, p = self.e, self.problem
        zero = e.constant(0.0, p.element, p.lanes)
        with e.for_loop(0, count, p.lanes) as loop:
            e.store(zero, target, loop.index)

    def _multiply_add(self, number: float, term: Value, total: Value) -> Value:
        return self.e.fma(term, number, total) if self.machine.has_fma else term * number + total

    def fill(self) -> None:
        """Blocks of tiles one after the other, then the last transform."""
        e, tiles = self.e, self.tiles
        self._clear(self.products, tiles.positions * self.product_plane)
        high, wide = tiles.along
        total = e.mul(self.frame.size(self.x.view.shape[0]), high * wide)
        with e.for_loop(0, total, tiles.count) as blocks:
            count = e.minimum(total - blocks.index, tiles.count)
            with e.for_loop(0, count) as loop:
                number = blocks.index + loop.index
                place = (e.div(number, high * wide), e.rem(e.div(number, wide), high), e.rem(number, wide))
                self._transform(place, loop.index)
            self._multiply(count)
        self._finish()

    # -- transforms ------------------------------------------------------------------------------------------------------------

    def _transform(self, place: tuple[Value, Value, Value], number: Value) -> None:
        """Both operands of one tile."""
        p, (first, second) = self.problem, self.tiles.matrices
        corner = [e_size * size for e_size, size in zip(place[1:], self.tiles.sizes)]
        padded = [at - pad for at, pad in zip(corner, p.padding[1:])]
        self._find_places(self.x, place[0], padded, (first.positions, second.positions), p.size[1:], self.first_channel)
        self._transform_to(self.data, number * p.block, self.data_plane, p.block, (first.data, second.data))
        self._find_places(self.dy, place[0], corner, self.tiles.sizes, p.out[1:], self.first_column)
        self._transform_to(self.slopes, number * p.width, self.slope_plane, p.width, (first.weights, second.weights))

    def _find_places(
        self,
        argument: Argument,
        image: Value,
        firsts: Sequence[Value],
        counts: Sequence[int],
        limits: Sequence[int],
        inner: Value,
    ) -> None:
        """The address of what a tile reads at each place, from `inner` on; of zeros where that lies outside."""
        e, p = self.e, self.problem
        steps = [self._stride(argument, k) for k in (1, 2)]
        start = self._plus(self._times(image, argument.strides[0]), inner)
        for at, step in zip(firsts, steps):
            start = self._plus(start, self._times(at, step))
        base = e.offset(argument.pointer, self._number(start), p.element)
        zeros = e.op("i64", 0, "llvm.ptrtoint {} : !llvm.ptr to i64", self.zeros)
        inside = [[e.compare("ult", at + k, limit) for k in range(n)] for at, n, limit in zip(firsts, counts, limits)]
        for number, (i, j) in enumerate(itertools.product(*map(range, counts))):
            distance = self._plus(self._times(steps[0], i), self._times(steps[1], j))
            there = e.op("i64", 0, "llvm.ptrtoint {} : !llvm.ptr to i64", e.offset(base, distance, p.element))
            e.store(e.select(e.bit_and(inside[0][i], inside[1][j]), there, zeros), self.places, number)

    def _transform_to(self, target: Value, row: Number, plane: int, width: int, matrices: tuple[Matrix, Matrix]) -> None:
        """target[position, row + column] of `width` columns of the places found."""
        e, p = self.e, self.problem
        spans = [range(len(matrix[0])) for matrix in matrices]
        with e.for_loop(0, width, p.lanes) as loop:
            values = {}
            for number, at in enumerate(itertools.product(*spans)):
                pointer = e.op("ptr", 0, "llvm.inttoptr {} : i64 to !llvm.ptr", e.load(self.places, number, "i64"))
                values[at] = e.load(pointer, loop.index, p.element, p.lanes)
            here = e.offset(target, self._plus(row, loop.index), p.element)
            for number, value in enumerate(transform_tile(values, matrices, self._multiply_add).values()):
                e.store(value, here, number * plane)

    # -- products --------------------------------------------------------------------------------------------------------------

    def _multiply(self, count: Value) -> None:
        """products[position, channel, column] += data[position, tile, channel] * slopes[position, tile, column]."""
        e, p, rows = self.e, self.problem, self.problem.rows
        with e.for_loop(0, self.tiles.positions) as position:
            data = e.offset(self.data, position.index * self.data_plane, p.element)
            slopes = e.offset(self.slopes, position.index * self.slope_plane, p.element)
            products = e.offset(self.products, position.index * self.product_plane, p.element)
            with e.for_loop(0, p.block, rows) as channels:
                target = e.offset(products, channels.index * p.width, p.element)
                numbers = e.offset(data, channels.index, p.element)
                at = [k * p.width + v * p.lanes for k in range(rows) for v in range(p.vectors)]
                with e.for_loop(0, count, 1, [e.load(target, a, p.element, p.lanes) for a in at]) as loop:
                    line = e.offset(slopes, loop.index * p.width, p.element)
                    columns = [e.load(line, v * p.lanes, p.element, p.lanes) for v in range(p.vectors)]
                    here = e.offset(numbers, loop.index * p.block, p.element)
                    spread = [e.broadcast(e.load(here, k, p.element), p.lanes) for k in range(rows)]
                    sums = [
                        self.fma(x, column, loop.carried[n]) for n, (x, column) in enumerate(itertools.product(spread, columns))
                    ]
                    loop.next(*sums)
                for a, total in zip(at, loop.results):
                    e.store(total, target, a)

    def _finish(self) -> None:
        """From positions to taps."""
        e, p, tiles = self.e, self.problem, self.tiles
        first, second = tiles.matrices
        spans = [range(m.positions) for m in (first, second)]
        with e.for_loop(0, p.block) as channels, e.for_loop(0, p.width, p.lanes) as columns:
            here = e.offset(self.products, channels.index * p.width + columns.index, p.element)
            values = {
                at: e.load(here, number * self.product_plane, p.element, p.lanes)
                for number, at in enumerate(itertools.product(*spans))
            }
            target = e.offset(self.sums, self.place(channels.index, 0) + columns.index, p.element)
            for tap, value in enumerate(transform_tile(values, (first.results, second.results), self._multiply_add).values()):
                e.store(value, target, tap * p.width)
