"""What the code of a scan depends on: sizes, panels of weights, tiles, and how threads divide the work."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dlcompiler.codegen.cpu.machine import Machine
from dlcompiler.codegen.cpu.routines import Written
from dlcompiler.ir.expression import Dim, evaluate, symbols
from dlcompiler.ir.graph import Builder, Node
from dlcompiler.ir.ops.recurrent import Cell, scanned_cell
from dlcompiler.ir.ops.recurrent_training import back_cell, kept_widths
from dlcompiler.ir.types import DType

MOST_ROWS = 8  # of the batch in one tile
PART_WORK = 1 << 14  # multiply-adds in one step that are worth a thread
ROWS_OF_PART = 4  # of the batch, to let each thread have all hidden units of some rows


@dataclass(frozen=True)
class Form(ABC):
    """What the code of a time loop depends on.

    lanes      elements of a vector
    vectors    vectors of hidden units in a panel, for each gate that a tile computes
    splits     parts of the batch, if threads divide it; 0 if they divide the hidden units
    """

    cell: Cell
    dtype: DType
    batch: Dim
    hidden: int
    reverse: tuple[bool, ...]
    lanes: int
    vectors: int
    registers: int
    splits: int

    @property
    def directions(self) -> int:
        return len(self.reverse)

    @property
    @abstractmethod
    def columns(self) -> int:
        """Vectors of one row of a tile."""

    @property
    @abstractmethod
    def depth(self) -> int:
        """Numbers of a row that a tile multiplies."""

    @property
    def units(self) -> int:
        """Hidden units of a panel."""
        return self.vectors * self.lanes

    @property
    def panels(self) -> int:
        return -(-self.hidden // self.units)

    @property
    def panel_elements(self) -> int:
        return self.depth * self.columns * self.lanes

    @property
    def last_units(self) -> int:
        """Hidden units of the last panel."""
        return self.hidden - (self.panels - 1) * self.units

    @cached_property
    def heights(self) -> tuple[int, ...]:
        """Rows of the tiles that are needed, the highest first: parts of the batch are cut into these, as even as can be."""
        most = max(1, min(MOST_ROWS, (self.registers - self.columns - 2) // self.columns))
        if symbols(self.batch):
            return (most, 1) if most > 1 else (1,)
        batch, splits = evaluate(self.batch, {}), max(self.splits, 1)
        sizes = {batch * (k + 1) // splits - batch * k // splits for k in range(splits)} - {0}
        largest = max(sizes, default=1)
        height = -(-largest // -(-largest // most))
        return tuple(sorted({height, *(size % height for size in sizes)} - {0}, reverse=True))

    def written(self, what: str) -> Written:
        """How the work is divided."""
        step = evaluate(self.batch, {}) if not symbols(self.batch) else 1
        panel = step * self.panel_elements
        tiles = f"tiles of {'/'.join(map(str, self.heights))} rows"
        if self.splits:
            return Written(
                self.directions * self.splits, 1, f"{what}: {self.directions} x {self.splits} parts of the batch; {tiles}"
            )
        summary = f"{what}: {self.directions} x {self.panels} panels of {self.units} units, in step; {tiles}"
        return Written(self.directions * self.panels, -(-PART_WORK // max(panel, 1)), summary)


@dataclass(frozen=True)
class ScanForm(Form):
    """The form of a scan. `keeps`: how many numbers of each hidden unit each step keeps in each result for gradients."""

    activation: str = "tanh"
    keeps: tuple[int, ...] = ()

    @property
    def columns(self) -> int:
        return self.cell.gates * self.vectors

    @property
    def depth(self) -> int:
        return self.hidden

    def operand(self, direction: int, number: int) -> int:
        """The position of the gates (0), weight (1) or bias (2) of a direction."""
        return self.cell.states + direction * (3 if self.cell.inner_bias else 2) + number

    def panels_of(self, b: Builder, operand: Node) -> Node:
        """A weight [gates * H, H] as [panels, H, gates, vectors, lanes], zeros beyond the last unit; a bias without its H."""
        gates, rest = self.cell.gates, operand.shape[1:]
        none = (0,) * len(rest)
        blocks = b.reshape(operand, shape=(gates, self.hidden, *rest))
        padded = b.pad(blocks, low=(0, 0, *none), high=(0, self.panels * self.units - self.hidden, *none), value=0)
        units = b.reshape(padded, shape=(gates, self.panels, self.vectors, self.lanes, *rest))
        return b.permute(units, dims=(1, 4, 0, 2, 3) if rest else (1, 0, 2, 3))


@dataclass(frozen=True)
class BackForm(Form):
    """The form of the gradients of a scan: a tile multiplies the derivatives of all gates with columns of the weight.

    keeps    how many numbers of each hidden unit were kept in each step, operand by operand
    """

    keeps: tuple[int, ...] = ()

    @property
    def columns(self) -> int:
        return self.vectors

    @property
    def depth(self) -> int:
        return self.cell.gates * self.hidden

    def operand(self, direction: int) -> int:
        """The position of the weight of a direction."""
        return 1 + self.cell.states + len(self.keeps) + direction

    def panels_of(self, b: Builder, operand: Node) -> Node:
        """A weight [gates * H, H] as [panels, gates * H, vectors, lanes], zeros beyond the last unit."""
        padded = b.pad(operand, low=(0, 0), high=(0, self.panels * self.units - self.hidden), value=0)
        units = b.reshape(padded, shape=(self.depth, self.panels, self.vectors, self.lanes))
        return b.permute(units, dims=(1, 0, 2, 3))


def scan_form(op: str, types: Sequence[Any], attributes: Mapping[str, Any], machine: Machine) -> ScanForm:
    """The form of a scan whose operands have these types (or are these views)."""
    cell = scanned_cell(op)
    assert cell is not None, op
    hidden = types[0].shape[2]
    vectors = 1 if cell.gates > 1 else min(4, -(-hidden // machine.lanes(types[0].dtype.bytes)))
    keeps = kept_widths(cell) if op.endswith("_keeping") else ()
    activation = attributes.get("activation", "tanh")
    return ScanForm(**_common(cell, types[0], vectors, attributes, machine), activation=activation, keeps=keeps)


def back_form(op: str, types: Sequence[Any], attributes: Mapping[str, Any], machine: Machine) -> BackForm:
    """The form of a scan's gradients."""
    cell = back_cell(op)
    assert cell is not None, op
    whole = -(-types[1].shape[2] // machine.lanes(types[1].dtype.bytes))
    most = 4 if machine.vector_registers >= 32 else 2
    # panels of about the same number of vectors
    vectors = -(-whole // -(-whole // most))
    return BackForm(**_common(cell, types[1], vectors, attributes, machine), keeps=kept_widths(cell))


def _common(cell: Cell, state: Any, vectors: int, attributes: Mapping[str, Any], machine: Machine) -> dict[str, Any]:
    """What both forms have, from the type of a state [D, B, H]."""
    _, batch, hidden = state.shape
    reverse = tuple(attributes["reverse"])
    return {
        "cell": cell, "dtype": state.dtype, "batch": batch, "hidden": hidden, "reverse": reverse, "vectors": vectors,
        "lanes": machine.lanes(state.dtype.bytes), "registers": machine.vector_registers,
        "splits": _splits(batch, len(reverse), machine),
    }  # fmt: skip


def _splits(batch: Dim, directions: int, machine: Machine) -> int:
    """Into how many parts to cut the batch; 0 to divide the hidden units instead.

    Parts of the batch need not wait for each other, but each streams all of the weight: that is worth it for some rows.
    """
    if machine.cores <= directions:
        return 1
    parts = -(-machine.cores // directions)
    return parts if not symbols(batch) and evaluate(batch, {}) >= ROWS_OF_PART * parts else 0
