"""Transposed convolutions as plain ones: every s-th element of the result, in each dimension, is a convolution of its own.

    convolution(x, W){transposed, strides=(s, s)}  -->  the s*s phases of the result as channels of one convolution(x, W'),
                                                        put next to each other again by a permutation

With Y = y + padding = s*q + r the sum over i*s + t = Y is the sum over m of x[q - m] * W[r + s*m]: a plain convolution over q
with the taps r, r + s, ... of W in reverse (Shi et al., "Is the deconvolution layer the same as a convolutional layer?", 2016).
Where s does not divide the number of taps some of W' are zeros. Only where the target computes such sums itself: a library has
its own way with transposed ones.
"""

from __future__ import annotations

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
    spatial = x.tensor.rank - 2
    if not a["transposed"] or a["groups"] != 1 or set(a["dilations"]) != {1} or spatial != 2:
        return None
    if not is_fixed(weight) and not all(isinstance(size, int) for size in x.shape):
        return None
    if not is_fixed(weight) and product((x.shape[0], *x.shape[2:])) < FEWEST_PIXELS:
        return None
    if not all(isinstance(size, int) for size in (*x.shape[1:], *node.shape[1:], *weight.shape)) or 0 in (*x.shape, *node.shape):
        return None
    strides, padding, taps = a["strides"], a["padding"], weight.shape[2:]
    each = [-(-k // s) for k, s in zip(taps, strides)]  # taps of one phase
    used = taps[0] * taps[1] / (each[0] * strides[0] * each[1] * strides[1])
    first = [p // s for p, s in zip(padding, strides)]  # the least q that is needed
    pad = [m - 1 - q for m, q in zip(each, first)]
    counts = [n + 2 * p - m + 1 for n, p, m in zip(x.shape[2:], pad, each)]
    starts = [p - q * s for p, q, s in zip(padding, first, strides)]
    reaches = all(start + out <= c * s for start, out, c, s in zip(starts, node.shape[2:], counts, strides))
    if used < MOST_ZEROS or min(pad) < 0 or not reaches:
        return None
    channels_in, channels = weight.shape[:2]
    (sh, sw), (mh, mw) = strides, each
    high = (0, 0, mh * sh - taps[0], mw * sw - taps[1])
    whole = b.pad(weight, low=(0, 0, 0, 0), high=high, value=0.0) if any(high) else weight
    phases = b.flip(b.reshape(whole, shape=(channels_in, channels, mh, sh, mw, sw)), axes=(2, 4))
    phases = b.reshape(b.permute(phases, dims=(3, 5, 1, 0, 2, 4)), shape=(sh * sw * channels, channels_in, mh, mw))
    repeated = [
        b.reshape(b.expand(b.reshape(values, shape=(1, channels)), shape=(sh * sw, channels)), shape=(sh * sw * channels,))
        for values in bias
    ]
    result = b.convolution(
        x, phases, *repeated, strides=(1, 1), padding=tuple(pad), dilations=(1, 1), groups=1, transposed=False,
        output_padding=(0, 0),
    )  # fmt: skip
    batch, (rows, columns) = x.shape[0], counts
    split = b.reshape(result, shape=(batch, sh, sw, channels, rows, columns))
    whole = b.reshape(b.permute(split, dims=(0, 3, 4, 1, 5, 2)), shape=(batch, channels, rows * sh, columns * sw))
    limits = tuple(start + out for start, out in zip(starts, node.shape[2:]))
    return b.slice(whole, starts=(0, 0, *starts), limits=(batch, channels, *limits), steps=(1, 1, 1, 1))


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
    shuffles = any(view.op.name == "permute" and view.tensor.rank == 6 for view in chain)
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
