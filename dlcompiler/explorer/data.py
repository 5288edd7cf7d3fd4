"""What the page shows, as one JSON-able document: stages, steps, kernels with their code, lines of the model, memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from dlcompiler.codegen.target import Target
from dlcompiler.dump_pages import kernel_pages
from dlcompiler.ir.graph import Graph, Node
from dlcompiler.ir.ops import Trait
from dlcompiler.ir.program import AtenCall, Launch, Program, RoutineCall, Step, View
from dlcompiler.ir.text import print_node
from dlcompiler.ir.text.values import show_attributes
from dlcompiler.memory_table import memory_plan
from dlcompiler.names import names_of_inputs, names_of_outputs
from dlcompiler.origins import origin_names, what_it_computes
from dlcompiler.report import Report
from dlcompiler.version import __version__

LONGEST_CODE = 400_000  # characters of one emitted text; a longer one is cut, and says so


def compilation_data(stages: Sequence[tuple[str, Graph]], program: Program, target: Target, report: Report) -> dict[str, Any]:
    """The document. `stages` are the graphs as captured and after each pass that changed something, the last one optimized.

    A node is a list `[name, op, type, inputs, attributes, location, kind]`, since there are thousands: `kind` is source, view
    or compute, of constants `attributes` is the value as it is printed.
    """
    captured = stages[0][1]
    kernels = kernel_pages(program, target, lambda text: text)
    kernel_of = {number: k for k, page in enumerate(kernels) for number in page.steps}
    return {
        "title": report.name,
        "target": report.target,
        "version": __version__,
        "inputs": [f"input  {name}: {node.type}" for name, node in zip(names_of_inputs(captured), captured.inputs)],
        "outputs": [f"output {name}: {node.type}" for name, node in zip(names_of_outputs(captured), captured.outputs)],
        "report": {key: value for key, value in report.as_dict().items() if key not in ("inputs", "outputs", "code_key")},
        "report_text": str(report),
        "stages": _stages(stages),
        "steps": [_step(number, step, kernel_of.get(number)) for number, step in enumerate(program.steps)],
        "preparation": [_step(number, step, None) for number, step in enumerate(program.preparation)],
        "kernels": [
            {
                "name": page.name.partition("-")[2] or page.name,
                "steps": page.steps,
                "ops": list(dict.fromkeys(node.name for node in page.nodes)),
                "files": {name: _cut(text) for name, text in page.files.items()},
            }
            for page in kernels
        ],
        "memory": memory_plan(program),
    }


def _stages(stages: Sequence[tuple[str, Graph]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    history = 0
    for name, graph in stages:
        events = graph.history[history:]
        history = len(graph.history)
        found.append(
            {
                "name": name,
                "event": "; ".join(str(event) for event in events),
                "nodes": [_node(node) for node in (*graph.inputs, *graph.nodes)],
                "outputs": [node.name for node in graph.outputs],
            }
        )
    return found


def _node(node: Node) -> list[Any]:
    kind = "source" if node.has(Trait.SOURCE) else "view" if node.has(Trait.VIEW) else "compute"
    attributes = {key: value for key, value in node.attributes.items() if key != "value" or node.op.name != "constant"}
    if node.op.name == "constant":
        shown = print_node(node, digests=False).partition(" constant ")[2].partition(" : ")[0]
    else:
        shown = show_attributes(attributes) if attributes else ""
    return [node.name, node.op.name, str(node.type), [i.name for i in node.inputs], shown, node.location or "", kind]


def _step(number: int, step: Step, kernel: int | None) -> dict[str, Any]:
    if isinstance(step, Launch | RoutineCall):
        kind, name = "native", what_it_computes(step)
    elif isinstance(step, AtenCall):
        kind, name = "host", step.target
    else:
        kind, name = "library", step.op
    return {
        "number": number,
        "kind": kind,
        "name": name,
        "kernel": kernel,
        "ops": origin_names(step),
        "reads": _slots(step.reads),
        "writes": _slots(step.writes),
        "reason": step.reason if isinstance(step, AtenCall) else "",
    }


def _slots(views: Iterable[View | None]) -> list[str]:
    return list(dict.fromkeys(view.slot.name for view in views if view is not None))


def _cut(text: str) -> str:
    if len(text) <= LONGEST_CODE:
        return text
    return f"{text[:LONGEST_CODE]}\n... and {len(text) - LONGEST_CODE:,} more characters; --dump has them all\n"
