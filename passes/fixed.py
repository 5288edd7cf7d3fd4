"""Values that stay the same between calls: constants, a module's own tensors that no call writes, and what is computed from
these alone.

They are computed once, and again only when a tensor that they are computed from has changed (`ir.program.Program.preparation`).
"""

from __future__ import annotations

from dlcompiler.ir.graph import Graph, Node
from dlcompiler.ir.ops import Trait
from dlcompiler.ir.types import TensorType


def is_fixed_source(node: Node) -> bool:
    """Whether a node is a constant, or a module's own tensor."""
    return node.op.name == "constant" or bool(node.op.name == "input" and node.attributes.get("parameter"))


def stays_fixed(node: Node) -> bool:
    """Whether a node's value changes only if those of its operands do, and has a size that is known now."""
    if not isinstance(node.type, TensorType) or not all(isinstance(size, int) for size in node.shape):
        return False
    return bool(node.inputs) and not any(node.has(t) for t in (Trait.IMPURE, Trait.EXTERN, Trait.LIBRARY, Trait.SOURCE))


def fixed_nodes(graph: Graph) -> frozenset[Node]:
    """All nodes of a graph whose values stay the same between calls."""
    written = {target for _, target in graph.writebacks}
    found = {node for node in graph.inputs if is_fixed_source(node) and node not in written}
    for node in graph.nodes:
        if is_fixed_source(node) or (stays_fixed(node) and all(i in found or _is_number(i) for i in node.inputs)):
            found.add(node)
    return frozenset(found)


def is_fixed(node: Node, most: int = 32) -> bool:
    """Whether one value stays the same between calls, looking at so many nodes at the most."""
    stack, seen = [node], set()
    while stack:
        current = stack.pop()
        if current in seen or is_fixed_source(current) or _is_number(current):
            continue
        seen.add(current)
        if len(seen) > most or not stays_fixed(current):
            return False
        stack.extend(current.inputs)
    return True


def _is_number(node: Node) -> bool:
    """Index ranges: numbers that are known without data."""
    return node.op.name == "iota" and all(isinstance(size, int) for size in node.shape)
