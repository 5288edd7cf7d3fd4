"""Decisions of the tuner on disk, beside the machine code: for one problem, one machine and one number of threads.

An entry is JSON: `{"answers": {question key: answer}, "asked": [keys], "before": seconds, "after": seconds, "budget": null}`. It
is written whole, carries a checksum as every entry does, and a damaged one is a miss with one warning. What was left because
time was up is kept too, with the budget of that time: who compiles the same with no more time gets the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata

import dlcompiler.codegen
import dlcompiler.ir
import dlcompiler.passes
from dlcompiler.codegen.cache import Store, entry_name
from dlcompiler.codegen.choices import Answer
from dlcompiler.codegen.cpu.machine_code import fingerprint, sources_digest
from dlcompiler.codegen.target import Target

KIND = "tuned"


@dataclass(frozen=True)
class Decision:
    """What was decided for a problem: answers other than the cost model's (perhaps none), and the questions that came up.

    budget   the seconds with which it was not reached; None if it was decided
    """

    answers: Mapping[str, Answer]
    asked: frozenset[str]
    before: float
    after: float
    budget: float | None = None


def entry_of(problem: str, target: Target, threads: int) -> str:
    """The name of a problem's entry. What it depends on besides its text: compiler, processor, target, threads.

    For a GPU: its architecture, how float32 is multiplied, and Triton; neither the processor beside it nor its threads matter.
    """
    if target.kind == "cuda":
        sources = sources_digest(*dlcompiler.codegen.__path__, *dlcompiler.ir.__path__)
        return entry_name(KIND, sources, _passes(), str(target), target.float32, _triton(), problem)
    return entry_name(KIND, fingerprint(), _passes(), str(target), str(threads), problem)


@cache
def _triton() -> str:
    return metadata.version("triton")


@cache
def _passes() -> str:
    """What makes kernels of a problem's graph."""
    return sources_digest(*dlcompiler.passes.__path__)


def load(name: str, store: Store) -> Decision | None:
    """The decision of that name; None where there is none, or, after a warning, where it is damaged."""
    payload = store.get(name)
    if payload is None:
        return None
    try:
        return _parse(json.loads(payload.decode()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        store.discard(name, f"no decision of the tuner: {error}")
        return None


def _parse(found: Mapping) -> Decision:
    answers: dict[str, Answer] = {}
    for key, answer in found["answers"].items():
        if not all(isinstance(name, str) and isinstance(value, int | str) for name, value in answer.items()):
            raise ValueError("an answer that is none")
        answers[key] = dict(answer)
    budget = found["budget"]
    return Decision(
        answers, frozenset(map(str, found["asked"])), float(found["before"]), float(found["after"]),
        None if budget is None else float(budget),
    )  # fmt: skip


def keep(name: str, decision: Decision, store: Store) -> None:
    """Write a decision."""
    found = {
        "answers": {key: dict(answer) for key, answer in decision.answers.items()},
        "asked": sorted(decision.asked),
        "before": decision.before,
        "after": decision.after,
        "budget": decision.budget,
    }
    store.put(name, json.dumps(found, sort_keys=True).encode())
