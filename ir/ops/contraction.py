"""Sums of products: `matmul`, `linear`, `convolution`, and `attention`, which is made of two.

Each has an element form or an expansion, so that any target can make a kernel of it; a target's library may claim it first.
"""

from __future__ import annotations

import numpy as np
from dlcompiler.ir.errors import ShapeError
from dlcompiler.ir.expression import Dim, floor_div, modulo
from dlcompiler.ir.ops import Trait, register
from dlcompiler.ir.ops.rules import broadcast_shapes, require_float, require_numbers, require_operands, same_dtype
from dlcompiler.ir.types import TensorType, boolean, compute_dtype


def _wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32) if x.dtype.name in ("float16", "bfloat16") else x


def factor(builder, node, position, index):
    """An element of an operand as it is multiplied: rounded to the operand's dtype, as what is stored would be."""
    value = builder.operand(node, position, index)
    return builder.cast(builder.cast(value, node.inputs[position].dtype), value.dtype)


# -- matmul, linear --------------------------------------------------------------------------------------------------------


def _infer_matmul(types, attributes):
    """`[..., M, K] @ [..., K, N]`, the leading dimensions broadcast. Both operands have rank 2 or more."""
    require_operands("matmul", types, 2)
    a, b = types
    dtype = require_numbers("matmul", same_dtype("matmul", types))
    if a.rank < 2 or b.rank < 2 or a.shape[-1] != b.shape[-2]:
        raise ShapeError(f"matmul of {a} and {b}: the inner dimensions differ or an operand has rank below 2")
    return TensorType(dtype, (*broadcast_shapes([a.shape[:-2], b.shape[:-2]]), a.shape[-2], b.shape[-1]))


def _matmul_element(builder, node, index):
    a, b = node.inputs
    *batch, row, column = index

    def body(position):
        (k,) = position
        left = factor(builder, node, 0, (*batch[len(batch) - (a.tensor.rank - 2) :], row, k))
        right = factor(builder, node, 1, (*batch[len(batch) - (b.tensor.rank - 2) :], k, column))
        return builder.compute("mul", left, right)

    return builder.reduce("add", [a.shape[-1]], index, body)


register(
    "matmul",
    _infer_matmul,
    Trait.CONTRACTION,
    evaluate=lambda operands, attributes: np.matmul(_wide(operands[0]), _wide(operands[1])).astype(operands[0].dtype),
    element=_matmul_element,
)


def _infer_linear(types, attributes):
    """`x[..., K] @ weight[N, K].T (+ bias[N])`."""
    require_operands("linear", types, 2, 3)
    x, weight = types[:2]
    dtype = require_numbers("linear", same_dtype("linear", types))
    if weight.rank != 2 or x.rank < 1 or x.shape[-1] != weight.shape[1] or any(t.shape != (weight.shape[0],) for t in types[2:]):
        raise ShapeError(f"linear of {', '.join(map(str, types))}: sizes do not fit")
    return TensorType(dtype, (*x.shape[:-1], weight.shape[0]))


def _evaluate_linear(operands, attributes):
    x, weight, *bias = map(_wide, operands)
    result = x @ weight.T
    return (result + bias[0] if bias else result).astype(operands[0].dtype)


def _linear_element(builder, node, index):
    *batch, column = index

    def body(position):
        (k,) = position
        return builder.compute("mul", factor(builder, node, 0, (*batch, k)), factor(builder, node, 1, (column, k)))

    value = builder.reduce("add", [node.inputs[1].shape[1]], index, body)
    return builder.compute("add", value, builder.operand(node, 2, (column,))) if len(node.inputs) == 3 else value


register("linear", _infer_linear, Trait.CONTRACTION, evaluate=_evaluate_linear, element=_linear_element)

# -- convolution -----------------------------------------------------------------------------------------------------------


def convolution_size(size: Dim, kernel: Dim, stride: int, pad: int, dilation: int) -> Dim:
    return floor_div(size + 2 * pad - dilation * (kernel - 1) - 1, stride) + 1


def _infer_convolution(types, attributes):
    """`convolution(x[N, C, ...], weight[O, C/groups, ...], bias[O]?)`.

    attributes, one number for each spatial dimension: strides, padding, dilations, output_padding; groups; transposed, where
    the weight is [C, O/groups, ...].
    """
    require_operands("convolution", types, 2, 3)
    x, weight = types[:2]
    dtype = require_numbers("convolution", same_dtype("convolution", types))
    spatial, groups, transposed = x.rank - 2, attributes["groups"], attributes["transposed"]
    if weight.rank != x.rank or spatial < 1:
        raise ShapeError(f"convolution of {x} with weight {weight}: the ranks do not fit")
    numbers = ("strides", "padding", "dilations", *(("output_padding",) if transposed else ()))
    if any(len(attributes[k]) != spatial for k in numbers) or min(*attributes["strides"], *attributes["dilations"], groups) < 1:
        raise ShapeError(f"convolution of {x} needs {spatial} numbers each of {', '.join(numbers)}, and positive ones")
    channels_in = weight.shape[0] if transposed else weight.shape[1] * groups
    channels_out = weight.shape[1] * groups if transposed else weight.shape[0]
    if x.shape[1] != channels_in or modulo(channels_out, groups) != 0 or any(t.shape != (channels_out,) for t in types[2:]):
        raise ShapeError(f"convolution of {', '.join(map(str, types))} in {groups} groups: the channels do not fit")
    shape: list[Dim] = [x.shape[0], channels_out]
    for d in range(spatial):
        size, kernel = x.shape[2 + d], weight.shape[2 + d]
        stride, pad, dilation = (attributes[k][d] for k in ("strides", "padding", "dilations"))
        if transposed:
            out = (size - 1) * stride - 2 * pad + dilation * (kernel - 1) + attributes["output_padding"][d] + 1
        else:
            out = convolution_size(size, kernel, stride, pad, dilation)
        if isinstance(out, int) and out < (0 if transposed else 1):
            raise ShapeError(f"the kernel of {weight} does not fit {x} with padding {pad}")
        shape.append(out)
    return TensorType(dtype, tuple(shape))


def _evaluate_convolution(operands, attributes):
    x, weight, *bias = map(_wide, operands)
    evaluate = _evaluate_transposed if attributes["transposed"] else _evaluate_plain
    result = evaluate(x, weight, attributes)
    if bias:
        result = result + bias[0].reshape(-1, *(1,) * (x.ndim - 2))
    return result.astype(operands[0].dtype)


def _evaluate_plain(x, weight, attributes):
    spatial, groups = x.ndim - 2, attributes["groups"]
    x = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in attributes["padding"])])
    kernel = weight.shape[2:]
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, attributes["dilations"])]
    windows = np.lib.stride_tricks.sliding_window_view(x, spans, axis=tuple(range(2, x.ndim)))
    windows = windows[
        (
            slice(None),
            slice(None),
            *(slice(None, None, s) for s in attributes["strides"]),
            *(slice(None, None, d) for d in attributes["dilations"]),
        )
    ]
    n, _, *out = windows.shape[: 2 + spatial]
    windows = windows.reshape(n, groups, x.shape[1] // groups, *out, *kernel)
    weight = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    letters = "xyz"[:spatial]
    taps = "uvw"[:spatial]
    result = np.einsum(f"ngc{letters}{taps},goc{taps}->ngo{letters}", windows, weight, optimize=True)
    return result.reshape(n, groups * weight.shape[1], *out)


def _evaluate_transposed(x, weight, attributes):
    """Scatter: every input element adds its multiple of the kernel to the (larger) output."""
    groups, strides, padding, dilations = (attributes[k] for k in ("groups", "strides", "padding", "dilations"))
    n, _, *size = x.shape
    kernel = weight.shape[2:]
    full = [
        (s - 1) * st + d * (k - 1) + 1 + extra
        for s, st, d, k, extra in zip(size, strides, dilations, kernel, attributes["output_padding"])
    ]
    result = np.zeros((n, groups, weight.shape[1], *full), dtype=x.dtype)
    grouped = x.reshape(n, groups, x.shape[1] // groups, *size)
    weight = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    for tap in np.ndindex(*kernel):
        at = tuple(slice(t * d, t * d + (s - 1) * st + 1, st) for t, d, s, st in zip(tap, dilations, size, strides))
        result[(slice(None), slice(None), slice(None), *at)] += np.einsum("ngc...,gco->ngo...", grouped, weight[(..., *tap)])
    result = result.reshape(n, groups * weight.shape[2], *full)
    return result[(slice(None), slice(None), *(slice(p, f - p) for p, f in zip(padding, full)))]


def _convolution_element(builder, node, index):
    x, weight = node.inputs[:2]
    batch, channel, *at = index
    attributes = node.attributes
    groups, transposed = attributes["groups"], attributes["transposed"]
    per_group_in = floor_div(x.shape[1], groups)
    per_group_out = floor_div(node.shape[1], groups)
    group = builder.div(channel, per_group_out)

    def body(position):
        c, *taps = position
        in_channel = group * per_group_in + c
        source: list[Dim] = []
        bounds: list[tuple[Dim, Dim]] = []
        for d, tap in enumerate(taps):
            stride, pad, dilation = (attributes[k][d] for k in ("strides", "padding", "dilations"))
            if transposed:
                shifted = at[d] + pad - tap * dilation
                place = builder.div(shifted, stride)
                if stride != 1:
                    bounds.append((builder.mod(shifted, stride), 1))
            else:
                place = at[d] * stride + tap * dilation - pad
            source.append(place)
            bounds.append((place, x.shape[2 + d]))
        where_weight = (in_channel, builder.mod(channel, per_group_out)) if transposed else (channel, c)
        zero = builder.constant(0, compute_dtype(node.dtype))
        element = builder.select_within(bounds, lambda: factor(builder, node, 0, (batch, in_channel, *source)), lambda: zero)
        return builder.compute("mul", element, factor(builder, node, 1, (*where_weight, *taps)))

    value = builder.reduce("add", [per_group_in, *weight.shape[2:]], index, body)
    return builder.compute("add", value, builder.operand(node, 2, (channel,))) if len(node.inputs) == 3 else value


register("convolution", _infer_convolution, Trait.CONTRACTION, evaluate=_evaluate_convolution, element=_convolution_element)

# -- attention -------------------------------------------------------------------------------------------------------------


def _infer_attention(types, attributes):
    """`softmax(scale * q @ k.T + mask) @ v`: q[..., L, E], k[..., S, E], v[..., S, F], mask broadcast to [..., L, S].

    attributes: scale (a float), causal (position s is seen from l if s <= l). A bool mask keeps where true.
    """
    require_operands("attention", types, 3, 4)
    q, k, v = types[:3]
    dtype = require_float("attention", same_dtype("attention", types[:3]))
    if min(q.rank, k.rank, v.rank) < 3 or q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise ShapeError(f"attention of {q}, {k}, {v}: sizes do not fit")
    lead = broadcast_shapes([q.shape[:-2], k.shape[:-2], v.shape[:-2]])
    scores = (*lead, q.shape[-2], k.shape[-2])
    if len(types) == 4 and broadcast_shapes([scores, types[3].shape]) != scores:
        raise ShapeError(f"attention mask {types[3]} does not broadcast to the scores {list(scores)}")
    if len(types) == 4 and types[3].dtype is not boolean:
        require_float("attention mask", types[3].dtype)
    return TensorType(dtype, (*lead, q.shape[-2], v.shape[-1]))


def _expand_attention(b, operands, attributes):
    q, k, v, *mask = operands
    dtype = q.dtype
    rank = k.tensor.rank
    scores = b.matmul(b.mul(q, attributes["scale"]), b.permute(k, dims=(*range(rank - 2), rank - 1, rank - 2)))
    length, seen = scores.shape[-2:]
    if mask and mask[0].dtype.name == "bool":
        scores = b.where(mask[0], scores, b.constant(-np.inf, dtype))
    elif mask:
        scores = b.add(scores, b.cast(mask[0], dtype=dtype.name))
    if attributes["causal"]:
        row = b.reshape(b.iota(size=length), shape=(length, 1))
        scores = b.where(b.le(b.iota(size=seen), row), scores, b.constant(-np.inf, dtype))
    weights = b.softmax(scores, axis=scores.tensor.rank - 1)
    if mask or attributes["causal"]:
        # a row that sees nothing gives zeros, as torch's kernels do
        visible = b.reduce_any(b.ne(scores, b.constant(-np.inf, dtype)), axes=(scores.tensor.rank - 1,), keepdims=True)
        weights = b.where(visible, weights, b.constant(0, dtype))
    return b.matmul(weights, v)


register("attention", _infer_attention, Trait.CONTRACTION, Trait.COMPOSITE, expand=_expand_attention)
