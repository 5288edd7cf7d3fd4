"""Discrete Fourier transforms, as products with matrices of cosines and sines; long ones are left to the host's FFT.

Sums are made in float64: a product adds many numbers that cancel where a fast transform adds few.
"""

from __future__ import annotations

import numpy as np

from dlcompiler.frontends.onnx_registry import Call, element_type, operator
from dlcompiler.ir.expression import known
from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import f64

LONGEST = 512  # a transform of this length reads a matrix of a megabyte


def _matrices(rows: int, columns: int, length: int, inverse: bool, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of 2 pi n k / length, [rows, columns]; the sine with the sign that the direction has."""
    angle = 2 * np.pi * (np.outer(np.arange(rows), np.arange(columns)) % length) / length
    scale = 1 / length if inverse else 1.0
    return (np.cos(angle) * scale).astype(dtype), (np.sin(angle) * (scale if inverse else -scale)).astype(dtype)


def _product(call: Call, x: Node, matrix: np.ndarray) -> Node:
    return call.b.matmul(x, call.b.constant(matrix))


def transform(call: Call, real: Node, imaginary: Node | None, bins: int, length: int, inverse: bool) -> tuple[Node, Node]:
    """The first `bins` of the transform of [..., n] numbers, of which `length` count (zeros behind): real, imaginary."""
    if length > LONGEST:
        call.unsupported(f"a transform of {length} numbers")
    used = min(length, known(real.shape[-1]))
    last = real.tensor.rank - 1
    cos, sin = _matrices(used, bins, length, inverse, real.dtype.numpy)
    real = call.slice(real, last, 0, used)
    parts = _product(call, real, cos), _product(call, real, sin)
    if imaginary is None:
        return parts
    imaginary = call.slice(imaginary, last, 0, used)
    return (
        call.b.sub(parts[0], _product(call, imaginary, sin)),
        call.b.add(parts[1], _product(call, imaginary, cos)),
    )


def _parts(call: Call, x: Node) -> tuple[Node, Node | None]:
    """The real numbers and, if the last dimension is 2, the imaginary ones of [..., 1 or 2]."""
    last = x.tensor.rank - 1
    width = x.shape[last]
    if width not in (1, 2):
        call.misfit(f"{x.type} is neither real nor complex")
    parts = [call.reshape(call.slice(x, last, k, k + 1), x.shape[:last]) for k in range(known(width))]
    return parts[0], parts[1] if width == 2 else None


def _together(call: Call, parts: tuple[Node, ...]) -> Node:
    return call.concat([call.reshape(p, (*p.shape, 1)) for p in parts], parts[0].tensor.rank)


@operator("DFT")
def dft(call: Call) -> Node:
    """Along one axis; `onesided` gives (forwards) or takes (backwards) only the first half of a symmetric transform."""
    x = call.require_rank(0, 2)
    rank = x.tensor.rank
    if call.version >= 20:
        axis = call.normalize(int(call.scalar(2, "axis")) if call.get(2) is not None else -2, rank)
    else:
        axis = call.axis(1, rank)
    size = x.shape[axis]
    if not isinstance(size, int) or axis == rank - 1 or not x.dtype.is_float:
        call.unsupported(f"a transform along dimension {axis} of {x.type}")
    inverse, onesided = call.flag("inverse"), call.flag("onesided")
    real, imaginary = _parts(call, call.cast(x, f64))
    order = [*(d for d in range(rank - 1) if d != axis), axis]
    back = [order.index(d) for d in range(rank - 1)]
    real = call.permute(real, order)
    imaginary = None if imaginary is None else call.permute(imaginary, order)
    default = 2 * (size - 1) if inverse and onesided else size
    length = int(call.scalar(1, "dft_length")) if call.get(1) is not None else default
    if inverse and onesided:
        result: tuple[Node, ...] = (_from_half(call, real, imaginary, length),)
    else:
        bins = length // 2 + 1 if onesided else length
        result = transform(call, real, imaginary, bins, length, inverse)
    return call.cast(_together(call, tuple(call.permute(p, back) for p in result)), x.dtype)


def _from_half(call: Call, real: Node, imaginary: Node | None, length: int) -> Node:
    """The real numbers whose transform begins with these: the other half is its mirror image."""
    if length > LONGEST:
        call.unsupported(f"a transform of {length} numbers")
    used = min(length // 2 + 1, known(real.shape[-1]))
    last = real.tensor.rank - 1
    cos, sin = _matrices(used, length, length, True, real.dtype.numpy)
    twice = np.full((used, 1), 2.0)
    twice[0] = 1
    if length % 2 == 0 and used == length // 2 + 1:
        twice[-1] = 1
    cos, sin = (cos * twice).astype(cos.dtype), (sin * twice).astype(sin.dtype)
    result = _product(call, call.slice(real, last, 0, used), cos)
    if imaginary is None:
        return result
    return call.b.sub(result, _product(call, call.slice(imaginary, last, 0, used), sin))


@operator("STFT")
def stft(call: Call) -> Node:
    """Transforms of overlapping frames of a signal [batch, length, 1 or 2], each times a window."""
    signal = call.require_rank(0, 3, 3)
    step = int(call.scalar(1, "frame_step"))
    window = call.get(2)
    if call.get(3) is not None:
        length = int(call.scalar(3, "frame_length"))
    elif window is not None and isinstance(window.shape[0], int):
        length = window.shape[0]
    else:
        call.unsupported("frames of unknown length")
    if step < 1 or length < 1:
        call.invalid(f"frames of {length} every {step}")
    onesided = call.flag("onesided", 1)
    frames = []
    for part in _parts(call, call.cast(signal, f64)):
        if part is not None:
            cut = call.b.window(part, axes=(1,), sizes=(length,), strides=(step,), dilations=(1,))
            frames.append(cut if window is None else call.b.mul(cut, call.cast(window, cut.dtype)))
    bins = length // 2 + 1 if onesided else length
    result = transform(call, frames[0], frames[1] if len(frames) > 1 else None, bins, length, False)
    return call.cast(_together(call, result), signal.dtype)


@operator("MelWeightMatrix")
def mel_weight_matrix(call: Call) -> Node:
    """[bins of a spectrum, mel bands] triangles, even on the mel scale 2595 log10(1 + f / 700); its arguments must be known."""
    bands, length, rate = (int(call.scalar(k, "an argument")) for k in range(3))
    low, high = (float(call.scalar(k, "an edge")) for k in (3, 4))
    bins = length // 2 + 1
    if bands < 0 or bins < 1:
        call.invalid(f"{bands} bands of a transform of {length}")
    low_mel, high_mel = (2595 * np.log10(1 + edge / 700) for edge in (low, high))
    mel = low_mel + np.arange(bands + 2) * ((high_mel - low_mel) / (bands + 2))
    edges = ((length + 1) * (700 * (np.power(10, mel / 2595) - 1)) // rate).astype(np.int64)
    matrix = np.zeros((bins, bands))
    for k in range(bands):
        left, centre, right = edges[k : k + 3]
        if left == centre:
            matrix[centre, k] = 1
        for j in range(left, centre + 1):
            if left != centre:
                matrix[j, k] = (j - left) / (centre - left)
        for j in range(centre, right):
            if right != centre:
                matrix[j, k] = (right - j) / (right - centre)
    return call.b.constant(matrix.astype(element_type(call.attribute("output_datatype", 1)).numpy))
