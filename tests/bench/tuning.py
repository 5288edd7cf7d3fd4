"""The cost model's choices against the tuner's: contractions by family, and whole models.

    python -m tests.bench.tuning [--only 'mobilenet*'] [--budget 6] [--models a,b,c] [--model-budget 60] [--json FILE]

Each is compiled twice in one process, as it is and with so many seconds for the tuner, and both are timed in turns: `untuned /
tuned` above 1 is a gain. Of each family of the table of contractions every fourth case is tuned, with --only all that match;
`--only none` leaves them out. A whole call is timed, checks and the result's allocation included, and with one set of weights,
while the tuner looks at several in turn. Decisions are kept in an empty folder; `again s` is compiling once more from it.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.bench import harness
from tests.bench.contractions import bursts

HEADER = ["case", "untuned us", "tuned us", "untuned / tuned", "steps", "changed", "ways", "tuner s", "again s", "what changed"]
MODELS = "bert-base,resnet50,mobilenet-v2"
SAMPLE = 4  # of each family's cases every fourth is tuned


@dataclass(frozen=True)
class Compared:
    """One case. Seconds of a call, and of compiling with the tuner: at first, and from what it kept."""

    name: str
    family: str
    untuned: float
    tuned: float
    steps: int
    changed: int
    undecided: int
    tried: int
    seconds: float
    again: float
    what: str

    @property
    def ratio(self) -> float:
        return self.untuned / self.tuned


def compare(name: str, family: str, module: Any, inputs: tuple[Any, ...], budget: float, rounds: int) -> Compared:
    """Compile both ways, check that they agree, and time them in turns."""
    import dlcompiler
    from tests.bench.systems import relative_error

    dlcompiler.reset()
    plain = dlcompiler.compile(module, inputs)
    with tempfile.TemporaryDirectory(prefix="dlcompiler-tuned-") as folder:
        options = {"cache_dir": folder, "tune_budget": budget}
        tuned = dlcompiler.compile(module, inputs, options=options)
        began = time.perf_counter()
        again = dlcompiler.compile(module, inputs, options=options).report()
        seconds = time.perf_counter() - began - again.seconds.get("capture", 0.0)
    tuning = tuned.report().tuning
    assert tuning is not None and again.tuning is not None
    if not tuning.undecided and [t.choice for t in tuning.tuned] != [t.choice for t in again.tuning.tuned]:
        raise SystemExit(f"{name}: compiled again, the tuner has chosen otherwise")
    expected = plain(*inputs)
    error = relative_error(tuned(*inputs), expected)
    if not error < 1e-4:
        raise SystemExit(f"{name}: tuned, the result differs by {error:.1e}")
    calls: dict[str, Callable[[], Any]] = {"untuned": lambda: plain(*inputs), "tuned": lambda: tuned(*inputs)}
    times = bursts(calls, rounds)
    what = "; ".join(f"{t.choice} ({t.before / t.after:.2f})" for t in sorted(tuning.tuned, key=lambda t: t.after / t.before)[:3])
    return Compared(
        name, family, times["untuned"], times["tuned"], tuning.distinct, len(tuning.tuned), tuning.undecided, tuning.tried,
        tuning.seconds, seconds, what,
    )  # fmt: skip


def row(c: Compared) -> list[str]:
    """A line of the table."""
    steps = f"{c.steps}" + (f" ({c.undecided} left)" if c.undecided else "")
    return [
        c.name, f"{c.untuned * 1e6:.1f}", f"{c.tuned * 1e6:.1f}", harness.ratio(c.ratio), steps, str(c.changed), str(c.tried),
        f"{c.seconds:.1f}", f"{c.again:.2f}", c.what,
    ]  # fmt: skip


def chosen_cases(pattern: str) -> list[str]:
    """Every fourth case of each family; with a pattern all that match it."""
    from tests.bench import contraction_cases

    if pattern == "none":
        return []
    names = harness.chosen(contraction_cases.CASES, pattern)
    if pattern != "*":
        return names
    counts: dict[str, int] = {}
    chosen = []
    for name in names:
        family = contraction_cases.build(name).family
        counts[family] = counts.get(family, -1) + 1
        if counts[family] % SAMPLE == 0:
            chosen.append(name)
    return chosen


def main() -> int:
    """Prints a line for each case and model, and the geometric means of each family."""
    parser = harness.parser(__doc__.splitlines()[0], rounds=9)
    parser.add_argument("--budget", type=float, default=6.0, help="seconds of the tuner for a contraction (default 6)")
    parser.add_argument("--model-budget", type=float, default=60.0, help="seconds of the tuner for a model (default 60)")
    parser.add_argument("--models", default=MODELS, help=f"comma-separated; empty for none (default {MODELS})")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    import torch

    from tests import zoo
    from tests.bench import contraction_cases

    torch.set_num_threads(arguments.threads)
    harness.print_machine(arguments.threads)
    results: list[Compared] = []
    with torch.no_grad():
        for name in chosen_cases(arguments.only):
            case = contraction_cases.build(name)
            results.append(compare(name, case.family, case.module, case.inputs, arguments.budget, arguments.rounds))
            harness.log(f"  {name}: {harness.ratio(results[-1].ratio)} {results[-1].what}")
        if results:
            print(harness.table(HEADER, map(row, results)) + "\n")
            families_of = dict.fromkeys(c.family for c in results)
            groups = {family: [c.ratio for c in results if c.family == family] for family in families_of}
            groups["all"] = [c.ratio for c in results]
            rows = [
                [f, str(len(r)), harness.ratio(harness.geomean(r)), harness.ratio(min(r)), harness.ratio(max(r))]
                for f, r in groups.items()
            ]
            print(harness.table(["untuned / tuned", "cases", "geomean", "least", "most"], rows) + "\n", flush=True)
        models = []
        for name in filter(None, arguments.models.split(",")):
            model = zoo.build(name, "real")
            models.append(compare(name, "model", model.module, model.inputs, arguments.model_budget, arguments.rounds))
            harness.log(f"  {name}: {harness.ratio(models[-1].ratio)} {models[-1].what}")
        if models:
            print(harness.table(HEADER, map(row, models)))
    harness.write_json(arguments.json, [{**vars(c), "ratio": c.ratio} for c in (*results, *models)])
    return 0


if __name__ == "__main__":
    harness.keep_memory()
    sys.exit(main())
