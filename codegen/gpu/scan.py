"""Scans on GPUs: some rows a program, in pieces, with what came before carried along.

Within a piece Triton combines in a tree, so sums of float32 have an error that grows with the logarithm of the piece and with the
number of pieces; like eager's kernels on GPUs they are made in float32. Every run gives the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dlcompiler.codegen.gpu import scalars
from dlcompiler.codegen.gpu.device import Device
from dlcompiler.codegen.gpu.index_text import index_text
from dlcompiler.codegen.gpu.routine_text import finished, is_narrow, offset_text, parameters
from dlcompiler.codegen.gpu.schedule import ceiling, power_of_two
from dlcompiler.codegen.gpu.triton_writer import TritonKernel
from dlcompiler.codegen.schedule import size_estimate
from dlcompiler.ir.expression import product
from dlcompiler.ir.graph import Node
from dlcompiler.ir.ops.scan import neutral
from dlcompiler.ir.program import RoutineCall
from dlcompiler.ir.types import TensorType, compute_dtype

PIECE = 2048  # elements of a row at a time, where these lie side by side
ROWS, SHORT_PIECE = 32, 32  # where rows do
COMBINE = {"add": "_add", "mul": "_mul", "max": "_maximum", "min": "_minimum", "logaddexp": "_logaddexp"}
LOGADDEXP = '''
@triton.jit
def _logaddexp(a, b):
    """log(exp(a) + exp(b))"""
    largest = tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
    least = tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)
    return largest + libdevice.log1p(tl.exp(tl.where(largest == least, 0.0, least - largest)))
'''


def applies(node: Node) -> bool:
    """Whether this routine computes a graph node."""
    return node.op.name == "scan" and node.dtype.kind in ("float", "int", "uint")


def scratch(node: Node) -> Sequence[TensorType] | None:
    """No memory besides the results; None for a node that is not computed here."""
    return () if applies(node) else None


def key(call: RoutineCall) -> str:
    """What the text depends on besides the parameters."""
    return f"{call.op} {sorted(call.attributes.items())}"


def writers(call: RoutineCall, device: Device, precision: str, aligned: frozenset[str]) -> Iterator[TritonKernel]:
    """The kernel, by pieces that get smaller."""
    (x,), (y,), axis = call.reads, call.writes, call.attributes["axis"]
    assert y is not None
    along_memory = x.strides[axis] == 1
    piece = min(PIECE if along_memory else SHORT_PIECE, max(8, power_of_two(size_estimate(x.shape[axis]))))
    rows = max(1, 512 // piece) if along_memory else ROWS
    while piece >= 8:
        yield _write(call, rows, piece, aligned)
        piece //= 4


def _write(call: RoutineCall, rows: int, piece: int, aligned: frozenset[str]) -> TritonKernel:
    (x,), (y,), a = call.reads, call.writes, call.attributes
    assert y is not None
    axis, dtype = a["axis"], compute_dtype(x.dtype)
    rest = [d for d in range(len(x.shape)) if d != axis]
    shape = [x.shape[d] for d in rest]
    length, count = index_text(x.shape[axis], {}), product(shape)
    wide = "" if is_narrow(parameters(call).buffers) else ".to(tl.int64)"
    combine = COMBINE[a["kind"]]
    type_name = scalars.type_name(dtype)
    first = scalars.constant(neutral(a["kind"], dtype), dtype, "[ROWS, 1]")
    place = f"({length} - 1 - position)" if a["reverse"] else "position"
    target = place if not a["exclusive"] else f"({length} - 2 - position)" if a["reverse"] else "(position + 1)"
    steps = [index_text(v.strides[axis], {}) for v in (x, y)]
    starts = [offset_text("row", shape, [v.strides[d] for d in rest]) for v in (x, y)]
    starts = [start if "row" in start else f"{start} + row * 0" for start in starts]  # of one row alone, too, a column
    stored = scalars.type_name(y.dtype)
    lines = [
        f"row = tl.program_id(0){wide} * ROWS + tl.arange(0, ROWS)[:, None]",
        f"row_inside = row < {index_text(count, {})}",
        f"start_x = {starts[0]}",
        f"start_y = {starts[1]}",
        f"before = {first}",
    ]
    if a["exclusive"]:
        begin = f"({length} - 1)" if a["reverse"] else "0"
        lines.append(f"tl.store(y0 + start_y + {begin} * ({steps[1]}), before.to({stored}), row_inside & ({length} > 0))")
    lines += [
        f"for start in range(0, {length}, PIECE):",
        f"    position = start + tl.arange(0, PIECE){wide}[None, :]",
        f"    inside = row_inside & (position < {length})",
        f"    x = tl.load(x0 + (start_x + {place} * ({steps[0]})), inside)",
        f"    x = tl.where(inside, x.to({type_name}), {scalars.constant(neutral(a['kind'], dtype), dtype)})",
        f"    scanned = {combine}(before, tl.associative_scan(x, 1, {combine}))",
        f"    kept = inside & (position + 1 < {length})" if a["exclusive"] else "    kept = inside",
        f"    tl.store(y0 + (start_y + {target} * ({steps[1]})), scanned.to({stored}), kept)",
        f"    before = {combine}(before, tl.reduce(x, 1, {combine})[:, None])",
    ]
    body = "\n".join(f"    {line}" for line in lines) + "\n"
    helpers = scalars.helpers_used(body) + (LOGADDEXP if a["kind"] == "logaddexp" else "")
    blocks = {"ROWS": rows, "PIECE": piece}
    warps = max(1, min(8, rows * piece // 256))
    schedule = f"scan of {rows} rows in pieces of {piece}, {warps} warps"
    return finished(call, body, helpers, ceiling(count, rows), blocks, warps, schedule, aligned)
