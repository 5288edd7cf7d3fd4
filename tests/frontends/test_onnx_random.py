"""ONNX operators that draw random numbers: by our generator, or by the standard's reference where they fix a seed."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import dlcompiler

SIDE = 256
COUNT = SIDE * SIDE


def model(op: str, inputs: dict[str, np.ndarray], results: int = 1, **attributes) -> onnx.ModelProto:
    node = helper.make_node(op, list(inputs), [f"y{k}" for k in range(results)], **attributes)
    first = next(iter(inputs), None)
    given = [helper.make_tensor_value_info(first, TensorProto.FLOAT, [SIDE, SIDE])] if first else []
    known = [onnx.numpy_helper.from_array(value, name) for name, value in inputs.items() if name != first]
    wanted = [helper.make_empty_tensor_value_info(name) for name in node.output]
    graph = helper.make_graph([node], "random", given, wanted, known)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def run(made: onnx.ModelProto, *arrays: np.ndarray, seed: int = 0):
    compiled = dlcompiler.compile(made)
    torch.manual_seed(seed)
    first, second = compiled(*arrays), compiled(*arrays)
    torch.manual_seed(seed)
    return compiled, first, second, compiled(*arrays)


def near(values: np.ndarray, mean: float, deviation: float) -> None:
    assert abs(float(values.astype(np.float64).mean()) - mean) < 5 * deviation / math.sqrt(values.size)


@pytest.mark.parametrize(
    "op, attributes, mean, deviation",
    [
        ("RandomUniform", {"shape": [SIDE, SIDE], "low": 2.0, "high": 6.0}, 4, 4 / math.sqrt(12)),
        ("RandomNormal", {"shape": [SIDE, SIDE], "mean": 3.0, "scale": 0.5}, 3, 0.5),
        ("RandomNormal", {"shape": [SIDE, SIDE], "dtype": TensorProto.DOUBLE}, 0, 1),
        ("RandomUniformLike", {"dtype": TensorProto.FLOAT16}, 0.5, 1 / math.sqrt(12)),
        ("RandomNormalLike", {}, 0, 1),
        ("Bernoulli", {"dtype": TensorProto.INT32}, 0.3, math.sqrt(0.21)),
    ],
)
def test_draws(op, attributes, mean, deviation):
    arrays = [] if op in ("RandomUniform", "RandomNormal") else [np.full((SIDE, SIDE), 0.3, np.float32)]
    compiled, first, second, again = run(model(op, dict(zip("x", arrays)), **attributes), *arrays)
    near(first, mean, deviation)
    assert np.array_equal(first, again) and not np.array_equal(first, second)
    report = compiled.report().as_dict()
    assert not report["host"] and report["library"] == {"random_seed": 1}


def test_dropout_in_training():
    x = np.random.default_rng(0).standard_normal((SIDE, SIDE), dtype=np.float32)
    rest = {"ratio": np.float32(0.25), "training": np.array(True)}
    _, (y, mask), _, (again, _) = run(model("Dropout", {"x": x, **rest}, 2), x)
    near(mask, 0.75, math.sqrt(0.1875))
    np.testing.assert_allclose(y, np.where(mask, x / 0.75, 0), rtol=1e-6)
    assert np.array_equal(y, again)


def test_a_seed_of_its_own_is_the_references():
    x = np.full((SIDE, SIDE), 0.5, np.float32)
    made = model("Dropout", {"x": x, "ratio": np.float32(0.5), "training": np.array(True)}, 1, seed=3)
    compiled, first, second, _ = run(made, x)
    (expected,) = onnx.reference.ReferenceEvaluator(made).run(None, {"x": x})
    np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(first, second)
    assert compiled.report().as_dict()["host"]
