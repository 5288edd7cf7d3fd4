"""Operators that draw random numbers.

One that fixes its own `seed` is left to the host: the only generator that can be meant is that of the standard's reference. The
others draw by position from the seed of the call, which torch's generator gives (`random_draws`).
"""

from __future__ import annotations

from dlcompiler.frontends import random_draws
from dlcompiler.frontends.onnx_registry import Call, element_type, operator
from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import DType, boolean, compute_dtype


def _require_no_seed(call: Call) -> None:
    if call.attribute("seed") is not None:
        call.unsupported("a seed of its own")


def _dtype(call: Call, default: DType) -> DType:
    code = call.attribute("dtype")
    dtype = default if code is None else element_type(code)
    if not dtype.is_float:
        call.invalid(f"draws {dtype}, which is no float")
    return dtype


def _shape(call: Call) -> tuple[int, ...]:
    shape = call.attribute("shape")
    if shape is None or any(size < 0 for size in shape):
        call.invalid(f"shape is {shape}")
    return tuple(shape)


def _uniform(call: Call, shape: tuple, default: DType) -> Node:
    _require_no_seed(call)
    dtype, low, high = _dtype(call, default), call.attribute("low", 0.0), call.attribute("high", 1.0)
    drawn = random_draws.uniform(call.b, shape, dtype)
    if (low, high) == (0.0, 1.0):
        return drawn
    return call.cast(call.b.add(call.b.mul(call.wide(drawn), high - low), low), dtype)


def _normal(call: Call, shape: tuple, default: DType) -> Node:
    _require_no_seed(call)
    dtype, mean, scale = _dtype(call, default), call.attribute("mean", 0.0), call.attribute("scale", 1.0)
    drawn = random_draws.normal(call.b, shape, compute_dtype(dtype))
    return call.cast(call.b.add(call.b.mul(drawn, scale), mean), dtype)


@operator("RandomUniform")
def random_uniform(call: Call) -> Node:
    return _uniform(call, _shape(call), element_type(1))


@operator("RandomNormal")
def random_normal(call: Call) -> Node:
    return _normal(call, _shape(call), element_type(1))


@operator("RandomUniformLike")
def random_uniform_like(call: Call) -> Node:
    return _uniform(call, call[0].shape, call[0].dtype)


@operator("RandomNormalLike")
def random_normal_like(call: Call) -> Node:
    return _normal(call, call[0].shape, call[0].dtype)


@operator("Bernoulli")
def bernoulli(call: Call) -> Node:
    """1 with the probability that the input says for each element."""
    _require_no_seed(call)
    x, code = call.wide(call[0]), call.attribute("dtype")
    return call.cast(
        call.b.lt(random_draws.uniform(call.b, x.shape, x.dtype), x), call[0].dtype if code is None else element_type(code)
    )


@operator("Dropout")
def dropout(call: Call):
    """In inference the identity, and the mask is all true."""
    x = call[0]
    wanted = len(call.outputs) > 1 and bool(call.outputs[1])
    ratio = _ratio(call)
    if ratio == 0:
        full = call.full(True, boolean if call.version >= 10 else x.dtype, x.shape) if wanted else None
        return (x, full) if wanted else x
    _require_no_seed(call)
    if not 0 < ratio < 1:
        call.invalid(f"the ratio is {ratio}")
    mask = random_draws.chance(call.b, x.shape, 1 - ratio)
    kept = call.b.mul(call.wide(x), call.b.mul(call.cast(mask, compute_dtype(x.dtype)), 1 / (1 - ratio)))
    result = call.cast(kept, x.dtype)
    return (result, mask) if wanted else result


def _ratio(call: Call) -> float:
    """The share of elements that this call drops: none in inference."""
    if call.version < 12 or call.get(2) is None or not call.scalar(2, "training_mode"):
        return 0.0
    return 0.5 if call.get(1) is None else float(call.scalar(1, "ratio"))
