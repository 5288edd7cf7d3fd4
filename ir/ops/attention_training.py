"""Attention as training needs it: with the logarithm of each row's sum of exponentials, and its gradients from that.

    out, logsumexp = attention_with_logsumexp(q, k, v, mask)
    dq, dk, dv = attention_backward(grad, q, k, v, logsumexp, delta, mask)     delta = sum of grad * out over each row

The scores are made again in the backward pass, so that only one number a row is kept from forward to backward.
"""

from __future__ import annotations

import numpy as np
from dlcompiler.ir.errors import ShapeError
from dlcompiler.ir.ops import Trait, lookup, register
from dlcompiler.ir.ops.rules import require_operands
from dlcompiler.ir.types import TensorType, TupleType, boolean, compute_dtype


def _infer_attention(types, attributes) -> TensorType:
    out = lookup("attention").infer(types, attributes)
    assert isinstance(out, TensorType)
    return out


def _infer_forward(types, attributes):
    """As `attention`; also logsumexp[..., L], f32 (f64 of f64): +inf for a row that sees nothing."""
    out = _infer_attention(types, attributes)
    return TupleType((out, TensorType(compute_dtype(out.dtype), out.shape[:-1])))


def _infer_backward(types, attributes):
    """grad[..., L, F], q[..., L, E], k[..., S, E], v[..., S, F], logsumexp and delta[..., L], mask?; nothing broadcast.

    logsumexp and delta are f32, or f64 of f64. The results are like q, k and v. attributes as of `attention`.
    """
    require_operands("attention_backward", types, 6, 7)
    grad, q, k, v, logsumexp, delta, *mask = types
    out = _infer_attention((q, k, v, *mask), attributes)
    lead = out.shape[:-2]
    if grad.shape != out.shape or any(t.shape[:-2] != lead for t in (q, k, v)):
        raise ShapeError(f"the gradients of attention of {q}, {k}, {v} from {grad}: sizes do not fit")
    rows = TensorType(compute_dtype(q.dtype), out.shape[:-1])
    if any(t != rows for t in (logsumexp, delta)):
        raise ShapeError(f"attention_backward takes {rows}, one number a row, not {logsumexp} and {delta}")
    return TupleType((q, k, v))


def _scores(q, k, mask, attributes):
    """Scaled and masked scores in float32 or more."""
    q, k = (x.astype(np.float32) if x.dtype.itemsize < 4 else x for x in (q, k))
    scores = np.matmul(q * np.asarray(attributes["scale"], q.dtype), np.swapaxes(k, -1, -2))
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask.astype(scores.dtype)
    if attributes["causal"]:
        length, seen = scores.shape[-2:]
        scores = np.where(np.arange(seen) <= np.arange(length)[:, None], scores, np.asarray(-np.inf, scores.dtype))
    return scores


def _evaluate_forward(operands, attributes):
    q, k, v, *mask = operands
    scores = _scores(q, k, mask[0] if mask else None, attributes)
    largest = scores.max(axis=-1, keepdims=True, initial=-np.inf)
    shift = np.where(np.isneginf(largest), np.asarray(0, scores.dtype), largest)
    weights = np.exp(scores - shift)
    total = weights.sum(axis=-1, keepdims=True)
    is_blind = total == 0
    out = np.matmul(weights / np.where(is_blind, 1, total), v.astype(weights.dtype))
    with np.errstate(divide="ignore"):
        logsumexp = np.where(is_blind, np.inf, np.log(total) + shift)[..., 0]
    return out.astype(q.dtype), logsumexp


def _evaluate_backward(operands, attributes):
    grad, q, k, v, logsumexp, delta, *mask = operands
    scores = _scores(q, k, mask[0] if mask else None, attributes)
    wide = [x.astype(scores.dtype) for x in (grad, q, k, v)]
    weights = np.exp(scores - logsumexp[..., None])
    slopes = weights * (np.matmul(wide[0], np.swapaxes(wide[3], -1, -2)) - delta[..., None])
    slopes = slopes * np.asarray(attributes["scale"], scores.dtype)
    results = (
        np.matmul(slopes, wide[2]),
        np.matmul(np.swapaxes(slopes, -1, -2), wide[1]),
        np.matmul(np.swapaxes(weights, -1, -2), wide[0]),
    )
    return tuple(r.astype(x.dtype) for r, x in zip(results, (q, k, v)))


# -- written with other ops ----------------------------------------------------------------------------------------------------


def _turned(b, x):
    rank = x.tensor.rank
    return b.permute(x, dims=(*range(rank - 2), rank - 1, rank - 2))


def _expand_scores(b, q, k, mask, attributes):
    dtype = compute_dtype(q.dtype)
    q, k = (b.cast(x, dtype=dtype.name) if x.dtype is not dtype else x for x in (q, k))
    scores = b.matmul(b.mul(q, attributes["scale"]), _turned(b, k))
    length, seen = scores.shape[-2:]
    lowest = b.constant(-np.inf, dtype)
    if mask is not None and mask.dtype is boolean:
        scores = b.where(mask, scores, lowest)
    elif mask is not None:
        scores = b.add(scores, b.cast(mask, dtype=dtype.name))
    if attributes["causal"]:
        scores = b.where(b.le(b.iota(size=seen), b.reshape(b.iota(size=length), shape=(length, 1))), scores, lowest)
    return scores


def _expand_forward(b, operands, attributes):
    q, k, v, *mask = operands
    scores = _expand_scores(b, q, k, mask[0] if mask else None, attributes)
    dtype, axis = scores.dtype, scores.tensor.rank - 1
    largest = b.reduce_max(scores, axes=(axis,), keepdims=True)
    zero, one = b.constant(0, dtype), b.constant(1, dtype)
    shift = b.where(b.eq(largest, b.constant(-np.inf, dtype)), zero, largest)
    weights = b.exp(b.sub(scores, shift))
    total = b.reduce_sum(weights, axes=(axis,), keepdims=True)
    is_blind = b.eq(total, zero)
    out = b.matmul(b.cast(b.div(weights, b.where(is_blind, one, total)), dtype=v.dtype.name), v)
    logsumexp = b.where(is_blind, b.constant(np.inf, dtype), b.add(b.log(total), shift))
    return out, b.reshape(logsumexp, shape=scores.shape[:-1])


def _column(b, x, dtype):
    return b.reshape(b.cast(x, dtype=dtype.name) if x.dtype is not dtype else x, shape=(*x.shape, 1))


def expand_mask_gradient(b, operands, attributes):
    """The gradient of an added mask from the operands of `attention_backward`, made of other ops: it is as large as all scores.

    Where the mask is broadcast, sums; the mask's dtype and shape.
    """
    grad, q, k, v, logsumexp, delta, mask = operands
    dtype = compute_dtype(q.dtype)
    # operands of products stay as narrow as they are: the products' own sums are wide
    scores = b.mul(b.cast(b.matmul(q, _turned(b, k)), dtype=dtype.name), attributes["scale"])
    scores = b.add(scores, b.cast(mask, dtype=dtype.name))
    if attributes["causal"]:
        length, seen = scores.shape[-2:]
        is_seen = b.le(b.iota(size=seen), b.reshape(b.iota(size=length), shape=(length, 1)))
        scores = b.where(is_seen, scores, b.constant(-np.inf, dtype))
    weights = b.exp(b.sub(scores, _column(b, logsumexp, dtype)))
    products = b.cast(b.matmul(grad, _turned(b, v)), dtype=dtype.name)
    slopes = b.mul(weights, b.sub(products, _column(b, delta, dtype)))
    more = slopes.tensor.rank - mask.tensor.rank
    axes = tuple(d for d in range(slopes.tensor.rank) if d < more or (mask.shape[d - more] == 1 and slopes.shape[d] != 1))
    total = b.reduce_sum(slopes, axes=axes, keepdims=False) if axes else slopes
    total = total if total.shape == mask.shape else b.reshape(total, shape=mask.shape)
    return total if total.dtype is mask.dtype else b.cast(total, dtype=mask.dtype.name)


def _expand_backward(b, operands, attributes):
    grad, q, k, v, logsumexp, delta, *mask = operands
    scores = _expand_scores(b, q, k, mask[0] if mask else None, attributes)
    dtype = scores.dtype

    def column(x):
        return _column(b, x, dtype)

    grad, q, k, v = (b.cast(x, dtype=dtype.name) if x.dtype is not dtype else x for x in (grad, q, k, v))
    weights = b.exp(b.sub(scores, column(logsumexp)))
    slopes = b.mul(b.mul(weights, b.sub(b.matmul(grad, _turned(b, v)), column(delta))), attributes["scale"])
    results = (b.matmul(slopes, k), b.matmul(_turned(b, slopes), q), b.matmul(_turned(b, weights), grad))
    return tuple(b.cast(r, dtype=x.dtype.name) if r.dtype is not x.dtype else r for r, x in zip(results, operands[1:4]))


register(
    "attention_with_logsumexp",
    _infer_forward,
    Trait.LIBRARY,
    Trait.COMPOSITE,
    evaluate=_evaluate_forward,
    expand=_expand_forward,
)
register(
    "attention_backward",
    _infer_backward,
    Trait.LIBRARY,
    Trait.COMPOSITE,
    evaluate=_evaluate_backward,
    expand=_expand_backward,
)
