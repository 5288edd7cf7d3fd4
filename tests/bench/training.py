"""Training: seconds per step of eager, Inductor and ours, seconds until two steps are done, and memory.

python -m tests.bench.training [--only bert] [--systems eager,inductor,dlcompiler,train_step] [--rounds 7] [--parts time,memory]
                               [--size tiny] [--dropout 0.1 [--numerics eager]]

Every system trains a model of its own from the same start in a process of its own, with caches of its own that begin empty;
systems are timed in turns. `inductor` and `dlcompiler` compile the loss function and the optimizer's step with torch.compile,
`train_step` is `dlcompiler.train_step`. Under `--numerics eager` ours leave random numbers to ATen. Memory is measured in further
processes, which find the caches full; what it is says `training_worker.Session.peak`.
`python -m tests.bench.training_curves` compares losses and gradients, `training_schedule` long runs.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests import training_zoo
from tests.bench import harness
from tests.bench.training_systems import OURS, SYSTEMS, Setting

BURST = 0.3  # seconds of steps in one turn
# blocks of 64 KiB and more are given back to the kernel when they are freed, so that resident memory is memory in use
RETURNS_MEMORY = {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=65536:glibc.malloc.mmap_max=1000000"}


@dataclass
class Row:
    """One system on one workload: what was measured, or why nothing was."""

    system: str
    seconds: list[float] = field(default_factory=list)  # of steps
    ready: float = math.nan  # seconds until the second step was done
    peak: int | None = None  # bytes of a step, measured
    planned: int | None = None
    bound: int | None = None
    counted: int | None = None  # bytes of eager's tensors
    reason: str = ""

    @property
    def step(self) -> float:
        """The median of all; NaN if there is none."""
        return statistics.median(self.seconds) if self.seconds else math.nan


@dataclass
class Case:
    """A workload and the processes of the systems that train it."""

    name: str
    setting: Setting
    rows: dict[str, Row]
    caches: Path

    def start(self, system: str, more: dict[str, str] | None = None) -> harness.Worker:
        """A process with caches that are this case's and this system's alone."""
        folder = self.caches / system
        caches = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "DLCOMPILER_CACHE_DIR": str(folder / "ours")}
        setting = self.setting
        arguments = (system, self.name, setting.size, str(setting.dropout), setting.numerics)
        return harness.Worker(arguments, {**caches, **(more or {})}, "training_worker")

    def fail(self, system: str, error: harness.WorkerDiedError) -> None:
        """What is not measured stays a dash, and the reason is printed."""
        self.rows[system].reason = self.rows[system].reason or str(error)
        harness.log(f"  {self.name}: {system}: {error}")

    def time(self, rounds: int) -> None:
        """Every system ready, then steps in turns."""
        workers: dict[str, harness.Worker] = {}
        for system, row in self.rows.items():
            worker = self.start(system)
            try:
                facts = worker.ask("prepare")
            except harness.WorkerDiedError as error:
                self.fail(system, error)
                worker.stop()
                continue
            workers[system] = worker
            row.ready, row.planned, row.bound = facts["ready"], facts.get("planned"), facts.get("bound")
            harness.log(f"  {self.name}: {system} ready after {row.ready:.1f} s")
        for _ in range(rounds):
            for system, worker in workers.items():
                self.rows[system].seconds += worker.ask("time", seconds=BURST)["seconds"]
        for worker in workers.values():
            worker.stop()

    def measure(self) -> None:
        """The memory of every system's step, one process after another."""
        for system, row in self.rows.items():
            worker = self.start(system, RETURNS_MEMORY)
            try:
                facts = worker.ask("prepare")
                row.planned, row.bound = facts.get("planned"), facts.get("bound")
                row.peak = worker.ask("peak")["bytes"]
                if system == "eager":
                    row.counted = worker.ask("count")["bytes"]
                harness.log(f"  {self.name}: {system} takes {harness.mebibytes(row.peak)} MiB")
            except harness.WorkerDiedError as error:
                self.fail(system, error)
            worker.stop()


def time_table(cases: Sequence[Case], systems: Sequence[str]) -> str:
    """Milliseconds a step, ours against the better peer, and seconds until the second step was done."""
    ours = [system for system in systems if system in OURS]
    header = ["training step, ms", *systems, *(f"best peer / {s}" for s in ours), *(f"{s}: ready, s" for s in systems)]
    rows, ratios = [], []
    for case in cases:
        step = {system: row.step for system, row in case.rows.items()}
        peer = min((step[s] for s in systems if s not in OURS and not math.isnan(step[s])), default=math.nan)
        ratios.append([peer / step[s] for s in ours])
        ready = ["–" if math.isnan(row.ready) else f"{row.ready:.1f}" for row in case.rows.values()]
        rows.append([case.name, *(harness.milliseconds(step[s]) for s in systems), *map(harness.ratio, ratios[-1]), *ready])
    means = [harness.ratio(harness.geomean(column)) for column in zip(*ratios)]
    rows.append(["geomean", *[""] * len(systems), *means, *[""] * len(systems)])
    return harness.table(header, rows)


def memory_table(cases: Sequence[Case], systems: Sequence[str]) -> str:
    """What a step takes, measured as resident memory, beside our plan and the count of eager's tensors."""
    ours = [system for system in systems if system in OURS]
    header = [
        "memory of a step, MiB", *(f"{s}, measured" for s in systems), "eager, tensors", "train_step, planned", "lower bound",
        *(f"{s} / eager" for s in ours), "planned / eager's tensors",
    ]  # fmt: skip
    rows = []
    for case in cases:
        peak = {system: row.peak for system, row in case.rows.items()}
        counted = case.rows["eager"].counted if "eager" in case.rows else None
        step = case.rows.get("train_step", Row("train_step"))
        cells = [harness.mebibytes(n) for n in (*peak.values(), counted, step.planned, step.bound)]
        ratios = [_over(peak[s], peak.get("eager")) for s in ours]
        rows.append([case.name, *cells, *ratios, _over(step.planned, counted)])
    return harness.table(header, rows)


def _over(part: int | None, whole: int | None) -> str:
    return harness.ratio(part / whole if part is not None and whole else math.nan)


def main() -> int:
    """Runs what was asked for and prints it; the exit status is 1 where a system of ours failed."""
    parser = harness.parser(__doc__.splitlines()[0])
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="comma-separated")
    parser.add_argument("--parts", default="time,memory", help="comma-separated")
    parser.add_argument("--size", choices=("real", "tiny"), default="real")
    parser.add_argument("--dropout", type=float, default=0.0, help="of bert and gpt2, which alone are run then")
    parser.add_argument("--numerics", choices=("fast", "eager"), default="fast", help="of ours")
    arguments = parser.parse_args()
    setting = Setting(arguments.size, arguments.dropout, arguments.numerics)
    names = harness.chosen(["bert", "gpt2"] if arguments.dropout else training_zoo.BUILDERS, arguments.only)
    systems, parts = arguments.systems.split(","), arguments.parts.split(",")
    harness.print_machine()
    cases: list[Case] = []
    with tempfile.TemporaryDirectory(prefix="dlcompiler-training-") as folder:
        for name in names:
            case = Case(name, setting, {system: Row(system) for system in systems}, Path(folder) / name)
            if "time" in parts:
                case.time(arguments.rounds)
            if "memory" in parts:
                case.measure()
            cases.append(case)
    if "time" in parts:
        print(time_table(cases, systems))
    if "memory" in parts:
        print("\n" + memory_table(cases, systems))
    result: list[dict[str, Any]] = [{"case": case.name, **asdict(row)} for case in cases for row in case.rows.values()]
    harness.write_json(arguments.json, result)
    failed = [(case.name, row) for case in cases for row in case.rows.values() if row.reason]
    for name, row in failed:
        print(f"\nFAILED {name} {row.system}: {row.reason}")
    return int(any(row.system in OURS for _, row in failed))


if __name__ == "__main__":
    sys.exit(main())
