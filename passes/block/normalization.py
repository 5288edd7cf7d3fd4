"""Scales and shifts folded into the constant weights before them, as batch normalisation leaves behind.

    %1 = convolution(%x, %w, %b); %2 = mul(%1, %s); %3 = add(%2, %t)  -->  %3 = convolution(%x, %w', %b')

Only where weight, scale and shift are constants, and the weight is read here alone: a scaled copy beside the weight would make
the model larger. Rounding differs, so none of these is exact.
"""

from __future__ import annotations

import numpy as np
from dlcompiler.ir.expression import known
from dlcompiler.ir.graph import Node
from dlcompiler.passes.rewrite import GraphRewriter, rule


def _constant(node: Node) -> np.ndarray | None:
    return node.attributes["value"] if node.op.name == "constant" else None


def _product_and_factor(b: GraphRewriter, node: Node, op: str) -> tuple[Node, np.ndarray] | None:
    """The contraction `op` with constant weights that one operand of `node` is, read here only, and the constant other one."""
    for product, other in (node.inputs, node.inputs[::-1]):
        factor = _constant(other)
        if product.op.name != op or factor is None or product.type != node.type or not b.is_used_once(product):
            continue
        weight, *bias = product.inputs[1:]
        if _constant(weight) is not None and b.is_used_once(weight) and all(_constant(i) is not None for i in bias):
            values = _by_channel(factor, product)
            if values is not None:
                return product, values
    return None


def _by_channel(values: np.ndarray, product: Node) -> np.ndarray | None:
    """Numbers that broadcast over a result along its channels only, as [channels]; None for any other shape."""
    rank, axis = product.tensor.rank, 1 if product.op.name == "convolution" else product.tensor.rank - 1
    channels = product.inputs[1].shape[0] if product.op.name == "linear" else product.shape[1]
    shape = (1,) * (rank - values.ndim) + values.shape
    if any(size != 1 for d, size in enumerate(shape) if d != axis) or shape[axis] not in (1, channels):
        return None
    return np.broadcast_to(values.reshape(-1), (known(channels),))


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype.itemsize == 2 else array


def _times(weight: np.ndarray, factor: np.ndarray) -> np.ndarray:
    return (_wide(weight) * _wide(factor)).astype(weight.dtype)


def _scaled(b: GraphRewriter, product: Node, factor: np.ndarray, scaled_weight: np.ndarray) -> Node:
    bias = product.inputs[2:]
    weight = b.constant(scaled_weight, name=product.inputs[1].name)
    new_bias = [b.constant(_times(i.attributes["value"], factor), name=i.name) for i in bias]
    return b(product.op.name, product.inputs[0], weight, *new_bias, **product.attributes)


@rule("scale-convolution", "mul", exact=False)
def scale_convolution(b: GraphRewriter, node: Node) -> Node | None:
    """convolution(x, W, B) * S, one S for each channel --> convolution(x, W * S, B * S)"""
    found = _product_and_factor(b, node, "convolution")
    if found is None:
        return None
    product, factor = found
    weight = product.inputs[1].attributes["value"]
    taps = (1,) * (weight.ndim - 2)
    if not product.attributes["transposed"]:
        scaled = _times(weight, factor.reshape(-1, 1, *taps))
    else:
        groups = product.attributes["groups"]
        grouped = weight.reshape(groups, -1, *weight.shape[1:])
        scaled = _times(grouped, factor.reshape(groups, 1, -1, *taps)).reshape(weight.shape)
    return _scaled(b, product, factor, scaled)


@rule("scale-linear", "mul", exact=False)
def scale_linear(b: GraphRewriter, node: Node) -> Node | None:
    """linear(x, W, B) * S, one S for each column --> linear(x, W * S, B * S)"""
    found = _product_and_factor(b, node, "linear")
    if found is None:
        return None
    product, factor = found
    return _scaled(b, product, factor, _times(product.inputs[1].attributes["value"], factor.reshape(-1, 1)))


@rule("shift-product", "add", "sub", exact=False)
def shift_product(b: GraphRewriter, node: Node) -> Node | None:
    """convolution(x, W, B) + T or linear(x, W, B) + T --> the same with B + T; with -, B - T"""
    for op in ("convolution", "linear"):
        found = _product_and_factor(b, node, op)
        if found is None or (node.op.name == "sub" and node.inputs[0].op.name != op):
            continue
        product, shift = found
        shift = -_wide(shift) if node.op.name == "sub" else _wide(shift)
        bias = product.inputs[2:]
        total = shift if not bias else _wide(bias[0].attributes["value"]) + shift
        value = b.constant(np.ascontiguousarray(total, dtype=product.dtype.numpy), name=bias[0].name if bias else "c")
        return b(op, *product.inputs[:2], value, **product.attributes)
    return None


RULES = (scale_convolution, scale_linear, shift_product)
