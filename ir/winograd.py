"""Convolutions in fewer multiplications: the matrices of Winograd's algorithms, and where a kernel's sum is one they compute.

Along one dimension, m neighbouring results of a filter of r taps need m + r - 1 multiplications instead of m * r:

    y = R ((G g) * (D d))        d  m + r - 1 neighbouring inputs        g  the r taps        y  the m results

where `*` goes element by element (Winograd, Arithmetic complexity of computations, 1980; for images, one such step along each
dimension: Lavin and Gray, Fast algorithms for convolutional neural networks, 2016). The matrices come from evaluating polynomials
at m + r - 2 points and at infinity. Summed over channels, the products at each position of a tile are a matrix product.

The points were chosen by measured error among those whose powers float32 holds exactly and that come in pairs +p, -p, which
share half of their additions (Barabasz et al., Error analysis and improving the accuracy of Winograd convolution, 2020, search
likewise): of standard normal data with 256 channels and F(4x4, 3x3), the largest error over the largest result is 2.5e-6 with
these, 9e-6 with the usual 0, 1, -1, 2, -2, and 6e-7 with F(2x2, 3x3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import numpy as np
from dlcompiler.ir import kernel as K
from dlcompiler.ir.contraction import Contraction, stored, summation_order
from dlcompiler.ir.expression import Dim, linear_coefficients, symbol
from dlcompiler.ir.types import DTYPES, contiguous_strides

Matrix = tuple[tuple[float, ...], ...]

# Points for m + r - 1 positions, beside infinity.
POINTS: dict[int, tuple[Fraction, ...]] = {
    1: (),
    3: (Fraction(1), Fraction(-1)),
    4: (Fraction(0), Fraction(1), Fraction(-1)),
    5: (Fraction(1, 2), Fraction(-1, 2), Fraction(1), Fraction(-1)),
    6: (Fraction(0), Fraction(5, 8), Fraction(-5, 8), Fraction(3, 2), Fraction(-3, 2)),
}


@dataclass(frozen=True)
class Transforms:
    """The matrices for m results of r taps, a = m + r - 1: data D [a, a], weights G [a, r], results R [m, a]."""

    data: Matrix
    weights: Matrix
    results: Matrix

    @property
    def positions(self) -> int:
        """a: inputs, and multiplications."""
        return len(self.data)


@cache
def transforms(results: int, taps: int) -> Transforms:
    """The matrices for so many results of a filter of so many taps.

    Raises ValueError where there are no points for them: `results + taps - 1` is a key of POINTS.
    """
    count = results + taps - 1
    if count not in POINTS or results < 1 or taps < 1:
        raise ValueError(f"no points for {results} results of {taps} taps: {count} is none of {', '.join(map(str, POINTS))}")
    points = POINTS[count]
    data, weights, columns = [], [], []
    for k, point in enumerate(points):
        others = [p for j, p in enumerate(points) if j != k]
        scale = math.prod((point - p for p in others), start=Fraction(1))
        data.append((*_coefficients(others), Fraction(0)))
        weights.append([point**power / scale for power in range(taps)])
        columns.append([point**power for power in range(results)])
    data.append(_coefficients(points))
    weights.append([Fraction(int(power == taps - 1)) for power in range(taps)])
    columns.append([Fraction(int(power == results - 1)) for power in range(results)])
    return Transforms(_floats(data), _floats(weights), _floats(zip(*columns)))


def _coefficients(roots: Sequence[Fraction]) -> tuple[Fraction, ...]:
    """Of the polynomial with these roots, the lowest power first."""
    found = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *found]
        found = [high - root * low for high, low in zip(shifted, [*found, Fraction(0)])]
    return tuple(found)


def _floats(rows) -> Matrix:
    return tuple(tuple(float(number) for number in row) for row in rows)


# -- in kernels --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """A dimension along which a filter moves: the rows' load reads place `axis + tap + start` of it.

    extent  places that there are, if any may be asked for that are not; else every place from `start` on that is asked for is
    """

    axis: str
    tap: str
    start: int
    extent: int | None


def find_windows(kernel: K.Kernel, found: Contraction) -> tuple[Window, ...] | None:
    """The dimensions of a convolution with steps of one, in the order of the rows' load; None if a contraction is no such thing.

    Its summed axes are one tap for each window, and the channels; its columns have one axis.
    """
    if found.batch_axes or len(found.column_axes) != 1 or found.outside != 0 or stored(found.columns) is not found.columns:
        return None
    bounds = {bound.expression: bound.extent for bound in found.load.guard}
    summed = set(found.reduce.over)
    windows = []
    for place in found.load.index:
        coefficients = linear_coefficients(place, kernel.extents)
        if coefficients is None:
            return None
        names = [name for name in coefficients if name]
        taps = [name for name in names if name in summed]
        if len(names) != 2 or len(taps) != 1 or {coefficients[name] for name in names} != {1}:
            continue
        (axis,) = (name for name in names if name not in summed)
        start, extent = coefficients.get("", 0), bounds.pop(place, None)
        if axis not in found.row_axes or not isinstance(start, int) or not (extent is None or isinstance(extent, int)):
            return None
        windows.append(Window(axis, taps[0], start, extent))
    axes = [w.axis for w in windows]
    if bounds or not windows or len(set(axes)) < len(axes) or len(summed - {w.tap for w in windows}) != 1:
        return None
    if not all(isinstance(kernel.extents[name], int) for w in windows for name in (w.axis, w.tap)):
        return None
    return tuple(windows)


def transform_panels(kernel: K.Kernel, found: Contraction, sizes: tuple[int, ...]) -> tuple[np.ndarray, K.Kernel, K.Kernel]:
    """A packed contraction (see `pack_columns`) with transformed weights beside its panels, for tiles of `sizes` results.

        load panels[p, r, s, c, q]  -->  transformed[p, a*b, c, q] = sum over r, s of matrix[a*b, r, s] * panels[p, r, s, c, q]

    The matrix [positions, taps...] in float32, the kernel that multiplies by it (its buffers are `matrix`, the panels and the out
    buffer `transformed`), and the contraction that may be computed from those.
    """
    windows = find_windows(kernel, found)
    assert windows is not None and found.packed is not None and len(sizes) == len(windows)
    taps = [w.tap for w in windows]
    order = summation_order(kernel, found)
    channel = next(axis for axis in order if axis not in taps)
    panels = found.packed.buffer
    counts = [kernel.extents[tap] for tap in taps]
    matrix: np.ndarray = np.ones((), np.float64)
    for size, count in zip(sizes, counts):
        assert isinstance(count, int)
        matrix = np.multiply.outer(matrix, np.array(transforms(size, count).weights))
    # [a, r, b, s] --> [a, b, r, s]
    many = len(sizes)
    matrix = matrix.transpose(*range(0, 2 * many, 2), *range(1, 2 * many, 2)).reshape(-1, *counts).astype(np.float32)

    f32 = DTYPES["f32"]
    numbers = K.Buffer("matrix", f32, matrix.shape, contiguous_strides(matrix.shape))
    shape = (panels.shape[0], len(matrix), kernel.extents[channel], panels.shape[-1])
    p, t, q = symbol("p"), symbol("t"), symbol("q")
    summed = {axis: symbol(f"r{k}") for k, axis in enumerate(taps)}
    c = symbol("c")
    place: tuple[Dim, ...] = (p, *(summed.get(axis, c) for axis in order), q)
    value = K.Compute(f32, "mul", (K.Load(f32, numbers, (t, *summed.values())), K.Load(f32, panels, place)))
    over = tuple(f"r{k}" for k in range(many))
    out = K.Buffer("transformed", f32, shape, contiguous_strides(shape), "out")
    axes = [K.Axis(name, size) for name, size in zip("ptcq", shape)] + [K.Axis(name, size) for name, size in zip(over, counts)]
    store = K.Store(out, (p, t, c, q), K.Reduce(f32, "add", value, over))
    transform = K.Kernel(f"{kernel.name}_transform", tuple(axes), (numbers, panels, out), (store,), kernel.origin)
    name = "transformed"
    while name in {b.name for b in kernel.buffers}:
        name += "_"
    weights = K.Buffer(name, f32, shape, out.strides)
    ins, outs = ([b for b in kernel.buffers if b.role == role] for role in ("in", "out"))
    main = kernel.replace(buffers=(*ins, weights, *outs), winograd=K.Winograd(sizes, weights))
    return matrix, transform, main
