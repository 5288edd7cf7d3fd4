"""How long until the second training step is done, cold and warm, and what that time is spent on.

python -m tests.bench.ready [--only bert] [--systems inductor,dlcompiler,update_step,train_step] [--rounds 3] [--size tiny]

Every run is a process of its own that has imported torch and what the model imports; its time begins before the model is
built, as in `tests.bench.training`. Cold: no kernel in any cache on disk; warm: all of them. Parts are seconds of the main
thread, each without those inside it:

imports     of torch's compiler and of ours
Dynamo      following the Python code, its guards
AOTAutograd the graphs of gradients, and for torch.compile their cut into forward and backward
import      torch's graphs into ours
optimize    passes, fusion among them where a pass asks for it; fuse and plan what is left of those
emit        writing kernels, machine code or its loading
steps       the two steps, less all of the above; what else there is is building the model and its optimizer
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests import training_zoo
from tests.bench import harness
from tests.bench.training_systems import OURS, Setting

PARTS = ("imports", "Dynamo", "AOTAutograd", "import", "optimize", "fuse", "plan", "emit", "steps")


class Stopwatch:
    """Seconds by part; what runs inside another part is not counted twice."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.inside: list[float] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the body under `name`, less the parts inside it."""
        began = time.perf_counter()
        self.inside.append(0.0)
        try:
            yield
        finally:
            passed = time.perf_counter() - began
            self.seconds[name] = self.seconds.get(name, 0.0) + passed - self.inside.pop()
            if self.inside:
                self.inside[-1] += passed

    def wrap(self, owner: Any, attribute: str, name: str) -> None:
        """Count every call of a function under `name`."""
        function: Callable[..., Any] = getattr(owner, attribute)

        @functools.wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            with self.part(name):
                return function(*arguments, **named)

        setattr(owner, attribute, timed)


def _watch(watch: Stopwatch) -> None:
    """Time torch's stages and ours, by the functions in which they begin."""
    import torch._dynamo.convert_frame
    import torch._dynamo.output_graph

    from dlcompiler import report, torch_backend
    from dlcompiler.training import joint

    watch.wrap(torch._dynamo.convert_frame, "_compile", "Dynamo")
    watch.wrap(torch._dynamo.output_graph.OutputGraph, "call_user_compiler", "AOTAutograd")
    watch.wrap(joint, "import_fx", "import")

    @contextmanager
    def stage(self: report.Timings, name: str) -> Iterator[None]:
        with watch.part("AOTAutograd" if name == "capture" else name):
            yield

    report.Timings.stage = stage  # type: ignore[method-assign, assignment]
    assert torch_backend.Timings is report.Timings


def child(system: str, name: str, size: str) -> dict[str, Any]:
    """Two steps in this process: seconds of all, of each step and of each part."""
    import torch

    from tests.bench.systems import THREADS
    from tests.bench.training_systems import make

    torch.set_num_threads(THREADS)
    setting = Setting(size)
    batches = [setting.build(name).make_batch(k) for k in range(2)]
    watch = Stopwatch()
    began = time.perf_counter()
    with watch.part("imports"):
        import torch._dynamo
        import torch._functorch.aot_autograd

        if system in OURS:
            import dlcompiler.codegen.cpu.jit

            import dlcompiler.compiler
            import dlcompiler.recorded
            import dlcompiler.torch_backend
            import dlcompiler.training.step  # noqa: F401
    if system in OURS:
        _watch(watch)
    trained = make(system, name, setting)
    for batch in batches:
        with watch.part("steps"):
            trained(batch)
    return {"total": time.perf_counter() - began, **watch.seconds}


def measure(system: str, name: str, size: str, caches: str | None) -> dict[str, float]:
    """A fresh process, its caches in an empty folder unless one is given."""
    with tempfile.TemporaryDirectory(prefix="dlcompiler-ready-") as fresh:
        folder = caches or fresh
        environment = {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor", "DLCOMPILER_CACHE_DIR": f"{folder}/dlcompiler"}
        arguments = ["--child", name, "--system", system, "--size", size]
        found: dict[str, float] = harness.measured_by(f"{name} {system}", "tests.bench.ready", arguments, environment)
        return found


def rows(name: str, systems: list[str], size: str, rounds: int) -> list[dict[str, Any]]:
    """Cold and warm runs of each system, in turns; medians."""
    runs: dict[tuple[str, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="dlcompiler-warm-") as caches:
        for system in systems:
            measure(system, name, size, f"{caches}/{system}")
        for _ in range(rounds):
            for system in systems:
                runs.setdefault((system, "cold"), []).append(measure(system, name, size, None))
                runs.setdefault((system, "warm"), []).append(measure(system, name, size, f"{caches}/{system}"))
    found = []
    for (system, kind), each in runs.items():
        medians = {part: statistics.median(run.get(part, 0.0) for run in each) for part in ("total", *PARTS)}
        found.append({"model": name, "system": system, "caches": kind, **medians})
    return found


def cells(row: dict[str, Any], peers: dict[tuple[str, str], float]) -> list[str]:
    """A line of the table; parts of ours alone."""
    peer = peers.get((row["model"], row["caches"]))
    ratio = f"{row['total'] / peer:.3f}" if peer and row["system"] in OURS else "–"
    parts = [f"{row[part]:.2f}" if row["system"] in OURS else "–" for part in PARTS]
    return [row["model"], row["system"], row["caches"], f"{row['total']:.2f}", ratio, *parts]


def main() -> int:
    """Runs the chosen models and prints one table."""
    parser = harness.parser(__doc__.splitlines()[0], rounds=3)
    parser.add_argument("--systems", default="inductor,dlcompiler,update_step,train_step", help="comma-separated")
    parser.add_argument("--size", default="real", choices=("real", "tiny"), help="of the models")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--system", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print("\n" + json.dumps(child(arguments.system, arguments.child, arguments.size)))
        return 0
    harness.print_machine()
    found = []
    for name in harness.chosen(training_zoo.BUILDERS, arguments.only):
        found += rows(name, arguments.systems.split(","), arguments.size, arguments.rounds)
    peers = {(row["model"], row["caches"]): row["total"] for row in found if row["system"] == "inductor"}
    header = ["second step done, s", "system", "caches", "total", "of inductor's", *PARTS]
    print(harness.table(header, [cells(row, peers) for row in found]))
    harness.write_json(arguments.json, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
