"""NaN, infinities, signed zeros, integer division, wraparound and dtypes: the same bits as eager where eager is exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.end_to_end.support import (
    assert_identical,
    assert_near,
    assert_same_layout,
    check,
    compile_with,
    in_float64,
    leaves,
    random_tensor,
)

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)
ODD = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1.0, -1.0, 0.5, 1e-40, -1e-40, 3e38, -2.5]


def all_pairs(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Every pair of odd numbers."""
    values = torch.tensor(ODD, dtype=dtype)
    return values.repeat_interleave(len(ODD)), values.repeat(len(ODD))


BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "fmax": torch.fmax,
    "fmin": torch.fmin,
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "where": lambda a, b: torch.where(a > b, a, b),
    "less": lambda a, b: a < b,
    "equal": lambda a, b: a == b,
    "unequal": lambda a, b: a != b,
    "copysign": torch.copysign,
    "masked_fill": lambda a, b: a.masked_fill(b > 0, float("nan")),
    "clamp_by_tensors": lambda a, b: torch.clamp(a, b, b + 1),
}
UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "abs": torch.abs,
    "neg": torch.neg,
    "sign": torch.sign,
    "clamp": lambda a: torch.clamp(a, -1.0, 1.0),
    "clamp_min": lambda a: torch.clamp_min(a, 0.0),
    "relu6": functional.relu6,
    "hardtanh": functional.hardtanh,
    "isnan": torch.isnan,
    "isinf": torch.isinf,
    "isfinite": torch.isfinite,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "trunc": torch.trunc,
    "round": torch.round,
    "times_zero": lambda a: a * 0,
    "minus_itself": lambda a: a - a,
    "over_itself": lambda a: a / a,
    "plus_zero": lambda a: a + 0.0,
    "minus_zero": lambda a: a - 0.0,
    "zero_minus": lambda a: 0.0 - a,
    "times_one": lambda a: a * 1,
    "double_negation": lambda a: torch.neg(torch.neg(a)),
    "square_root_of_square": lambda a: torch.sqrt(a * a),
    "equal_to_itself": lambda a: a == a,
    "nan_to_num": lambda a: torch.nan_to_num(a, 1.0, 2.0, 3.0),
    "leaky_relu": functional.leaky_relu,
    "threshold": lambda a: functional.threshold(a, 0.25, -3.0),
}
REDUCTIONS: dict[str, Callable[[Tensor], Any]] = {
    "amax": lambda a: a.amax(-1),
    "amin": lambda a: a.amin(-1),
    "max_with_indices": lambda a: a.max(-1),
    "min_with_indices": lambda a: a.min(-1),
    "argmax": lambda a: a.argmax(-1),
    "argmin": lambda a: a.argmin(-1),
    "any": lambda a: a.any(-1),
    "all": lambda a: a.all(-1),
    "sort": lambda a: a.sort(stable=True, dim=-1),
    "topk": lambda a: a.topk(3, -1)[0],
}


# Between 0.0 and -0.0 eager itself chooses one way in float32 and the other in float16.
TIES = ("maximum", "minimum", "fmax", "fmin", "clamp_by_tensors", "relu", "clamp", "clamp_min", "relu6", "hardtanh")


def same_bits(function: Callable[..., Any], *inputs: Tensor, ties: bool = False) -> None:
    """Compiled equals eager exactly; with ``ties`` either zero may stand for the other."""
    compiled = compile_with("torch.compile", function)
    for position, (ours, eager) in enumerate(zip(leaves(compiled(*inputs)), leaves(function(*inputs)), strict=True)):
        assert_same_layout(ours, eager)
        if ties and eager.is_floating_point():
            ours, eager = ours + 0.0, eager + 0.0
        assert_identical(ours, eager, f"output {position}")


def for_each(function: Callable[..., Any], width: int) -> Callable[..., Any]:
    """One graph that applies the function to every group of ``width`` inputs, so that all dtypes cost one compilation."""
    return lambda *inputs: [function(*inputs[start : start + width]) for start in range(0, len(inputs), width)]


@pytest.mark.parametrize("name", BINARY)
def test_odd_numbers_in_pairs(name: str) -> None:
    inputs = [value for dtype in FLOATS for value in all_pairs(dtype)]
    same_bits(for_each(BINARY[name], 2), *inputs, ties=name in TIES)


@pytest.mark.parametrize("name", UNARY)
def test_odd_numbers_alone(name: str) -> None:
    inputs = [torch.tensor(ODD * 3, dtype=dtype) for dtype in FLOATS]
    same_bits(for_each(UNARY[name], 1), *inputs, ties=name in TIES)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_of_odd_numbers(name: str) -> None:
    rows = torch.tensor([ODD[start:] + ODD[:start] for start in range(len(ODD))])
    tame = torch.tensor([[1.0, -2.0, 5.0, 5.0, -2.0, 0.0, -0.0, 3.0]] * 3)
    compiled = compile_with("torch.compile", REDUCTIONS[name])
    for table in (rows, tame, rows[:, 1:].contiguous()):
        for ours, eager in zip(leaves(compiled(table)), leaves(REDUCTIONS[name](table)), strict=True):
            plus_zero = 0.0 if eager.is_floating_point() else False  # which zero wins a tie is not promised
            assert_same_layout(ours, eager)
            assert_identical(ours + plus_zero, eager + plus_zero)


INTEGER_OPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "floor_divide": lambda a, b: a // b,
    "truncated": lambda a, b: torch.div(a, b, rounding_mode="trunc"),
    "remainder": lambda a, b: a % b,
    "fmod": torch.fmod,
    "true_divide": lambda a, b: a / b,
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "square_wraps": lambda a, b: a * a * a * b,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "less": lambda a, b: a < b,
    "maximum": torch.maximum,
    "where": lambda a, b: torch.where(a > b, a, b),
    "mixed_with_float": lambda a, b: a * 0.5 + b,
}


def integer_pairs(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Extreme and small numbers against every divisor that is defined (0 traps, and so may the least number over -1)."""
    limits = torch.iinfo(dtype)
    values = sorted({limits.min, limits.min + 1, *(v for v in (-7, -3, -1, 0, 1, 2, 3, 7, 100) if v >= limits.min), limits.max})
    divisors = [v for v in values if v not in (0, -1)]
    pairs = torch.tensor([(value, divisor) for value in values for divisor in divisors], dtype=dtype)
    return pairs[:, 0].clone(), pairs[:, 1].clone()


@pytest.mark.parametrize("name", INTEGER_OPS)
def test_integer_arithmetic(name: str) -> None:
    same_bits(for_each(INTEGER_OPS[name], 2), *(value for dtype in INTEGERS for value in integer_pairs(dtype)))


def test_integer_shifts_sums_and_unary() -> None:
    def function(a: Tensor) -> tuple[Tensor, ...]:
        return a << 2, a >> 1, ~a, -a, a.abs(), a.sum(), a.sum(dtype=a.dtype), a.cumsum(0), a.prod(), a.to(torch.uint8)

    limits = [torch.iinfo(dtype) for dtype in INTEGERS]
    same_bits(
        for_each(function, 1), *(torch.tensor([i.min, i.max, 3, 100, 0, 1, 77], dtype=getattr(torch, i.dtype)) for i in limits)
    )


@pytest.mark.parametrize("source", [*FLOATS, *INTEGERS, torch.bool], ids=str)
def test_every_cast(source: torch.dtype) -> None:
    values = torch.tensor([0, 1, 2, 3, 100, 0.75, 1.25, 2.5, 3.5, 65.99, 2.0**-30, 1 + 2.0**-9, 127]).to(source)
    negative = -values if source.is_signed else values
    signed = [*FLOATS, *(dtype for dtype in INTEGERS if dtype.is_signed)]
    targets = [*FLOATS, *INTEGERS, torch.bool]
    same_bits(lambda a, b: [*(a.to(t) for t in targets), *(b.to(t) for t in signed)], values, negative)


def test_bool_arithmetic() -> None:
    def function(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return a & b, a | ~b, a ^ b, a + b, a * b, a.sum(), a.any(), (a | b).all(), a.float() - 1, torch.where(a, 2, 3), a == b

    same_bits(function, torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False]))


def test_promotion_with_python_scalars() -> None:
    def function(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        return a + 1, a * 0.5, b + 1, b * 0.5, c + 1, c / 2, a + b, b + c, a + c, 2**a, 1 / b, a // 2, b // 0.3

    same_bits(function, torch.tensor([1, 2, -3]), torch.tensor([1.5, -2.25, 3]), torch.tensor([1.5, -2, 3]).half())


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_small_graph_in_every_float_type(dtype: torch.dtype, entry: str) -> None:
    def function(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        hidden = functional.gelu(functional.linear(x, weight, bias))
        normal = functional.layer_norm(hidden, hidden.shape[-1:])
        return hidden, normal, functional.softmax(normal, -1), hidden.sum(-1), hidden.mean(), (hidden - normal).var(0)

    inputs = (random_tensor(5, 7, dtype=dtype), random_tensor(9, 7, dtype=dtype), random_tensor(9, dtype=dtype))
    compiled = compile_with(entry, function, inputs)
    judge = leaves(function(*in_float64(inputs)))
    for position, (ours, eager) in enumerate(zip(leaves(compiled(*inputs)), leaves(function(*inputs)), strict=True)):
        assert_near(ours, eager, judge[position], f"output {position}")


TRANSCENDENTAL = {
    name: getattr(torch, name)
    for name in "sqrt exp exp2 expm1 log log2 log1p log10 sin cos tan tanh sigmoid erf rsqrt sinh cosh asin acos atan".split()
} | {
    "gelu": functional.gelu,
    "silu": functional.silu,
    "softplus": functional.softplus,
    "mish": functional.mish,
    "elu": functional.elu,
    "selu": functional.selu,
    "hardswish": functional.hardswish,
    "logsigmoid": functional.logsigmoid,
}


@pytest.mark.parametrize("name", TRANSCENDENTAL)
def test_elementary_functions_and_their_edges(name: str) -> None:
    edges = torch.tensor(
        [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 88.9, -104.5, 1e-30, -1e-30, 1.0, -1.0, 1e30, -1e30]
    )
    for dtype in (torch.float32, torch.float64):
        groups = (edges, torch.linspace(-9, 9, 1003), torch.logspace(-30, 30, 501))
        check(for_each(TRANSCENDENTAL[name], 1), [values.to(dtype) for values in groups])


def test_comparisons_and_selections_on_any_floats() -> None:
    def function(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        chosen = torch.where(a < b, a, b)
        return chosen, torch.maximum(a, b), torch.minimum(a, b), a.clamp(-2, 2), torch.relu(b), (a >= b) & ~(a == b), a * 0 + b

    compiled = compile_with("torch.compile", function, dynamic=True)
    pair = st.tuples(st.floats(width=32), st.floats(width=32))

    @settings(max_examples=200, derandomize=True, deadline=None)
    @given(st.lists(pair, min_size=1, max_size=40))
    def agree(pairs: list[tuple[float, float]]) -> None:
        left, right = (torch.tensor(column) for column in zip(*pairs))
        for ours, eager in zip(leaves(compiled(left, right)), leaves(function(left, right)), strict=True):
            plus_zero = 0.0 if eager.is_floating_point() else False  # which zero wins a tie is not promised
            assert_identical(ours + plus_zero, eager + plus_zero)

    agree()
