"""Convolutions to be computed in fewer multiplications, by Winograd's algorithm (see `ir.winograd`).

    convolution(x, W){strides=(1, 1)}  -->  convolution(x, W){strides=(1, 1), winograd=(4, 4)}

Filters that move in steps of one over a line, an image or a volume, in float32, where the target expects to be quicker by
it. The node's meaning stays what it was. The rule is approximate: rounding errors are up to a few times those of the sum as it
stands, and an infinity or NaN in the image reaches all results of the tiles that read it. Weights that the graph hands out or
writes are a training step's: they change in each call, and the target counts what transforming them costs.
"""

from __future__ import annotations

from dlcompiler.ir.graph import Graph, Node, reachable
from dlcompiler.ir.types import DTYPES
from dlcompiler.passes.context import Context
from dlcompiler.passes.fixed import is_fixed
from dlcompiler.passes.rewrite import GraphRewriter, RuleTable, apply_rules, rule


def choose_winograd(graph: Graph, context: Context) -> Graph:
    """Mark each convolution that the target computes more quickly by Winograd's algorithm."""
    changing = {*graph.outputs, *(target for _, target in graph.writebacks)}

    @rule("winograd", "convolution", exact=False)
    def winograd(b: GraphRewriter, node: Node) -> Node | None:
        """convolution(x, W, B){} --> convolution(x, W, B){winograd}"""
        a, weight = node.attributes, node.inputs[1]
        steps = {*a["strides"], *a["dilations"]}
        if "winograd" in a or a["transposed"] or a["groups"] != 1 or steps != {1} or node.dtype is not DTYPES["f32"]:
            return None
        changes = not is_fixed(weight) or not changing.isdisjoint(reachable((weight,)))
        sizes = context.target.winograd_sizes(node, changes)
        return None if sizes is None else b.convolution(*node.inputs, **a, winograd=sizes)

    return apply_rules(graph, RuleTable((winograd,)), context)
