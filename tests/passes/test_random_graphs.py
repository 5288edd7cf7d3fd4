"""Every pass keeps the interpreter's answer on random graphs, and costs work in proportion to their size."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from dlcompiler.codegen.target import Target
from dlcompiler.ir.graph import Builder, Graph
from dlcompiler.ir.interpret import interpret_graph
from dlcompiler.ir.types import TensorType, f32
from dlcompiler.passes.block import fuse
from dlcompiler.passes.context import DefaultOptions
from dlcompiler.passes.pipeline import optimize
from hypothesis import given, settings

from tests.passes.random_graphs import graphs
from tests.passes.rule_checks import assert_same_bits, inputs_of

TARGET = Target("cpu", "x86-64-v3")


@settings(derandomize=True, deadline=None, max_examples=300)
@given(graph=graphs(contractions=False))
def test_exact_passes_keep_every_bit(graph):
    inputs = inputs_of(graph, 1)
    with np.errstate(all="ignore"):
        expected = interpret_graph(graph, inputs)
        stages = []
        optimize(graph, TARGET, DefaultOptions(numerics="eager"), observe=lambda name, result: stages.append((name, result)))
        for _, result in stages:
            for old, new in zip(expected, interpret_graph(result, inputs)):
                assert_same_bits(old, new)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(graph=graphs(calm=True))
def test_fast_passes_keep_the_answer(graph):
    inputs = inputs_of(graph, 2, calm=True)
    with np.errstate(all="ignore"):
        expected = interpret_graph(graph, inputs)
        stages = []
        optimize(graph, TARGET, observe=lambda name, result: stages.append((name, result)))
        for _, result in stages:
            for old, new in zip(expected, interpret_graph(result, inputs)):
                scale = np.max(np.abs(old), initial=1.0)
                np.testing.assert_allclose(new, old, rtol=1e-9, atol=1e-10 * min(scale, 1e6))


def test_what_joins_without_a_trial_would_pass_one(monkeypatch):
    goes_on, seen = fuse._Fuser._goes_on, []

    def checked(self, nodes, node):
        found = goes_on(self, nodes, node)
        if found:
            together = sorted((*nodes, node), key=self.position.__getitem__)
            seen.append(self._find_reason(together, self._outputs(together)))
            assert seen[-1] is None
        return found

    monkeypatch.setattr(fuse._Fuser, "_goes_on", checked)

    @settings(derandomize=True, deadline=None, max_examples=80)
    @given(graph=graphs(calm=True, most=40))
    def check(graph):
        for target in (TARGET, Target("cuda", "sm_90")):
            fuse.fuse(optimize(graph, target), target)

    check()
    assert len(seen) > 20


def chain(length: int) -> Graph:
    """A long chain in which every pass finds something to do, and keeps something."""
    b = Builder()
    x = v = b.input("x", TensorType(f32, (4, 8)))
    steps = [
        lambda v: b.mul(v, 1.0),
        lambda v: b.neg(b.neg(v)),
        lambda v: b.sin(v),
        lambda v: b.reshape(b.reshape(v, shape=(8, 4)), shape=(4, 8)),
        lambda v: b.add(v, b.exp(x)),
        lambda v: b.silu(v),
        lambda v: b.div(v, 4.0),
        lambda v: b.add(v, b.expand(b.constant(np.float32(2)), shape=(4, 8))),
    ]
    while len(b.nodes) < length:
        v = steps[len(b.nodes) % len(steps)](v)
    return b.finish([v])


def calls_made(graph: Graph) -> int:
    """Python functions called by the whole pipeline: work that does not depend on the machine."""
    count = 0

    def seen(frame, event, argument):
        nonlocal count
        count += event == "call"

    sys.setprofile(seen)
    try:
        optimize(graph, TARGET)
    finally:
        sys.setprofile(None)
    return count


def test_work_is_linear_in_the_number_of_nodes():
    work = [calls_made(chain(length)) for length in (500, 1000, 2000)]
    assert work[1] < 2.1 * work[0] and work[2] < 2.1 * work[1], work


@pytest.mark.timeout(120)
def test_a_chain_of_20000_nodes_needs_no_recursion():
    graph = chain(20_000)
    assert len(optimize(graph, TARGET).nodes) < len(graph.nodes)


def test_wide_graphs_are_linear_too():
    def wide(count: int) -> Graph:
        b = Builder()
        x = b.input("x", TensorType(f32, (4, 8)))
        parts = [b.slice(x, starts=(0, 0), limits=(4, 8), steps=(1, 1)) for _ in range(count)]
        return b.finish([b.concat(*(b.add(p, float(k)) for k, p in enumerate(parts)), axis=0)])

    work = [calls_made(wide(count)) for count in (125, 250, 500)]
    assert work[1] < 2.1 * work[0] and work[2] < 2.1 * work[1], work
