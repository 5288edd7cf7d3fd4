"""`dlcompiler bench`."""

from __future__ import annotations

import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from dlcompiler.cli.commands import MODEL, complete_systems, flags, input_flags, manual
from dlcompiler.cli.judges import onnxruntime_session
from dlcompiler.cli.shared import Session, build, check_plan, make_inputs, print_json, read_inputs, read_source, table
from dlcompiler.compare import compare_all
from dlcompiler.ir.errors import UnsupportedError
from dlcompiler.names import names_of_inputs
from dlcompiler.report import format_bytes

if TYPE_CHECKING:
    from dlcompiler.api import Compiled

SYSTEMS = ("inductor", "eager", "onnxruntime", "openvino")
FROM_ONNX = ("onnxruntime", "openvino")
KERNELS_SHOWN = 15
BURST_SECONDS, LONGEST_BURST = 0.005, 20  # of the calls in a row that a turn has


@dataclass
class Timed:
    """One system: what a call of it is, how long it took to be ready, and the calls' seconds.

    peak  how far the process's memory rose above what it was before this system came, until its first call was done, in bytes
    kept  how much of that stayed
    """

    name: str
    call: Callable[[], Any]
    ready_seconds: float
    peak: int | None
    kept: int | None
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
            "peak_memory": self.peak,
            "kept_memory": self.kept,
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
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=30,
    show_default=True,
    help="Turns that each takes: calls in a row of about 5 ms.",
)
@click.option("--kernels/--no-kernels", default=True, help="Also time each step on its own.")
@flags()
def command(
    model: str, against: str, inputs: str | None, fill: str, seed: int, warmup: int, rounds: int, kernels: bool, **parameters: Any
) -> None:  # fmt: skip
    """Time MODEL, beside other systems in the same process, round by round.

    Times are of whole calls with NumPy arrays in and out. MODEL may also be FILE.py:NAME, a function without arguments that
    gives an nn.Module and a tuple of example inputs. eager and inductor run only such models; onnxruntime and openvino get them
    exported.
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
        with _Watch() as watch:
            compiled = build(source, session, progress)
            check_plan(compiled, session, values)
            compiled(*values)
        ours = Timed("dlcompiler", lambda: compiled(*values), watch.seconds, watch.peak, watch.kept)
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
    prepare = {"onnxruntime": _onnxruntime, "openvino": _openvino, "eager": _eager, "inductor": _inductor}[name]
    if name in FROM_ONNX and source.model is not None:
        model = _exported(source, feeds)
    with _Watch() as watch:
        call = prepare(model, source, feeds)
        call()
    return Timed(name, call, watch.seconds, watch.peak, watch.kept)


def _exported(source: Any, feeds: Mapping[str, Any]) -> str:
    """A torch model as an .onnx file in a temporary folder that lasts as long as this process, its inputs named as `feeds`."""
    import atexit
    import contextlib
    import tempfile

    import torch

    folder = tempfile.TemporaryDirectory(prefix="dlcompiler-bench-")
    atexit.register(folder.cleanup)
    path = os.path.join(folder.name, "model.onnx")
    tensors = tuple(torch.from_numpy(np.ascontiguousarray(value)) for value in feeds.values())
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(source.model, tensors, path, dynamo=True, verbose=False, input_names=list(feeds))
    return path


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
    # its default on processors with bfloat16 is to compute a float32 file in that type
    compiled = core.compile_model(read, "CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"})
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
    """All systems in turns, so that what the machine does meanwhile meets them alike.

    A turn is some calls in a row, the first not timed: threads of the one before may still be waiting for work by spinning.
    """
    bursts = []
    for system in systems:
        fastest = min(_seconds(system.call) for _ in range(max(warmup, 1)))
        bursts.append(max(1, min(LONGEST_BURST, int(BURST_SECONDS / max(fastest, 1e-7)))))
    for _ in range(rounds):
        for system, burst in zip(systems, bursts):
            if len(systems) > 1:
                system.call()
            system.seconds += [_seconds(system.call) for _ in range(burst)]


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


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


class _Watch:
    """Seconds, and memory of this process: `peak` and `kept` bytes more than before; None where the system does not say."""

    seconds = 0.0
    peak: int | None = None
    kept: int | None = None
    _before: int | None = None

    def __enter__(self) -> _Watch:
        try:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # Linux counts the peak anew
            self._before = _memory("VmRSS")
        except OSError:
            self._before = None
        self._start = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = time.perf_counter() - self._start
        if self._before is not None:
            self.peak, self.kept = (_memory(field) - self._before for field in ("VmHWM", "VmRSS"))


def _memory(field: str) -> int:
    """A field of this process's status, in bytes. Raises OSError where there is none."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(f"{field}:"))


def _machine() -> dict[str, Any]:
    return {"processor": platform.processor() or platform.machine(), "system": platform.platform(), "threads": _threads()}


def _print(document: Mapping[str, Any]) -> None:
    header = ("system", "mean", "median", "p90", "p99 ms", "/ ours", "ready s", "peak memory", "kept")
    rows = []
    for row in document["systems"]:
        times = [f"{row[key]:.3f}" for key in ("mean_ms", "median_ms", "p90_ms", "p99_ms")]
        memory = ["-" if row[key] is None else format_bytes(row[key]) for key in ("peak_memory", "kept_memory")]
        rows.append((row["system"], *times, f"{row['ratio']:.2f}", f"{row['ready_seconds']:.2f}", *memory))
    click.echo(table([header, *rows]))
    planned = document["planned_peak"]
    click.echo(f"{document['rounds']} rounds, {document['machine']['threads']} threads; planned peak {format_bytes(planned)}; "
               "memory: how far this process grew until the first call was done, and how much of that stayed")  # fmt: skip
    for row in document["agreement"]:
        click.echo(f"{row['system']}: {'results agree' if row['same'] else 'RESULTS DIFFER: ' + row['worst']}")
    steps = document["steps"]
    if steps:
        shown = [(row["what"][:100], f"{row['ms']:.3f}", f"{row['share']:.1%}") for row in steps[:KERNELS_SHOWN]]
        click.echo()
        click.echo(table([("step, timed alone", "ms", "share"), *shown]))
        if len(steps) > len(shown):
            click.echo(f"and {len(steps) - len(shown)} more steps")
