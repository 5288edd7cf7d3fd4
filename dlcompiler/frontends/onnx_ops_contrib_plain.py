"""Operators of `com.microsoft` that came before those of the default domain, and small ones that exporters write."""

from __future__ import annotations

import math

import numpy as np

from dlcompiler.frontends.onnx_ops_contrib import MICROSOFT
from dlcompiler.frontends.onnx_registry import Call, operator
from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import f32, i64

# of which version of the default domain's operator each is, and with which attributes
_SAME = {"GatherND": (11, ()), "GridSample": (16, ("align_corners", "mode", "padding_mode")), "Pad": (11, ("mode",)),
         "Range": (11, ()), "Trilu": (14, ("upper",))}  # fmt: skip


@operator(*_SAME, domain=MICROSOFT)
def same_as_default(call: Call) -> Node:
    version, names = _SAME[call.op_type]
    inputs = list(call.inputs)
    if call.op_type == "Range" and call.get(2) is None:
        inputs = [call[0], call[1], call.number(1, call[0])]
    return call.apply(call.op_type, *inputs, version=version, given=call.chosen(*names))


@operator("ExpandDims", domain=MICROSOFT)
def expand_dims(call: Call) -> Node:
    x, axis = call[0], call.normalize(call.scalar(1, "the axis"), call.rank() + 1)
    return call.reshape(x, (*x.shape[:axis], 1, *x.shape[axis:]))


@operator("CDist", domain=MICROSOFT)
def distances(call: Call) -> Node:
    """[rows of a, rows of b] Euclidean distances, or their squares."""
    a, b = call.require_rank(0, 2, 2), call.require_rank(1, 2, 2)
    metric = call.attribute("metric", "sqeuclidean")
    if metric not in ("euclidean", "sqeuclidean"):
        call.unsupported(f"metric {metric}")
    apart = call.b.sub(call.reshape(a, (a.shape[0], 1, a.shape[1])), call.reshape(b, (1, *b.shape)))
    squares = call.b.reduce_sum(call.b.mul(apart, apart), axes=(2,), keepdims=False)
    return call.b.sqrt(squares) if metric == "euclidean" else squares


@operator("RelativePositionBias", domain=MICROSOFT)
def relative_position_bias(call: Call) -> Node:
    """[1, heads, queries, keys]: rows of a table [buckets, heads] by how far a key is from its query.

    Half of the buckets (of each direction's) are for single distances, the others for ranges that grow up to `max_distance`: as
    in T5 (Raffel et al., Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer, 2020).
    """
    table = call.require_rank(0, 2, 2)
    (queries,), (keys,) = (call.b.dims(call.reshape(call[k], (1,))) or call.needs_value(k, "a length") for k in (1, 2))
    buckets, most = table.shape[0], call.attribute("max_distance")
    if not isinstance(buckets, int):
        call.unsupported("a table of unknown size")
    place = call.b.sub(call.reshape(call.b.iota(size=keys), (1, keys)), call.reshape(call.b.iota(size=queries), (queries, 1)))
    first: Node = call.b.constant(np.int64(0))
    if call.flag("is_bidirectional"):
        buckets //= 2
        first = call.b.where(call.b.gt(place, 0), call.b.constant(np.int64(buckets)), first)
        far = call.b.abs(place)
    else:
        far = call.b.maximum(call.b.neg(place), 0)
    exact = buckets // 2
    wide = call.b.log(call.b.div(call.cast(call.b.maximum(far, 1), f32), float(exact)))
    grown = call.b.mul(call.b.div(wide, float(math.log(most / exact))), float(buckets - exact))
    large = call.b.minimum(call.b.add(call.cast(grown, i64), exact), buckets - 1)
    bucket = call.b.add(first, call.b.where(call.b.lt(far, exact), far, large))
    rows = call.b.index(table, bucket, axes=(0,))
    return call.reshape(call.permute(rows, (2, 0, 1)), (1, table.shape[1], queries, keys))
