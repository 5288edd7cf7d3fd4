"""`dlcompiler verify`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from dlcompiler.cli.commands import MODEL, flags, input_flags, manual
from dlcompiler.cli.progress import Progress
from dlcompiler.cli.shared import Session, build, make_inputs, print_json, read_inputs, read_source
from dlcompiler.codegen.target import Target
from dlcompiler.compare import compare_all
from dlcompiler.culprit import find
from dlcompiler.ir.errors import InvalidModelError, UnsupportedError
from dlcompiler.ir.graph import Graph
from dlcompiler.names import names_of_inputs, names_of_outputs
from dlcompiler.options import Options
from dlcompiler.repro import describe, free_folder, write_repro

if TYPE_CHECKING:
    from dlcompiler.sources import Source

MISMATCH = 5


EXAMPLES = """
dlcompiler verify model.onnx                                 against the reference interpreter
dlcompiler verify model.onnx --against onnxruntime --input-shape x:1x3x224x224
dlcompiler verify model.onnx --bisect                        names what is wrong, leaves dlcompiler-repro/
dlcompiler verify model.onnx -i in.npz --rtol 1e-3
"""


@click.command(name="verify", epilog=manual(EXAMPLES))
@MODEL
@click.option(
    "--against", type=click.Choice(["reference", "onnxruntime"]), default="reference", show_default=True,
    help="reference: the interpreter of the captured graph; onnxruntime: for .onnx files.",
)  # fmt: skip
@input_flags("random")
@click.option("--rtol", type=click.FloatRange(min=0), help="Relative tolerance.  [default: by dtype; 1e-4 for float32]")
@click.option("--atol", type=click.FloatRange(min=0), help="Absolute one, as a share of the largest value.  [default: by dtype]")
@click.option("--bisect", is_flag=True, help="If wrong, find the rewrite, pass, fusion group and node that make it so.")
@click.option(
    "--repro", type=click.Path(file_okay=False), default="dlcompiler-repro", show_default=True, metavar="DIR",
    help="With --bisect: a new folder for a small graph that is wrong, its inputs and the command.",
)  # fmt: skip
@click.option("--simulate", is_flag=True, help="Run a GPU program through Triton's interpreter on the CPU.")
@flags()
def command(
    model: str, against: str, inputs: str | None, fill: str, seed: int, rtol: float | None, atol: float | None, bisect: bool,
    repro: str, simulate: bool, **parameters: Any,
) -> int:  # fmt: skip
    """Compare compiled results of MODEL with a judge's, output by output. Exits with 5 where they differ."""
    session = Session.start(parameters)
    tolerances = {"rtol": rtol, "atol": atol}
    found_in: Path | None = None
    how_to: list[str] = []
    with session.progress() as progress:
        source = read_source(model, session, progress)
        given = read_inputs(inputs, names_of_inputs(source.graph)) if inputs else {}
        values = make_inputs(source.graph, given, session, fill, seed)
        compiled = build(source, session, progress)
        progress.say(f"running {against}")
        expected = _judge(against, model, source, values)
        actual = call_copy(compiled.simulate if simulate else compiled, values)
        found = compare_all(compiled.output_names, expected, actual, relative=rtol, absolute=atol)
        culprit = None
        if bisect and not all(d.same for d in found):
            trial = Trial(source, compiled.target, progress, simulate, rtol, atol)
            culprit = find(source.graph, values, compiled.target, compiled.options, trial.is_right)
            if culprit.repro is not None:
                found_in = free_folder(Path(repro))
                target = "cpu" if compiled.target.host else str(compiled.target)
                how_to = write_repro(found_in, culprit, target, tolerances) + (["--simulate"] if simulate else [])
    same = all(d.same for d in found)
    if session.as_json:
        outputs = [difference.as_dict() for difference in found]
        blamed = culprit.as_dict() | {"repro": str(found_in) if found_in else None, "command": how_to} if culprit else None
        print_json({"same": same, "against": against, "outputs": outputs, "culprit": blamed})
    else:
        for difference in found:
            click.echo(str(difference))
        if culprit is not None:
            click.echo("\n".join(describe(culprit)))
            if culprit.kind == "none" and against != "reference":
                click.echo(f"so the model as imported is compiled rightly: the import and {against} disagree")
        if found_in is not None:
            click.echo(f"repro  {found_in}: cd {shlex.quote(str(found_in))} && {shlex.join(how_to)}")
    if not same:
        wrong = sum(not difference.same for difference in found)
        click.echo(f"dlcompiler: error: {wrong} of {len(found)} outputs differ from {against}", err=True)
    return 0 if same else MISMATCH


def call_copy(compiled: Any, values: Sequence[Any]) -> list[np.ndarray]:
    """Run on copies, since the judge needs the inputs as they were; outputs as a list of arrays."""
    copies = [value.copy() if isinstance(value, np.ndarray) else value for value in values]
    result = compiled(*copies)
    return list(result) if isinstance(result, tuple) else [result]


def _judge(against: str, model: str, source: Source, values: Sequence[Any]) -> list[np.ndarray]:
    if against == "reference":
        from dlcompiler.reference import run_reference

        return run_reference(source.graph, values)[: len(source.graph.outputs)]
    session = onnxruntime_session(model)
    feeds = dict(zip(names_of_inputs(source.graph), values))
    return session.run(None, feeds)


def onnxruntime_session(model: str, threads: int | None = None) -> Any:
    """An ONNX Runtime session on the CPU. Raises UnsupportedError where it is missing or cannot run the model."""
    if not model.endswith(".onnx"):
        raise click.UsageError(f"ONNX Runtime runs .onnx files, and {os.path.basename(model)} is none")
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise UnsupportedError("onnxruntime is not installed", items=("onnxruntime",), hint="pip install onnxruntime") from None
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    if threads is not None:
        settings.intra_op_num_threads = threads
    failures = onnxruntime.capi.onnxruntime_pybind11_state
    try:
        return onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    except failures.NotImplemented as error:
        raise UnsupportedError(f"ONNX Runtime cannot run the model: {str(error).splitlines()[0]}") from None
    except (failures.Fail, failures.InvalidGraph, failures.InvalidProtobuf, failures.InvalidArgument) as error:
        raise InvalidModelError(f"ONNX Runtime refuses the model: {str(error).splitlines()[0]}") from None


@dataclass
class Trial:
    """Compiles a graph and compares it with the interpreter; counts, for the progress line."""

    source: Source
    target: Target
    progress: Progress
    simulate: bool
    rtol: float | None
    atol: float | None
    count: int = 0

    def is_right(self, graph: Graph, options: Options, judge: Graph, values: Sequence[Any]) -> bool:
        """Whether `graph`, compiled, gives what the interpreter gives for `judge`."""
        from dlcompiler.api import ByName
        from dlcompiler.api import build as build_source
        from dlcompiler.reference import run_reference

        self.count += 1
        self.progress.say(f"bisecting: trial {self.count}, {len(graph.nodes)} nodes")
        candidate = replace(self.source, graph=graph, convention=ByName(names_of_inputs(graph)))
        compiled = build_source(candidate, str(self.target), options)
        expected = run_reference(judge, values)[: len(judge.outputs)]
        actual = call_copy(compiled.simulate if self.simulate else compiled, values)
        found = compare_all(names_of_outputs(graph), expected, actual, relative=self.rtol, absolute=self.atol)
        return all(difference.same for difference in found)
