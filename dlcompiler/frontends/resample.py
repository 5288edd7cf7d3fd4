"""Linear maps along one axis that are known now: interpolation, pooling, padding, and their backward passes.

A map is a matrix [out, in] with few numbers in a row. `resample` writes its product with every row of a tensor along an axis as
reads at constant positions, so that it fuses with what is around it; the backward pass is the same with the matrix transposed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import compute_dtype

# Up to so many terms are written out, each with rows as vectors; more become a reduction over a table.
MOST_TERMS = 16


def resample_all(b: Any, x: Node, matrices: Sequence[np.ndarray]) -> Node:
    """A matrix along each of the last axes, computed wide and rounded once.

    The last axis, along which elements are gathered one by one, comes where the others leave the fewest of them.
    """
    dtype, lead = x.dtype, x.tensor.rank - len(matrices)
    wide = compute_dtype(dtype)
    result = x if dtype is wide else b.cast(x, dtype=wide.name)
    axes = sorted(range(len(matrices) - 1), key=lambda k: matrices[k].shape[0] / max(matrices[k].shape[1], 1))
    shrinking = [k for k in axes if matrices[k].shape[0] < matrices[k].shape[1]]
    for k in (*shrinking, len(matrices) - 1, *(k for k in axes if k not in shrinking)):
        result = resample(b, result, lead + k, matrices[k])
    return result if dtype is wide else b.cast(result, dtype=dtype.name)


def resample(b: Any, x: Node, axis: int, matrix: np.ndarray) -> Node:
    """y[..., o, ...] = sum over i of matrix[o, i] * x[..., i, ...], in the dtype of `x`, which is one that kernels compute in.

    `b` is a graph builder. The axis has a known size.
    """
    out, size = matrix.shape
    assert x.shape[axis] == size and compute_dtype(x.dtype) is x.dtype
    if out == size and np.array_equal(matrix, np.eye(size)):
        return x
    if out == size and np.array_equal(matrix, np.eye(size)[::-1]):
        return b.flip(x, axes=(axis,))
    factor = size // out if out else 0
    if out and size == factor * out and np.array_equal(matrix != 0, np.repeat(np.eye(out, dtype=bool), factor, axis=1)):
        return _blocks(b, x, axis, matrix, factor)
    repeat = out // size if size else 0
    if size and out == repeat * size and np.array_equal(matrix, np.repeat(np.eye(size), repeat, axis=0)):
        return _repeated(b, x, axis, repeat)
    positions, weights = _table(matrix)
    terms = positions.shape[1]
    low, high = _unchanged(matrix)
    # whole rows at constant places are read as vectors anyway
    if 2 * (high - low) > out > high - low and (terms > 1 or axis == x.tensor.rank - 1):
        return _with_edges(b, x, axis, matrix, low, high)
    tail = (1,) * (x.tensor.rank - axis - 1)

    def scaled(part: Node, weight: np.ndarray) -> Node:
        if np.all(weight == 1):
            return part
        return b.mul(part, b.constant(weight.reshape(*weight.shape, *tail), x.dtype))

    if terms > MOST_TERMS:
        taken = b.index(x, b.constant(positions), axes=(axis,))
        return b.reduce_sum(scaled(taken, weights), axes=(axis + 1,), keepdims=False)
    total = None
    for k in range(terms):
        part = scaled(b.index(x, b.constant(np.ascontiguousarray(positions[:, k])), axes=(axis,)), weights[:, k])
        total = part if total is None else b.add(total, part)
    return total if total is not None else b.reduce_sum(x, axes=(axis,), keepdims=True)


def _unchanged(matrix: np.ndarray) -> tuple[int, int]:
    """The longest run [low, high) of rows that pick single elements next to each other."""
    single = ((matrix != 0).sum(axis=1) == 1) & (matrix.max(axis=1, initial=0) == 1)
    place = matrix.argmax(axis=1)
    best, low = (0, 0), 0
    for row in range(len(matrix) + 1):
        goes_on = row < len(matrix) and single[row] and (row == low or place[row] == place[row - 1] + 1)
        if not goes_on:
            best = max(best, (low, row), key=lambda run: run[1] - run[0])
            low = row if row < len(matrix) and single[row] else row + 1
    return best


def _with_edges(b: Any, x: Node, axis: int, matrix: np.ndarray, low: int, high: int) -> Node:
    """Most of the result is the operand itself: only the edges are computed, each from the elements that it needs."""
    rank = x.tensor.rank

    def part(start: int, limit: int) -> Node:
        starts, limits = (tuple(v if d == axis else w for d, w in enumerate(whole)) for v, whole in
                          ((start, (0,) * rank), (limit, x.shape)))  # fmt: skip
        return b.slice(x, starts=starts, limits=limits, steps=(1,) * rank)

    first = int(matrix[low].argmax())
    pieces = [part(first, first + high - low)]
    for rows, where in ((slice(0, low), 0), (slice(high, len(matrix)), len(pieces) + 1)):
        edge = matrix[rows]
        if not len(edge):
            continue
        (used,) = np.nonzero(edge.any(axis=0))
        begin, end = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
        pieces.insert(where, resample(b, part(begin, end), axis, edge[:, begin:end]))
    return b.concat(*pieces, axis=axis)


def _blocks(b: Any, x: Node, axis: int, matrix: np.ndarray, factor: int) -> Node:
    """Each result is a sum over a block of its own: a reduction of a reshape."""
    out = matrix.shape[0]
    cut = b.reshape(x, shape=(*x.shape[:axis], out, factor, *x.shape[axis + 1 :]))
    weights = matrix[matrix != 0].reshape(out, factor)
    if np.any(weights != 1):
        tail = (1,) * (x.tensor.rank - axis - 1)
        equal = np.all(weights == weights.flat[0])
        cut = b.mul(cut, b.constant(weights.flat[0] if equal else weights.reshape(out, factor, *tail), x.dtype))
    return b.reduce_sum(cut, axes=(axis + 1,), keepdims=False)


def _repeated(b: Any, x: Node, axis: int, repeat: int) -> Node:
    spread = b.reshape(x, shape=(*x.shape[: axis + 1], 1, *x.shape[axis + 1 :]))
    wide = b.expand(spread, shape=(*x.shape[: axis + 1], repeat, *x.shape[axis + 1 :]))
    return b.reshape(wide, shape=(*x.shape[:axis], x.shape[axis] * repeat, *x.shape[axis + 1 :]))


def _table(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions and weights [out, terms] of the numbers of each row; short rows end with weights of 0."""
    counts = (matrix != 0).sum(axis=1)
    terms = max(int(counts.max(initial=0)), 1)
    positions = np.zeros((len(matrix), terms), dtype=np.int64)
    weights = np.zeros((len(matrix), terms), dtype=matrix.dtype)
    for row, numbers in enumerate(matrix):
        (places,) = np.nonzero(numbers)
        positions[row, : len(places)] = places
        positions[row, len(places) :] = places[-1] if len(places) else 0
        weights[row, : len(places)] = numbers[places]
    return positions, weights


# -- matrices ------------------------------------------------------------------------------------------------------------------


def windows_matrix(size: int, out: int, kernel: int, stride: int, padding: int) -> np.ndarray:
    """1 where element i lies in window o."""
    start = np.arange(out)[:, None] * stride - padding
    place = np.arange(size)[None, :]
    return ((place >= start) & (place < start + kernel)).astype(np.float64)


def adaptive_matrix(size: int, out: int) -> np.ndarray:
    """1 where element i lies in [floor(o*size/out), ceil((o+1)*size/out))."""
    place, row = np.arange(size)[None, :], np.arange(out)[:, None]
    return ((place >= row * size // out) & (place < -(-(row + 1) * size // out))).astype(np.float64)


def replicate_matrix(size: int, low: int, high: int) -> np.ndarray:
    """Padding with the nearest element; negative amounts take elements away."""
    source = np.clip(np.arange(-low, size + high), 0, size - 1)
    return (source[:, None] == np.arange(size)[None, :]).astype(np.float64)


def reflect_matrix(size: int, low: int, high: int) -> np.ndarray:
    """Padding with the elements mirrored at the first and the last one; negative amounts take elements away."""
    source = np.abs(np.arange(-low, size + high))
    source = np.where(source >= size, 2 * (size - 1) - source, source)
    return (source[:, None] == np.arange(size)[None, :]).astype(np.float64)


def antialias_matrix(size: int, out: int, scale: float, radius: float, weigh: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Weights of a filter that is stretched where the image shrinks, as Pillow resizes (torch's `_upsample_*_aa`).

    `scale`: how many elements one step of the result is; `weigh` the filter, 0 beyond `radius`.
    """
    matrix = np.zeros((out, size))
    stretch = max(scale, 1.0)
    for row in range(out):
        centre = scale * (row + 0.5)
        first = max(int(centre - radius * stretch + 0.5), 0)
        last = min(int(centre + radius * stretch + 0.5), size)
        weights = weigh((np.arange(first, last) - centre + 0.5) / stretch)
        total = weights.sum()
        matrix[row, first:last] = weights / total if total else weights
    return matrix


def triangle(distance: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(distance), 0)


def cubic(distance: np.ndarray, a: float = -0.5) -> np.ndarray:
    """Keys' cubic convolution kernel (1981)."""
    x = np.abs(distance)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
