"""Attention, found among the ops that a model writes it with.

    %1 = permute(%k); %2 = matmul(%q, %1); %3 = mul(%2, 0.125); %4 = add(%3, %mask); %5 = softmax(%4); %6 = matmul(%5, %v)
    -->  %6 = attention(%q, %k, %v, %mask){scale=0.125}

Only where a library of the target runs attention whole, and nothing else reads the scores. Equal for finite scores, up to the
order of sums. Two other cases have another answer: a row whose every score is -inf gives NaN when written out and zeros from
`attention`; a NaN or infinite score that a mask hides is hidden when written out by `where`, and spreads where masks are added.
Exporters write weights of NaN as 0, which `attention` does for rows that see nothing, and not for NaN that comes with the scores.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from dlcompiler.ir.errors import ShapeError
from dlcompiler.ir.expression import Dim
from dlcompiler.ir.graph import Node
from dlcompiler.ir.ops import lookup
from dlcompiler.ir.ops.rules import broadcast_shapes
from dlcompiler.ir.types import boolean
from dlcompiler.passes.pattern import uniform_value
from dlcompiler.passes.rewrite import GraphRewriter, rule

# A score of at most this counts as one that is not seen: exp of it underflows to 0 beside any score above it by 104 or more.
UNSEEN = -1e4
# constants larger than this are not read to find out whether they are a causal mask
MASK_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class Scores:
    """What softmax is taken of: `scale * (q @ k^T)`, then masked."""

    query: Node
    key: Node  # as attention takes it: [..., S, E]
    scale: float
    mask: Node | None = None
    causal: bool = False


@rule("attention", "matmul", exact=False)
def attention(b: GraphRewriter, node: Node) -> Node | None:
    """matmul(softmax(scale * matmul(q, permute(k)) + mask), v) --> attention(q, k, v, mask)"""
    weights, value = node.inputs
    tested = _tested_for_nan(b, weights)
    weights = tested or _through_casts(b, weights)
    if weights.op.name != "softmax" or not (tested or b.is_used_once(weights)) or value.dtype is not node.dtype:
        return None
    scores = weights.inputs[0]
    if weights.attributes["axis"] % scores.tensor.rank != scores.tensor.rank - 1:
        return None
    found = _match_scores(b, scores)
    if found is None or found.query.dtype is not node.dtype or found.query.tensor.rank < 3:
        return None
    operands = [found.query, found.key, value] + ([found.mask] if found.mask is not None else [])
    attributes = {"scale": found.scale, "causal": found.causal}
    try:
        lookup("attention").infer(tuple(o.type for o in operands), attributes)
    except ShapeError:
        return None
    return b.attention(*operands, **attributes)


@rule("attention-mask", "attention", exact=False)
def attention_mask(b: GraphRewriter, node: Node) -> Node | None:
    """attention(q, k, v, mask) whose mask hides nothing, or just what comes later --> attention(q, k, v), perhaps causal"""
    if len(node.inputs) != 4:
        return None
    query, key, value, mask = node.inputs
    scores = (*node.shape[:-1], key.shape[-2])
    number = uniform_value(mask)
    causal = number is None and (is_causal(b, mask, scores) if mask.dtype is boolean else _is_causal_addend(b, mask, scores))
    if not causal and (number is None or bool(number) != (mask.dtype is boolean)):
        return None
    return b.attention(query, key, value, scale=node.attributes["scale"], causal=causal or node.attributes["causal"])


@rule("grouped-attention", "attention", exact=True)
def grouped_attention(b: GraphRewriter, node: Node) -> Node | None:
    """attention(q, reshape(expand(k)), reshape(expand(v))): heads that share keys and values --> read from where they are"""
    query, key, value, *mask = node.inputs
    keys, values = _repeated_heads(key), _repeated_heads(value)
    if keys is None or values is None or keys[1] != values[1] or query.tensor.rank != 4:
        return None
    (key, repeats), (value, _) = keys, values
    heads = key.shape[1]
    lead = query.shape[0]
    if query.shape[0] != key.shape[0] or query.shape[1] != heads * repeats or value.shape[:2] != key.shape[:2]:
        return None
    operands = [b.reshape(query, shape=(lead, heads, repeats, *query.shape[2:])), key, value]
    if mask:
        (given,) = mask
        shape = (1,) * (4 - given.tensor.rank) + given.shape
        if shape[1] not in (1, heads * repeats):
            return None
        split = (1, 1) if shape[1] == 1 else (heads, repeats)
        operands.append(b.reshape(given, shape=(shape[0], *split, *shape[2:])))
    result = b.attention(*operands, **node.attributes)
    return b.reshape(result, shape=node.shape)


def _repeated_heads(node: Node) -> tuple[Node, Dim] | None:
    """([N, H, 1, S, E], G) of reshape(expand(x, [N, H, G, S, E]), [N, H * G, S, E])."""
    if node.op.name != "reshape" or node.inputs[0].op.name != "expand" or node.tensor.rank != 4:
        return None
    wide = node.inputs[0]
    source = wide.inputs[0]
    if wide.tensor.rank != 5 or source.tensor.rank != 5 or wide.shape[2] == 1:
        return None
    (n, heads, repeats, *matrix) = wide.shape
    if source.shape != (n, heads, 1, *matrix) or node.shape != (n, heads * repeats, *matrix):
        return None
    return source, repeats


def _through_casts(b: GraphRewriter, node: Node) -> Node:
    """What a value was cast from, where softmax is computed wider than the rest."""
    while node.op.name == "cast" and node.inputs[0].dtype.is_float and b.is_used_once(node):
        node = node.inputs[0]
    return node


def _tested_for_nan(b: GraphRewriter, node: Node) -> Node | None:
    """x of `where(isnan(x), 0, x)` that nothing else reads: how exporters write that a row which sees nothing gives zeros."""
    if node.op.name != "where" or not b.is_used_once(node):
        return None
    test, zero, x = node.inputs
    number = uniform_value(zero)
    if test.op.name != "isnan" or test.inputs[0] is not x or number is None or float(number) != 0:
        return None
    return x if b.is_used_once(test) and b.uses[x] == 2 else None


def _match_scores(b: GraphRewriter, node: Node) -> Scores | None:
    """Peel masks, then scales, off the scores, down to the product."""
    shape, dtype = node.shape, node.dtype
    mask: Node | None = None
    causal = False
    while b.is_used_once(node):
        node = _through_casts(b, node)
        step = _masked(b, node)
        if step is None:
            break
        node, found, is_causal = step
        causal |= is_causal
        if found is not None:
            if broadcast_shapes([shape, found.shape]) != shape:
                return None
            mask = found if mask is None else _both_masks(b, found, mask)
    if node.shape != shape:
        return None
    scaled = _scaled_product(b, node)
    if scaled is None:
        return None
    if mask is not None and mask.dtype is not boolean and mask.dtype is not scaled.query.dtype:
        if mask.dtype is not dtype:
            return None
        mask = b.cast(mask, dtype=scaled.query.dtype.name)
    return replace(scaled, mask=mask, causal=causal)


def _both_masks(b: GraphRewriter, first: Node, second: Node) -> Node:
    """One mask for two that follow each other."""
    if first.dtype is boolean and second.dtype is boolean:
        return b.bitwise_and(first, second)
    if first.dtype is boolean:
        return b.where(first, second, -np.inf)
    if second.dtype is boolean:
        return b.where(second, first, -np.inf)
    # one that adds nothing is common: the mask of a model that was given none
    return second if _is_zero(b, first) else first if _is_zero(b, second) else b.add(first, second)


def _is_zero(b: GraphRewriter, mask: Node) -> bool:
    number = uniform_value(mask)
    return number is not None and float(number) == 0


def _masked(b: GraphRewriter, node: Node) -> tuple[Node, Node | None, bool] | None:
    """(scores below, mask to add or keep by, whether causal) of one masking step."""
    if node.op.name == "where":
        keep, scores, fill = node.inputs
        number = uniform_value(fill)
        if number is None or not float(number) <= UNSEEN or scores.shape != node.shape:
            return None
        if is_causal(b, keep, scores.shape):
            return scores, None, True
        if np.isneginf(float(number)):
            return scores, keep, False
        # a finite fill leaves a row that sees nothing its average, as adding the fill does
        zero = b.constant(0, fill.dtype)
        return scores, b.where(keep, zero, b.constant(number)), False
    if node.op.name == "add":
        for scores, mask in (node.inputs, node.inputs[::-1]):
            if scores.shape == node.shape and _is_scores(scores):
                return (scores, None, True) if _is_causal_addend(b, mask, scores.shape) else (scores, mask, False)
    return None


def _is_scores(node: Node) -> bool:
    """Whether a chain of masks, scales and casts ends in a matmul: tells scores from a mask of the same shape."""
    for _ in range(8):
        if node.op.name == "matmul":
            return True
        if node.op.name in ("mul", "div", "cast", "add"):
            node = node.inputs[0] if node.inputs[0].op.name != "constant" else node.inputs[-1]
        elif node.op.name == "where":
            node = node.inputs[1]
        else:
            return False
    return False


def _scaled_product(b: GraphRewriter, node: Node) -> Scores | None:
    scale = 1.0
    while (step := _scaled(b, node)) is not None:
        node, factor = step
        scale *= factor
    node = _through_casts(b, node)
    if node.op.name != "matmul" or not b.is_used_once(node):
        return None
    query, keys = node.inputs
    while (step := _scaled(b, query)) is not None:
        query, factor = step
        scale *= factor
    while (step := _scaled(b, keys)) is not None:
        keys, factor = step
        scale *= factor
    return Scores(query, _transposed(b, keys), scale)


def _scaled(b: GraphRewriter, node: Node) -> tuple[Node, float] | None:
    """(x, c) of `x * c` or `x / c` read here only."""
    if node.op.name not in ("mul", "div") or not b.is_used_once(node):
        return None
    for x, other in (node.inputs, node.inputs[::-1]):
        number = uniform_value(other)
        if number is not None and x.type == node.type and number.dtype.kind != "b":
            if node.op.name == "mul":
                return x, float(number)
            return (x, 1 / float(number)) if other is node.inputs[1] and float(number) != 0 else None
    return None


def _transposed(b: GraphRewriter, keys: Node) -> Node:
    """[..., E, S] --> [..., S, E]: what a permute exchanged, or a permute."""
    rank = keys.tensor.rank
    swap = (*range(rank - 2), rank - 1, rank - 2)
    if keys.op.name == "permute" and tuple(keys.attributes["dims"]) == swap:
        return keys.inputs[0]
    if keys.op.name == "reshape" and keys.inputs[0].op.name == "permute":
        # leading dimensions merged, the last two exchanged, and split again, as exporters write it
        turned = keys.inputs[0]
        last = turned.tensor.rank - 1
        if tuple(turned.attributes["dims"]) == (*range(last - 1), last, last - 1) and turned.shape[-2:] == keys.shape[-2:]:
            return b.reshape(turned.inputs[0], shape=(*keys.shape[:-2], *turned.inputs[0].shape[-2:]))
    return b.permute(keys, dims=swap)


# -- causal masks ------------------------------------------------------------------------------------------------------------


def is_causal(b: GraphRewriter, keep: Node, scores: tuple[Dim, ...]) -> bool:
    """Whether a bool mask is `column <= row` over the last two dimensions of the scores: by its value, or as it is written."""
    keep = _without_ones(keep)
    if keep.op.name == "bitwise_not":
        (inner,) = keep.inputs
        written = inner.op.name in ("gt", "lt") and _compares_column_to_row(inner, scores, inner.op.name == "lt")
    else:
        written = keep.op.name in ("le", "ge") and _compares_column_to_row(keep, scores, keep.op.name == "ge")
    return written or (_is_square(keep, scores) and _is_lower_triangle(_value(b, keep)))


def _without_ones(node: Node) -> Node:
    """What a value was before it was repeated along leading dimensions or given dimensions of size 1."""
    while node.op.name == "expand" or (node.op.name == "reshape" and _only_adds_ones(node)):
        if node.inputs[0].shape[-2:] != node.shape[-2:]:
            break
        node = node.inputs[0]
    return node


def _value(b: GraphRewriter, node: Node) -> np.ndarray | None:
    value = node.attributes["value"] if node.op.name == "constant" else b.known.of(node)
    return value if value is None or value.size <= MASK_ELEMENTS else None


def _compares_column_to_row(node: Node, scores: tuple[Dim, ...], row_first: bool) -> bool:
    row, column = node.inputs if row_first else node.inputs[::-1]
    return _counts_along(row, -2, scores) and _counts_along(column, -1, scores)


def _counts_along(node: Node, axis: int, scores: tuple[Dim, ...]) -> bool:
    """Whether a value is an index range along one dimension of the scores, and of size 1 along all others."""
    shape = node.shape
    while node.op.name == "cast" or (node.op.name == "reshape" and _only_adds_ones(node)):
        node = node.inputs[0]
    if node.op.name != "iota":
        return False
    wide = (1,) * (len(scores) - len(shape)) + shape
    return wide[axis] == scores[axis] and all(size == 1 for d, size in enumerate(wide) if d != axis % len(scores))


def _only_adds_ones(node: Node) -> bool:
    return [d for d in node.shape if d != 1] == [d for d in node.inputs[0].shape if d != 1]


def _is_causal_addend(b: GraphRewriter, mask: Node, scores: tuple[Dim, ...]) -> bool:
    """Whether a number mask is 0 where `column <= row` and -inf or nearly so elsewhere."""
    mask = _without_ones(mask)
    if mask.op.name == "where":
        keep, zero, fill = mask.inputs[0], uniform_value(mask.inputs[1]), uniform_value(mask.inputs[2])
        if zero is not None and fill is not None and float(zero) == 0 and float(fill) <= UNSEEN:
            return is_causal(b, keep, scores)
    value = _value(b, mask) if _is_square(mask, scores) else None
    if value is None:
        return False
    seen = value == 0
    return bool(np.all(seen | (value <= UNSEEN))) and _is_lower_triangle(seen)


def _is_square(mask: Node, scores: tuple[Dim, ...]) -> bool:
    """Whether a mask has one row for each query and one column for each key."""
    return mask.tensor.rank >= 2 and mask.shape[-2:] == scores[-2:]


def _is_lower_triangle(mask: np.ndarray | None) -> bool:
    """Whether every matrix of a mask is true just where `column <= row`."""
    return mask is not None and mask.size > 0 and bool(np.all(mask == np.tri(*mask.shape[-2:]).astype(bool)))
