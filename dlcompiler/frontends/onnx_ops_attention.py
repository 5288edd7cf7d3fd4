"""Attention and rotary embedding (opset 23 and later)."""

from __future__ import annotations

import math

from dlcompiler.frontends.onnx_registry import Call, ToFunctionBody, operator
from dlcompiler.ir.errors import ShapeError
from dlcompiler.ir.expression import floor_div
from dlcompiler.ir.graph import Node
from dlcompiler.ir.ops.rules import broadcast_shapes


def _heads(call: Call, x: Node, name: str) -> Node:
    """[batch, length, heads * width] --> [batch, heads, length, width]; four dimensions stay."""
    if x.tensor.rank == 4:
        return x
    count = call.attribute(name)
    if x.tensor.rank != 3 or not count or count < 1:
        call.invalid(f"{x.type} needs four dimensions, or three and the attribute {name}")
    batch, length, width = x.shape
    return call.permute(call.reshape(x, (batch, length, count, floor_div(width, count))), (0, 2, 1, 3))


def repeated(call: Call, x: Node, heads) -> Node:
    """Each head of keys or values repeated for its group of query heads."""
    batch, count, length, width = x.shape
    if count == heads:
        return x
    if not isinstance(heads, int) or not isinstance(count, int) or count == 0 or heads % count:
        call.misfit(f"{heads} query heads are no multiple of {count} heads of keys")
    spread = call.expand(call.reshape(x, (batch, count, 1, length, width)), (batch, count, heads // count, length, width))
    return call.reshape(spread, (batch, heads, length, width))


@operator("Attention")
def attention(call: Call) -> Node:
    """The plain case is the `attention` op; caches, soft caps and the other results are left to the schema's function body."""
    extras = call.inputs[4:]
    plain = not any(call.outputs[1:]) and all(e is None for e in extras) and call.attribute("softcap", 0.0) == 0
    if not plain or call.attribute("left_window_size", -1) >= 0 or call.attribute("right_window_size", -1) >= 0:
        raise ToFunctionBody
    q = _heads(call, call[0], "q_num_heads")
    k, v = (repeated(call, _heads(call, call[n], "kv_num_heads"), q.shape[1]) for n in (1, 2))
    if not (q.dtype is k.dtype is v.dtype) or not isinstance(q.shape[-1], int) or q.shape[-1] == 0:
        raise ToFunctionBody
    operands = [q, k, v]
    mask = call.get(3)
    if mask is not None:
        scores = (*q.shape[:-1], k.shape[-2])
        try:
            fits = broadcast_shapes([scores, mask.shape]) == scores
        except ShapeError:
            fits = False
        if not fits:
            raise ToFunctionBody
        operands.append(mask)
    scale = call.attribute("scale", 1 / math.sqrt(q.shape[-1]))
    result = call.b.attention(*operands, scale=scale, causal=call.flag("is_causal"))
    if call.rank(0) == 4:
        return result
    batch, heads, length, width = result.shape
    return call.reshape(call.permute(result, (0, 2, 1, 3)), (batch, length, heads * width))
