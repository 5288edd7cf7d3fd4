"""Memory of every model: what the plan needs, the least any plan could need, and what eager holds.

    python -m tests.bench.memory [--only 'bert*'] [--size real] [--json FILE]

`eager, measured` is the profiler's count of bytes that eager allocates and has not yet freed, beyond weights and inputs.
"""

from __future__ import annotations

import math
import sys
from typing import Any

from tests.bench import harness
from tests.bench.harness import Bench, Entry
from tests.bench.models import SUITE
from tests.bench.report_facts import memory_facts

LIMIT = 1.10  # planned peak over lower bound


def measure(bench: Bench, name: str, size: str) -> Entry:
    """Compiles one model and reads the plan; asks the profiler about eager."""
    entry = bench.compare("model", name, size)["dlcompiler"]
    entry.facts["case"] = name
    if not entry.reason:
        worker = bench.worker("dlcompiler")
        entry.facts |= memory_facts(worker.ask("reports")["last"])
        entry.facts["eager_measured"] = worker.ask("eager_peak")["bytes"]
    return entry


def main() -> int:
    """Prints the table; the exit status is 1 when a plan is above its limit."""
    parser = harness.parser(__doc__.splitlines()[0], rounds=0)
    parser.add_argument("--size", choices=("real", "tiny"), default="real", help="tiny checks the benchmark itself")
    arguments = parser.parse_args()
    entries: list[Entry] = []
    with Bench(["dlcompiler"], 0, 0.0) as bench:
        for name in harness.chosen(SUITE, arguments.only):
            entries.append(measure(bench, name, arguments.size))
    rows, status = [], 0
    for entry in entries:
        facts: dict[str, Any] = entry.facts
        planned, bound = facts.get("planned_peak"), facts.get("lower_bound")
        over = planned / bound if planned and bound else math.nan
        saved = planned / facts["eager_measured"] if planned else math.nan
        status |= int(over > LIMIT)
        cells = [harness.mebibytes(facts.get(key)) for key in ("planned_peak", "lower_bound", "eager_peak", "eager_measured")]
        rows.append([facts["case"], *cells, "–" if math.isnan(over) else f"{over:.3f}", harness.ratio(saved)])
    harness.print_machine()
    header = ["model, MiB", "planned", "lower bound", "eager, counted", "eager, measured", "planned / bound", "planned / eager"]
    print(harness.table(header, rows))
    harness.write_json(arguments.json, [entry.as_dict() for entry in entries])
    return status | harness.finish(entries)


if __name__ == "__main__":
    sys.exit(main())
