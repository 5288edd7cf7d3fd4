"""Recurrences of layers as kernels: equal to the ops' meaning under Triton's interpreter, in both ways to run them; no spills."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from dlcompiler.codegen import emit
from dlcompiler.codegen.gpu import recurrent_form
from dlcompiler.codegen.gpu.simulate import simulate
from dlcompiler.codegen.target import parse_target
from dlcompiler.ir.expression import symbol
from dlcompiler.ir.interpret import interpret_graph
from dlcompiler.ir.ops.recurrent import CELLS
from dlcompiler.ir.ops.recurrent_training import kept_widths
from dlcompiler.ir.program import Program, RoutineCall
from dlcompiler.ir.types import TensorType, f16, f32
from dlcompiler.passes.block.fuse import fuse
from dlcompiler.passes.dataflow.program import plan
from dlcompiler.passes.pipeline import optimize

from tests.codegen.cpu.run import assert_close
from tests.codegen.cpu.test_kernels import graph_of, random_array

pytest.importorskip("triton")
TARGET = parse_target("cuda:sm_90")
STEPS, BATCH = 4, 3


def check(op: str, count: int, shapes, dtype, tolerance: float, types=None, **attributes) -> Program:
    inputs = [random_array(shape, dtype, seed) * dtype.numpy.type(0.4) for seed, shape in enumerate(shapes)]

    def build(b, *operands):
        whole = b(op, *operands, **attributes)
        return [b("tuple.get", whole, index=k) for k in range(count)]

    graph = graph_of(build, *(types or [TensorType(dtype, shape) for shape in shapes]))
    program = emit(plan(fuse(optimize(graph, TARGET), TARGET), TARGET), TARGET)
    for got, want in zip(simulate(program, inputs), interpret_graph(graph, inputs), strict=True):
        assert_close(got, np.asarray(want), tolerance)
    assert [s.op for s in program.steps if isinstance(s, RoutineCall)] == [op]
    assert not any(k.resources.local_bytes for k in program.code.kernels if k is not None)
    return program


def both_ways(name: str, hidden: int, dtype, reverse: tuple[bool, ...], sizes=(STEPS, BATCH)) -> list[Program]:
    """A scan that keeps, and its gradients; `sizes` as the types have them."""
    cell, directions = CELLS[name], len(reverse)
    rows, each = cell.gates * hidden, 3 if cell.inner_bias else 2
    tolerance = 6e-3 if dtype is f16 else 4e-6

    def forward(steps, batch):
        own = [(steps, batch, rows), (rows, hidden), (rows,)][:each]
        return [(directions, batch, hidden)] * cell.states + own * directions

    def backward(steps, batch):
        kept = [(directions, steps, batch, width * hidden) for width in kept_widths(cell)]
        states = [(directions, batch, hidden)] * cell.states
        return [(steps, batch, directions * hidden), *states, *kept, *[(rows, hidden)] * directions]

    of = {"activation": "tanh"} if name == "rnn" else {}
    found = []
    for suffix, shapes, count, given in (
        ("keeping", forward, 1 + cell.states + len(kept_widths(cell)), of),
        ("backward", backward, cell.states + (2 if cell.inner_bias else 1), {}),
    ):
        types = [TensorType(dtype, shape) for shape in shapes(*sizes)]
        run = partial(check, f"{name}_scan_{suffix}", count, shapes(STEPS, BATCH), dtype, tolerance, types)
        found.append(run(reverse=reverse, **given))
    return found


def repeats_of(programs) -> list:
    return [next(k.repeats for k in p.code.kernels if k is not None) for p in programs]


@pytest.mark.parametrize(("name", "hidden", "dtype"), [("lstm", 9, f32), ("gru", 20, f16)])
def test_narrow_layers_go_through_all_steps_in_one_launch(name, hidden, dtype):
    assert repeats_of(both_ways(name, hidden, dtype, (True,))) == [None, None]


@pytest.mark.parametrize(
    ("name", "reverse", "dtype"), [("lstm", (False, True), f16), ("gru", (True,), f32), ("rnn", (False,), f32)]
)
def test_wide_layers_have_a_launch_for_each_step_and_one_more_backward(name, reverse, dtype, monkeypatch):
    monkeypatch.setattr(recurrent_form, "WHOLE_WEIGHT_BYTES", 0)
    programs = both_ways(name, 33, dtype, reverse)
    assert repeats_of(programs) == [STEPS, STEPS + 1]


def test_numbers_of_steps_and_rows_that_a_call_tells(monkeypatch):
    monkeypatch.setattr(recurrent_form, "WHOLE_WEIGHT_BYTES", 0)
    programs = both_ways("gru", 18, f32, (False,), (symbol("T"), symbol("N")))
    assert repeats_of(programs) == [symbol("T"), symbol("T") + 1]
