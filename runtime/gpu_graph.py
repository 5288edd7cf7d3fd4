"""CUDA graphs: all launches of a static program started at once.

A graph remembers addresses, so its inputs and outputs must not move. Inputs that lay at the same place in all calls so far
(parameters) are read and written where they are; the others are copied into memory of the graph's own, and results are copied
out of it into fresh memory, so that a later call never overwrites them. Should a parameter move, the graph is recorded again, at
most `MOST_RECORDINGS` times. Numbers that change, as a learning rate, are inputs like any other, which each replay reads anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence, Set
from typing import Any

import torch
from dlcompiler.ir.program import AtenCall, Program
from dlcompiler.runtime.gpu_frame import Given, GpuFrame
from dlcompiler.runtime.gpu_plan import GpuPlan
from dlcompiler.runtime.tensors import picker, span
from torch import Tensor

logger = logging.getLogger("dlcompiler")

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
    """Runs one plan's calls on one stream by a graph, once it is worth it. Inputs are known by their place among the tensors."""

    def __init__(self, plan: GpuPlan, always: bool) -> None:
        self.plan, self.always = plan, always
        self._last: list[int] = []  # where each input was in the call before
        self._moved: set[int] = set()  # inputs that have been at several places
        self._recordings = 0
        self._calls = 0
        self._frame: GpuFrame | None = None
        self._replay: Callable[[], None] | None = None
        self._steady_of: Callable[[Sequence[Any]], Any] = tuple
        self._steady: Any = ()  # where those inputs were that the graph reads where they are
        self._own: dict[int, Tensor] = {}
        self._written = tuple(k for k, position in enumerate(plan.tensor_inputs) if position in set(plan.written_inputs))
        self._outputs: list[Tensor] = []

    def run(self, frame: GpuFrame, given: Given) -> list[Tensor]:
        """The outputs of one call. The first call is run step by step, which also lets libraries set themselves up."""
        addresses = given.addresses
        self._calls += 1
        if addresses != self._last:
            self._moved |= {k for k, (last, now) in enumerate(zip(self._last, addresses)) if last != now}
            self._last = addresses
        if self._replay is None or frame is not self._frame or self._steady_of(addresses) != self._steady:
            if self._calls == 1 or self._frame not in (None, frame) or not self._record(frame, given):
                frame.set_inputs(addresses)
                outputs = frame.allocate_outputs()
                frame.run_steps()
                return outputs
        assert self._replay is not None
        with torch.no_grad():
            for k, tensor in self._own.items():
                tensor.copy_(given.tensors[k])
            self._replay()
            for k in self._written:
                if k in self._own:
                    given.tensors[k].copy_(self._own[k])
            return [torch.empty_strided(o.shape, o.stride(), dtype=o.dtype, device=o.device).copy_(o) for o in self._outputs]

    def _record(self, frame: GpuFrame, given: Given) -> bool:
        """Record the call, without running it; False if that is not worth it, or not possible."""
        steady = [k for k in range(len(given.tensors)) if k not in self._moved]
        if self._recordings >= MOST_RECORDINGS or not (self.always or self._is_worth_it(set(steady))):
            return False
        self._recordings += 1
        with torch.inference_mode(False), torch.no_grad():
            own = {k: torch.empty_like(given.tensors[k]) for k in sorted(self._moved)}
            frame.set_inputs([own[k].data_ptr() if k in own else address for k, address in enumerate(given.addresses)])
            self._outputs = frame.allocate_outputs()
            frame.device.synchronize()
            try:
                self._replay = frame.device.record(frame.run_steps)
            except RuntimeError as error:  # a call of a library that does what no graph holds: step by step it ran before
                logger.warning("%s runs without a CUDA graph: %s", self.plan.program.name, str(error).partition("\n")[0])
                self._recordings, self._replay, self._outputs = MOST_RECORDINGS, None, []
                return False
            finally:
                frame.externs.clear()
        self._frame, self._own = frame, own
        self._steady_of = picker(steady, len(given.tensors))
        self._steady = self._steady_of(given.addresses)
        return True

    def _is_worth_it(self, steady: Set[int]) -> bool:
        launches = sum(kernel.known_starts for kernel in self.plan.shared.code.kernels if kernel is not None)
        if launches < FEWEST_LAUNCHES:
            return False
        inputs = (self.plan.inputs[position] for k, position in enumerate(self.plan.tensor_inputs) if k not in steady)
        moving = [layout for layout in inputs if layout is not None]
        copied = sum(span(x.shape, x.strides) * x.dtype.itemsize for x in (*moving, *self.plan.outputs))
        return copied <= BYTES_PER_LAUNCH * launches
