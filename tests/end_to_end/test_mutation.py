"""Inputs that are written to, outputs that are views of inputs, the same tensor twice: as in eager, version counters too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dlcompiler
from tests.end_to_end.support import assert_identical, assert_near, check, compile_with, fresh, leaves, random_tensor


def add_in_place(x: Tensor, y: Tensor) -> Tensor:
    x.add_(y)
    return x * 2


def copy_into(x: Tensor, y: Tensor) -> Tensor:
    x.copy_(torch.tanh(y))
    return y + 1


def write_a_slice(x: Tensor, y: Tensor) -> Tensor:
    x[1:3] += y[1:3]
    x[:, 0] = 7
    return x.sum()


def write_after_read(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    before = x * 3
    x.mul_(y)
    return before, x + before


def write_through_a_view(x: Tensor, y: Tensor) -> Tensor:
    x.t()[0].add_(y[:, 0])
    return x + y


def swap(x: Tensor, y: Tensor) -> Tensor:
    kept = x.clone()
    x.copy_(y)
    y.copy_(kept)
    return x - y


def only_mutates(x: Tensor, y: Tensor) -> None:
    x.relu_()
    y.zero_()


def out_argument(x: Tensor, y: Tensor) -> Tensor:
    torch.add(x, y, out=x)
    return x


def fill_by_index(x: Tensor, y: Tensor) -> Tensor:
    x[torch.tensor([0, 2])] = y[torch.tensor([1, 1])]
    return x.mean()


def narrow_dtype(x: Tensor, y: Tensor) -> Tensor:
    x.copy_(y.double() * 1.0000001)
    return x


MUTATING = (
    add_in_place, copy_into, write_a_slice, write_after_read, write_through_a_view, swap, only_mutates, out_argument,
    fill_by_index, narrow_dtype,
)  # fmt: skip


@pytest.mark.parametrize("function", MUTATING, ids=lambda function: function.__name__)
def test_inputs_are_written_as_in_eager(function: Callable[..., Any], entry: str) -> None:
    inputs = (random_tensor(4, 4), random_tensor(4, 4, seed=1))
    compiled = compile_with(entry, function, fresh(inputs))
    for _ in range(3):
        check(function, inputs, compiled=compiled)


@pytest.mark.parametrize("function", MUTATING, ids=lambda function: function.__name__)
def test_strided_inputs_are_written_as_in_eager(function: Callable[..., Any]) -> None:
    inputs = (random_tensor(4, 9)[:, 1::2], random_tensor(4, 4, seed=1).t())
    check(function, inputs)


@pytest.mark.parametrize("function", MUTATING, ids=lambda function: function.__name__)
def test_version_counters_move_as_in_eager(function: Callable[..., Any]) -> None:
    eager_inputs, our_inputs = (tuple(fresh((random_tensor(4, 4), random_tensor(4, 4, seed=1)))) for _ in range(2))
    function(*eager_inputs)
    compile_with("torch.compile", function)(*our_inputs)
    moved = [(ours._version > 0, eager._version > 0) for ours, eager in zip(our_inputs, eager_inputs)]
    assert all(ours == eager for ours, eager in moved)


def scale_parts(x: Tensor, y: Tensor) -> Tensor:
    torch.view_as_real(x).mul_(2)
    return y.real + 1


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("function", [add_in_place, write_after_read, swap, write_a_slice, scale_parts], ids=lambda f: f.__name__)
def test_complex_inputs_are_written_as_in_eager(function: Callable[..., Any], dtype: torch.dtype) -> None:
    x, y = (torch.complex(random_tensor(4, 9, seed=k), random_tensor(4, 9, seed=k + 2)).to(dtype) for k in range(2))
    eager, ours = (x.clone()[:, 1::2], y.clone()[:, :4]), (x.clone()[:, 1::2], y.clone()[:, :4])
    expected, found = function(*eager), torch.compile(function, backend="dlcompiler")(*ours)
    torch.testing.assert_close((found, ours), (expected, eager))
    assert dlcompiler.reports()[-1].target != "torch"


def test_same_tensor_twice_while_one_is_written() -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        x.add_(1)
        return x * y

    compiled = compile_with("torch.compile", function)
    for twice in (True, False, True):
        eager_x, our_x = random_tensor(5), random_tensor(5)
        eager_y, our_y = (eager_x, our_x) if twice else (random_tensor(5, seed=1), random_tensor(5, seed=1))
        assert_identical(compiled(our_x, our_y), function(eager_x, eager_y))
        assert_identical(our_x, eager_x)


def test_overlapping_inputs_while_one_is_written() -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        x.mul_(2)
        return y + 1

    for start in (0, 1, 3):
        torch._dynamo.reset()  # AOTAutograd bakes the offset between overlapping inputs in and does not guard it
        compiled = compile_with("torch.compile", function)
        eager_base, our_base = random_tensor(9), random_tensor(9)
        eager = function(eager_base[:5], eager_base[start : start + 5])
        ours = compiled(our_base[:5], our_base[start : start + 5])
        assert_identical(ours, eager)
        assert_identical(our_base, eager_base)


ALIASING: dict[str, Callable[[Tensor], Any]] = {
    "the_input_itself": lambda x: x,
    "the_input_and_more": lambda x: (x, x + 1),
    "a_view_of_the_input": lambda x: x[1:],
    "a_transposed_input": lambda x: (x.t(), x * 2),
    "one_output_twice": lambda x: (lambda y: (y, y))(x * 2),
    "an_output_and_its_view": lambda x: (lambda y: (y, y[0], y.t()))(x * 2),
    "a_reshaped_input": lambda x: x.view(-1),
    "an_input_through_a_no_op": lambda x: (x.contiguous(), x.to(torch.float32), x.expand(4, 4)),
    "a_detached_input": lambda x: (x.detach(), x + 1),
}


@pytest.mark.parametrize("name", ALIASING)
def test_outputs_alias_as_in_eager(name: str) -> None:
    function = ALIASING[name]
    x = random_tensor(4, 4)
    compiled = compile_with("torch.compile", function)
    eager, ours = leaves(function(x)), leaves(compiled(x))
    for mine, theirs in zip(ours, eager, strict=True):
        assert_identical(mine, theirs)

    def sharing(outputs: list[Tensor]) -> list[list[bool]]:
        tensors = [x, *outputs]
        return [[a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr() for b in tensors] for a in tensors]

    assert sharing(ours) == sharing(eager)
    for mine, theirs in zip(ours, eager):
        if theirs.untyped_storage().data_ptr() == x.untyped_storage().data_ptr():
            assert mine.storage_offset() == theirs.storage_offset()


def test_batch_norm_statistics_in_training_mode() -> None:
    torch.manual_seed(0)
    ours, eager = (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(2))
    eager.load_state_dict(ours.state_dict())
    compiled = compile_with("torch.compile", ours)
    with torch.no_grad():
        for seed in range(3):
            x = random_tensor(4, 3, 8, 8, seed=seed)
            assert_near(compiled(x), eager(x), eager_output_in_float64(eager, x))
            for (name, mine), theirs in zip(ours.named_buffers(), eager.buffers()):
                torch.testing.assert_close(mine, theirs, msg=name, rtol=1e-5, atol=1e-6)
    assert ours[1].num_batches_tracked == 3


def eager_output_in_float64(module: nn.Module, x: Tensor) -> Tensor:
    """What the module answers in training mode, in double precision and without touching its statistics."""
    import copy

    return copy.deepcopy(module).double()(x.double())


def test_a_buffer_that_counts(entry: str) -> None:
    class Counter(nn.Module):
        count: Tensor
        history: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros((), dtype=torch.int64))
            self.register_buffer("history", torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            self.history.copy_(torch.roll(self.history, 1))
            self.history[0] = x.sum()
            return x * self.count

    module, eager = Counter(), Counter()
    x = torch.arange(3.0)
    compiled = compile_with(entry, module, (x,))
    start = int(module.count)
    for step in range(1, 4):
        assert_identical(leaves(compiled(x + step))[0], eager(x + step))
    assert int(module.count) - start == 3 or entry == "dlcompiler.compile"
    if start == 0:
        assert_identical(module.count, eager.count)
        assert_identical(module.history, eager.history)


def test_writing_into_an_overlapping_tensor_raises_as_in_eager() -> None:
    def function(x: Tensor) -> Tensor:
        return x.add_(1)

    def call(candidate: Callable[[Tensor], Tensor]) -> None:
        with pytest.raises(RuntimeError, match="more than one element of the written-to tensor"):
            candidate(torch.zeros(3, 1).expand(3, 4))

    call(function)
    call(compile_with("torch.compile", function))


def test_results_that_are_views_of_one_value_share_its_memory() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        own, other = x + 1, x * 2
        first = own[1:3]
        first[0] = 0  # what both are told apart from each other by, once each is computed for itself
        return first, own.t()[2], other, first[0], other

    compiled = compile_with("torch.compile", function)
    for results in (compiled(torch.ones(4, 3)), function(torch.ones(4, 3))):
        results[0].fill_(7)
        assert results[1].tolist() == [2, 7, 7, 2] and results[3].tolist() == [7, 7, 7]
        assert results[1].stride() == (3,) and results[2].untyped_storage().data_ptr() == results[4].untyped_storage().data_ptr()
