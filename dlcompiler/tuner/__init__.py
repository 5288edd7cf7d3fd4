"""The tuner: tries other ways to run each distinct step of a program than the cost model's, within so many seconds.

    target, tuning = tune(fusion, target, options)      # `target` answers with what was found
    program = emit(plan(fuse(graph, target), target), target)

A target says what can be chosen (`Target.alternatives`) and asks for what was (`codegen.choices`); the runtime times
(`runtime.trial`); the search is in `search.py`. Decisions are kept on disk (`kept.py`): a later compilation of the same
makes the same program and measures nothing. What there was no time for is left to the cost model, until there is more time;
what could not be measured because something else was running is looked at again by the next compilation.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dlcompiler.codegen.cache import open_store
from dlcompiler.codegen.choices import Choices, show_answer
from dlcompiler.codegen.target import Target, nearest_architecture
from dlcompiler.ir.errors import LaunchError, UnsupportedError
from dlcompiler.options import Options
from dlcompiler.passes.block.fuse import Fusion
from dlcompiler.runtime.device import open_device
from dlcompiler.runtime.trial import threads
from dlcompiler.tuner import kept
from dlcompiler.tuner.bench import Bench, CpuBench, GpuBench
from dlcompiler.tuner.kept import Decision
from dlcompiler.tuner.problem import Problem, find_problems
from dlcompiler.tuner.search import Search

logger = logging.getLogger("dlcompiler")

# A problem may take so many times its equal share of the time that is left.
SHARES = 4


@dataclass(frozen=True)
class Tuned:
    """One distinct step that runs in another way than the cost model says. Seconds of a call before and after."""

    name: str
    count: int
    choice: str
    before: float
    after: float
    from_disk: bool


@dataclass(frozen=True)
class Tuning:
    """What the tuner did. `undecided`: distinct steps that there was no time for, or noise; `wrong`: what gave a wrong result."""

    distinct: int
    measured: int
    loaded: int
    undecided: int
    tried: int
    seconds: float
    threads: int
    tuned: tuple[Tuned, ...]
    wrong: tuple[str, ...] = ()


Watch = Callable[[str], Any]


def tune(fusion: Fusion, target: Target, options: Options, watch: Watch | None = None) -> tuple[Target, Tuning | None]:
    """The target with what was found, and what was done; the same target and None where tuning is off, or not possible.

    `watch` is told what is being looked at.
    """
    if not options.tune_budget or not target.can_be_tuned:
        return target, None
    try:
        bench = open_bench(target)
    except LaunchError as error:
        logger.warning("tuner: nothing is tuned for %s: %s", target, error)
        return target, None
    began = time.perf_counter()
    tuner = _Tuner(find_problems(fusion), target, options, began + options.tune_budget, bench)
    tuner.run(watch or (lambda text: None))
    decided = _without_conflicts(tuner.problems, tuner.decisions)
    answers = {key: answer for decision in decided.values() for key, answer in decision.answers.items()}
    return target.with_choices(Choices(answers)), tuner.summary(decided, time.perf_counter() - began)


def open_bench(target: Target) -> Bench:
    """Where programs for a target are tried. Raises LaunchError where this machine has no such GPU."""
    if target.kind == "cpu":
        return CpuBench()
    device = open_device()
    own = nearest_architecture(device.capability)
    if own != target.arch:
        raise LaunchError(f"this machine's GPU is {own}")
    return GpuBench(device)


class _Tuner:
    def __init__(self, problems: Sequence[Problem], target: Target, options: Options, deadline: float, bench: Bench) -> None:
        self.bench = bench
        self.problems, self.target, self.options, self.deadline = problems, target, options, deadline
        self.threads = threads()
        self.store = open_store(options)
        self.decisions: dict[str, Decision] = {}
        self.from_disk: set[str] = set()
        self.unsteady: set[str] = set()
        self.tried = 0
        self.wrong: list[str] = []

    def run(self, watch: Watch) -> None:
        """Decide every problem: from disk, else by a search as long as there is time."""
        for problem in self.problems:
            self._load(problem)
        searches: list[tuple[float, Problem, Search]] = []
        for problem in self.problems:
            if problem.key not in self.decisions and time.perf_counter() < self.deadline:
                watch(f"tuning {problem.name}")
                try:
                    search = Search(problem.graph, self.target, self.options, self.bench)
                except UnsupportedError as error:  # what the whole program may still do in another way
                    logger.debug("tuner: %s is left out: %s", problem.name, error)
                    continue
                searches.append((search.estimate * problem.count, problem, search))
        searches.sort(key=lambda entry: entry[0], reverse=True)
        while searches:
            _, problem, search = searches.pop(0)
            now = time.perf_counter()
            if now > self.deadline:
                break
            watch(f"tuning {problem.name}")
            self._decide(problem, search, min(self.deadline, now + (self.deadline - now) / (len(searches) + 1) * SHARES))
        if time.perf_counter() > self.deadline:
            for problem in self.problems:
                if problem.key not in self.decisions and problem.key not in self.unsteady:
                    self._keep(problem, Decision({}, frozenset(), 0.0, 0.0, self.options.tune_budget))

    def _decide(self, problem: Problem, search: Search, deadline: float) -> None:
        found = search.run(deadline)
        self.tried += search.tried
        self.wrong += search.wrong
        if search.is_unsteady:
            self.unsteady.add(problem.key)
        elif found is not None:
            self._keep(problem, Decision(found.answers, frozenset(search.base.asked), found.before, found.after))

    def _entry(self, problem: Problem) -> str:
        return kept.entry_of(problem.key, self.target, self.threads)

    def _load(self, problem: Problem) -> None:
        found = kept.load(self._entry(problem), self.store) if self.store is not None else None
        if found is not None and (found.budget is None or found.budget >= self.options.tune_budget):
            self.decisions[problem.key] = found
            self.from_disk.add(problem.key)

    def _keep(self, problem: Problem, decision: Decision) -> None:
        self.decisions[problem.key] = decision
        if self.store is not None:
            kept.keep(self._entry(problem), decision, self.store)

    def summary(self, decided: Mapping[str, Decision], seconds: float) -> Tuning:
        tuned = []
        for problem in self.problems:
            decision = decided.get(problem.key)
            if decision is not None and decision.answers:
                choice = "; ".join(show_answer(answer) for answer in decision.answers.values())
                from_disk = problem.key in self.from_disk
                tuned.append(Tuned(problem.name, problem.count, choice, decision.before, decision.after, from_disk))
        measured = sum(d.budget is None for key, d in self.decisions.items() if key not in self.from_disk)
        undecided = len(self.problems) - sum(d.budget is None for d in self.decisions.values())
        return Tuning(
            len(self.problems), measured, len(self.from_disk), undecided, self.tried, seconds, self.threads, tuple(tuned),
            tuple(self.wrong),
        )  # fmt: skip


def _without_conflicts(problems: Sequence[Problem], decisions: Mapping[str, Decision]) -> dict[str, Decision]:
    """Only decisions that agree: none that answers a question otherwise than another problem does in which it came up."""
    said: dict[str, set[str]] = {}
    for problem in problems:
        decision = decisions.get(problem.key)
        for key in decision.asked | set(decision.answers) if decision is not None else ():
            assert decision is not None
            said.setdefault(key, set()).add(show_answer(decision.answers.get(key, {})))
    disputed = {key for key, answers in said.items() if len(answers) > 1}
    return {key: decision for key, decision in decisions.items() if not disputed & set(decision.answers)}
