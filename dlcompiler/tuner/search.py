"""The search for the quickest way to run one small graph: hill climbing from the cost model's choice, with a clock in hand.

    best = the cost model's choice
    repeat: for each question that the target was asked for `best`, try other answers; the quickest becomes `best`
    until nothing is quicker, or time is up; then `best` has to beat the cost model's choice once more

Every attempt is compiled as the whole program will be, run on inputs of the right sizes and layouts, and must give the cost
model's result to within rounding. Attempts are timed in turns with what they have to beat. Where weights are read they are
several sets that do not fit into the caches together, as a model's do not.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dlcompiler.codegen import emit
from dlcompiler.codegen.choices import ONE_THREAD, Answer, Choices, Question, show_answer
from dlcompiler.codegen.target import Target
from dlcompiler.ir.errors import LaunchError, UnsupportedError
from dlcompiler.ir.expression import known, product
from dlcompiler.ir.graph import Graph
from dlcompiler.ir.program import Launch, Program
from dlcompiler.options import Options
from dlcompiler.passes.block.fuse import fuse
from dlcompiler.passes.dataflow.program import plan
from dlcompiler.runtime.trial import relative_difference
from dlcompiler.tuner.bench import AnyExecutable, Bench, CpuBench

logger = logging.getLogger("dlcompiler")

Answers = Mapping[str, Answer]

# A choice is kept if it takes less than this share of the cost model's time, by the medians and by the quickest rounds, and is
# quicker in most rounds.
MARGIN = 0.97
MOST_ROUNDS_AGREE = 0.8
# Where half of the rounds take so many times the quickest, something else is running, and nothing is decided.
STEADY = 1.25
# To start threads costs some microseconds: where one thread is quicker by more than this, the others are kept busy by somebody.
PLAUSIBLE_SECONDS = 30e-6
# What is slower than this in a first look is not looked at again.
PROMISING = 1.0
BURST_SECONDS = 0.0015
FIRST_ROUNDS, FINAL_ROUNDS = 3, 15
STEPS = 4
FINALISTS = 3
# Rounding of sums in another order, or by Winograd's algorithm, relative to the largest value, by the bytes of an element.
ROUNDING = {2: 2.0**-7, 4: 2.0**-13, 8: 2.0**-44}
# For the order in which problems are looked at: multiplications and bytes a second of some machine.
SPEED, BANDWIDTH = 5e10, 2e10


@dataclass(eq=False)
class Attempt:
    """A graph compiled with some answers. `asked` are the questions that came up, `call` runs it once."""

    answers: Answers
    executable: AnyExecutable
    asked: Mapping[str, Question]
    call: Callable[[], Any] = field(default=lambda: None)


@dataclass(frozen=True)
class Found:
    """What a search came to. Seconds are of the cost model's choice and of the best; equal where nothing better was found."""

    answers: Answers
    before: float
    after: float
    tried: int
    wrong: tuple[str, ...] = ()


class Search:
    """One graph. Making one compiles it as the cost model says; `run` searches."""

    def __init__(self, graph: Graph, target: Target, options: Options, place_of: Bench | None = None) -> None:
        self.graph, self.target, self.options = graph, target, options
        self.bench = place_of or CpuBench()
        self.tried = 0
        self.wrong: list[str] = []
        self.is_unsteady = False  # whether times were, so that nothing could be decided
        self.base = self._compile({})
        self._inputs: list[list[Any]] = []
        self._expected: Sequence[Any] = ()

    # -- making attempts -----------------------------------------------------------------------------------------------------

    def _compile(self, answers: Answers) -> Attempt:
        choices = Choices(answers)
        target = self.target.with_choices(choices)
        program = emit(plan(fuse(self.graph, target, self.options), target, self.options), target, self.options)
        return Attempt(answers, self.bench.executable(program), choices.asked)

    @property
    def estimate(self) -> float:
        """Seconds of a call, roughly: to look at the costly graphs first."""
        return estimated_seconds(self.base.executable.program)

    def _make_inputs(self) -> None:
        program = self.base.executable.program
        weights = [n for n, node in enumerate(self.graph.inputs) if node.attributes.get("parameter")]
        first = self.bench.inputs(program, 0)
        slots = [program.inputs[n] for n in weights]
        size = sum(known(slot.bytes) for slot in slots if slot is not None)
        sets = min(max(-(-self.bench.weight_bytes // size), 1), self.bench.weight_sets) if size else 1
        self._inputs = [first]
        for seed in range(1, sets):
            other = self.bench.inputs(program, seed)
            self._inputs.append([other[n] if n in weights else tensor for n, tensor in enumerate(first)])

    def _start(self, attempt: Attempt) -> None:
        """Make it ready to be timed."""
        attempt.call = self.bench.call(attempt.executable, self._inputs)

    def _attempt(self, answers: Answers) -> Attempt | None:
        """An attempt that computes what it should; None for one that cannot be made, or that is wrong, which is said."""
        self.tried += 1
        try:
            attempt = self._compile(answers)
            results = attempt.executable(self._inputs[0])
        except (UnsupportedError, LaunchError) as error:
            logger.debug("tuner: %s", error)
            return None
        self._start(attempt)
        difference = relative_difference(results, self._expected)
        size = min((t.dtype.bytes for t in (o.tensor for o in self.graph.outputs) if t.dtype.is_float), default=8)
        if not difference <= ROUNDING.get(size, 0.0):
            said = "; ".join(show_answer(answer) for answer in answers.values())
            self.wrong.append(f"{said} gave a relative difference of {difference:.1e}")
            logger.warning("tuner: left out a wrong result: %s, in a graph of %s", said, self.graph.nodes[-1].type)
            return None
        return attempt

    # -- searching -----------------------------------------------------------------------------------------------------------

    def run(self, deadline: float) -> Found | None:
        """The best way found until then (in `time.perf_counter()`); None if there was no time, or too much noise, to tell."""
        if time.perf_counter() > deadline:
            return None
        if not self._moves(self.base):
            return Found({}, 0.0, 0.0, 0)
        self._make_inputs()
        self._expected = self.base.executable(self._inputs[0])
        self._start(self.base)
        best, seen = self.base, {_text({})}
        for _ in range(STEPS):
            better = self._step(best, seen, deadline)
            if better is None:
                break
            best = better
        if best is self.base:
            if time.perf_counter() > deadline:
                return None
            return Found({}, 0.0, 0.0, self.tried, tuple(self.wrong))
        return self._confirm(best)

    def _moves(self, attempt: Attempt) -> list[Answers]:
        """Answers that differ from an attempt's in one thing: decisions about the whole first, then about loops."""
        prepared = {id(step.kernel) for step in attempt.executable.program.preparation}
        target = self.target.with_choices(Choices(attempt.answers))
        found: list[tuple[int, Answers]] = []
        for question in attempt.asked.values():
            if id(question.subject) in prepared:
                continue
            for change in target.alternatives(question):
                answer = {**attempt.answers.get(question.key, {}), **change}
                found.append((question.kind == "schedule", {**attempt.answers, question.key: answer}))
        return [answers for _, answers in sorted(found, key=lambda pair: pair[0])]

    def _step(self, best: Attempt, seen: set[str], deadline: float) -> Attempt | None:
        """The quickest attempt that differs from `best` in one thing; None if none is quicker."""
        promising: list[tuple[float, Attempt]] = []
        for answers in self._moves(best):
            if time.perf_counter() > deadline:
                break
            if _text(answers) in seen:
                continue
            seen.add(_text(answers))
            attempt = self._attempt(answers)
            if attempt is None:
                continue
            ratio = quickest_ratio(*self.bench.in_turns([best.call, attempt.call], FIRST_ROUNDS, BURST_SECONDS))
            if ratio < PROMISING:
                promising = sorted([*promising, (ratio, attempt)], key=lambda pair: pair[0])[:FINALISTS]
        if not promising:
            return None
        times = self.bench.in_turns([best.call, *(attempt.call for _, attempt in promising)], 2 * FIRST_ROUNDS, BURST_SECONDS)
        ratios = [quickest_ratio(times[0], mine) for mine in times[1:]]
        quickest = min(range(len(ratios)), key=ratios.__getitem__)
        return promising[quickest][1] if ratios[quickest] < (1 + MARGIN) / 2 else None

    def _confirm(self, best: Attempt) -> Found | None:
        """`best` if it is quicker than the cost model's choice beyond doubt: what was quickest of many may have been lucky.

        None where times are too unsteady to decide.
        """
        times = self.bench.in_turns([self.base.call, best.call], FINAL_ROUNDS, 2 * BURST_SECONDS)
        if not all(is_steady(each) for each in times):
            self.is_unsteady = True
            return None
        before, after = (statistics.median(each) for each in times)
        if before - after > PLAUSIBLE_SECONDS and self._runs_on_fewer_threads(best):
            self.is_unsteady = True
            return None
        if is_quicker(*times):
            return Found(best.answers, before, after, self.tried, tuple(self.wrong))
        return Found({}, before, before, self.tried, tuple(self.wrong))

    def _runs_on_fewer_threads(self, attempt: Attempt) -> bool:
        """Whether some kernel of an attempt leaves to one thread what the cost model shares out."""
        return any(answer.get("grain") == ONE_THREAD["grain"] for answer in attempt.answers.values())


def quickest_ratio(first: Sequence[float], second: Sequence[float]) -> float:
    """The quickest round of the second over that of the first: other work on the machine only ever adds time."""
    return min(second) / min(first)


def is_steady(times: Sequence[float]) -> bool:
    """Whether rounds take about the same time."""
    return statistics.median(times) <= STEADY * min(times)


def is_quicker(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether the second is quicker than the first beyond doubt; rounds are paired."""
    ratios = [after / before for before, after in zip(first, second)]
    agreeing = sum(ratio < 1 for ratio in ratios) / len(ratios)
    return agreeing >= MOST_ROUNDS_AGREE and max(statistics.median(ratios), quickest_ratio(first, second)) < MARGIN


def _text(answers: Answers) -> str:
    return repr(sorted((key, sorted(answer.items())) for key, answer in answers.items()))


def estimated_seconds(program: Program) -> float:
    """Of a call, roughly: work over speed, or bytes over bandwidth."""
    seconds = 0.0
    for step in program.steps:
        size = sum(_size(view.slot.bytes) for view in (*step.reads, *step.writes) if view is not None)
        work = _size(product(axis.extent for axis in step.kernel.axes)) if isinstance(step, Launch) else 8 * size
        seconds += max(work / SPEED, size / BANDWIDTH)
    return seconds


def _size(dim: Any) -> int:
    return dim if isinstance(dim, int) else 0
