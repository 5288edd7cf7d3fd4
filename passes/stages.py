"""A graph with barriers as stages: pure graphs, each compiled to one program, and the barriers between them.

    %k = host.call(%x); %t = tuple.get(%k); %y = exp(%t); %z = neg(%x)  -->  piece {neg}, barrier host.call, piece {exp}

A node belongs to the first piece in which its operands and sizes are known, so that there are as few pieces as barriers that wait
for each other. Constants and sizes are not handed over: each piece has its own. What is asserted of sizes is asked as soon as
they are known. What the whole graph writes into an input is written by the piece that computes it, unless something later still
reads what was there. A piece owns what nothing after it reads: values of earlier pieces, and inputs that the call owns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dlcompiler.ir.control import bound_by, has_effect, symbols_of, used_symbols
from dlcompiler.ir.expression import symbol_name
from dlcompiler.ir.graph import Graph, Node, reachable
from dlcompiler.ir.ops import Trait, lookup
from dlcompiler.ir.types import TensorType, i64


@dataclass(frozen=True)
class Piece:
    """A pure graph. Its inputs are values of the whole graph, or sizes by name; `outputs` are the whole graph's nodes.

    written   inputs of the whole graph that it writes to, its graph's writebacks
    """

    graph: Graph
    inputs: tuple[Node | str, ...]
    outputs: tuple[Node, ...]
    written: tuple[Node, ...] = ()


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
        self.writes = [(value, target) for value, target in graph.writebacks if self._may_write(value, target)]
        written = {target for _, target in self.writes}
        self.strides = dict(zip(reversed(graph.outputs), reversed(graph.output_strides)))
        self.results = {*graph.outputs, *(value for value, target in graph.writebacks if target not in written)}

    def _may_write(self, value: Node, target: Node) -> bool:
        """Whether the piece that computes a value may store it in an input's memory."""
        is_computed = not (value.has(Trait.BARRIER) or is_projection(value) or is_given(value) or value in self.graph.inputs)
        return is_computed and self._last_read(target) <= self.level[value]

    def _last_read(self, node: Node) -> int:
        """The level of the last piece, or barrier before a piece, that reads a node."""
        return max((self.level[user] for user in self.graph.users[node]), default=0)

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
        mine = set(nodes)
        writes = [(value, target) for value, target in self.writes if value in mine]
        roots = (*outputs, *(n for n in nodes if has_effect(n)), *(value for value, _ in writes))
        if not roots:
            return None
        used = reachable(roots)
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
                new[operand] = self._input(operand, level)
                taken.append(operand)
            new[node] = replace(node, inputs=tuple(new.get(i, i) for i in node.inputs))
            body.append(new[node])
        for _, target in writes:
            if target not in new:
                new[target] = self._input(target, level)
                taken.append(target)
        inputs = [new[n] for n in taken]
        bound = {symbol_name(d) for n in inputs if isinstance(n.type, TensorType) for d in n.shape}
        strides = tuple(self.strides.get(n) for n in outputs)
        needed = sorted(set().union(used_symbols(strides), *(symbols_of(n) for n in (*inputs, *body))) - bound)
        sizes = [Node(lookup("size"), (), {"symbol": s}, TensorType(i64, ()), f"size.{s}") for s in needed]
        name = f"{self.graph.name}.{level}"
        written = tuple((new[value], new[target]) for value, target in writes)
        piece = Graph(name, (*inputs, *sizes), tuple(body), tuple(new[n] for n in outputs), written, strides)
        return Piece(piece, (*taken, *needed), outputs, tuple(target for _, target in writes))

    def _input(self, node: Node, level: int) -> Node:
        """What stands for a value that a piece is given."""
        is_input = node.op.name == "input"
        attributes = {name: value for name, value in node.attributes.items() if is_input and name != "owned"}
        is_own = not is_input or node.attributes.get("owned")
        is_read_later = node in self.results or self._last_read(node) > level
        if is_own and not is_read_later:
            attributes["owned"] = True
        return Node(lookup("input"), (), attributes, node.type, node.name, node.location)

    def _leaves(self, node: Node, level: int) -> bool:
        """Whether a later stage or the caller reads a node of this piece."""
        users = self.graph.users[node]
        return node in self.results or any(u.has(Trait.BARRIER) or self.level[u] != level for u in users)
