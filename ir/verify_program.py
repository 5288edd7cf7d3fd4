"""The rules of Program IR, checked: what a step may touch, what it must find written, and that the memory plan is sound."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import NoReturn

from dlcompiler.ir.errors import VerifyError
from dlcompiler.ir.expression import Dim, evaluate, known
from dlcompiler.ir.kernel import Kernel, Load
from dlcompiler.ir.ops import TABLE
from dlcompiler.ir.program import AtenCall, Launch, LibraryCall, Placement, Program, RoutineCall, Slot, View
from dlcompiler.ir.text.program import show_step
from dlcompiler.ir.text.values import show_labels
from dlcompiler.ir.verify_kernel import verify_kernel

CONTEXT = 5


def verify_program(program: Program) -> None:
    """Raise VerifyError unless the program keeps every rule of its IR.

    Each kernel keeps the rules of its own; arguments are what the kernel's buffers say; every slot is written before it is read;
    constants are not written; extern slots are written by aten calls alone and nothing else is; views lie in their slots; an
    intermediate or block takes over memory only from one that is dead by then; and under a placement no two intermediates
    that are alive together overlap.
    """
    _Check(program).run()
    if program.placement is not None:
        _verify_placement(program, program.placement)


class _Check:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.slots = set(program.slots)
        self.written: set[Slot] = {s for s in program.slots if s.role in ("input", "constant")}
        self.kernels: set[Kernel] = set()

    def fail(self, message: str, step: int) -> NoReturn:
        program = self.program
        labels = show_labels(program.slots)
        kernels = show_labels(dict.fromkeys(s.kernel for s in program.steps if isinstance(s, Launch)))
        lines = [
            f"{'>' if k == step else ' '} {k}: {show_step(program.steps[k], labels, kernels)}"
            for k in range(max(step - CONTEXT, 0), min(step + CONTEXT, len(program.steps)))
        ]
        raise VerifyError("\n".join([f"program {program.name}: {message}", *lines]))

    def run(self) -> None:
        program = self.program
        if len(self.slots) != len(program.slots):
            self.fail("a slot is listed twice", -1)
        self.inputs()
        self.preparation()
        for number, step in enumerate(program.steps):
            for view in (*step.reads, *step.writes):
                if view is not None:
                    self.view(view, number)
            for view in step.reads:
                if view.slot not in self.written:
                    self.fail(f"step {number} reads {view.slot.name} before it is written", number)
            match step:
                case Launch():
                    self.launch(step, number)
                case LibraryCall():
                    if step.op not in TABLE:
                        self.fail(f"{step.op} is not in the op table", number)
            self.writes(step, number)
        for view in program.outputs:
            self.view(view, len(program.steps))
            if view.slot not in self.written:
                self.fail(f"output {view.slot.name} is never written", len(program.steps))
            if view.slot.role == "intermediate":
                self.fail(f"output {view.slot.name} lies in the arena, which the next call overwrites", len(program.steps))
        self.aliases()

    def preparation(self) -> None:
        """Prepared slots are written by the preparation alone, out of what is there before the first step."""
        for step in self.program.preparation:
            verify_kernel(step.kernel)
            for view in step.reads:
                if view.slot not in self.written:
                    self.fail(f"the preparation reads {view.slot!r}, which is not there before the first step", -1)
            for view in step.writes:
                if view.slot.role != "prepared":
                    self.fail(f"the preparation writes {view.slot!r}", -1)
                self.written.add(view.slot)

    def inputs(self) -> None:
        program = self.program
        if len(program.inputs) != len(program.graph.inputs):
            self.fail(f"{len(program.inputs)} inputs for a graph with {len(program.graph.inputs)}", -1)
        for position, (slot, node) in enumerate(zip(program.inputs, program.graph.inputs)):
            if (slot is None) != (node.op.name == "size"):
                self.fail(f"input {position} is {slot}, in the graph {node!r}", -1)
            if slot is not None and (slot.role != "input" or slot.position != position or slot not in self.slots):
                self.fail(f"input {position} is {slot} at position {slot.position}", -1)
        for slot in program.slots:
            if slot.role == "constant" and not 0 <= slot.position < len(program.constants):
                self.fail(f"constant {slot.name} has position {slot.position} of {len(program.constants)}", -1)
            if len(slot.shape) != len(slot.strides):
                self.fail(f"slot {slot.name} has another number of strides than dimensions", -1)

    def view(self, view: View, number: int) -> None:
        if view.slot not in self.slots:
            self.fail(f"{view.slot.name} is not a slot of the program", number)
        if len(view.shape) != len(view.strides):
            self.fail(f"a view of {view.slot.name} has another number of strides than dimensions", number)
        elements = view.slot.elements
        if isinstance(view.offset, int) and isinstance(elements, int) and _all_known(view):
            span = 0 if 0 in view.shape else known(1 + sum((n - 1) * s for n, s in zip(view.shape, view.strides)))
            if view.offset < 0 or (span and view.offset + span > elements):
                self.fail(f"a view of {view.slot.name} ends at element {view.offset + span} of {elements}", number)

    def launch(self, step: Launch, number: int) -> None:
        kernel = step.kernel
        if kernel not in self.kernels:
            verify_kernel(kernel)
            self.kernels.add(kernel)
        if len(step.arguments) != len(kernel.buffers):
            self.fail(f"{kernel.name} has {len(kernel.buffers)} buffers, not {len(step.arguments)}", number)
        for view, buffer in zip(step.arguments, kernel.buffers):
            if (view.dtype, view.shape, view.strides) != (buffer.dtype, buffer.shape, buffer.strides):
                wanted = f"{buffer.dtype}{list(buffer.shape)} with strides {list(buffer.strides)}"
                given = f"{view.dtype}{list(view.shape)} with strides {list(view.strides)}"
                self.fail(f"buffer {buffer.name} is {wanted}, its argument {given}", number)
        self.in_place(step, number)

    def in_place(self, step: Launch, number: int) -> None:
        """Memory that is read and written in one launch must be read at the element that is written, and nowhere else."""
        touched: set[Slot] = set()
        changed: set[Slot] = set()
        for part, arguments in step.parts:
            slots = {self.root(v.slot) for v in arguments}
            written = {self.root(v.slot) for v, b in zip(arguments, part.buffers) if b.role == "out"}
            if written & touched or slots & changed:
                self.fail(f"{part.name} and parts of {step.kernel.name} before it depend on each other", number)
            touched |= slots
            changed |= written
            self._in_place_part(part, arguments, number)

    def _in_place_part(self, kernel: Kernel, arguments: Sequence[View], number: int) -> None:
        root = self.root
        for out, out_view in zip(kernel.buffers, arguments):
            if out.role != "out":
                continue
            shared = {b for b, v in zip(kernel.buffers, arguments) if b.role == "in" and root(v.slot) is root(out_view.slot)}
            if not shared:
                continue
            written = {out.offset(s.index) + out_view.offset for s in kernel.stores if s.buffer == out}
            offsets = {b: v.offset for b, v in zip(kernel.buffers, arguments)}
            for value in kernel.values:
                if not isinstance(value, Load) or value.buffer not in shared:
                    continue
                buffer = value.buffer
                if buffer.dtype.bytes != out.dtype.bytes or written != {buffer.offset(value.index) + offsets[buffer]}:
                    self.fail(f"{buffer.name} and {out.name} share memory but not the order of their elements", number)

    def root(self, slot: Slot) -> Slot:
        while slot in self.program.aliases:
            slot = self.program.aliases[slot]
        return slot

    def writes(self, step: Launch | LibraryCall | AtenCall, number: int) -> None:
        is_extern = isinstance(step, AtenCall)
        in_place = dict(step.in_place) if isinstance(step, RoutineCall) else {}
        for k, view in enumerate(step.writes):
            if view is None:
                continue
            if view.slot.role in ("constant", "prepared"):
                self.fail(f"{view.slot.role} {view.slot.name} is written", number)
            if (view.slot.role == "extern") != is_extern:
                self.fail(f"{view.slot!r} is written by a {type(step).__name__}", number)
            touched = {self.root(v.slot) for j, v in enumerate(step.reads) if j != in_place.get(k)}
            if not isinstance(step, Launch) and self.root(view.slot) in touched:
                self.fail(f"{view.slot.name} is read and written by one call", number)
            self.written.add(view.slot)

    def aliases(self) -> None:
        lifetimes = dict(self.program.lifetimes)
        for number, step in enumerate(self.program.steps):
            lifetimes.update((view.slot, (-1, number)) for view in step.reads if view.slot in self.program.owned)
            written = [view.slot for view in step.writes if view is not None and view.slot.role == "output"]
            lifetimes |= {slot: (number, len(self.program.steps)) for slot in written if slot not in lifetimes}
        groups: dict[Slot, list[Slot]] = {}
        for slot, source in self.program.aliases.items():
            is_like = slot.role in ("intermediate", "block") and source.role == slot.role
            may_take = is_like or (slot.role == "output" and source.role == "block")
            may_take = may_take or (slot.role == "block" and source in self.program.owned)
            if not may_take or {slot, source} - self.slots:
                self.fail(f"{slot!r} cannot take over {source!r}", -1)
            members = groups.setdefault(self.root(slot), [self.root(slot)])
            members.append(slot)
        for members in groups.values():
            in_time = sorted((s for s in members if s in lifetimes), key=lambda s: lifetimes[s])
            for before, after in zip(in_time, in_time[1:]):
                if lifetimes[after][0] < lifetimes[before][1]:
                    self.fail(f"{after.name} takes over {before.name}, which is still needed later", lifetimes[after][0])


def _all_known(view: View) -> bool:
    return all(isinstance(d, int) for d in (*view.shape, *view.strides))


def _verify_placement(program: Program, placement: Placement) -> None:
    """Sweep over the steps with the places of what is alive, sorted by offset; only neighbours in memory can overlap."""

    def number(dim: Dim) -> int:
        return evaluate(dim, {})

    fail = _Check(program).fail
    root = _Check(program).root
    groups: dict[Slot, list[Slot]] = {}
    for slot in program.lifetimes:
        if slot.role == "intermediate":
            groups.setdefault(root(slot), []).append(slot)
    starts: dict[int, list[tuple[int, int, Slot, int]]] = {}
    for head, members in groups.items():
        offsets = {placement.offsets[s] for s in members if s in placement.offsets}
        if len(offsets) != 1:
            fail(f"{head.name} has {len(offsets)} places in the arena", program.lifetimes[members[0]][0])
        (low,) = offsets
        high = low + max(number(s.bytes) for s in members)
        if low < 0 or high > placement.arena_bytes:
            fail(f"{head.name} at [{low}, {high}) is outside the arena of {placement.arena_bytes} bytes", -1)
        first = min(program.lifetimes[s][0] for s in members)
        last = max(program.lifetimes[s][1] for s in members)
        if high > low:
            starts.setdefault(first, []).append((low, high, head, last))
    _sweep(program, starts)


def _sweep(program: Program, starts: dict[int, list[tuple[int, int, Slot, int]]]) -> None:
    ends: dict[int, list[int]] = {}
    alive: list[int] = []  # offsets, sorted
    held: dict[int, tuple[int, Slot]] = {}  # offset -> its end, and who is there
    for step in sorted({*starts, *(entry[3] + 1 for entries in starts.values() for entry in entries)}):
        for low in ends.pop(step, ()):
            alive.pop(bisect_left(alive, low))
            del held[low]
        for low, high, slot, last in starts.get(step, ()):
            at = bisect_left(alive, low)
            for neighbour in alive[max(at - 1, 0) : at + 1]:
                end, other = held[neighbour]
                if neighbour < high and low < end:
                    _Check(program).fail(f"{slot.name} and {other.name} are alive at step {step} and overlap in the arena", step)
            insort(alive, low)
            held[low] = (high, slot)
            ends.setdefault(last + 1, []).append(low)
