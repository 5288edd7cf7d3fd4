"""Groups revised once all are known: what moves fewer bytes, or takes fewer steps, than joining producers one node at a time.

    {%1 = linear(%x, %w); %2 = mul(%1, %a)}  stores both; {reduce_sum(%2)}  -->  {linear} stores %1; {mul, reduce_sum}
    {%1 = linear(%x, %w); %2 = sub(%a, %b)}; {.. %2 ..}; {.. %2 ..}          -->  {linear}; both compute %2 from %a and %b
    {reduce_sum(%1)}; {reduce_sum(%2 = mul(%1, %b))}                        -->  {both}: one step, which reads %1 once

Fusion takes nodes in order, so pointwise ops between a product and a reduction of its results join the product, and all of them
that the reduction reads are stored. The first rule moves such a tail of a group to the group that alone reads it, if the two then
read and write fewer bytes, or as many and write fewer of them. The second does not store what a few pointwise ops make of values
that are in memory anyway (a layer norm's input, normalised once more for its gradients): each reader computes it, if all together
then move fewer bytes. The third joins reductions of the same values that do not depend on each other.

None makes a cycle: the reader of a tail, or of a value computed again, came after that group and all before it anyway, and
siblings are joined only if nothing lies between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from dlcompiler.ir.expression import evaluate, symbols
from dlcompiler.ir.graph import Graph, Node
from dlcompiler.ir.ops import Trait
from dlcompiler.ir.types import TensorType

# What a symbolic size is taken for where groupings are compared: a long side, as batches and sequences are.
TYPICAL_SIZE = 256
# Pointwise ops that each reader of a value does rather than reading it.
MOST_AGAIN = 4


class Part(Protocol):
    """A group while it may change; `kind` is kernel, library or extern, and only kernels change."""

    kind: str
    nodes: list[Node]


P = TypeVar("P", bound=Part)


@dataclass(eq=False)
class Regrouping(Generic[P]):
    """The parts of a graph, and what is asked about them.

    bases     nodes with memory or a part that a node reads, looking through views
    inlined   whether a node has no memory, because each reader computes it: views, and the nodes in `free`
    rebase    finds the bases of a node anew, after those of its operands
    outputs   which of some nodes leave the kernel that they are
    fits      whether some nodes, in order, make one good kernel
    fixed     nodes computed once and kept; they share no kernel with others
    tiled     sums of products, whose kernels take nothing in front of them here
    """

    graph: Graph
    parts: Sequence[P]
    bases: Mapping[Node, Sequence[Node]]
    inlined: Callable[[Node], bool]
    outputs: Callable[[Sequence[Node]], Sequence[Node]]
    fits: Callable[[Sequence[Node]], bool]
    fixed: Set[Node]
    tiled: Set[Node]
    free: set[Node]
    rebase: Callable[[Node], None]
    position: dict[Node, int] = field(init=False)
    home: dict[Node, P] = field(init=False)

    def __post_init__(self) -> None:
        self.position = {node: k for k, node in enumerate((*self.graph.inputs, *self.graph.nodes))}
        self.home = {node: part for part in self.parts for node in part.nodes}

    def run(self) -> list[P]:
        """The parts that are left, their nodes moved."""
        for part in self.parts:
            if part.kind == "kernel":
                self._give_away(part)
        for part in self.parts:
            if part.kind == "kernel":
                self._leave_to_readers(part)
        self._join_siblings()
        return [part for part in self.parts if part.nodes]

    # -- tails of groups -----------------------------------------------------------------------------------------------------

    def _give_away(self, part: P) -> None:
        """Move pointwise ops to the kernels that alone read them, where that saves bytes."""
        readers = {self.home[r]: None for n in self.outputs(part.nodes) for r in self._readers(n) or () if r in self.home}
        for reader in readers:
            if reader is part or not self._may_grow(reader):
                continue
            tail = self._tail(part, reader)
            rest = [n for n in part.nodes if n not in tail]
            more = self._in_order([*tail, *reader.nodes])
            if not tail or not rest or not self._is_as_fixed([*tail, *reader.nodes]):
                continue
            before, after = self._moved(part.nodes, reader.nodes), self._moved(rest, more)
            # of equal bytes those that are only read: a result in memory is one more that nothing but its readers can share
            if after < before and self.fits(more) and self.fits(rest):
                part.nodes, reader.nodes = rest, more
                self.home.update(dict.fromkeys(tail, reader))

    def _tail(self, part: P, reader: P) -> set[Node]:
        """Pointwise ops of a part that only each other and the reader read."""
        tail: set[Node] = set()
        for node in reversed(part.nodes):
            readers = self._readers(node)
            if node.has(Trait.POINTWISE) and readers and all(r in tail or self.home.get(r) is reader for r in readers):
                tail.add(node)
        return tail

    def _readers(self, node: Node) -> set[Node] | None:
        """Nodes that read a node, directly or through views; None if whoever runs the graph does."""
        found: set[Node] = set()
        stack = [node]
        while stack:
            current = stack.pop()
            if current in self.graph.results:
                return None
            for user in self.graph.users[current]:
                if self.inlined(user):
                    stack.append(user)
                else:
                    found.add(user)
        return found

    # -- values computed by each reader --------------------------------------------------------------------------------------

    def _leave_to_readers(self, part: P) -> None:
        """Store nothing that its readers make of what is stored anyway, where that saves bytes."""
        for node in reversed(self.outputs(part.nodes)):
            chain = self._chain(node, part)
            readers = [self._readers(n) for n in chain]
            homes = {self.home.get(r): None for found in readers for r in found or () if r not in chain}
            if not chain or None in readers or not all(p is part or (p is not None and self._may_grow(p)) for p in homes):
                continue
            parts = [p for p in {part: None, **homes} if p is not None]
            before = self._moved(*(p.nodes for p in parts))
            self._set_free(chain, part)
            after = self._moved(*(p.nodes for p in parts))
            if after >= before or not all(self.fits(p.nodes) for p in parts if p.nodes):
                self._set_free(chain, part, back=True)

    def _chain(self, node: Node, part: P) -> set[Node]:
        """The pointwise ops of a part that make a value of what others make; none if they are many or not all pointwise."""
        chain: set[Node] = set()
        stack = [node]
        while stack:
            current = stack.pop()
            if current in chain or (current not in part.nodes and not self.inlined(current)):
                continue
            if current in part.nodes:
                chain.add(current)
                if not current.has(Trait.POINTWISE) or current in self.fixed or len(chain) > MOST_AGAIN:
                    return set()
            stack.extend(current.inputs)
        return chain

    def _set_free(self, chain: Set[Node], part: P, back: bool = False) -> None:
        """Take some nodes out of a part, to be computed by whoever reads them; or put them back."""
        if back:
            self.free -= chain
            part.nodes = self._in_order([*part.nodes, *chain])
            self.home.update(dict.fromkeys(chain, part))
        else:
            self.free |= chain
            part.nodes = [n for n in part.nodes if n not in chain]
            for node in chain:
                del self.home[node]
        reached, stack = set(chain), list(chain)
        while stack:
            for user in self.graph.users[stack.pop()]:
                if user not in reached:
                    reached.add(user)
                    if self.inlined(user):
                        stack.append(user)
        for node in self._in_order(list(reached)):
            self.rebase(node)

    # -- siblings ------------------------------------------------------------------------------------------------------------

    def _join_siblings(self) -> None:
        """Join reductions of the same values, where one of them reads nothing larger."""
        reading: dict[Node, list[P]] = {}
        for part in self.parts:
            if self._may_grow(part) and any(n.has(Trait.REDUCTION) for n in part.nodes):
                for base in self._read(part.nodes):
                    reading.setdefault(base, []).append(part)
        for base in sorted(reading, key=self.position.__getitem__):
            first, *others = reading[base]
            for other in others:
                if other is first or not self._join(base, first, other):
                    first = other

    def _join(self, base: Node, first: P, second: P) -> bool:
        """Join two parts that both read `base`; whether that was done."""
        if not first.nodes or not second.nodes:
            return False
        largest = min(max(map(_size, self._read(part.nodes))) for part in (first, second))
        if _size(base) < largest or _size(base) == 0 or not self._is_as_fixed([*first.nodes, *second.nodes]):
            return False
        nodes = self._in_order([*first.nodes, *second.nodes])
        if self._lies_between(first, second) or not self.fits(nodes):
            return False
        self.home.update(dict.fromkeys(second.nodes, first))
        first.nodes, second.nodes = nodes, []
        return True

    def _lies_between(self, first: P, second: P) -> bool:
        """Whether another step reads one and feeds the other."""
        ends = {first, second}
        stack = [p for end in ends for p in self._producers(end) if p not in ends]
        seen: set[P] = set()
        while stack:
            part = stack.pop()
            if part in ends:
                return True
            if part not in seen:
                seen.add(part)
                stack.extend(self._producers(part))
        return False

    # -- what is asked of parts ------------------------------------------------------------------------------------------------

    def _producers(self, part: P) -> set[P]:
        return {self.home[b] for n in part.nodes for b in self.bases[n] if b in self.home} - {part}

    def _may_grow(self, part: P) -> bool:
        return part.kind == "kernel" and not any(n in self.tiled for n in part.nodes)

    def _is_as_fixed(self, nodes: Sequence[Node]) -> bool:
        return len({n in self.fixed for n in nodes}) == 1

    def _in_order(self, nodes: Sequence[Node]) -> list[Node]:
        return sorted(nodes, key=self.position.__getitem__)

    def _read(self, nodes: Sequence[Node]) -> set[Node]:
        return {b for n in nodes for b in self.bases[n]} - set(nodes)

    def _moved(self, *kernels: Sequence[Node]) -> tuple[int, int]:
        """Bytes that kernels of these nodes read and write, and those that they write."""
        written = sum(_size(node) for nodes in kernels for node in self.outputs(nodes))
        return written + sum(_size(node) for nodes in kernels for node in self._read(nodes)), written


def _size(node: Node) -> int:
    """Bytes of a value, sizes that are not known taken for typical ones; 0 of several values."""
    if not isinstance(node.type, TensorType):
        return 0
    size = node.type.bytes
    return evaluate(size, dict.fromkeys(symbols(size), TYPICAL_SIZE))
