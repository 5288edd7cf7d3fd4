"""Ensembles of decision trees of `ai.onnx.ml`, walked by all samples at once.

at = roots                                                      [samples, trees]
at = where(x[feature[at]] <= value[at], yes[at], no[at])        as often as the deepest tree is deep; a leaf leads to itself
scores = sum over trees of weight[at]                           [samples, classes or targets]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dlcompiler.frontends.onnx_ops_ml import ML, both_classes, class_labels, classified, features, transformed
from dlcompiler.frontends.onnx_registry import Call, operator
from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import f32

MOST_DEPTH = 128
MOST_WEIGHTS = 1 << 26
_COMPARED: Mapping[str, str] = {
    "BRANCH_LEQ": "le", "BRANCH_LT": "lt", "BRANCH_GTE": "ge", "BRANCH_GT": "gt", "BRANCH_EQ": "eq", "BRANCH_NEQ": "ne",
}  # fmt: skip


class Trees(NamedTuple):
    """Nodes of all trees as arrays over their numbers; a leaf's children are itself."""

    roots: np.ndarray
    feature: np.ndarray
    value: np.ndarray
    yes: np.ndarray
    no: np.ndarray
    modes: list[str]
    missing_is_yes: np.ndarray | None
    depth: int
    number: Mapping[tuple[int, int], int]


def read_trees(call: Call, dtype: np.dtype[Any]) -> Trees:
    """The trees that the attributes `nodes_*` describe. Raises InvalidModelError for what are no trees."""
    ids = list(zip(call.attribute("nodes_treeids") or (), call.attribute("nodes_nodeids") or ()))
    count = len(ids)
    number = {key: k for k, key in enumerate(ids)}
    modes = list(call.attribute("nodes_modes") or ())
    names = ("featureids", "truenodeids", "falsenodeids")
    columns: dict[str, Sequence[int]] = {name: call.attribute(f"nodes_{name}") or () for name in names}
    values = call.attribute("nodes_values")
    values = call.attribute("nodes_values_as_tensor") if values is None else values
    values = np.asarray(values if values is not None else (), dtype).reshape(-1)
    lengths = {len(modes), len(values), *map(len, columns.values())}
    if not count or len(number) != count or lengths != {count}:
        call.invalid("its nodes are not numbered one by one, or some have no values, children or modes")
    own = np.arange(count)
    children = []
    for name in ("truenodeids", "falsenodeids"):
        found = [number.get((tree, child)) for (tree, _), child in zip(ids, columns[name])]
        if any(child is None and mode != "LEAF" for child, mode in zip(found, modes)):
            call.invalid("a branch leads to a node that does not exist")
        children.append(np.array([k if mode == "LEAF" else child for k, (mode, child) in enumerate(zip(modes, found))]))
    yes, no = children
    inner = np.array([mode != "LEAF" for mode in modes])
    reached = np.zeros(count, bool)
    reached[yes[inner]], reached[no[inner]] = True, True
    roots = own[~reached]
    trees = [ids[k][0] for k in roots]
    if len(set(trees)) != len(trees) or set(trees) != {tree for tree, _ in ids}:
        call.invalid("a tree has not one root")
    if unknown := {mode for mode in modes} - {*_COMPARED, "LEAF"}:
        call.invalid(f"mode {min(unknown)!r}")
    missing = call.attribute("nodes_missing_value_tracks_true")
    tracked = np.asarray(missing, bool) if missing and any(missing) and len(missing) == count else None
    return Trees(
        roots, np.asarray(columns["featureids"]), values, yes, no, modes, tracked, _depth(call, roots, yes, no, inner), number
    )


def _depth(call: Call, roots: np.ndarray, yes: np.ndarray, no: np.ndarray, inner: np.ndarray) -> int:
    level, depth, found = roots[inner[roots]], 0, len(roots)
    while level.size:
        depth += 1
        found += 2 * len(level)
        if depth > MOST_DEPTH:
            call.unsupported(f"a tree deeper than {MOST_DEPTH}")
        level = np.unique(np.concatenate([yes[level], no[level]]))
        level = level[inner[level]]
    if found != len(inner):
        call.invalid("some nodes are in no tree, or in several places of one")
    return depth


def _leaves(call: Call, x: Node, trees: Trees) -> Node:
    """[samples, trees]: the leaf that each sample reaches in each tree."""
    width = x.shape[1]
    inner = np.array([mode != "LEAF" for mode in trees.modes])
    if not isinstance(width, int):
        call.misfit(f"{x.type} has an unknown number of features")
    if inner.any() and not 0 <= trees.feature[inner].min() <= trees.feature[inner].max() < width:
        call.misfit(f"trees look at feature {trees.feature[inner].max()} of {width}")
    feature, value, yes, no = (
        call.b.constant(np.ascontiguousarray(table))
        for table in (np.where(inner, trees.feature, 0).astype(np.int64), trees.value, trees.yes, trees.no)
    )

    def at_nodes(table: Node, at: Node) -> Node:
        return call.b.index(table, at, axes=(0,))

    used = [mode for mode in _COMPARED if mode in trees.modes]
    codes = call.b.constant(np.array([used.index(m) if m in used else 0 for m in trees.modes], np.int64))
    tracked = None if trees.missing_is_yes is None else call.b.constant(trees.missing_is_yes)
    at = call.expand(call.reshape(call.b.constant(trees.roots), (1, len(trees.roots))), (x.shape[0], len(trees.roots)))
    for _ in range(trees.depth):
        seen = call.b.gather(x, at_nodes(feature, at), axis=1)
        bound = at_nodes(value, at)
        passes = call.b(_COMPARED[used[0]], seen, bound)
        for k, mode in enumerate(used[1:], 1):
            passes = call.b.where(call.b.eq(at_nodes(codes, at), k), call.b(_COMPARED[mode], seen, bound), passes)
        if tracked is not None:
            passes = call.b.bitwise_or(passes, call.b.bitwise_and(call.b.ne(seen, seen), at_nodes(tracked, at)))
        at = call.b.where(passes, at_nodes(yes, at), at_nodes(no, at))
    return at


def _scores(call: Call, x: Node, trees: Trees, prefix: str, columns: int) -> Node:
    """Sums [samples, columns] over trees of the weights of the leaves reached."""
    weights = call.attribute(f"{prefix}_weights")
    weights = call.attribute(f"{prefix}_weights_as_tensor") if weights is None else weights
    weights = np.asarray(weights if weights is not None else (), x.dtype.numpy).reshape(-1)
    keys = list(zip(call.attribute(f"{prefix}_treeids") or (), call.attribute(f"{prefix}_nodeids") or ()))
    places = call.attribute(f"{prefix}_ids") or ()
    if not len(keys) == len(places) == len(weights) or any(key not in trees.number for key in keys):
        call.invalid("weights lie at nodes that do not exist")
    if columns < 1 or any(not 0 <= place < columns for place in places):
        call.invalid(f"weights are of {prefix} {max(places, default=0)} of {columns}")
    if len(trees.modes) * columns > MOST_WEIGHTS:
        call.unsupported(f"{len(trees.modes)} nodes with {columns} weights each")
    table = np.zeros((len(trees.modes), columns), x.dtype.numpy)
    np.add.at(table, ([trees.number[key] for key in keys], list(places)), weights)
    held = call.b.index(call.b.constant(table), _leaves(call, x, trees), axes=(0,))
    return call.b.reduce_sum(held, axes=(1,), keepdims=False)


def _based(call: Call, scores: Node, pick: Callable[[np.ndarray], np.ndarray] = lambda values: values) -> Node:
    values = call.attribute("base_values")
    values = call.attribute("base_values_as_tensor") if values is None else values
    if values is None or not len(values):
        return scores
    return call.b.add(scores, call.b.constant(pick(np.asarray(values, scores.dtype.numpy).reshape(-1))))


@operator("TreeEnsembleRegressor", domain=ML)
def tree_regressor(call: Call) -> Node:
    x = features(call)
    trees = read_trees(call, x.dtype.numpy)
    how = call.attribute("aggregate_function", "SUM")
    if how not in ("SUM", "AVERAGE"):
        call.unsupported(f"the {how.lower()} over trees")
    scores = _scores(call, x, trees, "target", call.attribute("n_targets", 1))
    if how == "AVERAGE":
        scores = call.b.div(scores, call.number(len(trees.roots), scores))
    return call.cast(transformed(call, _based(call, scores)), f32)


@operator("TreeEnsembleClassifier", domain=ML)
def tree_classifier(call: Call) -> tuple[Node, Node]:
    """Where all weights are of one of two classes, that class's score decides: against a half if none is negative, else 0."""
    x = features(call)
    trees = read_trees(call, x.dtype.numpy)
    labels, texts = class_labels(call, "classlabels_int64s")
    if len(labels) < 2:
        call.unsupported(f"{len(labels)} classes")
    scores = _scores(call, x, trees, "class", len(labels))
    ids = set(call.attribute("class_ids") or ())
    if len(labels) > 2 or len(ids) != 1:
        scores = call.cast(_based(call, scores), f32)
        return classified(call, scores, labels, texts, by=scores)
    (place,) = ids
    score = call.cast(_based(call, call.slice(scores, 1, place, place + 1), lambda values: values[-1:]), f32)
    weights = call.attribute("class_weights")
    positive = min(weights if weights is not None else call.attribute("class_weights_as_tensor")) >= 0
    decided = both_classes(call, score, rest_of_one=positive)
    return classified(call, decided, labels, texts, by=decided)
