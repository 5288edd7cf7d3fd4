"""The tuner keeps what is right and measurably quicker, and nothing else; a decision is made once. Times here are made up."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from dlcompiler.codegen import cache
from dlcompiler.codegen.choices import ONE_THREAD
from dlcompiler.codegen.target import Target, parse_target
from dlcompiler.runtime import trial
from hypothesis import given
from hypothesis import strategies as st

import dlcompiler
from dlcompiler.options import Options
from dlcompiler.tuner import kept, search
from dlcompiler.tuner.bench import CpuBench
from dlcompiler.tuner.problem import find_problems
from tests.tuner.graphs import GRAPHS

# what is tried here, of all that could be
CHANGES = [{"rows": 5}, {"rows": 4}, {"order": "panels"}]
Cost = Callable[[dict[str, Any]], float]


class Clock:
    """Stands for the machine's: an attempt costs what `cost` makes of all that was chosen for it."""

    def __init__(self) -> None:
        self.cost: Cost = lambda chosen: 1.0
        self.noise: tuple[float, ...] = (1.0,)
        self.used = 0

    def start(self, _: search.Search, attempt: search.Attempt) -> None:
        attempt.call = lambda: {name: value for answer in attempt.answers.values() for name, value in answer.items()}

    def in_turns(self, calls: list[Callable[[], Any]], rounds: int, *_: Any) -> list[list[float]]:
        self.used += 1
        return [[self.cost(call()) * self.noise[k % len(self.noise)] for k in range(rounds)] for call in calls]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    made = Clock()
    monkeypatch.setattr(search.Search, "_start", lambda self, attempt: made.start(self, attempt))
    monkeypatch.setattr(CpuBench, "in_turns", lambda self, *asked: made.in_turns(*asked))
    monkeypatch.setattr(Target, "alternatives", lambda self, question: CHANGES if question.kind == "schedule" else [])
    monkeypatch.setattr(cache, "_said", set())
    monkeypatch.setattr(logging.getLogger("dlcompiler"), "propagate", True)
    dlcompiler.reset()
    yield made
    dlcompiler.reset()


def compile_tuned(folder: Path, graph: str = "linear", budget: float = 60.0, **options: Any) -> dlcompiler.Compiled:
    dlcompiler.reset()
    given = {"cache_dir": str(folder), "cache_bytes": 1 << 30, "tune_budget": budget, **options}
    return dlcompiler.compile(GRAPHS[graph](), options=given)


def chosen(compiled: dlcompiler.Compiled) -> list[str]:
    tuning = compiled.report().tuning
    assert tuning is not None
    return [each.choice for each in tuning.tuned]


def of_rows(rows: int, gain: float) -> Cost:
    return lambda chosen: 1.0 + 0.1 * len(chosen) - (gain + 0.1) * (chosen.get("rows") == rows)


def test_what_is_quicker_is_kept_and_not_measured_again(clock: Clock, tmp_path: Path) -> None:
    clock.cost = of_rows(5, 0.2)
    first = compile_tuned(tmp_path)
    assert chosen(first) == ["rows 5"] and clock.used > 3
    tuning = first.report().tuning
    assert tuning.measured == 1 and tuning.tried > 3 and tuning.undecided == 0
    assert tuning.tuned[0].after == pytest.approx(0.8 * tuning.tuned[0].before)
    assert "rows 5" in str(first.report()) and first.report().as_dict()["tuning"]["threads"] == torch.get_num_threads()
    clock.used, clock.cost = 0, of_rows(4, 0.5)
    second = compile_tuned(tmp_path)
    assert chosen(second) == ["rows 5"] and clock.used == 0
    assert second.report().tuning.loaded == 1 and second.report().compiled == 0
    inputs = [x.numpy() for x in trial.example_inputs(first.program, 0)]
    plain = dlcompiler.compile(GRAPHS["linear"]())
    for compiled in (first, second):
        torch.testing.assert_close(torch.from_numpy(compiled(*inputs)), torch.from_numpy(plain(*inputs)))
    assert [str(a.kernel) for a in plain.program.steps] == [str(a.kernel) for a in first.program.steps]
    assert first.program.code.kernels[0].name != plain.program.code.kernels[0].name  # other machine code


def test_steps_add_up(clock: Clock, tmp_path: Path) -> None:
    clock.cost = lambda chosen: 1.0 - 0.1 * (chosen.get("rows") == 5) - 0.2 * (chosen.get("order") == "panels")
    assert chosen(compile_tuned(tmp_path)) == ["order panels, rows 5"]


@pytest.mark.parametrize("gain", [0.02, 0.0, -0.3])
def test_what_is_not_measurably_quicker_is_not_kept(clock: Clock, tmp_path: Path, gain: float) -> None:
    clock.cost = of_rows(5, gain)
    compiled = compile_tuned(tmp_path)
    assert chosen(compiled) == [] and compiled.report().tuning.measured == 1
    clock.used = 0
    assert chosen(compile_tuned(tmp_path)) == [] and clock.used == 0  # that nothing was found is known too


def test_noise_decides_nothing_and_is_not_remembered(clock: Clock, tmp_path: Path) -> None:
    clock.cost, clock.noise = of_rows(5, 0.2), (1.0, 3.0, 3.0)
    compiled = compile_tuned(tmp_path)
    assert chosen(compiled) == [] and compiled.report().tuning.undecided == 1
    clock.noise = (1.0,)
    assert chosen(compile_tuned(tmp_path)) == ["rows 5"]


def test_one_thread_that_is_much_quicker_says_that_others_are_busy(clock: Clock, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Target, "alternatives", lambda self, question: [ONE_THREAD] if question.kind == "schedule" else [])
    clock.cost = lambda chosen: 1e-3 if not chosen else 0.9e-3
    assert compile_tuned(tmp_path).report().tuning.undecided == 1
    clock.cost = lambda chosen: 5e-5 if not chosen else 4e-5
    assert chosen(compile_tuned(tmp_path)) == [f"grain {1 << 40}"]


def test_a_wrong_result_is_never_kept(clock: Clock, tmp_path: Path, monkeypatch, caplog) -> None:
    make = search.Search._compile

    def with_a_bug(self: search.Search, answers: search.Answers) -> search.Attempt:
        attempt = make(self, answers)
        if any(answer.get("rows") == 5 for answer in answers.values()):
            right = attempt.executable
            attempt.executable = lambda inputs: [y * 1.001 for y in right(inputs)]  # type: ignore[assignment]
        return attempt

    monkeypatch.setattr(search.Search, "_compile", with_a_bug)
    clock.cost = lambda chosen: {5: 0.1, 4: 0.8 + 0.1 * len(chosen)}.get(chosen.get("rows", 0), 1.0)
    compiled = compile_tuned(tmp_path)
    assert chosen(compiled) == ["rows 4"]
    assert len(compiled.report().tuning.wrong) == 1 and "rows 5" in compiled.report().tuning.wrong[0]
    assert "rows 5" in caplog.text and "left out: rows 5" in str(compiled.report())


def test_no_budget_is_off_and_a_short_one_is_remembered(clock: Clock, tmp_path: Path) -> None:
    clock.cost = of_rows(5, 0.2)
    off = compile_tuned(tmp_path, budget=0.0)
    assert off.report().tuning is None and clock.used == 0 and not list(tmp_path.glob("*.tuned"))
    short = compile_tuned(tmp_path, budget=1e-6)
    assert short.report().tuning.undecided == 1 and clock.used == 0
    assert compile_tuned(tmp_path, budget=1e-6).report().tuning.loaded == 1
    assert chosen(compile_tuned(tmp_path)) == ["rows 5"]
    assert chosen(compile_tuned(tmp_path, budget=1e-6)) == ["rows 5"]


def test_a_damaged_decision_is_a_miss_with_one_warning(clock: Clock, tmp_path: Path, caplog) -> None:
    clock.cost = of_rows(5, 0.2)
    compile_tuned(tmp_path)
    (entry,) = tmp_path.glob("*.tuned")
    for damage in (entry.read_bytes()[:-3], b"", None):
        if damage is None:  # whole, but no decision
            cache.open_store(Options.resolve({"cache_dir": str(tmp_path), "cache_bytes": 1 << 30})).put(
                entry.name, b'{"answers": 3}'
            )
        else:
            entry.write_bytes(damage)
        caplog.clear()
        clock.used = 0
        assert chosen(compile_tuned(tmp_path)) == ["rows 5"] and clock.used > 0
        assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1 and entry.name in caplog.text


def test_a_decision_is_for_one_number_of_threads_and_one_target() -> None:
    def names(target: str) -> set[str]:
        return {kept.entry_of(problem, parse_target(target), threads) for problem in "ab" for threads in (1, 2)}

    # how many threads a CPU would have is nothing to a GPU
    assert len(names("cpu")) == 4 and len(names("cuda:sm_90")) == len(names("cuda:sm_80")) == 2
    assert not names("cpu") & names("cuda:sm_90") and not names("cuda:sm_80") & names("cuda:sm_90")


def test_what_cannot_be_tuned_says_so(tmp_path: Path) -> None:
    for target in ("cuda:sm_90", "cpu:x86-64-v2"):
        options = {"tune_budget": 5.0, "cache_dir": str(tmp_path)}
        assert dlcompiler.compile(GRAPHS["pointwise"](), target=target, options=options).report().tuning is None


def test_modes_and_the_environment_set_the_budget() -> None:
    assert Options.resolve({}, {}).tune_budget == 0
    assert Options.resolve({"mode": "max-autotune"}, {}).tune_budget > 0
    assert Options.resolve({"mode": "max-autotune", "tune_budget": 3}, {}).tune_budget == 3
    assert Options.resolve({"mode": "max-autotune"}, {"DLCOMPILER_TUNE_BUDGET": "0"}).tune_budget == 0


def test_equal_layers_are_one_problem() -> None:
    from dlcompiler.passes.block.fuse import fuse
    from dlcompiler.passes.pipeline import optimize

    model = torch.nn.Sequential(*(layer for _ in range(3) for layer in (torch.nn.Linear(24, 24), torch.nn.GELU()))).eval()
    graph = dlcompiler.compile(model, (torch.randn(5, 24),)).graph
    target, options = parse_target("cpu"), Options.resolve({})
    problems = find_problems(fuse(optimize(graph, target, options), target, options))
    assert [problem.count for problem in problems] == [3]


@given(st.lists(st.floats(0.5, 1.5), min_size=5, max_size=20), st.floats(0.5, 1.2))
def test_quicker_means_by_the_margin(times: list[float], factor: float) -> None:
    assert search.is_quicker(times, [t * factor for t in times]) == (factor * min(times) / min(times) < search.MARGIN)
    assert not search.is_quicker(times, times)


def test_timing_goes_in_turns_and_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now, order = [0.0], []

    def call(name: str, seconds: float) -> Callable[[], None]:
        return lambda: (order.append(name), now.__setitem__(0, now[0] + seconds))[0]

    monkeypatch.setattr(trial.time, "perf_counter", lambda: now[0])
    times = trial.in_turns([call("a", 0.25), call("b", 0.5)], rounds=3, seconds=1.0)
    assert times == [[0.25] * 3, [0.5] * 3]
    assert "".join(order) == "aabb" + "aaaaabbb" + "bbbaaaaa" + "aaaaabbb"
    assert len(trial.in_turns([call("a", 0.25)], rounds=9, seconds=1.0, deadline=0.0)[0]) == 1


def test_differences_are_relative_and_see_what_is_not_finite() -> None:
    x = torch.tensor([1.0, -4.0, float("inf"), float("nan")])
    assert trial.relative_difference([x], [x]) == 0
    assert trial.relative_difference([x + 0.5], [x]) == pytest.approx(0.125)
    for other in (
        [1.0, -4.0, float("-inf"), float("nan")],
        [1.0, -4.0, 0.0, float("nan")],
        [1.0, float("nan"), float("inf"), 0.0],
    ):
        assert trial.relative_difference([torch.tensor(other)], [x]) == float("inf")
    assert trial.relative_difference([torch.tensor([3])], [torch.tensor([4])]) == float("inf")
