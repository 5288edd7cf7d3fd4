"""A loop with Hugging Face's accelerate: the prepared model compiled, gradients accumulated and limited by accelerate.

python examples/training/accelerated.py     (needs the extra `ecosystem`)
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import dlcompiler


def train(compiled: bool) -> list[float]:
    """The loss of every batch. Accelerate's own list of backends has none of others: torch.compile is called here."""
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    inputs = torch.randn(96, 16)
    batches = DataLoader(TensorDataset(inputs, inputs[:, :4].argmax(1)), batch_size=12)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, optimizer, batches = accelerator.prepare(model, optimizer, batches)
    forward = torch.compile(model, backend="dlcompiler") if compiled else model
    losses = []
    for x, y in batches:
        with accelerator.accumulate(model):
            loss = functional.cross_entropy(forward(x), y)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def main() -> None:
    """Train with and without, from the same start."""
    expected, losses = train(compiled=False), train(compiled=True)
    print("losses, eager:   ", [f"{loss:.5f}" for loss in expected])
    print("losses, compiled:", [f"{loss:.5f}" for loss in losses])
    assert all(abs(a - b) < 1e-4 for a, b in zip(losses, expected, strict=True))
    assert len(dlcompiler.reports()) == 2  # forward and backward


if __name__ == "__main__":
    main()
