"""An LSTM classifier of token sequences, trained with AdamW: layer, loss, clipping and update are one program.

python examples/training/lstm.py
"""

from __future__ import annotations

import torch
from shared import cross_entropy, train_beside_eager
from torch import Tensor, nn


class Classifier(nn.Module):
    """An LSTM over tokens, and a linear layer on its last step. (batch, tokens) i64 --> (batch, 3) f32"""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm, self.head = nn.Embedding(50, 16), nn.LSTM(16, 24, batch_first=True), nn.Linear(24, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(tokens))[0][:, -1])


def texts(count: int) -> tuple[Tensor, Tensor]:
    """(count, 9) random tokens, and the class that the last of them stands for."""
    tokens = torch.randint(0, 50, (count, 9))
    return tokens, tokens[:, -1] % 3


def main() -> None:
    """Train it."""
    torch.manual_seed(0)
    batches = [texts(32) for _ in range(20)]
    train_beside_eager(Classifier(), cross_entropy, lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2), batches)


if __name__ == "__main__":
    main()
