"""Draws of random numbers as nodes of a Graph: bits by position from one seed a graph, and distributions made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dlcompiler.ir.errors import DTypeError
from dlcompiler.ir.expression import Dim, product
from dlcompiler.ir.graph import Node
from dlcompiler.ir.ops import lookup
from dlcompiler.ir.types import DType, TensorType, bf16, f16, f32, f64, i32, i64

# bits of a uniform number of each dtype, as many as its mantissa holds, so that it is never rounded to 1
DIGITS = {f64: 53, f32: 24, f16: 11, bf16: 8}


def bits_at(b: Any, seed: Node, position: int, shape: Sequence[Dim]) -> Node:
    """64 bits for each element of a shape, i64. The position lies in memory, so that equal layers are one kernel."""
    index = b.reshape(b.iota(size=product(tuple(shape))), shape=tuple(shape))
    attributes = {"value": b.constant(position, i64).attributes["value"], "stored": True}
    return b.philox(index, b.make(lookup("constant"), (), attributes, TensorType(i64), "position"), seed)


def next_bits(b: Any, shape: Sequence[Dim]) -> Node:
    """The bits of the next draw of the graph that `b` builds, in whose nodes the seed and the draws so far are found."""
    seed = next((node for node in b.nodes if node.op.name == "random_seed"), None)
    position = sum(node.op.name == "philox" for node in b.nodes)
    return bits_at(b, b.random_seed(name="seed") if seed is None else seed, position, shape)


def uniform(b: Any, shape: Sequence[Dim], dtype: DType) -> Node:
    """Numbers in [0, 1), of the lowest bits of a draw."""
    if dtype not in DIGITS:
        raise DTypeError(f"no random numbers of {dtype}")
    kept = b.bitwise_and(next_bits(b, shape), (1 << DIGITS[dtype]) - 1)
    kept = kept if DIGITS[dtype] > 31 else b.cast(kept, dtype=i32.name)
    return b.mul(b.cast(kept, dtype=dtype.name), 2.0 ** -DIGITS[dtype])


def normal(b: Any, shape: Sequence[Dim], dtype: DType) -> Node:
    """Standard normal numbers (Box and Muller 1958) of float32 or float64: a radius, and an angle."""
    if dtype is f64:
        radius = b.sub(b.constant(1, f64), uniform(b, shape, f64))
        angle = b.mul(uniform(b, shape, f64), 2 * math.pi)
    else:
        bits = next_bits(b, shape)
        low = b.cast(b.cast(b.bitwise_and(bits, 0x7FFFFFFF), dtype=i32.name), dtype=f32.name)
        high = b.cast(b.cast(b.shift_right(bits, 32), dtype=i32.name), dtype=f32.name)
        radius, angle = b.mul(b.add(low, 1.0), 2.0**-31), b.mul(high, math.pi * 2.0**-31)
    return b.mul(b.sqrt(b.mul(b.log(radius), -2.0)), b.cos(angle))


def chance(b: Any, shape: Sequence[Dim], probability: float) -> Node:
    """Bools that are true with this probability: 32 bits compared with it."""
    limit = round(min(max(probability, 0.0), 1.0) * 2**32)
    if limit >= 2**32:
        return b.expand(b.constant(True), shape=tuple(shape))
    return b.lt(b.cast(next_bits(b, shape), dtype=i32.name), limit - 2**31)
