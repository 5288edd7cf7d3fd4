"""The numbers of an optimizer that change from call to call, and which parameters share them.

Parameters of one group that have made the same number of steps are updated with the same numbers: they are one class. A
program reads one small vector a class, which each call fills; only another division into classes, or another switch, needs
another program.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlcompiler.training.optimizers import RULES, Rule


@dataclass(frozen=True)
class Class:
    """Parameters with the same numbers. `names`: what stands where in their vector."""

    group: int
    switches: frozenset[str]
    wide: bool  # float64 parameters, whose numbers are float64 too
    names: tuple[str, ...]


@dataclass(frozen=True)
class Division:
    """How the trained parameters fall into classes at one step: equal divisions are served by one program.

    classes   the classes
    of        for each trained parameter, the position of its class
    """

    classes: tuple[Class, ...]
    of: tuple[int, ...]


class Hyperparameters:
    """Reads a torch optimizer's settings and step counts for `parameters`, in that order."""

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
        self.optimizer = optimizer
        self.rule: Rule = RULES[type(optimizer)]
        group_of = {id(p): g for g, group in enumerate(optimizer.param_groups) for p in group["params"]}
        self.group_of = [group_of[id(p)] for p in parameters]
        # step counts that lie on a GPU: the tensor, its version, and the number, so that reading one waits for nothing
        self._counted: dict[int, tuple[Tensor, int, float]] = {}

    def divide(self, parameters: Sequence[Tensor]) -> tuple[Division, list[dict[str, float]]]:
        """The division of the step that comes next, and the numbers of each class."""
        optimizer, rule = self.optimizer, self.rule
        groups, states = optimizer.param_groups, optimizer.state
        switches = [rule.switches(group) for group in groups]
        first_names = [rule.state(group)[:1] for group in groups]
        position: dict[tuple[Any, ...], int] = {}
        classes: list[Class] = []
        numbers: list[dict[str, float]] = []
        of = []
        for parameter, g in zip(parameters, self.group_of):
            state = states.get(parameter) or {}
            steps = self._count_of(state["step"]) if rule.counts and state else 0.0
            fresh = any(state.get(name) is None for name in first_names[g])
            wide = parameter.dtype is torch.float64
            key = (g, steps, fresh, wide)
            found = position.get(key)
            if found is None:
                found = position[key] = len(classes)
                values = rule.numbers(groups[g], steps + 1, fresh)
                classes.append(Class(g, switches[g], wide, tuple(values)))
                numbers.append(values)
            of.append(found)
        return Division(tuple(classes), tuple(of)), numbers

    def count(self, parameters: Sequence[Tensor]) -> None:
        """One step more for each."""
        if not self.rule.counts:
            return
        counts = [self.optimizer.state[p]["step"] for p in parameters]
        before = [self._count_of(each) for each in counts]
        torch._foreach_add_(counts, 1)
        on_device = [(each, number + 1) for each, number in zip(counts, before) if each.device.type != "cpu"]
        self._counted = {id(each): (each, each._version, number) for each, number in on_device}

    def _count_of(self, count: Tensor) -> float:
        known = self._counted.get(id(count))
        return known[2] if known is not None and known[1] == count._version else float(count)
