"""A small convolutional network learns to tell bars in pictures apart: batch norm, SGD with momentum, one program a step.

python examples/training/cnn.py
"""

from __future__ import annotations

import torch
from shared import cross_entropy, train_beside_eager
from torch import Tensor, nn


def pictures(count: int) -> tuple[Tensor, Tensor]:
    """(count, 1, 12, 12) noise with a bar that lies (0), stands (1) or leans (2), and which."""
    images, kinds = torch.randn(count, 1, 12, 12), torch.randint(0, 3, (count,))
    bars = torch.zeros(3, 12, 12)
    bars[0, 5:7], bars[1, :, 5:7], bars[2] = 1.0, 1.0, torch.eye(12)
    return images + 2.0 * bars[kinds].unsqueeze(1), kinds


def main() -> None:
    """Train it, then look at what it learnt: the program wrote into the model's own parameters and statistics."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3),
    )  # fmt: skip
    batches = [pictures(32) for _ in range(20)]
    train_beside_eager(model, cross_entropy, lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9), batches)
    images, kinds = pictures(200)
    model.eval()
    with torch.no_grad():
        right = (model(images).argmax(1) == kinds).float().mean().item()
    print(f"{right:.0%} of new pictures are told right")
    assert right > 0.9


if __name__ == "__main__":
    main()
