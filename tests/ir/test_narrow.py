"""Element types of fewer than 16 bits: conversions are those of `ml_dtypes`, for every code and every float16."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from dlcompiler.ir.graph import Builder, Graph
from dlcompiler.ir.interpret import interpret_graph
from dlcompiler.ir.types import DTYPES, NARROW_TYPES, DType, TensorType, f32
from dlcompiler.ir.verify import verify_graph

import dlcompiler

BITS = {"f6e2m3": 6, "f6e3m2": 6, "f4e2m1": 4, "i4": 4, "u4": 4, "i2": 2, "u2": 2}


def codes(dtype: DType) -> np.ndarray:
    """Every number of the type."""
    return np.arange(1 << BITS.get(dtype.name, 8), dtype=np.uint16).astype(np.uint8).view(dtype.numpy)


def numbers() -> np.ndarray:
    """Every float16, and floats of all sizes between and beyond."""
    random = np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint32).view(np.float32)
    return np.concatenate([np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32), random])


def conversions(dtype: DType, count: int) -> Graph:
    b = Builder("conversions")
    x, c = b.input("x", TensorType(f32, (count,))), b.input("c", TensorType(dtype, codes(dtype).shape))
    small = b.where(b.isfinite(x), b.maximum(b.minimum(x, 1e6), -1e6), 0.0) if dtype.name in ("i4", "u4", "i2", "u2") else x
    outputs = [b.cast(small, dtype=dtype.name), b.cast(c, dtype="f32"), b.cast(c, dtype="f16"), b.bitcast(c, dtype="u8")]
    moved = b.concat(b.slice(c, starts=(1,), limits=(4,), steps=(1,)), b.pad(c, low=(1,), high=(0,), value=1), axis=0)
    return b.finish([*outputs, moved])


@pytest.mark.parametrize("dtype", NARROW_TYPES, ids=str)
def test_kernels_convert_as_ml_dtypes(dtype):
    x, c = numbers(), codes(dtype)
    graph = conversions(dtype, len(x))
    verify_graph(graph)
    expected = interpret_graph(graph, [x, c])
    for got, want in zip(dlcompiler.compile(graph)(x, c), expected, strict=True):
        assert got.dtype == want.dtype and got.shape == want.shape
        if want.dtype == dtype.numpy:
            np.testing.assert_array_equal(got.view(np.uint8), want.view(np.uint8))
        else:
            np.testing.assert_array_equal(got.astype(np.float64), want.astype(np.float64))


@pytest.mark.parametrize("op", ["add", "maximum", "eq", "exp"])
def test_nothing_is_computed_with_them(op):
    b = Builder()
    c = b.input("c", TensorType(NARROW_TYPES[0], (4,)))
    with pytest.raises(dlcompiler.ir.errors.DTypeError, match="does not take f8e4m3fn"):
        b(op, *(c,) * (1 if op == "exp" else 2))


def test_a_type_is_one_object_in_every_process():
    for dtype in DTYPES.values():
        assert pickle.loads(pickle.dumps(dtype)) is dtype and copy.deepcopy(dtype) is dtype
