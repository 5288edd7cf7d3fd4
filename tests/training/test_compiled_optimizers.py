"""`torch.compile(optimizer.step, backend="dlcompiler")`: right, native, and one program for a whole schedule."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import dlcompiler
from dlcompiler.frontends.fx_foreach import foreach_decompositions

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


def test_operators_over_lists_are_those_on_each_tensor() -> None:
    """As torch's optimizers call them on a GPU: every one that its table has a rule for, against eager's own."""
    x, y, z = ([torch.rand(3, 2) + 0.5, torch.rand(4) + 0.5] for _ in range(3))
    numbers, tensor = [0.5, 1.5], torch.tensor([0.5, 1.5])
    given = {
        "List": (x, y), "Scalar": (x, 0.5), "ScalarList": (x, numbers), "Tensor": (x, torch.tensor(0.5)), "default": (x,),
        "ScalarAndTensor": (2.0, x),
    }  # fmt: skip
    own = {
        "addcmul": {"Scalar": (x, y, z, 0.5), "ScalarList": (x, y, z, numbers), "Tensor": (x, y, z, tensor)},
        "lerp": {"List": (x, y, z), "Scalar": (x, y, 0.5), "ScalarList": (x, y, numbers)},
        "norm": {"Scalar": (x, 2)}, "mm": {"default": ([x[0].t()], [y[0]])}, "copy": {"default": (x, y)},
    }  # fmt: skip
    own["addcdiv"] = own["addcmul"]
    table = foreach_decompositions()
    assert len(table) > 60
    for operator, rule in table.items():
        name, overload = operator.__name__.removeprefix("_foreach_").split(".")
        arguments = own.get(name, given).get(overload)
        if arguments is None:
            continue  # what only a later release has
        torch.testing.assert_close(rule(*arguments), list(operator(*arguments)), msg=str(operator), equal_nan=True)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("name", MAKE)
def test_a_schedule_of_fifty_steps_is_one_program(name: str, foreach: bool) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    eager = copy.deepcopy(model)
    optimizer, reference = MAKE[name](model.parameters()), MAKE[name](eager.parameters())
    if foreach:  # which is what torch takes on a GPU; with a rate that is a tensor Adam wants the other, too
        optimizer.param_groups[0] |= {"foreach": True, "capturable": True}
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
