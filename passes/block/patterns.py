"""Groups of ops that are one op, or part of the one before.

attention written out                       -->  attention            (see `attention`)
convolution, then scale and shift           -->  convolution          (see `normalization`)
"""

from __future__ import annotations

from dlcompiler.ir.graph import Graph
from dlcompiler.passes.block import attention, normalization
from dlcompiler.passes.context import Context
from dlcompiler.passes.rewrite import RuleTable, apply_rules

RULES = RuleTable([attention.attention, attention.attention_mask, attention.grouped_attention, *normalization.RULES])
WITHOUT_ATTENTION = RuleTable(normalization.RULES)


def match_patterns(graph: Graph, context: Context) -> Graph:
    """Apply the rules until none fires; attention only where the target has it as a library op."""
    table = RULES if "attention" in context.target.library_ops else WITHOUT_ATTENTION
    return apply_rules(graph, table, context)
