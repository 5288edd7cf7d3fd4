"""Attention of few rows over many keys, as one token is written: the keys in parts, so that a GPU has work for all of it.

    attention(q, k, v)  -->  outs, sums = attention_with_logsumexp(q, k in parts, v in parts)
                             the parts' results, each by its share exp(sums - the largest) of all

Where one program would walk over all keys of a head, and heads are fewer than what keeps the target busy. The parts are one more
leading dimension, which moves nothing in memory. The rule is approximate: results of parts are rounded once more. (Dao et al.,
Flash-Decoding for long-context inference, 2023.)
"""

from __future__ import annotations

import math

import numpy as np
from dlcompiler.ir.expression import known
from dlcompiler.ir.graph import Graph, Node
from dlcompiler.ir.types import f32
from dlcompiler.passes.context import Context
from dlcompiler.passes.rewrite import GraphRewriter, RuleTable, apply_rules, rule

# Query rows of a head, or of heads that share keys, that one program takes anyway.
FEW_ROWS = 16
# What a target keeps busy at least for parts to pay: the cores of a CPU have enough in a few heads.
MANY_ROWS = 64
# Keys of a part: enough to be worth a program.
SHORTEST_PART = 256


def split_attention(graph: Graph, context: Context) -> Graph:
    """Attention in parts where the target has a kernel for it and would be mostly idle otherwise."""

    @rule("attention-parts", "attention", exact=False)
    def attention_parts(b: GraphRewriter, node: Node) -> Node | None:
        """attention(q, k, v) --> a sum of attention over parts of the keys"""
        if "attention_with_logsumexp" not in context.target.library_ops or context.target.parallel_rows < MANY_ROWS:
            return None
        parts = _parts(node, context.target.parallel_rows)
        if parts == 1:
            return None
        place = _place(node)
        operands = [_spread(b, node.inputs[0], node, place), *(_cut(b, x, node, place, parts) for x in node.inputs[1:3])]
        if len(node.inputs) == 4:
            operands.append(_cut_mask(b, node.inputs[3], node, place, parts))
        both = b.attention_with_logsumexp(*operands, **node.attributes)
        return _joined(b, both, node, place) if context.target.runs_whole(both) else None

    return apply_rules(graph, RuleTable((attention_parts,)), context)


def _place(node: Node) -> int:
    """Where the parts stand among the leading dimensions: in front of heads that share keys, which become rows of one head."""
    lead, keys = node.shape[:-2], node.inputs[1].shape[:-2]
    shares = bool(lead) and len(keys) > 0 and lead[-1] != 1 and keys[-1] == 1
    return len(lead) - 1 if shares else len(lead)


def _parts(node: Node, wanted: int) -> int:
    """How many parts: a power of two that divides the keys."""
    *lead, length, _ = node.shape
    seen = node.inputs[1].shape[-2]
    if node.attributes["causal"] or not all(isinstance(size, int) for size in (*lead, length, seen)):
        return 1
    heads = math.prod(known(size) for size in lead[: _place(node)])
    rows = known(length) * math.prod(known(size) for size in lead[_place(node) :])
    if rows > FEW_ROWS or not heads:
        return 1
    parts, keys = 1, known(seen)
    while parts * heads < wanted and keys % (2 * parts) == 0 and keys // (2 * parts) >= SHORTEST_PART:
        parts *= 2
    return parts


def _lead(x: Node, node: Node) -> tuple:
    """An operand's leading dimensions, as many as the result has."""
    own = x.shape[:-2]
    return (*(1,) * (len(node.shape) - 2 - len(own)), *own)


def _spread(b: GraphRewriter, x: Node, node: Node, place: int) -> Node:
    """The query, the same for all parts: q[..., L, E] --> q[..., 1, ..., L, E]."""
    lead = _lead(x, node)
    return b.reshape(x, shape=(*lead[:place], 1, *lead[place:], *x.shape[-2:]))


def _cut(b: GraphRewriter, x: Node, node: Node, place: int, parts: int) -> Node:
    """Keys or values: k[..., S, E] --> k[..., parts, ..., S / parts, E]; dimensions behind the parts are single."""
    lead, (seen, width) = _lead(x, node), x.shape[-2:]
    return b.reshape(x, shape=(*lead[:place], parts, *lead[place:], seen // parts, width))


def _cut_mask(b: GraphRewriter, x: Node, node: Node, place: int, parts: int) -> Node:
    """A mask: m[..., L, S] --> m[..., parts, ..., L, S / parts]."""
    shape = (*(1,) * (len(node.shape) - x.tensor.rank), *x.shape)
    rank = len(shape)
    if shape[-1] == 1:
        return b.reshape(x, shape=(*shape[:place], 1, *shape[place:]))
    cut = b.reshape(x, shape=(*shape[:-1], parts, shape[-1] // parts))
    return b.permute(cut, dims=(*range(place), rank - 1, *range(place, rank - 1), rank))


def _joined(b: GraphRewriter, both: Node, node: Node, place: int) -> Node:
    """What the parts give, added up by their shares; a part that sees nothing has none."""
    out, sums = (b("tuple.get", both, index=index) for index in range(2))
    lowest, zero, one = (b.constant(value, f32) for value in (-np.inf, 0.0, 1.0))
    sums = b.where(b.eq(sums, b.constant(np.inf, f32)), lowest, sums)
    top = b.reduce_max(sums, axes=(place,), keepdims=True)
    weights = b.exp(b.sub(sums, b.where(b.eq(top, lowest), zero, top)))
    total = b.reduce_sum(weights, axes=(place,), keepdims=True)
    shares = b.div(weights, b.where(b.eq(total, zero), one, total))
    wide = out if out.dtype is f32 else b.cast(out, dtype="f32")
    result = b.reduce_sum(b.mul(wide, b.reshape(shares, shape=(*shares.shape, 1))), axes=(place,), keepdims=False)
    return result if node.dtype is f32 else b.cast(result, dtype=node.dtype.name)
