"""Graphs of several programs: control flow, calls of the host, sizes that data tells. Text, meaning, and running agree."""

from __future__ import annotations

import numpy as np
import pytest
from dlcompiler.ir.errors import InputError, LaunchError, VerifyError
from dlcompiler.ir.interpret import interpret_graph
from dlcompiler.ir.text import graph_constants, parse_graph, print_graph
from dlcompiler.ir.text.equal import graphs_equal
from dlcompiler.ir.verify import verify_graph
from dlcompiler.passes.context import Context
from dlcompiler.passes.node.dead_code import remove_dead_code
from dlcompiler.passes.stages import Barrier, Piece, split_stages

import dlcompiler
from dlcompiler.reference import run_reference
from tests.passes.rule_checks import TARGET

CHOICE = """graph choice {
  input %x : f32[N]
  input %t : f32[]
  %c = gt(%x, %t) : bool[N]
  %any = reduce_any(%c) {axes = (0,), keepdims = false} : bool[]
  %n = dim() {value = N} : i64[]
  %r = if(%any, %x, %n) {then = graph a {
    input %x : f32[N]
    size %n : N
    %y = mul(%x, %x) : f32[N]
    output %y
  }, else = graph b {
    input %x : f32[N]
    size %n : N
    %i = iota() {size = N} : i64[N]
    %f = cast(%i) {dtype = "f32"} : f32[N]
    %y = add(%f, %x) : f32[N]
    output %y
  }} : (f32[N])
  %0 = tuple.get(%r) {index = 0} : f32[N]
  %z = neg(%0) : f32[N]
  output %z
}
"""
LOOP = """graph count {
  input %x : f32[4]
  input %trips : i64[]
  %true = constant true : bool[]
  %r = loop(%trips, %true, %x) {body = graph step {
    input %k : i64[]
    input %going : bool[]
    input %s : f32[4]
    %f = cast(%k) {dtype = "f32"} : f32[]
    %next = add(%s, %f) : f32[4]
    %sum = reduce_sum(%next) {axes = (0,), keepdims = false} : f32[]
    %limit = constant 30.0 : f32[]
    %goes = lt(%sum, %limit) : bool[]
    output %goes
    output %next
    output %sum
  }, carried = 1} : (f32[4], f32[T])
  %last = tuple.get(%r) {index = 0} : f32[4]
  %sums = tuple.get(%r) {index = 1} : f32[T]
  %twice = add(%sums, %sums) : f32[T]
  output %last
  output %twice
}
"""
SIZES = """graph sizes {
  input %shape : i64[2]
  input %x : f32[]
  %s = sizes(%shape) {symbols = ("A", "B")} : i64[2]
  %y = expand(%x) {shape = (A, B)} : f32[A, B]
  %z = exp(%y) : f32[A, B]
  output %z
}
"""


def both(graph, *inputs):
    """The outputs, once the compiled program and the interpreter agree on them."""
    verify_graph(graph)
    expected = run_reference(graph, inputs)
    results = dlcompiler.compile(graph)(*inputs)
    results = results if isinstance(results, tuple) else (results,)
    for got, want in zip(results, expected, strict=True):
        assert got.dtype == want.dtype and got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=1e-6)
    return results


@pytest.mark.parametrize("text", [CHOICE, LOOP, SIZES])
def test_text_goes_round(text):
    graph = parse_graph(text)
    again = parse_graph(print_graph(graph), graph_constants(graph))
    assert graphs_equal(graph, again) is None
    assert print_graph(again) == print_graph(graph)


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("threshold", [0.5, 9.0])
def test_if_runs_one_branch(size, threshold):
    x = np.linspace(0, 1, size, dtype=np.float32)
    (result,) = both(parse_graph(CHOICE), x, np.float32(threshold))
    expected = -(x * x) if threshold < 1 else -(np.arange(size, dtype=np.float32) + x)
    np.testing.assert_allclose(result, expected)


@pytest.mark.parametrize("trips", [0, 1, 3, 100])
def test_loop_ends_by_count_or_condition(trips):
    last, sums = both(parse_graph(LOOP), np.zeros(4, np.float32), np.int64(trips))
    expected = np.cumsum(np.arange(trips)) * 4
    stop = np.flatnonzero(expected >= 30)
    expected = expected[: stop[0] + 1] if stop.size else expected
    np.testing.assert_allclose(sums, 2 * expected)
    assert last.tolist() == [expected[-1] / 4 if trips else 0] * 4


def test_sizes_are_told_by_data():
    graph = parse_graph(SIZES)
    compiled = dlcompiler.compile(graph)
    for shape in ((2, 3), (5, 1), (0, 4)):
        assert compiled(np.array(shape), np.float32(0)).shape == shape
    with pytest.raises(InputError, match="is -1"):
        compiled(np.array([-1, 2]), np.float32(0))


def test_a_barrier_that_only_tells_a_size_is_not_dead():
    graph = parse_graph(SIZES)
    assert remove_dead_code(graph, Context(TARGET)) is graph


def test_stages_are_as_few_as_barriers_allow():
    stages = split_stages(parse_graph(CHOICE))
    kinds = [type(stage) for stage in stages]
    assert kinds == [Piece, Barrier, Piece]
    assert [node.op.name for node in stages[0].graph.nodes] == ["gt", "reduce_any"]
    assert [node.op.name for node in stages[2].graph.nodes] == ["neg"]


def test_a_result_of_another_shape_than_declared_is_refused():
    text = CHOICE
    for line in ("(f32[N])\n", "{index = 0} : f32[N]\n", "neg(%0) : f32[N]\n"):
        text = text.replace(line, line.replace("N", "7"))
    graph = parse_graph(text)
    with pytest.raises(LaunchError, match="where f32.7. was expected"):
        dlcompiler.compile(graph)(np.ones(3, np.float32), np.float32(0))


def test_a_region_is_verified():
    graph = parse_graph(CHOICE.replace("%y = mul(%x, %x) : f32[N]", "%y = mul(%x, %x) : f32[3]"))
    with pytest.raises(VerifyError, match="graph a"):
        verify_graph(graph)


@pytest.mark.parametrize(
    "text, old, new, said",
    [
        (CHOICE, "then = graph a", "other = graph a", "region then is missing"),
        (CHOICE, "if(%any, %x, %n)", "if(%any, %x)", "region then takes 2 values"),
        (CHOICE, "if(%any, %x, %n)", "if(%t, %x, %n)", "no bool"),
        (LOOP, "carried = 1", "carried = 3", "carried is 3"),
        (LOOP, "    output %sum\n", "", "gives 2"),
    ],
)
def test_regions_that_do_not_fit_are_refused(text, old, new, said):
    with pytest.raises(VerifyError, match=said):
        verify_graph(parse_graph(text.replace(old, new)))


def test_inputs_are_checked_by_name():
    compiled = dlcompiler.compile(parse_graph(CHOICE))
    with pytest.raises(InputError, match="'x'"):
        compiled(np.ones(3, np.float64), np.float32(0))
    with pytest.raises(InputError):
        interpret_graph(compiled.graph, [np.ones((3, 1), np.float32), np.float32(0)])


@pytest.mark.parametrize(("text", "given"), [(CHOICE, 0.5), (CHOICE, 5.0), (LOOP, 3), (LOOP, 0)])
def test_stages_are_programs_for_gpus_too(text, given):
    pytest.importorskip("triton")
    graph = parse_graph(text)
    x = np.linspace(0, 1, 4, dtype=np.float32)
    second = np.asarray(given, np.int64 if text is LOOP else np.float32)
    compiled = dlcompiler.compile(graph, target="cuda:sm_90")
    expected = interpret_graph(graph, [x, second])
    ours = compiled.simulate(x, second)
    for got, want in zip(ours if isinstance(ours, tuple) else (ours,), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_artefact_and_report(tmp_path):
    compiled = dlcompiler.compile(parse_graph(CHOICE))
    assert compiled.report().pieces == 4 and "4 programs" in str(compiled.report())
    compiled.save(tmp_path / "choice.dlc")
    x = np.linspace(0, 1, 5, dtype=np.float32)
    np.testing.assert_array_equal(dlcompiler.load(tmp_path / "choice.dlc")(x, np.float32(0.5)), compiled(x, np.float32(0.5)))
