"""What torch's optimizers do to one parameter, written in the IR.

A rule says which state a parameter has, which settings change the computation, which numbers it takes (they are computed in
Python for each call, so that a schedule recompiles nothing), and how the new parameter and state follow. The formulas are those
of `torch.optim`'s loops over single tensors, and are done in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlcompiler.ir.graph import Builder, Node

Group = Mapping[str, Any]
Numbers = Mapping[str, Node]  # a name of `Rule.numbers` -> a 0-d node
State = Mapping[str, Node]
# (builder, parameter, gradient, state, numbers, switches) -> new parameter, new state
Update = Callable[[Builder, Node, Node, State, Numbers, frozenset[str]], tuple[Node, dict[str, Node]]]


@dataclass(frozen=True)
class Rule:
    """One optimizer.

    state      names of the tensors it keeps for each parameter, of the parameter's shape, in a group
    switches   settings of a group that change what is computed; those that are on
    numbers    (group, steps done after this one, whether the state is new) -> named numbers, which a call computes
    update     the computation
    counts     whether `state[parameter]["step"]` counts the steps
    """

    state: Callable[[Group], tuple[str, ...]]
    switches: Callable[[Group], frozenset[str]]
    numbers: Callable[[Group, float, bool], dict[str, float]]
    update: Update
    counts: bool = True


def _switches(*names: str) -> Callable[[Group], frozenset[str]]:
    return lambda group: frozenset(name for name in names if group.get(name))


def _decayed(b: Builder, gradient: Node, parameter: Node, numbers: Numbers, switches: frozenset[str]) -> Node:
    """The gradient to follow: negated to go uphill, with the parameter's own part for weight decay."""
    if "maximize" in switches:
        gradient = b.neg(gradient)
    if "weight_decay" in switches:
        gradient = b.add(gradient, b.mul(parameter, numbers["weight_decay"]))
    return gradient


def _moved(b: Builder, old: Node, towards: Node, weight: Node) -> Node:
    """old + weight * (towards - old)."""
    return b.add(old, b.mul(b.sub(towards, old), weight))


def _decaying_square(b: Builder, old: Node, gradient: Node, keep: Node, weight: Node) -> Node:
    """keep * old + weight * gradient²."""
    return b.add(b.mul(old, keep), b.mul(b.mul(gradient, gradient), weight))


# -- SGD ---------------------------------------------------------------------------------------------------------------------


def _sgd_numbers(group: Group, step: float, fresh: bool) -> dict[str, float]:
    # the first gradient becomes the momentum as it is, undampened
    return {
        "rate": -float(group["lr"]),
        "momentum": group["momentum"],
        "gain": 1.0 if fresh else 1 - group["dampening"],
        "weight_decay": group["weight_decay"],
    }


def _sgd(b: Builder, parameter: Node, gradient: Node, state: State, numbers: Numbers, switches: frozenset[str]):
    gradient = _decayed(b, gradient, parameter, numbers, switches)
    new: dict[str, Node] = {}
    if "momentum" in switches:
        velocity = b.add(b.mul(state["momentum_buffer"], numbers["momentum"]), b.mul(gradient, numbers["gain"]))
        new["momentum_buffer"] = velocity
        gradient = b.add(gradient, b.mul(velocity, numbers["momentum"])) if "nesterov" in switches else velocity
    return b.add(parameter, b.mul(gradient, numbers["rate"])), new


# -- Adam and AdamW ------------------------------------------------------------------------------------------------------------


def _adam_switches(group: Group) -> frozenset[str]:
    found = _switches("maximize", "amsgrad", "weight_decay")(group)
    if "weight_decay" in found and group.get("decoupled_weight_decay"):
        found = found - {"weight_decay"} | {"decoupled"}
    return found


def _adam_numbers(group: Group, step: float, fresh: bool) -> dict[str, float]:
    rate, (beta1, beta2) = float(group["lr"]), (float(beta) for beta in group["betas"])
    return {
        "rate": -rate / (1 - beta1**step),
        "keep": 1 - rate * group["weight_decay"],
        "weight_decay": group["weight_decay"],
        "weight1": 1 - beta1,
        "beta2": beta2,
        "weight2": 1 - beta2,
        "root": math.sqrt(1 - beta2**step),
        "epsilon": group["eps"],
    }


def _adam(b: Builder, parameter: Node, gradient: Node, state: State, numbers: Numbers, switches: frozenset[str]):
    gradient = _decayed(b, gradient, parameter, numbers, switches)
    if "decoupled" in switches:
        parameter = b.mul(parameter, numbers["keep"])
    average = _moved(b, state["exp_avg"], gradient, numbers["weight1"])
    square = _decaying_square(b, state["exp_avg_sq"], gradient, numbers["beta2"], numbers["weight2"])
    new = {"exp_avg": average, "exp_avg_sq": square}
    if "amsgrad" in switches:
        new["max_exp_avg_sq"] = square = b.maximum(state["max_exp_avg_sq"], square)
    divisor = b.add(b.div(b.sqrt(square), numbers["root"]), numbers["epsilon"])
    return b.add(parameter, b.mul(numbers["rate"], b.div(average, divisor))), new


# -- Adagrad, RMSprop, Adadelta --------------------------------------------------------------------------------------------------


def _adagrad_numbers(group: Group, step: float, fresh: bool) -> dict[str, float]:
    rate = float(group["lr"]) / (1 + (step - 1) * group["lr_decay"])
    return {"rate": -rate, "epsilon": group["eps"], "weight_decay": group["weight_decay"]}


def _adagrad(b: Builder, parameter: Node, gradient: Node, state: State, numbers: Numbers, switches: frozenset[str]):
    gradient = _decayed(b, gradient, parameter, numbers, switches)
    total = b.add(state["sum"], b.mul(gradient, gradient))
    divisor = b.add(b.sqrt(total), numbers["epsilon"])
    return b.add(parameter, b.mul(numbers["rate"], b.div(gradient, divisor))), {"sum": total}


def _rmsprop_numbers(group: Group, step: float, fresh: bool) -> dict[str, float]:
    return {
        "rate": -float(group["lr"]),
        "alpha": group["alpha"],
        "weight": 1 - group["alpha"],
        "momentum": group["momentum"],
        "epsilon": group["eps"],
        "weight_decay": group["weight_decay"],
    }


def _rmsprop_state(group: Group) -> tuple[str, ...]:
    optional = [("momentum_buffer", group["momentum"] > 0), ("grad_avg", group["centered"])]
    return ("square_avg", *(name for name, wanted in optional if wanted))


def _rmsprop(b: Builder, parameter: Node, gradient: Node, state: State, numbers: Numbers, switches: frozenset[str]):
    gradient = _decayed(b, gradient, parameter, numbers, switches)
    square = _decaying_square(b, state["square_avg"], gradient, numbers["alpha"], numbers["weight"])
    new, spread = {"square_avg": square}, square
    if "centered" in switches:
        new["grad_avg"] = average = _moved(b, state["grad_avg"], gradient, numbers["weight"])
        spread = b.sub(square, b.mul(average, average))
    step = b.div(gradient, b.add(b.sqrt(spread), numbers["epsilon"]))
    if "momentum" in switches:
        new["momentum_buffer"] = step = b.add(b.mul(state["momentum_buffer"], numbers["momentum"]), step)
    return b.add(parameter, b.mul(numbers["rate"], step)), new


def _adadelta_numbers(group: Group, step: float, fresh: bool) -> dict[str, float]:
    return {
        "rate": -float(group["lr"]),
        "rho": group["rho"],
        "weight": 1 - group["rho"],
        "epsilon": group["eps"],
        "weight_decay": group["weight_decay"],
    }


def _adadelta(b: Builder, parameter: Node, gradient: Node, state: State, numbers: Numbers, switches: frozenset[str]):
    gradient = _decayed(b, gradient, parameter, numbers, switches)
    square = _decaying_square(b, state["square_avg"], gradient, numbers["rho"], numbers["weight"])
    spread = b.sqrt(b.add(square, numbers["epsilon"]))
    step = b.mul(b.div(b.sqrt(b.add(state["acc_delta"], numbers["epsilon"])), spread), gradient)
    moved = _decaying_square(b, state["acc_delta"], step, numbers["rho"], numbers["weight"])
    return b.add(parameter, b.mul(numbers["rate"], step)), {"square_avg": square, "acc_delta": moved}


# -- the table -----------------------------------------------------------------------------------------------------------------

_ADAM = Rule(
    lambda group: ("exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group["amsgrad"] else [])),
    _adam_switches,
    _adam_numbers,
    _adam,
)
RULES: dict[type[torch.optim.Optimizer], Rule] = {
    torch.optim.SGD: Rule(
        lambda group: ("momentum_buffer",) if group["momentum"] else (),
        _switches("momentum", "nesterov", "maximize", "weight_decay"),
        _sgd_numbers,
        _sgd,
        counts=False,
    ),
    torch.optim.Adam: _ADAM,
    torch.optim.AdamW: _ADAM,
    torch.optim.Adagrad: Rule(lambda group: ("sum",), _switches("maximize", "weight_decay"), _adagrad_numbers, _adagrad),
    torch.optim.RMSprop: Rule(
        _rmsprop_state, _switches("momentum", "centered", "maximize", "weight_decay"), _rmsprop_numbers, _rmsprop
    ),
    torch.optim.Adadelta: Rule(
        lambda group: ("square_avg", "acc_delta"), _switches("maximize", "weight_decay"), _adadelta_numbers, _adadelta
    ),
}


def new_state(
    group: Group, parameter: Tensor, rule: Rule, state: Mapping[str, Any], full_like: Callable[[Tensor, float], Tensor]
) -> dict[str, Tensor]:
    """What the optimizer would add to a parameter's state at its first step, in memory that `full_like` gives."""
    made: dict[str, Tensor] = {}
    if rule.counts and "step" not in state:
        fused = bool(group.get("fused"))
        wide = torch.get_default_dtype() is torch.float64 and not fused
        device = parameter.device if fused or group.get("capturable") else torch.device("cpu")
        made["step"] = torch.zeros((), dtype=torch.float64 if wide else torch.float32, device=device)
    for name in rule.state(group):
        if state.get(name) is None:
            start = group["initial_accumulator_value"] if name == "sum" else 0.0
            made[name] = full_like(parameter, start)
    return made


def unsupported(optimizer: torch.optim.Optimizer) -> Sequence[str]:
    """Why a step of this optimizer cannot be compiled; empty if it can."""
    reasons = []
    if type(optimizer) not in RULES:
        reasons.append(f"{type(optimizer).__name__} is none of {', '.join(kind.__name__ for kind in RULES)}")
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        reasons.append("hooks around the optimizer's step")
    if any(group.get("differentiable") for group in optimizer.param_groups):
        reasons.append("differentiable=True")
    return reasons
