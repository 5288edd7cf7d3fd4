"""Where a tuner runs what it tries: this machine's CPU, or a GPU, which measures its own time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

from dlcompiler.ir.program import Program
from dlcompiler.passes.dataflow.memory import place
from dlcompiler.runtime.device import Device
from dlcompiler.runtime.executable import Executable
from dlcompiler.runtime.gpu import GpuExecutable
from dlcompiler.runtime.gpu_graph import is_recordable
from dlcompiler.runtime.trial import example_inputs, in_turns

AnyExecutable: TypeAlias = Executable | GpuExecutable
Call = Callable[[], Any]
FEWEST_CALLS, MOST_CALLS = 4, 64  # of one burst on a GPU; powers of two


class Bench(Protocol):
    """Runs and times programs.

    weight_bytes  of sets of weights that calls go through in turn: more than caches hold, so that they come from memory as a
                  model's do; `weight_sets` at the most
    """

    weight_bytes: int
    weight_sets: int

    def executable(self, program: Program) -> AnyExecutable: ...

    def inputs(self, program: Program, seed: int) -> list[Any]:
        """As `runtime.trial.example_inputs`, where the program runs."""
        ...

    def call(self, executable: Any, inputs: Sequence[Sequence[Any]]) -> Call:
        """A call with each of these inputs in turn."""
        ...

    def in_turns(self, calls: Sequence[Call], rounds: int, seconds: float) -> list[list[float]]:
        """As `runtime.trial.in_turns`, of what `call` gave."""
        ...


class CpuBench:
    """This process's CPU."""

    weight_bytes, weight_sets = 32 << 20, 3

    def executable(self, program: Program) -> Executable:
        return Executable(program, place)

    def inputs(self, program: Program, seed: int) -> list[Any]:
        return example_inputs(program, seed)

    def call(self, executable: Any, inputs: Sequence[Sequence[Any]]) -> Call:
        turns = itertools.cycle(inputs)
        return lambda: executable(next(turns))

    def in_turns(self, calls: Sequence[Call], rounds: int, seconds: float) -> list[list[float]]:
        return in_turns(calls, rounds, seconds)


class GpuCall:
    """Calls of a program with inputs in turn. On a device that can record them, many are started at once.

    A kernel of a few microseconds is over long before the host has come to the next call; what is timed then is the host.
    """

    def __init__(self, executable: GpuExecutable, inputs: Sequence[Sequence[Any]]) -> None:
        self._executable, self._inputs = executable, inputs
        self._turns = itertools.cycle(inputs)
        self._bursts: dict[int, Call] = {}

    def __call__(self) -> None:
        self._executable(next(self._turns))

    def burst(self, count: int) -> Call:
        """So many calls."""
        if count not in self._bursts:
            self._bursts[count] = self._make_burst(count)
        return self._bursts[count]

    def _make_burst(self, count: int) -> Call:
        if is_recordable(self._executable.program):
            return self._executable.recorded(list(itertools.islice(itertools.cycle(self._inputs), count)))

        def run() -> None:
            for _ in range(count):
                self()

        return run


class GpuBench:
    """A GPU. Seconds are those between its own events."""

    weight_bytes, weight_sets = 128 << 20, 8

    def __init__(self, device: Device) -> None:
        self.device = device

    def executable(self, program: Program) -> GpuExecutable:
        return GpuExecutable(program, place, graphs=False, open_device=lambda _: self.device)

    def inputs(self, program: Program, seed: int) -> list[Any]:
        return [x.to(self.device.torch_device) for x in example_inputs(program, seed)]

    def call(self, executable: Any, inputs: Sequence[Sequence[Any]]) -> GpuCall:
        return GpuCall(executable, inputs)

    def in_turns(self, calls: Sequence[Any], rounds: int, seconds: float) -> list[list[float]]:
        found: list[list[float]] = [[] for _ in calls]
        few = [call.burst(FEWEST_CALLS) for call in calls]
        self.device.seconds(few)  # warm
        once = [spent / FEWEST_CALLS for spent in self.device.seconds(few)]
        counts = [min(max(FEWEST_CALLS, round(seconds / max(each, 1e-7))), MOST_CALLS) for each in once]
        # of counts one and the same for all times alike, so that few graphs are recorded
        counts = [1 << (count - 1).bit_length() for count in counts]
        bursts = [call.burst(count) for call, count in zip(calls, counts)]
        for number in range(rounds):
            order = range(len(calls)) if number % 2 == 0 else reversed(range(len(calls)))
            for k in order:
                (spent,) = self.device.seconds([bursts[k]])
                found[k].append(spent / counts[k])
        return found
