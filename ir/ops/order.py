"""Order: sorting along the last axis, and the first few of a sorted row.

A NaN is larger than any number; equal elements (zeros of both signs are equal) stay in their order, in descending order too.
"""

from __future__ import annotations

import numpy as np
from dlcompiler.ir.errors import ShapeError
from dlcompiler.ir.ops import Trait, register
from dlcompiler.ir.ops.rules import require_operands
from dlcompiler.ir.types import TensorType, TupleType, compute_dtype, dtype_of, i64


def _infer_sort(types, attributes):
    """`sort(x)` -> (x in order along its last axis, the place that each element had). attributes: descending."""
    require_operands("sort", types, 1)
    if not types[0].rank:
        raise ShapeError(f"sort of {types[0]} has no axis")
    return TupleType((types[0], TensorType(i64, types[0].shape)))


def _places_in_order(x: np.ndarray, descending: bool) -> np.ndarray:
    wide = x.astype(compute_dtype(dtype_of(x)).numpy)
    if not descending:
        return np.argsort(wide, axis=-1, kind="stable")
    return x.shape[-1] - 1 - np.argsort(wide[..., ::-1], axis=-1, kind="stable")[..., ::-1]


def _evaluate_sort(operands, attributes):
    (x,) = operands
    places = _places_in_order(x, attributes["descending"])
    return np.take_along_axis(x, places, -1), np.ascontiguousarray(places, dtype=np.int64)


register("sort", _infer_sort, Trait.LIBRARY, evaluate=_evaluate_sort)


def _infer_topk(types, attributes):
    """`topk(x)` -> the first `k` of each row of `sort(x, descending=largest)`, and their places."""
    require_operands("topk", types, 1)
    (type,), k = types, attributes["k"]
    if not type.rank or (isinstance(k, int) and (k < 0 or (isinstance(type.shape[-1], int) and k > type.shape[-1]))):
        raise ShapeError(f"the first {k} elements along the last axis of {type}")
    shape = (*type.shape[:-1], k)
    return TupleType((type.with_shape(shape), TensorType(i64, shape)))


def _evaluate_topk(operands, attributes):
    (x,) = operands
    places = _places_in_order(x, attributes["largest"])[..., : attributes["k"]]
    return np.take_along_axis(x, places, -1), np.ascontiguousarray(places, dtype=np.int64)


register("topk", _infer_topk, Trait.LIBRARY, evaluate=_evaluate_topk)
