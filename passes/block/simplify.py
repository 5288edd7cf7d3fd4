"""Algebraic simplification.

    %1 = mul(%x, 1.0); %2 = neg(%1); %3 = sub(%y, %2)  -->  %3 = add(%y, %x)

Exact rules give the same bits for every operand, NaN, infinities and -0.0 included (which bits a NaN has does not count). An
approximate rule is one of two kinds, and fires only under numerics="fast":

* the sign of a zero: `x + 0` is +0.0 for x = -0.0, x itself is not;
* rounding: the result is rounded once where it was rounded twice, or the other way round, so it is within a few units in the
  last place. Constants that would leave the normal numbers are not combined.

What is not here is not true: `x * 0`, `x - x`, `x / x` and `x == x` have other answers for NaN and infinities;
`(x + A) + B --> x + (A + B)` cancels differently.
"""

from __future__ import annotations

import numpy as np
from dlcompiler.ir.expression import Dim
from dlcompiler.ir.graph import Graph, Node
from dlcompiler.ir.ops import Trait
from dlcompiler.ir.scalar import apply_scalar
from dlcompiler.passes.context import Context
from dlcompiler.passes.pattern import Bindings, algebra, is_uniform
from dlcompiler.passes.rewrite import GraphRewriter, RuleTable, apply_rules, rule


def is_normal(value: np.ndarray) -> bool:
    """Whether every element is finite and not denormal, so that multiplying by it rounds once."""
    wide = np.abs(value.astype(np.float64))
    smallest = {"float64": 2.0**-1022, "float32": 2.0**-126, "float16": 2.0**-14, "bfloat16": 2.0**-126}[value.dtype.name]
    return bool(np.all(np.isfinite(wide) & (wide >= smallest)))


def _combine_to_normal(op: str):
    def when(bindings: Bindings) -> bool:
        a, b = (bindings[k].attributes["value"] for k in "AB")
        return is_normal(a) and is_normal(b) and is_normal(apply_scalar(op, b, a))

    return when


EXACT = (
    # neutral elements
    algebra("add-negative-zero", "x + -0.0 --> x", takes="float", exact=True),
    algebra("sub-zero", "x - 0 --> x", takes="number", exact=True),
    algebra("add-integer-zero", "x + 0 --> x", takes="integer", exact=True),
    algebra("mul-one", "x * 1 --> x", takes="number", exact=True),
    algebra("div-one", "x / 1 --> x", takes="float", exact=True),
    algebra("floor-div-one", "floor_div(x, 1) --> x", takes="integer", exact=True),
    algebra("trunc-div-one", "trunc_div(x, 1) --> x", takes="integer", exact=True),
    algebra("pow-one", "pow(x, 1) --> x", takes="float", exact=True),
    algebra("and-true", "bitwise_and(x, true) --> x", exact=True),
    algebra("or-false", "bitwise_or(x, false) --> x", exact=True),
    algebra("or-zero", "bitwise_or(x, 0) --> x", takes="integer", exact=True),
    algebra("xor-zero", "bitwise_xor(x, 0) --> x", takes="integer", exact=True),
    algebra("xor-false", "bitwise_xor(x, false) --> x", exact=True),
    algebra("shift-left-zero", "shift_left(x, 0) --> x", takes="integer", exact=True),
    algebra("shift-right-zero", "shift_right(x, 0) --> x", takes="integer", exact=True),
    # absorbing elements; not for floats, where NaN and infinity are not absorbed
    algebra("mul-integer-zero", "x * 0 --> 0", takes="integer", exact=True),
    algebra("and-false", "bitwise_and(x, false) --> false", exact=True),
    algebra("and-zero", "bitwise_and(x, 0) --> 0", takes="integer", exact=True),
    algebra("or-true", "bitwise_or(x, true) --> true", exact=True),
    algebra("remainder-one", "remainder(x, 1) --> 0", takes="integer", exact=True),
    algebra("pow-zero", "pow(x, 0) --> 1", takes="float", exact=True),
    # signs
    algebra("neg-neg", "neg(neg(x)) --> x", exact=True),
    algebra("add-neg", "x + neg(y) --> x - y", exact=True),
    algebra("sub-neg", "x - neg(y) --> x + y", exact=True),
    algebra("mul-neg-neg", "neg(x) * neg(y) --> x * y", exact=True),
    algebra("mul-minus-one", "x * -1 --> neg(x)", takes="signed", exact=True),
    algebra("div-minus-one", "x / -1 --> neg(x)", takes="float", exact=True),
    algebra("abs-abs", "abs(abs(x)) --> abs(x)", exact=True),
    algebra("abs-neg", "abs(neg(x)) --> abs(x)", takes="signed", exact=True),
    # idempotence
    algebra("maximum-same", "maximum(x, x) --> x", exact=True),
    algebra("minimum-same", "minimum(x, x) --> x", exact=True),
    algebra("maximum-twice", "maximum(maximum(x, y), y) --> maximum(x, y)", exact=True),
    algebra("minimum-twice", "minimum(minimum(x, y), y) --> minimum(x, y)", exact=True),
    algebra("and-same", "bitwise_and(x, x) --> x", exact=True),
    algebra("or-same", "bitwise_or(x, x) --> x", exact=True),
    algebra("floor-floor", "floor(floor(x)) --> floor(x)", exact=True),
    algebra("ceil-ceil", "ceil(ceil(x)) --> ceil(x)", exact=True),
    algebra("round-round", "round(round(x)) --> round(x)", exact=True),
    algebra("trunc-trunc", "trunc(trunc(x)) --> trunc(x)", exact=True),
    algebra("sign-sign", "sign(sign(x)) --> sign(x)", takes="signed", exact=True),
    # a value and itself; not for floats where NaN differs
    algebra("sub-same", "x - x --> 0", takes="integer", exact=True),
    algebra("xor-same", "bitwise_xor(x, x) --> 0", takes="integer", exact=True),
    algebra("eq-same", "eq(x, x) --> true", takes="whole", exact=True),
    algebra("ne-same", "ne(x, x) --> false", takes="whole", exact=True),
    algebra("le-same", "le(x, x) --> true", takes="whole", exact=True),
    algebra("ge-same", "ge(x, x) --> true", takes="whole", exact=True),
    algebra("lt-same", "lt(x, x) --> false", exact=True),
    algebra("gt-same", "gt(x, x) --> false", exact=True),
    # logic
    algebra("not-not", "bitwise_not(bitwise_not(x)) --> x", exact=True),
    algebra("not-eq", "bitwise_not(eq(x, y)) --> ne(x, y)", exact=True),
    algebra("not-ne", "bitwise_not(ne(x, y)) --> eq(x, y)", exact=True),
    algebra("not-lt", "bitwise_not(lt(x, y)) --> ge(x, y)", takes="whole", exact=True),
    algebra("not-le", "bitwise_not(le(x, y)) --> gt(x, y)", takes="whole", exact=True),
    algebra("not-gt", "bitwise_not(gt(x, y)) --> le(x, y)", takes="whole", exact=True),
    algebra("not-ge", "bitwise_not(ge(x, y)) --> lt(x, y)", takes="whole", exact=True),
    algebra("where-same", "where(c, x, x) --> x", exact=True),
    algebra("where-true", "where(true, x, y) --> x", exact=True),
    algebra("where-false", "where(false, x, y) --> y", exact=True),
    algebra("where-not", "where(bitwise_not(c), x, y) --> where(c, y, x)", exact=True),
    # constants met one after the other; integers wrap, so any order gives the same
    algebra("add-integers", "(x + A) + B --> x + (A + B)", takes="integer", exact=True),
    algebra("mul-integers", "(x * A) * B --> x * (A * B)", takes="integer", exact=True),
)

APPROXIMATE = (
    # the sign of a zero
    algebra("add-zero", "x + 0 --> x", takes="float", exact=False),
    # rounding
    algebra("mul-constants", "(x * A) * B --> x * (A * B)", takes="wide float", when=_combine_to_normal("mul"), exact=False),
    algebra("div-mul-constants", "(x / A) * B --> x * (B / A)", takes="wide float", when=_combine_to_normal("div"), exact=False),
    algebra("mul-div-constants", "(x * B) / A --> x * (B / A)", takes="wide float", when=_combine_to_normal("div"), exact=False),
    algebra("reciprocal-sqrt", "1 / sqrt(x) --> rsqrt(x)", takes="float", once=True, exact=False),
    algebra("div-sqrt", "x / sqrt(y) --> x * rsqrt(y)", takes="float", once=True, exact=False),
)


@rule("iota-not-negative", "ge", "lt", exact=True)
def iota_not_negative(b: GraphRewriter, node: Node) -> Node | None:
    """ge(iota, 0) --> true; lt(iota, 0) --> false; also through views"""
    left, right = node.inputs
    while left.has(Trait.VIEW) and len(left.inputs) == 1 and left.op.name != "pad":
        (left,) = left.inputs
    return b.constant(node.op.name == "ge") if left.op.name == "iota" and is_uniform(right, 0) else None


@rule("one-hot-sum", "reduce_sum", exact=False)
def one_hot_sum(b: GraphRewriter, node: Node) -> Node | None:
    """reduce_sum(where(eq(iota, t), x, 0) * s) of a row with one t, x and s --> where(0 <= t < size, x * s, 0)

    The gradient of a loss that picks an element a row; of finite s.
    """
    (masked,), axes = node.inputs, node.attributes["axes"]
    last = masked.tensor.rank - 1
    if tuple(axes) != (last,) or masked.shape[last] == 1:
        return None
    size = masked.shape[last]
    orders: list[tuple[Node, ...]] = [(masked,)]
    if masked.op.name == "mul":
        orders = [masked.inputs, masked.inputs[::-1]]
    for one_hot, *factors in orders:
        found = _chosen(one_hot, size)
        if found is None or any(x.tensor.rank and x.shape[-1] != 1 for x in (*found, *factors)):
            continue
        target, value = found
        value = b.mul(value, *factors) if factors else value
        inside = b.bitwise_and(b.ge(target, 0), b.lt(target, b.constant(size, target.dtype)))
        column = masked.tensor.with_shape((*masked.shape[:last], 1))
        total = b.fit(b.where(inside, value, b.constant(0, node.dtype)), column)
        return total if node.type == column else b.reshape(total, shape=node.shape)
    return None


def _chosen(node: Node, size: Dim) -> tuple[Node, Node] | None:
    """(t, x) of `where(eq(iota, t), x, 0)` along a last dimension of `size`."""
    if node.op.name != "where" or node.inputs[0].op.name != "eq" or not is_uniform(node.inputs[2], 0):
        return None
    left, right = node.inputs[0].inputs
    places, target = (right, left) if right.op.name == "iota" else (left, right)
    return (target, node.inputs[1]) if places.op.name == "iota" and places.shape == (size,) else None


RULES = RuleTable((*EXACT, iota_not_negative, one_hot_sum, *APPROXIMATE))


def simplify(graph: Graph, context: Context) -> Graph:
    """Apply the rules of algebra until none fires."""
    return apply_rules(graph, RULES, context)
