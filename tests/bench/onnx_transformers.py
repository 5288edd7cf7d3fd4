"""Small models of `transformers`, exported by `torch.onnx.export(dynamo=True)`: ours against onnxruntime, and the way
through ONNX against the way through torch.

    python -m tests.bench.onnx_transformers [--only 'bert*'] [--dynamic] [--opset 18]

Prints for each architecture the error relative to onnxruntime; how many launches of kernels, library calls, calls of ATen or the
host and attention kernels the program has by either way; and the time of a call. Weights are random.
"""

from __future__ import annotations

import argparse
import fnmatch
import statistics
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

VOCABULARY, LENGTH, WIDTH = 99, 16, 32
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
}  # fmt: skip
CAUSAL = {**SMALL, "use_cache": False, "num_key_value_heads": 2, "max_position_embeddings": 64}

# name -> (config class, model class, config, kind of input)
TEXT = {
    "bert": ("BertConfig", "BertModel", SMALL),
    "roberta": ("RobertaConfig", "RobertaModel", SMALL),
    "electra": ("ElectraConfig", "ElectraModel", {**SMALL, "embedding_size": 16}),
    "albert": ("AlbertConfig", "AlbertModel", {**SMALL, "embedding_size": 16}),
    "distilbert": (
        "DistilBertConfig",
        "DistilBertModel",
        {"vocab_size": VOCABULARY, "dim": WIDTH, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    ),
    "mpnet": ("MPNetConfig", "MPNetModel", SMALL),
    "deberta": ("DebertaV2Config", "DebertaV2Model", {**SMALL, "pooler_hidden_size": WIDTH}),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 2, "n_head": 4, "use_cache": False},
    ),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", {**SMALL, "use_cache": False}),
    "opt": ("OPTConfig", "OPTForCausalLM", {**SMALL, "ffn_dim": 64, "word_embed_proj_dim": WIDTH, "use_cache": False}),
    "bloom": (
        "BloomConfig",
        "BloomForCausalLM",
        {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "n_layer": 2, "n_head": 4, "use_cache": False},
    ),
    "llama": ("LlamaConfig", "LlamaForCausalLM", CAUSAL),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**CAUSAL, "sliding_window": None}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", CAUSAL),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", {**CAUSAL, "head_dim": 8}),
    "phi": ("PhiConfig", "PhiForCausalLM", CAUSAL),
    "stablelm": ("StableLmConfig", "StableLmForCausalLM", CAUSAL),
    "olmo": ("OlmoConfig", "OlmoForCausalLM", CAUSAL),
}
IMAGE: dict[str, Any] = {**{k: v for k, v in SMALL.items() if k != "vocab_size"}, "image_size": 32, "patch_size": 8}
PICTURES = {
    "vit": ("ViTConfig", "ViTModel", IMAGE),
    "deit": ("DeiTConfig", "DeiTModel", IMAGE),
    "beit": ("BeitConfig", "BeitModel", IMAGE),
    "clip-vision": ("CLIPVisionConfig", "CLIPVisionModel", IMAGE),
    "dinov2": ("Dinov2Config", "Dinov2Model", IMAGE),
    "convnext": ("ConvNextConfig", "ConvNextModel", {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}),
    "resnet": (
        "ResNetConfig",
        "ResNetModel",
        {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1], "layer_type": "basic"},
    ),
}
NAMES = (*TEXT, *PICTURES, "whisper-encoder")


class First(torch.nn.Module):
    """A model of transformers that takes one tensor and gives its first output."""

    def __init__(self, model: torch.nn.Module, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(**{self.name: x})[0]


def build(name: str) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """The model in eval mode, and inputs for it."""
    import transformers

    torch.manual_seed(0)
    if name == "whisper-encoder":
        config = transformers.WhisperConfig(
            vocab_size=VOCABULARY, d_model=WIDTH, encoder_layers=2, decoder_layers=1, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, num_mel_bins=8, max_source_positions=20,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        )  # fmt: skip
        return First(transformers.WhisperModel(config).encoder.eval(), "input_features"), (torch.randn(1, 8, 40),)
    config_class, model_class, settings = {**TEXT, **PICTURES}[name]
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**settings)).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    if name in TEXT:
        return First(model, "input_ids"), (torch.randint(2, VOCABULARY, (1, LENGTH)),)
    return First(model, "pixel_values"), (torch.randn(1, 3, 32, 32),)


def seconds_of(call: Callable[[], Any], rounds: int = 20) -> float:
    """The median time of a call."""
    call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def counts(compiled: Any) -> dict[str, int]:
    """Launches, library calls, calls of ATen or the host, and attention kernels of a program."""
    report = compiled.report()
    attention = sum("attention" in getattr(step, "op", "") for step in compiled.program.steps)
    return {
        "kernels": report.kernels,
        "library": sum(report.library.values()),
        "other": len(report.aten) + len(report.host),
        "attention": attention,
    }


def compare(name: str, opset: int, dynamic: bool) -> str:
    """One row of the table."""
    import numpy as np
    import onnxruntime

    import dlcompiler

    module, inputs = build(name)
    shapes = ({0: torch.export.Dim.DYNAMIC},) if dynamic else None
    if dynamic:  # of one row the exporter would write the batch into constants
        inputs = tuple(torch.cat([x, x.flip(0)]) for x in inputs)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "model.onnx"
        torch.onnx.export(module, inputs, str(path), dynamo=True, verbose=False, opset_version=opset, dynamic_shapes=shapes)
        arrays = [x.numpy() for x in inputs]
        session = onnxruntime.InferenceSession(str(path))
        feeds = dict(zip((i.name for i in session.get_inputs()), arrays))
        (expected,) = session.run(None, feeds)
        ours = dlcompiler.compile(str(path))
        result = ours(*arrays)
        error = float(np.abs(result - expected).max() / max(np.abs(expected).max(), 1e-30))
        direct = dlcompiler.compile(module, inputs)
        a, b = counts(ours), counts(direct)
        times = [
            seconds_of(lambda: ours(*inputs)),
            seconds_of(lambda: direct(*inputs)),
            seconds_of(lambda: session.run(None, feeds)),
        ]
    shown = " | ".join(f"{a[k]}/{b[k]}" for k in a)
    return f"| {name} | {error:.1e} | {shown} | {' | '.join(f'{1e6 * t:.0f}' for t in times)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.onnx_transformers", description=__doc__)
    parser.add_argument("--only", metavar="PATTERN", default="*")
    parser.add_argument("--opset", type=int, default=18)
    parser.add_argument("--dynamic", action="store_true", help="export with an unknown batch")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    print(
        "| model | error | kernels, onnx/torch | library | aten, host | attention | us by onnx | us by torch | us onnxruntime |"
    )
    print("| --- | --- | --- | --- | --- | --- | ---: | ---: | ---: |")
    failed = 0
    for name in NAMES:
        if fnmatch.fnmatch(name, options.only):
            try:
                print(compare(name, options.opset, options.dynamic), flush=True)
            except Exception as error:  # noqa: BLE001 - one model that fails leaves the others
                failed += 1
                place = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{Path(place.filename).name}:{place.lineno}"
                print(f"| {name} | failed: {type(error).__name__}: {str(error)[:300]} ({where}) |")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
