"""`dlcompiler inspect`."""

from __future__ import annotations

import difflib
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click

from dlcompiler.cli.commands import MODEL, complete_stages, flags, manual
from dlcompiler.cli.shared import Session, build, check_output, print_json, read_source, table, write_text
from dlcompiler.dump_pages import kernel_text
from dlcompiler.ir.graph import Graph
from dlcompiler.ir.kernel import Kernel
from dlcompiler.ir.ops import Trait
from dlcompiler.ir.program import DeviceCode, DeviceKernel, Launch, Program, RoutineCall
from dlcompiler.memory_table import memory_plan, memory_table
from dlcompiler.names import names_of_inputs, names_of_outputs
from dlcompiler.observe import Collector, Parts
from dlcompiler.report import Report, format_bytes

logger = logging.getLogger("dlcompiler")

CODE_STAGES = ("mlir", "llvm", "triton", "cuda", "ttir", "ttgir", "ptx")
PROGRAM_STAGES = ("kernels", "plan", "program", "evidence", *CODE_STAGES)


EXAMPLES = """
dlcompiler inspect model.onnx --check                        every operator: supported? run by what?
dlcompiler inspect model.onnx --html model.html              graphs, kernels, code, memory in a browser
dlcompiler inspect model.onnx --stage simplify               the graph after a pass
dlcompiler inspect model.onnx --stage mlir -o kernels.mlir   emitted code
dlcompiler inspect model.onnx --memory --input-shape x:1x3x224x224
"""


@click.command(name="inspect", epilog=manual(EXAMPLES))
@MODEL
@click.option(
    "--stage", metavar="STAGE", shell_complete=complete_stages,
    help="captured, a pass's name, optimized, kernels, mlir, llvm, triton, cuda, ttir, ttgir, ptx, evidence, plan, program.",
)  # fmt: skip
@click.option("--check", is_flag=True, help="A table of every operator: types, how many, what runs it, what is not supported.")
@click.option("--memory", is_flag=True, help="The memory plan: every slot's offset and lifetime, and live bytes by step.")
@click.option("--ops", is_flag=True, help="How many of each op, before and after the passes.")
@click.option(
    "--html", type=click.Path(dir_okay=False), metavar="FILE",
    help="Write one page to look around in: graphs, kernels, code, lines of the model, memory. It needs no network.",
)  # fmt: skip
@flags(output=True)
def command(
    model: str, stage: str | None, check: bool, memory: bool, ops: bool, html: str | None, output: str | None, **parameters: Any
) -> int | None:
    """Show MODEL: its inputs and outputs and the report of its compilation, or what the flags ask for."""
    session = Session.start(parameters)
    views = {"--check": check, "--html": html, "--stage": stage, "--memory": memory, "--ops": ops}
    asked = [name for name, wanted in views.items() if wanted]
    if len(asked) > 1:
        raise click.UsageError(f"one view at a time: {' and '.join(asked)} are {len(asked)}")
    check_output(output, model)
    check_output(html, model)
    if check:
        from dlcompiler.cli.check import check as run_check

        with session.progress() as progress:
            return run_check(model, session, progress, output)
    with session.progress() as progress:
        source = read_source(model, session, progress)
        view = View(source.graph, Collector(), None, None)
        if stage != "captured":
            parts = Parts()
            compiled = build(source, session, progress, parts)
            collector = parts.of(compiled.program)
            if len(parts.parts) > 1 and (stage or memory or ops or html):
                logger.warning("the model runs as %d programs, and the largest is shown; --dump writes all", len(parts.parts))
            if not collector.graphs:
                collector.graphs.append(("captured", source.graph))
            collector.report = compiled.report()
            view = View(source.graph, collector, collector.target or compiled.target, compiled.program)
    if html is not None:
        text, document = _write_page(html, view, view.collector.report)
    elif stage is not None:
        text, document = view.stage(stage)
    elif memory:
        document = memory_plan(view.planned)
        text = memory_table(document)
    elif ops:
        document = view.op_counts()
        text = _ops_table(document)
    else:
        document = {"inputs": view.inputs(), "outputs": view.outputs(), "report": compiled.report().as_dict()}
        text = "\n".join([*view.inputs(), *view.outputs(), "", str(compiled.report())])
    if output:
        write_text(output, text if text.endswith("\n") else text + "\n")
    if session.as_json:
        print_json(document)
    elif not output:
        click.echo(text.rstrip("\n"))
    return None


def _write_page(path: str, view: View, report: Report | None) -> tuple[str, Any]:
    from dlcompiler.explorer import compilation_data, explorer_page

    assert report is not None
    data = compilation_data(view.collector.graphs, view.planned, view.target, report)
    page = explorer_page(data)
    write_text(path, page)
    return f"wrote {path} ({format_bytes(len(page.encode()))}): open it in a browser", {"html": path, "bytes": len(page.encode())}


def stage_names() -> list[str]:
    """All that `--stage` takes."""
    from dlcompiler.passes.pipeline import PASSES

    return ["captured", *PASSES, "optimized", *PROGRAM_STAGES]


@dataclass(frozen=True)
class View:
    """A compilation looked at from outside."""

    captured: Graph
    collector: Collector
    target: Any
    program: Program | None

    @property
    def planned(self) -> Program:
        assert self.program is not None
        return self.program

    def stage(self, name: str) -> tuple[str, Any]:
        """The text of a stage, and the same as a document. Raises click.UsageError for a stage that there is not."""
        if name == "captured":
            return self._graph(self.captured)
        if name == "plan":
            plan = memory_plan(self.planned)
            return memory_table(plan), plan
        if name == "program":
            return str(self.planned), {"program": str(self.planned)}
        if name == "kernels":
            kernels = [kernel_text(unit) for unit in self._distinct().values()]
            return "\n\n".join(kernels) or "no kernels", {"kernels": kernels}
        if name in CODE_STAGES:
            return self._code(name)
        if name == "evidence":
            return self._evidence()
        return self._after_pass(name)

    def _evidence(self) -> tuple[str, Any]:
        if not isinstance(self.planned.code, DeviceCode):
            raise click.UsageError(
                f"{self.target} is no GPU; --stage evidence is for programs made for one (--target cuda:sm_90)"
            )
        from dlcompiler.codegen.gpu.device import device_of
        from dlcompiler.codegen.gpu.evidence import evidence_table, program_evidence

        rows = program_evidence(self.planned)
        return evidence_table(rows, device_of(self.planned.code.arch)), {"evidence": [row.as_dict() for row in rows]}

    def _graph(self, graph: Graph) -> tuple[str, Any]:
        text = str(graph)
        return text, {"graph": text, "nodes": len(graph.nodes)}

    def _after_pass(self, name: str) -> tuple[str, Any]:
        from dlcompiler.passes.pipeline import PASSES

        found = [graph for stage, graph in self.collector.graphs if stage == name]
        if found:
            return self._graph(found[-1])
        if name == "optimized" or name in PASSES:
            # a pass that changed nothing leaves the graph as it was; the last graph is what all passes made
            return self._graph(self.collector.graphs[-1][1] if name == "optimized" else self._graph_before(name))
        known = stage_names()
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise click.UsageError(f"no stage {name!r}; {hint}")

    def _graph_before(self, name: str) -> Graph:
        """The graph that the pass `name`, which changed nothing, last saw."""
        from dlcompiler.passes.pipeline import PIPELINE

        order = [each.name for each in PIPELINE]
        last = max(k for k, each in enumerate(order) if each == name)
        graph, position = self.collector.graphs[0][1], -1
        for stage, after in self.collector.graphs[1:]:
            position = next((k for k in range(position + 1, len(order)) if order[k] == stage), len(order))
            if position > last:
                break
            graph = after
        return graph

    def _code(self, stage: str) -> tuple[str, Any]:
        from dlcompiler.codegen import kernel_listing

        listings: dict[str, Mapping[str, str]] = {
            name: code.stages if isinstance(code, DeviceKernel) and stage in code.stages else kernel_listing(unit, self.target)
            for code, (name, unit) in self._units().items()
        }
        found = {name: listing[stage] for name, listing in listings.items() if stage in listing}
        if listings and not found:
            stages = sorted({key for listing in listings.values() for key in listing} - {"schedule"})
            elsewhere = "; --target cuda:sm_90 has it" if self.target.kind == "cpu" and stage not in ("mlir", "llvm") else ""
            raise click.UsageError(f"code for {self.target} has no stage {stage!r}; it has {', '.join(stages)}{elsewhere}")
        return "\n".join(f"// {name}\n{text}" for name, text in found.items()) or "no kernels", {"kernels": found}

    def _distinct(self) -> dict[str, Kernel | RoutineCall]:
        """Each distinct kernel by name, in order of first launch; hand-written ones by their op and step."""
        return dict(self._units().values())

    def _units(self) -> dict[Any, tuple[str, Kernel | RoutineCall]]:
        """Code -> name and kernel of its first launch."""
        units: dict[Any, tuple[str, Kernel | RoutineCall]] = {}
        compiled = self.planned.code.kernels if self.planned.code is not None else (None,) * len(self.planned.steps)
        for number, (step, code) in enumerate(zip(self.planned.steps, compiled)):
            if isinstance(step, Launch):
                units.setdefault(code or step.kernel, (step.kernel.name, step.kernel))
            elif isinstance(step, RoutineCall):
                units.setdefault(code or step, (f"{step.op}_{number}", step))
        return units

    def inputs(self) -> list[str]:
        return [f"input  {name}: {node.type}" for name, node in zip(names_of_inputs(self.captured), self.captured.inputs)]

    def outputs(self) -> list[str]:
        return [f"output {name}: {node.type}" for name, node in zip(names_of_outputs(self.captured), self.captured.outputs)]

    def op_counts(self) -> dict[str, dict[str, int]]:
        """Op -> number of nodes in the captured and in the optimized graph, most frequent first."""
        before, after = (
            Counter(node.op.name for node in graph.nodes if not node.has(Trait.SOURCE))
            for graph in (self.captured, self.collector.graphs[-1][1])
        )
        names = sorted(before | after, key=lambda name: (-max(before[name], after[name]), name))
        return {name: {"captured": before[name], "optimized": after[name]} for name in names}


def _ops_table(counts: dict[str, dict[str, int]]) -> str:
    total = tuple(sum(row[stage] for row in counts.values()) for stage in ("captured", "optimized"))
    rows = [(name, row["captured"], row["optimized"]) for name, row in counts.items()]
    return table([("op", "captured", "optimized"), *rows, ("total", *total)])
