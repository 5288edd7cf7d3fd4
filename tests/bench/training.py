"""Training: seconds per step of eager, Inductor and ours, seconds until two steps are done, memory, and loss curves.

python -m tests.bench.training [--only bert] [--systems eager,inductor,dlcompiler,train_step] [--rounds 7] [--losses 200]
                               [--dropout 0.1 [--numerics eager]]

Every system trains a model of its own from the same start; steps are timed in turns. `inductor` and `dlcompiler` compile the loss
function and the optimizer's step with torch.compile, `train_step` is `dlcompiler.train_step`. Under `--numerics eager` ours leave
random numbers to ATen.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests import training_zoo
from tests.bench import harness

SYSTEMS = ("eager", "inductor", "dlcompiler", "train_step")
Step = Callable[[Any], Tensor]


@dataclass
class Runner:
    """One system on one workload."""

    system: str
    step: Step
    model: torch.nn.Module
    seconds: list[float] = field(default_factory=list)
    ready: float = math.nan  # seconds until the second step was done
    planned: int | None = None
    bound: int | None = None


@dataclass(frozen=True)
class Setting:
    """What all systems are run with."""

    size: str = "real"
    dropout: float = 0.0
    numerics: str = "fast"

    def build(self, name: str) -> training_zoo.Workload:
        return training_zoo.build(name, self.size, self.dropout)


def make(system: str, name: str, setting: Setting) -> tuple[Step, training_zoo.Workload, Any]:
    """A step of the system on a model of its own, and what it reports."""
    workload = setting.build(name)
    numerics = {"numerics": setting.numerics}
    optimizer = workload.make_optimizer(workload.model.parameters())
    if system == "train_step":
        import dlcompiler

        step = dlcompiler.train_step(workload.model, workload.loss, optimizer, workload.make_batch(0), options=numerics)
        return step, workload, step
    loss_of: Any = workload.loss
    update: Any = optimizer.step
    if system != "eager":
        # RNN modules are left to eager by torch.compile unless asked; Inductor would unroll them for minutes
        torch._dynamo.config.allow_rnn = system == "dlcompiler"
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(group["lr"])
        options: Any = {"inductor": None, "dlcompiler": numerics}[system]
        loss_of, update = (torch.compile(f, backend=system, options=options) for f in (workload.loss, optimizer.step))

    def loop(batch: Any) -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(workload.model, batch)
        loss.backward()
        update()
        return loss.detach()

    return loop, workload, None


def prepare(system: str, name: str, setting: Setting) -> Runner:
    """Two steps done, and how long that took from nothing."""
    began = time.perf_counter()
    step, workload, compiled = make(system, name, setting)
    for k in range(2):
        step(workload.make_batch(k))
    runner = Runner(system, step, workload.model, ready=time.perf_counter() - began)
    if compiled is not None:
        runner.planned, runner.bound = compiled.reports[-1].planned_peak, compiled.reports[-1].lower_bound
    return runner


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operators have made and that still live, and the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self.seen: dict[int, Any] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and not function.is_view:
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        key = storage._cdata
        if key in self.seen:
            return
        size = storage.nbytes()
        self.alive += size
        self.peak = max(self.peak, self.alive)

        def gone() -> None:
            self.alive -= size
            self.seen.pop(key, None)

        self.seen[key] = weakref.finalize(storage, gone)


def eager_peak(name: str, setting: Setting) -> int:
    """Bytes of activations, gradients and temporaries alive at the worst moment of an eager step, state made before."""
    step, workload, _ = make("eager", name, setting)
    step(workload.make_batch(0))
    for parameter in workload.model.parameters():
        parameter.grad = None
    batch = workload.make_batch(1)
    with LiveBytes() as counter:
        step(batch)
    return counter.peak


def time_steps(runners: list[Runner], workload: training_zoo.Workload, rounds: int) -> None:
    """Steps in turns, after a burst that warms up."""
    for k in range(rounds + 1):
        batch = workload.make_batch(k)
        for runner in runners:
            began = time.perf_counter()
            runner.step(batch)
            if k:
                runner.seconds.append(time.perf_counter() - began)


def time_table(results: dict[str, list[Runner]], systems: list[str]) -> str:
    """Milliseconds a step, ours against the better peer, and seconds until the second step was done."""
    ours = [s for s in systems if s not in ("eager", "inductor")]
    header = ["training step, ms", *systems, *(f"best peer / {s}" for s in ours), *(f"{s}: ready, s" for s in systems)]
    rows = []
    for name, runners in results.items():
        median = {r.system: statistics.median(r.seconds) for r in runners}
        peer = min((median[s] for s in median if s not in ours), default=math.nan)
        ready = [f"{r.ready:.1f}" for r in runners]
        rows.append(
            [name, *(harness.milliseconds(median[s]) for s in systems), *(harness.ratio(peer / median[s]) for s in ours), *ready]
        )
    if ours:
        first = 1 + len(systems)
        means = [harness.ratio(harness.geomean(float(row[first + k]) for row in rows)) for k in range(len(ours))]
        rows.append(["geomean", *[""] * len(systems), *means, *[""] * len(systems)])
    return harness.table(header, rows)


def memory_table(results: dict[str, list[Runner]], setting: Setting) -> str:
    """Planned bytes of a step against what eager holds."""
    rows = []
    for name, runners in results.items():
        for runner in runners:
            if runner.planned is not None:
                peak = eager_peak(name, setting)
                cells = [harness.mebibytes(n) for n in (runner.planned, runner.bound, peak)]
                rows.append([name, *cells, harness.ratio(runner.planned / peak)])
    return harness.table(["memory of a step, MiB", "planned", "lower bound", "eager, measured", "planned / eager"], rows)


def loss_row(name: str, setting: Setting, steps: int) -> list[str]:
    """The worst relative difference between eager's and train_step's losses, from the same start."""
    eager, workload, _ = make("eager", name, setting)
    ours, _, _ = make("train_step", name, setting)
    worst, at = 0.0, 0
    for k in range(steps):
        batch = workload.make_batch(k)
        expected, found = float(eager(batch)), float(ours(batch))
        difference = abs(expected - found) / max(abs(expected), 1e-12)
        if difference > worst:
            worst, at = difference, k
    return [name, str(steps), f"{worst:.1e}", str(at), f"{expected:.5f}", f"{found:.5f}"]


def main() -> int:
    """Runs what was asked for and prints it."""
    parser = harness.parser(__doc__.splitlines()[0])
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="comma-separated")
    parser.add_argument("--size", choices=("real", "tiny"), default="real")
    parser.add_argument("--losses", type=int, default=0, metavar="N", help="instead compare losses over N steps with eager")
    parser.add_argument("--dropout", type=float, default=0.0, help="of bert and gpt2, which alone are run then")
    parser.add_argument("--numerics", choices=("fast", "eager"), default="fast", help="of ours")
    arguments = parser.parse_args()
    setting = Setting(arguments.size, arguments.dropout, arguments.numerics)
    torch.set_num_threads(harness.THREADS)
    names = harness.chosen(["bert", "gpt2"] if arguments.dropout else training_zoo.BUILDERS, arguments.only)
    harness.print_machine()
    if arguments.losses:
        rows = [loss_row(name, setting, arguments.losses) for name in names]
        header = ["loss curve", "steps", "worst relative difference", "at step", "eager's last", "ours"]
        print(harness.table(header, rows))
        return 0
    systems = arguments.systems.split(",")
    results: dict[str, list[Runner]] = {}
    for name in names:
        results[name] = []
        for system in systems:
            results[name].append(prepare(system, name, setting))
            harness.log(f"  {name}: {system} ready after {results[name][-1].ready:.1f} s")
        time_steps(results[name], setting.build(name), arguments.rounds)
    print(time_table(results, systems))
    if "train_step" in systems:
        print("\n" + memory_table(results, setting))
    return 0


if __name__ == "__main__":
    sys.exit(main())
