"""A `torch.amp.GradScaler` and a step that is one program.

    scaler.scale(loss).backward(); scaler.step(optimizer); scaler.update()   -->   step(batch)

The scale and its inverse are numbers that each call passes; the program tells whether a gradient was not finite, and has left
parameters and state alone then. The scaler is told of it by the means that any optimizer has: a parameter whose gradient is
not finite.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Scaling:
    """The state of a scaler during one step; `scaler` is the user's own, which this reads and updates."""

    def __init__(self, scaler: torch.amp.GradScaler) -> None:
        self.scaler = scaler
        self._probe = torch.zeros(1, device=scaler._device, requires_grad=True)
        self._optimizer = torch.optim.SGD([self._probe], lr=0.0)
        # makes the scale, which a scaler has only once it has scaled something
        scaler.scale(torch.zeros(1, device=scaler._device))

    def factors(self) -> tuple[float, float]:
        """By what the loss is multiplied in the next call, and by what its gradients are."""
        scale = torch.tensor(self.scaler.get_scale(), dtype=torch.float64)
        return float(scale), float(scale.reciprocal().float())

    def update(self, skipped: bool) -> None:
        """Let the scale grow, or shrink if the update was skipped, as `scaler.update()` does after `scaler.step()`."""
        self._probe.grad = torch.full_like(self._probe, float("inf") if skipped else 0.0)
        self.scaler.unscale_(self._optimizer)
        self.scaler.update()


def refusals(scaler: torch.amp.GradScaler, parameters: list[Tensor]) -> list[str]:
    """Why gradients of these parameters cannot be scaled; empty if they can."""
    narrow = {str(p.dtype) for p in parameters if p.dtype is torch.float16}
    return [f"a scaler and parameters of {dtype}, whose gradients it does not unscale" for dtype in sorted(narrow)]
