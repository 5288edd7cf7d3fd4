"""Rules for operators that make tensors out of numbers."""

from __future__ import annotations

from typing import Any

from dlcompiler.frontends.fx_rules import NoRule, moving, rule
from dlcompiler.frontends.fx_types import WeakNumber
from dlcompiler.frontends.fx_view import expand, reshape
from dlcompiler.ir.expression import Expression
from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import boolean, compute_dtype, f64, i64


def filled(i: Any, value: Any) -> Node:
    """The result's shape, full of one number or 0-d node."""
    return expand(i, i.tensor(value, i.dtype), i.shape)


@moving("full.default")
def _full(i, size, value, **kwargs):
    return filled(i, value)


@moving("full_like.default")
def _full_like(i, x, value, **kwargs):
    return filled(i, value)


@moving("new_full.default")
def _new_full(i, x, size, value, **kwargs):
    return filled(i, value)


def _constant_rule(value: int):
    return lambda i, *args, **kwargs: filled(i, value)


moving("zeros.default", "zeros_like.default", "new_zeros.default")(_constant_rule(0))
moving("ones.default", "ones_like.default", "new_ones.default")(_constant_rule(1))
# the contents of an empty tensor are anyone's guess; zeros make every run the same
rule("empty.memory_format", "empty_like.default", "new_empty.default", "empty_strided.default", "new_empty_strided.default",
     "empty_permuted.default")(_constant_rule(0))  # fmt: skip


@rule("fill.Scalar", "fill.Tensor")
def _fill(i, x, value):
    return filled(i, value)


@rule("arange.default")
def _arange(i, end, **kwargs):
    return _ramp(i, 0, 1)


@rule("arange.start")
def _arange_start(i, start, end, **kwargs):
    return _ramp(i, start, 1)


@rule("arange.start_step")
def _arange_start_step(i, start, end, step=1, **kwargs):
    return _ramp(i, start, step)


def _ramp(i: Any, start: Any, step: Any) -> Node:
    """start + step * [0, 1, ...]; in i64 or f64 while it is computed, as ATen does for the default dtypes."""
    line = i.b.iota(size=i.shape[0])
    if i.dtype.is_integer:
        start, step = (int(v) if isinstance(v, float) and v.is_integer() else v for v in (start, step))
    if i.dtype.is_integer and all(isinstance(v, int | Expression) for v in (start, step)):
        wide = i64
    elif i.dtype.is_float:
        wide = f64 if compute_dtype(i.dtype) is i.dtype else compute_dtype(i.dtype)
    else:
        raise NoRule(f"a range of {i.dtype} from {start} by {step}")
    result = i.cast(line, wide)
    if not (isinstance(step, int) and step == 1):
        result = i.b.mul(result, i.number(step, wide))
    if isinstance(start, WeakNumber | Expression) or start != 0:
        result = i.b.add(result, i.number(start, wide))
    return i.cast(result, i.dtype)


@rule("prims.iota.default")
def _iota(i, length, start, step, **kwargs):
    return _ramp(i, start, step)


@rule("eye.default", "eye.m")
def _eye(i, *args, **kwargs):
    rows, columns = i.shape
    return i.cast(i.b.eq(i.b.iota(size=columns), reshape(i, i.b.iota(size=rows), (rows, 1))), i.dtype)


def _triangle(i: Any, x: Node, diagonal: Any, op: str) -> Node:
    rows, columns = x.shape[-2:]
    row = reshape(i, i.b.iota(size=rows), (rows, 1))
    if not (isinstance(diagonal, int) and diagonal == 0):
        row = i.b.add(row, i.number(diagonal, i64))
    inside = i.b(op, i.b.iota(size=columns), row)
    if x.dtype is boolean:
        return i.b.bitwise_and(x, inside)
    return i.b.where(inside, x, i.number(0, x.dtype))


@rule("tril.default")
def _tril(i, x, diagonal=0):
    return _triangle(i, x, diagonal, "le")


@rule("triu.default")
def _triu(i, x, diagonal=0):
    return _triangle(i, x, diagonal, "ge")
