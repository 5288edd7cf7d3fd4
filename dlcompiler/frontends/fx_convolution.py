"""The backward pass of convolutions, written as convolutions.

With y[o] = sum over c of x[c] * w[o, c], shifted, the gradient of x is a convolution of the gradient of y with w turned around;
that of w is an op, which targets without a kernel for it write out as a convolution with dy as its kernel:

    dx = convolution(dy, flip(w) with o and c exchanged)                 for strides of 1; else a transposed convolution
    dw = convolution_weight(x, dy)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlcompiler.frontends.fx_rules import NoRule, rule
from dlcompiler.ir.graph import Node


@rule("convolution_backward.default")
def _convolution_backward(i, dy, x, w, bias_sizes, stride, padding, dilation, transposed, output_padding, groups, mask):
    spatial = x.tensor.rank - 2
    if not 1 <= spatial <= 3 or x.dtype.name not in ("f32", "f64") or not isinstance(groups, int):
        raise NoRule("the gradient of a convolution in half precision")
    stride, padding, dilation = (_each(v, spatial) for v in (stride, padding, dilation))
    if not all(isinstance(size, int) for node in (dy, x, w) for size in node.shape[1:]) or 0 in (*dy.shape, *x.shape, *w.shape):
        raise NoRule("the gradient of a convolution of sizes that are not known at compile time, or of nothing")
    settings = {"strides": stride, "padding": padding, "dilations": dilation, "groups": groups}
    dx = dw = db = None
    if mask[0] and i.uses(0):
        plain = {"output_padding": (0,) * spatial, "transposed": False, **settings}
        dx = i.b.convolution(dy, w, **plain) if transposed else _input(i, dy, x, w, settings)
    if mask[1] and i.uses(1):
        # a transposed convolution is a plain one from its result to its operand
        reads, writes = (dy, x) if transposed else (x, dy)
        dw = i.b.convolution_weight(reads, writes, taps=w.shape[2:], **settings)
    if mask[2] and i.uses(2):
        db = i.b.reduce_sum(dy, axes=(0, *range(2, dy.tensor.rank)))
    return dx, dw, db


def _each(values: Sequence[int], count: int) -> tuple[int, ...]:
    if not all(isinstance(v, int) for v in values):
        raise NoRule("a stride, padding or dilation that is not known at compile time")
    return tuple(values) * count if len(values) == 1 else tuple(values)


def _input(i: Any, dy: Node, x: Node, w: Node, settings: dict[str, Any]) -> Node:
    """The gradient of a plain convolution's operand."""
    b, groups = i.b, settings["groups"]
    padding = tuple(d * (k - 1) - p for d, k, p in zip(settings["dilations"], w.shape[2:], settings["padding"]))
    if set(settings["strides"]) == {1} and min(padding) >= 0:
        channels_out, channels, *taps = w.shape
        spatial = tuple(range(2, w.tensor.rank))
        turned = b.flip(w, axes=spatial)
        if groups == 1:
            turned = b.permute(turned, dims=(1, 0, *spatial))
        else:
            split = b.reshape(turned, shape=(groups, channels_out // groups, channels, *taps))
            split = b.permute(split, dims=(0, 2, 1, *(k + 1 for k in spatial)))
            turned = b.reshape(split, shape=(groups * channels, channels_out // groups, *taps))
        none = (0,) * len(spatial)
        return b.convolution(dy, turned, output_padding=none, transposed=False, **{**settings, "padding": padding})
    extra = tuple(
        size - ((out - 1) * s - 2 * p + d * (k - 1) + 1)
        for size, out, k, s, p, d in zip(
            x.shape[2:], dy.shape[2:], w.shape[2:], settings["strides"], settings["padding"], settings["dilations"]
        )
    )
    return b.convolution(dy, w, output_padding=extra, transposed=True, **settings)
