"""Systems that train a workload, each with a model of its own from the same start: what the training benchmarks compare.

eager       the loop as anyone writes it
inductor    the loss function and the optimizer's step through torch.compile
dlcompiler  the same with our backend
update_step the loss function through torch.compile with our backend, and `dlcompiler.update_step`
train_step  `dlcompiler.train_step`
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests import training_zoo

SYSTEMS = ("eager", "inductor", "dlcompiler", "train_step")
OURS = ("dlcompiler", "update_step", "train_step")
Step = Callable[[Any], Tensor]  # trains on a batch; the loss, detached


@dataclass(frozen=True)
class Setting:
    """What all systems are run with."""

    size: str = "real"
    dropout: float = 0.0
    numerics: str = "fast"  # of ours; "eager" leaves random numbers to ATen

    def build(self, name: str) -> training_zoo.Workload:
        return training_zoo.build(name, self.size, self.dropout)


@dataclass
class Trained:
    """A model that a system trains, with one loss or, as a GAN, with several in turns."""

    system: str
    workload: training_zoo.Workload
    steps: list[Step]
    optimizers: list[torch.optim.Optimizer]
    compiled: list[Any]  # `dlcompiler.train_step`'s objects, if it is them
    schedulers: list[torch.optim.lr_scheduler.LRScheduler]

    def __call__(self, batch: Any) -> list[Tensor]:
        """The loss of each."""
        return [step(batch) for step in self.steps]


def make(system: str, name: str, setting: Setting, both: bool = False, schedule: Callable[[int], float] | None = None) -> Trained:
    """The workload of that name, trained by the system.

    both      a GAN's two halves learn in turns, each by its own loss
    schedule  factor of the learning rate, of a step's number; whoever calls steps the schedulers
    """
    workload = setting.build(name)
    model: Any = workload.model
    parts: list[tuple[training_zoo.Loss, Iterable[Tensor]]] = [(workload.loss, model.parameters())]
    if both and name == "dcgan":
        parts = [
            (training_zoo.discriminator_loss, model.discriminator.parameters()),
            (training_zoo.generator_loss, model.generator.parameters()),
        ]
    trained = Trained(system, workload, [], [], [], [])
    for loss, parameters in parts:
        optimizer = workload.make_optimizer(parameters)
        trained.optimizers.append(optimizer)
        if system in ("inductor", "dlcompiler"):
            for group in optimizer.param_groups:
                group["lr"] = torch.tensor(group["lr"])
        if schedule is not None:  # before the optimizer's step is compiled: a scheduler wraps it
            trained.schedulers.append(torch.optim.lr_scheduler.LambdaLR(optimizer, schedule))
        if system == "train_step":
            import dlcompiler

            options = {"numerics": setting.numerics}
            step = dlcompiler.train_step(model, loss, optimizer, workload.make_batch(0), options=options)
            trained.compiled.append(step)
            trained.steps.append(step)
        else:
            trained.steps.append(_loop(system, model, loss, optimizer, setting))
    return trained


def _loop(system: str, model: Any, loss: Any, optimizer: torch.optim.Optimizer, setting: Setting) -> Step:
    """Gradients by autograd, then an update; compiled in two parts unless it is eager's."""
    update: Any = optimizer.step
    if system != "eager":
        # RNN modules are left to eager by torch.compile unless asked; Inductor would unroll them for minutes
        torch._dynamo.config.allow_rnn = system in OURS
        backend, options = ("inductor", None) if system == "inductor" else ("dlcompiler", {"numerics": setting.numerics})
        loss = torch.compile(loss, backend=backend, options=options)
        if system == "update_step":
            import dlcompiler

            update = dlcompiler.update_step(optimizer, options=options)
        else:
            update = torch.compile(optimizer.step, backend=backend, options=options)

    def loop(batch: Any) -> Tensor:
        optimizer.zero_grad()
        value = loss(model, batch)
        value.backward()
        update()
        return value.detach()

    return loop
