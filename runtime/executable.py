"""A compiled program as a callable: a few microseconds of Python around jumps into compiled code.

A call checks its inputs, allocates its outputs, takes an arena, writes their addresses into the tables of a free frame and walks
over the sections of its plan. It is safe to call from several threads: each call in progress has a frame of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from dlcompiler.ir.errors import InputError, LaunchError
from dlcompiler.ir.program import Code, Placement, Program
from dlcompiler.runtime.arena import ARENAS
from dlcompiler.runtime.binding import Binder
from dlcompiler.runtime.frame import Frame
from dlcompiler.runtime.inputs import adapt, check_indices, describe_mismatch, finish_writes
from dlcompiler.runtime.plan import Plan, Result, Shared
from dlcompiler.runtime.tensors import empty_strided, guard_like, picker
from torch import Tensor

# Frames that wait for the next call, in each plan; more exist only while more calls are in progress.
IDLE_FRAMES = 8
# Kinds of inputs (in training and in inference mode, say) that each plan takes without looking at each tensor.
MOST_GUARDS = 4
# Plans of a symbolic program that are kept.
MOST_PLANS = 64

# of a tensor, quicker than by name in a loop; what comes here is no subclass that has another
_address = Tensor.data_ptr

Place = Callable[[Program, Mapping[str, int]], Placement]


class Executable:
    """Runs `program`, whose `code` must be attached.

    `place` makes the memory plan for one binding of the symbols; it is only needed for a program without a placement. With
    `pack_constants` libraries may keep a rearranged copy of constant weights: quicker, and takes their size again.
    Raises LaunchError or UnsupportedError for a program that this runtime cannot run.
    """

    def __init__(self, program: Program, place: Place | None = None, *, pack_constants: bool = True) -> None:
        if not isinstance(program.code, Code):
            raise LaunchError(f"program {program.name} has no code for a CPU")
        if program.placement is None and place is None:
            raise LaunchError(f"program {program.name} has no memory plan and nothing to make one")
        self.program = program
        self._place = place
        self._shared = Shared(program, program.code, pack_constants)
        self._binder = Binder(program)
        self._plans: dict[tuple[int, ...], _Runner] = {}
        self._lock = threading.Lock()
        self._only = None if self._binder.names else self._runner(())

    def __call__(self, inputs: Sequence[Any]) -> list[Tensor]:
        """Tensors, and integers for the program's integer arguments, in the order of `program.inputs`, to result tensors.

        What the program owns of a list of inputs is freed as soon as no step needs it: those entries become None. Raises
        InputError for a wrong number of inputs, or a wrong dtype, shape or device, naming the input.
        """
        runner = self._only
        if runner is None or len(inputs) != runner.count:
            runner = self._find_runner(inputs)
        return runner(inputs)

    def reserve(self) -> None:
        """Say that a call follows soon: memory that is filled before the first one is got ready in the background."""
        self._shared.copies.reserve()

    def time_steps(self, inputs: Sequence[Any]) -> list[tuple[int, float]]:
        """Run a call step by step: (number of the step, its seconds) for each. Inputs that the program writes are written.

        Raises InputError as a call does.
        """
        times: list[tuple[int, float]] = []
        self._find_runner(inputs)(inputs, times)
        return times

    def placement(self, bindings: Mapping[str, int] | None = None) -> Placement:
        """The memory plan used for these sizes."""
        values = tuple((bindings or {})[name] for name in self._binder.names)
        return self._runner(values).plan.placement

    @property
    def symbols(self) -> tuple[str, ...]:
        """Names of the sizes that a call binds, in the order of `sizes`."""
        return self._binder.names

    def sizes(self, inputs: Sequence[Any]) -> tuple[int, ...]:
        """What these inputs bind the symbols to. Raises InputError for one that has no such size."""
        return self._binder(inputs)

    def close(self) -> None:
        """Free packed weights, and all arenas of the process, that no call in progress uses. A later call makes them again."""
        with self._lock:
            self._plans.clear()
            self._shared = Shared(self.program, self._shared.code, self._shared.pack)
        self._only = None if self._binder.names else self._runner(())
        ARENAS.trim()

    def _find_runner(self, inputs: Sequence[Any]) -> _Runner:
        expected = len(self.program.inputs)
        if len(inputs) != expected:
            raise InputError(f"{self.program.name} takes {expected} inputs, not {len(inputs)}")
        return self._runner(self._binder(inputs))

    def _runner(self, values: tuple[int, ...]) -> _Runner:
        runner = self._plans.get(values)
        if runner is None:
            with self._lock:
                runner = self._plans.get(values) or self._make_runner(values)
        elif self._binder.names:
            with self._lock:  # most recently used last
                self._plans[values] = self._plans.pop(values, runner)
        return runner

    def _make_runner(self, values: tuple[int, ...]) -> _Runner:
        bindings = dict(zip(self._binder.names, values))
        self.program.graph.check_limits(bindings)
        placement = self.program.placement
        if placement is None:
            assert self._place is not None
            placement = self._place(self.program, bindings)
        runner = _Runner(Plan(self._shared, bindings, placement))
        self._plans[values] = runner
        while len(self._plans) > MOST_PLANS:
            del self._plans[next(iter(self._plans))]
        return runner


class _Runner:
    """A plan and its idle frames: what runs a call whose sizes are known."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.count = len(plan.inputs)
        self.frames: list[Frame] = []
        # for each tensor: position, dtype, shape, strides, whether a lazy negation or conjugate must be looked for
        self.checks: list[list[Any]] = [
            [position, layout.dtype, layout.shape, layout.strides, layout.dtype.is_floating_point or layout.dtype.is_complex]
            for position, layout in enumerate(plan.inputs)
            if layout is not None
        ]
        # whether tensors are of a kind that was found to fit in an earlier call; the last found first
        self.guards: list[Callable[..., bool]] = []
        self._tensors_of = picker(plan.tensor_inputs, self.count)
        # libraries are given tensors over it, also where none has an element
        needs_address = any(place.base == plan.arena for place in plan.places)
        self._arena_bytes = max(plan.placement.arena_bytes, int(needs_address))
        if self._arena_bytes:
            ARENAS.announce(self, self._arena_bytes)

    def __call__(self, inputs: Sequence[Any], times: list[tuple[int, float]] | None = None) -> list[Tensor]:
        """A call; with `times` one step at a time, and a time for each is added."""
        if self.plan.indices:
            check_indices(self.plan, inputs)
        frame = self._free_frame()
        arena = ARENAS.take(self._arena_bytes) if self._arena_bytes else None
        prepared = False
        try:
            if arena is not None:
                frame.use_arena(arena.address)
            replaced = self._take_inputs(frame, inputs)
            outputs = frame.allocate_outputs()
            if self.plan.changes and not replaced:
                frame.give(inputs)
            threads = torch.get_num_threads()
            if self.plan.preparation:
                frame.prepare(inputs, bool(replaced), threads)
                prepared = True
            if self.plan.uses_torch:
                _run_with_torch(frame, threads, times)
            elif times is None:
                frame.run_steps(threads)
            else:
                times += frame.time_steps(threads)
            if replaced or self.plan.written_inputs:
                finish_writes(self.plan.written_inputs, inputs, replaced)
            return [self._result(r, frame, inputs, replaced, outputs) for r in self.plan.results]
        finally:
            if prepared:
                frame.release()
            frame.forget()
            if arena is not None:
                ARENAS.give(arena)
            if len(self.frames) < IDLE_FRAMES:
                self.frames.append(frame)

    def _free_frame(self) -> Frame:
        try:
            return self.frames.pop()
        except IndexError:  # not asked before: another thread may take the last one in between
            return Frame(self.plan)

    def _take_inputs(self, frame: Frame, inputs: Sequence[Any]) -> dict[int, Tensor]:
        """Check the inputs and give the frame their addresses. Returns what had to be copied, by position."""
        tensors = self._tensors_of(inputs)
        for guard in self.guards:
            if guard(*tensors):
                frame.set_inputs(list(map(_address, tensors)))
                return {}
        return self._look_at_inputs(frame, inputs)

    def _look_at_inputs(self, frame: Frame, inputs: Sequence[Any]) -> dict[int, Tensor]:
        """As `_take_inputs`, one by one; what needs no copy passes at once next time."""
        addresses: list[int] = []
        replaced: dict[int, Tensor] = {}
        try:
            for check in self.checks:
                position, dtype, shape, strides, may_be_lazy = check
                tensor = inputs[position]
                if (
                    tensor.dtype is not dtype
                    or tensor.shape != shape
                    or tensor.stride() != strides
                    or not tensor.is_cpu
                    or (may_be_lazy and (tensor.is_neg() or tensor.is_conj()))
                ):
                    tensor = adapt(self.plan, position, tensor)
                    if tensor is inputs[position]:
                        check[3] = tensor.stride()  # as good as the strides asked for; next time it passes at once
                    else:
                        replaced[position] = tensor
                addresses.append(tensor.data_ptr())
        except (AttributeError, RuntimeError):
            describe_mismatch(self.plan, inputs)  # what is no dense tensor has no dtype, or no strides
            raise
        frame.set_inputs(addresses)
        if not replaced and self.checks and len(self.guards) < MOST_GUARDS:
            guard = guard_like(self._tensors_of(inputs))
            if guard is not None:
                self.guards.insert(0, guard)
        return replaced

    def _result(
        self, result: Result, frame: Frame, inputs: Sequence[Any], replaced: Mapping[int, Tensor], outputs: Sequence[Tensor]
    ) -> Tensor:
        kind, at, whole, shape, strides, offset = result
        if kind == "output":
            return outputs[at] if whole else outputs[at].as_strided(shape, strides, offset)
        if kind == "extern":
            tensor = frame.externs[at]
            return tensor if whole else tensor.as_strided(shape, strides, tensor.storage_offset() + offset)
        with torch.no_grad():
            if kind == "constant":  # a copy: the caller may write to it
                constant = self.plan.constant(result)
                return empty_strided(shape, strides, constant.dtype).copy_(constant)
            if whole:
                return inputs[at]
            tensor = replaced.get(at, inputs[at]).detach()
            return tensor.as_strided(shape, strides, tensor.storage_offset() + offset)


def _run_with_torch(frame: Frame, threads: int, times: list[tuple[int, float]] | None) -> None:
    """Run a program that calls torch, which must not cast because of an autocast context around the call."""
    frame.set_input_tensors()
    with torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else nullcontext():
        if times is None:
            frame.run_steps(threads)
        else:
            times += frame.time_steps(threads)
