"""The backward pass of convolutions, written as convolutions.

With y[o] = sum over c of x[c] * w[o, c], shifted, the gradient of x is a convolution of the gradient of y with w turned around,
and that of w is a convolution of x with the gradient of y as its kernel, in which the batch is what is summed over:

    dx = convolution(dy, flip(w) with o and c exchanged)                 for strides of 1; else a transposed convolution
    dw = convolution(x with n and c exchanged, dy with n and o exchanged){strides: dilations, dilations: strides}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlcompiler.frontends.fx_call import make_template
from dlcompiler.frontends.fx_rules import NoRule, rule
from dlcompiler.ir.graph import Node
from dlcompiler.ir.ops import lookup
from dlcompiler.ir.types import TupleType

# With fewer channels too few rows of the sum of products share what is loaded; the library has a better way.
FEWEST_CHANNELS = 16


@rule("convolution_backward.default")
def _convolution_backward(i, dy, x, w, bias_sizes, stride, padding, dilation, transposed, output_padding, groups, mask):
    spatial = x.tensor.rank - 2
    if spatial != 2 or x.dtype.name not in ("f32", "f64") or not isinstance(groups, int):
        raise NoRule("the gradient of a convolution of lines or volumes, or in half precision")
    stride, padding, dilation = (_each(v, spatial) for v in (stride, padding, dilation))
    if not all(isinstance(size, int) for node in (dy, x, w) for size in node.shape[1:]) or 0 in (*dy.shape, *x.shape, *w.shape):
        raise NoRule("the gradient of a convolution of sizes that are not known at compile time, or of nothing")
    settings = {"strides": stride, "padding": padding, "dilations": dilation, "groups": groups}
    dx = dw = db = None
    if mask[0] and i.uses(0):
        plain = {"output_padding": (0, 0), "transposed": False, **settings}
        dx = i.b.convolution(dy, w, **plain) if transposed else _input(i, dy, x, w, settings)
    if mask[1] and i.uses(1):
        # a transposed convolution is a plain one from its result to its operand
        reads, writes = (dy, x) if transposed else (x, dy)
        if groups == 1 and reads.shape[1] >= FEWEST_CHANNELS:
            dw = _weight(i, reads, writes, w.shape[2:], settings)
        else:
            dw = _weight_by_library(i, (dy, x, w, bias_sizes, stride, padding, dilation, transposed, output_padding, groups))
    if mask[2] and i.uses(2):
        db = i.b.reduce_sum(dy, axes=(0, 2, 3))
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
        turned = b.flip(w, axes=(2, 3))
        if groups == 1:
            turned = b.permute(turned, dims=(1, 0, 2, 3))
        else:
            split = b.reshape(turned, shape=(groups, channels_out // groups, channels, *taps))
            split = b.permute(split, dims=(0, 2, 1, 3, 4))
            turned = b.reshape(split, shape=(groups * channels, channels_out // groups, *taps))
        return b.convolution(dy, turned, output_padding=(0, 0), transposed=False, **{**settings, "padding": padding})
    extra = tuple(
        size - ((out - 1) * s - 2 * p + d * (k - 1) + 1)
        for size, out, k, s, p, d in zip(
            x.shape[2:], dy.shape[2:], w.shape[2:], settings["strides"], settings["padding"], settings["dilations"]
        )
    )
    return b.convolution(dy, w, output_padding=extra, transposed=True, **settings)


def _weight(i: Any, x: Node, dy: Node, taps: Sequence[int], settings: dict[str, Any]) -> Node:
    """The gradient of a plain convolution's weight: x[n, c, ...] and dy[n, o, ...] give [o, c, ...]."""
    b = i.b
    exchanged = (1, 0, 2, 3)
    sums = b.convolution(
        b.permute(x, dims=exchanged), b.permute(dy, dims=exchanged),
        strides=settings["dilations"], dilations=settings["strides"], padding=settings["padding"],
        output_padding=(0, 0), groups=1, transposed=False,
    )  # fmt: skip
    limits = (*sums.shape[:2], *taps)
    if sums.shape != limits:  # the last pixels of an operand that no window reaches
        sums = b.slice(sums, starts=(0, 0, 0, 0), limits=limits, steps=(1, 1, 1, 1))
    return b.permute(sums, dims=exchanged)


def _weight_by_library(i: Any, arguments: tuple[Any, ...]) -> Node:
    """The same by ATen."""
    target = "aten.convolution_backward.default"
    operands, template = make_template([*arguments, [False, True, False]], {})
    reason = f"the weight's gradient of a convolution in groups, or of fewer than {FEWEST_CHANNELS} channels"
    attributes = {"target": target, "arguments": template, "impure": False, "reason": reason}
    types = TupleType((None, i.type_of(i.meta[1]), None))
    whole = i.b.make(lookup("aten.call"), operands, attributes, types, "convolution_backward")
    return i.b("tuple.get", whole, index=1)
