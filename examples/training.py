"""Train three small models with `dlcompiler.train_step`, each beside an eager copy: a CNN, an LSTM classifier, a GAN.

python examples/training.py
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

import dlcompiler


class Classifier(nn.Module):
    """An LSTM over tokens, and a linear layer on its last step."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm, self.head = nn.Embedding(50, 16), nn.LSTM(16, 24, batch_first=True), nn.Linear(24, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(tokens))[0][:, -1])


def cross_entropy(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    """For classifiers."""
    return functional.cross_entropy(model(batch[0]), batch[1])


def train(name: str, model: nn.Module, batches: list[Any], loss_fn: Callable[[Any, Any], Tensor], make_optimizer: Any) -> None:
    """A few steps, compiled and eager from the same start, with a learning rate that falls."""
    eager = copy.deepcopy(model)
    optimizer, reference = make_optimizer(model), make_optimizer(eager)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(each, len(batches)) for each in (optimizer, reference)]
    step = dlcompiler.train_step(model, loss_fn, optimizer, batches[0], clip_norm=1.0)
    for batch in batches:
        loss = step(batch)
        reference.zero_grad()
        expected = loss_fn(eager, batch)
        expected.backward()
        nn.utils.clip_grad_norm_([p for group in reference.param_groups for p in group["params"]], 1.0)
        reference.step()
        for schedule in schedules:
            schedule.step()
    report, ours, theirs = step.reports[0], loss.item(), expected.item()
    print(f"{name:16} loss {ours:.5f}, eager {theirs:.5f}; {report.kernels} kernels, {len(step.reports)} program")
    assert abs(ours - theirs) < 1e-3


def adversaries() -> tuple[nn.Module, nn.Module]:
    """A generator of 8x8 pictures and its judge."""
    generator = nn.Sequential(
        nn.ConvTranspose2d(4, 8, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 1, 4, 2, 1), nn.Tanh()
    )
    judge = nn.Sequential(nn.Conv2d(1, 8, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(8, 1, 4), nn.Flatten(0))
    return generator, judge


def train_adversaries() -> None:
    """Two optimizers, two steps that share both models."""
    generator, judge = adversaries()
    logits = functional.binary_cross_entropy_with_logits

    def judge_loss(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        real, fake = model(batch[0]), model(generator(batch[1]).detach())
        return logits(real, torch.ones_like(real)) + logits(fake, torch.zeros_like(fake))

    def generator_loss(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        judged = judge(model(batch[1]))
        return logits(judged, torch.ones_like(judged))

    batches = [(torch.rand(6, 1, 8, 8), torch.randn(6, 4, 1, 1)) for _ in range(4)]
    optimizers = [torch.optim.Adam(model.parameters(), lr=2e-4, betas=(0.5, 0.999)) for model in (judge, generator)]
    judge_step = dlcompiler.train_step(judge, judge_loss, optimizers[0], batches[0])
    generator_step = dlcompiler.train_step(generator, generator_loss, optimizers[1], batches[0])
    for batch in batches:
        losses = judge_step(batch), generator_step(batch)
    print(f"{'GAN':16} losses {float(losses[0]):.5f} and {float(losses[1]):.5f}")


def main() -> None:
    """Train all of them."""
    torch.manual_seed(0)
    pictures = [(torch.randn(8, 3, 12, 12), torch.randint(0, 5, (8,))) for _ in range(4)]
    cnn = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5),
    )  # fmt: skip
    train("CNN, SGD", cnn, pictures, cross_entropy, lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9))
    texts = [(torch.randint(0, 50, (8, 9)), torch.randint(0, 3, (8,))) for _ in range(4)]
    train("LSTM, AdamW", Classifier(), texts, cross_entropy, lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2))
    train_adversaries()


if __name__ == "__main__":
    main()
