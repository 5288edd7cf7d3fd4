"""What programs that update parameters are given besides gradients: numbers of the call, and the optimizer's own state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dlcompiler.codegen.target import Target
from dlcompiler.ir.graph import Graph
from dlcompiler.options import Options
from dlcompiler.report import Report, Timings
from dlcompiler.training.ahead import ZerosAhead
from dlcompiler.training.hyperparameters import Division, Hyperparameters
from dlcompiler.training.optimizers import new_state


@dataclass
class StepProgram:
    """A compiled step, and the vectors of numbers that it reads: one for each class, where the program runs.

    A CUDA graph remembers where they lie, so they are made once and filled again.
    """

    executable: Callable[[Sequence[Any]], list[Tensor]]
    vectors: list[Tensor] = field(default_factory=list)
    _filled: dict[int, tuple[float, ...]] = field(default_factory=dict)

    def make_vectors(self, division: Division, device: torch.device) -> None:
        """A vector for each class of the division."""
        self.vectors = [
            torch.zeros(len(each.names), dtype=torch.float64 if each.wide else torch.float32, device=device)
            for each in division.classes
        ]

    def fill(self, numbers: Sequence[Mapping[str, float]]) -> None:
        """Put numbers into the vectors. Nothing is waited for: what the host holds is copied aside before this returns."""
        for k, (vector, values) in enumerate(zip(self.vectors, numbers)):
            new = tuple(values.values())
            if self._filled.get(k) != new:
                vector.copy_(torch.tensor(new, dtype=vector.dtype), non_blocking=True)
                self._filled[k] = new


def compile_step(graph: Graph, target: Target, options: Options, timings: Timings) -> tuple[StepProgram, Report]:
    """The program of a step's graph, with no vectors yet."""
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    from dlcompiler.recorded import compile_recorded

    with unset_fake_temporarily():
        executable, report = compile_recorded(graph, target, options, timings=timings)
    return StepProgram(executable), report


class States:
    """The state that an optimizer keeps for some parameters, in the order of `hyperparameters`."""

    def __init__(self, hyperparameters: Hyperparameters, zeros: ZerosAhead) -> None:
        self.hyperparameters, self.zeros = hyperparameters, zeros
        self.optimizer, self.rule = hyperparameters.optimizer, hyperparameters.rule

    def get(self, parameters: Sequence[Tensor], types_only: bool = False) -> list[dict[str, Tensor]]:
        """The state of each parameter; what the optimizer does not have yet is made, as it would make it, and not kept there.

        `types_only`: as tensors without memory.
        """
        names = self._names()
        found = []
        for parameter, g in zip(parameters, self.hyperparameters.group_of):
            state = self.optimizer.state.get(parameter, {})
            if (self.rule.counts and "step" not in state) or any(state.get(name) is None for name in names[g]):
                like = torch.empty_like(parameter, device="meta") if types_only else parameter
                state = {**state, **new_state(self.optimizer.param_groups[g], like, self.rule, state, self.zeros.full_like)}
            found.append(state)
        return found

    def read(self, states: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Of each state what a program reads."""
        names = self._names()
        return [{name: state[name] for name in names[g]} for state, g in zip(states, self.hyperparameters.group_of)]

    def keep(self, parameters: Sequence[Tensor], states: Sequence[dict[str, Tensor]]) -> None:
        """Give the optimizer what was made for its first update, which has now been done, and count the step."""
        kept = self.optimizer.state
        for parameter, state in zip(parameters, states):
            if state and kept.get(parameter) is not state:
                kept[parameter].update(state)
        self.zeros.forget()
        self.hyperparameters.count(parameters)

    def _names(self) -> list[tuple[str, ...]]:
        """For each group, what a program reads of a parameter's state."""
        return [self.rule.state(group) for group in self.optimizer.param_groups]


def zeros_ahead(optimizer: torch.optim.Optimizer, rule: Any) -> ZerosAhead:
    """Memory for the state of parameters that have none, got ready from now on."""
    zeros = ZerosAhead()
    zeros.start(
        (parameter, len(rule.state(group)))
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.requires_grad and parameter not in optimizer.state
    )
    return zeros
