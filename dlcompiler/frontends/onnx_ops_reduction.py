"""Reductions: axes are an attribute in old operator versions, an input in new ones."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from dlcompiler.frontends.onnx_registry import Call, operator
from dlcompiler.ir.expression import product
from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import boolean


def reduced_axes(call: Call) -> tuple[int, ...] | None:
    """The axes from the front; None where `noop_with_empty_axes` asks for the input itself."""
    rank = call.rank()
    axes = call.attribute("axes")
    if call.get(1) is not None:
        axes = call.numbers(1, "axes")
    if not axes:
        if call.flag("noop_with_empty_axes"):
            return None
        return tuple(range(rank))
    return call.normalize_all(axes, rank)


def _reduce(call: Call, before: Callable[[Node], Node], op: str, after: Callable[[Node], Node]) -> Node:
    """`after(op(before(x)))` in the compute dtype, rounded once."""
    x = call[0]
    axes = reduced_axes(call)
    wide = before(call.wide(x))
    if axes is not None:
        wide = call.b(op, wide, axes=axes, keepdims=call.flag("keepdims", 1))
    return call.cast(after(wide), x.dtype)


def _same(x: Node) -> Node:
    return x


@operator("ReduceSum")
def reduce_sum(call: Call) -> Node:
    return _reduce(call, _same, "reduce_sum", _same)


@operator("ReduceProd")
def reduce_prod(call: Call) -> Node:
    return _reduce(call, _same, "reduce_prod", _same)


@operator("ReduceSumSquare")
def reduce_sum_square(call: Call) -> Node:
    return _reduce(call, lambda x: call.b.mul(x, x), "reduce_sum", _same)


@operator("ReduceL1")
def reduce_l1(call: Call) -> Node:
    return _reduce(call, call.b.abs, "reduce_sum", _same)


@operator("ReduceL2")
def reduce_l2(call: Call) -> Node:
    return _reduce(call, lambda x: call.b.mul(x, x), "reduce_sum", lambda x: _float(call, x, call.b.sqrt))


@operator("ReduceLogSum")
def reduce_log_sum(call: Call) -> Node:
    return _reduce(call, _same, "reduce_sum", lambda x: _float(call, x, call.b.log))


def _float(call: Call, x: Node, function: Callable[[Node], Node]) -> Node:
    """A float function of a number of any dtype; the caller converts back."""
    return function(x if x.dtype.is_float else call.b.cast(x, dtype="f64"))


@operator("ReduceMean")
def reduce_mean(call: Call) -> Node:
    x, axes = call[0], reduced_axes(call)
    if axes is None:
        return x
    keepdims = call.flag("keepdims", 1)
    if x.dtype.is_float:
        return call.b.mean(x, axes=axes, keepdims=keepdims)
    total = call.b.reduce_sum(x, axes=axes, keepdims=keepdims)
    return call.b.trunc_div(total, call.size(product(x.shape[a] for a in axes), x.dtype))


@operator("ReduceLogSumExp")
def reduce_log_sum_exp(call: Call) -> Node:
    x, axes = call[0], reduced_axes(call)
    wide = x if x.dtype.is_float else call.b.cast(x, dtype="f64")
    if axes is None:
        return x
    keepdims = call.flag("keepdims", 1)
    if any(x.shape[a] == 0 for a in axes):
        return call.cast(call.b.log(call.b.reduce_sum(wide, axes=axes, keepdims=keepdims)), x.dtype)
    return call.cast(call.b.logsumexp(wide, axes=axes, keepdims=keepdims), x.dtype)


@operator("ReduceMax", "ReduceMin")
def reduce_extreme(call: Call) -> Node:
    x, axes = call[0], reduced_axes(call)
    largest = call.op_type == "ReduceMax"
    if axes is None:
        return x
    keepdims = call.flag("keepdims", 1)
    if x.dtype is boolean:
        return call.b("reduce_any" if largest else "reduce_all", x, axes=axes, keepdims=keepdims)
    if any(x.shape[a] == 0 for a in axes):
        shape = tuple(1 if d in axes else s for d, s in enumerate(x.shape) if keepdims or d not in axes)
        return call.full(_neutral(x.dtype, largest), x.dtype, shape)
    return call.b("reduce_max" if largest else "reduce_min", x, axes=axes, keepdims=keepdims)


def _neutral(dtype, largest: bool):
    """What the largest (or smallest) of nothing is: the dtype's lowest (or highest) value."""
    if dtype.is_float:
        return -math.inf if largest else math.inf
    limits = np.iinfo(dtype.numpy)
    return limits.min if largest else limits.max


@operator("ArgMax", "ArgMin")
def arg_extreme(call: Call) -> Node:
    """The first of equal elements, or with `select_last_index` the last, found in the row reversed."""
    x = call.require_rank(0, 1)
    axis, keepdims = call.axis(0, x.tensor.rank), call.flag("keepdims", 1)
    op = "argmax" if call.op_type == "ArgMax" else "argmin"
    if not call.flag("select_last_index"):
        return call.b(op, x, axes=(axis,), keepdims=keepdims)
    place = call.b(op, call.b.flip(x, axes=(axis,)), axes=(axis,), keepdims=keepdims)
    return call.b.sub(call.size(x.shape[axis] - 1, place.dtype), place)
