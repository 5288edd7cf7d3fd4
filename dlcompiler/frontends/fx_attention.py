"""Rules for attention: the operator as a model calls it, and what torch makes of it on CPUs and on NVIDIA GPUs.

On a GPU torch chooses an implementation while it traces. What they are given and give differs little: all become `attention`, or,
where a backward pass reads the logarithms of sums, `attention_with_logsumexp` and `attention_backward`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from dlcompiler.frontends.fx_rules import NoRule, rule
from dlcompiler.frontends.fx_view import expand, reshape
from dlcompiler.ir.expression import Dim
from dlcompiler.ir.graph import Node
from dlcompiler.ir.ops.attention_training import expand_mask_gradient
from dlcompiler.ir.types import boolean, compute_dtype


def attention(i: Any, q, k, v, mask, dropout: float, causal: bool, scale: Any, grouped: bool) -> Node:
    """softmax(scale * q @ k.T + mask) @ v of [..., H, L, E]; `grouped`: k and v may have fewer heads, each for several of q."""
    if grouped:
        k, v = (_repeat_heads(i, x, q.shape[-3]) for x in (k, v))
    short = q.tensor.rank == 2
    if short:
        q, k, v = (reshape(i, x, (1, *x.shape)) for x in (q, k, v))
    masks, attributes = _settings(i, q, mask, dropout, causal, scale)
    result = i.b.attention(q, k, v, *masks, **attributes)
    return reshape(i, result, result.shape[1:]) if short else result


def _settings(i: Any, q: Node, mask: Node | None, dropout: float, causal: bool, scale: Any) -> tuple[list[Node], dict[str, Any]]:
    """The mask as attention takes it, if there is one, and the attributes."""
    if dropout:
        raise NoRule("attention with dropout")
    if scale is None:
        if not isinstance(q.shape[-1], int):
            raise NoRule("attention whose head size is not known at compile time")
        scale = 1 / math.sqrt(q.shape[-1])
    if not isinstance(scale, int | float) or not q.dtype.is_float:
        raise NoRule("attention with a scale that is not known at compile time")
    masks = [] if mask is None else [mask if mask.dtype is boolean else i.cast(mask, q.dtype)]
    return masks, {"scale": float(scale), "causal": bool(causal)}


def _repeat_heads(i: Any, x: Node, heads: Dim) -> Node:
    """[..., H, S, E] --> [..., heads, S, E], each head repeated next to itself."""
    *lead, own, length, width = x.shape
    if own == heads:
        return x
    if not (isinstance(own, int) and isinstance(heads, int)):
        raise NoRule("grouped attention with a number of heads that is not known at compile time")
    spread = reshape(i, x, (*lead, own, 1, length, width))
    wide = expand(i, spread, (*lead, own, heads // own, length, width))
    return reshape(i, wide, (*lead, heads, length, width))


@rule("scaled_dot_product_attention.default")
def _scaled_dot_product_attention(i, q, k, v, mask=None, dropout=0.0, causal=False, scale=None, enable_gqa=False):
    return attention(i, q, k, v, mask, dropout, causal, scale, enable_gqa)


def _forward(i: Any, q: Node, k: Node, v: Node, mask: Node | None, dropout: float, causal: bool, scale: Any) -> list[Any]:
    """Output and, if somebody reads it, the logarithms of sums [N, H, L], f32 (f64 of f64)."""
    k, v = (_repeat_heads(i, x, q.shape[-3]) for x in (k, v))
    if not i.uses(1):
        return [attention(i, q, k, v, mask, dropout, causal, scale, False), None]
    masks, attributes = _settings(i, q, mask, dropout, causal, scale)
    both = i.b.attention_with_logsumexp(q, k, v, *masks, **attributes)
    return [i.b("tuple.get", both, index=index) for index in range(2)]


def _backward(
    i: Any, grad: Node, q: Node, k: Node, v: Node, mask: Node | None, out: Node, logsumexp: Node, dropout: float, causal: bool,
    scale: Any, wants_mask: bool = False,
) -> list[Any]:  # fmt: skip
    """dq, dk, dv, and that of the mask or None; of heads that share keys the gradients of these are added up."""
    own, heads = k.shape[-3], q.shape[-3]
    wide = [_repeat_heads(i, x, heads) for x in (k, v)]
    masks, attributes = _settings(i, q, mask, dropout, causal, scale)
    wide_dtype = compute_dtype(q.dtype)
    products = i.b.mul(i.cast(grad, wide_dtype), i.cast(out, wide_dtype))
    delta = i.b.reduce_sum(products, axes=(out.tensor.rank - 1,), keepdims=False)
    operands = grad, q, *wide, logsumexp, delta, *masks
    gradients = i.b.attention_backward(*operands, **attributes)
    of_query, *others = (i.b("tuple.get", gradients, index=index) for index in range(3))
    if own != heads:
        others = [_sum_groups(i, x, own) for x in others]
    of_mask = i.cast(expand_mask_gradient(i.b, operands, attributes), mask.dtype) if wants_mask and mask is not None else None
    return [of_query, *others, of_mask]


def _sum_groups(i: Any, x: Node, heads: Dim) -> Node:
    """[..., H, S, E] --> [..., heads, S, E], each the sum of those next to each other."""
    *lead, many, length, width = x.shape
    grouped = reshape(i, i.cast(x, compute_dtype(x.dtype)), (*lead, heads, many // heads, length, width))
    return i.cast(i.b.reduce_sum(grouped, axes=(len(lead) + 1,), keepdims=False), x.dtype)


@rule("_scaled_dot_product_flash_attention_for_cpu.default")
def _flash_attention_cpu(i, q, k, v, dropout=0.0, causal=False, attn_mask=None, scale=None):
    return tuple(_forward(i, q, k, v, attn_mask, dropout, causal, scale))


@rule("_scaled_dot_product_flash_attention_for_cpu_backward.default")
def _flash_attention_cpu_backward(i, grad, q, k, v, out, logsumexp, dropout, causal, attn_mask=None, scale=None):
    return tuple(_backward(i, grad, q, k, v, attn_mask, out, logsumexp, dropout, causal, scale)[:3])


@rule("_scaled_dot_product_attention_math.default")
def _attention_math(i, q, k, v, mask=None, dropout=0.0, causal=False, dropout_mask=None, scale=None, enable_gqa=False):
    if i.uses(1) or dropout_mask is not None:
        raise NoRule("the weights of attention")
    return attention(i, q, k, v, mask, dropout, causal, scale, enable_gqa), None


# -- NVIDIA GPUs ---------------------------------------------------------------------------------------------------------------


def _zeros(i: Any, index: int) -> Node | None:
    """What stands for the state of a generator that nothing was drawn from, if somebody reads it."""
    example = i.meta[index]
    if not i.uses(index) or not isinstance(example, torch.Tensor):
        return None
    return i.b.constant(np.zeros(tuple(example.shape), i.type_of(example).dtype.numpy))


@rule("_scaled_dot_product_flash_attention.default")
def _flash_attention(i, q, k, v, dropout=0.0, causal=False, return_debug_mask=False, scale=None):
    sizes = [x if isinstance(x, int) else None for x in i.meta[4:6]]
    return (*_forward(i, q, k, v, None, dropout, causal, scale), None, None, *sizes, _zeros(i, 6), _zeros(i, 7), None)


@rule("_scaled_dot_product_flash_attention_backward.default")
def _flash_attention_backward(
    i, grad, q, k, v, out, logsumexp, cum_q, cum_k, max_q, max_k, dropout, causal, seed, offset, scale=None
):  # fmt: skip
    return tuple(_backward(i, grad, q, k, v, None, out, logsumexp, dropout, causal, scale)[:3])


@rule("_scaled_dot_product_efficient_attention.default")
def _efficient_attention(i, q, k, v, mask, compute_logsumexp, dropout=0.0, causal=False, scale=None):
    out, logsumexp = _forward(i, q, k, v, mask, dropout, causal, scale)
    if logsumexp is not None:
        # torch rounds the rows up to a multiple of 32
        more = i.type_of(i.meta[1]).shape[-1] - logsumexp.shape[-1]
        if more != 0:
            logsumexp = i.b.pad(logsumexp, low=(0, 0, 0), high=(0, 0, more), value=0.0)
    return out, logsumexp, _zeros(i, 2), _zeros(i, 3)


@rule("_scaled_dot_product_efficient_attention_backward.default")
def _efficient_attention_backward(
    i, grad, q, k, v, mask, out, logsumexp, seed, offset, dropout, wanted, causal=False, scale=None
):  # fmt: skip
    length = q.shape[-2]
    if logsumexp.shape[-1] != length:
        logsumexp = i.b.slice(logsumexp, starts=(0, 0, 0), limits=(*logsumexp.shape[:-1], length), steps=(1, 1, 1))
    return tuple(_backward(i, grad, q, k, v, mask, out, logsumexp, dropout, causal, scale, wanted[3]))


@rule("_scaled_dot_product_cudnn_attention.default")
def _cudnn_attention(i, q, k, v, mask, compute_logsumexp, dropout=0.0, causal=False, return_debug_mask=False, scale=None):
    out, logsumexp = _forward(i, q, k, v, mask, dropout, causal, scale)
    if logsumexp is not None:  # cuDNN's has one dimension more, of size 1
        logsumexp = reshape(i, logsumexp, i.type_of(i.meta[1]).shape)
    sizes = [x if isinstance(x, int) else None for x in i.meta[4:6]]
    return out, logsumexp, None, None, *sizes, _zeros(i, 6), _zeros(i, 7), None


@rule("_scaled_dot_product_cudnn_attention_backward.default")
def _cudnn_attention_backward(
    i, grad, q, k, v, out, logsumexp, seed, offset, mask, cum_q, cum_k, max_q, max_k, dropout, causal, scale=None
):  # fmt: skip
    if mask is not None and 0 in mask.shape:  # what stands for none
        mask = None
    return tuple(_backward(i, grad, q, k, v, mask, out, reshape(i, logsumexp, q.shape[:-1]), dropout, causal, scale)[:3])
