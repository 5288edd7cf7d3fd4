"""Families of models of `transformers`, small, with random weights: which are right when compiled, and the names of the others.

python -m tests.bench.families [--families 'bert,mamba*' | --all] [--forward] [--jobs 2] [--resume FILE]

Each family's base model is made small by its configuration, and goes through `torch.compile(backend="dlcompiler")` (results, then
the gradients of all parameters) and `dlcompiler.train_step` (parameters after a step of SGD). Float64 is the judge: an error
counts if it is clearly larger than eager's. Models run in processes of their own: a crash or a hang is a line of the answer.
With `--resume` verdicts are kept in a file, and families that are in it do not run again.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import time
from pathlib import Path
from typing import Any

from tests.bench import harness
from tests.bench.opinfo import check_all

# by what sets them apart, and not by how they are trained: no two of a line are the same code
FAMILIES = """
albert bert big_bird bros camembert canine convbert data2vec-text deberta deberta-v2 distilbert electra ernie esm fnet funnel
ibert
layoutlm layoutlmv3 lilt longformer luke markuplm megatron-bert mobilebert modernbert mpnet mra nystromformer rembert roberta
roc_bert
roformer squeezebert tapas xlm xlnet xmod yoso
bloom codegen cohere cohere2 ctrl falcon gemma gemma2 gemma3_text glm glm4 gpt2 gpt_bigcode gpt_neo gpt_neox gptj granite
llama
mistral mpt nemotron olmo olmo2 openai-gpt opt persimmon phi phi3 qwen2 qwen3 smollm3 stablelm starcoder2 xglm
dbrx deepseek_v2 deepseek_v3 gpt_oss granitemoe jetmoe llama4_text mixtral olmoe phimoe qwen2_moe qwen3_moe
bamba falcon_h1 falcon_mamba jamba lfm2 mamba mamba2 qwen3_next recurrent_gemma rwkv xlstm zamba2
bart blenderbot led longt5 m2m_100 marian mbart mt5 pegasus prophetnet switch_transformers t5 t5gemma umt5
beit bit convnext convnextv2 cvt data2vec-vision deit dinov2 dpt efficientnet focalnet glpn hiera ijepa levit mobilenet_v1
mobilenet_v2
mobilevit mobilevitv2 poolformer pvt pvt_v2 regnet resnet segformer swiftformer swin swinv2 textnet timesformer vit vit_mae
vitdet
vivit yolos
conditional_detr dab-detr deformable_detr detr mask2former maskformer rt_detr table-transformer
audio-spectrogram-transformer data2vec-audio encodec hubert moonshine sew speech_to_text unispeech wav2vec2 wav2vec2-bert
wav2vec2-conformer wavlm whisper
align altclip blip bridgetower clip clipseg flava groupvit git owlvit siglip vilt visual_bert xclip
decision_transformer patchtsmixer patchtst perceiver
""".split()


def table(verdicts: list[dict[str, Any]]) -> str:
    """One row: families by what became of them."""
    built = [v for v in verdicts if v["right"] or v["wrong"] or v["failed"]]
    right = [v for v in built if not v["wrong"] and not v["failed"]]
    native = [v for v in right if not v["calls"]]
    header = ["families", "eager runs the small model", "right", "of them without ATen", "other numbers", "errors"]
    wrong, failed = sum(bool(v["wrong"]) for v in built), sum(bool(v["failed"]) for v in built)
    return harness.table(header, [list(map(str, (len(verdicts), len(built), len(right), len(native), wrong, failed)))])


def lines(verdicts: list[dict[str, Any]]) -> str:
    """A line for each family."""
    said = []
    for v in sorted(verdicts, key=lambda v: v["name"]):
        complaints = [" ".join(c.split())[:300] for kind in ("wrong", "failed") for c in v[kind]]
        if not v["right"] and not complaints:
            state = f"left out, {next(iter(v['calls']), '')}"
        elif complaints:
            state = "; ".join(complaints)
        else:
            parts = f"right ({v['right']} of {v['right'] + v['skipped']} parts)"
            cut = f", cut by Dynamo in {v['breaks']} places" if v.get("breaks") else ""
            refused = f", refused: {v['refused'][0]}" if v.get("refused") else ""
            state = f"{parts}{cut}{refused}, {'; '.join(v['calls']) or 'native'}"
        said.append(f"* {v['name']}: {state}")
    return "\n".join(said)


def main() -> int:
    """Runs the survey."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", help="patterns of names of model types, separated by commas")
    parser.add_argument("--all", action="store_true", help="every model type of the installed transformers")
    parser.add_argument("--forward", action="store_true", help="no gradients and no step")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=600, help="after which a model counts as hanging")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="JSON lines to go on from and add to")
    arguments = parser.parse_args()
    began = time.perf_counter()
    names = FAMILIES
    if arguments.all or arguments.families:
        from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

        patterns = (arguments.families or "*").split(",")
        names = [name for name in MODEL_MAPPING_NAMES if any(fnmatch.fnmatchcase(name, each) for each in patterns)]
    done: list[dict[str, Any]] = []
    if arguments.resume and arguments.resume.exists():
        done = [v for v in map(json.loads, arguments.resume.read_text().splitlines()) if v["name"] in names]
    finished = {v["name"] for v in done}
    tasks = [{"name": n, "dtype": "float32", "training": not arguments.forward} for n in names if n not in finished]
    kept = arguments.resume.open("a") if arguments.resume else None
    verdicts = done + check_all(tasks, arguments.jobs, arguments.seconds, kept, module="families_worker")
    if kept is not None:
        kept.close()
    harness.print_machine(1)
    print(table(verdicts) + "\n\n" + lines(verdicts))
    harness.log(f"{len(tasks)} checked in {time.perf_counter() - began:.0f} s")
    return 1 if any(v["wrong"] or v["failed"] for v in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
