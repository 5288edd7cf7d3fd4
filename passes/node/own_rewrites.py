"""Rewrites that a user has added (`dlcompiler.extend.rewrite`).

    %1 = sigmoid(%x); %2 = mul(%x, %1)  -->  %2 = silu(%x)        with the line "x * sigmoid(x) --> silu(x)"

They run while composites are whole, so both sides of a line may name any op.
"""

from __future__ import annotations

from dlcompiler.ir.graph import Graph
from dlcompiler.passes.context import Context
from dlcompiler.passes.rewrite import Rule, RuleTable, apply_rules

_table = RuleTable(())


def add(rule: Rule) -> None:
    """Let the pass apply a rule too, after those that it has."""
    global _table
    _table = RuleTable((*_table, rule))


def clear() -> None:
    """Leave the pass without rules."""
    global _table
    _table = RuleTable(())


def apply_own_rewrites(graph: Graph, context: Context) -> Graph:
    """See the module."""
    return apply_rules(graph, _table, context) if _table.rules else graph
