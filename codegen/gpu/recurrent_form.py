"""What the kernels of recurrent layers on GPUs are written for: operands of a scan, and how its work is cut up; which apply.

The recurrence of a layer, forward or backward, is a loop over time in which each step multiplies the whole hidden state by a
matrix. There are two ways to run it:

whole   a program takes some rows of the batch through all steps, the state in registers: one launch. Every program reads the
        whole weight in every step, so this is for narrow layers
steps   a launch for each step, whose programs divide rows and hidden units; the state goes from one to the next in memory.
        A CUDA graph starts them all at once

Rows of a batch do not depend on each other, and launches on a stream follow each other, so neither way waits for anything inside
a kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dlcompiler.codegen.gpu.device import Device
from dlcompiler.codegen.gpu.schedule import power_of_two
from dlcompiler.codegen.schedule import size_estimate
from dlcompiler.ir.expression import Dim
from dlcompiler.ir.graph import Node
from dlcompiler.ir.ops.recurrent import Cell, scanned_cell
from dlcompiler.ir.ops.recurrent_training import back_cell
from dlcompiler.ir.program import RoutineCall, View
from dlcompiler.ir.types import DType, TensorType, bf16, f16, f32

DTYPES = (f32, f16, bf16)
SMALLEST_BLOCK = 16  # of any dimension of a product on tensor cores
WIDEST_WHOLE = 128  # hidden units whose gates fit the registers of one program
# Bytes of weight that one multiprocessor reads from the second cache in about the time that starting a launch takes.
WHOLE_WEIGHT_BYTES = 128 << 10


def cell_of(op: str) -> Cell | None:
    """The cell of a scan, forward or backward; None for any other op."""
    return scanned_cell(op) or back_cell(op)


@dataclass(frozen=True)
class Scan:
    """One call of a scan.

    steps, batch, hidden   T, B and H of `ir.ops.recurrent`; reverse: for each direction whether it goes from the last step on
    keeps      whether a forward scan stores what gradients are made of
    activation of an rnn, else empty
    """

    cell: Cell
    call: RoutineCall
    steps: Dim
    batch: Dim
    hidden: int
    dtype: DType
    reverse: tuple[bool, ...]
    keeps: bool
    backward: bool
    activation: str

    @property
    def rows_of_weight(self) -> int:
        return self.cell.gates * self.hidden

    @property
    def reads(self) -> Sequence[View]:
        return self.call.reads

    @property
    def is_narrow(self) -> bool:
        """Whether elements have fewer bits than are computed with: what goes from step to step then has memory of its own."""
        return self.dtype is not f32


def scan_of(call: RoutineCall) -> Scan:
    """What a call computes."""
    cell = cell_of(call.op)
    assert cell is not None
    backward = call.op.endswith("_backward")
    h = call.reads[1 if backward else 0]
    hidden = h.shape[2]
    assert isinstance(hidden, int)
    steps = call.reads[0 if backward else cell.states].shape[0]
    return Scan(
        cell, call, steps, h.shape[1], hidden, h.dtype, tuple(call.attributes["reverse"]), call.op.endswith("_keeping"), backward,
        call.attributes.get("activation", ""),
    )  # fmt: skip


def applies(node: Node) -> bool:
    """Whether these kernels compute a scan: a known hidden size, in float32, float16 or bfloat16."""
    first = node.inputs[0].tensor
    steps = node.inputs[0 if back_cell(node.op.name) else cell_of(node.op.name).states].shape[0]  # type: ignore[union-attr]
    hidden = node.inputs[-1].shape[-1]
    return first.dtype in DTYPES and isinstance(hidden, int) and hidden > 0 and steps != 0


def scratch(node: Node) -> Sequence[TensorType] | None:
    """float32 for what goes from step to step, where results are narrower: c of an lstm; backward also what reaches h past a
    product. None for a node that no kernel here computes."""
    if not applies(node):
        return None
    cell, backward = cell_of(node.op.name), back_cell(node.op.name) is not None
    assert cell is not None
    state = node.inputs[1 if backward else 0].tensor
    carried = max(1, cell.states - 1) if backward or cell.states > 1 else 0
    return [TensorType(f32, state.shape)] * carried if state.dtype is not f32 else []


# -- schedules -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScanSchedule:
    """How it runs; prints on one line. A program has `rows` of the batch and `units` hidden units, `depth` products at a time.

    whole  all steps in one launch; then `units` and `depth` are the hidden size, filled up
    """

    whole: bool
    rows: int
    units: int
    depth: int
    warps: int
    precision: str = ""

    def __str__(self) -> str:
        how = "all steps in one launch" if self.whole else f"a launch a step, {self.depth} products at a time"
        parts = [f"{self.rows} rows x {self.units} units", how, f"{self.warps} warps"]
        return ", ".join([*parts, *([self.precision] if self.precision else [])])


def candidates(scan: Scan, device: Device, precision: str) -> Iterator[ScanSchedule]:
    """Schedules, the preferred one first: large tiles, but so many programs that most multiprocessors have one."""
    word = "" if scan.is_narrow else precision
    padded = max(SMALLEST_BLOCK, power_of_two(scan.hidden))
    if padded <= WIDEST_WHOLE and scan.rows_of_weight * scan.hidden * scan.dtype.bytes <= WHOLE_WEIGHT_BYTES:
        for warps in (4, 8):
            yield ScanSchedule(True, SMALLEST_BLOCK, padded, padded, warps, word)
    batch = size_estimate(scan.batch)
    tallest = max(SMALLEST_BLOCK, min(64, power_of_two(batch)))
    tiles = []
    for rows in (64, 32, 16):
        for units in (64, 32, 16):
            sums = (1 if scan.backward else scan.cell.gates) * rows * units
            if rows <= tallest and units <= padded and sums <= 8192:
                tiles.append((rows, units, 4 if sums <= 4096 else 8))

    def programs(tile: tuple[int, int, int]) -> int:
        return len(scan.reverse) * -(-batch // tile[0]) * -(-scan.hidden // tile[1])

    busy = [tile for tile in tiles if 2 * programs(tile) >= device.multiprocessors]
    order = sorted(busy, key=lambda t: -t[0] * t[1]) or sorted(tiles, key=lambda t: -programs(t))
    depth = 64 if scan.is_narrow else 32
    for rows, units, warps in order:
        yield ScanSchedule(False, rows, units, depth, warps, word)
