"""Results that replace an input's contents are computed where they belong, instead of being copied there at the end.

    t = launch f(p, g)        -->  p = launch f(p, g)
    ...
    p = launch copy(t)

Whatever reads the old contents must run before f, so must not depend on it; or be f itself, if it reads an element just where it
writes it (see `in_place`). Steps are put in such an order; `order_steps` then keeps it, since both touch one slot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from dlcompiler.ir.kernel import Kernel, Load
from dlcompiler.ir.program import AtenCall, Launch, LibraryCall, Program, Slot, Step, View
from dlcompiler.passes.dataflow.in_place import safe_pairs
from dlcompiler.passes.dataflow.order import dependencies


def write_in_place(program: Program) -> Program:
    """The program with as many copies into inputs left out as can be; the same object if there are none."""
    search = _Search(program)
    pairs = search.run()
    if not pairs:
        return program
    copies = {copy for copy, _, _ in pairs}
    stands_for = {source: target for _, source, target in pairs}
    order = _order(search.next)
    steps = tuple(with_slots(program.steps[k], stands_for) for k in order if k not in copies)
    slots = tuple(slot for slot in program.slots if slot not in stands_for)
    return program.replace(steps=steps, slots=slots)


class _Search:
    """Finds (copy step, its source, the input it writes) that can go, one after another: each adds edges to the steps' order."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.readers: dict[Slot, list[int]] = {}
        self.writers: dict[Slot, list[int]] = {}
        for number, step in enumerate(program.steps):
            for view in step.reads:
                self.readers.setdefault(view.slot, []).append(number)
            for written in step.writes:
                if written is not None:
                    self.writers.setdefault(written.slot, []).append(number)
        self.next: list[list[int]] = [[] for _ in program.steps]
        for number, earlier in enumerate(dependencies(program)):
            for k in earlier:
                self.next[k].append(number)
        self.shown = {view.slot for view in program.outputs}
        self.safe: dict[Kernel, dict[int, tuple[int, ...]]] = {}
        self.placed: set[Slot] = set()  # sources that have an input's place; they are copied to any other that they belong in

    def run(self) -> list[tuple[int, Slot, Slot]]:
        found = []
        for number, step in enumerate(self.program.steps):
            pair = self._pair(number, step)
            if pair is not None:
                found.append((number, *pair))
                self.placed.add(pair[0])
        return found

    def _pair(self, number: int, step: Step) -> tuple[Slot, Slot] | None:
        """(source, target) of a copy that is not needed."""
        if not isinstance(step, Launch) or len(step.arguments) != 2 or not _is_copy(step.kernel):
            return None
        source, target = step.arguments
        if target.slot.role != "input" or source.slot.role != "intermediate" or not (source.is_whole and target.is_whole):
            return None
        if source.slot in self.placed or source.strides != target.strides or source.slot.dtype is not target.slot.dtype:
            return None
        if target.slot in self.shown or self.writers[target.slot] != [number]:
            return None
        makers = self.writers.get(source.slot, [])
        if len(makers) != 1 or isinstance(self.program.steps[makers[0]], AtenCall):
            return None
        (maker,) = makers
        before = [k for k in self.readers.get(target.slot, ()) if k not in (maker, number)]
        if any(k > number for k in before):
            return None
        if not self._writes_safely(maker, source.slot, target.slot) or self._reaches(maker, set(before)):
            return None
        for reader in before:
            self.next[reader].append(maker)
        return source.slot, target.slot

    def _writes_safely(self, maker: int, source: Slot, target: Slot) -> bool:
        """Whether the step that computes `source` may write it into `target` though it reads that, or does not read it."""
        step = self.program.steps[maker]
        if [view.slot for view in step.writes if view is not None].count(source) != 1:
            return False
        if not any(view.slot is target for view in step.reads):
            return True
        if not isinstance(step, Launch):
            return False
        if step.kernel not in self.safe:
            self.safe[step.kernel] = safe_pairs(step.kernel)
        (out,) = (k for k, view in enumerate(step.arguments) if view.slot is source)
        operands = [k for k, view in enumerate(step.arguments) if view.slot is target]
        if len(operands) != 1 or operands[0] not in self.safe[step.kernel].get(out, ()):
            return False
        read, written, buffers = step.arguments[operands[0]], step.arguments[out], step.kernel.buffers
        return (
            read.offset == written.offset == 0
            and read.strides == buffers[operands[0]].strides
            and written.strides == buffers[out].strides
        )

    def _reaches(self, start: int, goals: set[int]) -> bool:
        """Whether a step must run before one of the others."""
        stack, seen = [start], {start}
        while stack:
            current = stack.pop()
            if current in goals:
                return True
            for following in self.next[current]:
                if following not in seen:
                    seen.add(following)
                    stack.append(following)
        return False


def _order(following: Sequence[Sequence[int]]) -> list[int]:
    """The steps in the order given, but for those that must wait until an input has been read."""
    waits: list[set[int]] = [set() for _ in following]
    for number, others in enumerate(following):
        for other in others:
            waits[other].add(number)
    order: list[int] = []
    done: set[int] = set()
    for start in range(len(following)):
        stack = [start]
        while stack:
            current = stack[-1]
            missing = sorted(k for k in waits[current] if k not in done)
            if current in done or not missing:
                stack.pop()
                if current not in done:
                    done.add(current)
                    order.append(current)
            else:
                stack.extend(reversed(missing))
    return order


def _is_copy(kernel: Kernel) -> bool:
    """Whether a kernel stores one buffer into another of the same strides, element by element."""
    if len(kernel.stores) != 1 or len(kernel.buffers) != 2:
        return False
    (store,) = kernel.stores
    value = store.value
    return (
        isinstance(value, Load)
        and value.buffer.role == "in"
        and value.buffer.strides == store.buffer.strides
        and tuple(value.index) == tuple(store.index)
    )


def with_slots(step: Step, stands_for: Mapping[Slot, Slot]) -> Step:
    """A step with views of other slots; what a call of ATen writes is left."""

    def renamed(view: View) -> View:
        return replace(view, slot=stands_for[view.slot])

    def views(given: Sequence[View | None]) -> tuple:
        return tuple(view if view is None or view.slot not in stands_for else renamed(view) for view in given)

    touched = [view for view in (*step.reads, *step.writes) if view is not None and view.slot in stands_for]
    if not touched:
        return step
    if isinstance(step, Launch):
        return replace(step, arguments=views(step.arguments))
    if isinstance(step, LibraryCall):
        return replace(step, reads=views(step.reads), writes=views(step.writes))
    return replace(step, reads=views(step.reads))
