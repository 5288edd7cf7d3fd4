"""Operators of `com.microsoft` on weights of a few bits with a scale for each block."""

from __future__ import annotations

import numpy as np

from dlcompiler.frontends.onnx_ops_contraction import matrix_product
from dlcompiler.frontends.onnx_ops_contrib import MICROSOFT
from dlcompiler.frontends.onnx_registry import Call, operator
from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import f32, i32, u8

# what the codes 0 to 15 of bitsandbytes stand for: 4-bit floats (a sign, then these eighths), and quantiles of a normal
# distribution (Dettmers et al., QLoRA: Efficient Finetuning of Quantized LLMs, 2023, appendix E)
_FLOATS = (0.0, 5.208333333e-03, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25)
_CODES = (
    (*_FLOATS, *(-x for x in _FLOATS)),
    (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
        -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ),
)  # fmt: skip


@operator("MatMulBnb4", domain=MICROSOFT)
def matmul_bnb4(call: Call) -> Node:
    """a @ b.T, where `b` [N, K], flattened, holds codes of a table, two in a byte, the first in the higher bits."""
    inner, columns, block = (call.attribute(n) for n in ("K", "N", "block_size"))
    kind = call.attribute("quant_type")
    if kind not in (0, 1) or not call.flag("transB", 1):
        call.unsupported(f"quant_type {kind}" if kind not in (0, 1) else "transB=0")
    count = inner * columns
    blocks = -(-count // block)
    packed = call.reshape(call[1], (-(-count // 2), 1))
    codes = call.b.bitwise_and(call.b.shift_right(packed, call.b.constant(np.array([[4, 0]], np.uint8))), call.number(15, packed))
    codes = call.slice(call.reshape(codes, (-(-count // 2) * 2,)), 0, 0, count)
    values = call.b.index(call.b.constant(np.array(_CODES[kind], np.float32)), call.cast(codes, i32), axes=(0,))
    scales = call.cast(call.reshape(call[2], (blocks,)), f32)
    spread = call.reshape(call.expand(call.reshape(scales, (blocks, 1)), (blocks, block)), (blocks * block,))
    weight = call.reshape(call.b.mul(values, call.slice(spread, 0, 0, count)), (columns, inner))
    result = matrix_product(call, call.cast(call[0], f32), call.permute(weight, (1, 0)))
    return call.cast(result, call[0].dtype)


@operator("GatherBlockQuantized", domain=MICROSOFT)
def gather_block_quantized(call: Call) -> Node:
    """Rows of a table that is quantised in blocks along an axis: the rows are gathered, then made floats.

    A table of bytes holds numbers of `bits`, side by side along the last dimension, the first in the lowest bits.
    """
    data, scales, zero = call.require_rank(0, 1), call[2], call.get(3)
    rank = data.tensor.rank
    along, axis = call.axis(0, rank, "gather_axis"), call.axis(1, rank, "quantize_axis")
    bits = call.attribute("bits", 4) if data.dtype is u8 else 8
    block = call.attribute("block_size", 128)
    if data.dtype.is_float or bits not in (2, 4, 8) or (bits < 8 and (along == rank - 1 or along == axis)):
        call.unsupported(f"a table of {data.dtype} with {bits} bits, gathered along {along}")
    before = along == axis
    if before:  # one block is in several rows
        data = _dequantized(call, data, scales, zero, axis, block, bits)
    taken = [call.apply("Gather", x, call[1], given={"axis": along}) for x in (data, scales, zero) if x is not None]
    if before:
        return taken[0]
    place = axis if axis < along else axis + call.rank(1) - 1
    return _dequantized(call, taken[0], taken[1], taken[2] if zero is not None else None, place, block, bits)


def _dequantized(call: Call, codes: Node, scales: Node, zero: Node | None, axis: int, block: int, bits: int) -> Node:
    narrow = codes.dtype is u8
    codes = _unpacked(call, codes, bits)
    wide = call.cast(codes, f32)
    size = wide.shape[axis]
    place = call.b.floor_div(call.b.iota(size=size), call.b.constant(np.int64(block)))

    def each(x: Node) -> Node:
        return call.b.index(x, place, axes=(axis,))

    if zero is not None:
        wide = call.b.sub(wide, call.cast(each(_unpacked(call, zero, bits)), f32))
    elif narrow:
        wide = call.b.sub(wide, float(1 << (bits - 1)))
    return call.cast(call.b.mul(wide, call.cast(each(scales), f32)), scales.dtype)


def _unpacked(call: Call, packed: Node, bits: int) -> Node:
    """[..., bytes] --> [..., numbers] of fewer than 8 bits; other tensors as they are."""
    if packed.dtype is not u8 or bits == 8:
        return packed
    lead, held = packed.shape[:-1], packed.shape[-1]
    shifts = call.b.constant(np.arange(0, 8, bits, dtype=np.uint8))
    moved = call.b.shift_right(call.reshape(packed, (*packed.shape, 1)), shifts)
    return call.reshape(call.b.bitwise_and(moved, call.number((1 << bits) - 1, packed)), (*lead, held * (8 // bits)))
