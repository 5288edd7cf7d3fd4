"""Host operators of our own: where the reference evaluator is slow, or wraps optional values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def non_max_suppression(
    boxes: np.ndarray,
    scores: np.ndarray,
    most: np.ndarray | None = None,
    overlap: np.ndarray | None = None,
    threshold: np.ndarray | None = None,
    *,
    center_point_box: int = 0,
) -> np.ndarray:
    """[kept, 3] of (image, class, box): greedily the best box that overlaps none kept before by more than `overlap`.

    boxes [images, boxes, 4], as two corners in any order (y, x, y, x), or with `center_point_box` as (x, y, width, height);
    scores [images, classes, boxes]. Equal scores keep the order of the boxes.
    """
    limit = int(np.reshape(most, ())) if most is not None and most.size else 0
    allowed = float(np.reshape(overlap, ())) if overlap is not None and overlap.size else 0.0
    kept: list[tuple[int, int, int]] = []
    for image in range(boxes.shape[0]):
        low, high = _corners(boxes[image].astype(np.float32), center_point_box)
        areas = np.prod(high - low, axis=1)
        for kind in range(scores.shape[1]):
            row = scores[image, kind]
            order = np.argsort(-row, kind="stable")
            if threshold is not None and threshold.size:
                order = order[row[order] > np.reshape(threshold, ())]
            taken = 0
            while order.size and taken < limit:
                best, order = order[0], order[1:]
                kept.append((image, kind, int(best)))
                taken += 1
                inner = np.minimum(high[best], high[order]) - np.maximum(low[best], low[order])
                common = np.prod(np.maximum(inner, 0), axis=1)
                union = areas[best] + areas[order] - common
                with np.errstate(all="ignore"):
                    order = order[~((common > 0) & (common / union > allowed))]
    return np.array(kept, dtype=np.int64).reshape(-1, 3)


def _corners(boxes: np.ndarray, by_centre: int) -> tuple[np.ndarray, np.ndarray]:
    if by_centre:
        centre, half = boxes[:, [1, 0]], boxes[:, [3, 2]] / 2
        return centre - half, centre + half
    first, second = boxes[:, :2], boxes[:, 2:]
    return np.minimum(first, second), np.maximum(first, second)


def _optional(value: Any = None, **attributes: Any) -> Any:
    return value


# (domain, operator) -> function of the operands, None for one that is not given, and the attributes; one result
OWN: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("", "NonMaxSuppression"): non_max_suppression,
    ("", "Optional"): _optional,
    ("", "OptionalGetElement"): _optional,
    ("", "OptionalHasElement"): lambda value=None: np.asarray(value is not None),
    ("", "Identity"): lambda value: value,
}
