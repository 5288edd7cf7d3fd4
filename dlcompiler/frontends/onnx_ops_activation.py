"""Activation functions, softmax and its kin."""

from __future__ import annotations

import math

import numpy as np

from dlcompiler.frontends.onnx_registry import Call, operator
from dlcompiler.ir.expression import product
from dlcompiler.ir.graph import Node


def formula(call: Call, compute) -> Node:
    """`compute` of input 0 in its compute dtype, rounded once."""
    return call.cast(compute(call.wide(call[0])), call[0].dtype)


@operator("Relu")
def relu(call: Call) -> Node:
    return call.b.relu(call[0])


@operator("LeakyRelu")
def leaky_relu(call: Call) -> Node:
    return formula(call, lambda x: call.b.leaky_relu(x, slope=call.attribute("alpha", 0.01)))


@operator("PRelu")
def prelu(call: Call) -> Node:
    """The slope broadcasts to the input; before opset 7 a vector of slopes lies along the channels."""
    x, slope = call[0], call[1]
    if call.version < 7 and slope.tensor.rank == 1 and slope.shape[0] != 1:
        slope = call.along(slope, 1, x.tensor.rank)
    return call.b.where(call.b.lt(x, call.number(0, x)), call.b.mul(x, slope), x)


@operator("ThresholdedRelu")
def thresholded_relu(call: Call) -> Node:
    x = call[0]
    return call.b.where(call.b.gt(x, call.number(call.attribute("alpha", 1.0), x)), x, call.number(0, x))


@operator("Elu")
def elu(call: Call) -> Node:
    return call.b.elu(call[0], alpha=call.attribute("alpha", 1.0))


@operator("Selu")
def selu(call: Call) -> Node:
    alpha, gamma = call.attribute("alpha", 1.67326319217681884765625), call.attribute("gamma", 1.05070102214813232421875)
    return call.b.elu(call[0], alpha=alpha, scale=gamma)


@operator("Celu")
def celu(call: Call) -> Node:
    alpha = call.attribute("alpha", 1.0)
    if alpha == 0:
        call.invalid("alpha is 0")
    return call.b.elu(call[0], alpha=alpha, input_scale=1 / alpha)


@operator("Gelu")
def gelu(call: Call) -> Node:
    approximate = call.attribute("approximate", "none")
    if approximate not in ("none", "tanh"):
        call.invalid(f"approximate is {approximate!r}, not none or tanh")
    return call.b.gelu(call[0], approximate=approximate)


@operator("Mish")
def mish(call: Call) -> Node:
    return call.b.mish(call[0])


@operator("Softplus")
def softplus(call: Call) -> Node:
    return call.b.softplus(call[0])


@operator("Softsign")
def softsign(call: Call) -> Node:
    return formula(call, lambda x: call.b.div(x, call.b.add(call.b.abs(x), 1.0)))


@operator("Swish")
def swish(call: Call) -> Node:
    alpha = call.attribute("alpha", 1.0)
    if alpha == 1:
        return call.b.silu(call[0])
    return formula(call, lambda x: call.b.mul(x, call.b.sigmoid(call.b.mul(x, alpha))))


@operator("HardSigmoid")
def hard_sigmoid(call: Call) -> Node:
    alpha, beta = call.attribute("alpha", 0.2), call.attribute("beta", 0.5)
    return formula(call, lambda x: call.b.clamp(call.b.add(call.b.mul(x, alpha), beta), low=0.0, high=1.0))


@operator("HardSwish")
def hard_swish(call: Call) -> Node:
    return call.b.hardswish(call[0])


@operator("Shrink")
def shrink(call: Call) -> Node:
    x = call[0]
    bound, bias = call.attribute("lambd", 0.5), call.attribute("bias", 0.0)
    if x.dtype.is_integer:
        # what the type does not hold wraps around, which no model means
        least, most = np.iinfo(x.dtype.numpy).min, np.iinfo(x.dtype.numpy).max
        fits = abs(bound) < 2**31 and abs(bias) < 2**31 and max(least, -most) <= bound <= most and least <= int(bias) <= most
        if not fits:
            call.unsupported(f"lambd {bound} and bias {bias} of {x.dtype.name}")
        bound, bias = math.floor(bound), int(bias)
    inside = call.number(0, x)
    if not x.dtype.is_signed:  # nothing is below -lambd
        return call.b.where(call.b.gt(x, call.number(bound, x)), call.b.sub(x, call.number(bias, x)), inside)
    negative = call.b.where(call.b.lt(x, call.number(-bound, x)), call.b.add(x, call.number(bias, x)), inside)
    return call.b.where(call.b.gt(x, call.number(bound, x)), call.b.sub(x, call.number(bias, x)), negative)


# -- along an axis -----------------------------------------------------------------------------------------------------------


def _flattening(call: Call, compute) -> Node:
    """`compute(x, axis)`; before opset 13 the dimensions from `axis` (default 1) on count as one."""
    x = call[0]
    rank = x.tensor.rank
    if call.version >= 13:
        return compute(x, call.axis(-1, rank)) if rank else compute(call.reshape(x, (1,)), 0)
    axis = call.axis(1, rank, end=True)
    if axis == rank - 1:
        return compute(x, axis)
    flat = call.reshape(x, (product(x.shape[:axis]), product(x.shape[axis:])))
    return call.reshape(compute(flat, 1), x.shape)


@operator("Softmax")
def softmax(call: Call) -> Node:
    return _flattening(call, lambda x, axis: call.b.softmax(x, axis=axis))


@operator("LogSoftmax")
def log_softmax(call: Call) -> Node:
    return _flattening(call, lambda x, axis: call.b.log_softmax(x, axis=axis))


@operator("Hardmax")
def hardmax(call: Call) -> Node:
    """1 at the first largest element, 0 elsewhere."""

    def compute(x: Node, axis: int) -> Node:
        place = call.b.argmax(x, axes=(axis,), keepdims=True)
        at = call.along(call.b.iota(size=x.shape[axis]), axis, x.tensor.rank)
        return call.cast(call.b.eq(at, place), x.dtype)

    return _flattening(call, compute)


@operator("LpNormalization")
def lp_normalization(call: Call) -> Node:
    """A vector of zeros stays zero."""
    axis, p = call.axis(-1, call.rank()), call.attribute("p", 2)
    if p not in (1, 2):
        call.invalid(f"p is {p}, not 1 or 2")

    def compute(x: Node) -> Node:
        if p == 1:
            norm = call.b.reduce_sum(call.b.abs(x), axes=(axis,), keepdims=True)
        else:
            norm = call.b.sqrt(call.b.reduce_sum(call.b.mul(x, x), axes=(axis,), keepdims=True))
        zero = call.b.eq(norm, call.number(0, norm))
        return call.b.where(zero, call.number(0, norm), call.b.div(x, norm))

    return formula(call, compute)


@operator("Trilu")
def trilu(call: Call) -> Node:
    """Keeps the upper (or lower) triangle of the last two dimensions, counted from diagonal `k`."""
    x = call.require_rank(0, 2)
    rows, columns = x.shape[-2:]
    k = call.reshape(call[1], ()) if call.get(1) is not None else call.b.constant(np.int64(0))
    row = call.reshape(call.b.iota(size=rows), (rows, 1))
    diagonal = call.b.sub(call.reshape(call.b.iota(size=columns), (1, columns)), row)
    kept = call.b("ge" if call.flag("upper", 1) else "le", diagonal, k)
    return call.b.where(kept, x, call.number(0, x))
