"""Composites, written with other ops.

    %1 = silu(%x)  -->  %1.sigmoid = sigmoid(%x); %1 = mul(%x, %1.sigmoid)

A composite that the target's library runs whole stays, and so does one that has no expansion for its operands. What an
expansion is made of keeps the composite's place in the model, and its name as the first part of its own. The expansion of an op
with several results gives one node for each, which take the places of the `tuple.get`s.
"""

from __future__ import annotations

from typing import Any

from dlcompiler.ir.graph import Graph, Node
from dlcompiler.ir.ops import Trait
from dlcompiler.ir.types import TensorType
from dlcompiler.passes.aliasing import escaping
from dlcompiler.passes.context import Context, PassTarget
from dlcompiler.passes.rewrite import GraphRewriter


def decompose(graph: Graph, context: Context) -> Graph:
    """The graph without composites, except those that `target.runs_whole`.

    Needed by every target, so it takes no fuel.
    """
    target = context.target
    if not any(_is_expandable(n, target) for n in graph.nodes):
        return graph
    rewriter = GraphRewriter(graph, escaping(graph))
    results: dict[tuple[Node, int], Node] = {}
    refused: set[Node] = set()
    while (node := rewriter.next()) is not None:
        value = None
        if node.op.name == "tuple.get" and _is_expandable(node.inputs[0], target):
            source, key = node.inputs[0], (node.inputs[0], node.attributes["index"])
            if key not in results and source not in refused:
                values = _expansion(rewriter, source)
                if values is None:
                    refused.add(source)
                else:
                    assert isinstance(values, tuple), source
                    results.update(((source, index), each) for index, each in enumerate(values))
                    context.counts[source.op.name] += 1
            value = results.get(key)
            # a second reader follows the first one, since what stands for a node may be renamed
            if value is not None:
                results[key] = node
        elif _is_expandable(node, target) and isinstance(node.type, TensorType):
            value = _expansion(rewriter, node)
            context.counts[node.op.name] += 1
        if value is None:
            rewriter.keep(node)
        else:
            rewriter.replace(node, rewriter.detached(value, node))
    return rewriter.finish_like()


def _expansion(rewriter: GraphRewriter, node: Node) -> Any:
    assert node.op.expand is not None
    return node.op.expand(rewriter, node.inputs, node.attributes)


def _is_expandable(node: Node, target: PassTarget) -> bool:
    return node.has(Trait.COMPOSITE) and not target.runs_whole(node)
