"""A few nodes of a graph as a graph of their own, with the values that they read as inputs.

graph g { input %x; %1 = exp(%x); %2 = mul(%1, %c); %3 = neg(%2) }, around %2  -->  graph g { input %1; %2 = mul(%1, %c) }
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dlcompiler.ir.expression import Expression, symbol_name, symbols
from dlcompiler.ir.graph import Graph, Node
from dlcompiler.ir.ops import lookup
from dlcompiler.ir.types import TensorType
from dlcompiler.reference import run_reference


@dataclass(frozen=True)
class Part:
    """A graph, and a value for each of its inputs."""

    graph: Graph
    values: Sequence[Any]

    @property
    def size(self) -> int:
        """Nodes that compute."""
        return sum(node.op.name != "constant" for node in self.graph.nodes)


def around(graph: Graph, node: Node, up: int, down: int) -> tuple[set[Node], tuple[Node, ...]]:
    """Nodes at most `up` steps before and `down` steps behind `node`, and those of them that nobody in there reads."""
    chosen = {node}
    edge = {node}
    for _ in range(down):
        edge = {user for each in edge for user in graph.users.get(each, ())} - chosen
        chosen |= edge
    edge = set(chosen)
    for _ in range(up):
        edge = {operand for each in edge for operand in each.inputs if operand.inputs} - chosen
        chosen |= edge
    last = tuple(n for n in graph.nodes if n in chosen and not any(user in chosen for user in graph.users[n]))
    return chosen, last


def isolate(graph: Graph, inputs: Sequence[Any], keep: Iterable[Node], outputs: Sequence[Node]) -> Part:
    """The nodes `keep` with constants they read; every other operand is an input, its value computed by the interpreter.

    Sizes that only a dropped input would bind are bound by that input, which is kept. `outputs` are nodes of `keep`.
    """
    kept = set(keep)
    # a tuple cannot be an input, so whoever makes it is kept
    for node in reversed(graph.nodes):
        if node in kept:
            kept |= {operand for operand in node.inputs if not isinstance(operand.type, TensorType)}
    operands = {operand for node in kept for operand in node.inputs} - kept
    constants = {node for node in operands if node.op.name == "constant"}
    given = set(graph.inputs) & (operands | kept)
    edge = operands - constants - given
    given |= _binding(graph, [*kept, *edge], [*edge, *given])
    new: dict[Node, Node] = {}
    for node in graph.inputs:
        if node in given:
            new[node] = node
    for node in graph.nodes:
        if node in edge:
            new[node] = Node(lookup("input"), (), {}, node.type, node.name, node.location)
        elif node in kept or node in constants:
            new[node] = replace(node, inputs=tuple(new[operand] for operand in node.inputs))
    made = [node for node in graph.nodes if node in edge]
    nodes = tuple(new[node] for node in graph.nodes if node in kept or node in constants)
    part = graph.replace(
        inputs=tuple(new[node] for node in (*[n for n in graph.inputs if n in given], *made)),
        nodes=nodes,
        outputs=tuple(new[node] for node in outputs),
        **NO_MORE,
    )
    known = dict(zip(graph.inputs, inputs))
    known.update(_values(graph, inputs, made))
    return Part(part, [known[node] for node in (*[n for n in graph.inputs if n in given], *made)])


# what belongs to the whole graph and not to a part of it
NO_MORE: Mapping[str, Any] = {"writebacks": (), "output_strides": (), "output_names": (), "history": ()}


def _values(graph: Graph, inputs: Sequence[Any], nodes: Sequence[Node]) -> dict[Node, np.ndarray]:
    if not nodes:
        return {}
    return dict(zip(nodes, run_reference(graph.replace(outputs=tuple(nodes), **NO_MORE), inputs)))


def _binding(graph: Graph, nodes: Iterable[Node], inputs: Iterable[Node]) -> set[Node]:
    """Inputs of the graph that bind sizes which `nodes` mention and `inputs` leave unknown."""
    wanted: set[str] = set()
    for node in nodes:
        wanted |= _mentioned((node.type.shape if isinstance(node.type, TensorType) else (), node.attributes))
    bound = {name for node in inputs for name in _bound_by(node)}
    found: set[Node] = set()
    for node in graph.inputs:
        if (wanted - bound) & _bound_by(node):
            found.add(node)
            bound |= _bound_by(node)
    return found


def _bound_by(node: Node) -> set[str]:
    if node.op.name == "size":
        return {node.attributes["symbol"]}
    return {name for dim in node.tensor.shape if (name := symbol_name(dim)) is not None}


def _mentioned(value: Any) -> set[str]:
    """Symbols in an attribute, however deeply nested."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return set().union(*map(_mentioned, value))
    return set(symbols(value)) if isinstance(value, Expression) else set()
