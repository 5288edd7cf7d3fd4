"""Cheap values are computed again in the backward pass, not held from the forward pass, where that lowers the peak of memory.

    %h = add(%x, %m); %y = maximum(%h, 0); %z = linear(%y, %w); ...; %dy = where(gt(%y, 0), %dz, 0); %dw = linear(%dz, %y)
    -->  ...; %k = kept(%x); %h.again = add(%k, %m); %y.again = maximum(%h.again, 0); %dy = where(gt(%y.again, 0), ...

A step's graph has its forward pass first: what comes before the first of its results, the loss. What the rest reads of it is
cut, as torch's partitioner does (He and Yu 2023, "Transcending runtime-memory tradeoffs in checkpointing by being fusion aware"):
each value is stored, which costs its bytes, or made of others by pointwise operations, which costs a part of its bytes for each
operation, more for those that are slow, and a pass over memory where a reader is no kernel that it can join. A minimum cut of the
network with these capacities is the cheapest choice.

`activation_memory_budget` is the part of the bytes held now that may be held: time counts for less until that is met, or nothing
pointwise is left. None recomputes what costs no pass over memory. The plan made of the result is compared with the plan without:
the planned peak never grows.

Copies are made before each reader, shared by readers with no product between them. They read what is kept through the op `kept`,
across which the fuser joins nothing, else they would be computed by the forward kernels again.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace

from dlcompiler.ir.graph import Graph, Node, Rewriter
from dlcompiler.ir.ops import Trait
from dlcompiler.ir.types import TensorType, boolean
from dlcompiler.passes.block.fuse import Fusion, fuse, is_kernel_node, is_virtual
from dlcompiler.passes.context import Context
from dlcompiler.passes.dataflow.program import plan
from dlcompiler.passes.node.dead_code import remove_dead_code

# Costs of computing a value again, in parts of its bytes: a plain operation, a slow one, and writing and reading it.
PLAIN, SLOW, PASS = 0.04, 0.6, 2.5
SLOW_OPS = frozenset(
    {"philox", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "erf", "erfc", "erfinv", "tanh", "sigmoid", "sin", "cos",
     "tan", "sinh", "cosh", "asin", "acos", "atan", "atan2", "asinh", "acosh", "atanh", "pow", "lgamma", "digamma"}
)  # fmt: skip
# What a value that no kernel stores now costs more than one that some kernel does.
NOT_STORED = 1.25
# Bytes that must be saved for anything to be changed, and their part of what is held.
LEAST_BYTES, LEAST_PART = 4096, 0.02
# Capacities are integers: so many of them a byte, and more than any sum of them that is one.
SCALE, UNLIMITED = 64, 1 << 62
# How often the weight of time is halved on the way to a budget's bounds, and between them.
STEPS = 10


def recompute(graph: Graph, context: Context) -> Graph:
    """The graph in which the backward pass computes cheap values again; the same where that saves nothing."""
    budget = context.options.activation_memory_budget
    split = None if budget is not None and budget >= 1 else _split(graph, context)
    if split is None:
        return graph
    fusion = fuse(graph, context.target, context.options, context.trials)
    network = _Network(split, fusion.stored, context)
    kept = network.choose(budget)
    if kept is None:
        return graph
    # not paid for: what nobody reads any more is part of this change
    again = remove_dead_code(_rewrite(split, kept, context), Context(context.target, context.options))
    if not context.counts["recomputed"]:
        return graph
    before = _peak(fusion, context)
    # planned last, so that it is not planned once more when the graph is compiled
    if _peak(fuse(again, context.target, context.options, context.trials), context) >= before:
        context.counts.clear()
        return graph
    return again if context.spend("plan", graph.name) else graph


def _peak(fusion: Fusion, context: Context) -> int:
    placement = plan(fusion, context.target, context.options, context.trials).placement
    assert placement is not None
    return placement.arena_bytes + placement.extern_bytes


@dataclass(frozen=True)
class _Split:
    """A graph's forward nodes, and those of them that the rest reads; `joined`: where every reader is a kernel of ours."""

    graph: Graph
    forward: frozenset[Node]
    read: dict[Node, bool]


def _split(graph: Graph, context: Context) -> _Split | None:
    """None for a graph that is no training step, or has sizes that are known only when called."""
    if not graph.writebacks or not graph.outputs or not hasattr(context.target, "scratch_of_routine"):
        return None
    nodes = (*graph.inputs, *graph.nodes)
    if any(isinstance(n.type, TensorType) and not n.tensor.is_static for n in nodes) or any(n.has(Trait.BARRIER) for n in nodes):
        return None
    position = {node: k for k, node in enumerate(graph.nodes)}
    end = min(position.get(output, -1) for output in graph.outputs)
    forward = {*graph.inputs, *graph.nodes[: end + 1]}
    for node in graph.nodes[end + 1 :]:
        # what is a quarter of the size of what it is made of, and parts of what one operation gave
        is_mask = isinstance(node.type, TensorType) and node.dtype is boolean and node.has(Trait.POINTWISE)
        if (is_mask or node.op.name == "tuple.get" or node.has(Trait.SOURCE)) and all(i in forward for i in node.inputs):
            forward.add(node)
    read: dict[Node, bool] = {}
    for node in graph.nodes:
        if node in forward:
            continue
        joins = is_kernel_node(node, context.target) and not node.has(Trait.CONTRACTION)
        for operand in node.inputs:
            if operand in forward:
                read[operand] = read.get(operand, True) and (joins or _joins_all(node, graph, context))
    return _Split(graph, frozenset(forward), read) if read else None


def _joins_all(node: Node, graph: Graph, context: Context) -> bool:
    """Whether all that read a view are kernels that its operand may be part of."""
    if not is_virtual(node):
        return False
    stack, seen = [node], set()
    while stack:
        for user in graph.users[stack.pop()]:
            if is_virtual(user) and user not in seen:
                seen.add(user)
                stack.append(user)
            elif not is_virtual(user) and (not is_kernel_node(user, context.target) or user.has(Trait.CONTRACTION)):
                return False
    return True


def _near_source(edges: Iterable[tuple[int, int, int]], source: int, sink: int) -> set[int]:
    """The side of the source of a minimum cut, of several the nearest to it: what it still reaches once all flow that fits goes.

    Edges are (from, to, capacity), no two of them between the same nodes.
    """
    import networkx  # 0.1 s, which only training steps pay
    from networkx.algorithms.flow import boykov_kolmogorov

    network = networkx.DiGraph()
    network.add_weighted_edges_from(edges, weight="capacity")
    left = boykov_kolmogorov(network, source, sink)
    with_room = networkx.DiGraph()
    with_room.add_node(source)
    with_room.add_edges_from((a, b) for a, b, edge in left.edges(data=True) if edge["flow"] < edge["capacity"])
    return {source, *networkx.descendants(with_room, source)}


@dataclass
class _Network:
    """The flow network of a split graph: each node is an edge whose capacity is what it costs to store the node."""

    split: _Split
    stored: Collection[Node]
    context: Context
    numbers: dict[Node, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        graph = self.split.graph
        self.nodes = [n for n in (*graph.inputs, *graph.nodes) if n in self.split.forward]
        self.numbers = {node: k for k, node in enumerate(self.nodes)}

    def choose(self, budget: float | None) -> frozenset[Node] | None:
        """What to keep; None where too little is saved."""
        all_bytes = self._held(self._cut(math.inf))
        if budget is None:
            kept = self._cut(1.0)
        else:
            kept = self._within(budget * all_bytes)
        saved = all_bytes - self._held(kept)
        return kept if saved >= max(LEAST_BYTES, LEAST_PART * all_bytes) else None

    def _within(self, limit: float) -> frozenset[Node]:
        """What is kept under the highest weight of time with which it is no more than the limit, or under none."""
        high, low = 16.0, 16.0
        kept = self._cut(high)
        for _ in range(STEPS):
            if self._held(kept) <= limit:
                break
            high, low = low, low / 4
            kept = self._cut(low)
        else:
            return self._cut(0.0)
        while high / low > 1.2:
            middle = math.sqrt(high * low)
            candidate = self._cut(middle)
            if self._held(candidate) <= limit:
                low, kept = middle, candidate
            else:
                high = middle
        return kept

    def _held(self, kept: frozenset[Node]) -> int:
        return sum(_bytes(node) for node in kept)

    def _cut(self, weight: float) -> frozenset[Node]:
        """The forward values to keep if a byte's time counts `weight` times a byte's memory."""
        source, sink = 2 * len(self.nodes), 2 * len(self.nodes) + 1
        edges: list[tuple[int, int, int]] = []
        for k, node in enumerate(self.nodes):
            inside, outside = 2 * k, 2 * k + 1
            edges.append((inside, outside, self._cost_of_storing(node)))
            if self._is_light(node):
                time = self._cost_of_computing(node)
                price = time * weight if time else 0.0
                edges.append((source, inside, UNLIMITED if math.isinf(price) else int(price)))
                edges += [(2 * self.numbers[operand] + 1, inside, UNLIMITED) for operand in node.inputs]
            else:
                edges.append((source, inside, UNLIMITED))
            if node in self.split.read:
                edges.append((outside, sink, UNLIMITED))
        near = _near_source(edges, source, sink)
        return frozenset(n for k, n in enumerate(self.nodes) if 2 * k in near and 2 * k + 1 not in near and _bytes(n))

    def _cost_of_storing(self, node: Node) -> int:
        if not isinstance(node.type, TensorType) or (node.has(Trait.VIEW) and self._is_light(node)):
            return UNLIMITED
        return int(_bytes(node) * SCALE * (1.0 if node in self.stored else NOT_STORED))

    def _cost_of_computing(self, node: Node) -> float:
        if node.has(Trait.VIEW):
            return 0.0
        size = node.tensor.numel * max(4, node.dtype.bytes)
        assert isinstance(size, int)
        passes = 0.0 if self.split.read.get(node, True) else PASS
        return SCALE * (size * (SLOW if node.op.name in SLOW_OPS else PLAIN) + passes * _bytes(node))

    def _is_light(self, node: Node) -> bool:
        """Whether a value may be computed again: pointwise, in a kernel of ours."""
        return _may_repeat(node, self.context)


def _may_repeat(node: Node, context: Context) -> bool:
    if not isinstance(node.type, TensorType) or not node.inputs or node.has(Trait.IMPURE):
        return False
    if node.has(Trait.VIEW):
        return all(isinstance(i.type, TensorType) for i in node.inputs)
    return node.has(Trait.POINTWISE) and is_kernel_node(node, context.target)


def _bytes(node: Node) -> int:
    """What it takes to hold a value that is not there anyway."""
    if not isinstance(node.type, TensorType) or node.op.name == "input" or node.has(Trait.SOURCE):
        return 0
    size = node.tensor.numel
    assert isinstance(size, int)
    return size * node.dtype.bytes


# -- the copies ------------------------------------------------------------------------------------------------------------------


def _rewrite(split: _Split, kept: frozenset[Node], context: Context) -> Graph:
    """The graph whose backward nodes read what is kept, and copies made of it."""
    writer = _Writer(split, kept, context)
    for node in split.graph.nodes:
        writer.add(node)
    return writer.rewriter.finish_like()


class _Writer:
    def __init__(self, split: _Split, kept: frozenset[Node], context: Context) -> None:
        self.split, self.kept, self.context = split, kept, context
        self.rewriter = Rewriter(split.graph)
        self.copies: dict[Node, Node] = {}

    def add(self, node: Node) -> None:
        """The node, or one like it that reads copies."""
        rewriter = self.rewriter
        if node in self.split.forward or not any(i in self.split.forward for i in node.inputs):
            rewriter.keep(node)
        else:
            inputs = tuple(self._here(i) if i in self.split.forward else rewriter.new[i] for i in node.inputs)
            copy = replace(node, inputs=inputs)
            rewriter.nodes.append(copy)
            rewriter.replace(node, copy)
        if node not in self.split.forward and not is_virtual(node) and not is_kernel_node(node, self.context.target):
            self.copies.clear()

    def _here(self, wanted: Node) -> Node:
        """A forward value as the backward pass reads it. Iterative: chains may be long."""
        stack = [wanted]
        while stack:
            node = stack[-1]
            if node in self.copies:
                stack.pop()
            elif not self._is_repeated(node):
                self.copies[node] = self._through_memory(node)
                stack.pop()
            elif missing := [i for i in node.inputs if i not in self.copies]:
                stack.extend(missing)
            else:
                rewriter = self.rewriter
                rewriter.location = node.location
                inputs = tuple(self.copies[i] for i in node.inputs)
                same = inputs == tuple(rewriter.new[i] for i in node.inputs)
                if not same and not node.has(Trait.VIEW):
                    self.context.counts["recomputed"] += 1
                self.copies[node] = (
                    rewriter.new[node]
                    if same
                    else rewriter.make(node.op, inputs, node.attributes, node.type, f"{node.name}.again")
                )
                stack.pop()
        return self.copies[wanted]

    def _is_repeated(self, node: Node) -> bool:
        return node not in self.kept and bool(node.inputs) and _may_repeat(node, self.context)

    def _through_memory(self, node: Node) -> Node:
        """What a copy reads: inputs and numbers as they are, all else past a bar to fusion."""
        new = self.rewriter.new[node]
        if not _bytes(node) or not isinstance(node.type, TensorType) or is_virtual(node):
            return new
        return self.rewriter.kept(new)
