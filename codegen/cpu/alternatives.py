"""Other ways to run a kernel on a CPU than the one that the cost model chooses, for a tuner to try: the most promising first.

Each is a change of one thing (`codegen.choices.Answer`), on top of what was chosen before. What would be less accurate than the
cost model's choice (longer sums in one go) is not among them.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

from dlcompiler.codegen.choices import ONE_THREAD, Answer, Question
from dlcompiler.codegen.contraction import (
    ContractionSchedule,
    TileMachine,
    most_rows,
    most_vectors,
    panel_width,
    schedule_contraction,
)
from dlcompiler.codegen.cpu.compile import schedule_for
from dlcompiler.codegen.cpu.machine import Machine
from dlcompiler.codegen.schedule import Schedule, size_estimate
from dlcompiler.ir import kernel as K
from dlcompiler.ir.contraction import find_contraction, pack_columns
from dlcompiler.ir.expression import Dim

LIBRARY: Answer = {"path": "library"}
DIRECT: Answer = {"winograd": "no"}
ALL_THREADS: Answer = {"grain": 1}
# Work items up to which it is open whether threads pay.
FEW_GRAINS = 16
TALLEST = 14


def alternatives(question: Question, chosen: Answer, machine: Machine) -> Sequence[Answer]:
    """Changes of `chosen` that are worth trying."""
    if question.kind == "path":
        return [] if chosen else [LIBRARY]
    if question.kind == "winograd":
        return [] if chosen else [DIRECT]
    if not isinstance(question.subject, K.Kernel):
        return []
    if question.kind == "columns":
        return _columns(question.subject, question.fixed, chosen, machine.tiles)
    schedule = schedule_for(question.subject, machine, chosen)
    if isinstance(schedule, ContractionSchedule):
        changes = _contraction(schedule, machine.tiles)
    elif isinstance(schedule, Schedule):
        changes = _loops(schedule)
    else:
        return []
    # a change that changes nothing is not worth its compilation
    found = {str(schedule_for(question.subject, machine, {**chosen, **change})): change for change in reversed(changes)}
    found.pop(str(schedule), None)
    return list(reversed(found.values()))


def _columns(kernel: K.Kernel, fixed: Set[K.Buffer], chosen: Answer, machine: TileMachine) -> list[Answer]:
    """Panels of other widths, or none."""
    found = find_contraction(kernel, fixed)
    if found is None or found.packed is not None:
        return []
    lanes = machine.vector_bytes // found.reduce.dtype.bytes
    now = (panel_width(kernel, fixed, machine, chosen) or 0) // lanes
    needed = -(-size_estimate(kernel.extents[found.vector]) // lanes)
    changes: list[Answer] = []
    for vectors in (3, 4, 2, 1, 0):
        if vectors == now or vectors > min(max(needed, 1), most_vectors(machine.registers_for(found))):
            continue
        tiled = kernel if vectors == 0 else pack_columns(kernel, found, vectors * lanes)[1]
        is_row = vectors == 0 and not found.row_axes and not found.batch_axes
        if is_row or schedule_contraction(tiled, machine) is not None:
            changes.append({"vectors": vectors})
    return changes


def _contraction(schedule: ContractionSchedule, machine: TileMachine) -> list[Answer]:
    """Tiles of other heights, other work items, another order of them, shorter parts of long sums."""
    changes: list[Answer] = []
    height = 1 if schedule.row is None else size_estimate(schedule.axes[schedule.row])
    if schedule.row is not None:
        highest = min(most_rows(schedule.vectors, machine.registers_for(schedule.contraction)), TALLEST, height)
        heights = [rows for rows in range(1, highest + 1) if rows != schedule.rows]
        # the fewest rows too many in the last tile, then the tallest
        heights.sort(key=lambda rows: -(-height // rows) * rows / height + 1 / rows)
        changes += [{"rows": rows} for rows in heights[:4]]
    if schedule.row is not None and height > schedule.rows:
        tallest = -(-height // schedule.rows)
        changes += [{"tiles": tiles} for tiles in (1, 2, 8, 16) if tiles != schedule.tiles and tiles // 2 < tallest]
    if _several(schedule.panels) and (_several(schedule.chunks) or schedule.between):
        changes.append({"order": "panels" if schedule.block is None else "rows"})
    if schedule.is_summed_in_blocks:
        changes += [{"sum_block": length} for length in (256, 384) if length != schedule.sum_block]
    if not schedule.is_packed and not schedule.contraction.is_lanewise:
        changes += [{"vectors": vectors} for vectors in (3, 4, 2, 1) if vectors != schedule.vectors]
    return changes + _threads(schedule.work, schedule.grain)


def _several(count: Dim) -> bool:
    return not isinstance(count, int) or count > 1


def _threads(work: Dim, grain: int) -> list[Answer]:
    """To share the work out or not, where that is close."""
    items = size_estimate(work)
    if items == 1:
        return []
    if items <= grain:
        return [ALL_THREADS]
    return [ONE_THREAD] if items <= grain * FEW_GRAINS else []


def _loops(schedule: Schedule) -> list[Answer]:
    """More or fewer vectors side by side, other blocks, stores past the caches or not."""
    changes: list[Answer] = []
    if schedule.vector is None:
        return _threads(schedule.work, schedule.grain)
    if not schedule.transposes:
        changes += [{"unroll": unroll} for unroll in (4, 2, 1, 8) if unroll != schedule.unroll]
    if schedule.block is not None:
        changes += [{"block": block} for block in (schedule.block * 2, schedule.block // 2, schedule.block * 4) if block]
    changes.append({"streams": int(not schedule.streams)})
    return changes + _threads(schedule.work, schedule.grain)
