"""Composites: ops written with other ops.

Each is one function `(builder, operands, attributes) -> node`; its type and its meaning are its expansion's. float16 and
bfloat16 operands of normalisations are widened to float32 inside and narrowed once at the end, as eager kernels do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from dlcompiler.ir.errors import ShapeError
from dlcompiler.ir.expression import product
from dlcompiler.ir.ops import Trait, register
from dlcompiler.ir.ops.rules import normalize_axis, require_float, require_operands
from dlcompiler.ir.types import compute_dtype

Expand = Callable[..., Any]


def composite(*traits: Trait, operands: tuple[int, int] = (1, 1)) -> Callable[[Expand], Expand]:
    """Register a function as the expansion of the op of its name, which takes from `operands[0]` to `operands[1]` operands."""

    def apply(expand: Expand) -> Expand:
        @lru_cache(maxsize=4096)  # layers repeat, and every pass infers again
        def infer_once(types, attributes):
            from dlcompiler.ir.graph import Builder

            require_operands(expand.__name__, types, *operands)
            scratch = Builder("infer")
            return expand(scratch, tuple(scratch.input("x", t) for t in types), dict(attributes)).type

        def infer(types, attributes):
            hashable = tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in attributes.items())
            return infer_once(types, hashable)

        register(expand.__name__, infer, Trait.COMPOSITE, *traits, expand=expand)
        return expand

    return apply


def _wide(b, x):
    """`x` in its compute dtype."""
    return b.cast(x, dtype=compute_dtype(x.dtype).name) if compute_dtype(x.dtype) is not x.dtype else x


def _narrow(b, x, dtype):
    return b.cast(x, dtype=dtype.name) if x.dtype is not dtype else x


# -- activations -------------------------------------------------------------------------------------------------------------


@composite(Trait.POINTWISE)
def relu(b, operands, attributes):
    return b.maximum(operands[0], 0)


@composite(Trait.POINTWISE)
def clamp(b, operands, attributes):
    """attributes: low, high; None for no bound."""
    (x,) = operands
    if attributes.get("low") is not None:
        x = b.maximum(x, attributes["low"])
    return b.minimum(x, attributes["high"]) if attributes.get("high") is not None else x


@composite(Trait.POINTWISE)
def gelu(b, operands, attributes):
    """attributes: approximate, "none" (by erf) or "tanh"."""
    x = _wide(b, operands[0])
    if attributes.get("approximate", "none") == "tanh":
        inner = b.mul(b.mul(x, b.add(b.mul(b.mul(x, x), 0.044715), 1.0)), math.sqrt(2 / math.pi))
        result = b.mul(b.mul(x, 0.5), b.add(b.tanh(inner), 1.0))
    else:
        result = b.mul(b.mul(x, 0.5), b.add(b.erf(b.mul(x, math.sqrt(0.5))), 1.0))
    return _narrow(b, result, operands[0].dtype)


@composite(Trait.POINTWISE)
def silu(b, operands, attributes):
    x = _wide(b, operands[0])
    return _narrow(b, b.mul(x, b.sigmoid(x)), operands[0].dtype)


@composite(Trait.POINTWISE)
def hardsigmoid(b, operands, attributes):
    x = _wide(b, operands[0])
    return _narrow(b, b.div(b.clamp(b.add(x, 3.0), low=0.0, high=6.0), 6.0), operands[0].dtype)


@composite(Trait.POINTWISE)
def hardswish(b, operands, attributes):
    x = _wide(b, operands[0])
    return _narrow(b, b.div(b.mul(x, b.clamp(b.add(x, 3.0), low=0.0, high=6.0)), 6.0), operands[0].dtype)


@composite(Trait.POINTWISE)
def leaky_relu(b, operands, attributes):
    """attributes: slope."""
    (x,) = operands
    require_float("leaky_relu", x.dtype)
    return b.where(b.gt(x, 0), x, b.mul(x, attributes["slope"]))


@composite(Trait.POINTWISE)
def elu(b, operands, attributes):
    """attributes: alpha, scale, input_scale (defaults 1)."""
    x = _wide(b, operands[0])
    alpha, scale, input_scale = (attributes.get(k, 1.0) for k in ("alpha", "scale", "input_scale"))
    negative = b.mul(b.expm1(b.mul(x, input_scale)), alpha * scale)
    return _narrow(b, b.where(b.gt(x, 0), b.mul(x, scale), negative), operands[0].dtype)


@composite(Trait.POINTWISE)
def softplus(b, operands, attributes):
    """attributes: beta, threshold (above it, the identity)."""
    x = _wide(b, operands[0])
    beta, threshold = attributes.get("beta", 1.0), attributes.get("threshold", 20.0)
    scaled = b.mul(x, beta)
    result = b.where(b.gt(scaled, threshold), x, b.div(b.log1p(b.exp(scaled)), beta))
    return _narrow(b, result, operands[0].dtype)


@composite(Trait.POINTWISE)
def mish(b, operands, attributes):
    x = _wide(b, operands[0])
    return _narrow(b, b.mul(x, b.tanh(b.softplus(x))), operands[0].dtype)


@composite(Trait.POINTWISE)
def reciprocal(b, operands, attributes):
    return b.div(b.constant(1, operands[0].dtype), operands[0])


# -- statistics --------------------------------------------------------------------------------------------------------------


def _count(b, x, axes, dtype):
    """The number of elements reduced, as a number of the graph (sizes may be symbolic)."""
    count = product(x.shape[a] for a in axes)
    return b.constant(count, dtype) if isinstance(count, int) else b.cast(b.dim(value=count), dtype=dtype.name)


@composite(Trait.REDUCTION)
def mean(b, operands, attributes):
    """attributes: axes, keepdims."""
    x = _wide(b, operands[0])
    total = b.reduce_sum(x, axes=attributes["axes"], keepdims=attributes.get("keepdims", False))
    return _narrow(b, b.div(total, _count(b, x, attributes["axes"], x.dtype)), operands[0].dtype)


@composite(Trait.REDUCTION)
def variance(b, operands, attributes):
    """Mean squared distance from the mean, in two passes. attributes: axes, keepdims, correction (subtracted from the count)."""
    x = _wide(b, operands[0])
    axes = attributes["axes"]
    centred = b.sub(x, b.mean(x, axes=axes, keepdims=True))
    total = b.reduce_sum(b.mul(centred, centred), axes=axes, keepdims=attributes.get("keepdims", False))
    count = b.sub(_count(b, x, axes, x.dtype), b.constant(attributes.get("correction", 0), x.dtype))
    return _narrow(b, b.div(total, b.maximum(count, 0.0)), operands[0].dtype)


@composite()
def softmax(b, operands, attributes):
    """attributes: axis."""
    x = _wide(b, operands[0])
    axes = (normalize_axis(attributes["axis"], x.tensor.rank),) if x.tensor.rank else ()
    powers = b.exp(b.sub(x, b.reduce_max(x, axes=axes, keepdims=True)))
    return _narrow(b, b.div(powers, b.reduce_sum(powers, axes=axes, keepdims=True)), operands[0].dtype)


@composite()
def log_softmax(b, operands, attributes):
    """attributes: axis."""
    x = _wide(b, operands[0])
    axes = (normalize_axis(attributes["axis"], x.tensor.rank),) if x.tensor.rank else ()
    shifted = b.sub(x, b.reduce_max(x, axes=axes, keepdims=True))
    return _narrow(b, b.sub(shifted, b.log(b.reduce_sum(b.exp(shifted), axes=axes, keepdims=True))), operands[0].dtype)


@composite(Trait.REDUCTION)
def logsumexp(b, operands, attributes):
    """attributes: axes, keepdims. The largest element is taken out first; an infinite one is not."""
    x = _wide(b, operands[0])
    axes, keepdims = attributes["axes"], attributes.get("keepdims", False)
    largest = b.reduce_max(x, axes=axes, keepdims=True)
    largest = b.where(b.isinf(largest), b.constant(0, x.dtype), largest)
    total = b.log(b.reduce_sum(b.exp(b.sub(x, largest)), axes=axes, keepdims=keepdims))
    kept = total.shape
    return _narrow(b, b.add(total, b.reshape(largest, shape=kept)), operands[0].dtype)


# -- normalisation -----------------------------------------------------------------------------------------------------------


def _normalized(b, x, axes, epsilon):
    centred = b.sub(x, b.mean(x, axes=axes, keepdims=True))
    spread = b.mean(b.mul(centred, centred), axes=axes, keepdims=True)
    return b.mul(centred, b.rsqrt(b.add(spread, epsilon)))


def _last_axes(name, operands, rank):
    """The last `rank` axes of operand 0; the other operands have the shape of these. Raises ShapeError."""
    shape = operands[0].shape
    if not 0 < rank <= len(shape) or any(o.shape != shape[len(shape) - rank :] for o in operands[1:]):
        raise ShapeError(f"{name} over the last {rank} dimensions of {', '.join(str(o.type) for o in operands)}")
    return tuple(range(len(shape) - rank, len(shape)))


@composite(operands=(1, 3))
def layer_norm(b, operands, attributes):
    """`layer_norm(x, weight?, bias?)` over the last `rank` dimensions. attributes: rank, epsilon."""
    axes = _last_axes("layer_norm", operands, attributes["rank"])
    x, *affine = (_wide(b, o) for o in operands)
    result = _normalized(b, x, axes, attributes["epsilon"])
    for op, operand in zip(("mul", "add"), affine):
        result = b(op, result, operand)
    return _narrow(b, result, operands[0].dtype)


@composite(operands=(1, 2))
def rms_norm(b, operands, attributes):
    """`rms_norm(x, weight?)` over the last `rank` dimensions. attributes: rank, epsilon."""
    axes = _last_axes("rms_norm", operands, attributes["rank"])
    x, *weight = (_wide(b, o) for o in operands)
    result = b.mul(x, b.rsqrt(b.add(b.mean(b.mul(x, x), axes=axes, keepdims=True), attributes["epsilon"])))
    return _narrow(b, b.mul(result, weight[0]) if weight else result, operands[0].dtype)


def _per_channel(b, x, rank):
    """A [C] tensor shaped to broadcast over [N, C, ...]."""
    return b.reshape(x, shape=(x.shape[0], *(1,) * (rank - 2)))


@composite(operands=(1, 3))
def group_norm(b, operands, attributes):
    """`group_norm(x[N, C, ...], weight[C]?, bias[C]?)`. attributes: groups, epsilon."""
    x, *affine = (_wide(b, o) for o in operands)
    groups = attributes["groups"]
    grouped = b.reshape(x, shape=(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:]))
    normalized = _normalized(b, grouped, tuple(range(2, grouped.tensor.rank)), attributes["epsilon"])
    result = b.reshape(normalized, shape=x.shape)
    for op, operand in zip(("mul", "add"), affine):
        result = b(op, result, _per_channel(b, operand, x.tensor.rank))
    return _narrow(b, result, operands[0].dtype)


@composite(operands=(5, 5))
def batch_norm(b, operands, attributes):
    """`batch_norm(x[N, C, ...], weight[C], bias[C], mean[C], variance[C])` with the given statistics. attributes: epsilon."""
    x, *statistics = (_wide(b, o) for o in operands)
    weight, bias, average, spread = statistics
    scale = b.mul(weight, b.rsqrt(b.add(spread, attributes["epsilon"])))
    shift = b.sub(bias, b.mul(average, scale))
    rank = x.tensor.rank
    result = b.add(b.mul(x, _per_channel(b, scale, rank)), _per_channel(b, shift, rank))
    return _narrow(b, result, operands[0].dtype)


# -- pooling -----------------------------------------------------------------------------------------------------------------


def _windows(b, x, attributes, fill):
    """[N, C, ...] --> [N, C, out..., kernel...]. attributes: kernel, strides, padding, dilations, ceil_extra."""
    spatial = len(attributes["kernel"])
    lead = x.tensor.rank - spatial
    extra = attributes.get("ceil_extra", (0,) * spatial)
    padding_high = tuple(p + e for p, e in zip(attributes.get("padding_high", attributes["padding"]), extra))
    if any(attributes["padding"]) or any(padding_high):
        x = b.pad(x, low=(*(0,) * lead, *attributes["padding"]), high=(*(0,) * lead, *padding_high), value=fill)
    axes = tuple(range(lead, lead + spatial))
    return b.window(x, axes=axes, sizes=attributes["kernel"], strides=attributes["strides"], dilations=attributes["dilations"])


@composite(Trait.REDUCTION)
def max_pool(b, operands, attributes):
    """attributes: kernel, strides, padding, dilations, padding_high?, ceil_extra? (elements added behind for ceil mode)."""
    (x,) = operands
    lowest = -np.inf if x.dtype.is_float else (False if x.dtype.kind == "bool" else np.iinfo(x.dtype.numpy).min)
    windows = _windows(b, x, attributes, lowest)
    spatial = len(attributes["kernel"])
    return b.reduce_max(windows, axes=tuple(range(x.tensor.rank, x.tensor.rank + spatial)), keepdims=False)


@composite(Trait.REDUCTION)
def average_pool(b, operands, attributes):
    """attributes as `max_pool`, and: count_padding (padding counts as elements, the ceil extra never does); divisor or None."""
    x = _wide(b, operands[0])
    rank, spatial = x.tensor.rank, len(attributes["kernel"])
    axes = tuple(range(rank, rank + spatial))
    total = b.reduce_sum(_windows(b, x, attributes, 0.0), axes=axes, keepdims=False)
    padded = any(attributes["padding"]) or any(attributes.get("padding_high", ()))
    extra = any(attributes.get("ceil_extra", ()))
    if attributes.get("divisor") is not None:
        count = b.constant(attributes["divisor"], x.dtype)
    elif (padded and not attributes["count_padding"]) or extra:
        ones = b.expand(b.constant(1.0, x.dtype), shape=(*(1,) * (rank - spatial), *x.shape[rank - spatial :]))
        counted = dict(attributes)
        if attributes["count_padding"]:
            low = (*(0,) * (rank - spatial), *attributes["padding"])
            high = (*(0,) * (rank - spatial), *attributes.get("padding_high", attributes["padding"]))
            ones = b.pad(ones, low=low, high=high, value=1.0)
            counted.update(padding=(0,) * spatial, padding_high=(0,) * spatial)
        count = b.reduce_sum(_windows(b, ones, counted, 0.0), axes=axes, keepdims=False)
    else:
        count = b.constant(math.prod(attributes["kernel"]), x.dtype)
    return _narrow(b, b.div(total, count), operands[0].dtype)
