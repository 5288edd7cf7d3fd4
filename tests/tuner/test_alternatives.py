"""Every alternative that the tuner may try computes what the cost model's choice does, and changes something."""

from __future__ import annotations

import pytest
import torch
from dlcompiler.codegen.choices import Choices
from dlcompiler.codegen.target import parse_target
from dlcompiler.passes.pipeline import optimize
from dlcompiler.runtime.trial import example_inputs, relative_difference

from dlcompiler.options import Options
from dlcompiler.tuner.search import ROUNDING, Search
from tests.tuner.graphs import GRAPHS

TARGET = parse_target("cpu")
OPTIONS = Options.resolve({}, {})
# what each graph leaves open, at the least
OPEN = {
    "linear": {"path", "vectors", "rows", "tiles", "order"},
    "row": {"vectors"},
    "long sums": {"sum_block", "rows"},
    "f64": {"vectors", "rows"},
    "product": {"path", "vectors", "rows"},
    "convolution": {"path", "vectors", "rows", "order"},
    "depthwise": {"vectors", "rows", "tiles"},
    "attention": {"path"},
    "normalized": {"unroll"},
    "pointwise": {"unroll", "grain"},
}


def search_of(name: str) -> Search:
    return Search(optimize(GRAPHS[name](), TARGET, OPTIONS), TARGET, OPTIONS)


@pytest.mark.parametrize("name", GRAPHS)
def test_alternatives_compute_the_same(name: str) -> None:
    search = search_of(name)
    program = search.base.executable.program
    inputs = example_inputs(program, 3)
    expected = search.base.executable(inputs)
    moves = search._moves(search.base)
    assert OPEN[name] <= {knob for answers in moves for answer in answers.values() for knob in answer}
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        texts = {_text(search.base)}
        for answers in moves:
            attempt = search._compile(answers)
            results = attempt.executable(inputs)
            assert relative_difference(results, expected) <= ROUNDING[results[0].element_size()], answers
            texts.add(_text(attempt))
    finally:
        torch.set_num_threads(threads)
    assert len(texts) == len(moves) + 1  # each runs in a way of its own


def _text(attempt) -> tuple:
    """What an attempt runs: its steps, and how each kernel is scheduled."""
    from dlcompiler.codegen.cpu.compile import machine_of, write_kernel
    from dlcompiler.ir.program import Launch

    choices = Choices(attempt.answers)
    lines = []
    for step in attempt.executable.program.steps:
        if isinstance(step, Launch):
            _, written = write_kernel(step.kernel, machine_of(TARGET), chosen=choices.ask("schedule", step.kernel))
            lines.append((str(step.kernel.replace(name="k", origin=())), written.summary))
        else:
            lines.append((type(step).__name__, step.op))
    return tuple(lines)


def test_a_question_is_the_same_wherever_it_comes_up_and_no_other() -> None:
    asked = []
    for name in ("linear", "linear", "product"):
        asked.append(set(search_of(name).base.asked))
    assert asked[0] == asked[1] and not asked[0] & asked[2] and len(asked[0]) >= 3
