"""Reductions: over nothing, and over so much that one thread should not do it alone.

%1 = reduce_sum(%x: f32[1000, 1000]){axes=(0, 1)}
-->  %1.reduce_sum = reduce_sum(%x){axes=(1,)}; %1 = reduce_sum(%1.reduce_sum){axes=(0,)}
"""

from __future__ import annotations

import math

from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import compute_dtype
from dlcompiler.passes.rewrite import GraphRewriter, rule

# What a partial result of a split reduction ranges over, about; and how many partial results there may be. A reduction is split
# if its results are too few to keep the target busy, each over at least `LONG_RANGE` of these.
PART, LONG_RANGE = 4096, 4
FEWEST_PARTS, MOST_PARTS = 16, 256
# The same where hundreds of small parts run at once; results that lie side by side are made by one of them.
SMALL_PART, SMALL_LONG_RANGE = 128, 8
FEWEST_SMALL_PARTS = 4
# A row of up to so many elements is read by one such part about as quickly as a second launch begins.
ONE_LAUNCH = 8192
SIDE_BY_SIDE = 64

COMBINE = {
    "reduce_sum": "add",
    "reduce_prod": "mul",
    "reduce_max": "maximum",
    "reduce_min": "minimum",
    "reduce_any": "bitwise_or",
    "reduce_all": "bitwise_and",
}


def _of_one_element_each(b: GraphRewriter, node: Node) -> Node | None:
    (x,) = node.inputs
    return b.reshape(x, shape=node.shape) if all(x.shape[a] == 1 for a in node.attributes["axes"]) else None


@rule("reduce-ones", *COMBINE, exact=True)
def reduce_ones(b: GraphRewriter, node: Node) -> Node | None:
    """reduce_max(x) over dimensions of size 1, or over none --> reshape(x); not float sums, where 0 + -0.0 is 0.0"""
    is_float_sum = node.op.name == "reduce_sum" and node.dtype.is_float
    return None if is_float_sum else _of_one_element_each(b, node)


@rule("sum-ones", "reduce_sum", exact=False)
def sum_ones(b: GraphRewriter, node: Node) -> Node | None:
    """reduce_sum(x) over dimensions of size 1, or over none --> reshape(x)"""
    return _of_one_element_each(b, node)


@rule("split-reduction", *COMBINE, exact=False)
def split_reduction(b: GraphRewriter, node: Node) -> Node | None:
    """reduce_sum(x) of few long ranges --> reduce_sum(reduce_sum(reshape(x))), the parts in parallel"""
    (x,) = node.inputs
    axes = tuple(sorted(node.attributes["axes"]))
    if not x.tensor.is_static or node.tensor.numel == 0:
        return None
    wanted = _wanted_parts(b.parallel_rows, node, axes)
    if wanted is None:
        return None
    parts, fewest = wanted
    wide = compute_dtype(x.dtype) if node.op.name in ("reduce_sum", "reduce_prod") else x.dtype
    if wide is not x.dtype:
        x = b.cast(x, dtype=wide.name)
    result = _in_two_stages(b, node.op.name, x, axes, parts, fewest)
    if result is None:
        return None
    if wide is not node.dtype:
        result = b.cast(result, dtype=node.dtype.name)
    return b.reshape(result, shape=node.shape) if result.shape != node.shape else result


def _wanted_parts(parallel_rows: int, node: Node, axes: tuple[int, ...]) -> tuple[int, int] | None:
    """Into how many parts each result is best split, and the fewest that are worth it; None to leave it whole."""
    (x,) = node.inputs
    results, length = node.tensor.known_numel, math.prod(x.tensor.known_shape[a] for a in axes)
    if parallel_rows <= FEWEST_PARTS:
        if results >= parallel_rows or length < LONG_RANGE * PART:
            return None
        return min(MOST_PARTS, max(FEWEST_PARTS, length // PART)), FEWEST_PARTS
    is_row = x.tensor.rank - 1 in axes
    rows = results if is_row else -(-results // SIDE_BY_SIDE)
    # a row is rather left whole: more can be fused with it
    shortest = ONE_LAUNCH + 1 if is_row else SMALL_LONG_RANGE * SMALL_PART
    if rows * (FEWEST_PARTS if is_row else 2) >= parallel_rows or length < shortest:
        return None
    return min(MOST_PARTS, -(-parallel_rows // rows), length // SMALL_PART), FEWEST_SMALL_PARTS


def _in_two_stages(b: GraphRewriter, op: str, x: Node, axes: tuple[int, ...], parts: int, fewest: int) -> Node | None:
    """The reduction without keepdims: leading axes, the last of them perhaps split, make the parts."""
    taken, have = [], 1
    for axis in axes:
        size = x.tensor.known_shape[axis]
        if have * size <= 2 * parts:
            taken.append(axis)
            have *= size
            if have >= parts:
                break
            continue
        factor = _near_divisor(size, -(-parts // have))
        if factor is not None:
            x, axes = _with_axis_split(b, x, axes, axis, factor)
            taken.append(axis)
        elif have < fewest:
            return _with_remainder(b, op, x, axes, axis, -(-parts // have), parts, fewest)
        break
    rest = tuple(a for a in axes if a not in taken)
    if not rest or math.prod(x.tensor.known_shape[a] for a in taken) < fewest:
        return None
    first = b(op, x, axes=rest, keepdims=False)
    return b(op, first, axes=tuple(a - sum(r < a for r in rest) for a in taken), keepdims=False)


def _near_divisor(size: int, wanted: int) -> int | None:
    """The divisor of `size` nearest to `wanted`, from half of it to twice it."""
    near = [d for d in range(-(-wanted // 2), 2 * wanted + 1) if size % d == 0]
    return min(near, key=lambda d: abs(d - wanted), default=None)


def _with_axis_split(b: GraphRewriter, x: Node, axes: tuple[int, ...], axis: int, factor: int) -> tuple[Node, tuple[int, ...]]:
    """`x[..., n, ...]` seen as `x[..., factor, n / factor, ...]`, and the axes to reduce there: both halves of `axis`."""
    shape = (*x.shape[:axis], factor, x.shape[axis] // factor, *x.shape[axis + 1 :])
    moved = {a + (a > axis) for a in axes} | {axis + 1}
    return b.reshape(x, shape=shape), tuple(sorted(moved))


def _with_remainder(
    b: GraphRewriter, op: str, x: Node, axes: tuple[int, ...], axis: int, wanted: int, parts: int, fewest: int
) -> Node | None:
    """An axis whose size nothing near divides: a main part that is divided evenly, and the rest by itself."""
    size = x.tensor.known_shape[axis]
    cut = size - size % wanted
    if cut in (0, size):
        return None
    main, rest = (_range_of(b, x, axis, start, limit) for start, limit in ((0, cut), (cut, size)))
    first = _in_two_stages(b, op, main, axes, parts, fewest)
    return None if first is None else b(COMBINE[op], first, b(op, rest, axes=axes, keepdims=False))


def _range_of(b: GraphRewriter, x: Node, axis: int, start: int, limit: int) -> Node:
    starts, limits = [0] * x.tensor.rank, list(x.shape)
    starts[axis], limits[axis] = start, limit
    return b.slice(x, starts=tuple(starts), limits=tuple(limits), steps=(1,) * x.tensor.rank)


RULES = (reduce_ones, sum_ones, split_reduction)
