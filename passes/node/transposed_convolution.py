"""Transposed convolutions as plain ones: every s-th element of the result, in each dimension, is a convolution of its own.

    convolution(x, W){transposed, strides=(s, s)}  -->  the s*s phases of the result as channels of one convolution(x, W'),
                                                        put next to each other again by a permutation; groups stay groups

With Y = y + padding = s*q + r the sum over i*s + t = Y is the sum over m of x[q - m] * W[r + s*m]: a plain convolution over q
with the taps r, r + s, ... of W in reverse (Shi et al., "Is the deconvolution layer the same as a convolutional layer?", 2016).
Where s does not divide the number of taps some of W' are zeros. Only where the target computes such sums itself: a library has
its own way with transposed ones.
"""

from __future__ import annotations

import math

from dlcompiler.ir.expression import product
from dlcompiler.ir.graph import Graph, Node
from dlcompiler.ir.ops import Trait
from dlcompiler.passes.context import Context
from dlcompiler.passes.fixed import is_fixed
from dlcompiler.passes.rewrite import GraphRewriter, RuleTable, apply_rules, rule

# Of the taps of W' so many may be zeros, or the library's way is less work.
MOST_ZEROS = 0.5
# Pixels in a batch from which W' is worth making in each call.
FEWEST_PIXELS = 64


@rule("transposed-convolution", "convolution", exact=False)
def transposed_convolution(b: GraphRewriter, node: Node) -> Node | None:
    """convolution(x, W, B){transposed} --> slice(reshape(permute(convolution(x, W', B'))))"""
    a = node.attributes
    x, weight, *bias = node.inputs
    if not a["transposed"] or set(a["dilations"]) != {1}:
        return None
    if not is_fixed(weight):
        pixels = product((x.shape[0], *x.shape[2:]))
        if not isinstance(pixels, int) or pixels < FEWEST_PIXELS:
            return None
    if not all(isinstance(size, int) for size in (*x.shape[1:], *node.shape[1:], *weight.shape)) or 0 in (*x.shape, *node.shape):
        return None
    strides, padding, taps, groups = a["strides"], a["padding"], weight.tensor.known_shape[2:], a["groups"]
    spatial = range(len(taps))
    each = [-(-k // s) for k, s in zip(taps, strides)]  # taps of one phase
    used = math.prod(taps) / math.prod(m * s for m, s in zip(each, strides))
    first = [p // s for p, s in zip(padding, strides)]  # the least q that is needed
    pad = [m - 1 - q for m, q in zip(each, first)]
    counts = [n + 2 * p - m + 1 for n, p, m in zip(x.shape[2:], pad, each)]
    starts = [p - q * s for p, q, s in zip(padding, first, strides)]
    reaches = all(start + out <= c * s for start, out, c, s in zip(starts, node.shape[2:], counts, strides))
    if used < MOST_ZEROS or min(pad) < 0 or not reaches:
        return None
    channels_in, channels = weight.shape[0] // groups, weight.shape[1]
    phases = math.prod(strides)
    high = (0, 0, *(m * s - k for m, s, k in zip(each, strides, taps)))
    whole = b.pad(weight, low=(0,) * len(high), high=high, value=0.0) if any(high) else weight
    # [groups, C, O, (taps of a phase, phase)...] --> [groups, phases..., O, C, taps of a phase...]
    pairs = tuple(size for pair in zip(each, strides) for size in pair)
    turned = b.flip(b.reshape(whole, shape=(groups, channels_in, channels, *pairs)), axes=tuple(3 + 2 * d for d in spatial))
    turned = b.permute(turned, dims=(0, *(4 + 2 * d for d in spatial), 2, 1, *(3 + 2 * d for d in spatial)))
    filters = groups * phases * channels
    repeated = [
        b.reshape(b.expand(b.reshape(values, shape=(groups, 1, channels)), shape=(groups, phases, channels)), shape=(filters,))
        for values in bias
    ]
    result = b.convolution(
        x, b.reshape(turned, shape=(filters, channels_in, *each)), *repeated, strides=(1,) * len(taps), padding=tuple(pad),
        dilations=(1,) * len(taps), groups=groups, transposed=False, output_padding=(0,) * len(taps),
    )  # fmt: skip
    batch, many = x.shape[0], len(taps)
    split = b.reshape(result, shape=(batch, groups, *strides, channels, *counts))
    order = (0, 1, 2 + many, *(d for pair in zip(range(3 + many, 3 + 2 * many), range(2, 2 + many)) for d in pair))
    shape = (batch, groups * channels, *(c * s for c, s in zip(counts, strides)))
    whole = b.reshape(b.permute(split, dims=order), shape=shape)
    limits = tuple(start + out for start, out in zip(starts, node.shape[2:]))
    return b.slice(whole, starts=(0, 0, *starts), limits=(batch, groups * channels, *limits), steps=(1,) * (2 + many))


@rule("transposed-convolution-of-points", "convolution", exact=False)
def transposed_convolution_of_points(b: GraphRewriter, node: Node) -> Node | None:
    """convolution(x[N, C, 1, 1], W, B){transposed} --> reshape(matmul(reshape(x), reshape(W))) + B"""
    a = node.attributes
    x, weight, *bias = node.inputs
    if not a["transposed"] or a["groups"] != 1 or any(size != 1 for size in x.shape[2:]) or node.shape[2:] != weight.shape[2:]:
        return None
    if any(a["padding"]) or any(a["output_padding"]) or set(a["dilations"]) != {1}:
        return None
    columns = product(weight.shape[1:])
    result = b.matmul(b.reshape(x, shape=x.shape[:2]), b.reshape(weight, shape=(weight.shape[0], columns)))
    result = b.reshape(result, shape=node.shape)
    ones = (1,) * (x.tensor.rank - 2)
    return b.add(result, b.reshape(bias[0], shape=(*bias[0].shape, *ones))) if bias else result


@rule("pointwise-before-shuffle", Trait.POINTWISE, exact=True)
def pointwise_before_shuffle(b: GraphRewriter, node: Node) -> Node | None:
    """relu(slice(reshape(permute(reshape(convolution(x, W)))))) --> slice(reshape(permute(reshape(relu(convolution(x, W))))))"""
    moved = [i for i in node.inputs if i.tensor.rank]
    if len(moved) != 1 or any(i.op.name != "constant" for i in node.inputs if i is not moved[0]):
        return None
    chain, value = [], moved[0]
    while value.op.name in ("slice", "reshape", "permute") and b.is_used_once(value):
        chain.append(value)
        value = value.inputs[0]
    shuffles = any(view.op.name == "permute" and view.tensor.rank > value.tensor.rank for view in chain)
    if not shuffles or value.op.name != "convolution" or not b.is_used_once(value):
        return None
    result = b(node.op.name, *(value if i is moved[0] else i for i in node.inputs), **node.attributes)
    for view in reversed(chain):
        result = b(view.op.name, result, **view.attributes)
    return result


RULES = RuleTable((transposed_convolution_of_points, transposed_convolution, pointwise_before_shuffle))


def split_transposed_convolutions(graph: Graph, context: Context) -> Graph:
    """Apply the rule above, for a target whose own kernels compute sums of products."""
    return apply_rules(graph, RULES, context) if context.target.tiles_sums else graph
