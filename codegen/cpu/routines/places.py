"""Where a mask holds: `places`.

Each thread has whole blocks of the mask. It writes a block's places into a buffer of its own, where each is written over unless
the mask holds there, so that nothing is guessed, and copies what stays to where the blocks before leave off.
"""

from __future__ import annotations

from collections.abc import Sequence

from dlcompiler.codegen.cpu.emitter import Emitter, Value
from dlcompiler.codegen.cpu.machine import Machine
from dlcompiler.codegen.cpu.routines import Written
from dlcompiler.codegen.cpu.routines.frame import Frame, vector_loop
from dlcompiler.ir.graph import Node
from dlcompiler.ir.ops.compaction import BLOCK
from dlcompiler.ir.program import RoutineCall
from dlcompiler.ir.types import TensorType, i64

# Blocks below which a second thread does not pay.
GRAIN_BLOCKS = 16
# Elements that are looked at together: a mask that holds nowhere among them costs one comparison.
GROUP = 16


class PlacesRoutine:
    """See the module."""

    def applies(self, node: Node, machine: Machine) -> bool:
        return True

    def scratch(self, node: Node, machine: Machine) -> Sequence[TensorType]:
        return ()

    def write(self, e: Emitter, call: RoutineCall, machine: Machine, name: str) -> Written:
        with e.func(name, [("words", "ptr"), ("low", "i64"), ("high", "i64")]) as (words, low, high):
            frame = Frame(e, call, words)
            mask, begins, out = frame.arguments
            length, count = frame.size(call.reads[0].shape[0]), frame.size(call.writes[0].shape[0])
            blocks = call.reads[1].shape[0]
            buffer = e.scratch("i64", BLOCK + 1)
            steps = [view.strides[0] for view in (call.reads[0], call.reads[1], call.writes[0])]
            mask_step, begins_step, out_step = (frame.index.write(step) for step in steps)

            def element(at: Value, held: Value) -> Value:
                """Write a place where the next is to stand; how many there are, this one counted only if the mask holds."""
                e.store(at, buffer, held)
                byte = e.load(mask.pointer, e.add(mask.offset([0]), e.mul(at, mask_step)), "i8")
                return e.add(held, e.convert(byte, "i64", signed=False, source_signed=False))

            def group(first: Value, held: Value) -> Value:
                with e.for_loop(0, GROUP, 1, [held]) as each:
                    each.next(element(e.add(first, each.index), each.carried[0]))
                return each.results[0]

            with e.for_loop(low, high) as loop:
                first = e.mul(loop.index, BLOCK)
                last = e.minimum(e.add(first, BLOCK), length)
                whole = e.sub(last, e.rem(e.sub(last, first), GROUP))
                with e.for_loop(first, whole, GROUP, [e.constant(0, "i64")]) as groups:
                    start, held = groups.index, groups.carried[0]
                    if isinstance(mask_step, int) and mask_step == 1:
                        bytes_ = e.load(mask.pointer, e.add(mask.offset([0]), start), "i8", GROUP)
                        some = e.any(e.compare("ne", bytes_, e.constant(0, "i8", GROUP)))
                        (found,) = e.if_else(some, lambda: (group(start, held),), lambda: (held,))
                    else:
                        found = group(start, held)
                    groups.next(found)
                with e.for_loop(whole, last, 1, [groups.results[0]]) as rest:
                    rest.next(element(rest.index, rest.carried[0]))
                begin = e.load(begins.pointer, e.add(begins.offset([0]), e.mul(loop.index, begins_step)), "i64")
                kept = e.maximum(e.minimum(rest.results[0], e.sub(count, begin)), 0)

                def copy(k: Value, lanes: int) -> None:
                    value = e.load(buffer, k, "i64", lanes)
                    at = frame.index.plus(out.offset([0]), e.mul(e.add(begin, k), out_step))
                    out.store(value, at, out_step, dtype=i64)

                vector_loop(e, kept, machine.lanes(8), copy)
                is_last = e.compare("eq", e.add(loop.index, 1), frame.size(blocks))
                with e.if_then(is_last), e.for_loop(e.add(begin, kept), count) as missing:
                    at = e.add(out.offset([0]), e.mul(missing.index, out_step))
                    e.store(e.constant(0, "i64"), out.pointer, at)
        return Written(blocks, GRAIN_BLOCKS, f"blocks of {BLOCK}, written without a branch")
