"""`dlcompiler bench`."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from dlcompiler.cli.commands import MODEL, complete_systems, flags, input_flags, manual
from dlcompiler.cli.shared import Session, build, make_inputs, print_json, read_inputs, read_source, table
from dlcompiler.cli.verify import onnxruntime_session
from dlcompiler.compare import compare_all
from dlcompiler.ir.errors import UnsupportedError
from dlcompiler.names import names_of_inputs
from dlcompiler.report import format_bytes

if TYPE_CHECKING:
    from dlcompiler.api import Compiled

SYSTEMS = ("inductor", "eager", "onnxruntime", "openvino")
KERNELS_SHOWN = 15


@dataclass
class Timed:
    """One system: what a call of it is, how long it took to be ready, and the calls' seconds."""

    name: str
    call: Callable[[], Any]
    ready_seconds: float
    resident_growth: int | None
    seconds: list[float] = field(default_factory=list)

    def row(self, ours: float) -> dict[str, Any]:
        """Milliseconds; `ratio` is this system's median over ours, so above 1 it is slower than dlcompiler."""
        times = np.array(self.seconds) * 1e3
        median = float(np.median(times))
        return {
            "system": self.name,
            "mean_ms": float(times.mean()),
            "median_ms": median,
            "p90_ms": float(np.percentile(times, 90)),
            "p99_ms": float(np.percentile(times, 99)),
            "ratio": median / ours,
            "ready_seconds": self.ready_seconds,
            "resident_growth": self.resident_growth,
        }


EXAMPLES = """
dlcompiler bench model.onnx --against onnxruntime,openvino
dlcompiler bench net.py:build --against eager,inductor,onnxruntime
dlcompiler bench model.onnx --input-shape x:8x3x224x224 --rounds 100 --json
"""


@click.command(name="bench", epilog=manual(EXAMPLES))
@MODEL
@click.option(
    "--against",
    default="",
    metavar="NAMES",
    shell_complete=complete_systems,
    help=f"Other systems, with commas between: {', '.join(SYSTEMS)}.",
)
@input_flags("random")
@click.option("--warmup", type=click.IntRange(min=0), default=3, show_default=True, help="Untimed calls of each system first.")
@click.option("--rounds", type=click.IntRange(min=1), default=30, show_default=True, help="Timed calls of each, taken in turns.")
@click.option("--kernels/--no-kernels", default=True, help="Also time each step on its own.")
@flags()
def command(
    model: str, against: str, inputs: str | None, fill: str, seed: int, warmup: int, rounds: int, kernels: bool, **parameters: Any
) -> None:  # fmt: skip
    """Time MODEL, beside other systems in the same process, round by round.

    Times are of whole calls with NumPy arrays in and out. MODEL may also be FILE.py:NAME, a function without arguments that
    gives an nn.Module and a tuple of example inputs. eager and inductor run only such models, onnxruntime and openvino only
    .onnx files.
    """
    session = Session.start(parameters)
    names = [name.strip() for name in against.split(",") if name.strip()]
    for name in names:
        if name not in SYSTEMS:
            raise click.UsageError(f"no system {name!r} to compare with; there are {', '.join(SYSTEMS)}")
    with session.progress() as progress:
        source = read_source(model, session, progress)
        given = read_inputs(inputs, names_of_inputs(source.graph)) if inputs else {}
        values = make_inputs(source.graph, given, session, fill, seed)
        before, start = _resident(), time.perf_counter()
        compiled = build(source, session, progress)
        compiled(*values)
        ours = Timed("dlcompiler", lambda: compiled(*values), time.perf_counter() - start, _growth(before))
        feeds = dict(zip(compiled.input_names, values))
        systems = [ours, *(_prepare(name, model, source, feeds, progress) for name in names)]
        agreement = _check(compiled, systems)
        progress.say("timing")
        _time(systems, warmup, rounds)
        steps = _time_steps(compiled, values) if kernels else []
    median = float(np.median(ours.seconds)) * 1e3
    document = {
        "machine": _machine(),
        "rounds": rounds,
        "systems": [system.row(median) for system in systems],
        "agreement": agreement,
        "planned_peak": compiled.report().planned_peak,
        "steps": steps,
    }
    if session.as_json:
        print_json(document)
    else:
        _print(document)


def _prepare(name: str, model: str, source: Any, feeds: Mapping[str, Any], progress: Any) -> Timed:
    progress.say(f"preparing {name}")
    before, start = _resident(), time.perf_counter()
    call = {"onnxruntime": _onnxruntime, "openvino": _openvino, "eager": _eager, "inductor": _inductor}[name](
        model, source, feeds
    )
    call()
    return Timed(name, call, time.perf_counter() - start, _growth(before))


def _onnxruntime(model: str, source: Any, feeds: Mapping[str, Any]) -> Callable[[], Any]:
    session = onnxruntime_session(model, _threads())
    return lambda: session.run(None, dict(feeds))


def _openvino(model: str, source: Any, feeds: Mapping[str, Any]) -> Callable[[], Any]:
    if not model.endswith(".onnx"):
        raise click.UsageError(f"OpenVINO runs .onnx files, and {os.path.basename(model)} is none")
    try:
        import openvino
    except ModuleNotFoundError:
        raise UnsupportedError("openvino is not installed", items=("openvino",), hint="pip install openvino") from None
    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": _threads()})
    read = core.read_model(model)
    read.reshape({name: list(np.shape(value)) for name, value in feeds.items()})
    compiled = core.compile_model(read, "CPU", {"PERFORMANCE_HINT": "LATENCY"})
    request = compiled.create_infer_request()
    count = len(compiled.outputs)

    def call() -> Any:
        result = request.infer(dict(feeds), share_inputs=True)
        return [result[k] for k in range(count)]

    return call


def _torch_model(name: str, source: Any) -> Any:
    if source.model is None:
        raise click.UsageError(f"{name} runs torch models: give FILE.py:NAME, a function that gives a module and its inputs")
    return source.model


def _eager(model: str, source: Any, feeds: Mapping[str, Any]) -> Callable[[], Any]:
    import torch

    module = _torch_model("eager", source)
    tensors = [torch.from_numpy(np.ascontiguousarray(value)) for value in feeds.values()]

    def call() -> Any:
        with torch.no_grad():
            return module(*tensors)

    return call


def _inductor(model: str, source: Any, feeds: Mapping[str, Any]) -> Callable[[], Any]:
    import torch

    module = _torch_model("inductor", source)
    tensors = [torch.from_numpy(np.ascontiguousarray(value)) for value in feeds.values()]
    compiled = torch.compile(module, backend="inductor")

    def call() -> Any:
        with torch.no_grad():
            return compiled(*tensors)

    return call


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _time(systems: Sequence[Timed], warmup: int, rounds: int) -> None:
    """All systems in turns, so that what the machine does meanwhile meets them alike."""
    for system in systems:
        for _ in range(warmup):
            system.call()
    for _ in range(rounds):
        for system in systems:
            start = time.perf_counter()
            system.call()
            system.seconds.append(time.perf_counter() - start)


def _check(compiled: Compiled, systems: Sequence[Timed]) -> list[dict[str, Any]]:
    """Whether the others' results are ours; a time of something else says nothing."""
    ours = _arrays(systems[0].call())
    found = []
    for system in systems[1:]:
        differences = compare_all(compiled.output_names, _arrays(system.call()), ours, relative=1e-2, absolute=1e-3)
        worst = max(differences, key=lambda difference: (not difference.same, difference.largest_absolute))
        found.append({"system": system.name, "same": all(d.same for d in differences), "worst": str(worst)})
    return found


def _arrays(result: Any) -> list[np.ndarray]:
    parts = result if isinstance(result, tuple | list) else [result]
    return [part if isinstance(part, np.ndarray) else part.detach().numpy() for part in parts]


def _time_steps(compiled: Compiled, values: Sequence[Any]) -> list[dict[str, Any]]:
    """Every step on its own, slowest first: its milliseconds and share, and the last op in it with its place in the model."""
    times = compiled.profile(*values, rounds=5)
    total = sum(time.seconds for time in times) or 1.0
    rows = []
    for spent in sorted(times, key=lambda time: -time.seconds):
        origin = compiled.program.steps[spent.number].origin
        more = f" (and {len(origin) - 1} more ops)" if len(origin) > 1 else ""
        what = f"{spent.kind:8}{origin[-1] if origin else spent.name}{more}"
        rows.append({"step": spent.number, "what": what, "ms": spent.seconds * 1e3, "share": spent.seconds / total})
    return rows


def _resident() -> int | None:
    """Bytes of this process in memory now; None where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def _growth(before: int | None) -> int | None:
    now = _resident()
    return None if now is None or before is None else now - before


def _machine() -> dict[str, Any]:
    return {"processor": platform.processor() or platform.machine(), "system": platform.platform(), "threads": _threads()}


def _print(document: Mapping[str, Any]) -> None:
    header = ("system", "mean", "median", "p90", "p99 ms", "/ ours", "ready s", "memory")
    rows = []
    for row in document["systems"]:
        times = [f"{row[key]:.3f}" for key in ("mean_ms", "median_ms", "p90_ms", "p99_ms")]
        memory = format_bytes(row["resident_growth"])
        rows.append((row["system"], *times, f"{row['ratio']:.2f}", f"{row['ready_seconds']:.2f}", memory))
    click.echo(table([header, *rows]))
    planned = document["planned_peak"]
    click.echo(f"{document['rounds']} rounds, {document['machine']['threads']} threads; planned peak {format_bytes(planned)}; "
               "memory: growth of this process until the first call was done")  # fmt: skip
    for row in document["agreement"]:
        click.echo(f"{row['system']}: {'results agree' if row['same'] else 'RESULTS DIFFER: ' + row['worst']}")
    steps = document["steps"]
    if steps:
        shown = [(row["what"][:100], f"{row['ms']:.3f}", f"{row['share']:.1%}") for row in steps[:KERNELS_SHOWN]]
        click.echo()
        click.echo(table([("step, timed alone", "ms", "share"), *shown]))
        if len(steps) > len(shown):
            click.echo(f"and {len(steps) - len(shown)} more steps")
