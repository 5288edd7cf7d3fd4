"""Train GPT-2 as a language model of the bytes of a text, with gradients accumulated over two batches, then let it write.

python examples/training/gpt2.py

The model is Hugging Face's, small and of random weights, as nothing is downloaded; `from_pretrained` gives real ones.
"""

from __future__ import annotations

import contextlib
import io
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import dlcompiler

LENGTH = 48


def text() -> str:
    """The Zen of Python."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        import this  # noqa: F401 - prints it
    return printed.getvalue()


def loss_fn(model: Any, tokens: Tensor) -> Tensor:
    """Cross-entropy of each next byte. (batch, length) i64"""
    logits = model(input_ids=tokens).logits
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def main() -> None:
    """Train it and write."""
    torch.manual_seed(0)
    data = torch.tensor(list(text().encode()))
    places = torch.randint(0, len(data) - LENGTH, (60, 8, 1)) + torch.arange(LENGTH)
    batches = data[places]
    config = GPT2Config(
        vocab_size=128, n_embd=64, n_layer=1, n_head=4, n_positions=LENGTH, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    step = dlcompiler.train_step(model, loss_fn, optimizer, batches[0], accumulate=2, clip_norm=1.0)
    losses = [step(batch).item() for batch in batches]
    print(f"bits a byte: {losses[0] / 0.6931:.2f} at first, {losses[-1] / 0.6931:.2f} after {len(losses) // 2} updates")
    model.eval()
    begun = torch.tensor([list(b"Beautiful is ")])
    written = model.generate(begun, attention_mask=torch.ones_like(begun), max_length=LENGTH, do_sample=False, pad_token_id=0)
    print("it writes:", bytes(written[0].tolist()).decode())
    assert losses[-1] < 0.7 * losses[0]


if __name__ == "__main__":
    main()
