"""Where a tuner runs what it tries: this machine's CPU, or a GPU, which measures its own time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

from dlcompiler.ir.program import Program
from dlcompiler.passes.dataflow.memory import place
from dlcompiler.runtime.device import Device
from dlcompiler.runtime.executable import Executable
from dlcompiler.runtime.gpu import GpuExecutable
from dlcompiler.runtime.trial import example_inputs, in_turns

AnyExecutable: TypeAlias = Executable | GpuExecutable
Call = Callable[[], Any]
MOST_CALLS = 64  # of one burst on a GPU


class Bench(Protocol):
    """Runs and times programs."""

    def executable(self, program: Program) -> AnyExecutable: ...

    def inputs(self, program: Program, seed: int) -> list[Any]:
        """As `runtime.trial.example_inputs`, where the program runs."""
        ...

    def in_turns(self, calls: Sequence[Call], rounds: int, seconds: float) -> list[list[float]]:
        """As `runtime.trial.in_turns`."""
        ...


class CpuBench:
    """This process's CPU."""

    def executable(self, program: Program) -> Executable:
        return Executable(program, place)

    def inputs(self, program: Program, seed: int) -> list[Any]:
        return example_inputs(program, seed)

    def in_turns(self, calls: Sequence[Call], rounds: int, seconds: float) -> list[list[float]]:
        return in_turns(calls, rounds, seconds)


class GpuBench:
    """A GPU. Seconds are those between its own events, so what the host does to start a kernel counts only where it is slower."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def executable(self, program: Program) -> GpuExecutable:
        return GpuExecutable(program, place, graphs=False, open_device=lambda _: self.device)

    def inputs(self, program: Program, seed: int) -> list[Any]:
        return [x.to(self.device.torch_device) for x in example_inputs(program, seed)]

    def in_turns(self, calls: Sequence[Call], rounds: int, seconds: float) -> list[list[float]]:
        found: list[list[float]] = [[] for _ in calls]
        self.device.seconds(calls)  # warm
        once = self.device.seconds(calls)
        counts = [min(max(1, round(seconds / max(each, 1e-7))), MOST_CALLS) for each in once]
        for number in range(rounds):
            order = range(len(calls)) if number % 2 == 0 else reversed(range(len(calls)))
            for k in order:
                spent = self.device.seconds([calls[k]] * counts[k])
                found[k].append(sum(spent) / len(spent))
        return found
