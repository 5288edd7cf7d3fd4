"""`dlcompiler.train_step` for GPUs, with none: its kernels in Triton's interpreter, under the runtime for GPUs and without it."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from dlcompiler.ir.errors import LaunchError, UnsupportedError
from dlcompiler.ir.program import Launch
from dlcompiler.runtime.gpu import GpuExecutable
from dlcompiler.runtime.gpu_graph import is_recordable
from torch import Tensor, nn
from torch.nn import functional

import dlcompiler
from dlcompiler import compiler
from tests.runtime.interpreted_device import InterpretedDevice

pytest.importorskip("triton")


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def squares(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.mse_loss(model(batch[0]), batch[1])


def batch_of(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(4, 5, generator=generator), torch.randn(4, 3, generator=generator)


def two_steps(monkeypatch, device: InterpretedDevice, make, **settings) -> Any:
    """(step on the device, step on the CPU), each of (model, optimizer, step)."""
    found = []
    for target in ("cuda:sm_90", "cpu"):
        model = perceptron()
        optimizer = make(model.parameters())
        with monkeypatch.context() as patch:
            patch.setattr(compiler, "GpuExecutable", partial(GpuExecutable, open_device=lambda _: device))
            step = dlcompiler.train_step(model, squares, optimizer, batch_of(0), target=target, **settings)
        found.append((model, optimizer, step))
    return found


def assert_same(ours: Any, other: Any) -> None:
    torch.testing.assert_close(ours.state_dict(), other.state_dict(), rtol=2e-5, atol=2e-6)


def test_a_schedule_is_followed_by_one_recorded_graph_that_updates_in_place(monkeypatch):
    device = InterpretedDevice()
    (model, optimizer, step), (same, reference, on_cpu) = two_steps(
        monkeypatch, device, partial(torch.optim.AdamW, lr=0.1), clip_norm=0.5, options={"cuda_graphs": True}
    )
    places = [p.data_ptr() for p in model.parameters()]
    batches = [batch_of(k) for k in range(6)]  # all alive: at places of their own
    for k, batch in enumerate(batches):
        for group in (*optimizer.param_groups, *reference.param_groups):
            group["lr"] = 0.1 / (k + 1)
        torch.testing.assert_close(step(batch), on_cpu(batch), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(step.gradient_norm, on_cpu.gradient_norm, rtol=1e-5, atol=1e-6)
        assert_same(model, same)
        assert_same(optimizer, reference)
    assert [p.data_ptr() for p in model.parameters()] == places
    assert len(step.reports) == 1 and device.recordings == 1 and device.replays == 5
    assert all(p.grad is None for p in model.parameters())
    # an eager step in between, and a checkpoint, go on from what is there
    squares(model, batches[0]).backward()
    squares(same, batches[0]).backward()
    for each in (optimizer, reference):
        each.step()
        each.load_state_dict(copy.deepcopy(each.state_dict()))
    torch.testing.assert_close(step(batches[1]), on_cpu(batches[1]), rtol=1e-5, atol=1e-6)
    assert_same(model, same)


def test_gradients_are_accumulated_between_calls(monkeypatch):
    (model, optimizer, step), (same, reference, on_cpu) = two_steps(
        monkeypatch, InterpretedDevice(), partial(torch.optim.SGD, lr=0.1, momentum=0.9), accumulate=2
    )
    for k in range(4):
        torch.testing.assert_close(step(batch_of(k)), on_cpu(batch_of(k)), rtol=1e-5, atol=1e-6)
        assert_same(model, same)
        assert_same(optimizer, reference)


class Attending(nn.Module):
    """One layer of attention over embedded tokens, and a recurrent one."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.joined = nn.Linear(8, 24, bias=False)  # the gradient of the keys' part would be rounding alone
        self.recurrent = nn.GRU(8, 8, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.joined(self.words(tokens)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.recurrent(mixed.transpose(1, 2).flatten(2))[0]


def next_token(model: Any, tokens: Tensor) -> Tensor:
    return functional.cross_entropy((model(tokens) @ model.words.weight.t()).flatten(0, 1), tokens.roll(-1, 1).flatten())


def test_a_simulated_step_trains_as_the_cpu_does():
    torch.manual_seed(0)
    ours = Attending()
    other = copy.deepcopy(ours)
    optimizer, reference = (torch.optim.Adagrad(each.parameters(), lr=0.1) for each in (ours, other))
    tokens = torch.randint(0, 11, (2, 6))
    step = dlcompiler.train_step(ours, next_token, optimizer, tokens, target="cuda:sm_90")
    on_cpu = dlcompiler.train_step(other, next_token, reference, tokens)
    for _ in range(2):
        torch.testing.assert_close(step.simulate(tokens), on_cpu(tokens), rtol=1e-5, atol=1e-6)
        assert_same(ours, other)
        assert_same(optimizer, reference)
    (report,) = step.reports
    assert report.target == "cuda:sm_90"
    assert report.evidence and all(row["spilled_bytes"] == 0 for row in report.evidence)
    # attention and the recurrent layer are kernels, forward and backward
    assert not report.aten and not report.library


def test_a_call_without_a_gpu_says_so_and_changes_nothing():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    model = perceptron()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters())
    step = dlcompiler.train_step(model, squares, optimizer, batch_of(0), target="cuda:sm_90")
    with pytest.raises(LaunchError, match="CUDA|driver|GPU"):
        step(batch_of(0))
    assert not optimizer.state
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    # the same process trains on its CPU
    dlcompiler.train_step(model, squares, optimizer, batch_of(0))(batch_of(0))
    assert optimizer.state
    with pytest.raises(UnsupportedError, match="for GPUs"):
        dlcompiler.train_step(model, squares, optimizer, batch_of(0)).simulate(batch_of(0))


def test_steps_of_recurrent_layers_and_convolutions_can_be_recorded_and_those_with_other_calls_of_aten_cannot():
    def program_of(model: nn.Module, batch: Any) -> Any:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        compiled = []

        class Watching(GpuExecutable):
            def __init__(self, program: Any, *rest: Any, **settings: Any) -> None:
                compiled.append(program)
                super().__init__(program, *rest, **settings)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compiler, "GpuExecutable", Watching)
            dlcompiler.train_step(model, lambda m, x: m(x)[0].square().mean(), optimizer, batch, target="cuda:sm_90")
        return compiled[0]

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.then = nn.Conv1d(3, 2, 3), nn.LSTM(4, 4)

        def forward(self, x: Tensor) -> Any:
            return self.then(self.first(x))

    both = program_of(Both(), torch.randn(2, 3, 6))
    assert any(line.startswith("convolution_weight") for s in both.steps if isinstance(s, Launch) for line in s.kernel.origin)
    assert {"lstm_scan_keeping", "lstm_scan_backward"} <= {getattr(step, "op", "") for step in both.steps}
    assert is_recordable(both) and not both.preparation
    in_double = program_of(nn.LSTM(3, 4).double(), torch.randn(2, 3, 3).double())
    assert any(getattr(step, "target", "") == "dlcompiler.lstm_backward.default" for step in in_double.steps)
    assert not is_recordable(in_double)
