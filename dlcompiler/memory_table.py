"""The memory plan of a program as data and as a table a person can read."""

from __future__ import annotations

import math
from typing import Any

from dlcompiler.ir.program import Placement, Program, Slot
from dlcompiler.report import format_bytes


def memory_plan(program: Program, placement: Placement | None = None) -> dict[str, Any]:
    """JSON-able: every slot with its role, bytes, offset and lifetime (first and last step), and the live bytes at each step.

    `placement` defaults to the program's own; without one (a dynamic program before its first call) sizes are expressions in text
    and there are no offsets.
    """
    placement = placement or program.placement
    slots = [_slot_row(program, placement, slot) for slot in program.slots]
    plan: dict[str, Any] = {"name": program.name, "symbols": list(program.symbols), "steps": len(program.steps), "slots": slots}
    if placement is not None:
        plan.update(
            arena_bytes=placement.arena_bytes,
            lower_bound=placement.lower_bound,
            eager_peak=placement.eager_peak,
            live_bytes=_live_bytes(program, slots),
        )
    return plan


def _slot_row(program: Program, placement: Placement | None, slot: Slot) -> dict[str, Any]:
    lifetime = program.lifetimes.get(slot)
    owner = program.aliases.get(slot)
    offset = placement.offsets.get(slot) if placement else None
    size = slot.bytes
    return {
        "name": slot.name,
        "role": slot.role,
        "dtype": str(slot.dtype),
        "shape": [d if isinstance(d, int) else str(d) for d in slot.shape],
        "strides": [d if isinstance(d, int) else str(d) for d in slot.strides],
        "bytes": size if isinstance(size, int) else str(size),
        "offset": offset,
        "first_step": lifetime[0] if lifetime else None,
        "last_step": lifetime[1] if lifetime else None,
        "in_place_of": owner.name if owner else None,
    }


def _live_bytes(program: Program, rows: list[dict[str, Any]]) -> list[int]:
    """Bytes of intermediates alive at each step; one that takes over another's memory counts from its own first step on."""
    change = [0] * (len(program.steps) + 2)
    last_use = {row["name"]: row["last_step"] for row in rows}
    taken_over_at = {row["in_place_of"]: row["first_step"] for row in rows if row["in_place_of"]}
    for row in rows:
        if row["role"] != "intermediate" or row["first_step"] is None or not isinstance(row["bytes"], int):
            continue
        end = taken_over_at.get(row["name"], last_use[row["name"]] + 1)
        change[row["first_step"]] += row["bytes"]
        change[min(end, len(program.steps)) if end is not None else len(program.steps)] -= row["bytes"]
    live, total = [], 0
    for step in range(len(program.steps)):
        total += change[step]
        live.append(total)
    return live


COLUMNS = ("offset", "bytes", "steps", "role", "name", "type", "in place of")


def memory_table(plan: dict[str, Any], rows_shown: int | None = None) -> str:
    """The plan as text: a summary, the slots (by offset, then the ones outside the arena), and live bytes by step."""
    lines = [f"memory plan of {plan['name']}: {len(plan['slots'])} slots, {plan['steps']} steps"]
    if "arena_bytes" in plan:
        bound = plan["lower_bound"]
        over = f" (x{plan['arena_bytes'] / bound:.2f})" if bound else ""
        lines.append(
            f"arena {format_bytes(plan['arena_bytes'])} ({plan['arena_bytes']} B), lower bound {format_bytes(bound)}{over}, "
            f"eager {format_bytes(plan['eager_peak'])}"
        )
    else:
        when = f", when {', '.join(plan['symbols'])} are known" if plan["symbols"] else ""
        lines.append(f"offsets are made at the first call{when}")
    ordered = sorted(
        plan["slots"],
        key=lambda r: (r["role"] != "intermediate", r["offset"] if r["offset"] is not None else -1, r["first_step"] or 0),
    )
    shown = ordered if rows_shown is None else ordered[:rows_shown]
    lines += ["", *_aligned([COLUMNS, *(_cells(row) for row in shown)])]
    if len(shown) < len(ordered):
        lines.append(f"and {len(ordered) - len(shown)} more slots")
    if plan.get("live_bytes") and rows_shown is None:
        lines += ["", *memory_picture(plan), "", *_timeline(plan["live_bytes"])]
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    steps = "" if row["first_step"] is None else f"{row['first_step']}-{row['last_step']}"
    return (
        "" if row["offset"] is None else str(row["offset"]),
        str(row["bytes"]),
        steps,
        row["role"],
        row["name"],
        f"{row['dtype']}[{', '.join(map(str, row['shape']))}]",
        row["in_place_of"] or "",
    )


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Cells in columns; numbers to the right."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    numeric = (0, 1)
    return [
        "  ".join(
            cell.rjust(width) if k in numeric else cell.ljust(width) for k, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]


PICTURE_ROWS, PICTURE_COLUMNS = 24, 100
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
NAMED = 26  # slots that the key under the picture names: the largest


def memory_picture(plan: dict[str, Any]) -> list[str]:
    """The arena drawn with letters: steps to the right, offsets upwards, each letter a slot, a dot what nobody uses.

    A cell that several slots share shows the one that takes most of it. Neighbouring slots get different letters, and the largest
    are named below.
    """
    slots = [r for r in plan["slots"] if r["offset"] is not None and r["first_step"] is not None and r["bytes"]]
    steps, arena = plan["steps"], max((r["offset"] + r["bytes"] for r in slots), default=0)
    if not slots or not arena:
        return ["nothing lies in the arena"]
    columns, rows = min(steps * max(1, PICTURE_COLUMNS // (2 * steps)), PICTURE_COLUMNS), min(PICTURE_ROWS, arena)
    filled = [[(0.0, ".")] * columns for _ in range(rows)]
    letters: dict[str, str] = {}
    for number, slot in enumerate(sorted(slots, key=lambda r: (r["first_step"], r["offset"]))):
        letter = letters[slot["name"]] = LETTERS[number % len(LETTERS)]
        for column, wide in _shares(slot["first_step"], slot["last_step"] + 1, steps / columns):
            for row, high in _shares(slot["offset"], slot["offset"] + slot["bytes"], arena / rows):
                if wide * high > filled[row][column][0]:
                    filled[row][column] = (wide * high, letter)
    largest = sorted(slots, key=lambda r: -r["bytes"])[:NAMED]
    labels = [format_bytes(round(arena * (row + 1) / rows)) for row in range(rows)]
    lines = ["the arena: steps to the right, offsets upwards"]
    for row in reversed(range(rows)):
        label = labels[row] if row % 4 == 3 or row == rows - 1 else ""
        lines.append(f"{label:>11} |{''.join(cell[1] for cell in filled[row])}")
    lines.append(f"{'':>11} +{'-' * columns}")
    lines.append(f"{'':>12}{'0':<{max(columns - len(str(steps - 1)), 1)}} {steps - 1}")
    lines += [f"{'':>11} {letters[slot['name']]} {slot['name']} ({format_bytes(slot['bytes'])})" for slot in largest]
    return lines


def _shares(start: float, end: float, cell: float) -> list[tuple[int, float]]:
    """The cells of that size which `[start, end)` touches, each with the part of it that is covered."""
    first, last = int(start / cell), max(int(start / cell), math.ceil(end / cell) - 1)
    return [(k, (min(end, (k + 1) * cell) - max(start, k * cell)) / cell) for k in range(first, last + 1)]


def _timeline(live: list[int]) -> list[str]:
    """A bar for each step; of a long program the largest of each of 100 stretches."""
    stretch = -(-len(live) // 100)
    tallest = max(live) or 1
    lines = ["live bytes by step"]
    for start in range(0, len(live), stretch):
        most = max(live[start : start + stretch])
        steps = str(start) if stretch == 1 else f"{start}-{min(start + stretch, len(live)) - 1}"
        lines.append(f"{steps:>13}  {most:>12}  {'#' * round(40 * most / tallest)}")
    return lines
