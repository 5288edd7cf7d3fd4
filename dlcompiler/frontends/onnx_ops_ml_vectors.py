"""Support vector classifiers of `ai.onnx.ml` that give probabilities; others are left to the host's evaluator.

    kernel = k(x, vectors)                                  [samples, vectors]
    score = kernel @ pairs + rho                            [samples, pairs of classes]
    p = 1 / (1 + exp(a * score + b))                        the first class of a pair against the second (Platt)

A class's probability is coupled from those of its pairs as libsvm does: Wu, Lin and Weng, Probability estimates for multi-class
classification by pairwise coupling, JMLR 5, 2004, second method.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from onnx import helper

from dlcompiler.frontends.onnx_ops_ml import ML, class_labels, features, labelled
from dlcompiler.frontends.onnx_registry import Call, operator
from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import TensorType, f32, i64

LEAST = 1e-7  # a pair's probability is kept this far from 0 and 1


@operator("SVMClassifier", domain=ML)
def support_vectors(call: Call) -> tuple[Node, Node]:
    sizes = list(call.attribute("vectors_per_class") or ())
    slopes, offsets = call.attribute("prob_a"), call.attribute("prob_b")
    if not slopes or not offsets or not sum(sizes) or (call.attribute("post_transform", "NONE") or "NONE") != "NONE":
        call.unsupported("scores that are no probabilities")
    labels, texts = class_labels(call, "classlabels_ints")
    classes, count = len(sizes), sum(sizes)
    pairs = list(combinations(range(classes), 2))
    x = call.cast(features(call), f32)
    vectors = np.asarray(call.attribute("support_vectors") or (), np.float32)
    weights = np.asarray(call.attribute("coefficients") or (), np.float32)
    rho = np.asarray(call.attribute("rho") or (), np.float32)
    lengths = {len(rho), len(slopes), len(offsets)}
    if len(labels) != classes or classes < 2 or vectors.size % count or weights.size != (classes - 1) * count:
        call.misfit(f"{count} vectors of {classes} classes do not fit {weights.size} coefficients")
    if lengths != {len(pairs)} or x.shape[1] != vectors.size // count:
        call.misfit(f"{x.type} does not fit {len(pairs)} pairs of classes and vectors of {vectors.size // count}")
    kernel = _kernel(call, x, call.b.constant(vectors.reshape(count, -1)))
    of_pairs = call.b.constant(_pairs(weights.reshape(classes - 1, count), sizes, pairs))
    score = call.b.add(call.b.matmul(kernel, of_pairs), call.b.constant(rho))
    slope, offset = (call.b.constant(np.asarray(v, np.float32)) for v in (slopes, offsets))
    chance = call.b.sigmoid(call.b.neg(call.b.add(call.b.mul(score, slope), offset)))
    result = _coupled(call, call.b.clamp(chance, low=LEAST, high=1 - LEAST), classes)
    return labelled(call, _most_votes(call, score, pairs, classes), labels, texts), result


def _pairs(weights: np.ndarray, sizes: list[int], pairs: list[tuple[int, int]]) -> np.ndarray:
    """[vectors, pairs]: what each vector's kernel counts for the first class of a pair against the second."""
    ends = np.cumsum([0, *sizes])
    result = np.zeros((weights.shape[1], len(pairs)), np.float32)
    for k, (first, second) in enumerate(pairs):
        for own, other in ((first, second - 1), (second, first)):
            result[ends[own] : ends[own + 1], k] = weights[other, ends[own] : ends[own + 1]]
    return result


def _kernel(call: Call, x: Node, vectors: Node) -> Node:
    kind = call.attribute("kernel_type", "LINEAR")
    gamma, constant, degree = (*(call.attribute("kernel_params") or ()), 0.0, 0.0, 0.0)[:3]
    if kind == "RBF":
        count, width = vectors.shape
        apart = call.b.sub(call.reshape(x, (x.shape[0], 1, width)), call.reshape(vectors, (1, count, width)))
        return call.b.exp(call.b.mul(call.b.reduce_sum(call.b.mul(apart, apart), axes=(2,), keepdims=False), -gamma))
    product = call.b.linear(x, vectors)
    if kind == "LINEAR":
        return product
    product = call.b.add(call.b.mul(product, gamma), constant)
    if kind == "POLY":
        return call.b.pow(product, call.number(degree, product))
    if kind != "SIGMOID":
        call.invalid(f"kernel_type is {kind!r}, not LINEAR, POLY, RBF or SIGMOID")
    return call.b.tanh(product)


def _most_votes(call: Call, score: Node, pairs: list[tuple[int, int]], classes: int) -> Node:
    """[samples]: the class that wins most of its pairs, the first of those that win as many."""
    wins = np.zeros((2, len(pairs), classes), np.float32)
    for k, pair in enumerate(pairs):
        for side, winner in enumerate(pair):
            wins[side, k, winner] = 1
    first = call.cast(call.b.gt(score, call.number(0, score)), f32)
    votes = call.b.add(call.b.matmul(first, call.b.constant(wins[0] - wins[1])), call.b.constant(wins[1].sum(axis=0)))
    return call.cast(call.b.argmax(votes, axes=(1,), keepdims=False), i64)


def _coupled(call: Call, chance: Node, classes: int) -> Node:
    if classes == 2:
        return call.concat([chance, call.b.sub(call.number(1, chance), chance)], 1)
    node = helper.make_node("PairwiseCoupling", ["pairs"], ["classes"], domain=ML, classes=classes)
    (result,) = call.host(node, 1, [chance], (TensorType(f32, (chance.shape[0], classes)),), "an iteration until it converges")
    return result
