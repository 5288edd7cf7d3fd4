"""Fusion: which ops share one loop nest.

    %1 = add(%x, %b); %2 = gelu'(%1); %3 = reduce_sum(%2)  -->  group {%1, %2, %3}: one kernel

Nodes are taken in order. A compute node joins the groups of its producers if the nodes together still make one good kernel
(`lower.lower_group` says so, or gives the reason why not) and no path leads from the group out and back in. Views are members
of no group: whoever reads them turns them into index arithmetic. Library and extern nodes stand alone. Every refusal is kept as
a sentence. Where bytes are what costs (`Target.counts_bytes`), the groups are revised in the end: see `regroup`.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence, Set
from dataclasses import dataclass, field, replace

from dlcompiler.ir.contraction import split_groups
from dlcompiler.ir.expression import Dim
from dlcompiler.ir.graph import Graph, Node
from dlcompiler.ir.kernel import Buffer, Kernel
from dlcompiler.ir.kernel_builder import Refusal
from dlcompiler.ir.ops import Trait
from dlcompiler.ir.program import Program
from dlcompiler.ir.types import TensorType, contiguous_strides
from dlcompiler.passes.block.lower import lower_group, root_of, size_key
from dlcompiler.passes.block.regroup import Regrouping
from dlcompiler.passes.block.signature import Descriptions, signature
from dlcompiler.passes.fixed import fixed_nodes
from dlcompiler.passes.strides import (
    channels_last_strides,
    heads_are_inside,
    heads_inside_strides,
    images_of,
    stored_source,
    wants_channels_last,
)

# Bounds compile time: groups are lowered while they grow, so the work is linear in nodes times this.
MAXIMUM_NODES = 64
# A group of so many nodes is lowered when one more joins, however well that fits, so that none grows beyond a kernel's limits.
MAXIMUM_WITHOUT_TRIAL = 32


@dataclass(frozen=True, eq=False)
class Group:
    """Nodes that run as one step. `kind`: kernel, library or extern. `outputs` have memory of their own."""

    kind: str
    nodes: tuple[Node, ...]
    outputs: tuple[Node, ...]
    position: int


@dataclass(frozen=True, eq=False)
class Fusion:
    """A graph and its groups, each after those it reads from.

    stored  every node that has memory of its own
    fixed   nodes whose values stay the same between calls; no group has them beside others
    pads    whether sums of products pad images while they read them
    """

    graph: Graph
    groups: tuple[Group, ...]
    stored: frozenset[Node]
    refusals: tuple[str, ...] = ()
    fixed: frozenset[Node] = frozenset()
    pads: bool = False

    def images_of(self, node: Node) -> tuple[Node, ...]:
        """What a kernel for a sum of products reads with the channels innermost."""
        return images_of(node, self.pads)

    def inlined(self, node: Node) -> bool:
        """Whether a node has no memory: each reader computes or re-indexes it."""
        return node not in self.stored


@dataclass(eq=False)
class _Open:
    """A group while it grows."""

    nodes: list[Node]
    kind: str = "kernel"
    first: int = 0
    last: int = 0
    has_reduction: bool = False
    producers: set[_Open] = field(default_factory=set)
    merged_into: _Open | None = None


def is_kernel_node(node: Node, target) -> bool:
    """Whether a node is computed by a kernel of ours (and is not a mere view or source)."""
    if node.op.element is None or node.op.name in target.library_ops or is_virtual(node) or node.has(Trait.SOURCE):
        return False
    # asked of what is computed with: comparisons give bool of anything, casts have two sides
    return all(
        target.spells(node.op.name, t.dtype) for t in (node.type, *(i.type for i in node.inputs)) if isinstance(t, TensorType)
    )


def is_virtual(node: Node) -> bool:
    """Views, scalar constants and index ranges: re-computed by each reader instead of being stored.

    A number marked `stored` is read from memory, so that kernels that differ in it alone are one kernel; and so is a complex one,
    which no kernel writes.
    """
    if node.has(Trait.VIEW):
        return True
    if node.op.name == "constant":
        return node.attributes["value"].size == 1 and not node.attributes.get("stored") and node.dtype.kind != "complex"
    return node.op.name in ("dim", "iota", "size")


@dataclass
class Trials:
    """What was found out about groups, by all that it depends on but the target, for graphs that have parts in common.

    refused    of nodes together, why they are no kernel, or None, and the nodes by which they were first named
    tiled      of a sum of products, whether a kernel of ours computes it
    lowered    of nodes and how everything lies, their kernel, and the positions among the nodes of the key of what it reads
    described  numbers of nodes, of which the keys of both are made
    last       the graph fused last, whose history may have grown since
    planned    the fusion planned last, and its program
    """

    refused: dict[Hashable, tuple[str | None, tuple[Node, ...]]] = field(default_factory=dict)
    tiled: dict[Hashable, bool] = field(default_factory=dict)
    lowered: dict[Hashable, tuple[Kernel, tuple[int, ...]]] = field(default_factory=dict)
    described: Descriptions = field(default_factory=Descriptions)
    last: Fusion | None = None
    planned: tuple[Fusion, Program] | None = None

    def again(self, graph: Graph) -> Fusion | None:
        """What was found for the same nodes and results."""
        before = None if self.last is None else self.last.graph
        if before is None or before.nodes is not graph.nodes:
            return None
        is_same = (before.inputs, before.outputs, before.writebacks) == (graph.inputs, graph.outputs, graph.writebacks)
        return replace(self.last, graph=graph) if is_same and self.last is not None else None


class _Fuser:
    def __init__(self, graph: Graph, target, trials: Trials) -> None:
        self.graph = graph
        self.target = target
        self.position = {node: k for k, node in enumerate((*graph.inputs, *graph.nodes))}
        self.group_of: dict[Node, _Open] = {}
        self.bases: dict[Node, tuple[Node, ...]] = {}
        self.kept: dict[Node, frozenset[Node]] = {}  # of these bases, those that are read from memory on purpose
        self.free: set[Node] = set()  # computed from nothing but index arithmetic: cheaper to repeat than to store
        self.refusals: list[str] = []
        self.trials = trials
        self.fixed = fixed_nodes(graph)
        self.tiled: set[Node] = set()  # sums of products that kernels of ours compute, not a library
        self.kept_views = self._views_to_keep()
        # what replaces an input's contents is laid out as that is
        self.replacing = {
            value: tuple(target.attributes.get("strides") or contiguous_strides(target.shape))
            for value, target in graph.writebacks
        }

    def _views_to_keep(self) -> set[Node]:
        """Views that get memory: those that choose between places (pad, concat), read at an index that data gives; and what is
        joined to be the rows of a product, whose tiles read each row from one place.
        """
        kept: set[Node] = set()
        for node in self.graph.nodes:
            is_product = node.op.name in ("linear", "matmul") and not self.target.takes_factors
            if not node.has(Trait.INDEXING) and (not is_product or node.shape[-2:-1] in ((), (1,))):
                continue
            source = node.inputs[0]
            while is_virtual(source) and source.inputs and not source.has(Trait.PARTIAL):
                source = source.inputs[0]
            if source.has(Trait.PARTIAL) and (not is_product or source.op.name == "concat"):
                kept.add(source)
        return kept

    def run(self) -> Fusion:
        for node in self.graph.nodes:
            self._find_bases(node)
            if node in self.kept_views:
                self._place(node)
                continue
            if is_virtual(node):
                continue
            if node.has(Trait.CONTRACTION) and self._is_tiled(node):
                group = self._new_group(node, "kernel")
                if self.target.takes_factors:
                    self._take_factors(node, group)
                continue
            if not is_kernel_node(node, self.target):
                kind = "extern" if node.has(Trait.EXTERN) else "library"
                if not (node.has(Trait.SOURCE) or node.op.name == "tuple.get"):
                    self._new_group(node, kind)
                continue
            if self._is_widened_in_tiles(node):
                self.free.add(node)
                continue
            if node.has(Trait.POINTWISE) and all(self._is_inlined(i) for i in node.inputs) and self._is_small(node):
                self.free.add(node)
                continue
            self._place(node)
        return self._finish()

    # -- bookkeeping -------------------------------------------------------------------------------------------------------

    def _find_bases(self, node: Node) -> None:
        """The nodes with memory or a group that a node reads, looking through views."""
        found: dict[Node, None] = {}
        for operand in node.inputs:
            if self._is_inlined(operand) or operand.op.name == "tuple.get":
                found.update(dict.fromkeys(self.bases.get(operand, ())))
            else:
                found[operand] = None
        self.bases[node] = tuple(found)
        kept = set(found) if node.op.name == "kept" else set()
        kept.update(base for operand in node.inputs if self._is_inlined(operand) for base in self.kept.get(operand, ()))
        if kept:
            self.kept[node] = frozenset(kept)

    def _is_widened_in_tiles(self, node: Node) -> bool:
        """Whether a cast from a narrow type is left to sums of products, which read the narrow numbers and widen them."""
        if stored_source(node) is None or node in self.graph.results or not self.target.tiles_sums:
            return False
        readers: list[Node] = []
        stack = [node]
        while stack:
            for user in self.graph.users[stack.pop()]:
                if user in self.graph.results and user.has(Trait.VIEW):
                    return False
                (stack if user.has(Trait.VIEW) else readers).append(user)
        sums = [user for user in readers if user.has(Trait.CONTRACTION) and user.op.name in self.target.library_ops]
        return bool(sums) and all(user in sums or is_kernel_node(user, self.target) for user in readers)

    def _is_small(self, node: Node) -> bool:
        """Few operations from the sources up, so that repeating them costs less than a load."""
        count, stack = 0, [node]
        while stack:
            current = stack.pop()
            count += 1
            if count > 12 or self.bases[current]:
                return False
            stack.extend(i for i in current.inputs if i in self.bases)
        return True

    def _group(self, node: Node) -> _Open | None:
        group = self.group_of.get(node)
        while group is not None and group.merged_into is not None:
            group = group.merged_into
        if group is not None:
            self.group_of[node] = group
        return group

    def _new_group(self, node: Node, kind: str) -> _Open:
        at = self.position[node]
        producers = {g for b in self.bases[node] if (g := self._group(b)) is not None}
        has_reduction = node.has(Trait.REDUCTION) or node.has(Trait.CONTRACTION)
        group = _Open([node], kind, at, at, has_reduction, producers)
        self.group_of[node] = group
        return group

    # -- joining -------------------------------------------------------------------------------------------------------------

    def _place(self, node: Node) -> None:
        candidates: dict[_Open, None] = {}
        for base in self.bases[node]:
            group = self._group(base)
            if group is not None and group.kind == "kernel":
                candidates[group] = None
        new = self._new_group(node, "kernel")
        # the producer computed last first: it is the one whose result is still in cache
        ordered = sorted(candidates, key=lambda g: g.last, reverse=True)
        if len(ordered) > 1 and self._join(new, ordered, silent=True):
            return
        for group in ordered:
            while group.merged_into is not None:
                group = group.merged_into
            if group is not new:
                self._join(new, [group])

    def _take_factors(self, node: Node, group: _Open) -> None:
        """Let a sum of products compute its factors from what they are made of, where that is cheap enough for each tile."""
        for base in self.bases[node]:
            producer = self._group(base)
            if producer is not None and producer is not group and producer.kind == "kernel" and not producer.has_reduction:
                self._join(group, [producer])

    def _join(self, new: _Open, groups: Sequence[_Open], silent: bool = False) -> bool:
        parts = [*groups, new]
        reason = self._why_not(parts)
        if reason is not None:
            if not silent:
                node = new.nodes[-1]
                self.refusals.append(f"%{node.name} ({node.op.name}) does not join %{groups[0].nodes[-1].name}: {reason}")
            return False
        nodes = sorted((n for part in parts for n in part.nodes), key=self.position.__getitem__)
        new.nodes = nodes
        new.first, new.last = self.position[nodes[0]], self.position[nodes[-1]]
        new.has_reduction = any(p.has_reduction for p in parts)
        producers = set().union(*(p.producers for p in parts))
        for part in groups:
            part.merged_into = new
        new.producers = {g for p in producers if (g := self._resolve(p)) is not new}
        return True

    @staticmethod
    def _resolve(group: _Open) -> _Open:
        while group.merged_into is not None:
            group = group.merged_into
        return group

    def _why_not(self, parts: Sequence[_Open]) -> str | None:
        count = sum(len(p.nodes) for p in parts)
        if len({all(n in self.fixed for n in p.nodes) for p in parts}) > 1 and not self._is_stored_narrow(parts):
            return "one is made once and kept, the other in each call"
        if count > MAXIMUM_NODES:
            return f"together they have {count} ops, more than {MAXIMUM_NODES}"
        if self._makes_cycle(parts):
            return "another step lies between them, reading one and feeding the other"
        if self.kept and self._reads_kept([n for p in parts for n in p.nodes]):
            return "what one makes is kept in memory, for the other to be computed from again"
        if self._obviously_fits(parts):
            return None
        nodes = sorted((n for p in parts for n in p.nodes), key=self.position.__getitem__)
        outputs = self._outputs(nodes)
        return self._why_no_kernel(nodes, outputs) if outputs else "nothing reads what they make"

    def _reads_kept(self, nodes: Sequence[Node]) -> bool:
        """Whether some of the nodes read others from memory on purpose (the op `kept`)."""
        members = set(nodes)
        return any(not members.isdisjoint(self.kept[n]) for n in nodes if n in self.kept)

    def _why_no_kernel(self, nodes: Sequence[Node], outputs: Sequence[Node]) -> str | None:
        """Why these nodes do not make one good kernel; None if they do. Equal groups are looked at once."""
        key, named = signature(nodes, outputs, self._is_inlined, self._about, self.trials.described)
        key = (key, tuple(self.replacing.get(node) for node in outputs))
        if key not in self.trials.refused:
            self.trials.refused[key] = self._find_reason(nodes, outputs), named
        reason, before = self.trials.refused[key]
        if reason is None or before == named:
            return reason
        names = {old.name: new.name for old, new in zip(before, named)}
        return re.sub(r"%([\w.]+)", lambda found: f"%{names.get(found[1], found[1])}", reason)

    def _about(self, node: Node) -> tuple[bool, ...]:
        """What a kernel depends on of a value that it reads, besides its type."""
        return (node in self.fixed, heads_are_inside(node))

    def _find_reason(self, nodes: Sequence[Node], outputs: Sequence[Node]) -> str | None:
        tiled = [n for n in nodes if n in self.tiled]
        members = set(nodes)
        for node in tiled:
            if members & set(self.bases[node]) and not self.target.takes_factors:
                return f"operands of the sum of products %{node.name} would be computed again for each tile"
        try:
            kernel, reads = self._trial(nodes, outputs)
        except Refusal as refusal:
            return str(refusal)
        if tiled and not self.target.contracts(kernel, fixed_buffers(kernel, reads, self.fixed)):
            return f"the sum of products %{tiled[0].name} could no longer be computed in tiles"
        return None

    def _is_stored_narrow(self, parts: Sequence[_Open]) -> bool:
        """Whether what could be made once is smaller before than after, as weights of 8 bits: then reading it is what counts."""
        made = [p for p in parts if all(n in self.fixed for n in p.nodes)]
        if not self.target.takes_factors or len(made) != 1 or not any(n in self.tiled for p in parts for n in p.nodes):
            return False
        read = {b for n in made[0].nodes for b in self.bases[n]} - set(made[0].nodes)
        widest = max((b.tensor.numel * b.dtype.bits for b in read if isinstance(b.tensor.numel, int)), default=0)
        after = made[0].nodes[-1].tensor.numel
        return isinstance(after, int) and 2 * widest <= after * made[0].nodes[-1].dtype.bits

    def _is_tiled(self, node: Node) -> bool:
        """Whether a sum of products becomes a kernel of ours, which others may join, and not a library call."""
        if not self.target.tiles(node):
            return False
        key, _ = signature((node,), (node,), self._is_inlined, self._about, self.trials.described)
        if key not in self.trials.tiled:
            try:
                kernel, reads = self._trial((node,), (node,), cost_matters=False)
            except Refusal:
                self.trials.tiled[key] = False
            else:
                self.trials.tiled[key] = self.target.contracts(kernel, fixed_buffers(kernel, reads, self.fixed))
        if self.trials.tiled[key]:
            self.tiled.add(node)
        return self.trials.tiled[key]

    def _trial(self, nodes: Sequence[Node], outputs: Sequence[Node], cost_matters: bool = True) -> tuple[Kernel, list[Node]]:
        """The kernel that these nodes would be, with values laid out as convolutions and attention want them."""
        images = {n for n in nodes if wants_channels_last(n)}
        read = {image for n in nodes for image in images_of(n, self.target.counts_bytes)} - set(nodes)

        def strides(node: Node) -> tuple[Dim, ...]:
            if node in self.replacing:
                return self.replacing[node]
            is_image = node in read or any(node.shape == image.shape for image in images)
            if heads_are_inside(node):
                return heads_inside_strides(node.shape)
            return channels_last_strides(node.shape) if is_image else contiguous_strides(node.shape)

        def inlined(node: Node) -> bool:
            return self._is_inlined(node) and node not in read

        # on GPUs a store, a launch and a load cost more than lanes whose result is not taken
        counts_masked = not self.target.counts_bytes
        kernel, reads, _ = lower_group("trial", nodes, outputs, inlined, strides, cost_matters, counts_masked)
        return (split_groups(kernel) if is_grouped(nodes) else kernel), list(reads)

    def _is_inlined(self, node: Node) -> bool:
        return (is_virtual(node) and node not in self.kept_views) or node in self.free

    def _obviously_fits(self, parts: Sequence[_Open]) -> bool:
        """One pointwise node on top of one group, read directly: no trial needed where there is no reduction and one shape, or
        where the node goes on from one result.
        """
        if len(parts) != 2 or len(parts[1].nodes) != 1:
            return False
        group, (node,) = parts[0], parts[1].nodes
        if not node.has(Trait.POINTWISE):
            return False
        members = set(group.nodes)
        if any(i not in members and set(self.bases.get(i, ())) & members for i in node.inputs):
            return False
        if not group.has_reduction and all(n.shape == node.shape and n.has(Trait.POINTWISE) for n in group.nodes):
            return True
        return len(members) <= MAXIMUM_WITHOUT_TRIAL and self._goes_on(group.nodes, node)

    def _goes_on(self, nodes: Sequence[Node], node: Node) -> bool:
        """Whether a pointwise node reads one result of a kernel, element by element, and is stored where that was.

        Then the kernel is as good with it: its axes and reductions stay, and no element is computed twice. The result must have
        chosen the axes, or not be as large as the one that did, lest the new one chooses others.
        """
        read = {i for i in node.inputs if i in nodes}
        if len(read) != 1 or not self.tiled.isdisjoint(nodes) or any(n.dtype.is_narrow for n in (node, *nodes)):
            return False
        (result,) = read
        outputs = self._outputs(nodes)
        if result.shape != node.shape or result not in outputs:
            return False
        widest = root_of(outputs)
        return result is widest or size_key(result) < size_key(widest)

    def _outputs(self, nodes: Sequence[Node]) -> list[Node]:
        """Members that leave the group as it stands: results, and what a node outside reads directly or through views."""
        members = set(nodes)
        return [n for n in nodes if n in self.graph.results or self._read_outside(n, members)]

    def _makes_cycle(self, parts: Sequence[_Open]) -> bool:
        """Whether some producer outside depends on a part: a walk back that stops at groups that end before the parts begin."""
        inside = set(parts)
        begin = min(p.first for p in parts)
        stack = [g for p in parts for q in p.producers if (g := self._resolve(q)) not in inside]
        seen: set[_Open] = set()
        while stack:
            group = stack.pop()
            if group in inside:
                return True
            if group in seen or group.last < begin:
                continue
            seen.add(group)
            stack.extend(self._resolve(p) for p in group.producers)
        return False

    # -- the result ------------------------------------------------------------------------------------------------------------

    def _finish(self) -> Fusion:
        groups = sorted({self._resolve(g) for g in self.group_of.values()}, key=lambda g: g.first)
        if self.target.counts_bytes:
            groups = self._regroup(groups)
        ordered = _topological(groups, self._resolve)
        stored: set[Node] = set(self.graph.inputs)
        stored.update(n for n in self.graph.nodes if n.op.name == "constant" and not is_virtual(n))
        stored.update(n for n in self.graph.nodes if n.op.name == "tuple.get")
        closed: list[Group] = []
        for group in ordered:
            closed += self._close(group)
        for closed_group in closed:
            stored.update(closed_group.outputs)
        return Fusion(self.graph, tuple(closed), frozenset(stored), tuple(self.refusals), self.fixed, self.target.counts_bytes)

    def _regroup(self, groups: list[_Open]) -> list[_Open]:
        """Groups with nodes moved to where they save bytes or steps: see `regroup`."""

        def fits(nodes: Sequence[Node]) -> bool:
            if len(nodes) > MAXIMUM_NODES or (self.kept and self._reads_kept(nodes)):
                return False
            return self._why_no_kernel(nodes, self._outputs(nodes)) is None

        asked = self._is_inlined, self._outputs, fits, self.fixed, self.tiled, self.free, self._find_bases
        regrouping = Regrouping(self.graph, groups, self.bases, *asked)
        left = regrouping.run()
        self.group_of = dict(regrouping.home)
        for group in left:
            group.first, group.last = self.position[group.nodes[0]], self.position[group.nodes[-1]]
            group.producers = {self.group_of[b] for n in group.nodes for b in self.bases[n] if b in self.group_of} - {group}
        return sorted(left, key=lambda g: g.first)

    def _close(self, group: _Open) -> list[Group]:
        """The finished group; its nodes one by one should they not make a kernel after all, now that all readers are known."""
        nodes = group.nodes
        if group.kind != "kernel":
            return [Group(group.kind, tuple(nodes), tuple(nodes), group.first)]
        outputs = self._outputs(nodes)
        if not outputs:
            return []
        if len(nodes) > 1:
            refusal = self._why_no_kernel(nodes, outputs)
            if refusal is not None:
                self.refusals.append(f"%{nodes[-1].name} and its producers run one by one: {refusal}")
                return [Group("kernel", (n,), (n,), self.position[n]) for n in nodes]
        return [Group("kernel", tuple(nodes), tuple(outputs), group.first)]

    def _read_outside(self, node: Node, members: set[Node]) -> bool:
        stack = list(self.graph.users[node])
        while stack:
            user = stack.pop()
            if user in members:
                continue
            if self._is_inlined(user):
                if user in self.graph.results:
                    return True
                stack.extend(self.graph.users[user])
                continue
            return True
        return False


def is_grouped(nodes: Sequence[Node]) -> bool:
    """Whether a convolution in several groups, of more than one channel each, is among the nodes."""
    return any(n.op.name == "convolution" and 1 < n.attributes["groups"] < n.inputs[0].shape[1] for n in nodes)


def fixed_buffers(kernel: Kernel, reads: Sequence[Node], fixed: Set[Node]) -> frozenset[Buffer]:
    """In-buffers of a kernel, which reads these nodes, that keep their contents between calls."""
    ins = [b for b in kernel.buffers if b.role == "in"]
    return frozenset(buffer for buffer, node in zip(ins, reads, strict=True) if node in fixed)


def _topological(groups: Sequence[_Open], resolve) -> list[_Open]:
    """Groups so that each comes after its producers; among those ready, the one whose first node is earliest. Iterative."""
    done: dict[_Open, None] = {}
    for root in groups:
        stack: list[tuple[_Open, bool]] = [(root, False)]
        while stack:
            group, expanded = stack.pop()
            if group in done:
                continue
            if expanded:
                done[group] = None
                continue
            stack.append((group, True))
            producers = {resolve(p) for p in group.producers} - {group}
            stack.extend((p, False) for p in sorted(producers, key=lambda p: p.first, reverse=True) if p not in done)
    return list(done)


def fuse(graph: Graph, target, options=None, trials: Trials | None = None) -> Fusion:
    """Group the nodes of `graph` into steps; `target.library_ops` stand alone. See the module's docstring.

    `trials`: of the same target, to which what is found out is added.
    """
    trials = trials or Trials()
    trials.last = trials.again(graph) or _Fuser(graph, target, trials).run()
    return trials.last
