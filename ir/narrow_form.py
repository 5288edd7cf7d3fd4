"""Finds conversions from narrow types in Kernel IR again, which `ir.narrow` has written out as arithmetic on bytes.

    v7 = where(nan, ..., mul(cast(fraction), power))    -->   v7 is the f8e4m3fn load v0, as f32

A target whose instructions take such numbers as they are, or convert them by one instruction, asks for this.
"""

from __future__ import annotations

from functools import cache

from dlcompiler.ir import kernel as K
from dlcompiler.ir import narrow
from dlcompiler.ir.kernel_builder import KernelBuilder
from dlcompiler.ir.types import DTYPES, DType, f32

EIGHT_BIT_FLOATS = tuple(DTYPES[name] for name in ("f8e4m3fn", "f8e4m3fnuz", "f8e5m2", "f8e5m2fnuz"))


def decoded(value: K.Value) -> K.Load | None:
    """The load of an 8-bit float that a float32 value is a conversion of; None for any other value."""
    if value.dtype is not f32 or not isinstance(value, K.Compute) or value.op != "where":
        return None
    for dtype in EIGHT_BIT_FLOATS:
        found = _source(value, dtype)
        if found is not None:
            return found
    return None


@cache
def _pattern(dtype: DType) -> tuple[K.Value, K.Load]:
    """What a conversion is written as, and the load in it."""
    b = KernelBuilder(lambda node: None)
    load = b.load(K.Buffer("x", dtype, (), (), "in"), ())
    assert isinstance(load, K.Load)
    return narrow.decode(b, load, f32), load


def _source(value: K.Value, dtype: DType) -> K.Load | None:
    """The load in the place of the pattern's, if the value has the pattern's form."""
    pattern, hole = _pattern(dtype)
    alike: dict[K.Value, K.Value] = {}
    stack: list[tuple[K.Value, K.Value]] = [(pattern, value)]
    while stack:
        want, got = stack.pop()
        if isinstance(want, K.Constant):
            if not isinstance(got, K.Constant) or want.dtype is not got.dtype or repr(want.value) != repr(got.value):
                return None
            continue
        if want in alike:
            if alike[want] is not got:
                return None
            continue
        alike[want] = got
        if want is hole:
            if not isinstance(got, K.Load) or got.dtype is not dtype:
                return None
            continue
        if type(want) is not type(got) or want.dtype is not got.dtype or len(want.operands) != len(got.operands):
            return None
        if isinstance(want, K.Compute) and isinstance(got, K.Compute) and want.op != got.op:
            return None
        stack.extend(zip(want.operands, got.operands))
    found = alike[hole]
    assert isinstance(found, K.Load)
    return found
