"""The Markdown pages of a dump: kernels, ops and source lines, each linked to the other two."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from dlcompiler.codegen import kernel_listing
from dlcompiler.codegen.target import Target
from dlcompiler.ir.graph import Node
from dlcompiler.ir.kernel import Kernel
from dlcompiler.ir.ops import Trait
from dlcompiler.ir.program import AtenCall, Launch, LibraryCall, Program, RoutineCall, Step
from dlcompiler.ir.text.values import show_attributes, show_dims
from dlcompiler.origins import origin_names, what_it_computes
from dlcompiler.report import Report


@dataclass(frozen=True)
class StageRow:
    """One line of the table of stages: the file, nodes after it, and lines of the text added and removed."""

    stage: str
    file: str
    nodes: int
    added: int
    removed: int
    event: str


@dataclass
class KernelPage:
    """One distinct kernel: its folder, the files in it, the steps that launch it and the graph nodes it computes."""

    name: str
    folder: str
    files: dict[str, str]
    steps: list[int] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)


# kinds of emitted text -> file names; any other stage is written as `kernel.<stage>`
FILE_NAMES = {"schedule": "schedule.txt", "llvm": "kernel.llvm.mlir", "triton": "kernel.py"}


def kernel_pages(program: Program, target: Target, safe_name: Callable[[str], str]) -> list[KernelPage]:
    """A page for every distinct kernel, in order of first launch. Launches that share code share the page."""
    by_name = {node.name: node for node in (*program.graph.inputs, *program.graph.nodes)}
    compiled = program.code.kernels if program.code is not None else (None,) * len(program.steps)
    pages: dict[Any, KernelPage] = {}
    for number, (step, code) in enumerate(zip(program.steps, compiled)):
        if not isinstance(step, Launch | RoutineCall):
            continue
        unit = step.kernel if isinstance(step, Launch) else step
        key = unit if code is None else code
        page = pages.get(key)
        if page is None:
            folder = f"kernels/{len(pages):03d}-{safe_name(what_it_computes(step))}"
            page = pages[key] = KernelPage(folder.removeprefix("kernels/"), folder, _kernel_files(unit, target))
        page.steps.append(number)
        page.nodes += [by_name[name] for name in origin_names(step) if name in by_name]
    return list(pages.values())


def _kernel_files(kernel: Kernel | RoutineCall, target: Target) -> dict[str, str]:
    """Kernel IR (of a hand-written kernel: what it is called with), and what was emitted for it."""
    listing = kernel_listing(kernel, target)
    return {
        "kernel.txt": kernel_text(kernel),
        **{FILE_NAMES.get(stage, f"kernel.{stage}"): text for stage, text in listing.items()},
    }


def kernel_text(unit: Kernel | RoutineCall) -> str:
    """Kernel IR; of a hand-written kernel the op and the memory it is called with."""
    if isinstance(unit, Kernel):
        return str(unit)
    views = {"read": unit.reads, "write": unit.writes}
    lines = [f"  {word} {view.dtype}{show_dims(view.shape)} strides {show_dims(view.strides)}"
             for word, each in views.items() for view in each if view is not None]  # fmt: skip
    attributes = f" {show_attributes(unit.attributes)}" if unit.attributes else ""
    return "\n".join([f"routine {unit.op}{attributes} {{", *lines, "}"]) + "\n"


def kernel_page(page: KernelPage) -> str:
    """`index.md` of a kernel's folder."""
    lines = [
        f"# kernel {page.name}",
        "",
        f"Launched by step {', '.join(map(str, page.steps))}. [All steps](../../index.md#steps)",
        "",
    ]
    lines += [f"- [{name}]({name})" for name in page.files]
    lines += ["", "| op | type | source |", "| --- | --- | --- |"]
    for node in page.nodes:
        lines.append(f"| {_op_link(node, '../../')} {node.op.name} | `{node.type}` | {_source_link(node, '../../')} |")
    return "\n".join(lines) + "\n"


def index_page(report: Report, stages: Iterable[StageRow], program: Program | None, pages: list[KernelPage]) -> str:
    """`index.md`: where a reader starts."""
    lines = [f"# {report.name} on {report.target}", "", "```", str(report), "```", ""]
    lines += [
        "[explorer](explorer.html) · [ops](ops.md) · [source lines](sources.md) · [program](program.txt) · "
        "[memory plan](memory.txt) ([json](memory.json)) · [why not fused](refusals.txt) · [report](report.json)",
        "",
        "## Stages",
        "",
        "| graph after | nodes | lines added | lines removed | what it did |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for row in stages:
        lines.append(f"| [{row.file}]({row.file}) | {row.nodes} | {row.added} | {row.removed} | {_cell(row.event)} |")
    if program is None:
        return "\n".join(lines) + "\n"
    lines += ["", "## Kernels", "", "| kernel | launches | ops |", "| --- | ---: | --- |"]
    for page in pages:
        ops = _shortened([_op_link(node) for node in page.nodes])
        lines.append(f"| [{page.name}]({page.folder}/index.md) | {len(page.steps)} | {ops} |")
    lines += ["", "## Steps", "", "| step | what | ops | source |", "| ---: | --- | --- | --- |"]
    nodes = {node.name: node for node in program.graph.nodes}
    page_of = {number: page for page in pages for number in page.steps}
    for number, step in enumerate(program.steps):
        members = [nodes[name] for name in origin_names(step) if name in nodes]
        sources = _shortened(list(dict.fromkeys(_source_link(n) for n in members if n.location)))
        lines.append(
            f"| {number} | {_what(step, page_of.get(number))} | {_shortened([_op_link(n) for n in members])} | {sources} |"
        )
    return "\n".join(lines) + "\n"


def ops_page(program: Program, pages: list[KernelPage]) -> str:
    """`ops.md`: each op of the optimized graph, with the step or kernel that computes it and its source line."""
    done_by = _done_by(program, pages)
    lines = ["# Ops of the optimized graph", "", "| op | kind | type | done by | source |", "| --- | --- | --- | --- | --- |"]
    for node in program.graph.nodes:
        where = ", ".join(done_by.get(node.name, ())) or _why_no_step(node)
        anchor = f'<a id="{anchor_of("op", node.name)}"></a>`%{node.name}`'
        lines.append(f"| {anchor} | {node.op.name} | `{node.type}` | {where} | {_source_link(node)} |")
    return "\n".join(lines) + "\n"


def sources_page(program: Program, pages: list[KernelPage]) -> str:
    """`sources.md`: each line of the user's model, with the ops and kernels it became."""
    done_by = _done_by(program, pages)
    by_location: dict[str, list[Node]] = {}
    for node in program.graph.nodes:
        if node.location:
            by_location.setdefault(node.location, []).append(node)
    lines = ["# Lines of the model", "", "| source | ops | done by |", "| --- | --- | --- |"]
    for location, nodes in by_location.items():
        steps = list(dict.fromkeys(link for node in nodes for link in done_by.get(node.name, ())))
        anchor = f'<a id="{anchor_of("source", location)}"></a>{_cell(location)}'
        lines.append(f"| {anchor} | {', '.join(_op_link(n) for n in nodes)} | {', '.join(steps)} |")
    return "\n".join(lines) + "\n"


def _done_by(program: Program, pages: list[KernelPage]) -> dict[str, tuple[str, ...]]:
    """Node name -> links to the kernels, or texts of the calls, that compute it."""
    page_of = {number: page for page in pages for number in page.steps}
    found: dict[str, dict[str, None]] = {}
    for number, step in enumerate(program.steps):
        for name in origin_names(step):
            found.setdefault(name, {})[f"{_what(step, page_of.get(number))} (step {number})"] = None
    return {name: tuple(links) for name, links in found.items()}


def _why_no_step(node: Node) -> str:
    if node.has(Trait.SOURCE):
        return "known before the call"
    if node.has(Trait.VIEW):
        return "index arithmetic of its readers"
    return "part of its readers"


def _what(step: Step, page: KernelPage | None) -> str:
    if page is not None:
        return f"[{page.name}]({page.folder}/index.md)"
    if isinstance(step, LibraryCall):
        return f"library {step.op}"
    if isinstance(step, AtenCall):
        return f"aten {step.target} ({_cell(step.reason)})" if step.reason else f"aten {step.target}"
    return f"kernel {step.kernel.name}"


def anchor_of(kind: str, text: str) -> str:
    """An anchor that only equal texts share: other characters become their code point."""
    return f"{kind}-" + "".join(c if c.isalnum() and c.isascii() else f"-{ord(c):x}-" for c in text)


def _op_link(node: Node, up: str = "") -> str:
    return f"[%{node.name}]({up}ops.md#{anchor_of('op', node.name)})"


def _source_link(node: Node, up: str = "") -> str:
    return f"[{_cell(node.location)}]({up}sources.md#{anchor_of('source', node.location)})" if node.location else ""


def _cell(text: str) -> str:
    """Text that may stand in a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ").replace("[", "\\[").replace("]", "\\]").replace("<", "&lt;")


def _shortened(links: list[str], shown: int = 8) -> str:
    return ", ".join(links[:shown]) + (f", and {len(links) - shown} more" if len(links) > shown else "")
