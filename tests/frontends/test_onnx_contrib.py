"""Operators of the domain `com.microsoft` against ONNX Runtime, which defines them."""

from __future__ import annotations

import numpy as np
import pytest
from dlcompiler.ir.errors import UnsupportedError
from onnx import TensorProto, helper

from dlcompiler.frontends.onnx import import_onnx
from tests.frontends.onnx_contrib_checks import check, floats, integers


def test_activations():
    x, bias = floats(3, 8), floats(8)
    check("FastGelu", [x, bias], tolerance=1e-4)
    check("BiasGelu", [x, bias])
    check("Gelu", [x])
    check("QuickGelu", [x], alpha=1.5)


@pytest.mark.parametrize("left", [0, 1])
@pytest.mark.parametrize("right", [0, 1])
def test_fused_matmul(left, right):
    a = floats(2, 3, 4) if not left else floats(2, 4, 3)
    b = floats(2, 4, 5) if not right else floats(2, 5, 4)
    check("FusedMatMul", [a, b], transA=left, transB=right, alpha=0.5)


def test_norms():
    x, skip, gamma, beta, bias = floats(2, 3, 8), floats(2, 3, 8), floats(8), floats(8), floats(8)
    check("SimplifiedLayerNormalization", [x, gamma], domain="", axis=-1, epsilon=1e-5)
    check("SkipSimplifiedLayerNormalization", [x, skip, gamma, bias], epsilon=1e-5)
    check("SkipLayerNormalization", [x, skip, gamma, beta, bias], epsilon=1e-5)
    check("SkipLayerNormalization", [x, skip, gamma, beta], epsilon=1e-5)


def test_embed_layer_normalization():
    ids, segments, mask = integers(0, 9, 2, 5), integers(0, 2, 2, 5), integers(0, 2, 2, 5)
    tables = [floats(9, 8), floats(6, 8), floats(2, 8), floats(8), floats(8)]
    check("EmbedLayerNormalization", [ids, segments, *tables], outputs=2)
    check("EmbedLayerNormalization", [ids, None, *tables[:2], None, *tables[3:]], outputs=2)
    assert mask.shape == ids.shape


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("rank", [3, 4])
def test_rotary_embedding(interleaved, rank):
    x = floats(2, 5, 3 * 8) if rank == 3 else floats(2, 3, 5, 8)
    angles = floats(16, 4)
    tables = [np.cos(angles), np.sin(angles)]
    check("RotaryEmbedding", [x, integers(0, 16, 2, 5, dtype=np.int64), *tables], interleaved=interleaved)
    check("RotaryEmbedding", [x, np.array([3], np.int64), *tables], interleaved=interleaved)


@pytest.mark.parametrize("causal", [0, 1])
def test_packed_attention(causal):
    x, weights, bias = floats(2, 5, 8), floats(8, 24, scale=0.5), floats(24)
    check("Attention", [x, weights, bias], num_heads=2, unidirectional=causal)
    lengths = np.array([5, 3], np.int32)
    check("Attention", [x, weights, bias, lengths], num_heads=2, unidirectional=causal)
    keys = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int32)
    check("Attention", [x, weights, bias, keys], num_heads=2, unidirectional=causal)
    past = floats(2, 2, 2, 3, 4)
    check("Attention", [x, weights, bias, None, past], outputs=2, num_heads=2, unidirectional=causal)
    check("Attention", [x, weights, bias, None, None, floats(2, 2, 5, 5)], num_heads=2)


def test_multi_head_attention():
    q, k, v = floats(2, 5, 8), floats(2, 7, 8), floats(2, 7, 8)
    check("MultiHeadAttention", [q, k, v], num_heads=2)
    check("MultiHeadAttention", [q, k, v, floats(24)], num_heads=2)
    check("MultiHeadAttention", [q, k, v, None, None, floats(1, 2, 5, 7)], num_heads=2, scale=0.3)
    past = [floats(2, 2, 3, 4), floats(2, 2, 3, 4)]
    check("MultiHeadAttention", [q, q, q, None, None, None, *past], outputs=3, num_heads=2)


@pytest.mark.parametrize("rotary", [0, 1])
def test_group_query_attention(rotary):
    angles = floats(16, 8)
    tables = [np.cos(angles), np.sin(angles)] if rotary else [None, None]
    settings = {"num_heads": 4, "kv_num_heads": 2, "do_rotary": rotary}
    q, k, v = floats(2, 5, 4 * 16), floats(2, 5, 2 * 16), floats(2, 5, 2 * 16)
    first = [np.array([4, 4], np.int32), np.array([5], np.int32)]
    empty = [np.zeros((2, 2, 0, 16), np.float32)] * 2
    check("GroupQueryAttention", [q, k, v, *empty, *first, *tables], outputs=3, **settings)
    one = [floats(2, 1, 4 * 16), floats(2, 1, 2 * 16), floats(2, 1, 2 * 16)]
    past = [floats(2, 2, 6, 16), floats(2, 2, 6, 16)]
    later = [np.array([6, 6], np.int32), np.array([7], np.int32)]
    check("GroupQueryAttention", [*one, *past, *later, *tables], outputs=3, **settings)
    check("GroupQueryAttention", [*one, *past, *later, *tables], outputs=3, local_window_size=3, **settings)


@pytest.mark.parametrize("bits", [4, 8])
def test_matmul_n_bits(bits):
    inner, columns, block = 40, 6, 16
    blocks = -(-inner // block)
    packed = integers(0, 256, columns, blocks, block * bits // 8, dtype=np.uint8)
    scales = floats(columns * blocks)
    settings = {"K": inner, "N": columns, "bits": bits, "block_size": block}
    check("MatMulNBits", [floats(3, inner), packed, scales], tolerance=1e-3, **settings)
    zeros = integers(0, 256, columns * -(-blocks * bits // 8), dtype=np.uint8)
    check("MatMulNBits", [floats(2, 3, inner), packed, scales, zeros], tolerance=1e-3, **settings)
    bias = [None, floats(columns)]
    check("MatMulNBits", [floats(3, inner), packed, scales, zeros, *bias], tolerance=1e-3, **settings)


def test_heads_of_unknown_size_need_a_scale():
    def model(**attributes):
        node = helper.make_node("MultiHeadAttention", ["x"], ["y"], domain="com.microsoft", num_heads=2, **attributes)
        packed = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 2, 3, "size"])
        graph = helper.make_graph([node], "attention", [packed], [helper.make_empty_tensor_value_info("y")])
        imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=8)

    with pytest.raises(UnsupportedError, match="heads of unknown size, f32"):
        import_onnx(model())
    import_onnx(model(scale=0.5))
