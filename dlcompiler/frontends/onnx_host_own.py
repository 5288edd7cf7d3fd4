"""Host operators of our own: where the reference evaluator is slow, or wraps optional values."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dlcompiler.frontends.onnx_host_ml import OWN_ML
from dlcompiler.ir.errors import InputError

INT64 = 7  # TensorProto.INT64


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
    if boxes.ndim != 3 or boxes.shape[2] != 4 or scores.ndim != 3 or scores.shape[::2] != boxes.shape[:2]:
        raise InputError(f"NonMaxSuppression takes boxes [n, m, 4] and scores [n, k, m], not {boxes.shape} and {scores.shape}")
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


def slices(
    x: np.ndarray, starts: np.ndarray, ends: np.ndarray, axes: np.ndarray | None = None, steps: np.ndarray | None = None
) -> np.ndarray:
    """`x[start:end:step]` along some axes, where bounds beyond a dimension are brought to its ends, whatever the step's sign."""
    places = [slice(None)] * x.ndim
    along = range(len(starts)) if axes is None else axes.tolist()
    widths = [1] * len(starts) if steps is None else steps.tolist()
    for axis, start, end, step in zip(along, starts.tolist(), ends.tolist(), widths):
        size = x.shape[axis]
        start, end = (bound + size if bound < 0 else bound for bound in (start, end))
        low, high = (0, size) if step > 0 else (-1, size - 1)
        start, end = min(max(start, 0), high), min(max(end, low), high)
        places[axis] = slice(start, None if end < 0 else end, step)
    return x[tuple(places)]


def max_roi_pool(x: np.ndarray, rois: np.ndarray, *, pooled_shape: Sequence[int], spatial_scale: float = 1.0) -> np.ndarray:
    """The largest elements of the cells of each region (image, x, y, x, y) of x [N, C, H, W]; 0 of an empty cell."""
    rows, columns = pooled_shape
    result = np.zeros((len(rois), x.shape[1], rows, columns), x.dtype)
    for k, (image, *corners) in enumerate(rois):
        left, top, right, bottom = (int(np.floor(c * spatial_scale + 0.5)) for c in corners)
        high, wide = max(bottom - top + 1, 1) / rows, max(right - left + 1, 1) / columns
        for i in range(rows):
            y0, y1 = (int(np.clip(v + top, 0, x.shape[2])) for v in (np.floor(i * high), np.ceil((i + 1) * high)))
            for j in range(columns):
                x0, x1 = (int(np.clip(v + left, 0, x.shape[3])) for v in (np.floor(j * wide), np.ceil((j + 1) * wide)))
                if y0 < y1 and x0 < x1:
                    result[k, :, i, j] = x[int(image), :, y0:y1, x0:x1].max(axis=(1, 2))
    return result


def multinomial(x: np.ndarray, *, dtype: int = 6, sample_size: int = 1, seed: float | None = None) -> np.ndarray:
    """[batch, sample_size] classes drawn from log-probabilities [batch, classes]; the same for the same seed."""
    random = np.random.default_rng(None if seed is None else int(np.float32(seed).view(np.uint32)))
    # the largest of log-probabilities with Gumbel noise is a draw
    noise = random.gumbel(size=(x.shape[0], sample_size, x.shape[1]))
    drawn = np.argmax(x.astype(np.float64)[:, None, :] + noise, axis=-1)
    return drawn.astype(np.int64 if dtype == INT64 else np.int32)


def unique(x: np.ndarray, *, axis: int | None = None, sorted: int = 1) -> tuple[np.ndarray, ...]:
    """Distinct elements, or slices along an axis, where each is found first, which each is, and how many there are of each.

    They are in ascending order or, if they are not to be sorted, in the order in which they are found.
    """
    values, first, inverse, counts = np.unique(x, return_index=True, return_inverse=True, return_counts=True, axis=axis)
    inverse = inverse.reshape(-1)
    if not sorted:
        order = np.argsort(first, kind="stable")
        values = values[order] if axis is None else np.take(values, order, axis=axis)
        first, counts = first[order], counts[order]
        inverse = np.argsort(order, kind="stable")[inverse]
    return values, *(each.astype(np.int64) for each in (first, inverse, counts))


def first_come(x: np.ndarray) -> tuple[np.ndarray, ...]:
    """Distinct numbers in the order in which they come, which each is, and how many there are of each."""
    values, _, inverse, counts = unique(x, sorted=0)
    return values, inverse, counts


def tokens(
    texts: np.ndarray, *, mark: int, pad_value: str, mincharnum: int = 1, separators: Sequence[str] = (), tokenexp: str = ""
) -> np.ndarray:
    """[..., texts, most tokens] of texts [..., texts]: what lies between separators, or what an expression matches.

    Without either each letter is a token. With `mark` a text begins with U+0002 and ends with U+0003.
    """
    if tokenexp:
        found = [[m.group(0) for m in re.finditer(tokenexp, text)] for text in texts.ravel()]
    elif any(separators):
        between = re.compile("|".join(f"(?:{each})" for each in separators))
        found = [between.split(text) for text in texts.ravel()]
    else:
        found = [list(text) for text in texts.ravel()]
    rows = [[token for token in row if len(token) >= max(mincharnum, 1)] for row in found]
    rows = [["\x02", *row, "\x03"] for row in rows] if mark else rows
    width = max(map(len, rows), default=0)
    result = np.full((len(rows), width), pad_value, dtype=object)
    for k, row in enumerate(rows):
        result[k, : len(row)] = row
    return result.reshape(*texts.shape, width)


def _optional(value: Any = None, **attributes: Any) -> Any:
    return value


# (domain, operator) -> function of the operands, None for one that is not given, and the attributes; one result
OWN: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("", "NonMaxSuppression"): non_max_suppression,
    ("", "MaxRoiPool"): max_roi_pool,
    ("", "Multinomial"): multinomial,
    ("", "Unique"): unique,
    ("", "Slice"): slices,
    ("com.microsoft", "Inverse"): np.linalg.inv,
    ("com.microsoft", "Tokenizer"): tokens,
    ("com.microsoft", "Unique"): first_come,
    **OWN_ML,
    ("", "Optional"): _optional,
    ("", "OptionalGetElement"): _optional,
    ("", "OptionalHasElement"): lambda value=None: np.asarray(value is not None),
    ("", "Identity"): lambda value: value,
}
