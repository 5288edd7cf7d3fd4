"""Higher-order operators of torch, custom operators, and integer arguments of any sign, against eager."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import dlcompiler
from tests.end_to_end.support import compile_with, ours_only

pytestmark = ours_only


@pytest.fixture(scope="module")
def operators() -> Iterator[Any]:
    """Custom operators: one that tells how its operand lies, one that writes to its operand, one that takes and gives lists."""
    with torch.library._scoped_library("dlc_test", "FRAGMENT") as library:
        tag = (torch.Tag.pt2_compliant_tag,)
        library.define("strides(Tensor x) -> Tensor", tags=tag)
        library.impl("strides", lambda x: torch.tensor(x.stride()), "CPU")
        library.impl("strides", lambda x: x.new_empty((x.dim(),), dtype=torch.int64), "Meta")
        library.define("grow(Tensor(a!) x, Tensor y) -> Tensor", tags=tag)
        library.impl("grow", lambda x, y: x.add_(y).sum(), "CPU")
        library.impl("grow", lambda x, y: x.new_empty(()), "Meta")
        library.define("lists(Tensor[] xs, int n) -> (Tensor, Tensor[])", tags=tag)
        library.impl("lists", lambda xs, n: (xs[0] * n, [x + n for x in xs]), "CPU")
        library.impl("lists", lambda xs, n: (torch.empty_like(xs[0]), [torch.empty_like(x) for x in xs]), "Meta")
        yield torch.ops.dlc_test


def nothing_ran_in_torch() -> bool:
    """Whether every graph became programs of ours; calls of ATen within them are allowed."""
    return all(report.kernels or report.aten or report.host for report in dlcompiler.reports())


def branch(x: Tensor, y: Tensor) -> Tensor:
    return torch.cond(x.sum() > 0, lambda a, b: a.sin() + b, lambda a, b: a @ b.t() @ b, (x, y)) * 2


def repeat(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    start = torch.zeros((), dtype=torch.int64)
    return torch._higher_order_ops.while_loop(
        lambda i, a: (i < 4) & (a.sum() < 50), lambda i, a: (i + 1, a * 1.5 + y), (start, x)
    )


def scan(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    from torch._higher_order_ops.scan import scan

    return scan(lambda carry, row: ((carry * 0.5 + row).tanh(), carry + row), x[0], y, dim=0, reverse=True)


def rows(x: Tensor, y: Tensor) -> Tensor:
    from torch._higher_order_ops.map import map

    return map(lambda row, other: row.cumsum(0) + other[0], x, y)


def nested(x: Tensor, y: Tensor) -> Tensor:
    def inner(a: Tensor) -> Tensor:
        return torch.cond(a[0, 0] > 0, lambda b: b + 1, lambda b: b - 1, (a,))

    return torch.cond(x.sum() > 0, inner, lambda a: a * 3, (x,)) + y


@pytest.mark.parametrize("function", [branch, repeat, scan, rows, nested], ids=lambda f: f.__name__)
def test_control_flow_is_compiled(function: Callable[..., Any]) -> None:
    dlcompiler.reset()
    compiled = torch.compile(function, backend="dlcompiler", fullgraph=True, dynamic=function is not nested)
    for seed, sign in ((0, 1.0), (1, -1.0)):
        torch.manual_seed(seed)
        x, y = sign * torch.rand(3, 4), torch.randn(3, 4)
        torch.testing.assert_close(compiled(x, y), function(x, y))
    assert not [a for report in dlcompiler.reports() for a in report.aten]


def test_gradients_through_a_branch() -> None:
    compiled = torch.compile(branch, backend="dlcompiler", fullgraph=True)
    for sign in (1.0, -1.0):
        x, y = sign * torch.rand(3, 4), torch.randn(3, 4)
        inputs = [[t.clone().requires_grad_() for t in (x, y)] for _ in range(2)]
        for function, given in zip((compiled, branch), inputs):
            function(*given).square().sum().backward()
        for ours, eager in zip(*inputs):
            torch.testing.assert_close(ours.grad, eager.grad)


def test_an_exported_branch() -> None:
    compiled = compile_with("dlcompiler.compile", branch, (torch.rand(3, 4), torch.randn(3, 4)))
    for sign in (1.0, -1.0):
        x, y = sign * torch.rand(3, 4), torch.randn(3, 4)
        torch.testing.assert_close(compiled(x, y), branch(x, y))


def test_custom_operators_see_memory_as_in_eager(operators: Any) -> None:
    def function(x: Tensor) -> list[Tensor]:
        lying = [(x + 1).transpose(1, 2), x[:, ::2], (x * 2).contiguous(memory_format=torch.channels_last), x.relu().flip(0)]
        return [operators.strides(t) for t in lying] + [operators.strides(torch.conv2d(lying[2], torch.ones(2, 3, 1, 1)))]

    x = torch.randn(2, 3, 4, 5)
    assert [t.tolist() for t in torch.compile(function, backend="dlcompiler")(x)] == [t.tolist() for t in function(x)]


def test_custom_operators_that_write_and_that_give_lists(operators: Any) -> None:
    def function(x: Tensor, y: Tensor) -> tuple[Any, ...]:
        own = y.sin()
        total = operators.grow(own[1:], x[1:])
        operators.grow(x, own)
        first, others = operators.lists([own, x.t(), y], 3)
        return total, own, first * 2, [o.sum(0) for o in others]

    inputs = [[torch.arange(12.0).view(3, 4), torch.ones(3, 4)] for _ in range(2)]
    dlcompiler.reset()
    ours, eager = torch.compile(function, backend="dlcompiler")(*inputs[0]), function(*inputs[1])
    torch.testing.assert_close(ours, eager)
    torch.testing.assert_close(inputs[0], inputs[1])
    assert nothing_ran_in_torch() and dlcompiler.reports()[-1].kernels


def test_integers_of_any_sign() -> None:
    def function(x: Tensor, n: int, m: int) -> tuple[Tensor, ...]:
        truths = torch.full((2,), n >= m), x * (n > x.shape[0]), torch.where(x > 1, n != 5, False)
        return x + n // 3, x * (n % 3), x + torch.sym_max(n, 0), x - n // m, torch.arange(6 * m, -6 * m, -m), *truths

    x, compiled = torch.arange(5), torch.compile(function, backend="dlcompiler", dynamic=True)
    for n, m in ((7, 2), (-7, 2), (-4, -2), (5, -3), (4, 1)):
        torch.testing.assert_close(compiled(x, n, m), function(x, n, m))


def test_truths_of_sizes_are_joined_in_the_program() -> None:
    def function(x: Tensor, n: int) -> tuple[Tensor, ...]:
        return tuple(x * truth for truth in ((n > 3) & (n < 9), (n < 4) | (n > 20), torch.sym_not(n >= 4)))

    x, compiled = torch.ones(3), torch.compile(function, backend="dlcompiler", dynamic=True, options={"strict": True})
    for n in (2, 3, 5, 12, 30):
        torch.testing.assert_close(compiled(x, n), function(x, n))


def test_views_from_a_place_known_only_when_called() -> None:
    def function(x: Tensor, n: int) -> tuple[Tensor, ...]:
        return x[1 :: n + 1], x[n:], x.as_strided((2, 2), (1, 2), n)

    compiled = torch.compile(function, backend="dlcompiler", dynamic=True)
    for n in (1, 2):
        x = torch.randn(4, 6)
        for ours, eager in zip(compiled(x, n), function(x, n)):
            assert torch.equal(ours, eager) and ours.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


def test_nested_tensors_run_in_torch() -> None:
    x = torch.nested.nested_tensor([torch.randn(2, 4), torch.randn(3, 4)], layout=torch.jagged)
    found = torch.compile(lambda t: t.sin() * 2, backend="dlcompiler")(x)
    torch.testing.assert_close(found.values(), x.values().sin() * 2)
