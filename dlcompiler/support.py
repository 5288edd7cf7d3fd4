"""Which operators of a model are supported, and what runs them: one row for each operator, version and input types.

    op      domain   opset  inputs   count  runs as  first node
    MatMul  ai.onnx     21  f32 f32     12  native   '/encoder/0/query/MatMul'

Of an ONNX file the rows are its own nodes, of other models the nodes of the captured graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dlcompiler.ir.graph import Graph, Node
from dlcompiler.ir.ops import Trait
from dlcompiler.ir.program import AtenCall, Launch, Program, RoutineCall, Step
from dlcompiler.ir.types import TensorType
from dlcompiler.origins import origin_names

if TYPE_CHECKING:
    from dlcompiler.frontends.onnx import SeenNode

# from the one that says most about a group of nodes to the one that says least
KINDS = ("unsupported", "host", "control", "library", "native", "folded")
MEANING = {
    "native": "kernels of our own",
    "library": "calls into a library, in planned memory",
    "host": "ATen or the host, in memory of its own",
    "control": "control flow, and sizes that data tells: between programs",
    "folded": "nothing runs: computed while compiling, part of a neighbour's indices, or read by nobody",
    "unsupported": "cannot be compiled",
}


@dataclass(frozen=True)
class Row:
    """`count` nodes of one operator alike, the first of them called `first`. `runs_as` counts them by KINDS."""

    op: str
    domain: str
    version: int | None
    inputs: tuple[str, ...]
    count: int
    runs_as: Mapping[str, int]
    first: str
    reason: str | None = None

    @property
    def supported(self) -> bool:
        return "unsupported" not in self.runs_as

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**asdict(self), "supported": self.supported}


@dataclass(frozen=True)
class _Seen:
    op: str
    domain: str
    version: int | None
    inputs: tuple[str, ...]
    location: str
    runs_as: str
    reason: str | None = None


# the graphs and programs of a model's parts: one, or several where control flow or calls of the host lie between them
Parts = list[tuple[Graph, Program]]


def of_onnx(nodes: Iterable[SeenNode], graph: Graph | None, parts: Parts | None) -> list[Row]:
    """Rows of an ONNX file's nodes. Without parts, since some node is not supported, the others are `supported`."""
    kinds: dict[str, str] = {}
    if graph is not None and parts is not None:
        for imported, kind in _all_kinds(graph, parts).items():
            _note(kinds, imported.location, kind)
    seen = []
    for node in nodes:
        if node.problem is not None:
            kind = "unsupported"
        elif node.inlined:
            kind = "inlined"
        else:
            kind = kinds.get(node.location, "folded") if kinds else "supported"
        seen.append(
            _Seen(node.op, node.domain or "ai.onnx", node.version, node.dtypes, node.location, kind, _reason(node.problem))
        )
    return _rows(seen)


def _note(kinds: dict[str, str], location: str | None, kind: str) -> None:
    """At the place of the node, and at those of the function calls that it is inside of (`call/inner`): the first in KINDS."""
    while location:
        kinds[location] = min(kinds.get(location, kind), kind, key=KINDS.index)
        location = location.rpartition("/")[0]


def _all_kinds(graph: Graph, parts: Parts) -> dict[Node, str]:
    """Of every part, and of the barriers between them."""
    found = {node: kind for part, program in parts for node, kind in kinds_of(part, program).items() if node.op.name != "input"}
    for each in (graph, *(part for part, _ in parts)):
        for node in each.nodes:
            if node.has(Trait.BARRIER):
                found[node] = "host" if node.op.name == "host.call" else "control"
    return found


def of_graph(graph: Graph, parts: Parts | None, unsupported: Iterable[str] = ()) -> list[Row]:
    """Rows of a captured graph's nodes. `unsupported` are ops that the target refused."""
    refused = set(unsupported)
    by_name = {node.name: kind for node, kind in _all_kinds(graph, parts).items()} if parts is not None else {}
    seen = []
    for node in graph.nodes:
        if node.has(Trait.SOURCE):
            continue
        aten = node.op.name == "aten.call"
        op = str(node.attributes["target"]) if aten else node.op.name
        inputs = tuple(i.dtype.name if isinstance(i.type, TensorType) else "" for i in node.inputs)
        kind = "unsupported" if op in refused else by_name.get(node.name, "supported" if parts is None else "folded")
        reason = str(node.attributes.get("reason") or "no rule for it") if aten else None
        seen.append(_Seen(op, "aten" if aten else "dlcompiler", None, inputs, _place(node), kind, reason))
    return _rows(seen)


def kinds_of(graph: Graph, program: Program) -> dict[Node, str]:
    """What runs each node of the captured graph, by KINDS.

    Passes replace nodes, so one that no step names is part of the kernel of whoever reads it, unless nothing runs for it.
    """
    by_name: dict[str, str] = {}
    by_location: dict[str, str] = {}
    optimized = {node.name: node for node in program.graph.nodes}
    for step in (*program.preparation, *program.steps):
        kind = _kind(step)
        for name in origin_names(step):
            by_name[name] = min(by_name.get(name, kind), kind, key=KINDS.index)
            location = optimized[name].location if name in optimized else None
            if location:
                by_location[location] = min(by_location.get(location, kind), kind, key=KINDS.index)
    known: set[Node] = set()
    for node in graph.nodes:
        if node.op.name == "constant" or (node.inputs and all(i in known for i in node.inputs) and not node.has(Trait.IMPURE)):
            known.add(node)
    readers: dict[Node, list[str]] = {}
    kinds: dict[Node, str] = {}
    for node in reversed(graph.nodes):
        if node.op.name == "aten.call":
            direct: str | None = "host"
        else:
            direct = by_name.get(node.name) if node.name in optimized and optimized[node.name].op is node.op else None
            direct = direct or by_location.get(node.location or "")
        later = min(readers.get(node, ("folded",)), key=KINDS.index)
        folded = node in known or node.has(Trait.VIEW)
        kinds[node] = direct or ("folded" if folded else later)
        if not node.has(Trait.SOURCE):
            for operand in node.inputs:
                readers.setdefault(operand, []).append(direct or later)
    return kinds


def _place(node: Node) -> str:
    return f"%{node.name}" + (f" at {node.location}" if node.location else "")


def _reason(problem: str | None) -> str | None:
    """What follows the operator in `Resize [ai.onnx 19, f32]: reason`; that it is unknown where nothing does."""
    if problem is None:
        return None
    _, separator, reason = problem.partition("]: ")
    return reason if separator else "no such operator here" if problem.endswith("]") else problem


def _kind(step: Step) -> str:
    if isinstance(step, Launch | RoutineCall):
        return "native"
    return "host" if isinstance(step, AtenCall) else "library"


def _rows(seen: Iterable[_Seen]) -> list[Row]:
    """Equal nodes together; what is not supported first, then the most frequent."""
    groups: dict[tuple, list[_Seen]] = {}
    for each in seen:
        unsupported = each.runs_as == "unsupported"
        groups.setdefault((each.op, each.domain, each.version, each.inputs, unsupported, each.reason), []).append(each)
    rows = []
    for (op, domain, version, inputs, _, reason), members in groups.items():
        runs_as = Counter(each.runs_as for each in members)
        rows.append(Row(op, domain, version, inputs, len(members), dict(runs_as.most_common()), members[0].location, reason))
    return sorted(rows, key=lambda row: (row.supported, -row.count, row.op, row.inputs))


def totals(rows: Iterable[Row]) -> dict[str, int]:
    """Nodes by what runs them."""
    counts: Counter[str] = Counter()
    for row in rows:
        counts.update(row.runs_as)
    return dict(counts.most_common())
