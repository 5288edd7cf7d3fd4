"""Ops replaced by ones that cost less.

    %1 = pow(%x, 3.0)   -->  %1.mul = mul(%x, %x); %1 = mul(%1.mul, %x)
    %1 = div(%x, 8.0)   -->  %1 = mul(%x, 0.125)
    %1 = index(%x, 0)   -->  %1 = slice(%x)

See also the rules in `contractions`, `dropped_rows` and `reductions`, which are in this pass's table.
"""

from __future__ import annotations

import numpy as np
from dlcompiler.ir.graph import Graph, Node
from dlcompiler.passes.context import Context
from dlcompiler.passes.node import contractions, dropped_rows, reductions
from dlcompiler.passes.pattern import algebra
from dlcompiler.passes.rewrite import GraphRewriter, RuleTable, apply_rules, rule

# Larger divisors are left as they are.
DIVISOR_ELEMENTS = 4096
SMALLEST_NORMAL = {"float64": 2.0**-1022, "float32": 2.0**-126, "float16": 2.0**-14, "bfloat16": 2.0**-126}


def reciprocal_of(node: Node) -> np.ndarray | None:
    """1 / a small constant, if that and the constant are normal numbers everywhere."""
    if node.op.name != "constant" or not 0 < node.attributes["value"].size <= DIVISOR_ELEMENTS:
        return None
    value = node.attributes["value"]
    with np.errstate(all="ignore"):
        wide = value.astype(np.float64)
        result = (1 / wide).astype(value.dtype)
        magnitudes = np.abs(np.stack([wide, result.astype(np.float64)]))
    return result if np.all(np.isfinite(magnitudes) & (magnitudes >= SMALLEST_NORMAL[value.dtype.name])) else None


@rule("div-power-of-two", "div", exact=True)
def div_power_of_two(b: GraphRewriter, node: Node) -> Node | None:
    """x / A, A a power of two --> x * (1 / A)"""
    x, divisor = node.inputs
    reciprocal = reciprocal_of(divisor)
    if reciprocal is None or np.any(np.abs(np.frexp(divisor.attributes["value"].astype(np.float64))[0]) != 0.5):
        return None
    return b.mul(x, b.constant(reciprocal))


@rule("div-constant", "div", exact=False)
def div_constant(b: GraphRewriter, node: Node) -> Node | None:
    """x / A in float32 or float64 --> x * (1 / A)"""
    x, divisor = node.inputs
    reciprocal = reciprocal_of(divisor) if node.dtype.bits >= 32 else None
    return None if reciprocal is None else b.mul(x, b.constant(reciprocal))


@rule("index-slice", "index", exact=True)
def index_slice(b: GraphRewriter, node: Node) -> Node | None:
    """index(x, A) with A positions that follow each other at one distance, or one position many times --> slice(x)"""
    if len(node.inputs) != 2:
        return None
    x, at = node.inputs
    (axis,) = node.attributes["axes"]
    size = x.shape[axis]
    places = _places(b, at)
    if places is None or not isinstance(size, int) or places.start < 0 or places.stop > size:
        return None
    starts, limits, steps = [0] * x.tensor.rank, list(x.shape), [1] * x.tensor.rank
    starts[axis], limits[axis], steps[axis] = places.start, places.stop, places.step
    value = b.slice(x, starts=tuple(starts), limits=tuple(limits), steps=tuple(steps))
    if len(places) == at.tensor.numel:
        return b.reshape(value, shape=node.shape)
    ones = (*x.shape[:axis], *(1,) * at.tensor.rank, *x.shape[axis + 1 :])
    return b.expand(b.reshape(value, shape=ones), shape=node.shape)


def _places(b: GraphRewriter, at: Node) -> range | None:
    """The positions that an index runs through, each once and in order, or the one that it is everywhere."""
    while at.op.name == "reshape":
        (at,) = at.inputs
    if at.op.name == "iota":
        return range(at.attributes["size"]) if isinstance(at.attributes["size"], int) and at.attributes["size"] else None
    value = b.known.of(at)
    if value is None or not 0 < value.size <= DIVISOR_ELEMENTS:
        return None
    first, last = int(value.reshape(-1)[0]), int(value.reshape(-1)[-1])
    differences = np.diff(value.reshape(-1).astype(np.int64))
    if not np.any(differences):
        return range(first, first + 1)
    step = int(differences[0])
    return range(first, last + 1, step) if step > 0 and np.all(differences == step) else None


POWERS = (
    algebra("pow-integer-square", "pow(x, 2) --> x * x", takes="integer", exact=True),
    algebra("pow-square", "pow(x, 2) --> x * x", takes="float", exact=False),
    algebra("pow-cube", "pow(x, 3) --> x * x * x", takes="wide float", exact=False),
    algebra("pow-minus-one", "pow(x, -1) --> 1 / x", takes="float", exact=False),
)

RULES = RuleTable(
    (*POWERS, div_power_of_two, div_constant, index_slice, *contractions.RULES, *dropped_rows.RULES, *reductions.RULES)
)


def replace_ops(graph: Graph, context: Context) -> Graph:
    """Apply the rules that replace an op by a cheaper one until none fires."""
    return apply_rules(graph, RULES, context)
