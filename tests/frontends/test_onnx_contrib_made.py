"""What ONNX Runtime's optimisers and quantisers leave in files, against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import dlcompiler
from dlcompiler.frontends.onnx import import_onnx
from dlcompiler.reference import run_reference
from tests.frontends.onnx_contrib_checks import check, floats, integers

BYTES = [np.uint8, np.int8]


def number(value: float, dtype: Any = np.float32) -> np.ndarray:
    return np.asarray(value, dtype)


def codes(*shape: int, dtype: Any = np.uint8) -> np.ndarray:
    return integers(0, 255, *shape, dtype=dtype) if dtype is np.uint8 else integers(-127, 127, *shape, dtype=dtype)


@pytest.mark.parametrize(
    ("activation", "parameters"),
    [("Relu", None), ("LeakyRelu", [0.2]), ("Clip", [-0.5, 0.5]), ("HardSigmoid", [0.3, 0.4]), ("Tanh", None)],
)
def test_products_with_an_activation(activation, parameters):
    given = {"activation": activation, **({"activation_params": parameters} if parameters else {})}
    check("FusedConv", [floats(1, 3, 6, 6), floats(4, 3, 3, 3), floats(4), floats(1, 4, 4, 4)], **given)
    if activation != "Clip":
        named = {f"activation_{name}": value for name, value in zip(("alpha", "beta"), parameters or ())}
        check("FusedGemm", [floats(3, 4), floats(5, 4), floats(5)], transB=1, activation=activation, **named)


@pytest.mark.parametrize("dtype", BYTES)
def test_quantised_element_by_element(dtype):
    x, zero, small = codes(3, 4, dtype=dtype), number(3, dtype), [number(1 / 256), number(0, dtype)]
    for op in ("QLinearAdd", "QLinearMul"):
        check(op, [x, number(0.02), zero, codes(4, dtype=dtype), number(0.03), zero, number(0.05), zero], tolerance=0)
    check("QLinearSigmoid", [x, number(0.02), zero, *small], tolerance=0)
    check("QLinearLeakyRelu", [x, number(0.02), zero, number(0.02), zero], alpha=0.1, tolerance=0)
    check("QLinearSoftmax", [x, number(0.02), zero, *small], opset=13, axis=-1, tolerance=1)  # a table there
    parts = [number(0.05), zero, x, number(0.02), zero, codes(3, 5, dtype=dtype), number(0.05), zero]
    check("QLinearConcat", parts, axis=1, tolerance=0)
    mask = integers(0, 2, 3, 4).astype(bool)
    other = [codes(3, 4, dtype=dtype), number(0.05), zero]
    check("QLinearWhere", [mask, x, number(0.02), zero, *other, number(0.05), zero], tolerance=0)


@pytest.mark.parametrize("dtype", BYTES)
def test_quantised_windows_and_products(dtype):
    zero, scale = number(3, dtype), number(0.02)
    image = [codes(1, 6, 6, 3, dtype=dtype), scale, zero]
    weight = [codes(4, 3, 3, 3, dtype=np.int8), number(0.03), number(0, np.int8)]
    check("QLinearConv", [*image, *weight, number(0.5), zero, integers(-99, 99, 4)], channels_last=1, tolerance=0)
    check("QLinearGlobalAveragePool", [*image, scale, zero], channels_last=1, tolerance=0)
    check("QLinearAveragePool", [*image, scale, zero], channels_last=1, kernel_shape=[2, 2], tolerance=1)
    check("NhwcMaxPool", [image[0]], kernel_shape=[2, 2], tolerance=0)
    a, b = [codes(3, 4, dtype=dtype), scale, zero], [codes(5, 4, dtype=np.int8), number(0.03), number(0, np.int8)]
    check("QGemm", [*a, *b, integers(-99, 99, 5), number(0.5), zero], transB=1, tolerance=0)
    columns = [np.full(5, 0.03, np.float32), np.zeros(5, np.int8)]
    check("QGemm", [*a, codes(4, 5, dtype=np.int8), *columns], alpha=0.5)
    check("MatMulIntegerToFloat", [a[0], codes(4, 5, dtype=np.int8), scale, columns[0], zero, columns[1], floats(5)])


def test_products_of_floats_made_bytes():
    for x in (floats(3, 4), np.zeros((3, 4), np.float32)):
        check("DynamicQuantizeMatMul", [x, codes(4, 5, dtype=np.int8), np.full(5, 0.03, np.float32), np.zeros(5, np.int8)])
        check("DynamicQuantizeLinear", [x], outputs=3, domain="")


def test_quantised_layers():
    packed = [codes(2, 5, 8), codes(8, 24, dtype=np.int8), floats(24), number(0.02), number(0.01)]
    zeros = [number(120, np.uint8), number(0, np.int8)]
    check("QAttention", [*packed, np.array([5, 3], np.int32), *zeros], num_heads=2)
    check("QAttention", [*packed, None, *zeros, floats(2, 2, 2, 3, 4)], num_heads=2, unidirectional=1, outputs=2)
    tables = [codes(9, 8), codes(6, 8), codes(2, 8), codes(8), codes(8)]
    ids = [integers(0, 9, 2, 5), integers(0, 2, 2, 5)]
    moved = [*[number(0.02)] * 5, *[number(120, np.uint8)] * 5]
    check("QEmbedLayerNormalization", [*ids, *tables, integers(0, 2, 2, 5), *moved], outputs=2)
    weights = [codes(1, 16, 64, dtype=np.int8), codes(1, 16, 64, dtype=np.int8), floats(1, 128)]
    scales = [np.array([0.005], np.float32), np.array([0], np.int8)] * 2
    # there the input and the state are rounded to bytes too
    check("DynamicQuantizeLSTM", [floats(5, 2, 16), *weights, *[None] * 4, *scales], outputs=3, hidden_size=16, tolerance=0.03)


def test_tables_of_few_bits():
    for kind in (0, 1):
        operands = [floats(3, 32), integers(0, 256, 128, dtype=np.uint8), np.abs(floats(16))]
        check("MatMulBnb4", operands, K=32, N=8, block_size=16, quant_type=kind, tolerance=1e-4)
    rows, scales = np.array([[1, 5], [0, 2]]), floats(6, 2)
    packed, zeros = integers(0, 256, 6, 16, dtype=np.uint8), integers(0, 256, 6, 1, dtype=np.uint8)
    check("GatherBlockQuantized", [packed, rows, scales, zeros], bits=4, block_size=16, quantize_axis=1)
    check("GatherBlockQuantized", [packed, rows, floats(6, 1)], bits=8, block_size=16, quantize_axis=1)


def test_those_before_the_default_domain():
    x = floats(3, 4, 4)
    check("Trilu", [x, np.array(1)], upper=0)
    check("ExpandDims", [x, np.array(-1, np.int32)], constants=[1])
    check("Pad", [x, np.array([0, 1, 0, 0, 0, 1]), np.array([2], np.float32)], constants=[1, 2])
    check("GatherND", [x, np.array([[0, 1], [2, 3]])])
    check("GridSample", [floats(1, 2, 5, 5), np.clip(floats(1, 3, 3, 2), -1, 1)], mode="bilinear")
    check("Inverse", [x + 4 * np.eye(4, dtype=np.float32)])
    check("Unique", [np.array([3, 1, 3, 2, 1], np.float32)], outputs=3)
    for metric in ("euclidean", "sqeuclidean"):
        check("CDist", [floats(3, 5), floats(4, 5)], metric=metric)


def test_a_file_saved_in_blocks_of_channels(tmp_path: Path):
    """Fully optimised: channels in blocks, filters that fill no block, an image that is not in blocks, a sum, an average."""
    names = ["a", "b", "d"]
    held = {"a": floats(20, 3, 3, 3), "b": floats(20, 20, 3, 3), "d": floats(20, 1, 3, 3)}
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["p"], strides=[2, 2], **pads),
        helper.make_node("Relu", ["p"], ["q"]),
        helper.make_node("Conv", ["q", "b"], ["r"], **pads),
        helper.make_node("Add", ["r", "q"], ["s"]),
        helper.make_node("Conv", ["s", "d"], ["t"], group=20, **pads),
        helper.make_node("MaxPool", ["t"], ["u"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["u"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "blocks", [helper.make_tensor_value_info("x", 1, [1, 3, 12, 12])],
        [helper.make_empty_tensor_value_info("y")], [numpy_helper.from_array(held[n], n) for n in names],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / "saved.onnx")
    settings.log_severity_level = 4
    x = floats(1, 3, 12, 12)
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x": x})[0]
    saved = import_onnx(tmp_path / "saved.onnx")
    np.testing.assert_allclose(run_reference(saved, [x])[0], expected, rtol=1e-4, atol=1e-4)


def test_whole_numbers_are_convolved_with_dilations():
    w = codes(4, 2, 3, dtype=np.int8)
    node = helper.make_node("ConvInteger", ["x", "w"], ["y"], group=2, dilations=[2])
    graph = helper.make_graph(
        [node], "dilated", [helper.make_tensor_value_info("x", 2, [1, 4, 9])],
        [helper.make_empty_tensor_value_info("y")], [numpy_helper.from_array(w, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = codes(1, 4, 9)
    expected = run_reference(import_onnx(model), [x])[0]
    np.testing.assert_array_equal(dlcompiler.compile(model)(x), expected)
