"""Training steps that hold less: `train_step` under several budgets, step times in turns, memory as planned.

python -m tests.bench.training_memory [--only bert] [--rounds 7]
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import torch

import dlcompiler
from tests import training_zoo
from tests.bench import harness

# what is asked for -> options
BUDGETS: dict[str, dict[str, Any]] = {
    "all is held": {"activation_memory_budget": 1.0},
    "by default": {},
    "0.6": {"activation_memory_budget": 0.6},
    "0": {"activation_memory_budget": 0.0},
}


def rows_of(name: str, rounds: int) -> list[list[str]]:
    """A line for each budget: step, planned peak, least peak of any plan."""
    made = {}
    for budget, options in BUDGETS.items():
        workload = training_zoo.build(name)
        optimizer = workload.make_optimizer(workload.model.parameters())
        step = dlcompiler.train_step(workload.model, workload.loss, optimizer, workload.make_batch(0), options=options)
        made[budget] = step, workload
    seconds: dict[str, list[float]] = {budget: [] for budget in made}
    for turn in range(rounds + 2):
        for budget, (step, workload) in made.items():
            batch = workload.make_batch(turn)
            began = time.perf_counter()
            step(batch)
            if turn > 1:
                seconds[budget].append(time.perf_counter() - began)
    rows = []
    for budget, (step, _) in made.items():
        report = step.reports[-1]
        memory = [harness.mebibytes(size) for size in (report.planned_peak, report.lower_bound)]
        rows.append([name, budget, harness.milliseconds(statistics.median(seconds[budget])), *memory])
    return rows


def main() -> int:
    """Prints the table."""
    parser = harness.parser(__doc__.splitlines()[0])
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    harness.print_machine(2)
    rows = [row for name in harness.chosen(training_zoo.BUILDERS, arguments.only) for row in rows_of(name, arguments.rounds)]
    print(harness.table(["model", "activation_memory_budget", "ms a step", "planned MiB", "lower bound MiB"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
