"""What the weight's gradient of a convolution looks like to its routine, and how it is divided into work.

Sizes, taps and steps are those of a volume: lines and images have dimensions of one in front. A work item makes the gradient of a
block of input channels for a panel of output channels, at all taps or a part of them. Its sums lie in a core's cache as
[channel, tap, output channel], lanes along output channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dlcompiler.ir.expression import known
from dlcompiler.ir.types import TensorType

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from dlcompiler.codegen.cpu.machine import Machine

Three = tuple[int, int, int]

# Bytes of the sums of an item: half of a second cache.
MOST_SUMS = 256 << 10
# Results of the convolution that are gone through at a time, so that a panel's gradients stay in the first cache.
PLACES = 128
MOST_CHANNELS = 64
# What an item costs beside its multiplications: it goes through images and gradients once more, as so many multiplications at
# each place.
READING = 6


@dataclass(frozen=True)
class WeightProblem:
    """One gradient.

    groups, channels, columns   groups, and input and output channels of each
    size, out, taps, strides, padding, dilations   along depth, height and width
    shared    groups in one vector of lanes: more than one where a group's columns do not fill it
    rows, vectors   of a register tile: input channels by vectors of columns
    block, parts    input channels of an item, and into how many parts the taps are divided
    """

    groups: int
    channels: int
    columns: int
    size: Three
    out: Three
    taps: Three
    strides: Three
    padding: Three
    dilations: Three
    element: str
    lanes: int
    shared: int
    rows: int
    vectors: int
    block: int
    parts: int

    @property
    def tap_count(self) -> int:
        return math.prod(self.taps)

    @property
    def taps_at_once(self) -> int:
        """Taps of one item."""
        return -(-self.tap_count // self.parts)

    @property
    def width(self) -> int:
        """Columns of a panel."""
        return self.vectors * self.lanes

    @property
    def columns_together(self) -> int:
        """Columns that panels are cut from: a group's, or all of them where groups share vectors."""
        return self.columns * (self.groups if self.shared > 1 else 1)

    @property
    def panels(self) -> int:
        return -(-self.columns_together // self.width)

    @property
    def blocks(self) -> int:
        return -(-self.channels // self.block)

    @property
    def groups_apart(self) -> int:
        return 1 if self.shared > 1 else self.groups

    @property
    def work(self) -> int:
        return self.groups_apart * self.blocks * self.panels * self.parts

    @property
    def lines(self) -> int:
        """Lines of a plane that are gone through at a time."""
        return min(self.out[1], max(1, PLACES // self.out[2]))

    @property
    def images(self) -> int:
        """Planes that are, where they are small."""
        return max(1, PLACES // (self.out[1] * self.out[2])) if self.lines == self.out[1] and self.out[0] == 1 else 1


def _three(numbers: Sequence[int], fill: int) -> Three:
    padded = (*(fill,) * (3 - len(numbers)), *numbers)
    return padded[0], padded[1], padded[2]


def weight_problem(x: TensorType, dy: TensorType, attributes: Mapping[str, Any], machine: Machine) -> WeightProblem | None:
    """The problem, or None for one that the routine does not do: sizes that are not known, more than three dimensions, half
    precision, or groups that neither fill a vector nor share one.
    """
    element = x.dtype.name
    if element not in ("f32", "f64") or x.rank > 5 or not all(isinstance(d, int) for t in (x, dy) for d in t.shape[1:]):
        return None
    groups = attributes["groups"]
    size, out = (_three([known(d) for d in t.shape[2:]], 1) for t in (x, dy))
    channels, columns = (known(t.shape[1]) // groups for t in (x, dy))
    if 0 in (*size, *out, channels, columns) or (isinstance(x.shape[0], int) and x.shape[0] == 0):
        return None
    lanes = machine.lanes(x.dtype.bytes)
    shared = 1
    if groups > 1 and columns < lanes:
        if lanes % columns or channels > columns:
            return None
        shared = lanes // columns
    given = [_three(attributes[name], fill) for name, fill in (("taps", 1), ("strides", 1), ("padding", 0), ("dilations", 1))]
    taps, strides, padding, dilations = given
    together = columns * groups if shared > 1 else columns
    vectors = _vectors(together, lanes, machine.vector_registers)
    rows = channels
    if shared == 1:
        rows = min(channels, max(4, 12 // vectors), (machine.vector_registers - 2 - vectors) // vectors)
    else:
        vectors = max(1, min(vectors, (machine.vector_registers - 4) // (channels + 2)))
    apart = 1 if shared > 1 else groups
    bytes_of = vectors * lanes * x.dtype.bytes
    block, parts = _divide(channels, rows, math.prod(taps), apart * -(-together // (vectors * lanes)), bytes_of, machine.cores)
    return WeightProblem(
        groups, channels, columns, size, out, taps, strides, padding, dilations, element, lanes,
        shared, rows, vectors, block, parts,
    )  # fmt: skip


def _vectors(columns: int, lanes: int, registers: int) -> int:
    """Vectors of a panel: those of which columns are a multiple, the most of them."""
    most = 4 if registers >= 32 else 2
    exact = [v for v in range(most, 0, -1) if columns % (v * lanes) == 0]
    return exact[0] if exact else min(most, -(-columns // lanes))


def _divide(channels: int, rows: int, taps: int, others: int, bytes_of: int, cores: int) -> tuple[int, int]:
    """Channels of an item, and parts of the taps, by which all cores have about as much to do, the fewest items."""
    blocks = sorted({min(channels, rows * k) for k in range(1, max(1, MOST_CHANNELS // rows) + 1)}, reverse=True)
    best: tuple[int, int, int] | None = None
    for block in blocks:
        for parts in range(1, taps + 1):
            at_once = -(-taps // parts)
            if -(-taps // at_once) != parts or (at_once * block * bytes_of > MOST_SUMS and (block > rows or at_once > 1)):
                continue
            items = others * -(-channels // block) * parts
            cost = -(-items // cores) * (at_once * block + READING)
            if best is None or cost < best[0] * 0.97:
                best = (cost, block, parts)
    assert best is not None
    return best[1], best[2]
