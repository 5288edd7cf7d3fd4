"""Composites, written with other ops.

    %1 = silu(%x)  -->  %1.sigmoid = sigmoid(%x); %1 = mul(%x, %1.sigmoid)

A composite that the target's library runs whole stays. What an expansion is made of keeps the composite's place in the model,
and its name as the first part of its own.
"""

from __future__ import annotations

from dlcompiler.ir.graph import Graph, Node
from dlcompiler.ir.ops import Trait
from dlcompiler.passes.aliasing import escaping
from dlcompiler.passes.context import Context
from dlcompiler.passes.rewrite import GraphRewriter


def decompose(graph: Graph, context: Context) -> Graph:
    """The graph without composites, except ops in `target.library_ops`.

    Needed by every target, so it takes no fuel.
    """
    kept_whole = context.target.library_ops
    if not any(_is_expandable(n, kept_whole) for n in graph.nodes):
        return graph
    rewriter = GraphRewriter(graph, escaping(graph))
    while (node := rewriter.next()) is not None:
        if _is_expandable(node, kept_whole):
            value = node.op.expand(rewriter, node.inputs, node.attributes)
            rewriter.replace(node, rewriter.detached(value, node))
            context.counts[node.op.name] += 1
        else:
            rewriter.keep(node)
    return rewriter.finish()


def _is_expandable(node: Node, kept_whole: frozenset[str]) -> bool:
    return node.has(Trait.COMPOSITE) and node.op.name not in kept_whole
