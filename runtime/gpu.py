"""A program compiled for a GPU as a callable.

Everything up to the first call works on any machine; the device is opened then. A call checks its inputs, sets their addresses
in the prepared arguments of every kernel and starts all steps on torch's current stream, without waiting. Outputs are fresh
memory. A static program without calls of ATen operators is recorded as a CUDA graph after its first run (`gpu_graph`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import reduce
from operator import or_
from typing import Any

import torch
from dlcompiler.ir.errors import InputError, LaunchError
from dlcompiler.ir.program import Placement, Program
from dlcompiler.runtime.binding import Binder
from dlcompiler.runtime.device import Device, open_device, require_memory
from dlcompiler.runtime.gpu_frame import Given, GpuFrame
from dlcompiler.runtime.gpu_graph import Recorder, is_recordable
from dlcompiler.runtime.gpu_plan import GpuPlan, GpuShared, Prepared, kept_bytes
from dlcompiler.runtime.inputs import adapt, describe_mismatch, finish_writes
from dlcompiler.runtime.plan import Result
from dlcompiler.runtime.prepared import versions_of
from dlcompiler.runtime.tensors import guard_like, picker
from torch import Tensor

MOST_GUARDS = 4  # kinds of inputs that a plan takes without looking at each tensor
MOST_PLANS = 16  # of a symbolic program; each keeps an arena

Place = Callable[[Program, Mapping[str, int]], Placement]


class GpuExecutable:
    """Runs `program`, whose `code` must be for a GPU.

    place        makes the memory plan for one binding of the symbols
    graphs       whether to record CUDA graphs; None: where copying inputs and outputs costs little
    open_device  what gives the device, when the first call needs it: the one of that number, on which the call's inputs are
    """

    def __init__(
        self,
        program: Program,
        place: Place | None = None,
        *,
        graphs: bool | None = None,
        open_device: Callable[[int | None], Device] = open_device,
    ) -> None:
        self.program = program
        self._place, self._graphs, self._open = place, graphs, open_device
        self._binder = Binder(program)
        self._lock = threading.RLock()
        self._shared: GpuShared | None = None
        self._plans: dict[tuple[int, ...], _Runner] = {}

    def __call__(self, inputs: Sequence[Any]) -> list[Tensor]:
        """Tensors, and integers for the program's integer arguments, in the order of `program.inputs`, to result tensors.

        Tensors on the CPU are copied to the device. Raises LaunchError if this machine has no GPU that can run the program, or
        too little memory; InputError for a wrong number of inputs, dtype, shape or device.
        """
        return self._runner(inputs)(inputs)

    def time_steps(self, inputs: Sequence[Any]) -> list[tuple[int, float]]:
        """Run a call step by step, waiting for each: (number of the step, its seconds). Raises as a call does."""
        times: list[tuple[int, float]] = []
        self._runner(inputs)(inputs, times)
        return times

    def recorded(self, calls: Sequence[Sequence[Any]]) -> Callable[[], None]:
        """Calls with these inputs, one after another, as one graph, to be timed: without what the host does for each.

        What is prepared from weights is prepared once, from those of the first call. Raises RuntimeError where a step cannot be
        recorded; else as a call does.
        """
        return self._runner(calls[0]).recorded(calls)

    def placement(self, bindings: Mapping[str, int] | None = None) -> Placement:
        """The memory plan for these sizes."""
        if self.program.placement is not None:
            return self.program.placement
        if self._place is None:
            raise LaunchError(f"program {self.program.name} has no memory plan and nothing to make one")
        return self._place(self.program, bindings or {})

    def close(self) -> None:
        """Free all memory on the device. A later call makes what it needs again."""
        with self._lock:
            if self._shared is not None:
                self._shared.settle()
            self._plans.clear()
            self._shared = None

    def _runner(self, inputs: Sequence[Any]) -> _Runner:
        expected = len(self.program.inputs)
        if len(inputs) != expected:
            raise InputError(f"{self.program.name} takes {expected} inputs, not {len(inputs)}")
        values = self._binder(inputs) if self._binder.names else ()
        runner = self._plans.get(values)
        if runner is not None:
            return runner
        with self._lock:
            return self._plans.get(values) or self._make_runner(values, _device_of(inputs))

    def _make_runner(self, values: tuple[int, ...], device_index: int | None) -> _Runner:
        bindings = dict(zip(self._binder.names, values))
        self.program.graph.check_limits(bindings)
        placement = self.placement(bindings)
        if self._shared is None:
            device = self._open(device_index)
            if device.is_recording():
                raise LaunchError(
                    f"the first call of {self.program.name} cannot be recorded",
                    hint="call it once before you record it in a graph",
                )
            require_memory(device, kept_bytes(self.program, device), ("its constants",))
            self._shared = GpuShared(self.program, device)
        plan = GpuPlan(self._shared, bindings, placement)
        require_memory(self._shared.device, plan.call_bytes, ("arena and results",))
        while len(self._plans) >= MOST_PLANS:
            del self._plans[next(iter(self._plans))]
        wants_graph = self._graphs is not False and not self._binder.names and is_recordable(self.program)
        self._plans[values] = runner = _Runner(plan, self._graphs if wants_graph else False)
        return runner


def _device_of(inputs: Sequence[Any]) -> int | None:
    """The number of the GPU on which the first tensor that is on one lies."""
    devices = (x.device for x in inputs if isinstance(x, Tensor))
    return next((device.index for device in devices if device.type == "cuda"), None)


class _Runner:
    """A plan and its frames, one for each stream: what runs a call whose sizes are known. One call at a time is started."""

    def __init__(self, plan: GpuPlan, graphs: bool | None) -> None:
        self.plan, self.device = plan, plan.shared.device
        self.frames: dict[int, GpuFrame] = {}
        self.recorder = None if graphs is False else Recorder(plan, always=bool(graphs))
        self._tensors_of = picker(plan.tensor_inputs, len(plan.inputs))
        self._place_of = {position: k for k, position in enumerate(plan.tensor_inputs)}
        # whether tensors are of a kind that was found to fit in an earlier call; the last found first
        self._guards: list[Callable[..., bool]] = []
        self._aligned: list[int] = []  # addresses of a call that were found to be

    def __call__(self, inputs: Sequence[Any], times: list[tuple[int, float]] | None = None) -> list[Tensor]:
        shared = self.plan.shared
        with shared.lock, self.device.active(), _no_autocast():
            given = self._take(inputs)
            stream = self.device.stream()
            shared.join(stream)
            shared.refresh_constants()
            if self.device.is_recording():
                outputs, externs = self._run_recorded(given)
            else:
                outputs, externs = self._run_now(stream, given, times)
            finish_writes(self.plan.written_inputs, inputs, given.replaced)
            return [self._result(r, given, outputs, externs) for r in self.plan.results]

    def recorded(self, calls: Sequence[Sequence[Any]]) -> Callable[[], None]:
        """See `GpuExecutable.recorded`."""
        with self.plan.shared.lock, self.device.active(), _no_autocast(), torch.inference_mode(False), torch.no_grad():
            given = [self._take(inputs) for inputs in calls]
            frame = GpuFrame(self.plan)
            if self.plan.preparation:
                self._prepare(frame, given[0])
            outputs = frame.allocate_outputs()

            def run() -> None:
                for each in given:
                    frame.set_inputs(each.addresses)
                    frame.run_steps()
                    frame.externs.clear()

            replay = self.device.record(run)
        held = frame, outputs, given  # whose memory the graph uses

        def start() -> None:
            assert held
            replay()

        return start

    def _run_now(
        self, stream: int, given: Given, times: list[tuple[int, float]] | None
    ) -> tuple[list[Tensor], dict[int, Tensor]]:
        frame = self.frames.get(stream)
        if frame is None:
            frame = self.frames[stream] = GpuFrame(self.plan)
        if self.plan.preparation:
            self._prepare(frame, given)
        if self.recorder is not None and times is None:
            return self.recorder.run(frame, given), {}
        return self._run(frame, given, times)

    def _run_recorded(self, given: Given) -> tuple[list[Tensor], dict[int, Tensor]]:
        """A call that goes into somebody's graph, whose memory the arena is taken from: it is the graph's as long as that lives.

        What is prepared from weights is prepared by each replay, as the weights then are.
        """
        frame = GpuFrame(self.plan)
        if self.plan.preparation:
            frame.set_inputs(given.addresses)
            frame.prepare()
        return self._run(frame, given, None)

    def _run(
        self, frame: GpuFrame, given: Given, times: list[tuple[int, float]] | None
    ) -> tuple[list[Tensor], dict[int, Tensor]]:
        """Start every step; the outputs, and the extern tensors that are left, by base."""
        frame.set_inputs(given.addresses)
        outputs = frame.allocate_outputs()
        if times is None:
            frame.run_steps()
        else:
            times += frame.time_steps(self.device.synchronize)
        externs, frame.externs = frame.externs, {}
        return outputs, externs

    def _take(self, inputs: Sequence[Any]) -> Given:
        """The inputs as tensors on the device, laid out as kernels expect; and those among them that had to be copied."""
        tensors = self._tensors_of(inputs)
        for guard in self._guards:
            if guard(*tensors):
                addresses = list(map(Tensor.data_ptr, tensors))
                if addresses == self._aligned or not reduce(or_, addresses, 0) % self.plan.input_alignment:
                    self._aligned = addresses
                    return Given(tensors, addresses, {})
                break
        return self._look_at(inputs)

    def _look_at(self, inputs: Sequence[Any]) -> Given:
        """As `_take`, one by one; what needs no copy passes at once next time."""
        taken: list[Tensor] = []
        replaced: dict[int, Tensor] = {}
        try:
            for position in self.plan.tensor_inputs:
                layout, tensor = self.plan.inputs[position], inputs[position]
                assert layout is not None
                fits = (
                    tensor.dtype is layout.dtype
                    and tensor.shape == layout.shape
                    and tensor.stride() == layout.strides
                    and tensor.device == self.plan.device
                    and not tensor.data_ptr() % self.plan.input_alignment
                    and not tensor.is_neg()
                    and not tensor.is_conj()
                )
                if not fits and (copy := adapt(self.plan, position, tensor)) is not tensor:
                    tensor = replaced[position] = copy
                taken.append(tensor)
        except (AttributeError, RuntimeError):
            describe_mismatch(self.plan, inputs)
            raise
        if taken and not replaced and len(self._guards) < MOST_GUARDS:
            guard = guard_like(taken)
            if guard is not None:
                self._guards.insert(0, guard)
        return Given(taken, [tensor.data_ptr() for tensor in taken], replaced)

    def _prepare(self, frame: GpuFrame, given: Given) -> None:
        """Fill prepared memory if a tensor that it is made from has moved or its version counter has.

        Calls on other streams wait: those in progress may read what was there.
        """
        shared = self.plan.shared
        places = [self._place_of[source] for source in self.plan.sources if isinstance(source, int)]
        versions = versions_of([given.tensors[place] for place in places])
        state = Prepared(shared.generation, [given.addresses[place] for place in places], versions)
        if state == shared.prepared_from and None not in versions:
            return
        shared.settle()
        frame.set_inputs(given.addresses)
        frame.prepare()
        shared.settle()
        shared.prepared_from = state

    def _result(self, result: Result, given: Given, outputs: Sequence[Tensor], externs: Mapping[int, Tensor]) -> Tensor:
        kind, at, whole, shape, strides, offset = result
        with torch.no_grad():
            if kind == "output":
                return outputs[at] if whole else outputs[at].as_strided(shape, strides, offset)
            if kind == "constant":  # a copy: the caller may write to it
                constant = self.plan.constant(result)
                return torch.empty_strided(shape, strides, dtype=constant.dtype, device=self.plan.device).copy_(constant)
            source = externs[at] if kind == "extern" else given.tensors[self._place_of[at]]
            if whole:
                return source
            return source.detach().as_strided(shape, strides, source.storage_offset() + offset)


def _no_autocast() -> Any:
    """Library calls compute in the dtypes that were planned."""
    return torch.autocast("cuda", enabled=False) if torch.is_autocast_enabled("cuda") else nullcontext()
