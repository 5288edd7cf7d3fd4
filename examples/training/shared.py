"""What the training examples share: a loop with `dlcompiler.train_step` beside an eager one."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

import dlcompiler

Loss = Callable[[Any, Any], Tensor]


def cross_entropy(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The loss of classifiers: (inputs, classes)."""
    return functional.cross_entropy(model(batch[0]), batch[1])


def train_beside_eager(model: nn.Module, loss_fn: Loss, make_optimizer: Any, batches: list[Any]) -> None:
    """Train the model compiled and a copy of it eagerly, both with a falling learning rate and limited gradients."""
    eager = copy.deepcopy(model)
    optimizer, reference = make_optimizer(model), make_optimizer(eager)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(each, len(batches)) for each in (optimizer, reference)]
    began = time.perf_counter()
    step = dlcompiler.train_step(model, loss_fn, optimizer, batches[0], clip_norm=1.0)
    print(f"compiled in {time.perf_counter() - began:.1f} s: {step.reports[0].kernels} kernels")
    for k, batch in enumerate(batches):
        loss = step(batch)
        reference.zero_grad()
        expected = loss_fn(eager, batch)
        expected.backward()
        nn.utils.clip_grad_norm_(eager.parameters(), 1.0)
        reference.step()
        for schedule in schedules:
            schedule.step()
        if k % 5 == 0 or k == len(batches) - 1:
            print(f"step {k:3}: loss {loss.item():.5f}, eager {expected.item():.5f}")
    assert abs(loss.item() - expected.item()) < 1e-3
    assert len(step.reports) == 1, "the schedule compiled nothing"
