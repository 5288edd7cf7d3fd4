"""Contractions in the form that libraries run best: `linear` with its bias, no reshapes around.

%1 = matmul(%x, %w); %2 = add(%1, %b)  -->  %1 = permute(%w){dims=(1, 0)}; %2 = linear(%x, %1, %b)
"""

from __future__ import annotations

from dlcompiler.ir.expression import Dim
from dlcompiler.ir.graph import Node
from dlcompiler.passes.aliasing import owner
from dlcompiler.passes.rewrite import GraphRewriter, rule


def is_weight(node: Node) -> bool:
    """Whether a value is a parameter: a constant or an argument, not something computed."""
    return owner(node).op.name in ("constant", "input")


def transposed(b: GraphRewriter, matrix: Node) -> Node:
    """A matrix with its two dimensions exchanged; what a transpose transposed if it is one."""
    return matrix.inputs[0] if is_transpose(matrix) else b.permute(matrix, dims=(1, 0))


def is_transpose(node: Node) -> bool:
    return node.op.name == "permute" and tuple(node.attributes["dims"]) == (1, 0)


@rule("matmul-linear", "matmul", exact=True)
def matmul_linear(b: GraphRewriter, node: Node) -> Node | None:
    """matmul(x, w) of floats with one matrix w for all of x, a parameter or of lower rank --> linear(x, permute(w))"""
    x, w = node.inputs
    if not node.dtype.is_float or w.tensor.rank != 2 or (x.tensor.rank == 2 and not is_weight(w)):
        return None
    return b.linear(x, transposed(b, w))


@rule("linear-bias", "add", exact=False)
def linear_bias(b: GraphRewriter, node: Node) -> Node | None:
    """linear(x, w) + bias, or matmul(x, w) + bias, read here only --> linear(x, w, bias)"""
    for product, bias in (node.inputs, node.inputs[::-1]):
        if product.type != node.type or not b.is_used_once(product):
            continue
        is_matrix = product.op.name == "matmul" and product.inputs[1].tensor.rank == 2 and node.dtype.is_float
        if not is_matrix and not (product.op.name == "linear" and len(product.inputs) == 2):
            continue
        length = node.shape[-1]
        if bias.tensor.rank >= 1 and bias.shape[-1] == length and all(size == 1 for size in bias.shape[:-1]):
            x, w = product.inputs
            w = transposed(b, w) if is_matrix else w
            return b.linear(x, w, bias if bias.tensor.rank == 1 else b.reshape(bias, shape=(length,)))
    return None


@rule("reshape-linear-reshape", "reshape", exact=True)
def reshape_linear_reshape(b: GraphRewriter, node: Node) -> Node | None:
    """reshape(linear(reshape(x), w)) with the leading dimensions of x again --> linear(x, w)"""
    (product,) = node.inputs
    if product.op.name != "linear" or not b.is_used_once(product) or product.inputs[0].op.name != "reshape":
        return None
    source = product.inputs[0].inputs[0]
    if not source.shape or source.shape[-1] != product.inputs[1].shape[1]:
        return None
    if node.shape != (*source.shape[:-1], product.shape[-1]):
        return None
    return b.linear(source, *product.inputs[1:])


@rule("reshape-matmul-reshape", "reshape", exact=True)
def reshape_matmul_reshape(b: GraphRewriter, node: Node) -> Node | None:
    """reshape(matmul(reshape(x), y)) with the leading dimensions of x again --> matmul(x, reshape(y))"""
    (product,) = node.inputs
    if product.op.name != "matmul" or product.tensor.rank != 3 or not b.is_used_once(product):
        return None
    lead, batch = node.shape[:-2], product.shape[:-2]
    if node.shape[-2:] != product.shape[-2:] or any(i.shape[:-2] != batch for i in product.inputs):
        return None
    if not any(i.op.name == "reshape" and i.inputs[0].shape == (*lead, *i.shape[-2:]) for i in product.inputs):
        return None
    return b.matmul(*(_reshaped(b, i, (*lead, *i.shape[-2:])) for i in product.inputs))


def _reshaped(b: GraphRewriter, x: Node, shape: tuple[Dim, ...]) -> Node:
    """`x` in another shape; what it was reshaped from if that has the shape."""
    source = x.inputs[0] if x.op.name == "reshape" else x
    return source if source.shape == shape else b.reshape(source, shape=shape)


@rule("convolution-bias", "add", exact=False)
def convolution_bias(b: GraphRewriter, node: Node) -> Node | None:
    """convolution(x, w) + bias, one number for each channel, read here only --> convolution(x, w, bias)"""
    for product, bias in (node.inputs, node.inputs[::-1]):
        if (
            product.op.name == "convolution"
            and product.type == node.type
            and len(product.inputs) == 2
            and b.is_used_once(product)
        ):
            values = per_channel(b, bias, product)
            if values is not None:
                return b.convolution(*product.inputs, values, **product.attributes)
    return None


def per_channel(b: GraphRewriter, value: Node, product: Node) -> Node | None:
    """`value`, broadcast over a convolution's result as [C, 1, 1...], as [C]; None if it is of another shape."""
    rank, channels = product.tensor.rank, product.shape[1]
    shape = (1,) * (rank - value.tensor.rank) + value.shape
    if len(shape) != rank or shape[1] != channels or any(size != 1 for d, size in enumerate(shape) if d != 1):
        return None
    return b.reshape(value, shape=(channels,))


@rule("pad-convolution", "convolution", exact=True)
def pad_convolution(b: GraphRewriter, node: Node) -> Node | None:
    """convolution(pad(x)), zeros equally on both sides of spatial dimensions --> convolution(x) with that much more padding"""
    x = node.inputs[0]
    if node.attributes["transposed"] or x.op.name != "pad" or x.attributes["value"] != 0:
        return None
    low, high = x.attributes["low"], x.attributes["high"]
    if low != high or any(low[:2]) or not all(isinstance(p, int) for p in low):
        return None
    padding = tuple(p + more for p, more in zip(node.attributes["padding"], low[2:]))
    return b.convolution(x.inputs[0], *node.inputs[1:], **{**node.attributes, "padding": padding})


RULES = (matmul_linear, linear_bias, reshape_linear_reshape, reshape_matmul_reshape, convolution_bias, pad_convolution)
