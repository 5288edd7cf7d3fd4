"""Models whose convolutions are computed by Winograd's algorithm, judged by float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import dlcompiler
from dlcompiler.options import Options

# the largest difference over the largest value; direct sums of this length have about 1e-6
GOAL = 1e-5


class Block(nn.Module):
    """As in ResNet-18 and VGG: filters of 3x3 with and without padding, a residual, an odd image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.last = nn.Conv2d(channels, channels + 5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(self.first(x)))
        return self.last(torch.relu(self.second(y) + x))


def ways(program) -> list[tuple[int, ...]]:
    """The tiles of each step that Winograd's algorithm computes."""
    kernels = [step.kernel for step in program.steps if hasattr(step, "kernel")]
    return [kernel.winograd.sizes for kernel in kernels if kernel.winograd is not None]


def error_of(compiled, model: nn.Module, x: torch.Tensor) -> float:
    got, want = compiled(x), model.double()(x.double())
    model.float()
    return ((got - want).abs().max() / want.abs().max()).item()


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    return Block(64).eval().requires_grad_(False)


@pytest.mark.parametrize("threads", [1, 2])
def test_it_stays_within_the_goal(block: Block, threads: int) -> None:
    x = torch.randn(2, 64, 29, 23)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        compiled = dlcompiler.compile(block, (x,))
        assert len(ways(compiled.program)) == 3
        assert error_of(compiled, block, x) < GOAL
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("options", [Options(numerics="eager"), Options(disabled_passes=frozenset({"winograd"}))], ids=str)
def test_it_can_be_switched_off(block: Block, options: Options) -> None:
    assert not ways(dlcompiler.compile(block, (torch.randn(1, 64, 29, 23),), options=options).program)


def test_a_batch_that_is_known_when_called(block: Block) -> None:
    x = torch.randn(2, 64, 16, 20)
    compiled = dlcompiler.compile(block, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=1, max=64)},))
    assert len(ways(compiled.program)) == 3
    for batch in (1, 2, 5):
        assert error_of(compiled, block, torch.randn(batch, 64, 16, 20)) < GOAL


def test_weights_changed_in_place_are_transformed_again(block: Block) -> None:
    x = torch.randn(1, 64, 24, 24)
    compiled = torch.compile(block, backend="dlcompiler", options={"strict": True})
    torch._dynamo.reset()
    for _ in range(2):
        with torch.no_grad():
            assert error_of(compiled, block, x) < GOAL
            block.second.weight.add_(torch.randn_like(block.second.weight), alpha=0.1)


def test_weights_that_are_trained_are_transformed_in_each_call(block: Block) -> None:
    torch._dynamo.reset()
    block.requires_grad_(True)
    x = torch.randn(1, 64, 24, 24, requires_grad=True)
    before = len(dlcompiler.reports())
    compiled = torch.compile(block, backend="dlcompiler", options={"strict": True})
    for _ in range(2):
        judge = x.detach().double().requires_grad_()
        block.double()(judge).square().mean().backward()
        block.float().zero_grad()
        x.grad = None
        compiled(x).square().mean().backward()
        assert x.grad is not None and judge.grad is not None
        assert (x.grad - judge.grad).abs().max() < GOAL * judge.grad.abs().max()
        with torch.no_grad():
            block.second.weight.add_(torch.randn_like(block.second.weight), alpha=0.1)
    assert all(any("winograd" in event for event in report.history) for report in dlcompiler.reports()[before:])
