"""Dead code: nodes that no result depends on.

%1 = exp(%x); %2 = neg(%x); return %2  -->  %2 = neg(%x); return %2
"""

from __future__ import annotations

from dlcompiler.ir.control import has_effect, needed
from dlcompiler.ir.graph import Graph, Node
from dlcompiler.passes.context import Context


def remove_dead_code(graph: Graph, context: Context) -> Graph:
    """The graph without nodes that neither a result nor a node with an effect depends on. Inputs always stay."""
    alive = needed((*graph.results, *(n for n in graph.nodes if has_effect(n))), graph.nodes)
    if all(n in alive for n in graph.nodes):
        return graph
    kept: list[Node] = []
    # backwards, so that what fuel keeps has its operands kept too
    for node in reversed(graph.nodes):
        if node in alive or not context.spend("remove", node.name):
            kept.append(node)
            alive.update(node.inputs)
    return graph if len(kept) == len(graph.nodes) else graph.replace(nodes=tuple(reversed(kept)))
