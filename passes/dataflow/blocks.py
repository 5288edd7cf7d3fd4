"""Large intermediates of a training step's passes get memory of their own, which exists only while they are needed.

    slot t : f32[1024, 2048] intermediate at 0   -->   slot t : f32[1024, 2048] block

A backward pass consumes what the forward pass has saved, and makes gradients. Its runtime frees the one and allocates the other
as it goes; an arena would stay as large as it is at the worst moment, though most gradients come when little of it is needed.
Small values stay in the arena: an allocation, and a break in the run of launches, cost a few microseconds.
"""

from __future__ import annotations

from dataclasses import replace

from dlcompiler.ir.program import Program, Slot
from dlcompiler.passes.dataflow.write_back import with_slots


def in_blocks(program: Program) -> Program:
    """The program with its large intermediates in blocks; the same object if it is no such pass, or its sizes are symbolic."""
    if not program.frees or program.symbols:
        return program
    limit = program.large_bytes({})
    stands_for: dict[Slot, Slot] = {
        slot: replace(slot, role="block")
        for slot in program.slots
        if slot.role == "intermediate" and isinstance(slot.bytes, int) and slot.bytes >= limit
    }
    if not stands_for:
        return program
    steps = tuple(with_slots(step, stands_for) for step in program.steps)
    return program.replace(steps=steps, slots=tuple(stands_for.get(slot, slot) for slot in program.slots))
