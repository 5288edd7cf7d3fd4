"""Operators that sort, and that write where data says."""

from __future__ import annotations

from dlcompiler.frontends.onnx_ops_index import wrapped
from dlcompiler.frontends.onnx_registry import Call, operator
from dlcompiler.ir.expression import Dim, product
from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import boolean, i64

# what ONNX calls a reduction -> the kind of update
_KINDS = {"none": "set", "add": "add", "mul": "mul", "max": "max", "min": "min"}


@operator("TopK")
def top_k(call: Call) -> tuple[Node, Node]:
    """Always in order, equal elements by their place; the number is an attribute in version 1, an input since."""
    x = call.require_rank(0, 1)
    rank = x.tensor.rank
    axis = call.axis(-1, rank)
    given = (call.attribute("k"),) if call.version == 1 else call.dims(1, "k", told=True)
    if len(given) != 1:
        call.invalid(f"k has {len(given)} elements, not 1")
    k, size = given[0], x.shape[axis]
    if isinstance(k, int) and (k < 0 or (isinstance(size, int) and k > size)):
        call.invalid(f"{k} elements of a dimension of {size}")
    order = [*(d for d in range(rank) if d != axis), axis]
    both = call.b.topk(call.permute(x, order), k=k, largest=call.flag("largest", 1))
    values, places = (call.b("tuple.get", both, index=index) for index in range(2))
    back = [order.index(d) for d in range(rank)]
    return call.permute(values, back), call.permute(places, back)


def _kind(call: Call, x: Node) -> str:
    name = call.attribute("reduction", "none")
    if name not in _KINDS:
        call.invalid(f"there is no reduction {name!r}")
    kind = _KINDS[name]
    return {"add": "max", "mul": "min"}.get(kind, kind) if x.dtype is boolean else kind


@operator("ScatterElements", "Scatter")
def scatter_elements(call: Call) -> Node:
    x, updates = call.require_rank(0, 1), call[2]
    if call[1].shape != updates.shape or updates.tensor.rank != x.tensor.rank:
        call.misfit(f"updates {updates.type} at {call[1].type} do not fit {x.type}")
    axis = call.axis(0, x.tensor.rank)
    at = wrapped(call, call[1], x.shape[axis])
    return call.b.scatter(x, updates, at, axis=axis, kind=_kind(call, x), shape=x.shape)


@operator("ScatterND")
def scatter_nd(call: Call) -> Node:
    """The last dimension of the indices is a place in the first dimensions of `x`."""
    x, indices, updates = call.require_rank(0, 1), call.require_rank(1, 1), call[2]
    length = indices.shape[-1]
    if not isinstance(length, int):
        call.unsupported("places of symbolic length")
    if not 0 < length <= x.tensor.rank:
        call.invalid(f"indices {indices.type} do not fit {x.type}")
    lead = indices.tensor.rank - 1
    columns = [
        wrapped(call, call.reshape(call.slice(indices, lead, k, k + 1), indices.shape[:-1]), x.shape[k]) for k in range(length)
    ]
    return call.b.index_update(x, updates, *columns, axes=tuple(range(length)), kind=_kind(call, x), shape=x.shape)


@operator("MaxUnpool")
def max_unpool(call: Call) -> Node:
    """Every element goes to its place in the flattened result, the rest is 0."""
    x, places = call.require_rank(0, 3), call[1]
    if x.shape != places.shape:
        call.misfit(f"places {places.type} do not fit {x.type}")
    spatial = x.tensor.rank - 2
    kernel = call.integers("kernel_shape", spatial)
    strides, pads = call.integers("strides", spatial, 1), call.integers("pads", 2 * spatial, 0)
    inferred: tuple[Dim, ...] = (
        *x.shape[:2],
        *(
            (size - 1) * stride - low - high + width
            for size, stride, low, high, width in zip(x.shape[2:], strides, pads[:spatial], pads[spatial:], kernel)
        ),
    )
    shape = inferred if call.get(2) is None else call.dims(2, "the shape of the result")
    if len(shape) != x.tensor.rank:
        call.invalid(f"a result of {len(shape)} dimensions")
    # places count in the result that the attributes alone make; in a larger one they mean the same pixel
    at = call.cast(call.reshape(places, (places.tensor.numel,)), i64)
    place = call.b.constant(0, i64)
    stride: Dim = 1
    for old, new in zip(reversed(inferred), reversed(shape)):
        extent = call.size(old, i64)
        place = call.b.add(place, call.b.mul(call.b.remainder(at, extent), call.size(stride, i64)))
        at = call.b.floor_div(at, extent)
        stride = stride * new
    flat = call.reshape(x, (x.tensor.numel,))
    result = call.b.index_update(call.number(0, x), flat, place, axes=(0,), kind="set", shape=(product(shape),))
    return call.reshape(result, shape)
