"""What cannot be trained by a program of ours as torch would train it, said before anything has run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dlcompiler.codegen.target import Target
from dlcompiler.devices import target_here, target_of_devices
from dlcompiler.ir.errors import UnsupportedError
from dlcompiler.training.optimizers import unsupported


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All parameters, group by group."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def choose_target(text: str | None, optimizer: torch.optim.Optimizer) -> Target:
    """Raises UnsupportedError for parameters on several devices, or on a GPU for a CPU's program."""
    devices = {parameter.device for parameter in parameters_of(optimizer)}
    own = target_of_devices(devices)
    if text is None or (text == "cuda" and own.kind == "cuda"):
        return own
    chosen = target_here(text)
    if chosen.kind == "cpu" and own.kind != "cpu":
        (device,) = devices
        raise UnsupportedError(f"a step for {chosen} of parameters on {device}", items=(str(device),), hint="leave out target")
    return chosen


def reasons_against(optimizer: torch.optim.Optimizer) -> list[str]:
    """Why an update would differ from the optimizer's own; empty if it does not."""
    reasons = list(unsupported(optimizer))
    for parameter in parameters_of(optimizer):
        if parameter.is_complex():
            reasons.append("complex parameters")
        if parameter.is_sparse or not parameter.is_floating_point():
            reasons.append(f"parameters of {parameter.dtype} and layout {parameter.layout}")
        if type(parameter) not in (Tensor, torch.nn.Parameter):
            reasons.append(f"parameters that are {type(parameter).__name__}")
    return reasons


def refuse(what: str, reasons: Sequence[str], hint: str) -> None:
    """Raise UnsupportedError with all reasons, if there is one."""
    if reasons:
        found = tuple(dict.fromkeys(reasons))
        raise UnsupportedError(f"{what} with {'; '.join(found)}", items=found, hint=hint)
