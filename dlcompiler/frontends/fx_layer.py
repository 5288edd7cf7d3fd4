"""Rules for products, convolutions, normalisations, pooling and recurrent layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlcompiler.frontends.fx_pointwise import pointwise
from dlcompiler.frontends.fx_recurrent import KINDS
from dlcompiler.frontends.fx_rules import NoRule, rule
from dlcompiler.frontends.fx_view import expand, permute, reshape
from dlcompiler.frontends.resample import adaptive_matrix, resample_all
from dlcompiler.ir.expression import known
from dlcompiler.ir.graph import Node
from dlcompiler.ir.ops.recurrent import CELLS
from dlcompiler.ir.ops.recurrent_training import kept_widths
from dlcompiler.ir.types import compute_dtype

# -- products ----------------------------------------------------------------------------------------------------------------


@rule("mm.default", "bmm.default")
def _matmul(i, x, y):
    return i.b.linear(x, permute(i, y, (1, 0))) if y.tensor.rank == 2 and y.dtype.is_float else i.b.matmul(x, y)


@rule("matmul.default")
def _general_matmul(i, x, y):
    if x.tensor.rank < 2 or y.tensor.rank < 2:
        left = reshape(i, x, (1, *x.shape)) if x.tensor.rank == 1 else x
        right = reshape(i, y, (*y.shape, 1)) if y.tensor.rank == 1 else y
        return reshape(i, i.b.matmul(left, right), i.shape)
    return i.b.matmul(x, y)


@rule("mv.default", "dot.default", "vdot.default")
def _vector_product(i, x, y):
    return _general_matmul(i, x, y)


@rule("linear.default")
def _linear(i, x, weight, bias=None):
    if weight.tensor.rank != 2:
        raise NoRule("a weight that is no matrix")
    return i.b.linear(x, weight, *([] if bias is None else [bias]))


@rule("addmm.default")
def _addmm(i, bias, x, y, beta=1, alpha=1):
    if beta == 1 and alpha == 1 and bias.shape == (y.shape[1],) and x.dtype.is_float:
        return i.b.linear(x, permute(i, y, (1, 0)), bias)
    return _weighted_sum(i, bias, _matmul(i, x, y), beta, alpha)


@rule("addmv.default")
def _addmv(i, bias, x, y, beta=1, alpha=1):
    return _weighted_sum(i, bias, _general_matmul(i, x, y), beta, alpha)


@rule("baddbmm.default")
def _baddbmm(i, bias, x, y, beta=1, alpha=1):
    return _weighted_sum(i, bias, i.b.matmul(x, y), beta, alpha)


def _weighted_sum(i: Any, bias: Node, product: Node, beta: Any, alpha: Any) -> Node:
    """beta * bias + alpha * product; a beta of 0 drops the bias, NaN and all."""
    if alpha != 1:
        product = pointwise(i, "mul", product, alpha)
    if beta == 0:
        return product
    return i.b.add(bias if beta == 1 else pointwise(i, "mul", bias, beta), product)


# -- convolution -------------------------------------------------------------------------------------------------------------


def _each(values: int | Sequence[int], count: int) -> tuple[int, ...]:
    """One number for each spatial dimension."""
    values = (values,) if isinstance(values, int) else tuple(values)
    if not all(isinstance(v, int) for v in values):
        raise NoRule("a stride, padding or kernel size that is not known at compile time")
    return values * count if len(values) == 1 else values


@rule("convolution.default", "convolution_overrideable.default")
def _convolution(i, x, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
    spatial = x.tensor.rank - 2
    if not x.dtype.is_float or not isinstance(groups, int):
        raise NoRule(f"a convolution of {x.dtype}")
    operands = [x, weight] if bias is None else [x, weight, bias]
    return i.b.convolution(
        *operands,
        strides=_each(stride, spatial),
        padding=_each(padding, spatial),
        dilations=_each(dilation, spatial),
        output_padding=_each(output_padding, spatial),
        groups=groups,
        transposed=bool(transposed),
    )


# -- normalisation -----------------------------------------------------------------------------------------------------------


def _statistics(i: Any, x: Node, axes: tuple[int, ...], epsilon: float) -> tuple[Node, Node, Node]:
    """(x - mean, mean, 1 / sqrt(variance + epsilon)) with the axes kept as 1."""
    average = i.b.mean(x, axes=axes, keepdims=True)
    centred = i.b.sub(x, average)
    spread = i.b.mean(i.b.mul(centred, centred), axes=axes, keepdims=True)
    return centred, average, i.b.rsqrt(i.b.add(spread, epsilon))


def _result(i: Any, k: int, make: Any) -> Node | None:
    """Result `k` in torch's dtype, if it is used."""
    if not i.uses(k):
        return None
    node = make()
    return i.cast(node, i.type_of(i.meta[k]).dtype)


@rule("native_layer_norm.default")
def _layer_norm(i, x, normalized_shape, weight, bias, epsilon):
    rank, dims = x.tensor.rank, len(normalized_shape)
    if not (i.uses(1) or i.uses(2)) and (weight is not None or bias is None):
        affine = [w for w in (weight, bias) if w is not None]
        return i.b.layer_norm(x, *affine, rank=dims, epsilon=float(epsilon)), None, None
    wide = compute_dtype(x.dtype)
    centred, average, scale = _statistics(i, i.cast(x, wide), tuple(range(rank - dims, rank)), float(epsilon))

    def normalized() -> Node:
        result = i.b.mul(centred, scale)
        for op, operand in (("mul", weight), ("add", bias)):
            result = result if operand is None else i.b(op, result, i.cast(operand, wide))
        return result

    return _result(i, 0, normalized), _result(i, 1, lambda: average), _result(i, 2, lambda: scale)


@rule("native_group_norm.default")
def _group_norm(i, x, weight, bias, n, channels, inner, groups, epsilon):
    if x.tensor.rank < 2 or not isinstance(groups, int):
        raise NoRule(f"group norm of {x.type}")
    if not (i.uses(1) or i.uses(2)) and (weight is not None or bias is None):
        affine = [w for w in (weight, bias) if w is not None]
        return i.b.group_norm(x, *affine, groups=groups, epsilon=float(epsilon)), None, None
    wide = compute_dtype(x.dtype)
    grouped = reshape(i, i.cast(x, wide), (x.shape[0], groups, x.shape[1] // groups, *x.shape[2:]))
    centred, average, scale = _statistics(i, grouped, tuple(range(2, grouped.tensor.rank)), float(epsilon))

    def normalized() -> Node:
        result = reshape(i, i.b.mul(centred, scale), x.shape)
        for op, operand in (("mul", weight), ("add", bias)):
            result = result if operand is None else i.b(op, result, _per_channel(i, i.cast(operand, wide), x.tensor.rank))
        return result

    small = (x.shape[0], groups)
    return (
        _result(i, 0, normalized),
        _result(i, 1, lambda: reshape(i, average, small)),
        _result(i, 2, lambda: reshape(i, scale, small)),
    )


def _per_channel(i: Any, x: Node, rank: int) -> Node:
    """[C] shaped to broadcast over [N, C, ...]."""
    return reshape(i, x, (x.shape[0], *(1,) * (rank - 2)))


def _vector(i: Any, x: Node | None, like: Node, value: float) -> Node:
    """A per-channel vector, or one of constants where the model has none."""
    return x if x is not None else expand(i, i.number(value, like.dtype), like.shape)


@rule("_native_batch_norm_legit_no_training.default")
def _batch_norm_inference(i, x, weight, bias, mean, variance, momentum, epsilon):
    if i.uses(1) or i.uses(2):
        # torch gives empty tensors here
        raise NoRule("the saved statistics of batch norm without training")
    scale, shift = _vector(i, weight, mean, 1.0), _vector(i, bias, mean, 0.0)
    return i.b.batch_norm(x, scale, shift, mean, variance, epsilon=float(epsilon)), None, None


@rule("_native_batch_norm_legit_functional.default", "_native_batch_norm_legit.no_stats")
def _batch_norm(i, x, weight, bias, *rest):
    """Results: y, mean, 1/std, and, with running statistics, their new values."""
    mean, variance, training, momentum, epsilon = (None, None, *rest) if len(rest) == 3 else rest
    if not training:
        y, _, _ = _batch_norm_inference(i, x, weight, bias, mean, variance, momentum, epsilon)
        return y, None, None, mean, variance
    wide, rank = compute_dtype(x.dtype), x.tensor.rank
    axes = (0, *range(2, rank))
    centred, average, scale = _statistics(i, i.cast(x, wide), axes, float(epsilon))
    flat = (x.shape[1],)

    def normalized() -> Node:
        result = i.b.mul(centred, scale)
        for op, operand in (("mul", weight), ("add", bias)):
            result = result if operand is None else i.b(op, result, _per_channel(i, i.cast(operand, wide), rank))
        return result

    def moved(old: Node, new: Node) -> Node:
        """(1 - momentum) * old + momentum * new."""
        kept = i.b.mul(i.cast(old, wide), 1 - momentum)
        return i.b.add(kept, i.b.mul(reshape(i, new, flat), momentum))

    return (
        _result(i, 0, normalized),
        _result(i, 1, lambda: reshape(i, average, flat)),
        _result(i, 2, lambda: reshape(i, scale, flat)),
        _result(i, 3, lambda: moved(mean, average)),
        _result(i, 4, lambda: moved(variance, i.b.variance(i.cast(x, wide), axes=axes, keepdims=True, correction=1))),
    )[: len(i.meta)]


# -- pooling -----------------------------------------------------------------------------------------------------------------


def _ceil_extra(sizes, out, kernel, strides, padding, dilations) -> tuple[int, ...]:
    """Elements behind each dimension so that rounding up gives torch's number of windows."""
    extra = []
    for size, count, k, stride, pad, dilation in zip(sizes, out, kernel, strides, padding, dilations):
        needed = (count - 1) * stride + dilation * (k - 1) + 1 - size - 2 * pad
        if not isinstance(needed, int):
            raise NoRule("pooling that rounds up a size that is not known at compile time")
        extra.append(max(needed, 0))
    return tuple(extra)


def _pool_attributes(i: Any, x: Node, kernel, stride, padding, dilation, ceil_mode: bool, spatial: int) -> dict[str, Any]:
    kernel = _each(kernel, spatial)
    attributes: dict[str, Any] = {
        "kernel": kernel,
        "strides": _each(stride, spatial) if stride else kernel,
        "padding": _each(padding, spatial),
        "dilations": _each(dilation, spatial),
    }
    if ceil_mode:
        sizes, out = x.shape[-spatial:], i.shape[-spatial:]
        attributes["ceil_extra"] = _ceil_extra(
            sizes, out, *(attributes[k] for k in ("kernel", "strides", "padding", "dilations"))
        )
    return attributes


def _average_pool_rule(spatial: int):
    def apply(i, x, kernel, stride=(), padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None):
        if not x.dtype.is_float:
            raise NoRule(f"an average of {x.dtype}")
        attributes = _pool_attributes(i, x, kernel, stride, padding, 1, ceil_mode, spatial)
        return i.b.average_pool(x, **attributes, count_padding=bool(count_include_pad), divisor=divisor_override)

    return apply


for _spatial in (1, 2, 3):
    rule(f"avg_pool{_spatial}d.default")(_average_pool_rule(_spatial))


def _adaptive_kernel(x: Node, output_size: Sequence[int]) -> tuple[int, ...] | None:
    """The kernel if all windows are equal; None if they are not. Raises NoRule where sizes are not known."""
    sizes = x.shape[-len(output_size) :]
    if not all(isinstance(size, int) and isinstance(out, int) and out for size, out in zip(sizes, output_size)):
        raise NoRule("adaptive pooling of a size that is not known at compile time, or to nothing")
    pairs = [(known(size), out) for size, out in zip(sizes, output_size)]
    return None if any(size % out for size, out in pairs) else tuple(size // out for size, out in pairs)


def _adaptive_average(i, x, output_size):
    spatial, rank = len(output_size), x.tensor.rank
    if not x.dtype.is_float:
        raise NoRule(f"an average of {x.dtype}")
    if all(size == 1 for size in output_size):
        return i.b.mean(x, axes=tuple(range(rank - spatial, rank)), keepdims=True)
    kernel = _adaptive_kernel(x, output_size)
    if kernel is not None:
        ones, zeros = (1,) * spatial, (0,) * spatial
        return i.b.average_pool(x, kernel=kernel, strides=kernel, padding=zeros, dilations=ones, count_padding=True, divisor=None)
    matrices = [adaptive_matrix(size, out) for size, out in zip(x.shape[rank - spatial :], output_size)]
    return resample_all(i.b, x, [m / m.sum(axis=1, keepdims=True) for m in matrices])


rule("adaptive_avg_pool1d.default", "_adaptive_avg_pool2d.default", "_adaptive_avg_pool3d.default")(_adaptive_average)


# -- recurrent layers ----------------------------------------------------------------------------------------------------------


@rule("lstm.input", "dlcompiler.lstm.default")
def _lstm(i, x, states, weights, has_biases, layers, dropout, train, bidirectional, batch_first):
    return _recurrent(i, "lstm", x, states, weights, has_biases, layers, dropout, train, bidirectional, batch_first)


@rule("gru.input", "dlcompiler.gru.default")
def _gru(i, x, state, weights, has_biases, layers, dropout, train, bidirectional, batch_first):
    return _recurrent(i, "gru", x, [state], weights, has_biases, layers, dropout, train, bidirectional, batch_first)


@rule("rnn_tanh.input", "dlcompiler.rnn_tanh.default")
def _rnn_tanh(i, x, state, weights, has_biases, layers, dropout, train, bidirectional, batch_first):
    settings = has_biases, layers, dropout, train, bidirectional, batch_first
    return _recurrent(i, "rnn", x, [state], weights, *settings, activation="tanh")


@rule("rnn_relu.input", "dlcompiler.rnn_relu.default")
def _rnn_relu(i, x, state, weights, has_biases, layers, dropout, train, bidirectional, batch_first):
    settings = has_biases, layers, dropout, train, bidirectional, batch_first
    return _recurrent(i, "rnn", x, [state], weights, *settings, activation="relu")


def _recurrent(i, name, x, states, weights, has_biases, layers, dropout, train, bidirectional, batch_first, **activation):
    """A recurrent layer whole, as torch orders its weights."""
    directions = 2 if bidirectional else 1
    if dropout and train and layers > 1:
        raise NoRule(f"{name} with dropout")
    if len(weights) != layers * directions * (4 if has_biases else 2):
        raise NoRule(f"{name} with projections")
    whole = i.b(
        name, x, *states, *weights,
        layers=layers, bidirectional=bool(bidirectional), has_biases=bool(has_biases), batch_first=bool(batch_first),
        **activation,
    )  # fmt: skip
    return i.elements(whole)


@rule(*(f"dlcompiler.{name}_scan.default" for name in KINDS))
def _scan(i, states, gates, weights, biases):
    """One layer's recurrence; what gradients read is kept if somebody reads it."""
    cell, attributes = KINDS[i.node.target.name().removeprefix("dlcompiler::").removesuffix("_scan")]
    operands = [*states, *(x for own in zip(gates, weights, *([biases] if biases else [])) for x in own)]
    keeps = any(i.uses(1 + len(states) + k) for k in range(len(kept_widths(CELLS[cell]))))
    reverse = (False, True)[: len(gates)]
    whole = i.b(f"{cell}_scan_keeping" if keeps else f"{cell}_scan", *operands, reverse=reverse, **attributes)
    return i.elements(whole) if keeps else (*i.elements(whole), *[None] * len(kept_widths(CELLS[cell])))


@rule(*(f"dlcompiler.{name}_scan_backward.default" for name in KINDS))
def _scan_backward(i, grads, kept, weights):
    cell, _ = KINDS[i.node.target.name().removeprefix("dlcompiler::").removesuffix("_scan_backward")]
    return i.elements(i.b(f"{cell}_scan_backward", *grads, *kept, *weights, reverse=(False, True)[: len(weights)]))
