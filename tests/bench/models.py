"""The real-size suite: time per call of every system on every model, accuracy, fallbacks and memory.

python -m tests.bench.models [--only 'bert*'] [--rounds 7] [--systems eager,inductor,dlcompiler] [--json FILE]
"""

from __future__ import annotations

import math
import sys
from typing import Any

from tests import zoo
from tests.bench import harness
from tests.bench.harness import Bench, Entry
from tests.bench.report_facts import fallbacks, memory_facts
from tests.bench.systems import OURS, SYSTEMS

SUITE = tuple(name for name in zoo.NAMES if name != "bert-masked")
DEFAULT_SYSTEMS = "eager,inductor,inductor-freezing,onnxruntime,openvino,dlcompiler"
BURST_SECONDS = 0.4


def peers_of(names: list[str]) -> list[str]:
    """The systems ours is compared with."""
    return [name for name in names if name not in OURS]


def our_facts(bench: Bench, entry: Entry) -> None:
    """Adds the compilation report's numbers to our entry."""
    if entry.reason or entry.system not in OURS:
        return
    answer = bench.worker(entry.system).ask("reports")
    entry.facts["graphs"] = answer["count"]
    entry.facts["aten"] = fallbacks(answer["last"])
    entry.facts.update(memory_facts(answer["last"]))


def time_row(name: str, entries: dict[str, Entry], ours: str | None) -> list[str]:
    """Milliseconds of every system, then ours against each peer and the best of them (above 1: ours is faster)."""
    row = [name]
    row += [
        f"{'WRONG' if entry.wrong else 'failed' if entry.reason else harness.milliseconds(entry.seconds)}"
        for entry in entries.values()
    ]
    if ours is not None:
        peers = [entries[peer].seconds for peer in peers_of(list(entries))]
        finite = [seconds for seconds in peers if math.isfinite(seconds)]
        best = min(finite) if finite else math.nan
        row += [harness.ratio(seconds / entries[ours].seconds) for seconds in [*peers, best]]
    return row


def fact_row(name: str, entry: Entry) -> list[str]:
    """Accuracy, fallbacks and memory of ours on one model."""
    error = entry.facts.get("relative_error")
    aten = entry.facts.get("aten")
    planned, bound = entry.facts.get("planned_peak"), entry.facts.get("lower_bound")
    return [
        name,
        entry.facts.get("entry", "–"),
        "–" if error is None else f"{error:.1e}",
        "–" if aten is None else f"{sum(aten.values())} {' '.join(sorted(aten))}".strip(),
        harness.mebibytes(planned),
        harness.mebibytes(bound),
        "–" if not planned or not bound else f"{planned / bound:.3f}",
        harness.mebibytes(entry.facts.get("eager_peak")),
    ]


def print_tables(results: dict[str, dict[str, Entry]], names: list[str]) -> None:
    """Times and ratios, then what the reports say."""
    ours = next((name for name in names if name in OURS), None)
    header = ["model, ms", *names]
    rows = [time_row(name, entries, ours) for name, entries in results.items()]
    if ours is not None:
        header += [f"{peer} / ours" for peer in peers_of(names)] + ["best / ours"]
        last: list[str] = ["geomean", *[""] * len(names)]
        for column in range(len(names) + 1, len(header)):
            last.append(harness.ratio(harness.geomean(float(row[column]) for row in rows if row[column] != "–")))
        rows.append(last)
    print(harness.table(header, rows))
    for system in names:
        if system in OURS:
            print(f"\n{system}:\n")
            facts = [fact_row(name, entries[system]) for name, entries in results.items()]
            heading = [
                "model",
                "entry",
                "relative error",
                "aten calls",
                "planned MiB",
                "bound MiB",
                "plan / bound",
                "eager MiB",
            ]
            print(harness.table(heading, facts))


def main() -> int:
    """Runs the suite and prints it."""
    parser = harness.parser(__doc__.splitlines()[0])
    parser.add_argument("--systems", default=DEFAULT_SYSTEMS, help=f"comma-separated, of: {', '.join(SYSTEMS)}")
    parser.add_argument("--size", choices=("real", "tiny"), default="real", help="tiny checks the benchmark, not the compiler")
    arguments = parser.parse_args()
    names = arguments.systems.split(",")
    if unknown := [name for name in names if name not in SYSTEMS]:
        parser.error(f"unknown systems: {', '.join(unknown)}")
    results: dict[str, dict[str, Entry]] = {}
    with Bench(names, arguments.rounds, BURST_SECONDS) as bench:
        for name in harness.chosen(SUITE, arguments.only):
            results[name] = bench.compare("model", name, arguments.size)
            for entry in results[name].values():
                our_facts(bench, entry)
                entry.facts["case"] = name
    harness.print_machine()
    print_tables(results, names)
    dump: dict[str, Any] = {name: [entry.as_dict() for entry in row.values()] for name, row in results.items()}
    harness.write_json(arguments.json, dump)
    return harness.finish(entry for row in results.values() for entry in row.values())


if __name__ == "__main__":
    sys.exit(main())
