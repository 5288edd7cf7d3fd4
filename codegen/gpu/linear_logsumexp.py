"""Logarithms of a product's sums of exponentials -> Triton: the product is made tile by tile and never stored.

A program has a block of rows and one part of the columns. It walks over tiles of columns, each a product of its own, and keeps
the largest value and the sum of each row as online softmax does (Milakov and Gimelshein, 2018). Programs of one part of the
columns run at about the same time, so that the weight comes from memory once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from dlcompiler.codegen.gpu import scalars
from dlcompiler.codegen.gpu.device import Device
from dlcompiler.codegen.gpu.index_text import index_text
from dlcompiler.codegen.gpu.routine_text import finished, is_narrow, parameters
from dlcompiler.codegen.gpu.schedule import ceiling, power_of_two
from dlcompiler.codegen.gpu.triton_writer import TritonKernel
from dlcompiler.codegen.schedule import size_estimate
from dlcompiler.ir.expression import known
from dlcompiler.ir.graph import Node
from dlcompiler.ir.program import RoutineCall
from dlcompiler.ir.types import TensorType, bf16, f16, f32

LOG2_E = 1.4426950408889634
# rows, columns, depth, warps
TENSOR_TILES = ((128, 256, 64, 8), (128, 128, 64, 8), (128, 128, 32, 4), (64, 128, 32, 4), (32, 64, 32, 4), (16, 32, 32, 4))
SCALAR_TILES = ((128, 64, 16, 8), (64, 64, 32, 8), (64, 64, 16, 4), (32, 32, 32, 4), (16, 32, 32, 4))


def scratch(node: Node) -> Sequence[TensorType] | None:
    """No memory besides the results; None for a node that is not computed here."""
    x, w = (operand.tensor for operand in node.inputs[:2])
    return () if x.dtype in (f32, f16, bf16) and isinstance(x.shape[1], int) and x.shape[1] > 0 and w.is_static else None


def key(call: RoutineCall) -> str:
    """What the text depends on besides the parameters."""
    return f"{call.op} {call.attributes['parts']}"


@dataclass(frozen=True)
class Schedule:
    """A tile is `rows` x `columns`, summed `depth` at a time; prints on one line."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    precision: str = ""

    def __str__(self) -> str:
        parts = [f"tile {self.rows} x {self.columns} x {self.depth}", f"{self.warps} warps", f"{self.stages} stages"]
        return ", ".join([*parts, *([self.precision] if self.precision else [])])


def schedules(call: RoutineCall, device: Device, precision: str) -> Iterator[Schedule]:
    """The preferred one first: the largest tile that rows fill and shared memory holds."""
    x = call.reads[0]
    is_scalar = x.dtype is f32 and precision == "ieee"
    rows, depth = power_of_two(size_estimate(x.shape[0])), power_of_two(known(x.shape[1]))
    for height, columns, deep, warps in SCALAR_TILES if is_scalar else TENSOR_TILES:
        if height > max(16, rows):
            continue
        fitting = max(16, min(deep, depth))
        for stages in (4, 3, 2):
            if stages * (height + columns) * fitting * x.dtype.bytes <= device.block_shared_bytes - 8192:
                yield Schedule(height, columns, fitting, warps, stages, precision if x.dtype is f32 else "")
                break


def writers(call: RoutineCall, device: Device, precision: str, aligned: frozenset[str]) -> Iterator[TritonKernel]:
    """The kernel by one schedule after another."""
    return (write(call, schedule, aligned) for schedule in schedules(call, device, precision))


def write(call: RoutineCall, schedule: Schedule, aligned: frozenset[str]) -> TritonKernel:
    """The kernel by one schedule."""
    x, w, *bias = call.reads
    (y,) = call.writes
    assert y is not None
    parts, rows, depth, columns = call.attributes["parts"], x.shape[0], known(x.shape[1]), known(w.shape[0])
    wide = "" if is_narrow(parameters(call).buffers) else ".to(tl.int64)"
    count = index_text(ceiling(rows, schedule.rows), {})
    width = -(-columns // parts)

    def times(index: str, stride) -> str:
        return index if stride == 1 else f"{index} * ({index_text(stride, {})})"

    # all rows and columns that are asked for exist: those beyond the end are the last one again, and count for nothing
    at_x = f"x0 + {times('row_read[:, None]', x.strides[0])} + {times('k[None, :]', x.strides[1])}"
    at_w = f"x1 + {times('column_read[None, :]', w.strides[0])} + {times('k[:, None]', w.strides[1])}"
    mask = ("", "") if depth % schedule.depth == 0 else (f", k[None, :] < {depth}, 0.0", f", k[:, None] < {depth}, 0.0")
    precise = f', input_precision="{schedule.precision}"' if schedule.precision else ""
    lines = [
        f"program = tl.program_id(0){wide}",
        f"part = program // ({count})",
        f"row = program % ({count}) * ROWS + tl.arange(0, ROWS){wide}",
        f"row_read = tl.minimum(row, {index_text(rows - 1, {})})",
        'largest = tl.full([ROWS], float("-inf"), tl.float32)',
        "total = tl.full([ROWS], 0.0, tl.float32)",
        f"end = tl.minimum((part + 1) * {width}, {columns})",
        f"for first in range(part * {width}, end, COLUMNS):",
        f"    column = first + tl.arange(0, COLUMNS){wide}",
        "    column_read = tl.minimum(column, end - 1)",
        "    sums = tl.full([ROWS, COLUMNS], 0.0, tl.float32)",
        f"    for start in range(0, {depth}, DEPTH):",
        f"        k = start + tl.arange(0, DEPTH){wide}",
        f"        left = tl.load({at_x}{mask[0]})",
        f"        right = tl.load({at_w}{mask[1]})",
        f"        sums = tl.dot(left, right, sums{precise})",
    ]
    if bias:
        widened = "" if bias[0].dtype is f32 else ".to(tl.float32)"
        lines.append(f"    sums += tl.load(x2 + {times('column_read', bias[0].strides[0])}){widened}[None, :]")
    lines += [
        f'    scores = tl.where(column[None, :] < end, sums * {LOG2_E!r}, float("-inf"))',
        "    new = _maximum(largest, tl.reduce(scores, 1, _maximum))",
        '    shift = tl.where(tl.abs(new) == float("inf"), 0.0, new)',
        "    total = total * tl.exp2(largest - shift) + tl.reduce(tl.exp2(scores - shift[:, None]), 1, _add)",
        "    largest = new",
        'shift = tl.where(tl.abs(largest) == float("inf"), 0.0, largest)',
        f"result = (tl.log2(total) + shift) * {1 / LOG2_E!r}",
        f"at = y0 + {times('part', y.strides[0])} + {times('row', y.strides[1])}",
        f"tl.store(at, result, row < {index_text(rows, {})})",
    ]
    body = "\n".join(f"    {line}" for line in lines) + "\n"
    blocks = {"ROWS": schedule.rows, "COLUMNS": schedule.columns, "DEPTH": schedule.depth}
    grid = ceiling(rows, schedule.rows) * parts
    made = finished(call, body, scalars.helpers_used(body), grid, blocks, schedule.warps, str(schedule), aligned)
    return replace(made, stages=schedule.stages)
