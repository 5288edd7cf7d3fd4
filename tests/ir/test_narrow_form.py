"""Conversions from 8-bit floats are found again in Kernel IR, and nothing else is taken for one."""

from __future__ import annotations

import pytest
from dlcompiler.ir import kernel as K
from dlcompiler.ir import narrow
from dlcompiler.ir.contraction import with_operands
from dlcompiler.ir.kernel_builder import KernelBuilder
from dlcompiler.ir.narrow_form import EIGHT_BIT_FLOATS, decoded
from dlcompiler.ir.types import DTYPES, DType, f16, f32, i32


def conversion(dtype: DType, target: DType = f32) -> tuple[K.Value, K.Value]:
    b = KernelBuilder(lambda node: None)
    load = b.load(K.Buffer("codes", dtype, (7,), (1,)), (b.new_axis(7),))
    return narrow.decode(b, load, target), load


def with_constant_changed(value: K.Value) -> K.Value:
    """The same statements with the first integer found one larger."""
    for position, operand in enumerate(value.operands):
        if isinstance(operand, K.Constant) and operand.dtype is i32:
            changed: K.Value = K.Constant(i32, operand.value + 1)
        else:
            changed = with_constant_changed(operand)
            if changed is operand:
                continue
        return with_operands(value, (*value.operands[:position], changed, *value.operands[position + 1 :]))
    return value


@pytest.mark.parametrize("dtype", EIGHT_BIT_FLOATS, ids=str)
def test_a_conversion_is_found_and_a_nearly_equal_value_is_not(dtype):
    value, load = conversion(dtype)
    assert decoded(value) is load
    changed = with_constant_changed(value)
    assert changed is not value and decoded(changed) is None
    assert all(decoded(operand) is None for operand in value.operands)
    assert decoded(conversion(dtype, f16)[0]) is None  # a cast of one


def test_other_narrow_types_are_left_alone():
    assert decoded(conversion(DTYPES["f4e2m1"])[0]) is None and decoded(conversion(DTYPES["f8e8m0"])[0]) is None
