"""Host operators of our own for `ai.onnx.ml`: dictionaries, texts, and what only an iteration tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dlcompiler.ir.errors import InputError


def zip_map(
    x: np.ndarray, *, classlabels_int64s: Sequence[int] | None = None, classlabels_strings: Sequence[str] | None = None
) -> list[dict[int | str, float]]:
    """Each row of scores [samples, classes] as a dictionary by the classes' labels."""
    labels: Sequence[int | str] = classlabels_strings or classlabels_int64s or ()
    rows = np.atleast_2d(x)
    if rows.shape[1] != len(labels):
        raise InputError(f"ZipMap has {len(labels)} labels for scores {rows.shape}")
    return [dict(zip(labels, row)) for row in rows.tolist()]


_KINDS: Mapping[str, Callable[[Any], Any]] = {"TO_FLOAT": np.float32, "TO_STRING": str, "TO_INT64": np.int64}


def cast_map(x: Mapping[int, Any], *, cast_to: str = "TO_FLOAT", map_form: str = "DENSE", max_map: int = 1) -> np.ndarray:
    """[1, n] of a dictionary's values in the order of its keys; SPARSE: at their keys, among `max_map` numbers of zero."""
    kind = _KINDS[cast_to]
    if map_form == "DENSE":
        values = [kind(x[key]) for key in sorted(x)]
    else:
        missing = "" if cast_to == "TO_STRING" else 0
        values = [kind(x.get(key, missing)) for key in range(max_map)]
    dtype: Any = object if cast_to == "TO_STRING" else kind
    return np.array([values], dtype=dtype)


def category_mapper(
    x: np.ndarray,
    *,
    cats_int64s: Sequence[int] = (),
    cats_strings: Sequence[str] = (),
    default_int64: int = -1,
    default_string: str = "_Unused",
) -> np.ndarray:
    """Texts as their numbers, or numbers as their texts; one that is in neither list is the default."""
    if x.dtype == object:
        numbers = dict(zip(cats_strings, cats_int64s))
        return np.array([numbers.get(text, default_int64) for text in x.ravel()], dtype=np.int64).reshape(x.shape)
    texts = dict(zip(cats_int64s, cats_strings))
    return np.array([texts.get(number, default_string) for number in x.ravel().tolist()], dtype=object).reshape(x.shape)


def pairwise_coupling(pairs: np.ndarray, *, classes: int) -> np.ndarray:
    """[samples, classes] probabilities from those of pairs [samples, classes * (classes - 1) / 2], first against second.

    The method is named in `onnx_ops_ml_vectors`; as in libsvm it ends after 100 rounds, or once it is near.
    """
    samples = len(pairs)
    chance = np.zeros((samples, classes, classes))
    first, second = np.triu_indices(classes, 1)
    chance[:, first, second], chance[:, second, first] = pairs, 1 - pairs
    own = np.arange(classes)
    q = -chance.transpose(0, 2, 1) * chance
    q[:, own, own] = (chance.transpose(0, 2, 1) ** 2).sum(axis=2)
    p = np.full((samples, classes), 1 / classes)
    for _ in range(max(100, classes)):
        qp = np.einsum("nij,nj->ni", q, p)
        pqp = (p * qp).sum(axis=1)
        moving = np.abs(qp - pqp[:, None]).max(axis=1, initial=0) >= 0.005 / classes
        if not moving.any():
            break
        for k in range(classes):
            step = np.where(moving, (pqp - qp[:, k]) / q[:, k, k], 0.0)
            p[:, k] += step
            pqp = (pqp + step * (step * q[:, k, k] + 2 * qp[:, k])) / (1 + step) ** 2
            qp = (qp + step[:, None] * q[:, k]) / (1 + step[:, None])
            p /= 1 + step[:, None]
    return p.astype(np.float32)


# (domain, operator) -> function of the operands and the attributes
OWN_ML: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("ai.onnx.ml", "CastMap"): cast_map,
    ("ai.onnx.ml", "CategoryMapper"): category_mapper,
    ("ai.onnx.ml", "PairwiseCoupling"): pairwise_coupling,
    ("ai.onnx.ml", "ZipMap"): zip_map,
}
