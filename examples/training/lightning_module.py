"""PyTorch Lightning: `fit` takes the compiled LightningModule, whose steps are compiled; the Trainer is as it is.

python examples/training/lightning_module.py     (needs the extra `ecosystem`)
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import lightning
import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import dlcompiler


class Classifier(lightning.LightningModule):
    """A perceptron and the losses that it had."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        self.losses: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        return functional.cross_entropy(self.network(batch[0]), batch[1])

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(outputs["loss"].item())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


def train(compiled: bool) -> list[float]:
    """Two epochs."""
    torch.manual_seed(0)
    module = Classifier()
    inputs = torch.randn(96, 16)
    batches = DataLoader(TensorDataset(inputs, inputs[:, :4].argmax(1)), batch_size=24)
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(torch.compile(module, backend="dlcompiler") if compiled else module, batches)
    return module.losses


def main() -> None:
    """Train with and without, from the same start."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    expected, losses = train(compiled=False), train(compiled=True)
    print("losses, eager:   ", [f"{loss:.5f}" for loss in expected])
    print("losses, compiled:", [f"{loss:.5f}" for loss in losses])
    assert all(abs(a - b) < 1e-4 for a, b in zip(losses, expected, strict=True))
    assert len(dlcompiler.reports()) == 2  # forward and backward


if __name__ == "__main__":
    main()
