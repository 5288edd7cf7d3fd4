"""What is tuned on its own: each distinct group of a fused graph, cut out as a small graph.

    group {linear, gelu} of %x, %weight, %bias  -->  graph: inputs x0, x1 parameter, x2 parameter; linear; gelu; output

What a group reads from memory becomes an input of the layout that it has in the whole graph, and a parameter where it stays the
same between calls; views and small constants come along.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from dlcompiler.ir.graph import Builder, Graph, Node
from dlcompiler.ir.ops import Trait
from dlcompiler.ir.text import print_graph
from dlcompiler.ir.types import TensorType
from dlcompiler.passes.block.fuse import Fusion, Group
from dlcompiler.passes.dataflow.layout import assign_layouts
from dlcompiler.passes.strides import Strides


@dataclass(frozen=True, eq=False)
class Problem:
    """A small graph to find the quickest way for.

    name    its ops and the type of its first result; count: how often the group occurs
    key     equal for equal graphs
    """

    name: str
    graph: Graph
    count: int
    key: str


def find_problems(fusion: Fusion) -> list[Problem]:
    """Every distinct group that runs in each call and whose sizes are known, in the order of their first occurrence."""
    if fusion.graph.symbols:
        return []
    layouts = assign_layouts(fusion)
    found: dict[str, Problem] = {}
    for group in fusion.groups:
        if group.kind not in ("kernel", "library") or all(node in fusion.fixed for node in group.nodes):
            continue
        graph = cut_out(group, fusion, layouts)
        if graph is None:
            continue
        text = print_graph(graph)
        before = found.get(text)
        if before is not None:
            found[text] = Problem(before.name, before.graph, before.count + 1, before.key)
        else:
            found[text] = Problem(_name(group), graph, 1, hashlib.sha256(text.encode()).hexdigest())
    return list(found.values())


def _name(group: Group) -> str:
    kept = [node.op.name for node in group.nodes if not node.has(Trait.VIEW)]
    shown = "+".join(kept[:4]) + (f"+{len(kept) - 4} more" if len(kept) > 4 else "")
    return f"{shown} {group.outputs[0].type}"


def cut_out(group: Group, fusion: Fusion, layouts: Mapping[Node, Strides]) -> Graph | None:
    """The group as a graph of its own; None for one of ops that give or read several results at once."""
    builder = Builder("tuned")
    members = set(group.nodes)
    new: dict[Node, Node] = {}
    stack = list(reversed(group.nodes))
    while stack:
        node = stack[-1]
        if node in new:
            stack.pop()
            continue
        if not isinstance(node.type, TensorType):
            return None
        if node not in members and not fusion.inlined(node):
            new[node] = builder.input(
                f"x{len(builder.inputs)}", node.type, strides=layouts[node], is_parameter=node in fusion.fixed
            )
            continue
        missing = [operand for operand in node.inputs if operand not in new]
        if missing:
            stack.extend(reversed(missing))
            continue
        new[node] = builder.make(node.op, tuple(new[i] for i in node.inputs), node.attributes, node.type, "n")
    outputs = [new[node] for node in group.outputs]
    return builder.finish(outputs, output_strides=tuple(layouts[node] for node in group.outputs))
