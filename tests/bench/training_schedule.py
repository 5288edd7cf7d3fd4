"""What must not happen in a long run: recompilations by a schedule, wrong numbers after `eval()`, memory that grows.

python -m tests.bench.training_schedule [--only bert] [--size tiny] [--steps 50] [--long 500]

schedule  so many steps, the learning rate another one in each (a warm-up, then a cosine); programs compiled in the first two
          steps and in all others, and how far losses are from eager's under the same schedule. torch.compile's optimizer has
          its rate in a tensor, as docs/training.md says.
eval      in the middle of it `model.eval()`, a forward pass compared with eager's, and back; programs that the pass compiled
memory    the process's resident size over a long run with the same batches, after 20 steps and at the end, in a process of
          its own, and how many tensors are alive
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dlcompiler
from tests import training_zoo
from tests.bench import harness
from tests.bench.training_systems import OURS, Setting, Trained, make

WARM = 20  # steps of a long run before its memory is looked at
GROWTH = 8 << 20  # bytes that a long run may grow by: pages of the interpreter's own


def rate(step: int, steps: int) -> float:
    """As a share of the optimizer's own rate: up to it over a tenth of all steps, then down along a cosine."""
    warm = max(steps // 10, 1)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1))) + 1e-3


def programs() -> int:
    """How many this process has compiled."""
    return len(dlcompiler.reports())


def answer(trained: Trained, call: Any) -> Tensor:
    """The loss in evaluation, without gradients."""
    model, workload = trained.workload.model, trained.workload
    model.eval()
    with torch.no_grad():
        loss = call(model, workload.make_batch(0))
    model.train()
    return loss


def schedule_row(name: str, system: str, setting: Setting, steps: int) -> tuple[list[str], bool]:
    """A run beside eager's, with an evaluation in the middle."""
    torch._dynamo.reset()
    dlcompiler.reset()
    trained, eager = (make(each, name, setting, schedule=lambda step: rate(step, steps)) for each in (system, "eager"))
    evaluate = torch.compile(trained.workload.loss, backend="dlcompiler")
    worst, first, evaluation, apart = 0.0, 0, 0, 0.0
    for k in range(steps):
        if k == 2:
            first = programs()
        if k == steps // 2:
            before = programs()
            found, expected = float(answer(trained, evaluate)), float(answer(eager, eager.workload.loss))
            evaluation, apart = programs() - before, abs(found - expected) / abs(expected)
        batch = trained.workload.make_batch(k)
        losses = [float(each(batch)[0]) for each in (trained, eager)]
        worst = max(worst, abs(losses[0] - losses[1]) / abs(losses[1]))
        for each in (trained, eager):
            each.schedulers[0].step()
    later = programs() - first - evaluation
    rates = trained.schedulers[0].get_last_lr()
    cells = [str(first), str(later), f"{worst:.1e}", f"{apart:.1e}", str(evaluation), f"{float(rates[0]):.1e}"]
    return [name, system, str(steps), *cells], later == 0 and worst < 1e-3 and apart < 1e-3


def resident() -> int:
    """Bytes of this process that are in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def long_run(name: str, system: str, size: str, steps: int) -> dict[str, Any]:
    """Resident bytes along a long run in this process, and tensors alive."""
    torch.set_num_threads(harness.THREADS)
    trained = make(system, name, Setting(size))
    batches = [trained.workload.make_batch(k) for k in range(4)]
    sizes, tensors = [], []
    for k in range(steps + 1):
        if k >= WARM and (k - WARM) % max((steps - WARM) // 4, 1) == 0:
            sizes.append(resident())
            tensors.append(sum(isinstance(each, Tensor) for each in gc.get_objects()))
        trained(batches[k % 4])
    return {"sizes": [*sizes, resident()], "tensors": tensors}


def memory_row(name: str, system: str, size: str, steps: int) -> tuple[list[str], bool]:
    """A long run in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.training_schedule", "--one", f"{name},{system},{size},{steps}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=harness.REPOSITORY, env=harness.worker_environment())
    if done.returncode:
        return [name, system, str(steps), (done.stderr.strip().splitlines() or ["no reason given"])[-1]], False
    found = json.loads(done.stdout.splitlines()[-1])
    sizes: Sequence[int] = found["sizes"]
    cells = [harness.mebibytes(sizes[0]), " ".join(harness.mebibytes(n) for n in sizes[1:-1]), harness.mebibytes(sizes[-1])]
    grown = sizes[-1] - sizes[0]
    row = [name, system, str(steps), *cells, harness.mebibytes(grown), f"{found['tensors'][0]}, {found['tensors'][-1]}"]
    return row, grown <= GROWTH and found["tensors"][0] == found["tensors"][-1]


def main() -> int:
    """Prints both tables; the exit status is 1 where something is not as it should be."""
    parser = harness.parser(__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("real", "tiny"), default="real")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--long", type=int, default=500, help="steps of the run whose memory is watched; 0: none")
    parser.add_argument("--systems", default=",".join(OURS), help="comma-separated")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, system, size, steps = arguments.one.split(",")
        print(json.dumps(long_run(name, system, size, int(steps))))
        return 0
    torch.set_num_threads(harness.THREADS)
    harness.print_machine()
    names, systems = harness.chosen(training_zoo.BUILDERS, arguments.only), arguments.systems.split(",")
    good = True
    if arguments.steps:
        found = [schedule_row(n, s, Setting(arguments.size), arguments.steps) for n in names for s in systems if s in OURS]
        good &= all(each for _, each in found)
        header = [
            "schedule", "system", "steps", "programs in two steps", "in all later", "losses differ by", "eval() differs by",
            "programs of eval()", "last rate",
        ]  # fmt: skip
        print(harness.table(header, [row for row, _ in found]), flush=True)
    if arguments.long:
        found = [memory_row(n, s, arguments.size, arguments.long) for n in names for s in systems]
        good &= all(each for _, each in found)
        header = [
            "resident, MiB",
            "system",
            "steps",
            f"after {WARM}",
            "between",
            "at the end",
            "grown by",
            "tensors, first and last",
        ]
        print("\n" + harness.table(header, [row for row, _ in found]))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
