"""Hugging Face's Trainer: the model is compiled in place before the Trainer gets it, and nothing else changes.

python examples/training/trainer.py     (needs the extra `ecosystem`)
"""

from __future__ import annotations

import tempfile

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import dlcompiler


class Texts(Dataset[dict[str, Tensor]]):
    """Random tokens, and whether the first of them is a large one."""

    def __init__(self, count: int) -> None:
        self.tokens = torch.randint(0, 100, (count, 12), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        tokens = self.tokens[k]
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": (tokens[0] >= 50).long()}


def train(folder: str, compiled: bool) -> list[float]:
    """The losses that the Trainer logs, one a step.

    `torch_compile_backend=` goes to accelerate, whose list of backends is closed: `model.compile` does what it would have done.
    """
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    arguments = TrainingArguments(
        output_dir=folder, max_steps=6, per_device_train_batch_size=16, optim="sgd", learning_rate=0.1,
        logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True, seed=0,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    if compiled:
        model.compile(backend="dlcompiler")
    trainer = Trainer(model, arguments, train_dataset=Texts(128))
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def main() -> None:
    """Train with and without, from the same start."""
    with tempfile.TemporaryDirectory() as folder:
        expected, losses = train(folder, compiled=False), train(folder, compiled=True)
    print("losses, eager:   ", expected)
    print("losses, compiled:", losses)
    assert all(abs(float(a) - float(b)) < 1e-4 for a, b in zip(losses, expected, strict=True))
    assert dlcompiler.reports()


if __name__ == "__main__":
    main()
