"""Operators of `ai.onnx.ml` that scikit-learn's pipelines are written with, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from dlcompiler.ir.errors import InvalidModelError
from onnx import helper

import dlcompiler
from dlcompiler.frontends.onnx import import_onnx
from tests.frontends.onnx_contrib_checks import check, floats

ML = "ai.onnx.ml"
# three trees: a stump, one of depth 2 with every mode, and a single leaf
TREES: dict[str, Any] = {
    "nodes_treeids": [0, 0, 0, 1, 1, 1, 1, 1, 2],
    "nodes_nodeids": [0, 1, 2, 0, 1, 2, 3, 4, 0],
    "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF", "BRANCH_GT", "BRANCH_LT", "LEAF", "LEAF", "LEAF", "LEAF"],
    "nodes_featureids": [0, 0, 0, 1, 2, 0, 0, 0, 0],
    "nodes_values": [0.1, 0.0, 0.0, -0.2, 0.3, 0.0, 0.0, 0.0, 0.0],
    "nodes_truenodeids": [1, 0, 0, 1, 3, 0, 0, 0, 0],
    "nodes_falsenodeids": [2, 0, 0, 2, 4, 0, 0, 0, 0],
    "nodes_hitrates": [1.0] * 9,
}
LEAVES = {"treeids": [0, 0, 1, 1, 1, 2], "nodeids": [1, 2, 2, 3, 4, 0], "weights": [0.5, 0.1, 0.4, 0.2, 0.7, 0.05]}


def trees(prefix: str, ids: list[int], **changed: Any) -> dict[str, Any]:
    return TREES | {f"{prefix}_{name}": value for name, value in LEAVES.items()} | {f"{prefix}_ids": ids} | changed


def rows() -> np.ndarray:
    x = floats(20, 3)
    x[0, 0], x[1, 1] = np.float32(0.1), np.float32(-0.2)  # on the bound itself
    return x


@pytest.mark.parametrize("aggregate", ["SUM", "AVERAGE"])
def test_regression_by_trees(aggregate):
    given = trees("target", [0] * 6, n_targets=1, base_values=[0.3], aggregate_function=aggregate)
    check("TreeEnsembleRegressor", [rows()], domain=ML, **given)


@pytest.mark.parametrize("transform", ["NONE", "SOFTMAX", "LOGISTIC"])
@pytest.mark.parametrize("labels", [{"classlabels_int64s": [4, 7, 9]}, {"classlabels_strings": ["a", "b", "c"]}])
def test_classification_by_trees(transform, labels):
    given = trees("class", [0, 1, 2, 1, 0, 2], post_transform=transform, **labels)
    check("TreeEnsembleClassifier", [rows()], 2, ML, **given)


@pytest.mark.parametrize("weights", [LEAVES["weights"], [0.5, -0.1, 0.4, -0.2, -0.7, 0.05]])
def test_one_score_of_two_classes(weights):
    transform = "NONE" if min(weights) > 0 else "LOGISTIC"
    given = trees("class", [0] * 6, class_weights=weights, classlabels_int64s=[3, 5], post_transform=transform)
    check("TreeEnsembleClassifier", [rows()], 2, ML, **given)


def test_missing_numbers_follow_their_track():
    x = rows()
    x[3], x[4, 1] = np.nan, np.nan
    tracks = [1, 0, 0, 1, 0, 0, 0, 0, 0]
    given = trees("target", [0] * 6, n_targets=1, nodes_missing_value_tracks_true=tracks)
    check("TreeEnsembleRegressor", [x], domain=ML, **given)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"nodes_truenodeids": [9, 0, 0, 1, 3, 0, 0, 0, 0]}, "leads to a node that does not exist"),
        ({"nodes_falsenodeids": [2, 0, 0, 2, 0, 0, 0, 0, 0]}, "in no tree, or in several places"),
        ({"nodes_values": [0.1]}, "no values"),
        ({"target_nodeids": [1, 2, 2, 3, 4, 8]}, "weights lie at nodes that do not exist"),
    ],
)
def test_what_is_no_tree_is_refused(wrong, message):
    node = helper.make_node("TreeEnsembleRegressor", ["x"], ["y"], domain=ML, **trees("target", [0] * 6, n_targets=1, **wrong))
    with pytest.raises(InvalidModelError, match=message):
        import_onnx(model(node))


def model(*nodes):
    graph = helper.make_graph(
        list(nodes), "pipeline", [helper.make_tensor_value_info("x", 1, ["rows", 3])],
        [helper.make_empty_tensor_value_info(name) for name in nodes[-1].output],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(ML, 3)], ir_version=8)


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC", "SOFTMAX"])
def test_linear_models(classes, transform):
    labels = [4, 7] if classes == 1 else [4, 7, 9]
    weights = {"coefficients": floats(classes * 3).tolist(), "intercepts": floats(classes).tolist()}
    check("LinearClassifier", [rows()], 2, ML, classlabels_ints=labels, post_transform=transform, **weights)
    check("LinearRegressor", [rows()], domain=ML, targets=classes, **weights)


def test_scales():
    x = rows()
    check("Scaler", [x], domain=ML, offset=[0.1, 0.2, 0.3], scale=[2.0, 3.0, 4.0])
    for norm in ("MAX", "L1", "L2"):
        check("Normalizer", [np.abs(x)], domain=ML, norm=norm)
    x[2, 1] = np.nan
    check("Imputer", [x], domain=ML, imputed_value_floats=[1.0, 2.0, 3.0], replaced_value_float=float("nan"))


@pytest.mark.parametrize("kernel", ["RBF", "POLY", "LINEAR"])
def test_probabilities_of_support_vectors(kernel):
    per_class = [2, 3, 2]
    check(
        "SVMClassifier", [rows()], 2, ML, tolerance=1e-4, classlabels_ints=[4, 7, 9], kernel_type=kernel,
        kernel_params=[0.4, 0.1, 2.0], vectors_per_class=per_class, support_vectors=floats(7 * 3).tolist(),
        coefficients=floats(2 * 7).tolist(), rho=floats(3).tolist(), prob_a=[-1.2, -0.7, -1.5], prob_b=[0.1, -0.2, 0.3],
    )  # fmt: skip


@pytest.mark.parametrize("labels", [{"classlabels_int64s": [4, 7, 9]}, {"classlabels_strings": ["a", "b", "c"]}])
def test_dictionaries_at_the_end(labels):
    weights = {"coefficients": floats(9).tolist(), "intercepts": floats(3).tolist()}
    named = {name.replace("int64s", "ints"): value for name, value in labels.items()}
    classifier = helper.make_node("LinearClassifier", ["x"], ["label", "scores"], domain=ML, **weights, **named)
    pipeline = model(classifier, helper.make_node("ZipMap", ["scores"], ["y"], domain=ML, **labels))
    x = rows()
    session = onnxruntime.InferenceSession(pipeline.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x": x})[0]
    ours = dlcompiler.compile(pipeline)(x)
    assert [list(each) for each in ours] == [list(each) for each in expected]
    for got, want in zip(ours, expected):
        np.testing.assert_allclose(list(got.values()), list(want.values()), rtol=1e-5)
