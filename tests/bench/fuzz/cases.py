"""Case number `index` of a run: what file, and which command is to read it. The same seed and index give the same case."""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tests.bench.fuzz import mutations, seeds

SHORT = 400  # bytes: models whose every truncation is tried


@dataclass(frozen=True)
class Case:
    """`name` of the file tells its kind; `command` is a command line with MODEL in place of the path."""

    name: str
    data: bytes
    command: tuple[str, ...]
    said: str


def _onnx(data: bytes, said: str, random: Random) -> Case:
    return Case("model.onnx", data, _command(random), said)


def _command(random: Random) -> tuple[str, ...]:
    return random.choice(
        (("compile", "MODEL"), ("compile", "MODEL"), ("inspect", "MODEL", "--check"), ("run", "MODEL", "--fill", "random"))
    )


@functools.cache
def _truncations() -> tuple[list[tuple[str, bytes]], list[int]]:
    """Short models, each of another operator, and the running total of their lengths."""
    chosen: dict[str, tuple[str, bytes]] = {}
    for name, model in seeds.models():
        data = model.SerializeToString(deterministic=True)
        if len(data) <= SHORT and model.graph.node:
            chosen.setdefault(model.graph.node[0].op_type, (name, data))
    models = list(chosen.values())
    return models, list(itertools.accumulate(len(data) for _, data in models))


def truncation(index: int, random: Random) -> Case:
    """Every offset of one short model after the other."""
    models, ends = _truncations()
    index %= ends[-1]
    which = bisect.bisect_right(ends, index)
    name, data = models[which]
    cut, said = mutations.truncate(data, index - (ends[which] - len(data)))
    return Case("model.onnx", cut, ("compile", "MODEL"), f"{name}: {said}")


def bits(index: int, random: Random) -> Case:
    name, model = random.choice(seeds.models())
    change = random.choice((mutations.flip_bits, mutations.flip_bits, mutations.rearrange_bytes))
    data, said = change(model.SerializeToString(deterministic=True), random)
    return _onnx(data, f"{name}: {said}", random)


def structure(index: int, random: Random) -> Case:
    own = list(seeds.own_models().items())
    name, model = random.choice(own if random.random() < 0.3 else seeds.models())
    data, said = mutations.change_structure(model, random)
    return _onnx(data, f"{name}: {said}", random)


def text(index: int, random: Random) -> Case:
    data, said = mutations.change_text(random.choice(seeds.texts()), random)
    return Case("model.txt", data, _command(random), said)


def artifact(index: int, random: Random) -> Case:
    data, said = mutations.change_artifact(random.choice(seeds.artifacts()), random)
    return Case("model.dlc", data, _command(random), said)


KINDS: dict[str, Callable[[int, Random], Case]] = {
    "truncation": truncation,
    "bits": bits,
    "structure": structure,
    "text": text,
    "artifact": artifact,
}
# of ten cases: two cut short, two with bits flipped, four with another structure, one each of the other two formats
TURNS = ("truncation", "bits", "structure", "text", "structure", "truncation", "bits", "structure", "artifact", "structure")


def make(seed: int, index: int, kind: str | None = None) -> Case:
    """The case. `kind` restricts it to one of KINDS."""
    chosen = kind or TURNS[index % len(TURNS)]
    number = index if kind else index // len(TURNS) * TURNS.count(chosen) + TURNS[: index % len(TURNS)].count(chosen)
    return KINDS[chosen](number, Random(f"{seed}/{chosen}/{number}"))
