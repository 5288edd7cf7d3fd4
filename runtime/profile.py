"""Where a call spends its time: seconds of every step, by name."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dlcompiler.ir.program import Launch, LibraryCall, Program, RoutineCall, Step


class Steppable(Protocol):
    """What can be run one step at a time: an `Executable`, or what stands around one."""

    program: Program

    def time_steps(self, inputs: Sequence[Any]) -> list[tuple[int, float]]: ...


@dataclass(frozen=True)
class StepTime:
    """One step: its number, its kind (kernel, library, aten), its name, and the median of its seconds."""

    number: int
    kind: str
    name: str
    seconds: float


def profile(executable: Steppable, inputs: Sequence[Any], rounds: int = 10) -> list[StepTime]:
    """Run the program `rounds` times, after one run that does not count, each step on its own. Times are medians, in step order.

    Launches that a plain call starts with one jump are started one by one here, so that a step's time includes its start (about
    a microsecond). Raises InputError as a call does.
    """
    if rounds < 1:
        raise ValueError("at least one round")
    executable.time_steps(inputs)
    seconds: dict[int, list[float]] = {}
    for _ in range(rounds):
        for number, spent in executable.time_steps(inputs):
            seconds.setdefault(number, []).append(spent)
    steps = executable.program.steps
    return [StepTime(k, *describe(steps[k]), statistics.median(seconds[k])) for k in sorted(seconds)]


def describe(step: Step) -> tuple[str, str]:
    """(kind, name) of a step."""
    if isinstance(step, Launch):
        return "kernel", step.kernel.name
    if isinstance(step, RoutineCall):
        return "routine", step.op
    return ("library", step.op) if isinstance(step, LibraryCall) else ("aten", step.target)


def table(times: Sequence[StepTime], most: int = 20) -> str:
    """The slowest steps, one a line, with their share of the whole."""
    whole = sum(t.seconds for t in times)
    lines = [f"{len(times)} steps, {whole * 1e3:.3f} ms"]
    for t in sorted(times, key=lambda t: -t.seconds)[:most]:
        share = 100 * t.seconds / whole if whole else 0.0
        lines.append(f"{t.seconds * 1e6:10.1f} us  {share:5.1f} %  {t.kind:8s} {t.name}  (step {t.number})")
    return "\n".join(lines)
