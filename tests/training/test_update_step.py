"""`dlcompiler.update_step`: an optimizer's own step, in its own objects."""

from __future__ import annotations

import copy

import pytest
import torch
from dlcompiler.ir.errors import UnsupportedError
from torch import nn

import dlcompiler
from tests.training.test_train_step import OPTIMIZERS, assert_same_state, perceptron


def give_gradients(model: nn.Module, step: int, left_out: int | None = None) -> None:
    """The same to equal models; the parameter of that number gets none. The first one's lie transposed."""
    for k, parameter in enumerate(model.parameters()):
        gradient = torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape).mul(k + 1 - 0.4 * step)
        if k == 0:
            gradient = gradient.t().contiguous().t()
        parameter.grad = None if k == left_out else gradient


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_steps_as_in_eager(name: str) -> None:
    ours, make = perceptron(), OPTIMIZERS[name]
    eager = copy.deepcopy(ours)
    optimizer, reference = make(ours.parameters()), make(eager.parameters())
    update = dlcompiler.update_step(optimizer)
    for step in range(5):
        for group in (*optimizer.param_groups, *reference.param_groups):  # a schedule
            group["lr"] = group["lr"] * 0.9
        for model in (ours, eager):
            give_gradients(model, step)
        gradients = [parameter.grad.clone() for parameter in ours.parameters()]
        versions = [parameter._version for parameter in ours.parameters()]
        update()
        reference.step()
        assert_same_state(ours, eager)
        assert_same_state(optimizer, reference)
        assert all(torch.equal(p.grad, before) for p, before in zip(ours.parameters(), gradients))
        assert all(p._version > before for p, before in zip(ours.parameters(), versions))
    assert len(update.reports) == 1


def test_parameters_without_gradients_and_a_checkpoint_in_between() -> None:
    ours = perceptron()
    eager = copy.deepcopy(ours)
    optimizer, reference = OPTIMIZERS["adam"](ours.parameters()), OPTIMIZERS["adam"](eager.parameters())
    update = dlcompiler.update_step(optimizer)
    for step, left_out in enumerate([0, None, 2, None, 2]):
        give_gradients(ours, step, left_out)
        give_gradients(eager, step, left_out)
        update()
        reference.step()
        assert_same_state(ours, eager)
        assert_same_state(optimizer, reference)
        if step == 2:
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            ours.load_state_dict(copy.deepcopy(ours.state_dict()))
    optimizer.zero_grad()
    before = copy.deepcopy(ours.state_dict())
    update()  # nothing to do
    torch.testing.assert_close(ours.state_dict(), before, rtol=0, atol=0)


def test_limited_gradients_of_a_model_compiled_by_torch() -> None:
    torch._dynamo.reset()
    ours = perceptron()
    eager = copy.deepcopy(ours)
    optimizer, reference = (torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (ours, eager))
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    compiled = torch.compile(ours, backend="dlcompiler")
    update = dlcompiler.update_step(optimizer, clip_norm=0.1)
    for step in range(3):
        x = torch.linspace(-1, 1, 20).reshape(4, 5) * (step + 1)
        for model, each in ((compiled, optimizer), (eager, reference)):
            each.zero_grad()
            model(x).square().sum().backward()
        norm = torch.nn.utils.clip_grad_norm_(eager.parameters(), 0.1)
        update()
        reference.step()
        assert_same_state(ours, eager, 1e-5)
        torch.testing.assert_close(update.gradient_norm, norm)
        scheduler.step()
        reference.param_groups[0]["lr"] *= 0.5


def test_what_is_refused() -> None:
    model = perceptron()
    with pytest.raises(UnsupportedError, match="LBFGS is none of"):
        dlcompiler.update_step(torch.optim.LBFGS(model.parameters()))
    table = nn.Embedding(4, 3, sparse=True)
    update = dlcompiler.update_step(torch.optim.SGD(table.parameters(), lr=0.1))
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(UnsupportedError, match="sparse"):
        update()
