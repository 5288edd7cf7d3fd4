"""The training workloads that benchmarks, examples of equality with eager, and tests share: model, loss, batches, optimizer.

Each exists at two sizes: ``real`` (what the benchmarks time) and ``tiny`` (what the tests run). Weights are random from a fixed
seed; nothing is downloaded. Dropout is 0 unless asked for, so that two runs can be compared step by step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from tests.zoo import LstmClassifier

Loss = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Workload:
    """A model in training mode and how it is trained."""

    name: str
    model: nn.Module
    loss: Loss
    make_batch: Callable[[int], Any]  # of a step's number
    make_optimizer: Callable[[Any], torch.optim.Optimizer]
    traceable: bool = True  # False: torch.compile needs torch._dynamo.config.allow_rnn


def build(name: str, size: str = "real", dropout: float = 0.0) -> Workload:
    """The workload of that name; the same bits every time. `dropout` is for the transformers, everywhere that they have it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        workload = BUILDERS[name](size == "tiny", **({"dropout": dropout} if dropout else {}))
    workload.model.train()
    return workload


def _adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.01)


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=1e-4)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 + seed)


def _bert(tiny: bool, dropout: float = 0.0) -> Workload:
    from transformers import BertConfig, BertForSequenceClassification

    sizes: dict[str, Any] = {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 2048}
    vocabulary, batch, length = 30522, 8, 128
    if tiny:
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        vocabulary, batch, length = 97, 3, 11
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        max_position_embeddings=128,
        **sizes,
    )

    def make_batch(step: int) -> tuple[Tensor, Tensor]:
        generator = _generator(step % 4)
        tokens = torch.randint(0, vocabulary, (batch, length), generator=generator)
        return tokens, torch.randint(0, 2, (batch,), generator=generator)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(model(input_ids=batch[0]).logits, batch[1])

    return Workload("bert", BertForSequenceClassification(config), loss, make_batch, _adamw)


def _gpt2(tiny: bool, dropout: float = 0.0) -> Workload:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes: dict[str, Any] = {"n_embd": 512, "n_layer": 4, "n_head": 8, "n_positions": 128}
    vocabulary, batch, length = 16384, 4, 128
    if tiny:
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
        vocabulary, batch, length = 97, 3, 11
    config = GPT2Config(
        vocab_size=vocabulary,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
        **sizes,
    )

    def make_batch(step: int) -> Tensor:
        return torch.randint(0, vocabulary, (batch, length), generator=_generator(step % 4))

    def loss(model: nn.Module, tokens: Tensor) -> Tensor:
        # the last position has no next token
        targets = functional.pad(tokens[:, 1:], (0, 1), value=-100)
        return functional.cross_entropy(model(input_ids=tokens).logits.flatten(0, 1), targets.flatten())

    return Workload("gpt2", GPT2LMHeadModel(config), loss, make_batch, _adamw)


def _resnet18(tiny: bool) -> Workload:
    from transformers import ResNetConfig, ResNetForImageClassification

    if tiny:
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=10)
    else:
        config = ResNetConfig(
            embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic", num_labels=1000
        )
    batch, side, classes = (3, 32, 10) if tiny else (8, 112, 1000)

    def make_batch(step: int) -> tuple[Tensor, Tensor]:
        generator = _generator(step % 4)
        return torch.randn(batch, 3, side, side, generator=generator), torch.randint(0, classes, (batch,), generator=generator)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(model(pixel_values=batch[0]).logits, batch[1])

    return Workload("resnet18", ResNetForImageClassification(config), loss, make_batch, _sgd)


def _lstm(tiny: bool) -> Workload:
    vocabulary, width, hidden, classes, batch, length = (97, 8, 12, 5, 3, 7) if tiny else (10000, 128, 128, 4, 32, 64)

    def make_batch(step: int) -> tuple[Tensor, Tensor]:
        generator = _generator(step % 4)
        tokens = torch.randint(0, vocabulary, (batch, length), generator=generator)
        return tokens, torch.randint(0, classes, (batch,), generator=generator)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1])

    model = LstmClassifier(vocabulary, width, hidden, classes)
    return Workload("lstm", model, loss, make_batch, _adamw, traceable=False)


def _stages(channels: list[int], layer: type[nn.Module]) -> list[nn.Module]:
    stages: list[nn.Module] = []
    for fan_in, fan_out in zip(channels, channels[1:]):
        stages += [layer(fan_in, fan_out, 4, 2, 1, bias=False), nn.BatchNorm2d(fan_out)]
        stages.append(nn.LeakyReLU(0.2, inplace=True) if layer is nn.Conv2d else nn.ReLU(inplace=True))
    return stages


class Gan(nn.Module):
    """A DCGAN: generator and discriminator of 64x64 pictures (16x16 when tiny)."""

    def __init__(self, noise: int, width: int, doublings: int) -> None:
        super().__init__()
        channels = [width * 2**k for k in range(doublings)]
        self.discriminator = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True), *_stages(channels, nn.Conv2d),
            nn.Conv2d(channels[-1], 1, 4, 1, 0, bias=False), nn.Flatten(0),
        )  # fmt: skip
        self.generator = nn.Sequential(
            nn.ConvTranspose2d(noise, channels[-1], 4, 1, 0, bias=False), nn.BatchNorm2d(channels[-1]), nn.ReLU(inplace=True),
            *_stages(channels[::-1], nn.ConvTranspose2d), nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False), nn.Tanh(),
        )  # fmt: skip


def discriminator_loss(gan: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Real pictures count as 1, made ones as 0."""
    real, noise = batch
    judged_real, judged_fake = gan.discriminator(real), gan.discriminator(gan.generator(noise).detach())
    ones, zeros = torch.ones_like(judged_real), torch.zeros_like(judged_fake)
    with_logits = functional.binary_cross_entropy_with_logits
    return with_logits(judged_real, ones) + with_logits(judged_fake, zeros)


def generator_loss(gan: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Made pictures should count as 1."""
    judged = gan.discriminator(gan.generator(batch[1]))
    return functional.binary_cross_entropy_with_logits(judged, torch.ones_like(judged))


def _dcgan(tiny: bool) -> Workload:
    noise, width, doublings, batch = (6, 4, 2, 2) if tiny else (100, 64, 4, 8)
    side = 4 * 2**doublings

    def make_batch(step: int) -> tuple[Tensor, Tensor]:
        generator = _generator(step % 4)
        return torch.randn(batch, 3, side, side, generator=generator), torch.randn(batch, noise, 1, 1, generator=generator)

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=2e-4, betas=(0.5, 0.999))

    return Workload("dcgan", Gan(noise, width, doublings), generator_loss, make_batch, optimizer)


BUILDERS: dict[str, Callable[..., Workload]] = {
    "bert": _bert,
    "gpt2": _gpt2,
    "resnet18": _resnet18,
    "lstm": _lstm,
    "dcgan": _dcgan,
}
