"""CUDA graphs: all launches of a static program started at once.

A graph remembers addresses, so its inputs and outputs must not move. Inputs that lay at the same place in all calls so far
(parameters) are read and written where they are; the others are copied into memory of the graph's own, and results are copied
out of it into fresh memory, so that a later call never overwrites them. Should a parameter move, the graph is recorded again, at
most `MOST_RECORDINGS` times. Numbers that change, as a learning rate, are inputs like any other, which each replay reads anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from dlcompiler.ir.program import AtenCall, Program
from dlcompiler.runtime.gpu_frame import GpuFrame, set_call
from dlcompiler.runtime.gpu_plan import GpuPlan
from dlcompiler.runtime.tensors import span
from torch import Tensor

# Without being asked, a graph is used where the launches are many and the copies small: a launch costs the CPU about 3 us, in
# which an H200 copies 6 MiB.
FEWEST_LAUNCHES = 6
BYTES_PER_LAUNCH = 1 << 20
MOST_RECORDINGS = 4
# Operators of ATen that start work and wait for nothing; what they allocate stays with the graph.
NEVER_WAITING = frozenset({"aten.convolution_backward.default"})


def is_recordable(program: Program) -> bool:
    """Whether a graph can hold the program: none of its steps waits for the device, and no result is memory of an operator."""
    waits = any(isinstance(step, AtenCall) and step.target not in NEVER_WAITING for step in program.steps)
    return not waits and all(view.slot.role != "extern" for view in program.outputs)


class Recorder:
    """Runs one plan's calls on one stream by a graph, once it is worth it."""

    def __init__(self, plan: GpuPlan, always: bool) -> None:
        self.plan, self.always = plan, always
        self._last: dict[int, int] = {}  # where each input was in the call before
        self._moved: set[int] = set()  # inputs that have been at several places
        self._recordings = 0
        self._calls = 0
        self._frame: GpuFrame | None = None
        self._replay: Callable[[], None] | None = None
        self._steady: dict[int, int] = {}
        self._own: dict[int, Tensor] = {}
        self._outputs: list[Tensor] = []

    def run(self, frame: GpuFrame, given: Mapping[int, Tensor]) -> list[Tensor]:
        """The outputs of one call. The first call is run step by step, which also lets libraries set themselves up."""
        addresses = {position: tensor.data_ptr() for position, tensor in given.items()}
        self._calls += 1
        self._moved |= {position for position, address in addresses.items() if self._last.get(position, address) != address}
        self._last = addresses
        if self._replay is None or frame is not self._frame or not self._is_still_there(addresses):
            if self._calls == 1 or self._frame not in (None, frame) or not self._record(frame, given):
                outputs = set_call(frame, given)
                frame.run_steps()
                return outputs
        assert self._replay is not None
        with torch.no_grad():
            for position, tensor in self._own.items():
                tensor.copy_(given[position])
            self._replay()
            for position in self.plan.written_inputs:
                if position in self._own:
                    given[position].copy_(self._own[position])
            return [torch.empty_strided(o.shape, o.stride(), dtype=o.dtype, device=o.device).copy_(o) for o in self._outputs]

    def _is_still_there(self, addresses: Mapping[int, int]) -> bool:
        return all(addresses[position] == address for position, address in self._steady.items())

    def _record(self, frame: GpuFrame, given: Mapping[int, Tensor]) -> bool:
        """Record the call, without running it; False if that is not worth it."""
        steady = {position: address for position, address in self._last.items() if position not in self._moved}
        if self._recordings >= MOST_RECORDINGS or not (self.always or self._is_worth_it(steady)):
            return False
        self._recordings += 1
        with torch.inference_mode(False), torch.no_grad():
            own = {position: torch.empty_like(t) for position, t in given.items() if position not in steady}
            self._outputs = set_call(frame, {**given, **own})
            frame.device.synchronize()
            self._replay = frame.device.record(frame.run_steps)
            frame.externs.clear()
        self._frame, self._steady, self._own = frame, steady, own
        return True

    def _is_worth_it(self, steady: Mapping[int, int]) -> bool:
        launches = sum(kernel.known_starts for kernel in self.plan.shared.code.kernels if kernel is not None)
        if launches < FEWEST_LAUNCHES:
            return False
        moving = [layout for k, layout in enumerate(self.plan.inputs) if layout is not None and k not in steady]
        copied = sum(span(x.shape, x.strides) * x.dtype.itemsize for x in (*moving, *self.plan.outputs))
        return copied <= BYTES_PER_LAUNCH * launches
