"""Which values share memory with a result of the graph.

Eager gives `f(x) = x * 1` memory of its own. A pass that lets `x` itself stand for the product would hand the caller an alias
of the argument, or of another result. Passes ask here before one value stands for another.
"""

from __future__ import annotations

from collections.abc import Container, Iterator

from dlcompiler.ir.graph import Graph, Node
from dlcompiler.ir.ops import Trait


def view_chain(node: Node) -> Iterator[Node]:
    """`node`, and what it views, down to the value that owns the memory."""
    yield node
    while node.has(Trait.VIEW) and len(node.inputs) == 1:
        node = node.inputs[0]
        yield node


def owner(node: Node) -> Node:
    """The value whose memory `node` may be a view of; `node` itself if it is no view."""
    *_, last = view_chain(node)
    return last


def escaping(graph: Graph) -> set[Node]:
    """Nodes whose memory a caller may get to see: results, and what they view."""
    found: set[Node] = set()
    for node in graph.results:
        for link in view_chain(node):
            if link in found:
                break
            found.add(link)
    return found


def may_stand_for(value: Node, node: Node, escapes: Container[Node]) -> bool:
    """Whether `value` may take the place of `node` without a result sharing memory that it did not share before."""
    if node not in escapes:
        return True
    held, before = owner(value), owner(node)
    return held is before or (held not in escapes and not held.has(Trait.SOURCE))
