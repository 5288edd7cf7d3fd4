"""Linears that read one value become one linear, where their weights are constants.

    %q = linear(%x, %wq); %k = linear(%x, %wk); %v = linear(%x, %wv)
    -->  %q.linear = linear(%x, %wqkv); %q = slice(%q.linear); %k = slice(%q.linear); %v = slice(%q.linear)

One long product uses a machine better than three short ones. The weights are copied beside each other, so they no longer share
memory with the model's own parameters: hence only at -O3. Weights that are arguments may change and are left alone.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from dlcompiler.ir.graph import Graph, Node
from dlcompiler.passes.aliasing import escaping
from dlcompiler.passes.context import Context
from dlcompiler.passes.rewrite import GraphRewriter

# Columns of a merged linear, at most: longer products use the machine well by themselves.
MAXIMUM_COLUMNS = 16 * 1024


def merge_linears(graph: Graph, context: Context) -> Graph:
    """The graph with linears of one operand and constant weights merged; sums may be in another order, so not under eager."""
    groups = _groups(graph) if context.allows_approximate else {}
    if not groups:
        return graph
    rewriter = GraphRewriter(graph)
    merged: dict[str, tuple[Node, int]] = {}  # name of a member -> (merged linear, first column)
    while (node := rewriter.next()) is not None:
        group = groups.get(node.name) if node.op.name == "linear" else None
        if group is not None and context.spend("merge-linears", node.name):
            together = rewriter.linear(node.inputs[0], *_weights_together(rewriter, group))
            merged.update(zip((n.name for n in group), _with_first_columns(together, group)))
        # what stands for a member has its name
        if node.op.name != "linear" or node.name not in merged:
            rewriter.keep(node)
            continue
        whole, start = merged[node.name]
        rank, columns = node.tensor.rank, node.inputs[1].shape[0]
        starts, limits = (*(0,) * (rank - 1), start), (*node.shape[:-1], start + columns)
        rewriter.replace(node, rewriter.slice(whole, starts=starts, limits=limits, steps=(1,) * rank))
    return rewriter.finish_like()


def _groups(graph: Graph) -> dict[str, list[Node]]:
    """The first member's name -> the linears that read the same value."""
    escapes = escaping(graph)
    by_operand: dict[tuple[Node, int], list[Node]] = defaultdict(list)
    for node in graph.nodes:
        if node.op.name == "linear" and node not in escapes:
            constants = node.inputs[1:]
            if all(c.op.name == "constant" and len(graph.users[c]) == 1 for c in constants):
                by_operand[node.inputs[0], len(constants)].append(node)
    groups = [g for g in by_operand.values() if len(g) > 1 and sum(_columns(n) for n in g) <= MAXIMUM_COLUMNS]
    return {group[0].name: group for group in groups}


def _weights_together(rewriter: GraphRewriter, group: list[Node]) -> list[Node]:
    """Weight, and bias if there are any, of all members one after the other."""
    count = len(group[0].inputs) - 1
    arrays = (np.concatenate([n.inputs[1 + k].attributes["value"] for n in group]) for k in range(count))
    return [rewriter.constant(array, name=f"{group[0].inputs[1 + k].name}.merged") for k, array in enumerate(arrays)]


def _columns(linear: Node) -> int:
    """Rows of the constant weight, one for each column of the result."""
    return linear.inputs[1].tensor.known_shape[0]


def _with_first_columns(whole: Node, group: list[Node]) -> list[tuple[Node, int]]:
    start, found = 0, []
    for node in group:
        found.append((whole, start))
        start += _columns(node)
    return found
