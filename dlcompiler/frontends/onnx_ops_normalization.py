"""Normalisations."""

from __future__ import annotations

from dlcompiler.frontends.onnx_registry import Call, element_type, operator
from dlcompiler.ir.expression import floor_div
from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import compute_dtype


def _fitting(call: Call, x: Node, statistic: Node) -> Node:
    """A scale, bias or statistic in `x`'s dtype or in the dtype that `x` is computed in."""
    return statistic if statistic.dtype is x.dtype else call.cast(statistic, compute_dtype(x.dtype))


def _per_channel(call: Call, x: Node, *parameters: Node) -> list[Node]:
    """Parameters that hold one number for each channel."""
    for each in parameters:
        if each.shape != (x.shape[1],):
            call.misfit(f"{each.type} does not fit the {x.shape[1]} channels of {x.type}")
    return [_fitting(call, x, each) for each in parameters]


@operator("BatchNormalization")
def batch_normalization(call: Call):
    x = call.require_rank(0, 2)
    scale, bias, average, spread = _per_channel(call, x, *(call[k] for k in range(1, 5)))
    if call.version < 9 and not call.flag("spatial", 1):
        call.unsupported("statistics for each place (spatial=0)")
    epsilon = call.attribute("epsilon", 1e-5)
    named = sum(1 for name in call.outputs if name)
    training = call.flag("training_mode") if call.version >= 14 else named > 1
    if not training:
        return call.b.batch_norm(x, scale, bias, average, spread, epsilon=epsilon)
    if call.version < 14:
        call.unsupported("training mode before opset 14")
    axes = (0, *range(2, x.tensor.rank))
    wide = call.wide(x)
    batch_mean = call.b.mean(wide, axes=axes, keepdims=False)
    batch_variance = call.b.variance(wide, axes=axes, keepdims=False, correction=0)
    result = call.b.batch_norm(wide, *(call.wide(s) for s in (scale, bias)), batch_mean, batch_variance, epsilon=epsilon)
    momentum = call.attribute("momentum", 0.9)
    running = [
        call.cast(call.b.add(call.b.mul(call.wide(call[k]), momentum), call.b.mul(new, 1 - momentum)), call[k].dtype)
        for k, new in ((3, batch_mean), (4, batch_variance))
    ]
    return call.cast(result, x.dtype), *running


@operator("InstanceNormalization")
def instance_normalization(call: Call) -> Node:
    x = call.require_rank(0, 3)
    affine = _per_channel(call, x, call[1], call[2])
    if x.shape[1] == 0:
        return x
    return call.b.group_norm(x, *affine, groups=x.shape[1], epsilon=call.attribute("epsilon", 1e-5))


@operator("GroupNormalization")
def group_normalization(call: Call) -> Node:
    """Before version 21 scale and bias hold one number a group, since then one a channel."""
    x, groups = call.require_rank(0, 2), call.attribute("num_groups", 0)
    channels = x.shape[1]
    if groups < 1 or channels == 0 or (isinstance(channels, int) and channels % groups):
        call.misfit(f"{groups} groups do not divide {channels} channels")
    if call.version >= 21:
        affine = _per_channel(call, x, call[1], call[2])
    else:
        affine = [_fitting(call, x, call[1]), _fitting(call, x, call[2])]
        each = floor_div(channels, groups)
        affine = [call.reshape(call.expand(call.reshape(a, (groups, 1)), (groups, each)), (channels,)) for a in affine]
    return call.b.group_norm(x, *affine, groups=groups, epsilon=call.attribute("epsilon", 1e-5))


@operator("LayerNormalization")
def layer_normalization(call: Call):
    """Over the dimensions from `axis` on. The mean and the inverse deviation are optional results."""
    x = call.require_rank(0, 1)
    rank = x.tensor.rank
    axis = call.axis(-1, rank)
    epsilon = call.attribute("epsilon", 1e-5)
    affine = [_fitting(call, x, n) for n in (call[1], call.get(2)) if n is not None]
    result = call.b.layer_norm(x, *affine, rank=rank - axis, epsilon=epsilon)
    if not any(call.outputs[1:]):
        return result
    stash = element_type(call.attribute("stash_type", 1))
    wide, axes = call.cast(x, stash), tuple(range(axis, rank))
    average = call.b.mean(wide, axes=axes, keepdims=True)
    inverse = call.b.rsqrt(call.b.add(call.b.variance(wide, axes=axes, keepdims=True, correction=0), epsilon))
    return result, average, inverse


@operator("RMSNormalization")
def rms_normalization(call: Call) -> Node:
    x = call.require_rank(0, 1)
    rank = x.tensor.rank
    axis = call.axis(-1, rank)
    return call.b.rms_norm(x, _fitting(call, x, call[1]), rank=rank - axis, epsilon=call.attribute("epsilon", 1e-5))


@operator("LRN")
def local_response_normalization(call: Call) -> Node:
    """x / (bias + alpha / size * sum of squares over `size` neighbouring channels) ** beta."""
    x, size = call.require_rank(0, 2), call.attribute("size")
    if size < 1:
        call.invalid(f"size is {size}")
    alpha, beta, bias = call.attribute("alpha", 1e-4), call.attribute("beta", 0.75), call.attribute("bias", 1.0)
    rank = x.tensor.rank
    wide = call.wide(x)
    low = tuple((size - 1) // 2 if d == 1 else 0 for d in range(rank))
    high = tuple(size // 2 if d == 1 else 0 for d in range(rank))
    padded = call.b.pad(call.b.mul(wide, wide), low=low, high=high, value=0.0)
    neighbours = call.b.window(padded, axes=(1,), sizes=(size,), strides=(1,), dilations=(1,))
    total = call.b.reduce_sum(neighbours, axes=(rank,), keepdims=False)
    scale = call.b.pow(call.b.add(call.b.mul(total, alpha / size), bias), call.number(beta, wide))
    return call.cast(call.b.div(wide, scale), x.dtype)
