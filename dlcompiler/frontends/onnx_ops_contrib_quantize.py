"""Quantised operators of `com.microsoft`: bytes with a scale and a zero point in and out, or floats that are made bytes first.

Products are sums of products of bytes; what works element by element computes in float32 and is rounded once.
"""

from __future__ import annotations

from collections.abc import Callable

from dlcompiler.frontends.onnx_ops_contraction import convolution_of_integers, product_of_integers
from dlcompiler.frontends.onnx_ops_contrib import MICROSOFT
from dlcompiler.frontends.onnx_ops_contrib_attention import attention_of_packed
from dlcompiler.frontends.onnx_ops_contrib_fused import WINDOWS, channels_first, channels_last, in_layout
from dlcompiler.frontends.onnx_ops_quantize import (
    dequantize_linear,
    dynamic_bytes,
    last,
    quantize_linear,
    requantized,
    saturated,
)
from dlcompiler.frontends.onnx_registry import Call, operator
from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import f32, i32

operator("QuantizeLinear", domain=MICROSOFT)(quantize_linear)
operator("DequantizeLinear", domain=MICROSOFT)(dequantize_linear)


def _moved(call: Call, index: int) -> Node:
    """The quantised input at `index` less its zero point, which is two inputs later, as float32."""
    zero, wide = call.get(index + 2), call.cast(call[index], f32)
    return wide if zero is None else call.b.sub(wide, call.cast(call.reshape(zero, ()), f32))


def _scale(call: Call, index: int) -> Node:
    return call.reshape(call[index], ())


def _floats(call: Call, index: int) -> Node:
    """The quantised input at `index`, whose scale and zero point are the next two, as float32."""
    return call.b.mul(_moved(call, index), _scale(call, index + 1))


def _rounded(call: Call, x: Node, index: int, like: Node) -> Node:
    """`x`, already over its scale, moved by the zero point at `index` and rounded, in the dtype of `like`."""
    zero = call.get(index)
    return saturated(call, x, None if zero is None else call.reshape(zero, ()), like.dtype)


def _bytes(call: Call, x: Node, index: int, like: Node) -> Node:
    """`x` with the scale at `index` and the zero point after it, in the dtype of `like`."""
    return _rounded(call, call.b.div(x, _scale(call, index)), index + 1, like)


# -- element by element, and windows -----------------------------------------------------------------------------------------


@operator("QLinearAdd", domain=MICROSOFT)
def quantized_add(call: Call) -> Node:
    """a * (a_scale / c_scale) + b * (b_scale / c_scale): what falls between two bytes falls as in ONNX Runtime, nearly always."""
    a, b = (call.b.mul(_moved(call, k), call.b.div(_scale(call, k + 1), _scale(call, 6))) for k in (0, 3))
    return _rounded(call, call.b.add(a, b), 7, call[0])


@operator("QLinearMul", domain=MICROSOFT)
def quantized_mul(call: Call) -> Node:
    scale = call.b.div(call.b.mul(_scale(call, 1), _scale(call, 4)), _scale(call, 6))
    return _rounded(call, call.b.mul(call.b.mul(_moved(call, 0), _moved(call, 3)), scale), 7, call[0])


def _unary(call: Call, compute: Callable[[Node], Node]) -> Node:
    return _bytes(call, compute(_floats(call, 0)), 3, call[0])


@operator("QLinearSigmoid", domain=MICROSOFT)
def quantized_sigmoid(call: Call) -> Node:
    return _unary(call, call.b.sigmoid)


@operator("QLinearLeakyRelu", domain=MICROSOFT)
def quantized_leaky_relu(call: Call) -> Node:
    return _unary(call, lambda x: call.b.leaky_relu(x, slope=call.attribute("alpha", 0.01)))


@operator("QLinearSoftmax", domain=MICROSOFT)
def quantized_softmax(call: Call) -> Node:
    version = call.attribute("opset")
    axis = call.attribute("axis", -1 if version >= 13 else 1)
    return _unary(call, lambda x: call.apply("Softmax", x, version=version, given={"axis": axis}))


@operator("QLinearReduceMean", domain=MICROSOFT)
def quantized_mean(call: Call) -> Node:
    rank = call.rank()
    axes = call.normalize_all(call.attribute("axes") or range(rank), rank)
    return _unary(call, lambda x: call.b.mean(x, axes=axes, keepdims=call.flag("keepdims", 1)))


@operator("QLinearAveragePool", "QLinearGlobalAveragePool", domain=MICROSOFT)
def quantized_average_pool(call: Call) -> Node:
    name = call.op_type.removeprefix("QLinear")

    def pooled(x: Node) -> Node:
        return call.apply(name, x, given=call.chosen(*WINDOWS))

    call.require_rank(0, 3)
    return _unary(call, lambda x: in_layout(call, call.flag("channels_last"), x, pooled))


@operator("QLinearConcat", domain=MICROSOFT)
def quantized_concat(call: Call) -> Node:
    """Each of the parts has a scale and a zero point of its own."""
    if len(call.inputs) % 3 != 2:
        call.invalid(f"it takes a scale, a zero point and parts with their scales and zero points, not {len(call.inputs)} inputs")
    parts = [_bytes(call, _floats(call, k), 0, call[k]) for k in range(2, len(call.inputs), 3)]
    return call.concat(parts, call.axis(None, parts[0].tensor.rank))


@operator("QLinearWhere", domain=MICROSOFT)
def quantized_where(call: Call) -> Node:
    return _bytes(call, call.b.where(call[0], _floats(call, 1), _floats(call, 4)), 7, call[1])


# -- products ----------------------------------------------------------------------------------------------------------------


@operator("QLinearConv", domain=MICROSOFT)
def quantized_conv(call: Call) -> Node:
    """With `channels_last` the image is [N, ..., C]; the weight is [filters, channels, ...] either way."""
    x = call.require_rank(0, 3)
    is_last = call.flag("channels_last")
    image = channels_first(call, x) if is_last else x
    total = convolution_of_integers(call, (image, call[2]), (call[3], call[5]), call.get(8))
    scales = (call.reshape(call[1], ()), last(call, call[4], total.tensor.rank, 1), call.reshape(call[6], ()))
    result = requantized(call, total, scales, call.reshape(call[7], ()))
    return channels_last(call, result) if is_last else result


@operator("QGemm", domain=MICROSOFT)
def quantized_gemm(call: Call) -> Node:
    """alpha * a @ b + c, where c has the scale of the product; floats where no scale of the result is given."""
    a, b = call.require_rank(0, 2, 2), call.require_rank(3, 2, 2)
    a = call.permute(a, (1, 0)) if call.flag("transA") else a
    b = call.permute(b, (1, 0)) if call.flag("transB") else b
    total = product_of_integers(call, (a, call[2]), (b, call[5]))
    if call.get(6) is not None:
        total = call.b.add(total, call.cast(call[6], total.dtype))
    scale, alpha = call.reshape(call[1], ()), call.attribute("alpha", 1.0)
    scale = scale if alpha == 1 else call.b.mul(scale, call.number(alpha, scale))
    columns = last(call, call[4], 2, -1)
    if call.get(7) is None:
        return call.b.mul(call.cast(total, f32), call.b.mul(scale, columns))
    zero = call.get(8)
    zero = call.full(0, a.dtype, ()) if zero is None else call.reshape(zero, ())
    return requantized(call, total, (scale, columns, call.reshape(call[7], ())), zero)


def _scaled(
    call: Call, a: tuple[Node, Node | None], b: tuple[Node, Node | None], scales: tuple[Node, Node], bias: Node | None
) -> Node:
    """The product of two quantised operands as floats: the sum times both scales, plus a bias."""
    total = call.cast(product_of_integers(call, a, b), f32)
    rank = max(total.tensor.rank, 1)
    result = call.b.mul(total, call.b.mul(last(call, scales[0], rank, -2), last(call, scales[1], rank, -1)))
    return result if bias is None else call.b.add(result, bias)


@operator("MatMulIntegerToFloat", domain=MICROSOFT)
def integers_to_floats(call: Call) -> Node:
    return _scaled(call, (call[0], call.get(4)), (call[1], call.get(5)), (call[2], call[3]), call.get(6))


@operator("DynamicQuantizeMatMul", domain=MICROSOFT)
def dynamic_matmul(call: Call) -> Node:
    a, scale, zero = dynamic_bytes(call, call.require_rank(0, 1))
    return _scaled(call, (a, zero), (call[1], call.get(3)), (scale, call[2]), call.get(4))


@operator("QAttention", domain=MICROSOFT)
def quantized_attention(call: Call) -> tuple[Node | None, ...]:
    """Attention whose packed projections are a product of bytes."""
    if call.flag("do_rotary") or call.flag("past_present_share_buffer"):
        call.unsupported("rotary positions or a shared cache")
    operands = (call.require_rank(0, 3, 3), call.get(6)), (call.require_rank(1, 2, 2), call.get(7))
    packed = _scaled(call, *operands, (call[3], call[4]), call[2])
    return attention_of_packed(call, packed, mask=call.get(5), past=call.get(8), bias=None)


# -- layers with quantised weights -------------------------------------------------------------------------------------------


@operator("QEmbedLayerNormalization", domain=MICROSOFT)
def quantized_embeddings(call: Call) -> tuple[Node, ...]:
    """The norm of the sum of embeddings whose tables, and whose scale and bias, are bytes; how many words are no padding."""
    ids, segments = call.require_rank(0, 2, 2), call.get(1)
    length = ids.shape[1]

    def floats(x: Node, k: int) -> Node:
        moved = call.b.sub(call.cast(x, f32), call.cast(call.reshape(call[13 + k], ()), f32))
        return call.b.mul(moved, call.reshape(call[8 + k], ()))

    def rows(table: int, at: Node) -> Node:
        return floats(call.apply("Gather", call.require_rank(table, 2, 2), at), table - 2)

    place = call.reshape(call.b.iota(size=length), (1, length))
    total = call.b.add(rows(2, ids), rows(3, place))
    if segments is not None:
        total = call.b.add(total, rows(4, segments))
    result = call.b.layer_norm(total, floats(call[5], 3), floats(call[6], 4), rank=1, epsilon=call.attribute("epsilon", 1e-12))
    mask = call.get(7)
    if mask is None:
        return result, call.full(0, i32, (ids.shape[0],))
    return result, call.b.reduce_sum(call.cast(mask, i32), axes=(1,), keepdims=False)


@operator("DynamicQuantizeLSTM", domain=MICROSOFT)
def dynamic_lstm(call: Call) -> Node | tuple[Node, ...]:
    """An LSTM whose weights [directions, inputs, 4 * hidden] are bytes. Its input and state are not rounded for it."""

    def weight(index: int, scale: int) -> Node:
        w = call.require_rank(index, 3, 3)
        # a scale for each direction, or for each column of each
        columns = [1 if call.rank(k) == 1 else call[k].shape[1] for k in (scale, scale + 1)]
        s, zero = (call.reshape(call[scale + k], (w.shape[0], 1, columns[k])) for k in range(2))
        wide = call.b.mul(call.b.sub(call.cast(w, f32), call.cast(zero, f32)), s)
        return call.permute(wide, (0, 2, 1))

    names = ("activation_alpha", "activation_beta", "activations", "clip", "direction", "hidden_size", "input_forget")
    inputs = (call[0], weight(1, 8), weight(2, 10), *(call.get(k) for k in range(3, 8)))
    return call.apply_all("LSTM", *inputs, given=call.chosen(*names))
