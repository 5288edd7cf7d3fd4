"""Pools."""

from __future__ import annotations

import math

from dlcompiler.frontends.onnx_registry import Call, operator
from dlcompiler.frontends.onnx_windows import Windows, windows
from dlcompiler.ir.expression import Dim, product
from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import i64


def _geometry(call: Call, x: Node) -> Windows:
    spatial = x.tensor.rank - 2
    at = windows(call, x.shape[2:], call.integers("kernel_shape", spatial))
    if any(isinstance(p, int) and p < 0 for p in (*at.low, *at.high)):
        call.unsupported("negative pads")
    return at


def _settings(at: Windows) -> dict:
    return {
        "kernel": at.kernel,
        "strides": at.strides,
        "dilations": at.dilations,
        "padding": at.low,
        "padding_high": at.high,
        "ceil_extra": at.extra,
    }


@operator("MaxPool")
def max_pool(call: Call):
    x = call.require_rank(0, 3)
    at = _geometry(call, x)
    result = call.b.max_pool(x, **_settings(at))
    if len(call.outputs) < 2 or not call.outputs[1]:
        return result
    return result, _places_of_largest(call, x, at)


def _cut(call: Call, x: Node, at: Windows, fill: float) -> Node:
    """[N, C, ...] --> [N, C, out..., elements of a window]."""
    spatial = len(at.kernel)
    high = tuple(h + e for h, e in zip(at.high, at.extra))
    if any(p != 0 for p in (*at.low, *high)):
        x = call.b.pad(x, low=(0, 0, *at.low), high=(0, 0, *high), value=fill)
    cut = call.b.window(x, axes=tuple(range(2, 2 + spatial)), sizes=at.kernel, strides=at.strides, dilations=at.dilations)
    return call.reshape(cut, (*cut.shape[: 2 + spatial], math.prod(at.kernel)))


def _places_of_largest(call: Call, x: Node, at: Windows) -> Node:
    """Where in the flattened input each largest element lies; `storage_order` 1 counts column by column."""
    sizes = x.shape[2:]
    if not x.dtype.is_float:
        call.unsupported("places of the largest integers")
    strides: list[Dim] = [product(sizes[d + 1 :]) for d in range(len(sizes))]
    if call.attribute("storage_order", 0):
        strides = [product(sizes[:d]) for d in range(len(sizes))]
    place = call.b.constant(0, i64)
    for d, (size, stride) in enumerate(zip(sizes, strides)):
        along = call.along(call.b.iota(size=size), 2 + d, x.tensor.rank)
        place = call.b.add(place, call.b.mul(along, call.size(stride, i64)))
    image = call.b.add(call.along(call.b.iota(size=x.shape[0]), 0, x.tensor.rank), call.b.constant(0, i64))
    plane = call.b.add(call.b.mul(image, call.size(x.shape[1], i64)), call.along(call.b.iota(size=x.shape[1]), 1, x.tensor.rank))
    place = call.b.add(place, call.b.mul(plane, call.size(product(sizes), i64)))
    values, places = _cut(call, x, at, -math.inf), _cut(call, place, at, 0)
    last = values.tensor.rank - 1
    largest = call.b.argmax(values, axes=(last,), keepdims=True)
    return call.reshape(call.b.gather(places, largest, axis=last), values.shape[:-1])


@operator("AveragePool")
def average_pool(call: Call) -> Node:
    x = call.require_rank(0, 3)
    at = _geometry(call, x)
    return call.b.average_pool(x, **_settings(at), count_padding=call.flag("count_include_pad"), divisor=None)


@operator("LpPool")
def lp_pool(call: Call) -> Node:
    x = call.require_rank(0, 3)
    cut = _cut(call, call.wide(x), _geometry(call, x), 0.0)
    return call.cast(_norm(call, cut, (cut.tensor.rank - 1,), False), x.dtype)


def _norm(call: Call, x: Node, axes: tuple[int, ...], keepdims: bool) -> Node:
    """(sum |x|**p) ** (1/p)"""
    p = float(call.attribute("p", 2))
    if p <= 0:
        call.invalid(f"p is {p}")
    if p == 2:
        return call.b.sqrt(call.b.reduce_sum(call.b.mul(x, x), axes=axes, keepdims=keepdims))
    total = call.b.reduce_sum(call.b.pow(call.b.abs(x), call.number(p, x)), axes=axes, keepdims=keepdims)
    return call.b.pow(total, call.number(1 / p, x))


@operator("GlobalAveragePool")
def global_average_pool(call: Call) -> Node:
    x = call.require_rank(0, 3)
    return call.b.mean(x, axes=tuple(range(2, x.tensor.rank)), keepdims=True)


@operator("GlobalMaxPool")
def global_max_pool(call: Call) -> Node:
    x = call.require_rank(0, 3)
    return call.b.reduce_max(x, axes=tuple(range(2, x.tensor.rank)), keepdims=True)


@operator("GlobalLpPool")
def global_lp_pool(call: Call) -> Node:
    x = call.require_rank(0, 3)
    return call.cast(_norm(call, call.wide(x), tuple(range(2, x.tensor.rank)), True), x.dtype)
