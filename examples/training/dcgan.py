"""A DCGAN: two models, two losses, two optimizers, two programs that share the parameters of both models.

python examples/training/dcgan.py
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

import dlcompiler

logits = functional.binary_cross_entropy_with_logits


def main() -> None:
    """Judge and generator learn in turns. A step trains its optimizer's parameters; others it reads as they are."""
    torch.manual_seed(0)
    generator = nn.Sequential(
        nn.ConvTranspose2d(4, 16, 4, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, 2, 1), nn.Tanh()
    )
    judge = nn.Sequential(nn.Conv2d(1, 16, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(16, 1, 4), nn.Flatten(0))

    def judge_loss(judge: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        real, made = judge(batch[0]), judge(generator(batch[1]).detach())
        return logits(real, torch.ones_like(real)) + logits(made, torch.zeros_like(made))

    def generator_loss(generator: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        judged = judge(generator(batch[1]))
        return logits(judged, torch.ones_like(judged))

    # real pictures are bright in the middle
    middle = functional.pad(torch.ones(4, 4), (2, 2, 2, 2), value=-1.0)
    batches = [(middle + 0.1 * torch.randn(16, 1, 8, 8), torch.randn(16, 4, 1, 1)) for _ in range(60)]
    judge_optimizer, generator_optimizer = (
        torch.optim.Adam(model.parameters(), lr=5e-3, betas=(0.5, 0.999)) for model in (judge, generator)
    )
    judge_step = dlcompiler.train_step(judge, judge_loss, judge_optimizer, batches[0])
    generator_step = dlcompiler.train_step(generator, generator_loss, generator_optimizer, batches[0])
    for k, batch in enumerate(batches):
        losses = judge_step(batch), generator_step(batch)
        if k % 10 == 0 or k == len(batches) - 1:
            print(f"step {k:3}: judge {losses[0]:.4f}, generator {losses[1]:.4f}")
    generator.eval()
    with torch.no_grad():
        made = generator(torch.randn(50, 4, 1, 1)).mean((0, 1))
    inside, outside = made[2:6, 2:6].mean().item(), made[0].mean().item()
    print(f"made pictures: {inside:+.2f} in the middle, {outside:+.2f} at the edge")
    assert inside > outside


if __name__ == "__main__":
    main()
