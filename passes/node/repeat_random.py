"""Random numbers are computed again where they are needed again, not kept.

    %b = philox(%i, %k, %seed); %m = lt(%b, %p); %y = mul(%x, %m); ...; %dx = mul(%dy, %m)
    -->  %b = philox(%i, %k, %seed); %m = lt(%b, %p); %y = mul(%x, %m); ...
         %b.again = philox(%i, %k, %seed); %m.again = lt(%b.again, %p); %dx = mul(%dy, %m.again)

What dropout keeps for its backward pass is thus the seed of the whole step. A copy goes to each reader that a kernel computes: it
joins that kernel, where equal values are one again if two readers meet there. What is a result has memory anyway, and is read.
"""

from __future__ import annotations

from dataclasses import replace

from dlcompiler.ir.graph import Graph, Node, Rewriter
from dlcompiler.ir.ops import Trait
from dlcompiler.ir.types import TensorType
from dlcompiler.passes.context import Context

# Nodes from the bits to what is read, beyond which a value is rather kept: a mask takes five, a normal number about twelve.
MOST_NODES = 16


def repeat_random(graph: Graph, context: Context) -> Graph:
    """The graph with random values computed by each of their readers."""
    if not any(node.op.name == "philox" for node in graph.nodes):
        return graph
    chains = _chains(graph)
    rewriter = Rewriter(graph)
    read: set[Node] = set()
    for node in graph.nodes:
        needed = {m: None for operand in node.inputs for m in chains.get(operand, ())}
        if node in chains or not needed or not _joins(node):
            rewriter.keep(node)
        elif read.isdisjoint(needed) or not context.spend("repeat", node.name):
            rewriter.keep(node)
            read.update(needed)
        else:
            again = _copies(rewriter, list(needed))
            inputs = tuple(again.get(operand, rewriter.new[operand]) for operand in node.inputs)
            copied = replace(node, inputs=inputs)
            rewriter.nodes.append(copied)
            rewriter.replace(node, copied)
    return rewriter.finish_like()


def _chains(graph: Graph) -> dict[Node, tuple[Node, ...]]:
    """For each value made of random bits and single numbers alone, all nodes that it takes from the bits on, in order."""
    found: dict[Node, tuple[Node, ...]] = {}
    for node in graph.nodes:
        if node in graph.results or not isinstance(node.type, TensorType):
            continue
        if node.op.name == "philox":
            found[node] = (node,)
        elif _is_light(node) and any(operand in found for operand in node.inputs):
            if all(operand in found or _is_single(operand) for operand in node.inputs):
                chain = (*dict.fromkeys(m for operand in node.inputs for m in found.get(operand, ())), node)
                if len(chain) <= MOST_NODES:
                    found[node] = chain
    return found


def _is_light(node: Node) -> bool:
    return node.has(Trait.POINTWISE) or (node.has(Trait.VIEW) and not node.has(Trait.PARTIAL))


def _is_single(node: Node) -> bool:
    """Whether a value is one number, whoever made it."""
    while node.has(Trait.VIEW) and len(node.inputs) == 1:
        node = node.inputs[0]
    return isinstance(node.type, TensorType) and node.tensor.numel == 1


def _joins(node: Node) -> bool:
    """Whether a node is computed in kernels that its operands may be part of."""
    return node.has(Trait.POINTWISE) or node.has(Trait.REDUCTION)


def _copies(rewriter: Rewriter, nodes: list[Node]) -> dict[Node, Node]:
    """Copies of the nodes, which are in order, by what they are copies of."""
    copies: dict[Node, Node] = {}
    for node in nodes:
        inputs = tuple(copies.get(operand, rewriter.new[operand]) for operand in node.inputs)
        rewriter.location = node.location
        copies[node] = rewriter.make(node.op, inputs, node.attributes, node.type, f"{node.name}.again")
    return copies
