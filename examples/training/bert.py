"""Fine-tune BERT to classify sequences: masks, dropout, groups of parameters, warm-up, and evaluation in between.

python examples/training/bert.py

The model is Hugging Face's, small and of random weights, as nothing is downloaded; `from_pretrained` gives real ones.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, get_linear_schedule_with_warmup

import dlcompiler

STEPS, LENGTH, MARK = 40, 16, 7


def texts(count: int) -> dict[str, Tensor]:
    """Token sequences of several lengths, padded, and whether one of their tokens is MARK."""
    tokens = torch.randint(10, 100, (count, LENGTH))
    mask = torch.arange(LENGTH) < torch.randint(LENGTH // 2, LENGTH + 1, (count, 1))
    kinds = torch.randint(0, 2, (count,))
    places = torch.randint(1, LENGTH // 2, (count,))
    tokens[torch.arange(count), places] = torch.where(kinds.bool(), MARK, tokens[torch.arange(count), places])
    return {"input_ids": tokens * mask, "attention_mask": mask.long(), "kinds": kinds}


def loss_fn(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Cross-entropy of the classes."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return functional.cross_entropy(logits, batch["kinds"])


def accuracy(model: nn.Module, batch: dict[str, Tensor]) -> float:
    """The share that is right, without dropout; the model is in training mode again afterwards."""
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    model.train()
    return (logits.argmax(1) == batch["kinds"]).float().mean().item()


def main() -> None:
    """Fine-tune it."""
    torch.manual_seed(0)
    config = BertConfig(vocab_size=100, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=128)
    model = BertForSequenceClassification(config).train()
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-3)
    schedule = get_linear_schedule_with_warmup(optimizer, 5, STEPS)
    held_out = texts(200)
    step = dlcompiler.train_step(model, loss_fn, optimizer, texts(32), clip_norm=1.0)
    for k in range(STEPS):
        loss = step(texts(32))
        schedule.step()
        if k % 10 == 9:
            print(f"step {k + 1:3}: loss {loss:.4f}, {accuracy(model, held_out):.0%} right of what it has not seen")
    assert accuracy(model, held_out) > 0.9
    assert len(step.reports) == 1, "warm-up, evaluation and new masks compiled nothing"


if __name__ == "__main__":
    main()
