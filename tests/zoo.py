"""The models that the benchmarks and the end-to-end tests share.

Every builder exists at two sizes: ``real`` (what the benchmarks time) and ``tiny`` (what the tests run). Weights are
random from a fixed seed, nothing is downloaded. One-dimensional parameters (biases, norm weights) are moved off their
initial 0 and 1, because a compiler that forgot to add a zero bias would otherwise pass every test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class ZooModel:
    """A model in eval mode, inputs for it, and how to make inputs for another batch size."""

    name: str
    module: nn.Module
    inputs: Inputs
    make_inputs: Callable[..., Inputs]  # make_inputs(batch, seed=0)
    batched: bool = True  # False: the first dimension is no batch (the micro case)
    traceable: bool = True  # False: torch.compile skips it by default (RNN modules)


class PlainOutputs(nn.Module):
    """Calls a transformers model with tensors by position and returns the chosen fields as plain tensors.

    before --> after:  ModelOutput(logits=x, past_key_values=..., ...) --> x
    """

    def __init__(self, model: nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.input_names = inputs
        self.output_names = outputs

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        result = self.model(**dict(zip(self.input_names, tensors)))
        picked = tuple(result[name] for name in self.output_names)
        return picked[0] if len(picked) == 1 else picked


def build(name: str, size: str = "real") -> ZooModel:
    """The zoo's model of that name, at size ``real`` or ``tiny``, in eval mode, the same bits every time."""
    if size not in ("real", "tiny"):
        raise ValueError(f"size is 'real' or 'tiny', not {size!r}")
    if name not in BUILDERS:
        raise KeyError(f"no model {name!r} in the zoo; there are: {', '.join(BUILDERS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BUILDERS[name](size == "tiny")
        _move_vectors_off_their_defaults(model.module)
        _settle_batch_norms(model)
    model.module.eval()
    model.module.requires_grad_(False)
    return model


def _move_vectors_off_their_defaults(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)


def _settle_batch_norms(model: ZooModel) -> None:
    """Two training-mode passes with cumulative averages.

    Untouched statistics let activations sink into denormals, and timings lie.
    """
    norms = [layer for layer in model.module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = None
    model.module.train()
    with torch.no_grad():
        for seed in (1, 2):
            model.module(*model.make_inputs(2, seed=seed))
    for layer, momentum in zip(norms, momenta):
        layer.momentum = momentum


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 + seed)


def _token_inputs(vocabulary: int, *lengths: int) -> Callable[..., Inputs]:
    def make(batch: int, seed: int = 0) -> Inputs:
        generator = _generator(seed)
        return tuple(torch.randint(0, vocabulary, (batch, length), generator=generator) for length in lengths)

    return make


def _normal_inputs(*shape: int) -> Callable[..., Inputs]:
    def make(batch: int, seed: int = 0) -> Inputs:
        return (torch.randn(batch, *shape, generator=_generator(seed)),)

    return make


def _wrapped(name: str, model: nn.Module, inputs: str, outputs: str, make: Callable[..., Inputs], batch: int = 1) -> ZooModel:
    return ZooModel(name, PlainOutputs(model, tuple(inputs.split()), tuple(outputs.split())), make(batch), make)


def _config(name: str, **settings: Any) -> Any:
    """A transformers configuration by name (the classes take keywords that their signatures do not show)."""
    import transformers

    return getattr(transformers, name)(**settings)


def _bert_module(tiny: bool) -> tuple[nn.Module, int, int]:
    from transformers import BertModel

    if tiny:
        config = _config(
            "BertConfig",
            vocab_size=97,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=32,
            initializer_range=0.3,
        )
    else:
        config = _config("BertConfig")
    return BertModel(config), config.vocab_size, 11 if tiny else 128


def _bert(tiny: bool) -> ZooModel:
    module, vocabulary, length = _bert_module(tiny)
    return _wrapped("bert-base", module, "input_ids", "last_hidden_state pooler_output", _token_inputs(vocabulary, length))


def _bert_masked(tiny: bool) -> ZooModel:
    """BERT with a padding mask: row k of the batch hides its last k+1 tokens."""
    module, vocabulary, length = _bert_module(tiny)

    def make(batch: int, seed: int = 0) -> Inputs:
        tokens = torch.randint(0, vocabulary, (batch, length), generator=_generator(seed))
        shown = length - 1 - torch.arange(batch) % (length // 2)
        return tokens, (torch.arange(length)[None, :] < shown[:, None]).long()

    return _wrapped("bert-masked", module, "input_ids attention_mask", "last_hidden_state", make, batch=2)


def _gpt2(tiny: bool) -> ZooModel:
    from transformers import GPT2LMHeadModel

    if tiny:
        config = _config(
            "GPT2Config", vocab_size=97, n_positions=32, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3, use_cache=False
        )
    else:
        config = _config("GPT2Config", use_cache=False)
    return _wrapped("gpt2", GPT2LMHeadModel(config), "input_ids", "logits", _token_inputs(config.vocab_size, 11 if tiny else 128))


def _llama(tiny: bool) -> ZooModel:
    """A small Llama: rotary embedding, grouped-query attention, gated SiLU, rms-norm."""
    from transformers import LlamaForCausalLM

    if tiny:
        config = _config(
            "LlamaConfig",
            vocab_size=97,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32,
            initializer_range=0.3,
            use_cache=False,
        )
    else:
        config = _config(
            "LlamaConfig",
            vocab_size=32000,
            hidden_size=512,
            intermediate_size=1376,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=4,
            max_position_embeddings=512,
            use_cache=False,
        )
    return _wrapped(
        "llama-small",
        LlamaForCausalLM(config),
        "input_ids",
        "logits",
        _token_inputs(config.vocab_size, 11 if tiny else 128),
    )


def _t5(tiny: bool) -> ZooModel:
    from transformers import T5ForConditionalGeneration

    if tiny:
        config = _config(
            "T5Config",
            vocab_size=97,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            use_cache=False,
            decoder_start_token_id=0,
        )
    else:
        config = _config("T5Config", vocab_size=32128, use_cache=False, decoder_start_token_id=0)
    lengths = (11, 7) if tiny else (128, 64)
    return _wrapped(
        "t5-small",
        T5ForConditionalGeneration(config),
        "input_ids decoder_input_ids",
        "logits",
        _token_inputs(config.vocab_size, *lengths),
    )


def _vit(tiny: bool) -> ZooModel:
    from transformers import ViTForImageClassification

    if tiny:
        config = _config(
            "ViTConfig",
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            image_size=32,
            patch_size=8,
            num_labels=10,
            initializer_range=0.3,
        )
    else:
        config = _config("ViTConfig", num_labels=1000)
    return _wrapped(
        "vit-b16",
        ViTForImageClassification(config),
        "pixel_values",
        "logits",
        _normal_inputs(3, config.image_size, config.image_size),
    )


def _whisper(tiny: bool) -> ZooModel:
    """The encoder: two convolutions over frames, then attention over all of them. (batch, mel bins, frames)"""
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    if tiny:
        config = _config(
            "WhisperConfig",
            d_model=32,
            encoder_layers=2,
            encoder_attention_heads=4,
            encoder_ffn_dim=64,
            num_mel_bins=8,
            max_source_positions=20,
        )
    else:
        config = _config(
            "WhisperConfig", d_model=512, encoder_layers=6, encoder_attention_heads=8, encoder_ffn_dim=2048, num_mel_bins=80
        )
    return _wrapped(
        "whisper-base",
        WhisperEncoder(config),
        "input_features",
        "last_hidden_state",
        _normal_inputs(config.num_mel_bins, 2 * config.max_source_positions),
    )


def _resnet(tiny: bool) -> ZooModel:
    from transformers import ResNetForImageClassification

    if tiny:
        config = _config("ResNetConfig", embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 2, 1, 1], num_labels=10)
    else:
        config = _config("ResNetConfig", num_labels=1000)
    side = 64 if tiny else 224
    return _wrapped("resnet50", ResNetForImageClassification(config), "pixel_values", "logits", _normal_inputs(3, side, side))


def _resnet18(tiny: bool) -> ZooModel:
    """Pairs of 3x3 convolutions, as in VGG and ResNet-34 too: nearly all of the work is in them."""
    from transformers import ResNetForImageClassification

    sizes = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [2, 1]} if tiny else {
        "embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2],
    }  # fmt: skip
    config = _config("ResNetConfig", **sizes, layer_type="basic", num_labels=10 if tiny else 1000)
    side = 60 if tiny else 224
    return _wrapped("resnet18", ResNetForImageClassification(config), "pixel_values", "logits", _normal_inputs(3, side, side))


def _mobilenet(tiny: bool) -> ZooModel:
    from transformers import MobileNetV2ForImageClassification

    if tiny:
        config = _config("MobileNetV2Config", image_size=64, depth_multiplier=0.35, num_labels=10, initializer_range=0.3)
    else:
        config = _config("MobileNetV2Config", num_labels=1001)
    return _wrapped(
        "mobilenet-v2",
        MobileNetV2ForImageClassification(config),
        "pixel_values",
        "logits",
        _normal_inputs(3, config.image_size, config.image_size),
    )


def _convnext(tiny: bool) -> ZooModel:
    """The layer scale starts at 0.3, not at 1e-6, which would hide every block from the output."""
    from transformers import ConvNextForImageClassification

    if tiny:
        config = _config(
            "ConvNextConfig",
            hidden_sizes=[8, 16, 24, 32],
            depths=[1, 1, 2, 1],
            num_labels=10,
            layer_scale_init_value=0.3,
            initializer_range=0.3,
        )
    else:
        config = _config("ConvNextConfig", num_labels=1000, layer_scale_init_value=0.3)
    side = 64 if tiny else 224
    return _wrapped("convnext-t", ConvNextForImageClassification(config), "pixel_values", "logits", _normal_inputs(3, side, side))


class LstmClassifier(nn.Module):
    """Embedding, two LSTM layers, and a linear layer on the last step."""

    def __init__(self, vocabulary: int, width: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, hidden, num_layers=2, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        steps, _ = self.lstm(self.embedding(tokens))
        return self.head(steps[:, -1])


def _lstm(tiny: bool) -> ZooModel:
    vocabulary, width, hidden, classes, batch, length = (97, 8, 12, 5, 3, 7) if tiny else (10000, 128, 128, 4, 16, 64)
    make = _token_inputs(vocabulary, length)
    return ZooModel("lstm", LstmClassifier(vocabulary, width, hidden, classes), make(batch), make, traceable=False)


def _dcgan(tiny: bool) -> ZooModel:
    """The DCGAN generator: noise grows to a 64x64 picture (16x16 when tiny) through transposed convolutions."""
    noise, width, doublings, batch = (6, 4, 2, 2) if tiny else (100, 64, 4, 16)
    channels = [noise] + [width * 2**k for k in range(doublings - 1, -1, -1)]
    layers: list[nn.Module] = []
    for position, (fan_in, fan_out) in enumerate(zip(channels, channels[1:])):
        stride, padding = (1, 0) if position == 0 else (2, 1)
        layers += [
            nn.ConvTranspose2d(fan_in, fan_out, 4, stride, padding, bias=False),
            nn.BatchNorm2d(fan_out),
            nn.ReLU(),
        ]
    layers += [nn.ConvTranspose2d(channels[-1], 3, 4, 2, 1, bias=False), nn.Tanh()]
    make = _normal_inputs(noise, 1, 1)
    return ZooModel("dcgan", nn.Sequential(*layers), make(batch), make)


class Micro(nn.Module):
    """softmax(gelu(x) * sigmoid(x)) plus a layer-norm of x: row-wise reductions and no contraction."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(columns)

    def forward(self, x: Tensor) -> Tensor:
        return functional.softmax(functional.gelu(x) * torch.sigmoid(x), dim=-1) + self.norm(x)


def _micro(tiny: bool) -> ZooModel:
    rows, columns = (5, 33) if tiny else (2048, 1024)
    make = _normal_inputs(columns)
    return ZooModel("micro", Micro(columns), make(rows), make, batched=False)


BUILDERS: dict[str, Callable[[bool], ZooModel]] = {
    "bert-base": _bert,
    "gpt2": _gpt2,
    "vit-b16": _vit,
    "whisper-base": _whisper,
    "resnet50": _resnet,
    "resnet18": _resnet18,
    "mobilenet-v2": _mobilenet,
    "t5-small": _t5,
    "convnext-t": _convnext,
    "lstm": _lstm,
    "dcgan": _dcgan,
    "llama-small": _llama,
    "micro": _micro,
    "bert-masked": _bert_masked,
}

NAMES = tuple(BUILDERS)
