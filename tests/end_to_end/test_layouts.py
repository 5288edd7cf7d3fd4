"""Strides, offsets, overlap, empty and 0-d tensors: what comes in may lie anyhow, what goes out lies as in eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.end_to_end.support import assert_identical, check, compile_with, fresh, leaves, random_tensor


def pointwise(x: Tensor, y: Tensor) -> Tensor:
    return torch.tanh(x) * y + 1


def normalised(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return functional.softmax(x * 0.5, -1) + y, functional.layer_norm(x + y, x.shape[-1:])


def reduced(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.sum(0), (x * y).mean(-1, keepdim=True), (x + y).amax()


def contracted(x: Tensor, y: Tensor) -> Tensor:
    return functional.relu(x @ y.transpose(-1, -2)) + 1


FUNCTIONS = (pointwise, normalised, reduced, contracted)


def misaligned(x: Tensor) -> Tensor:
    """The same values, one element past an aligned address."""
    buffer = torch.empty(x.numel() + 1, dtype=x.dtype)
    view = buffer[1:].view(x.shape)
    return view.copy_(x)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.t().contiguous().t(),
    "every_second_column": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "rows_of_a_wider_table": lambda x: functional.pad(x, (1, 2))[:, 1:-2],
    "offset": lambda x: torch.cat([x[:1], x])[1:],
    "misaligned": misaligned,
    "one_row_expanded": lambda x: x[:1].expand(x.shape),
    "one_column_expanded": lambda x: x[:, :1].expand(x.shape),
    "one_number_expanded": lambda x: x[0, 0].expand(x.shape),
    "overlapping_windows": lambda x: x.flatten().as_strided(x.shape, (1, 1)),
}


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_input_layouts(layout: str, function: Callable[..., Any]) -> None:
    x, y = LAYOUTS[layout](random_tensor(9, 13)), random_tensor(9, 13, seed=1)
    check(function, (x, y))
    check(function, (y, x))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_direct_call_takes_any_layout_after_a_contiguous_example(layout: str) -> None:
    x, y = random_tensor(9, 13), random_tensor(9, 13, seed=1)
    compiled = compile_with("dlcompiler.compile", pointwise, (x, y))
    other = LAYOUTS[layout](x)
    torch.testing.assert_close(leaves(compiled(other, y))[0], pointwise(other, y))


VIEWS: dict[str, Callable[[Tensor], Any]] = {
    "transpose": lambda x: (x * 2).transpose(0, 1),
    "permute": lambda x: (x * 2).permute(2, 0, 1),
    "slice": lambda x: (x * 2)[:, 1:-1, ::2],
    "select": lambda x: (x * 2)[1],
    "expand": lambda x: (x * 2)[:, :1].expand(-1, 5, -1),
    "reshape_of_transpose": lambda x: (x * 2).transpose(0, 2).reshape(4, -1),
    "flatten": lambda x: (x * 2).flatten(1),
    "unsqueeze": lambda x: (x * 2)[:, None, :, None],
    "squeeze": lambda x: (x.sum(1, keepdim=True) * 2).squeeze(1),
    "flip": lambda x: x.flip(0, 2) + 1,
    "roll": lambda x: x.roll(2, 1) + 1,
    "unbind": lambda x: (x + 1).unbind(0),
    "split": lambda x: (x + 1).split(2, 1),
    "chunk": lambda x: x.chunk(2, -1)[1] * x.chunk(2, -1)[0],
    "cat": lambda x: torch.cat([x, x * 2, x[:, :1]], 1),
    "stack": lambda x: torch.stack([x, x + 1], 1),
    "pad": lambda x: functional.pad(x * 2, (1, 2, 0, 1), value=7.0),
    "negative_pad": lambda x: functional.pad(x * 2, (-1, 2)),
    "diagonal": lambda x: x.diagonal(0, 1, 2) * 2,
    "unfold": lambda x: x.unfold(1, 3, 1) * 2,
    "tril": lambda x: x.tril(1) + 1,
    "gather": lambda x: x.gather(1, torch.tensor([[[0, 1, 2, 3]], [[4, 3, 2, 1]], [[0, 0, 0, 0]]])),
    "index": lambda x: x[torch.tensor([2, 0, 0])] + x[:, torch.tensor([1])],
    "channels_last": lambda x: x[None].to(memory_format=torch.channels_last) * 2,
    "repeat": lambda x: x.repeat(2, 1, 3) + 1,
    "where_broadcast": lambda x: torch.where(x[:, :1] > 0, x, x[:1]),
    "movedim_sum": lambda x: x.movedim(0, 2).sum(1),
    "scatter": lambda x: x.new_zeros(3, 5, 4).scatter(1, torch.zeros(3, 1, 4, dtype=torch.long), x),
    "index_put": lambda x: x.index_put((torch.tensor([0, 2]),), x.new_tensor(5.0)),
    "embedding": lambda x: functional.embedding(torch.tensor([[0, 2], [1, 1]]), x[:, 0]),
    "one_hot": lambda x: x + functional.one_hot(torch.tensor([1, 3, 0, 2, 2]), 4),
    "cumsum": lambda x: x.cumsum(1),
    "meshgrid": lambda x: torch.meshgrid(x[0, 0], x[0, 1], indexing="ij"),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_and_index_arithmetic(name: str, entry: str) -> None:
    x = random_tensor(3, 5, 4)
    check(VIEWS[name], (x,), entry)
    if entry == "torch.compile":
        check(VIEWS[name], (random_tensor(4, 5, 3).transpose(0, 2),))


EMPTY_SAFE: dict[str, Callable[[Tensor], Any]] = {
    "pointwise": lambda x: torch.relu(x) + 1,
    "sum": lambda x: (x.sum(0), x.sum(1), x.sum(2), x.sum()),
    "prod": lambda x: (x.prod(1), x.prod()),
    "mean": lambda x: x.mean(),
    "softmax": lambda x: functional.softmax(x, -1),
    "layer_norm": lambda x: functional.layer_norm(x, x.shape[-1:]),
    "matmul": lambda x: x @ x.transpose(1, 2),
    "matmul_other_side": lambda x: x.transpose(1, 2) @ x,
    "cat": lambda x: torch.cat([x, x + 1], 1),
    "any": lambda x: ((x > 0).any(-1), (x > 0).all(0)),
    "view": lambda x: x.transpose(0, 2).reshape(-1),
}


@pytest.mark.parametrize("name", EMPTY_SAFE)
@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0, 0)], ids=str)
def test_zero_size(name: str, shape: tuple[int, ...]) -> None:
    check(EMPTY_SAFE[name], (random_tensor(*shape),))


def test_maximum_of_nothing_raises_as_eager_does(entry: str) -> None:
    with pytest.raises(Exception, match="(?i)dim|empty|reduction|size"):
        compile_with(entry, lambda x: x.amax(1), (torch.zeros(2, 0),))(torch.zeros(2, 0))


def test_zero_dimensional(entry: str) -> None:
    def function(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return x + y, x * 2, y.sum(), x.sum(), (y * x).amax(), functional.softmax(x, 0), x.expand(3) + 0, x.reshape(1, 1)

    check(function, (torch.tensor(1.5), random_tensor(4)), entry)


@pytest.mark.parametrize("sizes", [(1, 1), (1, 7), (5, 1), (2, 3), (17, 16), (64, 1000)], ids=str)
def test_broadcasting(sizes: tuple[int, int]) -> None:
    rows, columns = sizes

    def function(x: Tensor, row: Tensor, column: Tensor, number: Tensor) -> tuple[Tensor, ...]:
        return x + row, x * column, row * column, x - number, (x / column.exp()).sum(0), torch.where(row > 0, column, x)

    tensors = (random_tensor(rows, columns), random_tensor(columns), random_tensor(rows, 1, seed=2), random_tensor(1, seed=3)[0])
    check(function, tensors)


def test_one_symbolic_function_at_many_sizes() -> None:
    def function(x: Tensor, row: Tensor) -> tuple[Tensor, ...]:
        return functional.softmax(x + row, -1), x.sum(0) * row, x.reshape(-1), torch.cat([x, x], 0), x.shape[0] * row

    compiled = compile_with("torch.compile", function, dynamic=True)
    for rows, columns in [(2, 3), (3, 2), (17, 5), (5, 17), (1000, 3), (3, 1000), (1, 3), (3, 1), (1, 1), (0, 3), (64, 64)]:
        check(function, (random_tensor(rows, columns), random_tensor(columns, seed=1)), compiled=compiled)


def test_strided_and_shaped_at_random() -> None:
    """Any permutation, step and offset of a 3-d input, one symbolic function."""

    def function(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return x + y, (x * y).sum(1), functional.softmax(x, -1), x.amax((0, 2)), (y - x).transpose(0, 2)

    sizes = st.tuples(*[st.integers(1, 9)] * 3)
    layout = st.tuples(st.permutations(range(3)), st.integers(1, 2), st.integers(0, 3))

    def laid_out(shape: tuple[int, ...], how: tuple[list[int], int, int], seed: int) -> Tensor:
        order, step, offset = how
        stored = [shape[axis] for axis in order]
        buffer = random_tensor(offset + step * stored[0] * stored[1] * stored[2], seed=seed)
        block = buffer[offset:][::step].as_strided(stored, (step * stored[1] * stored[2], step * stored[2], step), offset)
        return block.permute([order.index(axis) for axis in range(3)])

    @settings(max_examples=25, derandomize=True, deadline=None)
    @given(sizes, layout, layout)
    def agree(shape: tuple[int, ...], left: Any, right: Any) -> None:
        torch._dynamo.reset()
        check(function, (laid_out(shape, left, 1), laid_out(shape, right, 2)))

    agree()


def test_outputs_keep_channels_last() -> None:
    convolution = torch.nn.Conv2d(3, 4, 3, padding=1).eval()
    x = random_tensor(2, 3, 8, 6).to(memory_format=torch.channels_last)
    with torch.no_grad():
        check(torch.nn.Sequential(convolution, torch.nn.ReLU()), (x,))
        check(lambda y: functional.max_pool2d(y * 2, 2) + 1, (x,))


def test_earlier_outputs_survive_later_calls(entry: str) -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = torch.tanh(x @ x.t())
        return hidden, hidden.sum(0), hidden[1:, ::2]

    inputs = [random_tensor(16, 16, seed=seed) for seed in range(6)]
    compiled = compile_with(entry, function, (inputs[0],))
    kept = [leaves(compiled(x)) for x in inputs]
    copies = [fresh(outputs) for outputs in kept]
    for x in inputs:
        compiled(x * 3)
    for outputs, copied in zip(kept, copies):
        for output, original in zip(outputs, copied):
            assert_identical(output, original)


def test_large_index_arithmetic_beyond_two_to_the_31() -> None:
    """An expanded view has 2^32 elements in one row's memory; its slice must be addressed with 64 bits."""

    def function(x: Tensor) -> Tensor:
        return x[-1, -3:] + x[2**20, :3]

    x = torch.arange(4096, dtype=torch.float32).expand(2**21, 4096)
    assert_identical(compile_with("torch.compile", function)(x), function(x))


@pytest.mark.parametrize("size", [[0, 3], [2, 2]])
def test_a_size_that_only_a_vanished_value_has(size: list[int]) -> None:
    """Windows of no element: nothing is left of them in any kernel, and their size is still an argument."""

    def function(x: Tensor, size: list[int], strides: list[int]) -> Tensor:
        return x * x.as_strided(size, strides).reshape(-1).sum()

    x = torch.randn(5)
    compiled = torch.compile(function, backend="dlcompiler", dynamic=True)
    torch.testing.assert_close(compiled(x, size, [2, 1]), function(x, size, [2, 1]))
