"""A product with a weight of a few bits a number and a scale for each block of a row: what quantised language models are made of.

    y = block_linear(x, codes, scales)      weight[n, k] = (code[n, k] - 2 ** (bits - 1)) * scales[n, k div block]

Zero points are not part of it. They are constant over a block, so their share is a product with the row's sums over the blocks:

    x @ ((code - zero) * scale).T  =  block_linear(x, codes, scales) - linear(sums of x, (zero - 2 ** (bits - 1)) * scale)
"""

from __future__ import annotations

import numpy as np
from dlcompiler.ir.errors import DTypeError, ShapeError
from dlcompiler.ir.ops import Trait, register
from dlcompiler.ir.ops.rules import require_float, require_operands, same_dtype
from dlcompiler.ir.types import TensorType, u8

BITS = (2, 4, 8)


def _infer_block_linear(types, attributes):
    """`block_linear(x[..., K], codes u8[N, K * bits / 8], scales[N, K / block])` -> [..., N], of the dtype of x and scales.

    attributes: bits of a code (2, 4 or 8), the first one of a byte in its lowest bits; block; columns N.
    """
    require_operands("block_linear", types, 3)
    x, codes, scales = types
    dtype = require_float("block_linear", same_dtype("block_linear", (x, scales)))
    bits, block, columns = (attributes[name] for name in ("bits", "block", "columns"))
    if codes.dtype is not u8:
        raise DTypeError(f"block_linear of codes {codes}: they lie in bytes, u8")
    if bits not in BITS or block < 1 or block * bits % 8:
        raise ShapeError(f"block_linear of blocks of {block} numbers of {bits} bits: 2, 4 or 8 bits, and blocks of whole bytes")
    if x.rank < 1 or scales.rank != 2 or scales.shape[0] != columns:
        raise ShapeError(f"block_linear of {x} with scales {scales} for {columns} columns: sizes do not fit")
    blocks = scales.shape[1]
    if codes.shape != (columns, blocks * (block * bits // 8)) or x.shape[-1] != blocks * block:
        raise ShapeError(f"block_linear of {x}, {codes}, {scales}: sizes do not fit {bits} bits in blocks of {block}")
    return TensorType(dtype, (*x.shape[:-1], columns))


def _rows(packed: np.ndarray, columns: int) -> np.ndarray:
    """Codes or scales with a row for each column, also of the panels [P, G, W, 4] or [P, B, W] in which a program has them."""
    if packed.ndim == 2:
        return packed
    rows = packed.swapaxes(1, 2)
    return rows.reshape(rows.shape[0] * rows.shape[1], -1)[:columns]


def _evaluate_block_linear(operands, attributes):
    x, codes, scales = operands
    bits, block, columns = (attributes[name] for name in ("bits", "block", "columns"))
    codes, scales = _rows(codes, columns), _rows(scales, columns)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    numbers = (codes[:, :, None] >> shifts & np.uint8((1 << bits) - 1)).reshape(codes.shape[0], -1)
    wide = np.float64 if x.dtype == np.float64 else np.float32
    weight = (numbers.astype(wide) - (1 << (bits - 1))) * np.repeat(scales.astype(wide), block, axis=1)
    return (x.astype(wide) @ weight.T).astype(x.dtype)


def _expand_block_linear(b, operands, attributes):
    """linear(x, weight), the weight written out."""
    x, codes, scales = operands
    bits, block, columns = (attributes[name] for name in ("bits", "block", "columns"))
    blocks = scales.shape[1]
    wide = b.cast(unpack_bits(b, codes, bits, (columns, blocks, block)), dtype=x.dtype.name)
    weight = b.mul(b.sub(wide, float(1 << (bits - 1))), b.reshape(scales, shape=(columns, blocks, 1)))
    return b.linear(x, b.reshape(weight, shape=(columns, blocks * block)))


def unpack_bits(b, packed, bits: int, shape: tuple[int, ...]):
    """The numbers in bytes, as u8 of `shape`; the bytes hold them row major, each row beginning a byte of its own."""
    if bits == 8:
        return b.reshape(packed, shape=shape)
    each, numbers = 8 // bits, 1
    for size in shape:
        numbers *= size
    shifts = b.constant(np.arange(0, 8, bits, dtype=np.uint8).reshape(1, each))
    moved = b.shift_right(b.reshape(packed, shape=(numbers // each, 1)), shifts)
    low = b.constant(np.full((1, 1), (1 << bits) - 1, np.uint8))
    return b.reshape(b.bitwise_and(moved, low), shape=shape)


def pack_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes u8[N, K] as the op takes them, the first of a byte in its lowest bits: u8[N, K * bits / 8]."""
    each = 8 // bits
    packed = codes[:, ::each]
    for place in range(1, each):
        packed = packed | codes[:, place::each] << np.uint8(bits * place)
    return np.ascontiguousarray(packed)  # only now: codes may be a transposed view, and these are fewer


def without_zero_points(b, result, x, moved, block: int):
    """`result` of a block_linear of x less its zero points' share; `moved` [N, K / block]: (zero - 2 ** (bits - 1)) * scale."""
    blocks = moved.shape[1]
    parts = b.reshape(x, shape=(*x.shape[:-1], blocks, block))
    return b.sub(result, b.linear(b.reduce_sum(parts, axes=(parts.tensor.rank - 1,), keepdims=False), moved))


register(
    "block_linear",
    _infer_block_linear,
    Trait.LIBRARY,
    Trait.COMPOSITE,
    evaluate=_evaluate_block_linear,
    expand=_expand_block_linear,
)
