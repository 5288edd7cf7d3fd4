"""Rewriting: named rules `pattern --> replacement`, applied by one worklist.

`GraphRewriter` walks a graph once, operands first. What a replacement is made of goes back on the worklist, so the result is
where no rule fires any more, in time near linear in nodes plus rewrites. It counts uses exactly, so a rule may ask whether a
value has one reader. `apply_rules` drives it with a table of rules.

A `Rule` is a function or a line of algebra (see `passes.pattern`):

    @rule("reshape-reshape", "reshape", exact=True)
    def reshape_reshape(b, node):
        '''reshape(reshape(x)) --> reshape(x)'''
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dlcompiler.ir.control import has_effect
from dlcompiler.ir.errors import ShapeError, VerifyError
from dlcompiler.ir.graph import Attributes, Builder, Graph, Node, reachable
from dlcompiler.ir.ops import TABLE, Op, Trait
from dlcompiler.ir.types import TensorType, Type
from dlcompiler.passes.aliasing import escaping, may_stand_for, owner, view_chain
from dlcompiler.passes.context import Context
from dlcompiler.passes.known import KnownValues

if TYPE_CHECKING:
    from dlcompiler.passes.pattern import Pattern

# More rewrites than this at one place in a graph: the rules undo each other.
MAXIMUM_REWRITES_AT_A_NODE = 1000


class GraphRewriter(Builder):
    """Copies a graph through a worklist of nodes; a `Builder` whose new nodes are visited too before anything that reads them.

        while (node := rewriter.next()) is not None:
            rewriter.keep(node)                 # or: rewriter.replace(node, rewriter.add(...))
        graph = rewriter.finish_like()

    `visits` counts nodes taken from the worklist. `uses[node]` is how often a node of the new graph is read. `known` computes
    what depends on no input. `parallel_rows`: as `PassTarget` says.
    """

    def __init__(self, graph: Graph, escapes: set[Node] | None = None, parallel_rows: int = 16) -> None:
        super().__init__(graph.name)
        self.parallel_rows = parallel_rows
        self.graph = graph
        self.changed = False
        self.visits = 0
        self.known = KnownValues()
        self.escapes = escaping(graph) if escapes is None else escapes
        self.settled: list[Node] = []
        self.new: dict[Node, Node] = {}
        self.uses: dict[Node, int] = dict.fromkeys((*graph.inputs, *graph.nodes), 0)
        for node in graph.nodes:
            for operand in node.inputs:
                self.uses[operand] += 1
        for node in (*graph.outputs, *(value for value, _ in graph.writebacks)):
            self.uses[node] += 1
        self._names.update((n.name, 1) for n in self.uses)
        self._current: Node | None = None
        # what is still to be visited, next one last; a pair says that the second stands for the first once it is settled
        self._pending: list[Node | tuple[Node, Node]] = list(reversed(graph.nodes))
        self._hints: dict[Node, str] = {}

    def next(self) -> Node | None:
        """The next node, its operands already nodes of the new graph; None at the end. Keep or replace it before the next."""
        while self._pending:
            item = self._pending.pop()
            if isinstance(item, tuple):
                old, stand_in = item
                self.new[old] = self._resolved(stand_in)
                continue
            self.visits += 1
            node = item
            if any(i in self.new for i in item.inputs):
                inputs = tuple(self._resolved(i) for i in item.inputs)
                node = Node(item.op, inputs, item.attributes, item.type, item.name, item.location)
                self.uses[node] = self.uses.pop(item)
                if item in self.escapes:
                    self.escapes.add(node)
                if item in self._hints:
                    self._hints[node] = self._hints.pop(item)
                self.new[item] = node
            self._current, self.location = node, node.location
            self.nodes.clear()
            return node
        self._current = None
        return None

    def keep(self, node: Node) -> Node:
        """Let `node`, as `next` gave it, be in the new graph."""
        self.settled.append(node)
        self.nodes.clear()
        return node

    def replace(self, node: Node, value: Node) -> None:
        """Let `value`, which this builder made or which was there before, stand for `node`, as `next` gave it."""
        made = self.nodes[:]
        self.nodes.clear()
        value = self._named_as(node, value, made)
        self.changed = True
        for each in made:
            self.uses.setdefault(each, 0)
            self._hints[each] = self._hint(node)
            for operand in each.inputs:
                self.uses[operand] = self.uses.get(operand, 0) + 1
        self.uses[value] += self.uses[node]
        self.uses[node] = 0
        self._drop_reads_of(node)
        if node in self.escapes:
            self.escapes.update(view_chain(value))
        self._pending.append((node, value))
        self._pending.extend(reversed(made))

    def make(self, op: Op, inputs: tuple[Node, ...], attributes: Attributes, type: Type, name: str | None = None) -> Node:
        """Append a node; without a name of its own it is named after the node it helps to replace."""
        if name is None and self._current is not None:
            name = f"{self._hint(self._current)}.{op.name}"
        return super().make(op, inputs, attributes, type, name)

    def is_used_once(self, node: Node) -> bool:
        """Whether one node reads `node`, once, and no result is it."""
        return self.uses[node] == 1

    def fit(self, value: Node, type: Type) -> Node:
        """`value`, broadcast to `type` where it is smaller. Raises VerifyError if it cannot be of that type."""
        if value.type == type:
            return value
        if isinstance(type, TensorType) and isinstance(value.type, TensorType) and value.dtype is type.dtype:
            try:
                return self.expand(value, shape=type.shape)
            except ShapeError:
                pass
        raise VerifyError(f"a rewrite gives {value.type} where {type} is needed", location=self.location)

    def detached(self, value: Node, node: Node) -> Node:
        """`value`, or a copy of it where taking the place of `node` would make a result share memory."""
        return value if self.keeps_memory_apart(value, node) else self.cast(value, dtype=value.dtype.name)

    def keeps_memory_apart(self, value: Node, node: Node) -> bool:
        """Whether `value` in the place of `node` makes no result share memory that it did not share (see `passes.aliasing`)."""
        if node not in self.escapes:
            return True
        held = owner(value)
        return (held in self.nodes and not held.has(Trait.SOURCE)) or may_stand_for(value, node, self.escapes)

    def finish_like(self) -> Graph:
        """The new graph without what nobody reads any more; the old graph itself if nothing was replaced."""
        if not self.changed:
            return self.graph
        outputs = tuple(self._resolved(o) for o in self.graph.outputs)
        writebacks = tuple((self._resolved(v), i) for v, i in self.graph.writebacks)
        alive = reachable((*outputs, *(v for v, _ in writebacks), *(n for n in self.settled if has_effect(n))))
        nodes = tuple(n for n in self.settled if n in alive)
        return self.graph.replace(nodes=nodes, outputs=outputs, writebacks=writebacks)

    def _resolved(self, node: Node) -> Node:
        """What stands for `node` by now; the way there is shortened for the next asker."""
        way = []
        while (newer := self.new.get(node, node)) is not node:
            way.append(node)
            node = newer
        for passed in way[:-1]:
            self.new[passed] = node
        return node

    def _named_as(self, node: Node, value: Node, made: list[Node]) -> Node:
        """The replacement's last node takes over the name that is now free."""
        if not made or value is not made[-1]:
            return value
        made[-1] = replace(value, name=node.name)
        return made[-1]

    def _hint(self, node: Node) -> str:
        hint = self._hints.get(node)
        if hint is None:
            stem, dot, last = node.name.rpartition(".")
            hint = self._hints[node] = stem if dot and last.rstrip("_0123456789") in TABLE else node.name
        return hint

    def _drop_reads_of(self, node: Node) -> None:
        """Take back the uses of a node that is gone, and of every operand that nobody else reads."""
        stack = [node]
        while stack:
            for operand in stack.pop().inputs:
                self.uses[operand] -= 1
                if self.uses[operand] == 0 and operand.inputs and not has_effect(operand):
                    stack.append(operand)


Apply = Callable[[GraphRewriter, Node], "Node | None"]


@dataclass(frozen=True, eq=False)
class Rule:
    """One rewrite.

    apply   (rewriter, node) -> what takes the node's place, built with the rewriter, or None where the pattern is not found
    roots   the ops that `apply` looks at: names or traits
    exact   bit for bit the same result; an approximate rule only fires under numerics="fast"
    meaning `before --> after`
    pattern what a line of algebra was parsed to; None for a function
    """

    name: str
    roots: tuple[str | Trait, ...]
    exact: bool
    apply: Apply
    meaning: str
    pattern: Pattern | None = None

    def __repr__(self) -> str:
        return f"Rule({self.name}: {self.meaning})"


def rule(name: str, *roots: str | Trait, exact: bool) -> Callable[[Apply], Rule]:
    """Make a rule of a function `(rewriter, node) -> node or None` whose docstring's first line is `before --> after`."""

    def wrap(apply: Apply) -> Rule:
        meaning = (apply.__doc__ or "").strip().split("\n")[0]
        assert "-->" in meaning, f"rule {name} does not say `before --> after`"
        return Rule(name, roots, exact, apply, meaning)

    return wrap


class RuleTable:
    """Rules in the order in which they are tried, found by the op at their root."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = tuple(rules)
        names = [r.name for r in self.rules]
        assert len(set(names)) == len(names), "two rules of one name"

    def __iter__(self) -> Any:
        return iter(self.rules)

    @cached_property
    def _by_root(self) -> dict[bool, dict[str, tuple[Rule, ...]]]:
        """Whether approximate rules count --> op name --> rules."""
        found: dict[bool, dict[str, tuple[Rule, ...]]] = {}
        for approximate in (False, True):
            rules = [r for r in self.rules if r.exact or approximate]
            found[approximate] = {
                op.name: tuple(r for r in rules if any(root == op.name or root in op.traits for root in r.roots))
                for op in TABLE.values()
            }
        return found

    def at(self, op_name: str, approximate: bool) -> tuple[Rule, ...]:
        """The rules to try on a node of this op."""
        return self._by_root[approximate].get(op_name, ())


def apply_rules(graph: Graph, table: RuleTable, context: Context) -> Graph:
    """Apply rules until none fires. The same graph object if none did.

    Raises VerifyError if a rule changes a value's type, or if rules undo each other.
    """
    rewriter = GraphRewriter(graph, parallel_rows=context.target.parallel_rows)
    rewrites, limit = 0, MAXIMUM_REWRITES_AT_A_NODE + 20 * len(graph.nodes)
    while (node := rewriter.next()) is not None:
        if _rewrite(rewriter, node, table, context):
            rewrites += 1
            if rewrites > limit:
                raise VerifyError(f"rules undo each other: {context.fuel.last} after {rewrites} rewrites", location=node.location)
        else:
            rewriter.keep(node)
    return rewriter.finish_like()


def _rewrite(rewriter: GraphRewriter, node: Node, table: RuleTable, context: Context) -> bool:
    if context.fuel.empty:
        return False
    for candidate in table.at(node.op.name, context.allows_approximate):
        value = candidate.apply(rewriter, node)
        if value is not None and value is not node:
            value = rewriter.fit(value, node.type)
            if rewriter.keeps_memory_apart(value, node) and context.spend(candidate.name, node.name):
                rewriter.replace(node, value)
                return True
        rewriter.nodes.clear()
    return False


def reshaped(b: Builder, x: Node, shape: tuple[Any, ...]) -> Node:
    """A value in another shape of as many elements: of a value that is itself a reshape, what that reads."""
    source = x.inputs[0] if x.op.name == "reshape" else x
    if source.shape == shape:
        return source
    return x if x.shape == shape else b.reshape(source, shape=shape)
