"""Quantised sums of products as sums of integers.

    linear((f32(x) - zx) * sx, (f32(w) - zw) * sw)  -->  f32(linear(i32(x) - zx, i32(w) - zw)) * (sx * sw)
    linear(i32(x) - zx, w)                          -->  linear(i32(x), w) - zx * sum(w)

where x and w are bytes. What is left is a sum of products of bytes, which kernels of ours compute by instructions for these, and
sums of weights, which are prepared once. Convolutions and matrix products alike; torch's and ONNX's quantised graphs have this
form (ONNX's QLinear operators already without scales).

Integers are exact: the second line changes nothing. The first replaces a float32 sum of rounded products by the exact sum,
scaled: as near to the real value as float32 gets, but other last bits, so it fires only under numerics="fast". Sums that could
overflow 32 bits are left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from dlcompiler.ir.expression import product
from dlcompiler.ir.graph import Graph, Node
from dlcompiler.ir.types import f32, i8, i32, u8
from dlcompiler.passes.context import Context
from dlcompiler.passes.rewrite import GraphRewriter, RuleTable, apply_rules, rule

BYTES = (i8, u8)
# A product of two bytes less their zero points is 255 * 255 at the most: so many of them fit in 32 bits.
MOST_SUMMED = (2**31 - 1) // 255**2


class Quantized(NamedTuple):
    """(f32(bytes) - zero) * scale; `zero` and `scale` broadcast to the bytes' shape, None for 0 and 1."""

    bytes: Node
    zero: Node | None
    scale: Node | None


def read_quantized(b: GraphRewriter, node: Node) -> Quantized | None:
    """The bytes that a float32 or int32 value is made of, through transposes of it; None if it is something else."""
    if node.op.name == "permute":
        found = read_quantized(b, node.inputs[0])
        dims = node.attributes["dims"]
        return (
            None if found is None else Quantized(b.permute(found.bytes, dims=dims), *(_permuted(b, p, dims) for p in found[1:]))
        )
    if node.op.name == "mul" and node.dtype is f32:
        for values, scale in (node.inputs, node.inputs[::-1]):
            found = _shifted(values)
            if found is not None and found.bytes.shape == node.shape and scale.tensor.numel != node.tensor.numel:
                return Quantized(found.bytes, found.zero, scale)
        return None
    return _shifted(node)


def _permuted(b: GraphRewriter, parameter: Node | None, dims: tuple[int, ...]) -> Node | None:
    """A scale or zero point as it belongs to the transposed bytes."""
    if parameter is None or parameter.tensor.numel == 1:
        return parameter
    missing = len(dims) - parameter.tensor.rank
    return b.permute(b.reshape(parameter, shape=((1,) * missing + parameter.shape)), dims=dims)


def _shifted(node: Node) -> Quantized | None:
    if node.op.name == "sub":
        values, zero = node.inputs
        found = _shifted(values)
        if found is None or found.zero is not None or found.bytes.shape != node.shape or not _is_whole(zero):
            return None
        return Quantized(found.bytes, None if _is_zero(zero) else zero, None)
    if node.op.name == "cast" and node.dtype in (f32, i32) and node.inputs[0].dtype in BYTES:
        return Quantized(node.inputs[0], None, None)
    return None


def _is_zero(zero: Node) -> bool:
    return zero.op.name == "constant" and not np.any(zero.attributes["value"])


def _is_whole(zero: Node) -> bool:
    """Whether a zero point is one of bytes: what a byte was before it was cast, or constants in the range of bytes."""
    if zero.op.name == "constant":
        value = np.asarray(zero.attributes["value"]).astype(np.float64)
        return bool(np.all((value == np.round(value)) & (np.abs(value) <= 255)))
    while zero.op.name in ("cast", "reshape", "expand"):
        if zero.dtype in BYTES:
            return True
        (zero,) = zero.inputs[:1]
    return zero.dtype in BYTES


@dataclass(frozen=True)
class Sum:
    """A sum of products: which dimensions of its two operands are summed, and which of the second are columns of the result."""

    node: Node
    rows_summed: tuple[int, ...]
    columns_summed: tuple[int, ...]

    @property
    def length(self) -> int | None:
        """Positions summed, None if that is not known."""
        length = product(self.node.inputs[1].shape[d] for d in self.columns_summed)
        return length if isinstance(length, int) else None


def as_sum(node: Node) -> Sum:
    """What a linear, matmul or convolution sums over."""
    x, w = node.inputs[:2]
    match node.op.name:
        case "linear":
            return Sum(node, (x.tensor.rank - 1,), (1,))
        case "matmul":
            return Sum(node, (x.tensor.rank - 1,), (w.tensor.rank - 2,))
    return Sum(node, tuple(range(1, x.tensor.rank)), tuple(range(1, w.tensor.rank)))


def _is_same_along(parameter: Node | None, of: Node, dimensions: tuple[int, ...]) -> bool:
    """Whether a scale or zero point is the same for all positions along some dimensions of what it belongs to."""
    if parameter is None:
        return True
    missing = of.tensor.rank - parameter.tensor.rank
    return all(d < missing or parameter.shape[d - missing] == 1 for d in dimensions)


def _is_one(parameter: Node | None) -> bool:
    return parameter is None or parameter.tensor.numel == 1


def _sum_of(b: GraphRewriter, node: Node, x: Node, w: Node, **changed: tuple[int, ...]) -> Node:
    """The same sum, without bias, of other operands."""
    return b(node.op.name, x, w, **{**node.attributes, **changed})


def _whole(b: GraphRewriter, q: Quantized) -> Node:
    wide = b.cast(q.bytes, dtype="i32")
    if q.zero is None:
        return wide
    if q.zero.op.name == "constant":
        return b.sub(wide, b.constant(np.asarray(q.zero.attributes["value"]).astype(np.int32), i32))
    return b.sub(wide, b.cast(q.zero, dtype="i32"))


def _to_result(b: GraphRewriter, parameter: Node, node: Node, of: Node) -> Node:
    """A number for each column, which belongs to the second operand of a sum, in a shape that broadcasts over the result."""
    if parameter.tensor.numel == 1:
        return b.reshape(parameter, shape=())
    if node.op.name == "matmul":
        return parameter  # [..., 1, N] is already
    columns = of.shape[0]
    trailing = node.tensor.rank - 2 if node.op.name == "convolution" else 0
    return b.reshape(parameter, shape=(columns, *(1,) * trailing))


@rule("quantized-sum", "linear", "matmul", "convolution", exact=False)
def quantized_sum(b: GraphRewriter, node: Node) -> Node | None:
    """linear((f32(x) - zx) * sx, (f32(w) - zw) * sw, B) --> f32(linear(i32(x) - zx, i32(w) - zw)) * (sx * sw) + B"""
    if node.dtype is not f32 or node.attributes.get("transposed"):
        return None
    x, w = (read_quantized(b, operand) for operand in node.inputs[:2])
    if x is None or w is None:
        return None
    sums = as_sum(node)
    if sums.length is None or sums.length > MOST_SUMMED:
        return None
    if not _is_one(x.zero) or not all(_is_same_along(p, w.bytes, sums.columns_summed) for p in (w.zero, w.scale)):
        return None
    if node.op.name == "convolution" and not _is_one(x.scale) or not _is_same_along(x.scale, x.bytes, sums.rows_summed):
        return None
    total = b.cast(_sum_of(b, node, _whole(b, x), _whole(b, w)), dtype="f32")
    scales = [s for s in (x.scale, None if w.scale is None else _to_result(b, w.scale, node, w.bytes)) if s is not None]
    for scale in scales[:1] if len(scales) == 1 else [b.mul(*scales)] if _fits(scales) else scales:
        total = b.mul(total, scale)
    if len(node.inputs) == 3:
        total = b.add(total, _to_result(b, node.inputs[2], node, w.bytes))
    return total


def _fits(scales: list[Node]) -> bool:
    """Whether the product of two scales is no larger than one of them."""
    return any(scale.tensor.numel == 1 for scale in scales)


@rule("zero-of-rows", "linear", "matmul", "convolution", exact=True)
def zero_of_rows(b: GraphRewriter, node: Node) -> Node | None:
    """linear(i32(x) - z, W) of bytes x --> linear(i32(x), W) - z * sum(W)

    Of a convolution with padding, x is padded with z where that is known, else W is summed over what is no padding.
    """
    x = _integers(node, 0)
    if x is None or x.zero is None or not _is_one(x.zero) or node.attributes.get("transposed"):
        return None
    zero, wide = b.reshape(x.zero, shape=()), b.cast(x.bytes, dtype="i32")
    w, changed = node.inputs[1], {}
    if node.op.name == "convolution" and any(node.attributes["padding"]):
        value = _number(x.zero)
        if value is None:
            sums = _sums_inside(b, node)
            return None if sums is None else b.sub(_sum_of(b, node, wide, w), b.mul(zero, sums))
        pads = (0, 0, *node.attributes["padding"])
        wide = b.cast(b.pad(x.bytes, low=pads, high=pads, value=value), dtype="i32")
        changed = {"padding": (0,) * len(node.attributes["padding"])}
    total = _sum_of(b, node, wide, w, **changed)
    sums = b.reduce_sum(w, axes=as_sum(node).columns_summed, keepdims=node.op.name == "matmul")
    return b.sub(total, b.mul(zero, _to_result(b, sums, node, w)))


def _sums_inside(b: GraphRewriter, node: Node) -> Node | None:
    """For each result of a convolution in an image of known size the sum of the weights that do not lie on padding."""
    x, w = node.inputs
    if not all(isinstance(d, int) for d in (*x.shape[2:], *w.shape[2:])):
        return None
    spatial = x.tensor.rank - 2
    weights = b.reshape(b.reduce_sum(w, axes=(1,)), shape=(w.shape[0], *(1,) * spatial, *w.shape[2:]))
    ones = _windows(b, node, b.expand(b.constant(np.int32(1)), shape=(1, 1, *x.shape[2:])))
    return b.reduce_sum(b.mul(ones, weights), axes=tuple(range(2 + spatial, 2 + 2 * spatial)))


def _windows(b: GraphRewriter, node: Node, x: Node) -> Node:
    """x[N, C, sizes...] with zeros as padding, as what each result of a convolution reads: [N, C, results..., taps...]."""
    given, spatial = node.attributes, x.tensor.rank - 2
    pads = (0, 0, *given["padding"])
    padded = b.pad(x, low=pads, high=pads, value=0) if any(pads) else x
    axes, taps = tuple(range(2, 2 + spatial)), node.inputs[1].shape[2:]
    return b.window(padded, axes=axes, sizes=taps, strides=given["strides"], dilations=given["dilations"])


@rule("zero-of-columns", "linear", "matmul", "convolution", exact=True)
def zero_of_columns(b: GraphRewriter, node: Node) -> Node | None:
    """linear(X, i32(w) - z) of bytes w --> linear(X, i32(w)) - z * sum(X)

    Of a convolution X is summed over its windows, once for all columns.
    """
    w = _integers(node, 1)
    sums = as_sum(node)
    if w is None or w.zero is None or not _is_same_along(w.zero, w.bytes, sums.columns_summed) or _as_bytes(w) is not None:
        return None
    if not _has_cheap_windows(node):
        return None
    x = node.inputs[0]
    total = _sum_of(b, node, x, b.cast(w.bytes, dtype="i32"))
    if node.op.name == "convolution":
        windows = _windows(b, node, b.reduce_sum(x, axes=(1,), keepdims=True))
        rows = b.reduce_sum(windows, axes=tuple(range(x.tensor.rank, windows.tensor.rank)))
    else:
        rows = b.reduce_sum(x, axes=sums.rows_summed, keepdims=True)
    return b.sub(total, b.mul(rows, _to_result(b, w.zero, node, w.bytes)))


def _has_cheap_windows(node: Node) -> bool:
    """Whether the sums of what each result reads are little work beside the results: not for convolutions in groups."""
    if node.op.name != "convolution":
        return True
    is_sized = all(isinstance(d, int) for d in node.inputs[1].shape)
    return is_sized and node.attributes["groups"] == 1 and not node.attributes["transposed"]


@rule("signed-weights", "linear", "matmul", "convolution", exact=True)
def signed_weights(b: GraphRewriter, node: Node) -> Node | None:
    """linear(X, i32(w) - z), constants whose difference is a signed byte --> linear(X, i32(w - z))

    Small weights come as that difference already: an importer computes what is known.
    """
    w = _integers(node, 1)
    if w is None and node.dtype is i32 and len(node.inputs) == 2 and node.inputs[1].op.name == "constant":
        w = Quantized(node.inputs[1], None, None)
    value = None if w is None else _as_bytes(w)
    return None if value is None else _sum_of(b, node, node.inputs[0], b.cast(b.constant(value, i8), dtype="i32"))


@rule("unsigned-weights", "linear", "matmul", "convolution", exact=True)
def unsigned_weights(b: GraphRewriter, node: Node) -> Node | None:
    """linear(X, i32(w) - z) of constant unsigned bytes w --> linear(X, i32(w - 128 as a signed byte) - (z - 128))

    Products with signed weights are several times as fast, and `zero-of-columns` takes the zero point out of the sum. Small
    weights come as a difference of up to 255 here too.
    """
    w, middle = _integers(node, 1), 128
    if not _has_cheap_windows(node):
        return None
    if w is None and node.dtype is i32 and len(node.inputs) == 2 and node.inputs[1].op.name == "constant":
        w = Quantized(node.inputs[1], None, None)
        value = np.asarray(w.bytes.attributes["value"])
        if not value.size or value.min() < -255 or value.max() > min(255, value.min() + 255):
            return None
        middle = int(value.min()) + 128
    elif w is None or w.bytes.op.name != "constant" or w.bytes.dtype is not u8:
        return None
    if _as_bytes(w) is not None or (w.zero is not None and w.zero.op.name != "constant"):
        return None
    signed = (np.asarray(w.bytes.attributes["value"]).astype(np.int32) - middle).astype(np.int8)
    zero = np.int32(0) if w.zero is None else np.asarray(w.zero.attributes["value"]).astype(np.int32)
    shifted = b.sub(b.cast(b.constant(signed, i8), dtype="i32"), b.constant(zero - np.int32(middle), i32))
    return _sum_of(b, node, node.inputs[0], shifted)


def _integers(node: Node, position: int) -> Quantized | None:
    """The bytes less their zero point that an operand of an integer sum is."""
    operand = node.inputs[position]
    if node.dtype is not i32 or len(node.inputs) != 2:
        return None
    found = _shifted(operand)
    return found if found is not None and operand.dtype is i32 else None


def _as_bytes(w: Quantized) -> np.ndarray | None:
    """Constant weights less their zero point as signed bytes, if that is what they are."""
    if w.zero is None and w.bytes.dtype is i8:
        return None
    if w.bytes.op.name != "constant" or (w.zero is not None and w.zero.op.name != "constant"):
        return None
    value = np.asarray(w.bytes.attributes["value"]).astype(np.int32)
    value = value if w.zero is None else value - np.asarray(w.zero.attributes["value"]).astype(np.int32)
    return value.astype(np.int8) if value.size and -128 <= value.min() and value.max() <= 127 else None


def _number(zero: Node) -> int | None:
    return int(np.asarray(zero.attributes["value"]).reshape(-1)[0]) if zero.op.name == "constant" else None


@rule("bias-of-integers", "linear", "convolution", exact=True)
def bias_of_integers(b: GraphRewriter, node: Node) -> Node | None:
    """linear(X, W, B) of int32 --> linear(X, W) + B"""
    if node.dtype is not i32 or len(node.inputs) != 3:
        return None
    return b.add(_sum_of(b, node, *node.inputs[:2]), _to_result(b, node.inputs[2], node, node.inputs[1]))


@rule("signed-operands", "linear", "matmul", "convolution", exact=True)
def signed_operands(b: GraphRewriter, node: Node) -> Node | None:
    """linear(i32(x), W) of unsigned bytes x --> linear(i32(x ^ 128 as a signed byte), W) + 128 * sum(W)"""
    for position in (0, 1):
        found = _integers(node, position)
        if found is not None and found.zero is None and found.bytes.dtype is u8:
            return _with_signed(b, node, position, found.bytes)
    return None


def _with_signed(b: GraphRewriter, node: Node, position: int, unsigned: Node) -> Node | None:
    operands, changed = list(node.inputs), {}
    other, sums = operands[1 - position], as_sum(node)
    if node.op.name == "convolution":
        if position == 1 or node.attributes.get("transposed"):
            return None  # a sum over each window is as much work as the convolution
        if any(node.attributes["padding"]):
            pads = (0, 0, *node.attributes["padding"])
            unsigned = b.pad(unsigned, low=pads, high=pads, value=0)
            changed = {"padding": (0,) * len(node.attributes["padding"])}
    flipped = b.bitwise_xor(unsigned, b.constant(np.uint8(128)))
    operands[position] = b.cast(b.bitcast(flipped, dtype="i8"), dtype="i32")
    total = _sum_of(b, node, operands[0], operands[1], **changed)
    if position == 0:
        added = b.reduce_sum(other, axes=sums.columns_summed, keepdims=node.op.name == "matmul")
        added = _to_result(b, added, node, other)
    else:
        added = b.reduce_sum(other, axes=sums.rows_summed, keepdims=True)
    return b.add(total, b.mul(added, b.constant(np.int32(128))))


RULES = RuleTable((bias_of_integers, quantized_sum, signed_weights, unsigned_weights, zero_of_rows, zero_of_columns))
SIGNED_RULES = RuleTable((*RULES, signed_operands))


def sum_integers(graph: Graph, context: Context) -> Graph:
    """Quantised sums of products become sums of integers, for targets that compute those well."""
    if not context.target.tiles_sums:
        return graph
    return apply_rules(graph, RULES if context.target.multiplies_unsigned else SIGNED_RULES, context)
