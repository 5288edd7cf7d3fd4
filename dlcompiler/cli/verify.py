"""`dlcompiler verify`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from dlcompiler.cli.commands import MODEL, flags, input_flags, manual
from dlcompiler.cli.judges import JUDGES, judge, part_judge
from dlcompiler.cli.progress import Progress
from dlcompiler.cli.shared import Session, build, check_plan, make_inputs, print_json, read_inputs, read_source
from dlcompiler.codegen.target import Target
from dlcompiler.compare import compare_all
from dlcompiler.culprit import Finding, find
from dlcompiler.import_culprit import ImportFinding, ImportSearch
from dlcompiler.ir.errors import CompilerError
from dlcompiler.ir.graph import Graph
from dlcompiler.names import names_of_inputs, names_of_outputs
from dlcompiler.options import Options
from dlcompiler.repro import describe, describe_import, free_folder, write_import_repro, write_repro

if TYPE_CHECKING:
    from dlcompiler.sources import Source

MISMATCH = 5


EXAMPLES = """
dlcompiler verify model.onnx                                 against the reference interpreter
dlcompiler verify model.onnx --against onnxruntime --input-shape x:1x3x224x224
dlcompiler verify model.onnx --bisect                        names what is wrong, leaves dlcompiler-repro/
dlcompiler verify model.onnx --bisect --against onnx         also which node of the file is imported wrongly
dlcompiler verify model.onnx -i in.npz --rtol 1e-3
"""


@click.command(name="verify", epilog=manual(EXAMPLES))
@MODEL
@click.option(
    "--against", type=click.Choice(JUDGES), default="reference", show_default=True,
    help="reference: the interpreter of the captured graph. For .onnx files: onnxruntime; onnx: that package's own evaluator.",
)  # fmt: skip
@input_flags("random")
@click.option("--rtol", type=click.FloatRange(min=0), help="Relative tolerance.  [default: by dtype; 1e-4 for float32]")
@click.option("--atol", type=click.FloatRange(min=0), help="Absolute one, as a share of the largest value.  [default: by dtype]")
@click.option(
    "--bisect", is_flag=True,
    help="If wrong, find the rewrite, pass, fusion group and node that make it so, or the file's node that is imported wrongly.",
)  # fmt: skip
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
    kept: dict[str, Any] = {"repro": None, "command": []}
    with session.progress() as progress:
        source = read_source(model, session, progress)
        given = read_inputs(inputs, names_of_inputs(source.graph)) if inputs else {}
        values = make_inputs(source.graph, given, session, fill, seed)
        compiled = build(source, session, progress)
        check_plan(compiled, session, values)
        progress.say(f"running {against}")
        expected = judge(against, model, source.graph, values)
        actual = call_copy(compiled.simulate if simulate else compiled, values)
        found = compare_all(compiled.output_names, expected, actual, relative=rtol, absolute=atol)
        same = all(d.same for d in found)
        culprit: Finding | ImportFinding | None = None
        if bisect and not same:
            trial = Trial(source, compiled.target, progress, simulate, rtol, atol)
            culprit = find(source.graph, values, compiled.target, compiled.options, trial.is_right)
            if culprit.kind == "none" and against != "reference":
                culprit = blame_import(against, model, source.graph, values, session, tolerances, progress)
            kept = keep_repro(Path(repro), culprit, compiled.target, against, tolerances, simulate)
    if session.as_json:
        outputs = [difference.as_dict() for difference in found]
        print_json({"same": same, "against": against, "outputs": outputs, "culprit": culprit and culprit.as_dict() | kept})
    else:
        for difference in found:
            click.echo(str(difference))
        if culprit is not None:
            click.echo("\n".join(describe(culprit) if isinstance(culprit, Finding) else describe_import(culprit, against)))
        if kept["repro"] is not None:
            click.echo(f"repro  {kept['repro']}: cd {shlex.quote(kept['repro'])} && {shlex.join(kept['command'])}")
    if not same:
        wrong = sum(not difference.same for difference in found)
        click.echo(f"dlcompiler: error: {wrong} of {len(found)} outputs differ from {against}", err=True)
    return 0 if same else MISMATCH


def blame_import(
    against: str, model: str, graph: Graph, values: Sequence[Any], session: Session, tolerances: Mapping[str, float | None],
    progress: Progress,
) -> ImportFinding:  # fmt: skip
    """The node of the file that is taken for something else, where what is compiled is right."""
    rename = {"rtol": "relative", "atol": "absolute"}
    limits = {rename[name]: value for name, value in tolerances.items()}
    run = part_judge(against)
    try:
        search = ImportSearch(model, run, session.input_shapes, session.options.fix_batch, limits, progress.say)
        return search.find(dict(zip(names_of_inputs(graph), values)))
    except CompilerError as error:  # that results differ is known, and is said first
        return ImportFinding(f"which node of the file it is could not be found out: {error}")


def keep_repro(
    folder: Path, culprit: Finding | ImportFinding, target: Target, against: str, tolerances: Mapping[str, float | None],
    simulate: bool,
) -> dict[str, Any]:  # fmt: skip
    """Write a folder that shows the fault, if there is something to show: where it is, and the command that fails in it."""
    if isinstance(culprit, ImportFinding):
        if culprit.model is None:
            return {"repro": None, "command": []}
        place = free_folder(folder)
        return {"repro": str(place), "command": write_import_repro(place, culprit, against, tolerances)}
    if culprit.repro is None:
        return {"repro": None, "command": []}
    place = free_folder(folder)
    name = "cpu" if target.host else str(target)
    command = write_repro(place, culprit, name, tolerances) + (["--simulate"] if simulate else [])
    return {"repro": str(place), "command": command}


def call_copy(compiled: Any, values: Sequence[Any]) -> list[np.ndarray]:
    """Run on copies, since the judge needs the inputs as they were; outputs as a list of arrays."""
    copies = [value.copy() if isinstance(value, np.ndarray) else value for value in values]
    result = compiled(*copies)
    return list(result) if isinstance(result, tuple) else [result]


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
