"""`dlcompiler verify`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from dlcompiler.cli.commands import flags, input_flags
from dlcompiler.cli.shared import Session, build, make_inputs, print_json, read_inputs, read_source
from dlcompiler.compare import compare_all
from dlcompiler.ir.errors import InvalidModelError, UnsupportedError
from dlcompiler.ir.graph import Graph
from dlcompiler.names import names_of_inputs, names_of_outputs
from dlcompiler.options import Options

if TYPE_CHECKING:
    from dlcompiler.api import Source

MISMATCH = 5


@click.command(name="verify")
@click.argument("model")
@click.option(
    "--against", type=click.Choice(["reference", "onnxruntime"]), default="reference", show_default=True,
    help="reference: the interpreter of the captured graph; onnxruntime: for .onnx files.",
)  # fmt: skip
@input_flags("random")
@click.option("--rtol", type=click.FloatRange(min=0), help="Relative tolerance.  [default: by dtype; 1e-4 for float32]")
@click.option("--atol", type=click.FloatRange(min=0), help="Absolute one, as a share of the largest value.  [default: by dtype]")
@click.option("--bisect", is_flag=True, help="If wrong, find the rewrite and pass, else the node, that makes it so.")
@flags()
def command(
    model: str, against: str, inputs: str | None, fill: str, seed: int, rtol: float | None, atol: float | None, bisect: bool,
    **parameters: Any,
) -> int:  # fmt: skip
    """Compare compiled results of MODEL with a judge's, output by output. Exits with 5 where they differ."""
    session = Session.start(parameters)
    with session.progress() as progress:
        source = read_source(model, session, progress)
        given = read_inputs(inputs, names_of_inputs(source.graph)) if inputs else {}
        values = make_inputs(source.graph, given, session, fill, seed)
        compiled = build(source, session, progress)
        progress.say(f"running {against}")
        expected = _judge(against, model, source, values)
        actual = call_copy(compiled, values)
        found = compare_all(compiled.output_names, expected, actual, relative=rtol, absolute=atol)
        culprit = None
        if bisect and not all(d.same for d in found):
            progress.say("bisecting")
            culprit = _bisect(source, compiled.target, compiled.options, values, rtol, atol)
    same = all(d.same for d in found)
    if session.as_json:
        outputs = [difference.as_dict() for difference in found]
        print_json({"same": same, "against": against, "outputs": outputs, "culprit": culprit.as_dict() if culprit else None})
    else:
        for difference in found:
            click.echo(str(difference))
        if culprit is not None:
            click.echo(f"{culprit.text}{f' (at {culprit.location})' if culprit.location else ''}")
            if culprit.without_pass:
                click.echo(f"pass {culprit.pass_name}: {culprit.without_pass}")
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


def _bisect(source: Source, target: Any, options: Options, values: Sequence[Any], rtol: float | None, atol: float | None) -> Any:
    from dlcompiler.api import ByName, build
    from dlcompiler.culprit import find
    from dlcompiler.reference import run_reference

    def is_right(graph: Graph, chosen: Options, judge: Graph) -> bool:
        candidate = replace(source, graph=graph, convention=ByName(names_of_inputs(graph)))
        compiled = build(candidate, str(target), chosen)
        expected = run_reference(judge, values)[: len(judge.outputs)]
        found = compare_all(
            names_of_outputs(graph), expected, call_copy(compiled, values), relative=rtol, absolute=atol
        )  # fmt: skip
        return all(difference.same for difference in found)

    return find(source.graph, target, options, is_right)
