"""The models of the examples: small, of the shapes that real ones have, with random weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Encoder(nn.Module):
    """A BERT-like encoder: token and position embeddings, then layers of attention and a feed-forward part.

    (batch, tokens) i64 --> (batch, tokens, width) f32
    """

    def __init__(self, layers: int = 4, width: int = 256, heads: int = 4, vocabulary: int = 1000, tokens: int = 128) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(tokens, width)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(EncoderLayer(width, heads) for _ in range(layers))

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        hidden = self.norm(self.words(tokens) + self.places(places))
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


class EncoderLayer(nn.Module):
    """Self-attention and a two-layer perceptron, each with a residual connection and a layer norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        split = (batch, tokens, self.heads, width // self.heads)
        query, key, value = (part(x).view(split).transpose(1, 2) for part in (self.query, self.key, self.value))
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        x = self.first_norm(x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, width)))
        return self.second_norm(x + self.down(nn.functional.gelu(self.up(x))))


class Classifier(nn.Module):
    """A text classifier around an LSTM. (batch, tokens) i64 --> (batch, classes) f32"""

    def __init__(self, vocabulary: int = 1000, width: int = 64, classes: int = 4) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        _, (last, _) = self.lstm(self.words(tokens))
        return self.head(last[-1]).softmax(-1)


def encoder() -> tuple[nn.Module, tuple[Tensor]]:
    """The encoder and a batch of one: what `dlcompiler bench examples/models.py:encoder` asks for."""
    torch.manual_seed(0)
    return Encoder().eval(), (torch.randint(0, 1000, (1, 128)),)


def classifier() -> tuple[nn.Module, tuple[Tensor]]:
    """The classifier and a batch of 16."""
    torch.manual_seed(0)
    return Classifier().eval(), (torch.randint(0, 1000, (16, 64)),)
