"""Which rewrite, or which node, makes compiled results wrong: searched for by compiling and comparing with the reference.

Rewrites come first (`passes.bisect`). If results are wrong without any, the graph itself is cut shorter and shorter: the first
node whose value is wrong is named. Then the smallest part around that place is looked for that is wrong by itself, its inputs
taken from the interpreter: a finding is worth most as a few lines that fail.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from dlcompiler.codegen.target import Target
from dlcompiler.ir.graph import Graph, Node, reachable
from dlcompiler.ir.ops import Trait
from dlcompiler.ir.types import TensorType
from dlcompiler.isolate import NO_MORE, Part, around, isolate
from dlcompiler.options import Options
from dlcompiler.passes.bisect import Culprit, find_culprit
from dlcompiler.passes.block.fuse import fuse
from dlcompiler.passes.context import Fuel
from dlcompiler.passes.pipeline import PASSES, optimize

# (graph, options, judge, inputs) -> whether the graph, compiled, gives what the interpreter gives for the graph `judge`
IsRight = Callable[[Graph, Options, Graph, Sequence[Any]], bool]

# steps up and down from the culprit, of the parts that are tried
REACHES = ((0, 0), (1, 0), (1, 1), (2, 1), (4, 2), (8, 4), (16, 8), (32, 16))


@dataclass(frozen=True)
class Repro:
    """The smallest part that was found to be wrong, and the options with which it is."""

    part: Part
    options: Options
    whole: bool


@dataclass(frozen=True)
class Finding:
    """What makes results wrong. `kind`: rewrite, node or none.

    fuel          `--fuel` with which results are wrong, and with one less right
    without_pass  whether leaving the rewrite's pass out makes results right
    group         the ops of the step that computes the wrong value, as `mul %1`
    group_kind    kernel, library or extern
    """

    kind: str
    text: str
    pass_name: str | None = None
    rule: str | None = None
    fuel: int | None = None
    node: str | None = None
    location: str | None = None
    without_pass: str | None = None
    group: tuple[str, ...] = ()
    group_kind: str | None = None
    repro: Repro | None = field(default=None, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, without the repro."""
        return asdict(replace(self, repro=None)) | {"group": list(self.group)}


def find(graph: Graph, inputs: Sequence[Any], target: Target, options: Options, is_right: IsRight) -> Finding:
    """Search. `is_right` is asked about 2 log2(rewrites or nodes) times and once for each part tried, and compiles each time."""
    options = replace(options, dump_dir=None, verify=False)
    # what find_culprit hands over is optimized already, so it is compiled without further rewriting
    as_it_is = replace(options, optimization_level=0, fuel=0)
    culprit = find_culprit(graph, target, options, lambda optimized: is_right(optimized, as_it_is, graph, inputs))
    if culprit is None:
        return Finding("none", "compiled results are those of the reference")
    if culprit.number == 0:
        return _wrong_node(graph, inputs, target, as_it_is, is_right)
    return _wrong_rewrite(graph, inputs, target, options, culprit, is_right)


# -- a rewrite ---------------------------------------------------------------------------------------------------------------


def _wrong_rewrite(
    graph: Graph, inputs: Sequence[Any], target: Target, options: Options, culprit: Culprit, is_right: IsRight
) -> Finding:
    pass_name, _, rest = culprit.rewrite.partition(": ")
    rule, _, name = rest.partition(" at %")
    before, after = (
        optimize(graph, target, replace(options, fuel=fuel), fuel=Fuel(fuel)) for fuel in (culprit.number - 1, culprit.number)
    )
    location = next((node.location for g in (graph, before) for node in g.nodes if node.name == name), None)
    without = "it cannot be disabled"
    if PASSES[pass_name].level > 0:
        disabled = replace(options, disabled_passes=options.disabled_passes | {pass_name})
        without = "right without it" if is_right(graph, disabled, graph, inputs) else "still wrong without it"
    kind, group = _group_of(after, _surviving(before, after, name), target, options)
    text = f"{culprit}: right with --fuel {culprit.number - 1}, wrong with --fuel {culprit.number}"
    # as captured if the node was there already, else as it was just before the rewrite
    repro = _smallest(graph, inputs, name, options, is_right) or _smallest(before, inputs, name, options, is_right)
    repro = repro or Repro(Part(graph, inputs), replace(options, fuel=culprit.number), True)
    return Finding("rewrite", text, pass_name, rule, culprit.number, name, location, without, group, kind, repro)


def _surviving(before: Graph, after: Graph, name: str) -> str | None:
    """The node of that name after the rewrite; if it is gone, the nearest one that read it."""
    names = {node.name for node in after.nodes}
    edge = [node for node in before.nodes if node.name == name]
    while edge:
        found = next((node.name for node in edge if node.name in names), None)
        if found is not None:
            return found
        edge = list(dict.fromkeys(user for node in edge for user in before.users[node]))
    return None


# -- a node ------------------------------------------------------------------------------------------------------------------


def _wrong_node(graph: Graph, inputs: Sequence[Any], target: Target, options: Options, is_right: IsRight) -> Finding:
    """Binary search for neighbours: the graph up to one node is right, up to the next it is wrong."""
    nodes = [node for node in graph.nodes if isinstance(node.type, TensorType) and not node.has(Trait.SOURCE)]
    if not nodes:
        return Finding("none", "the graph computes nothing, yet its outputs differ")
    good, bad = 0, len(nodes)
    while bad - good > 1:
        middle = (good + bad) // 2
        shorter = cut(graph, nodes[middle - 1])
        if is_right(shorter, options, shorter, inputs):
            good = middle
        else:
            bad = middle
    node = nodes[bad - 1]
    operands = ", ".join(str(operand.type) for operand in node.inputs)
    text = f"no rewrite is to blame: %{node.name} = {node.op.name}({operands}) : {node.type} is computed wrongly"
    shorter = cut(graph, node)
    kind, group = _group_of(optimize(shorter, target, options), node.name, target, options)
    repro = _smallest(graph, inputs, node.name, options, is_right) or Repro(Part(shorter, inputs), options, True)
    return Finding("node", text, node=node.name, location=node.location, group=group, group_kind=kind, repro=repro)


def cut(graph: Graph, last: Node) -> Graph:
    """The graph that computes `last` and nothing that it does not need."""
    needed = reachable([last])
    return graph.replace(nodes=tuple(node for node in graph.nodes if node in needed), outputs=(last,), **NO_MORE)


# -- both --------------------------------------------------------------------------------------------------------------------


def _group_of(graph: Graph, name: str | None, target: Target, options: Options) -> tuple[str | None, tuple[str, ...]]:
    """The kind and the ops of the step that computes the node of that name, or that reads it if it is a view or a constant."""
    fusion = fuse(graph, target, options)
    group_of = {node: group for group in fusion.groups for node in group.nodes}
    edge = [node for node in graph.nodes if node.name == name]
    while edge:
        found = next((group_of[node] for node in edge if node in group_of), None)
        if found is not None:
            return found.kind, tuple(f"{node.op.name} %{node.name}" for node in found.nodes)
        edge = list(dict.fromkeys(user for node in edge for user in graph.users[node]))
    return None, ()


def _smallest(graph: Graph, inputs: Sequence[Any], name: str, options: Options, is_right: IsRight) -> Repro | None:
    """The first part around the node, from small to large, that is wrong by itself; None if there is no such node or part."""
    node = next((node for node in graph.nodes if node.name == name), None)
    if node is None:
        return None
    tried: set[frozenset[Node]] = set()
    for up, down in REACHES:
        keep, last = around(graph, node, up, down)
        outputs = tuple(n for n in last if isinstance(n.type, TensorType))
        if not outputs or frozenset(keep) in tried:
            continue
        tried.add(frozenset(keep))
        part = isolate(graph, inputs, keep, outputs)
        if not is_right(part.graph, options, part.graph, part.values):
            return Repro(part, options, False)
    return None
