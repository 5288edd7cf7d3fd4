"""Which rewrite, or which node, makes compiled results wrong: searched for by compiling and comparing with the reference.

Rewrites come first (`passes.bisect`). If results are wrong without any, the graph itself is cut shorter and shorter: the first
node whose value is wrong is named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from dlcompiler.codegen.target import Target
from dlcompiler.ir.graph import Graph, Node, reachable
from dlcompiler.ir.ops import Trait
from dlcompiler.ir.types import TensorType
from dlcompiler.options import Options
from dlcompiler.passes.bisect import find_culprit
from dlcompiler.passes.pipeline import PASSES

# (graph, options, judge) -> whether the graph, compiled, gives what the interpreter gives for the graph `judge`
IsRight = Callable[[Graph, Options, Graph], bool]


@dataclass(frozen=True)
class Finding:
    """What makes results wrong. `kind`: rewrite, node or none.

    fuel          `--fuel` with which results are wrong, and with one less right
    without_pass  whether leaving the rewrite's pass out makes results right
    """

    kind: str
    text: str
    pass_name: str | None = None
    rule: str | None = None
    fuel: int | None = None
    node: str | None = None
    location: str | None = None
    without_pass: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def find(graph: Graph, target: Target, options: Options, is_right: IsRight) -> Finding:
    """Search. `is_right` is asked about 2 log2(rewrites or nodes) times, and compiles each time."""
    options = replace(options, dump_dir=None, verify=False)
    # what find_culprit hands over is optimized already, so it is compiled without further rewriting
    as_it_is = replace(options, optimization_level=0, fuel=0)
    culprit = find_culprit(graph, target, options, lambda optimized: is_right(optimized, as_it_is, graph))
    if culprit is None:
        return Finding("none", "compiled results are those of the reference")
    if culprit.number == 0:
        return _first_wrong_node(graph, lambda candidate: is_right(candidate, as_it_is, candidate))
    pass_name, _, rest = culprit.rewrite.partition(": ")
    rule, _, name = rest.partition(" at %")
    location = next((node.location for node in graph.nodes if node.name == name), None)
    without = "it cannot be disabled"
    if PASSES[pass_name].level > 0:
        disabled = replace(options, disabled_passes=options.disabled_passes | {pass_name})
        without = "right without it" if is_right(graph, disabled, graph) else "still wrong without it"
    text = f"{culprit}: right with --fuel {culprit.number - 1}, wrong with --fuel {culprit.number}"
    return Finding("rewrite", text, pass_name, rule, culprit.number, name, location, without)


def _first_wrong_node(graph: Graph, is_right: Callable[[Graph], bool]) -> Finding:
    """Binary search for neighbours: the graph up to one node is right, up to the next it is wrong."""
    nodes = [node for node in graph.nodes if isinstance(node.type, TensorType) and not node.has(Trait.SOURCE)]
    good, bad = 0, len(nodes)
    while bad - good > 1:
        middle = (good + bad) // 2
        if is_right(cut(graph, nodes[middle - 1])):
            good = middle
        else:
            bad = middle
    if not nodes:
        return Finding("none", "the graph computes nothing, yet its outputs differ")
    node = nodes[bad - 1]
    operands = ", ".join(str(operand.type) for operand in node.inputs)
    text = f"no rewrite is to blame: %{node.name} = {node.op.name}({operands}) : {node.type} is computed wrongly"
    return Finding("node", text, node=node.name, location=node.location)


def cut(graph: Graph, last: Node) -> Graph:
    """The graph that computes `last` and nothing that it does not need."""
    needed = reachable([last])
    kept: Sequence[Node] = tuple(node for node in graph.nodes if node in needed)
    return graph.replace(nodes=kept, outputs=(last,), writebacks=(), output_strides=(), output_names=(), history=())
