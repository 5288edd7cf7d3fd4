"""One small model of `transformers`, compiled and compared: the process behind `tests.bench.families`.

JSON requests on stdin, one answer a line on stdout. A crash ends this process alone; the parent says which model it was.
"""

from __future__ import annotations

import copy
import inspect
import json
import os
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from dlcompiler.ir.errors import UnsupportedError
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import dlcompiler

# What makes a model of any family small, by the names that configurations use. A name that a configuration lacks is left out.
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "encoder_hidden_size", "decoder_hidden_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_decoder_layers", "decoder_num_layers", "encoder_num_layers", "depth"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim", "d_ff", "n_inner"), 64),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "hidden_dim", "mlp_dim"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k"), 2),
    "vocab_size": 99, "head_dim": 8, "d_kv": 8, "max_position_embeddings": 64, "n_positions": 64, "projection_dim": 32,
    "image_size": 32, "patch_size": 8, "num_mel_bins": 16, "max_source_positions": 20, "embedding_size": 32,
    "word_embed_proj_dim": 32, "state_size": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1, "use_cache": False, "num_queries": 10,
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "rotary_dim", "mamba_d_head", "mamba_head_dim"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "mamba_d_state"), 8), "q_lora_rank": 16, "kv_lora_rank": 16,
    "entity_vocab_size": 20, "entity_emb_size": 16,
}  # fmt: skip
THREE_PARTS = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
# Settings that a family needs beside those, by its name and those of its parts; None: the family's own
BY_FAMILY: dict[str, dict[str, Any]] = {
    "mamba2": {"num_heads": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [4, 4], "attn_layers": ["local", "lsh"], "num_buckets": 4},
    "efficientnet": {"width_coefficient": 0.3, "depth_coefficient": 0.3, "hidden_dim": 384},
    **dict.fromkeys(("convnext", "convnextv2"), {"image_size": 64, "patch_size": 4, "num_stages": None}),
    **dict.fromkeys(("swin", "swinv2", "donut-swin", "maskformer-swin"), {"patch_size": 2, "window_size": 2, "depths": [1] * 4}),
    "levit": {"image_size": 64, "patch_size": 16},
    "audio-spectrogram-transformer": {"max_length": 40},
    "speech_to_text": {"input_feat_per_channel": 16},
    "lilt": {"hidden_size": 48, "channel_shrink_ratio": 2},
    "layoutlmv3": {"hidden_size": 36, "coordinate_size": 6, "shape_size": 6, "input_size": 32},
    "patchtst": {"context_length": 32, "num_input_channels": 3, "patch_length": 8, "patch_stride": 8},
    "patchtsmixer": {"context_length": 32, "num_input_channels": 3, "patch_length": 8, "patch_stride": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "decision_transformer": {"state_dim": 5, "act_dim": 3, "hidden_size": 32},
    "hiera": {"image_size": [32, 32], "embed_dim": 16},
    "vivit": {"num_frames": 4, "tubelet_size": [2, 8, 8]},
    "videomae": {"num_frames": 4, "tubelet_size": 2},
    "timesformer": {"num_frames": 2},
    "dac": {"encoder_hidden_size": 8, "decoder_hidden_size": 64, "hidden_size": 128},
    "encodec": {"num_filters": 4, "hidden_size": 16, "codebook_size": 32, "codebook_dim": 16},
    **dict.fromkeys(("qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text", "qwen3_5_text"), THREE_PARTS),
    # keys and values of all heads come from one short vector
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa"), {"num_key_value_heads": 4}),
    **dict.fromkeys(("axk1", "axk2", "sarvam_mla", "longcat_flash", "esmc"), {"num_key_value_heads": 4}),
}  # fmt: skip
TOKENS, BATCH, AUDIO = 16, 2, 4000
LARGEST = 40_000_000  # parameters; a family that the table above does not make small is left out
RELATIVE, WORSE = 2e-5, 8.0  # an error counts if it is more than WORSE times eager's, or RELATIVE of the largest number


class NotBuiltError(Exception):
    """The family has no small model that eager runs; the message says why."""


@dataclass
class Verdict:
    """What became of a model: each part of the work that was right, and what was not.

    calls    calls of ATen and the host in its programs, with reasons; refused: by train_step, with reasons
    breaks   why Dynamo cut the graph, where it did
    """

    name: str
    dtype: str
    right: int = 0
    skipped: int = 0
    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    breaks: int = 0
    parameters: int = 0


def small_settings(configuration: type) -> dict[str, Any]:
    """Constructor arguments for a small model of the family, its parts' included."""
    known = set(inspect.signature(configuration.__init__).parameters) | set(getattr(configuration, "__annotations__", {}))
    aliases = getattr(configuration, "attribute_map", {})
    settings = {}
    for name, value in SMALL.items():
        actual = aliases.get(name, name)
        if actual in known:
            own = getattr(configuration, actual, None)  # a family of stages has a number for each
            settings[actual] = [value] * len(own) if isinstance(own, list | tuple) and not isinstance(value, list) else value
    for name in known:
        if "dropout" in name or "drop_path" in name or name.endswith(("_pdrop", "layerdrop", "mask_time_prob", "jitter_noise")):
            parameter = inspect.signature(configuration.__init__).parameters.get(name)
            if parameter is not None and isinstance(parameter.default, float):
                settings[name] = 0.0
    for name, value in BY_FAMILY.get(getattr(configuration, "model_type", ""), {}).items():
        settings[name] = value
    settings = {name: value for name, value in settings.items() if value is not None}
    for part, its_class in getattr(configuration, "sub_configs", {}).items():
        if hasattr(its_class, "model_type") and its_class is not configuration and its_class.model_type:
            settings[part] = small_settings(its_class)
    return settings


def build(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """The family's base model and inputs for it. Raises NotBuiltError if eager does not run it."""
    from transformers import AutoModel
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    torch.manual_seed(0)
    try:
        config = CONFIG_MAPPING[name](**small_settings(CONFIG_MAPPING[name]))
        with torch.device("meta"):
            size = sum(p.numel() for p in AutoModel.from_config(config).parameters())
        if size > LARGEST:
            raise NotBuiltError(f"{size:,} parameters")
        model = AutoModel.from_config(config).eval()
        for each in model.parameters():
            if each.dim() == 1:
                each.data.add_(torch.randn_like(each), alpha=0.1)
        inputs = inputs_of(model)
        with torch.no_grad():
            try:
                results = tensors_of(model(**inputs))
            except (TypeError, ValueError, AttributeError, RuntimeError):
                if "input_ids" not in inputs or "pixel_values" not in inputs:
                    raise
                inputs.pop("pixel_values")  # a model of texts and images, whose processor says where an image stands in the text
                results = tensors_of(model(**inputs))
    except Exception as error:
        raise NotBuiltError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
    if not results:
        raise NotBuiltError("gives no floating-point tensor")
    return model, inputs


def inputs_of(model: Any) -> dict[str, Any]:
    """Inputs by the names that the model's forward takes."""
    takes = inspect.signature(model.forward).parameters
    config = model.config
    found: dict[str, Any] = {}
    if "input_ids" in takes:
        found["input_ids"] = torch.randint(3, 99, (BATCH, TOKENS))
    if "decoder_input_ids" in takes and (config.is_encoder_decoder or "input_ids" not in takes):
        found["decoder_input_ids"] = torch.randint(3, 99, (BATCH, TOKENS // 2))
    if "pixel_values" in takes:
        vision = getattr(config, "vision_config", config)
        side = getattr(vision, "image_size", 64) or 64
        height, width = side if isinstance(side, (list, tuple)) else (side, side)
        frames = (config.num_frames,) if config.model_type in ("videomae", "timesformer", "vivit") else ()
        found["pixel_values"] = torch.randn(BATCH, *frames, getattr(vision, "num_channels", 3) or 3, height, width)
    if "input_values" in takes:
        is_spectrogram, channels = hasattr(config, "num_mel_bins"), (1,) if config.model_type in ("dac", "encodec") else ()
        shape = (config.max_length, config.num_mel_bins) if is_spectrogram else (*channels, AUDIO)
        found["input_values"] = torch.randn(BATCH, *shape)
    if "input_features" in takes:
        bins = getattr(config, "num_mel_bins", None) or getattr(getattr(config, "audio_config", None), "num_mel_bins", 80)
        shape = (bins, 2 * SMALL["max_source_positions"])
        is_turned = config.model_type == "speech_to_text"
        found["input_features"] = (
            torch.randn(BATCH, 40, config.input_feat_per_channel) if is_turned else torch.randn(BATCH, *shape)
        )
    if "bbox" in takes:
        found["bbox"] = torch.randint(0, 50, (BATCH, TOKENS, 4)).sort().values
    if "past_values" in takes and hasattr(config, "context_length"):
        found["past_values"] = torch.randn(BATCH, config.context_length, getattr(config, "num_input_channels", 1))
    if "states" in takes and hasattr(config, "act_dim"):
        length = 5
        found["states"], found["actions"] = (
            torch.randn(BATCH, length, config.state_dim),
            torch.randn(BATCH, length, config.act_dim),
        )
        found["rewards"] = found["returns_to_go"] = torch.randn(BATCH, length, 1)
        found["timesteps"], found["attention_mask"] = torch.arange(length).repeat(BATCH, 1), torch.ones(BATCH, length)
    return found


def tensors_of(results: Any) -> list[Tensor]:
    """Floating-point tensors in a model's outputs."""
    if hasattr(results, "to_tuple"):
        results = results.to_tuple()
    return [x for x in pytree.tree_leaves(results) if isinstance(x, Tensor) and x.is_floating_point()]


def loss_of(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """One number that every output has a part in, by weights that depend on shapes alone."""
    total = torch.zeros(())
    for x in tensors_of(model(**inputs)):
        weights = torch.cos(torch.arange(x.numel(), dtype=torch.float32)).view(x.shape).to(x.dtype)
        total = total + (x * weights).sum().float() if x.dtype is not torch.float64 else total.double() + (x * weights).sum()
    return total


def check(name: str, training: bool) -> Verdict:
    """The model compiled: its results, then gradients of all parameters, then one step of SGD."""
    verdict = Verdict(name, "float32")
    try:
        model, inputs = build(name)
    except NotBuiltError as error:
        verdict.skipped = 1
        verdict.calls = {f"not built: {error}": 0}
        return verdict
    verdict.parameters = sum(p.numel() for p in model.parameters())
    parts: list[tuple[str, Callable[[nn.Module, dict[str, Any]], Callable[..., Any] | None]]] = [("forward", forward)]
    if training:
        parts += [("gradients", gradients), ("train_step", step)]
    calls: Counter[str] = Counter()
    for part, work in parts:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        dlcompiler.reset()
        try:
            complaint = work(model, inputs)  # type: ignore[arg-type]
        except UnsupportedError as error:
            if part != "train_step":  # which refuses what Dynamo cannot capture whole
                verdict.failed.append(f"{part}: {error}")
            verdict.refused.append(f"{part}: {' '.join(str(error).split())[:200]}")
            continue
        except Exception as error:  # noqa: BLE001 - a survey: whatever breaks is one line of it
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{os.path.basename(where.filename)}:{where.lineno}"
            verdict.failed.append(f"{part}: {type(error).__name__} at {place}: {' '.join(str(error).split())[:500]}")
            continue
        for report in dlcompiler.reports():
            calls.update(f"{a.name} ({a.reason})" for a in (*report.aten, *report.host))
        verdict.breaks = max(verdict.breaks, sum(torch._dynamo.utils.counters["graph_break"].values()))
        if complaint is None:
            verdict.skipped += 1
        elif complaint:
            verdict.wrong.append(f"{part}: {complaint}")
        else:
            verdict.right += 1
    verdict.calls = dict(calls)
    return verdict


def forward(model: nn.Module, inputs: dict[str, Any]) -> str:
    """What differs in a call without gradients; empty if nothing does."""
    with torch.no_grad():
        eager = tensors_of(model(**inputs))
        truth = _judge(lambda: tensors_of(_wide(model)(**_wide_inputs(inputs))), eager)
        ours = tensors_of(torch.compile(model, backend="dlcompiler")(**inputs))
    return _difference(zip(map(str, range(len(eager))), ours, eager, truth, strict=True))


def _gradients(model: nn.Module, call: Callable[..., Any], inputs: dict[str, Any]) -> dict[str, Tensor | None]:
    model.zero_grad()
    call(model, inputs).backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def gradients(model: nn.Module, inputs: dict[str, Any]) -> str | None:
    """What differs in the gradients of the parameters; None if eager itself has none, or takes random numbers."""
    model = copy.deepcopy(model).train()
    try:
        eager, again = (_gradients(model, loss_of, inputs) for _ in range(2))
    except RuntimeError:  # no output depends on a parameter
        return None
    if any(g is not None and not _near(g, again[n], g, 1e-3) for n, g in eager.items()):  # type: ignore[arg-type]
        return None
    truth = _judge(lambda: _gradients(_wide(model), loss_of, _wide_inputs(inputs)), eager)
    ours = _gradients(model, torch.compile(loss_of, backend="dlcompiler"), inputs)
    for name, g in eager.items():
        if g is None and ours[name] is not None and ours[name].count_nonzero():  # type: ignore[union-attr]
            return f"gradient of {name}, where eager has none"
        if g is not None and ours[name] is None:
            return f"no gradient of {name}"
    kept = [name for name, g in eager.items() if g is not None]
    floor = _rounding(eager)
    return _difference(((name, ours[name], eager[name], truth[name]) for name in kept), dict.fromkeys(kept, floor))  # type: ignore[misc]


def _rounding(gradients: dict[str, Tensor | None]) -> float:
    """What does not count: a sum that comes to zero, as a key's bias's gradient, has the rounding of what was added up."""
    return 2.0**-22 * max(float(g.abs().max()) for g in gradients.values() if g is not None and g.numel())


def step(model: nn.Module, inputs: dict[str, Any]) -> str | None:
    """What differs in the parameters after one step; None if `gradients` has nothing to compare either."""
    model = copy.deepcopy(model).train()
    try:
        eager, again = (_gradients(model, loss_of, inputs) for _ in range(2))
    except RuntimeError:
        return None
    if any(g is not None and not _near(g, again[n], g, 1e-3) for n, g in eager.items()):  # type: ignore[arg-type]
        return None
    truth = _judge(lambda: _gradients(_wide(model), loss_of, _wide_inputs(inputs)), eager)
    model.zero_grad()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    dlcompiler.train_step(model, loss_of, optimizer, inputs)(inputs)
    moved = {name: before[name] - p.detach() for name, p in model.named_parameters()}
    kept = [name for name, g in eager.items() if g is not None]
    # a difference of two parameters has the rounding of the parameters
    floor = _rounding(eager)
    sizes = {n: floor + 2.0**-22 * float(before[n].abs().max()) if before[n].numel() else 0.0 for n in kept}
    return _difference(((n, moved[n], eager[n], truth[n]) for n in kept), sizes)  # type: ignore[misc]


def _judge(wide: Callable[[], Any], eager: Any) -> Any:
    """Results in float64; eager's own for a model that has float32 written into it."""
    try:
        return wide()
    except RuntimeError:
        return eager


def _wide(model: nn.Module) -> nn.Module:
    wide = copy.deepcopy(model).double()
    for module in wide.modules():  # torch's grouped product of experts takes no float64
        if hasattr(getattr(module, "config", None), "_experts_implementation"):
            module.config._experts_implementation = "eager"  # type: ignore[union-attr]
    return wide


def _wide_inputs(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}


def _difference(quadruples: Iterator[Any] | Any, floors: dict[str, float] | None = None) -> str:
    """What is wrong with the first of (name, ours, eager's, float64's); `floors`: errors that do not count, for each name."""
    for name, mine, eager, truth in quadruples:
        if mine.shape != eager.shape or mine.dtype is not eager.dtype:
            return f"{name} is {mine.dtype} {tuple(mine.shape)}, not {eager.dtype} {tuple(eager.shape)}"
        if floors is None and mine.stride() != eager.stride() and not name.count("."):
            return f"{name} has strides {mine.stride()}, not {eager.stride()}"
        if not _near(mine, eager, truth, RELATIVE, 0.0 if floors is None else floors[name]):
            return f"{name} is off by {_error(mine, truth):.1e} (eager by {_error(eager, truth):.1e})"
    return ""


def _near(mine: Tensor, eager: Tensor, truth: Tensor, relative: float, extra: float = 0.0) -> bool:
    if not mine.numel():
        return True
    if not torch.equal(mine.isfinite(), eager.isfinite()):
        return False
    finite = truth[truth.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    return _error(mine, truth) <= max(WORSE * _error(eager, truth), relative * scale) + extra


def _error(mine: Tensor, truth: Tensor) -> float:
    difference = (mine.double() - truth.double()).abs()
    difference = difference[difference.isfinite()]
    return float(difference.max()) if difference.numel() else 0.0


def main() -> int:
    """Answer requests until there are no more."""
    answers, sys.stdout = sys.stdout, sys.stderr  # models print too
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        answers.write(json.dumps(asdict(check(request["name"], request["training"]))) + "\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
