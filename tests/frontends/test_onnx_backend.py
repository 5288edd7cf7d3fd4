"""`dlcompiler.onnx_backend.Backend`, as the onnx package drives a backend."""

from __future__ import annotations

import numpy as np
import pytest
from dlcompiler.ir.errors import InputError, UnsupportedError
from onnx import helper

from dlcompiler.onnx_backend import Backend
from tests.frontends.onnx_checks import model_of

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_prepare_and_run_by_position_and_by_name():
    nodes = [helper.make_node("Add", ["x", "y"], ["sum"]), helper.make_node("Neg", ["sum"], ["minus"])]
    model = model_of(nodes, {"x": ("float32", ("n", 3)), "y": ("float32", (3,))}, ["sum", "minus"])
    prepared = Backend.prepare(model)
    y = np.ones(3, np.float32)
    for outputs in (prepared.run([X, y]), prepared.run({"y": y, "x": X})):
        np.testing.assert_array_equal(outputs["sum"], X + 1)
        np.testing.assert_array_equal(outputs[1], -X - 1)
    np.testing.assert_array_equal(prepared.run([X[:1], y])[0], X[:1] + 1)
    for wrong in ([X], {"x": X}, {"x": X, "z": y}):
        with pytest.raises(InputError):
            prepared.run(wrong)


def test_a_shape_given_as_an_input_is_compiled_in():
    model = model_of(helper.make_node("Reshape", ["x", "s"], ["y"]), {"x": ("float32", (2, 3)), "s": ("int64", (2,))}, ["y"])
    prepared = Backend.prepare(model)
    for shape in ((3, 2), (6, 1), (3, 2)):
        np.testing.assert_array_equal(prepared.run([X, np.array(shape)])[0], X.reshape(shape))


def test_run_node_and_devices():
    (y,) = Backend.run_node(helper.make_node("Softmax", ["x"], ["y"], axis=0), [X])
    np.testing.assert_allclose(y.sum(0), 1, rtol=1e-6)
    (y,) = Backend.run_node(helper.make_node("Softmax", ["x"], ["y"], axis=0), [X], opset_version=11)
    np.testing.assert_allclose(y.sum(), 1, rtol=1e-6)  # before opset 13 everything from the axis on is one dimension
    assert Backend.supports_device("CPU") and Backend.supports_device("CPU:0") and not Backend.supports_device("CUDA")
    relu = model_of(helper.make_node("Relu", ["x"], ["y"]), {"x": ("float32", (2,))}, ["y"])
    riddle = model_of(helper.make_node("Riddle", ["x"], ["y"], domain="com.example"), {"x": ("float32", (2,))}, ["y"])
    riddle.opset_import.append(helper.make_opsetid("com.example", 1))
    assert Backend.is_compatible(relu) and not Backend.is_compatible(relu, "CUDA") and not Backend.is_compatible(riddle)
    with pytest.raises(UnsupportedError, match="Riddle"):
        Backend.prepare(riddle)
    with pytest.raises(UnsupportedError, match="CUDA"):
        Backend.prepare(relu, "CUDA")
