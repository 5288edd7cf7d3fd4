"""Operators without tensor operands, or whose operands only say a shape: constants, ranges, shapes."""

from __future__ import annotations

import math

import numpy as np

from dlcompiler.frontends.onnx_registry import Call, element_type, operator
from dlcompiler.ir.expression import floor_div
from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import i64


@operator("Constant")
def constant(call: Call) -> Node:
    if len(call.attributes) != 1:
        call.invalid(f"needs exactly one attribute, not {len(call.attributes)}")
    ((name, value),) = call.attributes.items()
    match name:
        case "value" | "sparse_value":
            return call.b.constant(value)
        case "value_int" | "value_ints":
            return call.b.constant(np.asarray(value, dtype=np.int64))
        case "value_float" | "value_floats":
            return call.b.constant(np.asarray(value, dtype=np.float32))
    call.unsupported(f"a constant given as {name}")


def _shape_input(call: Call, index: int):
    shape = call.dims(index, "a shape", told=True)
    if any(isinstance(d, int) and d < 0 for d in shape):
        call.invalid(f"a dimension is negative: {list(shape)}")
    return shape


@operator("ConstantOfShape")
def constant_of_shape(call: Call) -> Node:
    value = call.attribute("value")
    if value is None:
        value = np.zeros(1, np.float32)
    if value.size != 1:
        call.invalid(f"the value has {value.size} elements, not 1")
    scalar = call.b.constant(value.reshape(()))
    return call.expand(scalar, _shape_input(call, 0))


@operator("EyeLike")
def eye_like(call: Call) -> Node:
    x = call.require_rank(0, 2, 2)
    code = call.attribute("dtype")
    dtype = x.dtype if code is None else element_type(code)
    rows, columns = x.shape
    row = call.b.add(call.b.iota(size=rows), call.b.constant(np.int64(call.attribute("k", 0))))
    return call.cast(call.b.eq(call.reshape(row, (rows, 1)), call.b.iota(size=columns)), dtype)


@operator("Range")
def range_(call: Call) -> Node:
    """start, start + delta, ... below limit. The number of elements must be known, or an expression of known sizes."""
    start, limit, delta = (call.reshape(call[k], ()) for k in range(3))
    if start.dtype.is_integer:
        bounds = [call.dims(k, "a bound of a range") for k in range(3)]
        if any(len(bound) != 1 for bound in bounds):
            call.invalid("bounds must be single numbers")
        (first,), (last,), (step,) = bounds
        if not isinstance(step, int):
            call.unsupported("a symbolic step")
        if step == 0:
            call.invalid("the step is 0")
        span = last - first if step > 0 else first - last
        count = floor_div(span + (abs(step) - 1), abs(step))
        if isinstance(count, int):
            count = max(count, 0)
        elif not call.b.at_most(0, count):
            call.unsupported(f"a range of {count} elements, which may be negative")
    else:
        numbers = [call.scalar(k, "a bound of a range") for k in range(3)]
        if numbers[2] == 0 or not all(map(math.isfinite, numbers)):
            call.invalid(f"there is no range {numbers[0]}, {numbers[1]}, {numbers[2]}")
        count = max(math.ceil((numbers[1] - numbers[0]) / numbers[2]), 0)
    steps = call.cast(call.b.iota(size=count), start.dtype)
    return call.b.add(call.b.mul(steps, delta), start)


@operator("Shape")
def shape(call: Call) -> Node:
    dims = call[0].shape
    start, end = call.attribute("start", 0), call.attribute("end")
    return call.b.from_dims(list(dims[start:end]))


@operator("Size")
def size(call: Call) -> Node:
    return call.size(call[0].tensor.numel, i64)


@operator("Identity")
def identity(call: Call) -> Node:
    return call[0]
