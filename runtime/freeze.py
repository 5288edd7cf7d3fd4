"""A compiled program as a `KeptProgram`: data that can be kept on disk and run without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dlcompiler.ir.expression import Evaluator
from dlcompiler.ir.program import Code, CompiledKernel, Launch, Placement, Program, RoutineCall, Slot, View
from dlcompiler.runtime.kept import ARENA, CONSTANT, KeptLaunch, KeptProgram, KeptResult, KeptTensor
from dlcompiler.runtime.tables import ALIGNMENT


def freeze(program: Program, placement: Placement, bindings: Mapping[str, int] | None = None) -> KeptProgram | None:
    """The program with its sizes bound; None for one that calls a library or ATen, writes to its inputs, or takes integers."""
    steps = [step for step in program.steps if isinstance(step, Launch | RoutineCall)]
    is_plain = (
        isinstance(program.code, Code)
        and len(steps) == len(program.steps)
        and not any(slot is None or 0 in _stretched(slot) for slot in program.inputs)
        and not any(view.slot.role not in ("output", "constant") for view in program.outputs)
        and not any(view.slot.role == "input" for step in steps for view in step.writes if view is not None)
    )
    return _Freezer(program, placement, bindings or {}).freeze(steps) if is_plain else None


def _stretched(slot: Slot) -> list[Any]:
    """Strides of dimensions with more than one element."""
    return [stride for size, stride in zip(slot.shape, slot.strides) if size != 1]


class _Freezer:
    def __init__(self, program: Program, placement: Placement, bindings: Mapping[str, int]) -> None:
        self.program, self.placement = program, placement
        self.number = Evaluator(bindings)
        self.outputs = sorted((s for s in program.slots if s.role == "output"), key=lambda s: s.position)
        self.first_output = len(program.inputs)
        self.bases: dict[Slot, int] = {slot: k for k, slot in enumerate(program.inputs) if slot is not None}
        self.bases |= {slot: self.first_output + k for k, slot in enumerate(self.outputs)}
        self.prepared: dict[Slot, int] = {}
        end = 0
        for slot in program.slots:
            if slot.role == "prepared":
                self.prepared[slot] = end
                end += -(-self.number(slot.bytes) // ALIGNMENT) * ALIGNMENT
        self.prepared_bytes = end
        self.functions: dict[str, int] = {}

    def freeze(self, steps: Sequence[Launch | RoutineCall]) -> KeptProgram:
        code = self.program.code
        assert isinstance(code, Code)
        frozen = tuple(self._launch(step, kernel) for step, kernel in zip(steps, code.kernels))
        preparation = tuple(self._launch(s, k) for s, k in zip(self.program.preparation, code.preparation, strict=True))
        inputs = tuple(self._tensor(slot) for slot in self.program.inputs if slot is not None)
        return KeptProgram(
            inputs,
            tuple(self._tensor(slot) for slot in self.outputs),
            tuple(self._result(view) for view in self.program.outputs),
            tuple(self.functions),
            frozen,
            preparation,
            self.placement.arena_bytes,
            self.prepared_bytes,
            len(self.program.constants),
            self.program.graph.indices(self.number.bindings),
        )

    def _numbers(self, dims: Sequence[Any]) -> tuple[int, ...]:
        return tuple(self.number(dim) for dim in dims)

    def _tensor(self, slot: Slot) -> KeptTensor:
        return KeptTensor(slot.dtype.name, self._numbers(slot.shape), self._numbers(slot.strides))

    def _launch(self, step: Launch | RoutineCall, kernel: CompiledKernel | None) -> KeptLaunch:
        assert kernel is not None
        function = self.functions.setdefault(kernel.name, len(self.functions))
        words: list[tuple[int | None, int]] = [self._word(view) for view in step.arguments]
        sizes = step.kernel.size_symbols if isinstance(step, Launch) else step.size_symbols
        words += [(None, self.number.bindings[name]) for name in sizes]
        return KeptLaunch(function, self.number(kernel.work), max(kernel.grain, 1), max(kernel.multiple, 1), tuple(words))

    def _word(self, view: View) -> tuple[int, int]:
        """As `runtime.plan`'s, but that a constant is a number."""
        offset, slot = self.number(view.offset) * view.dtype.bytes, view.slot
        if slot.role == "intermediate":
            return ARENA, self.placement.offsets[slot] + offset
        if slot.role == "constant":
            return CONSTANT - slot.position, offset
        if slot.role == "prepared":
            return self.first_output + len(self.outputs), self.prepared[slot] + offset
        return self.bases[slot], offset

    def _result(self, view: View) -> KeptResult:
        at = view.slot.position if view.slot.role == "constant" else self.bases[view.slot] - self.first_output
        shape, strides = self._numbers(view.shape), self._numbers(view.strides)
        return KeptResult(view.slot.role, at, shape, strides, self.number(view.offset), view.dtype.name)
