"""Host operators of our own, and how operators of the host are written down."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from dlcompiler.ir.errors import InputError
from onnx import TypeProto, helper

from dlcompiler.frontends.onnx_host import host_attributes, host_type, parse_type, run_operator
from dlcompiler.frontends.onnx_host_own import multinomial

RANDOM = np.random.default_rng(1)


def by_onnxruntime(node: onnx.NodeProto, inputs: list[np.ndarray]) -> np.ndarray:
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape) for n, x in zip(node.input, inputs)
    ]
    graph = helper.make_graph([node], "g", infos, [helper.make_empty_tensor_value_info(n) for n in node.output])
    session = onnxruntime.InferenceSession(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    return session.run(None, dict(zip(node.input, inputs)))[0]


def ours(node: onnx.NodeProto, inputs: list[np.ndarray]) -> np.ndarray:
    attributes = host_attributes(node, "", 17)
    return run_operator(attributes["target"], attributes, inputs)[0]


@pytest.mark.parametrize("centre", [0, 1])
@pytest.mark.parametrize("seed", range(3))
def test_non_max_suppression(centre, seed):
    random = np.random.default_rng(seed)
    boxes = random.random((2, 40, 4)).astype(np.float32) * (10 if centre else 20)
    inputs = [boxes, random.random((2, 3, 40)).astype(np.float32), np.array([5]), np.float32([0.3]), np.float32([0.2])]
    node = helper.make_node("NonMaxSuppression", ["b", "s", "m", "o", "t"], ["y"], center_point_box=centre)
    np.testing.assert_array_equal(ours(node, inputs), by_onnxruntime(node, inputs))


@pytest.mark.parametrize("seed", range(20))
def test_slice(seed):
    random = np.random.default_rng(seed)
    x = random.standard_normal((4, 5)).astype(np.float32)
    ends = np.where(random.random(2) < 0.2, 2**62, random.integers(-7, 8, 2))
    bounds = [random.integers(-7, 8, 2), ends, np.array([0, -1]), random.choice([-3, -1, 1, 2], 2)]
    node = helper.make_node("Slice", ["x", "s", "e", "a", "t"], ["y"])
    inputs = [x, *(b.astype(np.int64) for b in bounds)]
    np.testing.assert_array_equal(ours(node, inputs), by_onnxruntime(node, inputs))


def test_max_roi_pool():
    x = RANDOM.standard_normal((2, 3, 9, 11)).astype(np.float32)
    rois = np.array([[0, 1, 2, 7, 6], [1, 0, 0, 10, 8], [1, 5, 5, 5, 5]], np.float32)
    node = helper.make_node("MaxRoiPool", ["x", "r"], ["y"], pooled_shape=[2, 3], spatial_scale=0.9)
    np.testing.assert_array_equal(ours(node, [x, rois]), by_onnxruntime(node, [x, rois]))


def test_multinomial_draws_by_probability():
    weights = np.log(np.array([[0.5, 0.2, 0.3], [0.0001, 0.9998, 0.0001]]))
    drawn = multinomial(weights, sample_size=20_000, seed=3.0)
    assert drawn.dtype == np.int32 and (drawn == multinomial(weights, sample_size=20_000, seed=3.0)).all()
    np.testing.assert_allclose(np.bincount(drawn[0]) / 20_000, [0.5, 0.2, 0.3], atol=0.02)
    assert (drawn[1] == 1).mean() > 0.99


def test_types_go_round():
    tensor = helper.make_tensor_type_proto(1, [2, None, 3])
    for type in (
        tensor,
        helper.make_sequence_type_proto(tensor),
        helper.make_optional_type_proto(helper.make_sequence_type_proto(tensor)),
    ):
        assert isinstance(type, TypeProto)
        assert host_type(parse_type(host_type(type).name)) == host_type(type)


def test_what_an_operator_does_not_take_is_an_input_error():
    node = helper.make_node("StringSplit", ["x"], ["y", "n"])
    attributes = host_attributes(node, "", 20)
    with pytest.raises(InputError, match="StringSplit"):
        run_operator(attributes["target"], attributes, [np.zeros(3, np.float32)])
