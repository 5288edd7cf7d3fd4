"""Operators of `ai.onnx.ml` that pipelines of scikit-learn are written with: scales, linear models, what classifiers share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import helper

from dlcompiler.frontends.onnx_registry import Call, operator
from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import HostType, f32, f64, i64

ML = "ai.onnx.ml"


def features(call: Call) -> Node:
    """The input as rows [samples, features] of float32; float64 stays so."""
    x = call.require_rank(0, 1, 2)
    x = x if x.tensor.rank == 2 else call.reshape(x, (1, *x.shape))
    return x if x.dtype is f64 else call.cast(x, f32)


def parameters(call: Call, name: str, x: Node, shape: Sequence[int]) -> Node:
    """An attribute of floats as a constant of `shape`."""
    values = np.asarray(call.attribute(name, ()), x.dtype.numpy)
    if values.size != np.prod(shape):
        call.misfit(f"{name} has {values.size} numbers, not {list(shape)}")
    return call.b.constant(values.reshape(shape))


def transformed(call: Call, scores: Node) -> Node:
    """Scores [samples, classes] after `post_transform`."""
    name = call.attribute("post_transform", "NONE") or "NONE"
    if name == "LOGISTIC":
        return call.b.sigmoid(scores)
    if name == "SOFTMAX":
        return call.b.softmax(scores, axis=1)
    if name != "NONE":
        call.unsupported(f"post_transform {name}")
    return scores


def both_classes(call: Call, score: Node, rest_of_one: bool) -> Node:
    """[samples, 2] of the score [samples, 1] of the second of two classes; the first's is the rest of 1, or the opposite."""
    other = call.b.sub(call.number(1, score), score) if rest_of_one else call.b.neg(score)
    return call.concat([other, score], 1)


def class_labels(call: Call, integers: str) -> tuple[list[int] | list[str], bool]:
    """The labels of the classes, and whether they are texts."""
    texts = call.attribute("classlabels_strings")
    if texts:
        return list(texts), True
    return list(call.attribute(integers) or ()), False


def labelled(call: Call, place: Node, labels: Sequence[int] | Sequence[str], texts: bool) -> Node:
    """The label of the class at each place [samples]."""
    if not texts:
        return call.b.index(call.b.constant(np.asarray(labels, np.int64)), place, axes=(0,))
    shape = place.shape[0] if isinstance(place.shape[0], int) else "_"
    node = helper.make_node(
        "LabelEncoder", ["place"], ["label"], domain=ML, keys_int64s=list(range(len(labels))), values_strings=list(labels)
    )
    (label,) = call.host(node, 2, [place], (HostType(f"tensor(string)[{shape}]"),), "texts")
    return label


def classified(
    call: Call, scores: Node, labels: Sequence[int] | Sequence[str], texts: bool, by: Node | None = None
) -> tuple[Node, Node]:
    """(labels, scores after the transform): the class with the largest score, or of the largest of `by`."""
    final = transformed(call, scores)
    place = call.b.argmax(final if by is None else by, axes=(1,), keepdims=False)
    return labelled(call, call.cast(place, i64), labels, texts), final


# -- element by element ------------------------------------------------------------------------------------------------------


@operator("Scaler", domain=ML)
def scaler(call: Call) -> Node:
    """(x - offset) * scale, each one number or one for each feature."""
    x = call.require_rank(0, 1)
    x = call.cast(x, f32)
    parts = []
    for name in ("offset", "scale"):
        values = np.asarray(call.attribute(name, ()), np.float32)
        if values.size not in (1, x.shape[-1]):
            call.misfit(f"{name} has {values.size} numbers for {x.shape[-1]} features")
        parts.append(call.b.constant(values))
    return call.b.mul(call.b.sub(x, parts[0]), parts[1])


@operator("Normalizer", domain=ML)
def normalizer(call: Call) -> Node:
    """Each row over its largest number, sum of magnitudes or length; a row of zeros stays."""
    x, kind = call.cast(call.require_rank(0, 1, 2), f32), call.attribute("norm", "MAX")
    axes = (x.tensor.rank - 1,)
    if kind == "MAX":
        norm = call.b.reduce_max(x, axes=axes, keepdims=True)
    elif kind == "L1":
        norm = call.b.reduce_sum(call.b.abs(x), axes=axes, keepdims=True)
    elif kind == "L2":
        norm = call.b.sqrt(call.b.reduce_sum(call.b.mul(x, x), axes=axes, keepdims=True))
    else:
        call.invalid(f"norm is {kind!r}, not MAX, L1 or L2")
    zero = call.b.eq(norm, call.number(0, norm))
    return call.b.div(x, call.b.where(zero, call.number(1, norm), norm))


@operator("Imputer", domain=ML)
def imputer(call: Call) -> Node:
    """Numbers that stand for missing ones, NaN say, are replaced by one number or one for each feature."""
    x = call.require_rank(0, 1)
    kind = "float" if x.dtype.is_float else "int64"
    values = call.attribute(f"imputed_value_{kind}s")
    replaced = call.attribute(f"replaced_value_{kind}", 0)
    if not values or len(values) not in (1, x.shape[-1]):
        call.misfit(f"{len(values or ())} imputed values for {x.shape[-1]} features")
    if isinstance(replaced, float) and np.isnan(replaced):
        missing = call.b.ne(x, x)
    else:
        missing = call.b.eq(x, call.number(replaced, x))
    return call.b.where(missing, call.b.constant(np.asarray(values, x.dtype.numpy)), x)


# -- linear models -----------------------------------------------------------------------------------------------------------


def _linear(call: Call, x: Node, count: int) -> Node:
    """x @ coefficients + intercepts: [samples, count]."""
    width = x.shape[1]
    if not isinstance(width, int):
        known = len(call.attribute("coefficients") or ()) // max(count, 1)
        call.misfit(f"{x.type} has an unknown number of features, the model {known}")
    weight = parameters(call, "coefficients", x, (count, width))
    if not call.attribute("intercepts"):
        return call.b.linear(x, weight)
    return call.b.linear(x, weight, parameters(call, "intercepts", x, (count,)))


@operator("LinearRegressor", domain=ML)
def linear_regressor(call: Call) -> Node:
    x = features(call)
    return call.cast(transformed(call, _linear(call, x, call.attribute("targets", 1))), f32)


@operator("LinearClassifier", domain=ML)
def linear_classifier(call: Call) -> tuple[Node, Node]:
    x = call.cast(features(call), f32)
    labels, texts = class_labels(call, "classlabels_ints")
    width = x.shape[1]
    count = len(call.attribute("coefficients") or ()) // width if isinstance(width, int) and width else len(labels)
    scores = _linear(call, x, count)
    if count == 1 and len(labels) == 2:
        signs = both_classes(call, scores, rest_of_one=False)
        if call.attribute("post_transform", "NONE") == "LOGISTIC":
            return classified(call, signs, labels, texts)
        # as ONNX Runtime, which transforms a single score in no other way
        place = call.b.argmax(signs, axes=(1,), keepdims=False)
        return labelled(call, call.cast(place, i64), labels, texts), both_classes(call, scores, rest_of_one=True)
    if count != len(labels) or count < 2:
        call.unsupported(f"{count} scores of {len(labels)} classes")
    return classified(call, scores, labels, texts, by=scores)
