"""Layers in bfloat16 and float16 run in kernels of our own, weights kept in their type, and are right by float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import dlcompiler
from tests.end_to_end.support import check, compile_with


class Block(nn.Module):
    """What a transformer and a convolutional network multiply: images, tokens, and products of two values."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv2d(3, 20, 3, stride=2, padding=1)
        self.up, self.down = nn.Linear(20, 50), nn.Linear(50, 33, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        tokens = torch.relu(self.image(x)).flatten(2).transpose(1, 2)
        hidden = self.down(nn.functional.gelu(self.up(tokens)))
        return hidden, hidden @ hidden.mT


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_layers(dtype: torch.dtype, entry: str) -> None:
    torch.manual_seed(0)
    module, x = Block().eval().to(dtype), torch.randn(2, 3, 14, 15).to(dtype)
    with torch.no_grad():
        check(module, (x,), compiled=compile_with(entry, module, (x,)))
    report = dlcompiler.reports()[-1].as_dict()
    assert report["library"] == {} and list(report["aten"]) == []


@pytest.mark.parametrize("rows", [1, 9, 40])
def test_weights_that_are_widened_while_they_are_multiplied(rows: int, entry: str) -> None:
    """float32 times bfloat16: no copy of the weights in float32, and a change in place is seen."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(50, 77).bfloat16())

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.weight.to(x.dtype))

    torch.manual_seed(0)
    module, x = Mixed(), torch.randn(rows, 77)
    with torch.no_grad():
        compiled = compile_with(entry, module, (x,))
        check(module, (x,), compiled=compiled)
        module.weight.mul_(2)
        check(module, (x,), compiled=compiled)
    if entry == "dlcompiler.compile":
        prepared = [slot for slot in compiled.program.slots if slot.role == "prepared"]
        assert prepared and all(slot.dtype.name == "bf16" for slot in prepared)
