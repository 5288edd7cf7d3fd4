"""Operators of the domain `com.microsoft` that optimised transformers are written with: activations, products, norms, embeddings.

Semantics are those of ONNX Runtime's documentation of its contrib operators.
"""

from __future__ import annotations

from dlcompiler.frontends.onnx_ops_activation import formula
from dlcompiler.frontends.onnx_ops_contraction import matrix_product
from dlcompiler.frontends.onnx_registry import Call, operator
from dlcompiler.ir.expression import Dim
from dlcompiler.ir.graph import Node
from dlcompiler.ir.ops.block_scaled import unpack_bits, without_zero_points
from dlcompiler.ir.types import f32, i32, i64, u8

MICROSOFT = "com.microsoft"


def _with_bias(call: Call, x: Node, index: int) -> Node:
    bias = call.get(index)
    return x if bias is None else call.b.add(x, bias)


@operator("FastGelu", domain=MICROSOFT)
def fast_gelu(call: Call) -> Node:
    return call.b.gelu(_with_bias(call, call[0], 1), approximate="tanh")


@operator("BiasGelu", "Gelu", domain=MICROSOFT)
def bias_gelu(call: Call) -> Node:
    return call.b.gelu(_with_bias(call, call[0], 1), approximate="none")


@operator("QuickGelu", domain=MICROSOFT)
def quick_gelu(call: Call) -> Node:
    alpha = call.attribute("alpha", 1.702)
    return formula(call, lambda x: call.b.mul(x, call.b.sigmoid(call.b.mul(x, alpha))))


@operator("FusedMatMul", "TransposeMatMul", domain=MICROSOFT)
def fused_matmul(call: Call) -> Node:
    """alpha * a @ b, either transposed first; `transBatch` moves the first dimension behind the others but the last."""
    operands = []
    for index, side in enumerate("AB"):
        x = call[index]
        rank = x.tensor.rank
        if call.flag(f"transBatch{side}") and rank > 2:
            x = call.permute(x, (*range(1, rank - 1), 0, rank - 1))
        if call.flag(f"trans{side}") and rank > 1:
            x = call.permute(x, (*range(rank - 2), rank - 1, rank - 2))
        operands.append(x)
    result = matrix_product(call, *operands)
    alpha = call.attribute("alpha", 1.0)
    return result if alpha == 1 else call.b.mul(result, call.number(alpha, result))


# -- norms -------------------------------------------------------------------------------------------------------------------


def _statistics(call: Call, x: Node, epsilon: float, centred: bool) -> tuple[Node, Node]:
    """The mean and the inverse deviation (or root mean square) along the last axis, in float32."""
    axes = (x.tensor.rank - 1,)
    wide = call.wide(x)
    mean = call.b.mean(wide, axes=axes, keepdims=True)
    if centred:
        spread = call.b.variance(wide, axes=axes, keepdims=True, correction=0)
    else:
        spread = call.b.mean(call.b.mul(wide, wide), axes=axes, keepdims=True)
    return mean, call.b.rsqrt(call.b.add(spread, epsilon))


@operator("SimplifiedLayerNormalization")
@operator("SimplifiedLayerNormalization", domain=MICROSOFT)
def simplified_layer_normalization(call: Call):
    """x / sqrt(mean(x**2) + epsilon) * scale, over the dimensions from `axis` on."""
    x = call.require_rank(0, 1)
    rank = x.tensor.rank
    axis, epsilon = call.axis(-1, rank), call.attribute("epsilon", 1e-5)
    result = call.b.rms_norm(x, call.cast(call[1], x.dtype), rank=rank - axis, epsilon=epsilon)
    if not any(call.outputs[1:]):
        return result
    if axis != rank - 1:
        call.unsupported("the inverse root of several dimensions")
    return result, _statistics(call, x, epsilon, centred=False)[1]


@operator("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_layer_normalization(call: Call) -> tuple[Node | None, ...]:
    """The norm of input + skip + bias; the sum itself is the last result."""
    simplified = call.op_type.startswith("SkipSimplified")
    gamma = call[2]
    beta, bias = (None, call.get(3)) if simplified else (call.get(3), call.get(4))
    epsilon = call.attribute("epsilon", 1e-12)
    total = call.b.add(call[0], call[1])
    total = total if bias is None else call.b.add(total, bias)
    if simplified:
        result = call.b.rms_norm(total, gamma, rank=1, epsilon=epsilon)
    else:
        result = call.b.layer_norm(total, *(n for n in (gamma, beta) if n is not None), rank=1, epsilon=epsilon)
    mean = inverse = None
    if any(call.outputs[1:3]):
        mean, inverse = _statistics(call, total, epsilon, centred=not simplified)
    return result, mean, inverse, total


# -- embeddings --------------------------------------------------------------------------------------------------------------


@operator("EmbedLayerNormalization", domain=MICROSOFT)
def embed_layer_normalization(call: Call) -> tuple[Node | None, ...]:
    """The norm of the sum of word, position and segment embeddings; how many words of each row are no padding; the sum."""
    ids, segments = call.require_rank(0, 2, 2), call.get(1)
    words, positions = call.require_rank(2, 2, 2), call.require_rank(3, 2, 2)
    batch, length = ids.shape
    total = call.b.index(words, call.cast(ids, i64), axes=(0,))
    place = call.get(8)
    if place is None:
        place = call.reshape(call.b.iota(size=length), (1, length))
    total = call.b.add(total, call.b.index(positions, call.cast(place, i64), axes=(0,)))
    if segments is not None:
        total = call.b.add(total, call.b.index(call[4], call.cast(segments, i64), axes=(0,)))
    result = call.b.layer_norm(total, call[5], call[6], rank=1, epsilon=call.attribute("epsilon", 1e-12))
    mask = call.get(7)
    if mask is None:
        seen = call.full(0, i32, (batch,))
    else:
        seen = call.b.reduce_sum(call.cast(mask, i32), axes=(1,), keepdims=False)
    return result, seen, total


@operator("RotaryEmbedding", domain=MICROSOFT)
def rotary_embedding(call: Call) -> Node:
    """Pairs of each head's numbers turned by the angles of the position, whose cosines and sines are in tables."""
    x = call.require_rank(0, 3, 4)
    cos, sin = call.require_rank(2, 2, 2), call.require_rank(3, 2, 2)
    if call.flag("is_packed_batching"):
        call.unsupported("packed batches")
    width = call.attribute("rotary_embedding_dim", 0) or 2 * cos.shape[1]
    if x.tensor.rank == 3:
        batch, length, hidden = x.shape
        heads = call.attribute("num_heads", 0)
        size = hidden // heads if heads else 2 * cos.shape[1]
        split = call.permute(call.reshape(x, (batch, length, hidden // size, size)), (0, 2, 1, 3))
    else:
        split = x
        batch, _, length, _ = x.shape
    at = positions_of(call, call[1], batch, length)
    turned = rotated(call, split, cos, sin, at, width, call.flag("interleaved"))
    scale = call.attribute("scale", 1.0)
    turned = turned if scale == 1 else call.b.mul(turned, call.number(scale, turned))
    return call.reshape(call.permute(turned, (0, 2, 1, 3)), x.shape) if x.tensor.rank == 3 else turned


def positions_of(call: Call, given: Node, batch, length) -> Node:
    """[batch or 1, length] positions: as given, or counted from the one number given."""
    if given.tensor.rank == 1 or given.tensor.numel == 1:
        first = call.reshape(call.cast(given, i64), (1, 1))
        return call.b.add(first, call.reshape(call.b.iota(size=length), (1, length)))
    return call.cast(given, i64)


def rotated(call: Call, x: Node, cos: Node, sin: Node, at: Node, width: Dim, interleaved: bool) -> Node:
    """[batch, heads, length, size], the first `width` numbers of each head turned; `at` are positions [batch or 1, length]."""
    last = 3
    size = x.shape[last]
    rows = at.shape[0]
    table = [call.reshape(call.b.index(t, at, axes=(0,)), (rows, 1, at.shape[1], t.shape[1])) for t in (cos, sin)]
    c, s = (call.slice(t, last, 0, width // 2) for t in table)
    part = call.slice(x, last, 0, width)
    if interleaved:
        pairs = call.reshape(part, (*x.shape[:last], width // 2, 2))
        a, b = (call.reshape(call.slice(pairs, 4, k, k + 1), (*x.shape[:last], width // 2)) for k in range(2))
    else:
        a, b = call.slice(part, last, 0, width // 2), call.slice(part, last, width // 2, width)
    left = call.b.sub(call.b.mul(a, c), call.b.mul(b, s))
    right = call.b.add(call.b.mul(a, s), call.b.mul(b, c))
    if interleaved:
        ends = (*x.shape[:last], width // 2, 1)
        turned = call.reshape(call.concat([call.reshape(left, ends), call.reshape(right, ends)], 4), part.shape)
    else:
        turned = call.concat([left, right], last)
    return turned if width == size else call.concat([turned, call.slice(x, last, width, size)], last)


# -- packed weights ------------------------------------------------------------------------------------------------------------


@operator("MatMulNBits", domain=MICROSOFT)
def matmul_n_bits(call: Call) -> Node:
    """a @ dequantised(b).T + bias. `b` [N, blocks, bytes] holds 2, 4 or 8 bit numbers, the first in the lowest bits of a byte.

    Computed in float32. Zero points take their share off with the sums of `a` over each block: see `ir.ops.block_scaled`.
    """
    given = call.require_rank(0, 1)
    inner, columns, bits = (call.attribute(name) for name in ("K", "N", "bits"))
    bits, block = bits or 4, call.attribute("block_size")
    if bits not in (2, 4, 8) or not block or block * bits % 8 or call.get(4) is not None:
        call.unsupported(f"{bits} bits in blocks of {block}, or an order of groups")
    blocks = -(-inner // block)
    a = call.cast(given, f32)
    if missing := blocks * block - inner:
        none = (0,) * (a.tensor.rank - 1)
        a = call.b.pad(a, low=(*none, 0), high=(*none, missing), value=0)
    scales = call.cast(call.reshape(call[2], (columns, blocks)), f32)
    codes = call.reshape(call[1], (columns, blocks * (block * bits // 8)))
    result = call.b.block_linear(a, codes, scales, bits=bits, block=block, columns=columns)
    zero = call.get(3)
    if zero is not None:
        if zero.dtype is u8:
            held = -(-blocks * bits // 8) * 8 // bits
            zero = call.slice(unpack_bits(call.b, zero, bits, (columns, held)), 1, 0, blocks)
        moved = call.b.sub(call.cast(call.reshape(zero, (columns, blocks)), f32), float(1 << (bits - 1)))
        result = without_zero_points(call.b, result, a, call.b.mul(moved, scales), block)
    bias = call.get(5)
    if bias is not None:
        result = call.b.add(result, call.cast(bias, f32))
    return call.cast(result, given.dtype)
