"""Element types and tensor types."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from dlcompiler.ir.expression import Dim, known, product


@dataclass(frozen=True)
class DType:
    """One element type. `kind` is one of float, int, uint, bool, complex, narrow; `bits` counts the storage of one element.

    Those of kind narrow (`ir/narrow.py`) are stored and moved, one a byte, and converted before anything is computed.
    """

    name: str
    kind: str
    bits: int

    @property
    def bytes(self) -> int:
        """Bytes that one element takes in memory."""
        return self.bits // 8

    @cached_property
    def numpy(self) -> np.dtype:
        """The NumPy dtype that stores it (from `ml_dtypes` where NumPy has none)."""
        return _numpy_dtype(self)

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    @property
    def is_integer(self) -> bool:
        return self.kind in ("int", "uint")

    @property
    def is_narrow(self) -> bool:
        return self.kind == "narrow"

    @property
    def is_signed(self) -> bool:
        return self.kind in ("int", "float", "complex")

    def __reduce__(self) -> tuple[Any, ...]:
        # there is one object a type, which is compared by `is`: in another process, and of a copy, too
        return _named, (self.name,)

    def __str__(self) -> str:
        return self.name

    __repr__ = __str__


def _named(name: str) -> DType:
    return DTYPES[name]


f64, f32, f16, bf16 = (DType(n, "float", b) for n, b in (("f64", 64), ("f32", 32), ("f16", 16), ("bf16", 16)))
i64, i32, i16, i8 = (DType(f"i{b}", "int", b) for b in (64, 32, 16, 8))
u64, u32, u16, u8 = (DType(f"u{b}", "uint", b) for b in (64, 32, 16, 8))
boolean = DType("bool", "bool", 8)
c64, c128 = DType("c64", "complex", 64), DType("c128", "complex", 128)

# names that NumPy knows them by, from `ml_dtypes`
_NARROW = {
    "f8e4m3fn": "float8_e4m3fn", "f8e4m3fnuz": "float8_e4m3fnuz", "f8e5m2": "float8_e5m2", "f8e5m2fnuz": "float8_e5m2fnuz",
    "f8e8m0": "float8_e8m0fnu", "f6e2m3": "float6_e2m3fn", "f6e3m2": "float6_e3m2fn", "f4e2m1": "float4_e2m1fn",
    "i4": "int4", "u4": "uint4", "i2": "int2", "u2": "uint2",
}  # fmt: skip
NARROW_TYPES = tuple(DType(name, "narrow", 8) for name in _NARROW)

DTYPES: dict[str, DType] = {
    d.name: d for d in (f64, f32, f16, bf16, i64, i32, i16, i8, u64, u32, u16, u8, boolean, c64, c128, *NARROW_TYPES)
}
FLOATS = (f64, f32, f16, bf16)
INTEGERS = (i64, i32, i16, i8, u64, u32, u16, u8)


def _numpy_dtype(dtype: DType) -> np.dtype:
    if dtype is bf16:
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    if dtype.is_narrow:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, _NARROW[dtype.name]))
    prefix = {"float": "float", "int": "int", "uint": "uint", "complex": "complex"}.get(dtype.kind)
    return np.dtype(f"{prefix}{dtype.bits}" if prefix else "bool")


def dtype_of(array: np.ndarray | np.generic) -> DType:
    """The element type of a NumPy array. Raises KeyError for one that the IR does not have."""
    return _BY_NUMPY_NAME[array.dtype.name]


_BY_NUMPY_NAME = {
    "float64": f64, "float32": f32, "float16": f16, "bfloat16": bf16, "bool": boolean, "complex64": c64, "complex128": c128,
    **{f"int{d.bits}": d for d in (i64, i32, i16, i8)}, **{f"uint{d.bits}": d for d in (u64, u32, u16, u8)},
    **{_NARROW[d.name]: d for d in NARROW_TYPES},
}  # fmt: skip


def compute_dtype(dtype: DType) -> DType:
    """What kernels compute in: float16 and bfloat16 are stored narrow and computed in float32; all else as it is."""
    return f32 if dtype in (f16, bf16) else dtype


@dataclass(frozen=True)
class TensorType:
    """Element type and shape; a dimension is an int or an `Expression` of named sizes."""

    dtype: DType
    shape: tuple[Dim, ...] = ()

    @property
    def rank(self) -> int:
        return len(self.shape)

    @cached_property
    def numel(self) -> Dim:
        """Number of elements."""
        return product(self.shape)

    @cached_property
    def bytes(self) -> Dim:
        """Bytes of the elements, stored without gaps."""
        return self.numel * self.dtype.bytes

    @property
    def is_static(self) -> bool:
        return all(isinstance(d, int) for d in self.shape)

    @property
    def is_addressable(self) -> bool:
        """Whether its known sizes leave it below 2^63 bytes; zeros aside, since strides are made of the others."""
        return math.prod(d for d in self.shape if isinstance(d, int) and d) * self.dtype.bytes < 2**63

    @property
    def known_shape(self) -> tuple[int, ...]:
        """The shape of a tensor whose sizes are all known."""
        return tuple(known(d) for d in self.shape)

    @property
    def known_numel(self) -> int:
        """Number of elements of a tensor whose sizes are all known."""
        return known(self.numel)

    def with_shape(self, shape: Iterable[Dim]) -> TensorType:
        return TensorType(self.dtype, tuple(shape))

    def with_dtype(self, dtype: DType) -> TensorType:
        return TensorType(dtype, self.shape)

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"

    __repr__ = __str__


@dataclass(frozen=True)
class TupleType:
    """Several results at once: what a call of a many-result operator gives; `tuple.get` takes one out."""

    elements: tuple[TensorType | HostType | None, ...]

    def __str__(self) -> str:
        return f"({', '.join('none' if e is None else str(e) for e in self.elements)})"

    __repr__ = __str__


@dataclass(frozen=True)
class HostType:
    """A value that is no tensor of numbers and only the host holds: texts, a sequence. `name` says what, in ONNX's words."""

    name: str

    def __str__(self) -> str:
        return f"host {json.dumps(self.name)}"

    __repr__ = __str__


Type = TensorType | TupleType | HostType


def contiguous_strides(shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """Row-major strides in elements: the last dimension's is 1."""
    strides: list[Dim] = []
    step: Dim = 1
    for size in reversed(shape):
        strides.append(step)
        # as torch: a dimension of size 0 counts as 1, so that strides stay positive
        step = step * (1 if size == 0 else size)
    return tuple(reversed(strides))
