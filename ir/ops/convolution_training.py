"""The gradient of a convolution's weight.

    dw[o, c, k...] = sum over n and places p of dy[n, o, p...] * x[n, c, p * stride + k * dilation - padding...]

Where a target computes sums of products in tiles of any form, it is one: rows are o, columns c and taps, and the sum runs over
places. Written out it is a convolution of x with dy as its kernel, in which the batch is what is summed over.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from dlcompiler.ir.errors import ShapeError
from dlcompiler.ir.expression import Dim, floor_div
from dlcompiler.ir.ops import Trait, register
from dlcompiler.ir.ops.contraction import convolution_size, factor
from dlcompiler.ir.ops.rules import require_float, require_operands, same_dtype
from dlcompiler.ir.types import TensorType, compute_dtype, dtype_of


def _infer(types, attributes):
    """`convolution_weight(x[N, C, ...], dy[N, O, ...])`: [O, C/groups, taps...].

    attributes: taps, and as of the convolution strides, padding and dilations, one number for each spatial dimension; groups.
    dy has the sizes that the convolution gives.
    """
    require_operands("convolution_weight", types, 2)
    x, dy = types
    dtype = require_float("convolution_weight", same_dtype("convolution_weight", types))
    spatial, groups = x.rank - 2, attributes["groups"]
    numbers = [attributes[name] for name in ("taps", "strides", "padding", "dilations")]
    if dy.rank != x.rank or spatial < 1 or any(len(given) != spatial for given in numbers):
        raise ShapeError(f"the weight's gradient of a convolution of {x} to {dy} needs {spatial} numbers for each attribute")
    sizes = tuple(convolution_size(size, *given) for size, *given in zip(x.shape[2:], numbers[0], *numbers[1:]))
    channels = [t.shape[1] for t in types]
    if dy.shape != (x.shape[0], channels[1], *sizes) or any(isinstance(c, int) and c % groups for c in channels):
        raise ShapeError(f"{dy} is not what a convolution of {x} in {groups} groups gives: {(x.shape[0], channels[1], *sizes)}")
    return TensorType(dtype, (channels[1], channels[0] // groups, *attributes["taps"]))


def _evaluate(operands, attributes):
    x, dy = operands
    wide = compute_dtype(dtype_of(dy)).numpy
    groups, spatial = attributes["groups"], x.ndim - 2
    x = np.pad(x.astype(wide), [(0, 0), (0, 0), *((p, p) for p in attributes["padding"])])
    x = x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    grouped = dy.astype(wide).reshape(dy.shape[0], groups, dy.shape[1] // groups, *dy.shape[2:])
    result = np.zeros((dy.shape[1], x.shape[2], *attributes["taps"]), wide)
    letters = "xyz"[:spatial]
    for tap in itertools.product(*map(range, attributes["taps"])):
        firsts = [k * d for k, d in zip(tap, attributes["dilations"])]
        seen: tuple[Any, ...] = tuple(
            slice(f, f + s * (n - 1) + 1, s) for f, s, n in zip(firsts, attributes["strides"], dy.shape[2:])
        )
        products = np.einsum(f"ngc{letters},ngo{letters}->goc", x[(..., *seen)], grouped)
        place: tuple[Any, ...] = (slice(None), slice(None), *tap)
        result[place] = products.reshape(result.shape[:2])
    return result.astype(dy.dtype)


def _element(builder, node, index):
    x, dy = node.inputs
    channel_out, channel, *taps = index
    numbers = [node.attributes[name] for name in ("strides", "dilations", "padding")]
    group = builder.div(channel_out, floor_div(dy.shape[1], node.attributes["groups"]))
    channel_in = group * node.shape[1] + channel
    zero = builder.constant(0, compute_dtype(node.dtype))

    def body(position):
        image, *at = position
        places: list[Dim] = [p * s + k * d - pad for p, k, s, d, pad in zip(at, taps, *numbers)]
        bounds = list(zip(places, x.shape[2:]))
        seen = builder.select_within(bounds, lambda: factor(builder, node, 0, (image, channel_in, *places)), lambda: zero)
        return builder.compute("mul", seen, factor(builder, node, 1, (image, channel_out, *at)))

    return builder.reduce("add", [dy.shape[0], *dy.shape[2:]], index, body)


def _expand(b, operands, attributes):
    """A convolution in which channels are the batch and the batch is the channels, each group's by themselves."""
    x, dy = operands
    groups, rank = attributes["groups"], x.tensor.rank
    images, channels, *size = x.shape
    if groups == 1:
        turned = b.permute(x, dims=(1, 0, *range(2, rank)))
    else:
        apart = b.reshape(x, shape=(images, groups, channels // groups, *size))
        turned = b.permute(apart, dims=(2, 1, 0, *range(3, rank + 1)))
        turned = b.reshape(turned, shape=(channels // groups, groups * images, *size))
    exchanged = (1, 0, *range(2, rank))
    sums = b.convolution(
        turned, b.permute(dy, dims=exchanged),
        strides=attributes["dilations"], dilations=attributes["strides"], padding=attributes["padding"],
        output_padding=(0,) * (rank - 2), groups=groups, transposed=False,
    )  # fmt: skip
    limits = (*sums.shape[:2], *attributes["taps"])
    if sums.shape != limits:  # the last pixels of an operand that no window reaches
        sums = b.slice(sums, starts=(0,) * rank, limits=limits, steps=(1,) * rank)
    return b.permute(sums, dims=exchanged)


register(
    "convolution_weight", _infer, Trait.CONTRACTION, Trait.COMPOSITE, evaluate=_evaluate, element=_element, expand=_expand
)  # fmt: skip
