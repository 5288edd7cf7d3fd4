"""Putting a graph's nodes in order, and finding cycles."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnx import AttributeProto, GraphProto, NodeProto

from dlcompiler.frontends.onnx_load import printable
from dlcompiler.ir.errors import InvalidModelError


def captured(node: NodeProto) -> set[str]:
    """Names that the graphs inside a node read from around it. Iterative: graphs may be nested."""
    names: set[str] = set()
    stack: list[tuple[GraphProto, frozenset[str]]] = [
        (a.g, frozenset()) for a in node.attribute if a.type == AttributeProto.GRAPH
    ]
    while stack:
        graph, outer = stack.pop()
        own = set(outer)
        own.update(i.name for i in graph.input)
        own.update(t.name for t in graph.initializer)
        own.update(o for n in graph.node for o in n.output)
        inside = frozenset(own)
        for inner in graph.node:
            names.update(i for i in inner.input if i and i not in inside)
            stack.extend((a.g, inside) for a in inner.attribute if a.type == AttributeProto.GRAPH)
        names.update(o.name for o in graph.output if o.name not in inside)
    return names


def ordered(nodes: Sequence[NodeProto], defined: Callable[[str], bool], shown: str) -> Sequence[NodeProto]:
    """The nodes so that each comes after those it reads; as they are if they already do.

    Raises InvalidModelError naming a node on a cycle. A name that no node of these defines is left to whoever looks it up.
    """
    producer: dict[str, int] = {}
    for number, node in enumerate(nodes):
        for output in node.output:
            if output and producer.setdefault(output, number) != number:
                raise InvalidModelError(f"{shown}: the name {output!r} is defined twice", location=printable(node.name) or None)
    reads: list[set[int]] = []
    in_order = True
    for number, node in enumerate(nodes):
        names = [*node.input, *(captured(node) if any(a.type == AttributeProto.GRAPH for a in node.attribute) else ())]
        before = {producer[n] for n in names if n in producer and not defined(n)}
        in_order &= all(p < number for p in before)
        reads.append(before)
    if in_order:
        return nodes
    return _sorted(nodes, reads, shown)


def _sorted(nodes: Sequence[NodeProto], reads: list[set[int]], shown: str) -> list[NodeProto]:
    """Kahn's algorithm; ready nodes keep the file's order."""
    import heapq

    waiting = [len(r) for r in reads]
    readers: list[list[int]] = [[] for _ in nodes]
    for number, before in enumerate(reads):
        for producer in before:
            readers[producer].append(number)
    ready = [n for n, count in enumerate(waiting) if count == 0]
    heapq.heapify(ready)
    result = []
    while ready:
        number = heapq.heappop(ready)
        result.append(nodes[number])
        for reader in readers[number]:
            waiting[reader] -= 1
            if waiting[reader] == 0:
                heapq.heappush(ready, reader)
    if len(result) < len(nodes):
        stuck = nodes[next(n for n, count in enumerate(waiting) if count)]
        raise InvalidModelError(f"{shown}: the graph has a cycle", location=printable(stuck.name or stuck.op_type))
    return result
