"""Seconds of compilation beyond capture, cold and warm; equal layers; how often a sweep of batch sizes compiles.

    python -m tests.bench.compile_time [--only 'bert*'] [--rounds 3] [--systems inductor,dlcompiler] [--json FILE]

Parts, each a name for --only: the models of --models (cold and warm), `layers` (12 against 48 equal ones), `sweep`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench import harness
from tests.bench.systems import OURS, SYSTEMS, THREADS, Context

LAYER_COUNTS = (12, 48)
BATCHES = range(1, 17)


def first_call(system: str, workload: Any) -> dict[str, float]:
    """Seconds from handing the model over to the end of its first call, and the fastest of five later calls."""
    began = time.perf_counter()
    prepared = SYSTEMS[system](workload, Context(Path("."), "compile"))
    prepared.call()
    first = time.perf_counter() - began
    later = []
    for _ in range(5):
        began = time.perf_counter()
        prepared.call()
        later.append(time.perf_counter() - began)
    return {"first": first, "later": min(later)}


def equal_layers(count: int) -> Any:
    """BERT of that many equal layers, narrow enough to be cheap to run."""
    import torch
    from transformers import BertConfig, BertModel

    from tests import zoo

    torch.manual_seed(0)
    config = BertConfig(hidden_size=256, num_attention_heads=4, intermediate_size=1024, num_hidden_layers=count)
    module = zoo.PlainOutputs(BertModel(config), ("input_ids",), ("last_hidden_state",)).eval()
    tokens = torch.arange(128).reshape(1, 128)
    return zoo.ZooModel(f"layers-{count}", module, (tokens,), lambda batch, seed=0: (tokens.expand(batch, 128),))


def sweep(system: str, dynamic: bool | None) -> dict[str, Any]:
    """Calls one compiled function batch after batch; counts what the backend compiled and checks every answer.

    With ``dynamic=True`` the sweep starts at 2: Dynamo itself always gives size 1 a graph of its own.
    """
    import torch

    from tests import zoo
    from tests.bench.systems import relative_error

    model = zoo.build("bert-base", "tiny")
    compiled = torch.compile(model.module, backend=system, dynamic=dynamic)
    worst = 0.0
    for batch in BATCHES[1:] if dynamic else BATCHES:
        inputs = model.make_inputs(batch)
        for ours, theirs in zip(compiled(*inputs), model.module(*inputs)):
            worst = max(worst, relative_error(ours, theirs))
    if worst > 1e-4:
        raise SystemExit(f"{system}: relative error {worst:.1e} in the batch sweep")
    if system in OURS:
        import dlcompiler

        compiles = len(dlcompiler.reports())
    else:
        compiles = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return {"compiles": compiles, "relative_error": worst}


def child(arguments: argparse.Namespace) -> None:
    """The measuring process: imports torch and builds the model untimed, then prints one JSON line."""
    import torch

    from tests import zoo

    torch.set_num_threads(THREADS)
    with torch.no_grad():
        if arguments.child.startswith("sweep"):
            answer = sweep(arguments.system, True if arguments.child == "sweep-dynamic" else None)
        else:
            kind, _, name = arguments.child.partition(":")
            workload = equal_layers(int(name)) if kind == "layers" else zoo.build(name, "real")
            answer = first_call(arguments.system, workload)
    print("\n" + json.dumps(answer))


def measure(system: str, what: str, cache: str | None = None) -> dict[str, Any]:
    """Runs a fresh process, its caches in an empty folder unless one is given; returns what it measured."""
    with tempfile.TemporaryDirectory(prefix="dlcompiler-cold-") as fresh:
        folder = cache or fresh
        environment = {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor", "DLCOMPILER_CACHE_DIR": f"{folder}/dlcompiler"}
        if cache is None:
            environment |= {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1", "DLCOMPILER_DISABLE_CACHE": "1"}
        arguments = ["--child", what, "--system", system]
        return harness.measured_by(f"{what} {system}", "tests.bench.compile_time", arguments, environment)


def beyond_capture(answer: dict[str, float], capture: dict[str, float]) -> float:
    """First call without its run, less capture's: what the backend took."""
    return (answer["first"] - answer["later"]) - (capture["first"] - capture["later"])


def model_rows(name: str, names: list[str], rounds: int) -> tuple[list[str], dict[str, Any]]:
    """Cold and warm seconds beyond capture of every system, rounds interleaved."""
    what = f"model:{name}"
    cold: dict[str, list[float]] = {system: [] for system in names}
    warm: dict[str, list[float]] = {system: [] for system in names}
    captures = []
    with tempfile.TemporaryDirectory(prefix="dlcompiler-warm-") as caches:
        for system in names:
            measure(system, what, f"{caches}/{system}")
        for _ in range(rounds):
            capture = measure("capture", what)
            captures.append(capture["first"] - capture["later"])
            for system in names:
                cold[system].append(beyond_capture(measure(system, what), capture))
                warm[system].append(beyond_capture(measure(system, what, f"{caches}/{system}"), capture))
    medians = {"capture": statistics.median(captures)}
    medians |= {f"{system} cold": statistics.median(cold[system]) for system in names}
    medians |= {f"{system} warm": statistics.median(warm[system]) for system in names}
    ours = next((system for system in names if system in OURS), None)
    peer = next((system for system in names if system not in OURS), None)
    if ours and peer:
        medians["cold ratio"] = medians[f"{peer} cold"] / medians[f"{ours} cold"]
    return [name, *(f"{value:.2f}" for value in medians.values())], medians


def layer_rows(names: list[str], rounds: int) -> tuple[list[list[str]], dict[str, Any]]:
    """Seconds beyond capture for 12 and 48 equal layers: equal kernels should be compiled once."""
    rows, found = [], {}
    seconds: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for count in LAYER_COUNTS:
            capture = measure("capture", f"layers:{count}")
            for system in names:
                value = beyond_capture(measure(system, f"layers:{count}"), capture)
                seconds.setdefault((system, count), []).append(value)
    for system in names:
        few, many = (statistics.median(seconds[system, count]) for count in LAYER_COUNTS)
        rows.append([system, f"{few:.2f}", f"{many:.2f}", f"{many / few:.2f}"])
        found[system] = {"12": few, "48": many}
    return rows, found


def main() -> int:
    """Runs the chosen parts and prints a table for each."""
    parser = harness.parser(__doc__.splitlines()[0], rounds=3)
    parser.add_argument("--systems", default="inductor,dlcompiler", help="comma-separated systems to compare")
    parser.add_argument("--models", default="bert-base", help="comma-separated models (default bert-base)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--system", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return 0
    names = arguments.systems.split(",")
    models = arguments.models.split(",")
    parts = harness.chosen([*models, "layers", "sweep"], arguments.only)
    result: dict[str, Any] = {}
    harness.print_machine()
    for model in [model for model in models if model in parts]:
        cells, result[model] = model_rows(model, names, arguments.rounds)
        print(harness.table(["seconds beyond capture", *result[model]], [cells]) + "\n")
    if "layers" in parts:
        rows, result["layers"] = layer_rows(names, arguments.rounds)
        print(harness.table(["seconds beyond capture", "12 layers", "48 layers", "48 / 12"], rows) + "\n")
    if "sweep" in parts:
        kinds = {"automatic, 1..16": "sweep", "dynamic=True, 2..16": "sweep-dynamic"}
        result["sweep"] = {system: {kind: measure(system, what)["compiles"] for kind, what in kinds.items()} for system in names}
        rows = [[system, *(str(count) for count in counts.values())] for system, counts in result["sweep"].items()]
        print(harness.table(["compilations in a batch sweep", *kinds], rows))
    harness.write_json(arguments.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
