"""Weights of a few bits with a scale for each block stay as they are: products with them become `block_linear`.

    matmul(x, (f32(codes) - zero) * scale)
        -->  block_linear(x, packed, scales) - linear(sums of x, (zero - 2 ** (bits - 1)) * scales)

where the codes are constants of 2, 4 or 8 bits, and scale and zero point are the same for blocks of summed positions: what ONNX's
`DequantizeLinear` with a `block_size` gives, and what arithmetic written out gives (`(w.reshape(blocks) - z) * s`, reshaped
again), transposed or not. Codes are packed and scales are laid out as the op has them while compiling.

The sum is scaled once a block instead of each product, so other last bits: it fires only under numerics="fast". Bytes with one
scale a column are left alone, which are as quick as floats.

    index((f32(codes) - zero) * scale, rows)
        -->  (f32(index(codes, rows)) - spread(index(zero, rows))) * spread(index(scale, rows))

A table of which rows are read is not made into floats either. That is exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from dlcompiler.ir.expression import known
from dlcompiler.ir.graph import Graph, Node
from dlcompiler.ir.ops.block_scaled import pack_codes, without_zero_points
from dlcompiler.ir.types import DType, bf16, f16, f32
from dlcompiler.passes.context import Context
from dlcompiler.passes.rewrite import GraphRewriter

BITS = {"i2": 2, "u2": 2, "i4": 4, "u4": 4, "i8": 8, "u8": 8}
FLOATS = (f32, f16, bf16)
VIEWS_AND_CASTS = ("cast", "reshape", "permute")
MOST_STEPS = 16  # views and casts that may lie between a weight and its product


class Blocks(NamedTuple):
    """Numbers, each for a block of a larger array: along dimension d for `shape[d] / numbers.shape[d]` elements."""

    numbers: np.ndarray
    shape: tuple[int, ...]

    def permuted(self, dims: tuple[int, ...]) -> Blocks:
        return Blocks(self.numbers.transpose(dims), tuple(self.shape[d] for d in dims))

    def reshaped(self, shape: tuple[int, ...]) -> Blocks | None:
        """As the larger array is seen with dimensions joined; None where that is no joining, or blocks would not stay blocks."""
        left = [each for each in zip(self.shape, self.numbers.shape) if each[0] != 1]
        counts = []
        for size in shape:
            joined, count, in_block = 1, 1, False
            while joined < size and left:
                length, number = left.pop(0)
                if in_block and number > 1:
                    return None
                in_block = in_block or number < length
                joined, count = joined * length, count * number
            if joined != size:
                return None
            counts.append(count)
        return None if left else Blocks(self.numbers.reshape(counts), shape)


class Weight(NamedTuple):
    """(codes - zero) * scale, all of one shape. `codes` are bytes; those of a signed type have 2 ** (bits - 1) added."""

    codes: np.ndarray
    bits: int
    is_signed: bool
    scale: Blocks
    zero: Blocks | None


def scale_in_blocks(graph: Graph, context: Context) -> Graph:
    """The graph with block-scaled weights kept narrow, where the target multiplies with these as they are."""
    if "block_linear" not in context.target.library_ops:
        return graph
    if not any(n.op.name == "constant" and n.tensor.dtype.name in BITS for n in graph.nodes):
        return graph
    rewriter = GraphRewriter(graph)
    while (node := rewriter.next()) is not None:
        made: Node | None = None
        what = "block-scaled"
        if node.op.name in ("linear", "matmul") and context.allows_approximate:
            made = _narrow_product(rewriter, node, context)
        elif node.op.name == "index" and node.attributes["axes"] == (0,) and node.inputs[0].tensor.rank == 2:
            made, what = _narrow_rows(rewriter, node), "rows-of-blocks"
        if made is not None and context.spend(what, node.name):
            rewriter.replace(node, made)
        else:
            rewriter.keep(node)
    return rewriter.finish_like()


def _narrow_rows(b: GraphRewriter, node: Node) -> Node | None:
    """Rows of a table, taken while they are narrow."""
    table, rows = node.inputs
    weight = read_weight(table) if table.op.name in ("mul", "cast") else None
    if weight is None or not weight.codes.size:
        return None
    shape, width = node.shape[:-1], known(table.shape[1])

    def spread(part: Blocks) -> Node:
        numbers = part.numbers.astype(np.float32)
        held, count = numbers.shape
        each = known(table.shape[0]) // held
        at = rows if each == 1 or held == 1 else b.floor_div(rows, b.constant(np.asarray(each, rows.dtype.numpy)))
        taken = b.constant(numbers[0]) if held == 1 else b.index(b.constant(numbers), at, axes=(0,))
        wide = b.expand(b.reshape(taken, shape=(*taken.shape, 1)), shape=(*shape, count, width // count))
        return b.reshape(wide, shape=(*shape, width))

    parts = [part.numbers.shape for part in (weight.scale, weight.zero) if part is not None]
    if any(known(table.shape[0]) % held or width % count for held, count in parts):
        return None
    less = 1 << (weight.bits - 1) if weight.is_signed else 0
    wide = b.cast(b.index(b.constant(weight.codes), rows, axes=(0,)), dtype="f32")
    whole = b.sub(wide, float(less)) if less else wide
    moved = whole if weight.zero is None else b.sub(whole, spread(weight.zero))
    result = b.mul(moved, spread(weight.scale))
    return result if node.dtype is f32 else b.cast(result, dtype=node.dtype.name)


def _narrow_product(b: GraphRewriter, node: Node, context: Context) -> Node | None:
    x, w = node.inputs[:2]
    if node.dtype not in FLOATS or w.tensor.rank != 2 or not w.tensor.is_static:
        return None
    weight = read_weight(w)
    if weight is None:
        return None
    if node.op.name == "matmul":
        weight = _permuted(weight, (1, 0))
    columns, inner = weight.codes.shape
    counts = [part.numbers.shape[1] for part in (weight.scale, weight.zero) if part is not None]
    blocks = math.lcm(*counts)
    if not weight.codes.size or inner % blocks or (weight.bits == 8 and blocks == 1):
        return None
    block = inner // blocks
    if block * weight.bits % 8:
        return None
    scales = _by_row(weight.scale, columns, blocks).astype(np.float32)
    wide = b.cast(x, dtype="f32") if x.dtype is not f32 else x
    packed = b.constant(pack_codes(weight.codes, weight.bits))
    factors = b.constant(scales)
    result = b.block_linear(wide, packed, factors, bits=weight.bits, block=block, columns=columns)
    if not context.target.runs_whole(result):
        b.nodes.clear()
        return None
    moved = np.zeros((1, 1), np.float32) if weight.zero is None else _by_row(weight.zero, columns, blocks).astype(np.float32)
    moved = moved - (0 if weight.is_signed else 1 << (weight.bits - 1))
    if np.any(moved):
        result = without_zero_points(b, result, wide, b.constant((moved * scales).astype(np.float32)), block)
    if len(node.inputs) == 3:
        result = b.add(result, b.cast(node.inputs[2], dtype="f32") if node.inputs[2].dtype is not f32 else node.inputs[2])
    return result if node.dtype is f32 else b.cast(result, dtype=node.dtype.name)


def _by_row(part: Blocks, columns: int, blocks: int) -> np.ndarray:
    """[columns, blocks] of numbers that may stand for more."""
    rows, found = part.numbers.shape
    return np.repeat(np.repeat(part.numbers, columns // rows, 0), blocks // found, 1)


def sizes_of(node: Node) -> tuple[int, ...]:
    """The shape of a value that hangs on constants alone."""
    return tuple(known(size) for size in node.shape)


# -- reading -----------------------------------------------------------------------------------------------------------------


def read_weight(node: Node) -> Weight | None:
    """The block-scaled weight that a value is; None if it is something else."""
    views: list[Node] = []
    while node.op.name in VIEWS_AND_CASTS and len(views) < MOST_STEPS and node.dtype in FLOATS:
        views.append(node)
        (node,) = node.inputs
    if node.op.name != "mul" or not node.tensor.is_static:
        return None
    for values, factor in (node.inputs, node.inputs[::-1]):
        weight = _scaled(values, factor, node)
        if weight is not None:
            break
    else:
        return None
    for view in reversed(views):
        changed = _seen_through(weight, view)
        if changed is None:
            return None
        weight = changed
    return weight


def _scaled(values: Node, factor: Node, product: Node) -> Weight | None:
    zero_node = None
    if values.op.name == "sub":
        values, zero_node = values.inputs
    found = _codes(values)
    if found is None or values.shape != product.shape:
        return None
    shape = sizes_of(product)
    scale = read_blocks(factor, shape)
    zero = None if zero_node is None else read_blocks(zero_node, shape)
    if scale is None or (zero_node is not None and zero is None):
        return None
    codes, dtype = found
    return Weight(codes, BITS[dtype.name], dtype.name.startswith("i"), scale, zero)


def _codes(node: Node) -> tuple[np.ndarray, DType] | None:
    """The constant behind a cast to floats, seen through views, and its dtype: see `Weight`."""
    steps: list[Node] = []
    while node.op.name in VIEWS_AND_CASTS and len(steps) < MOST_STEPS:
        steps.append(node)
        (node,) = node.inputs
    casts = [step for step in steps if step.op.name == "cast"]
    if node.op.name != "constant" or node.dtype.name not in BITS or not casts or any(c.dtype not in FLOATS for c in casts):
        return None
    bits = BITS[node.dtype.name]
    codes = np.asarray(node.attributes["value"]).view(np.uint8)
    if bits < 8:  # what stands above them in the byte is not theirs
        codes = codes & np.uint8((1 << bits) - 1)
    if node.dtype.name.startswith("i"):
        codes = codes ^ np.uint8(1 << (bits - 1))
    return _seen(codes, steps), node.dtype


def _seen(value: np.ndarray, steps: Sequence[Node]) -> np.ndarray:
    """A value through the views among these nodes, the last one first."""
    for step in reversed(steps):
        if step.op.name != "cast":
            assert step.op.evaluate is not None
            value = step.op.evaluate([value], step.attributes)
    return value


def read_blocks(node: Node, shape: tuple[int, ...]) -> Blocks | None:
    """What of a scale or zero point lies at each place of `shape`; None for what is not known, or not the same over blocks."""
    while node.op.name == "cast" and node.dtype in FLOATS:
        (node,) = node.inputs
    if node.op.name == "index" and len(node.attributes["axes"]) == 1:
        numbers, places = _value(node.inputs[0]), _value(node.inputs[1])
        (axis,) = node.attributes["axes"]
        if numbers is None or places is None or places.ndim != 1 or node.shape != shape or not numbers.shape[axis]:
            return None
        each, rest = divmod(shape[axis], numbers.shape[axis])
        if rest or not np.array_equal(places, np.arange(shape[axis]) // max(each, 1)):
            return None
        return Blocks(numbers, shape)
    if node.op.name == "expand":
        (node,) = node.inputs
    numbers = _value(node)
    if numbers is None or numbers.ndim > len(shape):
        return None
    return Blocks(numbers.reshape((1,) * (len(shape) - numbers.ndim) + numbers.shape), shape)


def _value(node: Node) -> np.ndarray | None:
    """A constant, seen through views and casts to floats."""
    steps: list[Node] = []
    while node.op.name in VIEWS_AND_CASTS and len(steps) < MOST_STEPS:
        steps.append(node)
        (node,) = node.inputs
    if node.op.name != "constant" or any(step.op.name == "cast" and step.dtype not in FLOATS for step in steps):
        return None
    return _seen(np.asarray(node.attributes["value"]), steps)


def _permuted(weight: Weight, dims: tuple[int, ...]) -> Weight:
    zero = None if weight.zero is None else weight.zero.permuted(dims)
    return weight._replace(codes=weight.codes.transpose(dims), scale=weight.scale.permuted(dims), zero=zero)


def _seen_through(weight: Weight, view: Node) -> Weight | None:
    if view.op.name == "cast":
        return weight
    if view.op.name == "permute":
        return _permuted(weight, view.attributes["dims"])
    shape = sizes_of(view)
    scale = weight.scale.reshaped(shape)
    zero = None if weight.zero is None else weight.zero.reshaped(shape)
    if scale is None or (weight.zero is not None and zero is None):
        return None
    return weight._replace(codes=weight.codes.reshape(shape), scale=scale, zero=zero)
