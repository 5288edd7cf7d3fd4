"""Attention of the domain `com.microsoft`: with packed projections, of several heads, of grouped heads with a cache."""

from __future__ import annotations

import math

from dlcompiler.frontends.onnx_ops_attention import repeated
from dlcompiler.frontends.onnx_ops_contrib import MICROSOFT, rotated
from dlcompiler.frontends.onnx_registry import Call, operator
from dlcompiler.ir.expression import Dim
from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import boolean, i64


def _split(call: Call, x: Node, heads: int) -> Node:
    """[batch, length, heads * size] --> [batch, heads, length, size]"""
    batch, length, hidden = x.shape
    if isinstance(hidden, int) and hidden % heads:
        call.misfit(f"{heads} heads do not divide {hidden}")
    return call.permute(call.reshape(x, (batch, length, heads, hidden // heads)), (0, 2, 1, 3))


def _joined(call: Call, x: Node) -> Node:
    """[batch, heads, length, size] --> [batch, length, heads * size]"""
    batch, heads, length, size = x.shape
    return call.reshape(call.permute(x, (0, 2, 1, 3)), (batch, length, heads * size))


def _unpacked(call: Call, x: Node, count: int) -> list[Node]:
    """[batch, length, heads, count, size] --> `count` times [batch, heads, length, size]"""
    batch, length, heads, _, size = x.shape
    parts = (call.reshape(call.slice(x, 3, n, n + 1), (batch, length, heads, size)) for n in range(count))
    return [call.permute(part, (0, 2, 1, 3)) for part in parts]


def _places(call: Call, count: Dim, shape: tuple[Dim, ...]) -> Node:
    return call.reshape(call.b.iota(size=count), shape)


def _not_later(call: Call, queries: Dim, keys: Dim) -> Node:
    """[queries, keys]: whether a key does not come after its query, the last of each at the same time."""
    first = call.size(keys - queries, i64)
    return call.b.le(_places(call, keys, (1, keys)), call.b.add(_places(call, queries, (queries, 1)), first))


class _Mask:
    """What hides keys: bools, which all must hold, and numbers that are added to the scores."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.seen: Node | None = None
        self.added: Node | None = None

    def hide(self, seen: Node) -> None:
        """Keys where `seen` is false are hidden."""
        self.seen = seen if self.seen is None else self.call.b.bitwise_and(self.seen, seen)

    def add(self, bias: Node) -> None:
        self.added = bias if self.added is None else self.call.b.add(self.added, bias)

    def operand(self, like: Node) -> list[Node]:
        """The mask as `attention` takes it: none, bools, or numbers."""
        if self.added is None:
            return [] if self.seen is None else [self.seen]
        added = self.call.cast(self.added, like.dtype)
        if self.seen is None:
            return [added]
        lowest = self.call.number(float(self.call.attribute("mask_filter_value", -10000.0)), added)
        return [self.call.b.add(added, self.call.b.where(self.seen, self.call.number(0, added), lowest))]


def _padding(call: Call, mask: _Mask, given: Node, batch: Dim, keys: Dim) -> None:
    """What a mask input says: valid lengths [batch], keys [batch, keys], or all of [batch, (1,) queries, keys]."""
    rank = given.tensor.rank
    if rank == 1 and given.shape[0] in (batch, 1):
        lengths = call.cast(call.reshape(given, (given.shape[0], 1, 1, 1)), i64)
        mask.hide(call.b.lt(_places(call, keys, (1, 1, 1, keys)), lengths))
    elif rank == 2 and given.shape[1] == keys:
        mask.hide(call.cast(call.reshape(given, (given.shape[0], 1, 1, keys)), boolean))
    elif rank == 3:
        mask.hide(call.cast(call.reshape(given, (given.shape[0], 1, *given.shape[1:])), boolean))
    elif rank == 4 and given.shape[1] == 1:
        mask.hide(call.cast(given, boolean))
    else:
        call.unsupported(f"a mask {given.type}")


def _attend(call: Call, q: Node, k: Node, v: Node, mask: _Mask, causal: bool) -> Node:
    """[batch, heads, queries, size] of the result. Causal masks end at the last key."""
    size, scale = q.shape[-1], call.attribute("scale", 0.0)
    if not scale:
        if not isinstance(size, int):
            call.unsupported(f"heads of unknown size, {q.type}")
        scale = 1 / math.sqrt(size)
    same = q.shape[-2] == k.shape[-2]
    if causal and not same:
        mask.hide(_not_later(call, q.shape[-2], k.shape[-2]))
    operands = mask.operand(q)
    return call.b.attention(q, k, v, *operands, scale=scale, causal=causal and same)


def _cached(call: Call, past: Node | None, new: Node) -> Node:
    return new if past is None else call.concat([past, new], 2)


@operator("Attention", domain=MICROSOFT)
def packed_attention(call: Call) -> tuple[Node | None, ...]:
    """Queries, keys and values are one product of the input with packed weights; `past` and `present` hold keys and values."""
    x, weights, bias = call.require_rank(0, 3, 3), call.require_rank(1, 2, 2), call.get(2)
    if call.flag("do_rotary") or call.flag("past_present_share_buffer"):
        call.unsupported("rotary positions or a shared cache")
    packed = call.b.matmul(x, weights)
    packed = packed if bias is None else call.b.add(packed, bias)
    return attention_of_packed(call, packed, mask=call.get(3), past=call.get(4), bias=call.get(5))


def attention_of_packed(
    call: Call, packed: Node, *, mask: Node | None, past: Node | None, bias: Node | None
) -> tuple[Node | None, ...]:
    """The result and `present` of queries, keys and values that lie side by side in `packed` [batch, length, q + k + v]."""
    batch, _, hidden = packed.shape
    sizes = call.attribute("qkv_hidden_sizes") or (hidden // 3,) * 3
    parts: list[Node] = []
    start: Dim = 0
    for size in sizes:
        parts.append(_split(call, call.slice(packed, 2, start, start + size), call.attribute("num_heads")))
        start += size
    q, k, v = parts
    if past is not None:
        before = [call.reshape(call.slice(past, 0, n, n + 1), past.shape[1:]) for n in range(2)]
        k, v = call.concat([before[0], k], 2), call.concat([before[1], v], 2)
    present = None
    if len(call.outputs) > 1 and call.outputs[1]:
        present = call.concat([call.reshape(n, (1, *n.shape)) for n in (k, v)], 0)
    hidden_keys = _Mask(call)
    if mask is not None:
        _padding(call, hidden_keys, mask, batch, k.shape[-2])
    if bias is not None:
        hidden_keys.add(bias)
    return _joined(call, _attend(call, q, k, v, hidden_keys, call.flag("unidirectional"))), present


@operator("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention(call: Call) -> tuple[Node | None, ...]:
    """Of [batch, length, hidden] queries, keys and values, or queries, keys and values packed as [.., heads, 3, size]."""
    heads, query, bias = call.attribute("num_heads"), call[0], call.get(3)
    if query.tensor.rank == 5:
        q, k, v = _unpacked(call, query, 3)
    elif call.get(1) is not None and call[1].tensor.rank == 5:
        q, (k, v) = _split(call, query, heads), _unpacked(call, call[1], 2)
    else:
        q = _split(call, query, heads)
        k, v = (x if x.tensor.rank == 4 else _split(call, x, heads) for x in (call[1], call[2]))
    if bias is not None:
        parts, start = [], 0
        for n in (q, k, v):
            width = heads * n.shape[3]
            part = call.slice(bias, 0, start, start + width)
            parts.append(call.b.add(n, call.reshape(part, (1, heads, 1, n.shape[3]))))
            start += width
        q, k, v = parts
    k, v = _cached(call, call.get(6), k), _cached(call, call.get(7), v)
    mask = _Mask(call)
    if call.get(4) is not None:
        _padding(call, mask, call[4], q.shape[0], k.shape[-2])
    if call.get(5) is not None:
        mask.add(call[5])
    return _joined(call, _attend(call, q, k, v, mask, call.flag("unidirectional"))), k, v


@operator("GroupQueryAttention", domain=MICROSOFT)
def group_query_attention(call: Call) -> tuple[Node | None, ...]:
    """Causal attention in which groups of heads share keys; the cache is what came before, or a buffer with room for the rest."""
    heads, kv_heads = call.attribute("num_heads"), call.attribute("kv_num_heads")
    if call.attribute("softcap", 0.0) or call.flag("smooth_softmax") or any(call.get(k) is not None for k in range(10, 14)):
        call.unsupported("soft caps, smooth softmax, a bias or sinks")
    query = call.require_rank(0, 3, 3)
    batch, length, hidden = query.shape
    if call.get(1) is None:
        size = hidden // (heads + 2 * kv_heads)
        widths = [heads * size, kv_heads * size, kv_heads * size]
        starts = [0, widths[0], widths[0] + widths[1]]
        q, k, v = (call.slice(query, 2, start, start + width) for start, width in zip(starts, widths))
    else:
        q, k, v = query, call[1], call[2]
    q, k, v = _split(call, q, heads), _split(call, k, kv_heads), _split(call, v, kv_heads)
    # the last key of each row: its number, so one less than how many there are
    total = call.b.add(call.reshape(call.cast(call[5], i64), (batch, 1)), call.b.constant(1, i64))
    before = call.b.sub(total, call.size(length, i64))
    place = call.b.add(before, _places(call, length, (1, length)))
    if call.flag("do_rotary"):
        width = 2 * call[7].shape[1]
        at = call.b.maximum(place, 0)
        q, k = (rotated(call, n, call[7], call[8], at, width, call.flag("rotary_interleaved")) for n in (q, k))
    past_k, past_v = call.get(3), call.get(4)
    if past_k is not None:
        # new keys stand behind those that are valid, whatever room the buffer has
        room = past_k.shape[2] + length
        k, v = (_behind(call, past, new, before, room) for past, new in ((past_k, k), (past_v, v)))  # type: ignore[arg-type]
    keys = k.shape[-2]
    mask = _Mask(call)
    at_key = _places(call, keys, (1, 1, 1, keys))
    at_query = call.reshape(place, (batch, 1, length, 1))
    mask.hide(call.b.le(at_key, at_query))
    window = call.attribute("local_window_size", -1)
    if window > 0:
        mask.hide(call.b.gt(at_key, call.b.sub(at_query, call.b.constant(window, i64))))
    wide = [repeated(call, n, heads) for n in (k, v)]
    return _joined(call, _attend(call, q, wide[0], wide[1], mask, causal=False)), k, v


def _behind(call: Call, past: Node, new: Node, before: Node, room: Dim) -> Node:
    """[batch, heads, room, size]: of each row the first `before` of `past`, then `new`, then what is left of `past`."""
    batch, kv_heads, length, size = new.shape
    place = _places(call, room, (1, 1, room, 1))
    step = call.b.sub(place, call.reshape(before, (batch, 1, 1, 1)))
    is_new = call.b.bitwise_and(call.b.ge(step, 0), call.b.lt(step, call.size(length, i64)))
    shape = (batch, kv_heads, room, size)
    from_new = call.b.minimum(call.b.maximum(step, 0), call.size(length - 1, i64))
    added = call.b.gather(new, call.expand(from_new, shape), axis=2)
    kept = call.concat([past, call.full(0, past.dtype, (batch, kv_heads, length, size))], 2)
    return call.b.where(is_new, added, kept)
