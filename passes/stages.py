"""A graph with barriers as stages: pure graphs, each compiled to one program, and the barriers between them.

    %k = host.call(%x); %t = tuple.get(%k); %y = exp(%t); %z = neg(%x)  -->  piece {neg}, barrier host.call, piece {exp}

A node belongs to the first piece in which its operands and sizes are known, so that there are as few pieces as barriers that wait
for each other. Constants and sizes are not handed over: each piece has its own. What is asserted of sizes is asked as soon as they
are known.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dlcompiler.ir.control import bound_by, has_effect, symbols_of
from dlcompiler.ir.expression import symbol_name
from dlcompiler.ir.graph import Graph, Node, reachable
from dlcompiler.ir.ops import Trait, lookup
from dlcompiler.ir.types import TensorType, i64


@dataclass(frozen=True)
class Piece:
    """A pure graph. Its inputs are values of the whole graph, or sizes by name; `outputs` are the whole graph's nodes."""

    graph: Graph
    inputs: tuple[Node | str, ...]
    outputs: tuple[Node, ...]


@dataclass(frozen=True)
class Barrier:
    """One node that runs between pieces."""

    node: Node


Stage = Piece | Barrier


def is_given(node: Node) -> bool:
    """Whether the runtime has a node's value without running anything."""
    return node.op.name in ("constant", "dim")


def _is_check_of_sizes(node: Node) -> bool:
    """Whether a node asserts something of sizes alone: it runs before the piece that may use them."""
    return node.op.name == "check" and not node.inputs


def is_projection(node: Node) -> bool:
    """Whether a node takes one result out of a barrier's."""
    return node.op.name == "tuple.get" and node.inputs[0].has(Trait.BARRIER)


def split_stages(graph: Graph) -> tuple[Stage, ...]:
    """The stages in the order they run."""
    return _Splitter(graph).stages()


class _Splitter:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.level: dict[Node, int] = dict.fromkeys(graph.inputs, 0)
        known: dict[str, int] = dict.fromkeys(graph.symbols, 0)
        for node in graph.nodes:
            is_barrier = node.has(Trait.BARRIER)
            new = bound_by(node) - known.keys()
            waits = [self.level[i] for i in node.inputs] + [known[s] for s in symbols_of(node) - new]
            ready = max(waits, default=0)
            self.level[node] = ready + 1 if is_barrier and not _is_check_of_sizes(node) else ready
            known.update(dict.fromkeys(new, ready + 1))

    def stages(self) -> tuple[Stage, ...]:
        last = max(self.level.values(), default=0)
        found: list[Stage] = []
        for level in range(last + 1):
            found += [Barrier(n) for n in self.graph.nodes if _is_check_of_sizes(n) and self.level[n] == level]
            pure = [n for n in self.graph.nodes if self.level[n] == level and not (n.has(Trait.BARRIER) or is_projection(n))]
            piece = self._piece(level, pure)
            if piece is not None:
                found.append(piece)
            barriers = [n for n in self.graph.nodes if n.has(Trait.BARRIER) and not _is_check_of_sizes(n)]
            found += [Barrier(n) for n in barriers if self.level[n] == level + 1]
        return tuple(found)

    def _piece(self, level: int, nodes: list[Node]) -> Piece | None:
        outputs = tuple(n for n in nodes if not is_given(n) and self._leaves(n, level))
        effects = [n for n in nodes if has_effect(n)]
        if not outputs and not effects:
            return None
        used = reachable((*outputs, *effects))
        nodes = [n for n in nodes if n in used]
        mine, new, taken = set(nodes), {}, []
        body: list[Node] = []
        for node in nodes:
            for operand in node.inputs:
                if operand in mine or operand in new:
                    continue
                if is_given(operand):
                    body.append(operand)
                    new[operand] = operand
                    continue
                plain = {k: v for k, v in operand.attributes.items() if k in ("limits", "parameter")}
                attributes = plain if operand.op.name == "input" else {}
                new[operand] = Node(lookup("input"), (), attributes, operand.type, operand.name, operand.location)
                taken.append(operand)
            new[node] = replace(node, inputs=tuple(new.get(i, i) for i in node.inputs))
            body.append(new[node])
        inputs = [new[n] for n in taken]
        bound = {symbol_name(d) for n in inputs if isinstance(n.type, TensorType) for d in n.shape}
        needed = sorted(set().union(*(symbols_of(n) for n in (*inputs, *body))) - bound)
        sizes = [Node(lookup("size"), (), {"symbol": s}, TensorType(i64, ()), f"size.{s}") for s in needed]
        name = f"{self.graph.name}.{level}"
        piece = Graph(name, (*inputs, *sizes), tuple(body), tuple(new[n] for n in outputs))
        return Piece(piece, (*taken, *needed), outputs)

    def _leaves(self, node: Node, level: int) -> bool:
        """Whether a later stage or the caller reads a node of this piece."""
        users = self.graph.users[node]
        return node in self.graph.results or any(u.has(Trait.BARRIER) or self.level[u] != level for u in users)
