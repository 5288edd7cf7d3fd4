"""`torch.compile(optimizer.step, backend="dlcompiler")`: right, native, and one program for a whole schedule."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import dlcompiler

MAKE = {
    "sgd": lambda p: torch.optim.SGD(p, lr=torch.tensor(0.1), momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01)),
    "adamw": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01)),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=torch.tensor(0.01)),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=torch.tensor(0.01)),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=torch.tensor(0.1)),
}
# the first step of SGD makes its momentum, which is other code
PROGRAMS = {"sgd": 2}


@pytest.mark.parametrize("name", MAKE)
def test_a_schedule_of_fifty_steps_is_one_program(name: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    eager = copy.deepcopy(model)
    optimizer, reference = MAKE[name](model.parameters()), MAKE[name](eager.parameters())
    update = torch.compile(optimizer.step, backend="dlcompiler")
    before = len(dlcompiler.reports())
    for step in range(50):
        for each in (optimizer, reference):
            each.param_groups[0]["lr"].fill_(0.1 / (step + 1))
        for module, run in ((model, update), (eager, reference.step)):
            for k, parameter in enumerate(module.parameters()):
                parameter.grad = torch.full_like(parameter, 0.1 * (k + 1)).cos() * (step % 3 - 0.9)
            run()
    reports = dlcompiler.reports()[before:]
    assert len(reports) == PROGRAMS.get(name, 1)
    assert all(not report.aten for report in reports)
    torch.testing.assert_close(model.state_dict(), eager.state_dict(), rtol=1e-4, atol=1e-5)
