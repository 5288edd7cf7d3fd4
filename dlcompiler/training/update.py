"""`dlcompiler.update_step`: an optimizer's step as one program, written down from its rule and not traced.

update = dlcompiler.update_step(optimizer)
loss.backward(); update(); optimizer.zero_grad()

`torch.compile(optimizer.step)` follows the loop over parameters in Python, operator by operator: for a hundred parameters that
takes longer than all of our compiler. Here each parameter's update is a few nodes, made from `optimizers.RULES`, and the numbers
of a schedule are given to the program by each call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dlcompiler.codegen.target import Target
from dlcompiler.frontends.fx_types import strides_of_fake, type_of_fake
from dlcompiler.ir.errors import UnsupportedError
from dlcompiler.ir.graph import Builder
from dlcompiler.options import Options
from dlcompiler.report import Report, Timings
from dlcompiler.training.assemble import Assembler, Clipping
from dlcompiler.training.hyperparameters import Division, Hyperparameters
from dlcompiler.training.joint import Joint
from dlcompiler.training.optimizers import RULES
from dlcompiler.training.programs import States, StepProgram, compile_step, zeros_ahead
from dlcompiler.training.refusals import choose_target, parameters_of, reasons_against, refuse

# Sets of parameters that have gradients, in models that use now these and now those, whose programs are kept.
MOST_UPDATES = 64


def update_step(
    optimizer: torch.optim.Optimizer,
    *,
    target: str | None = None,
    options: Options | Mapping[str, Any] | None = None,
    clip_norm: float | None = None,
    clip_value: float | None = None,
) -> UpdateStep:
    """An optimizer's step, compiled at its first call: for gradients that a compiled or an eager model has left.

    optimizer   SGD, Adam, AdamW, Adagrad, RMSprop or Adadelta of torch.optim
    target      as for `dlcompiler.compile`; None: where the parameters are
    clip_norm   limit of the 2-norm of all gradients together, as `torch.nn.utils.clip_grad_norm_`, which leaves `grad` as it is
    clip_value  limit of each number in them, as `torch.nn.utils.clip_grad_value_`

    Raises UnsupportedError for another optimizer, hooks around its step, and complex, sparse or distributed parameters.
    """
    hint = 'use torch.compile(optimizer.step, backend="dlcompiler")'
    refuse("a compiled optimizer", reasons_against(optimizer), hint)
    resolved = Options.resolve(options)
    chosen = resolved.configure(choose_target(target, optimizer))
    return UpdateStep(optimizer, chosen, resolved, Clipping(clip_norm, clip_value))


class UpdateStep:
    """A compiled optimizer's step; see `update_step`. `update()` is `optimizer.step()`: parameters without `grad` are left alone.

    reports         of every program that was compiled for it
    gradient_norm   of the last update, before it was limited; None without `clip_norm`
    """

    def __init__(self, optimizer: torch.optim.Optimizer, target: Target, options: Options, clipping: Clipping) -> None:
        self.optimizer, self.target, self.options, self.clipping = optimizer, target, options, clipping
        self.reports: list[Report] = []
        self.gradient_norm: Tensor | None = None
        self._zeros = zeros_ahead(optimizer, RULES[type(optimizer)])
        self._updates: dict[tuple[int, ...], _Update] = {}

    def __call__(self) -> None:
        """Update every parameter that has a gradient. Raises UnsupportedError, and changes nothing, for a sparse one."""
        parameters = [parameter for parameter in parameters_of(self.optimizer) if parameter.grad is not None]
        if parameters:
            key = tuple(map(id, parameters))
            update = self._updates.pop(key, None) or _Update(self, parameters)
            self._updates[key] = update  # the most recently used last
            while len(self._updates) > MOST_UPDATES:
                del self._updates[next(iter(self._updates))]
            update()
        # what learning-rate schedulers look at to see that the optimizer came first
        self.optimizer._opt_called = True  # type: ignore[attr-defined]


class _Update:
    """The update of those parameters that have gradients now. It keeps them, so that they are known by their identity."""

    def __init__(self, step: UpdateStep, parameters: Sequence[Tensor]) -> None:
        self.step, self.parameters = step, parameters
        self.hyperparameters = Hyperparameters(step.optimizer, parameters)
        self.states = States(self.hyperparameters, step._zeros)
        self.programs: dict[Division, StepProgram] = {}

    def __call__(self) -> None:
        parameters, gradients = self.parameters, [_gradient(parameter) for parameter in self.parameters]
        division, numbers = self.hyperparameters.divide(parameters)
        states = self.states.get(parameters)
        read = self.states.read(states)
        program = self.programs.get(division)
        if program is None:
            program = self.programs[division] = self._compile(division, gradients, read)
        program.fill(numbers)
        tensors = [tensor for state in read for tensor in state.values()]
        norm = program.executable([*parameters, *gradients, *tensors, *program.vectors])
        self.step.gradient_norm = norm[0] if norm else None
        self.states.keep(parameters, states)

    def _compile(self, division: Division, gradients: Sequence[Tensor], states: list[dict[str, Tensor]]) -> StepProgram:
        step, count = self.step, len(self.parameters)
        timings = Timings()
        with timings.stage("capture"):
            b = Builder(f"{type(step.optimizer).__name__}_update")
            for name, tensors in (("parameter", self.parameters), ("gradient", gradients)):
                for tensor in tensors:
                    b.input(name, type_of_fake(tensor), strides_of_fake(tensor))
            joint = Joint(b.finish(()), {k: b.inputs[count + k] for k in range(count)})
            graph = Assembler(joint, range(count), 1).updating(self.hyperparameters.rule, division, states, [], step.clipping)
        program, report = compile_step(graph, step.target, step.options, timings)
        program.make_vectors(division, self.parameters[0].device)
        step.reports.append(report)
        return program


def _gradient(parameter: Tensor) -> Tensor:
    gradient = parameter.grad
    assert gradient is not None
    if gradient.layout is not torch.strided:
        raise UnsupportedError(f"an update with a gradient of layout {gradient.layout}", items=(str(gradient.layout),))
    return gradient
