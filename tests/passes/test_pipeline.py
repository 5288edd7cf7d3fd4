"""The pipeline: what it promises about history, levels, names, fuel and observers."""

from __future__ import annotations

import numpy as np
import pytest
from dlcompiler.codegen.target import Target
from dlcompiler.ir.errors import OptionError, VerifyError
from dlcompiler.ir.graph import Builder, Graph
from dlcompiler.ir.interpret import interpret_graph
from dlcompiler.ir.ops import Trait
from dlcompiler.ir.types import TensorType, f32
from dlcompiler.passes import pipeline
from dlcompiler.passes.bisect import Culprit, find_culprit
from dlcompiler.passes.block import simplify
from dlcompiler.passes.context import Context, DefaultOptions, Fuel
from dlcompiler.passes.pattern import algebra
from dlcompiler.passes.pipeline import PASSES, PIPELINE, optimize, run_pass
from dlcompiler.passes.rewrite import RuleTable, apply_rules, rule

TARGET = Target("cpu", "x86-64-v3")


def example() -> Graph:
    b = Builder()
    x = b.input("x", TensorType(f32, (3, 8)))
    b.location = "model.py:7"
    y = b.layer_norm(b.neg(b.neg(x)), rank=1, epsilon=1e-5)
    b.exp(y)
    return b.finish([b.gelu(b.mul(y, 1.0)), b.gelu(y)])


def test_history_says_what_each_pass_did_and_no_more():
    seen = []
    result = optimize(example(), TARGET, observe=lambda name, graph: seen.append((name, graph)))
    assert [e.name for e in result.history] == [name for name, _ in seen]
    assert all(graph.history[-1].nodes_after == len(graph.nodes) for _, graph in seen)
    said = " ".join(e.detail for e in result.history)
    assert "neg-neg ×1" in said and "mul-one ×1" in said and "layer_norm ×1" in said and "gelu ×2" in said
    assert all(n.location == "model.py:7" for n in result.nodes)


def test_nothing_to_do_gives_the_same_object():
    result = optimize(example(), TARGET)
    assert optimize(result, TARGET) is result


def test_every_pass_leaves_a_graph_alone_that_it_does_not_change():
    b = Builder()
    graph = b.finish([b.exp(b.input("x", TensorType(f32, (3,))))])
    for each in PIPELINE:
        assert run_pass(each, graph, Context(TARGET)) is graph


def test_level_0_only_does_what_is_needed():
    result = optimize(example(), TARGET, DefaultOptions(optimization_level=0))
    assert [e.name for e in result.history] == ["decompose"]
    assert not any(n.has(Trait.COMPOSITE) for n in result.nodes)


def test_composites_that_a_library_runs_stay_whole():
    b = Builder()
    q, k, v = (b.input(n, TensorType(f32, (2, 4, 8))) for n in "qkv")
    graph = b.finish([b.softmax(b.attention(q, k, v, scale=1.0, causal=True), axis=2)])
    assert "attention" in {n.op.name for n in optimize(graph, TARGET).nodes}

    class Bare:
        library_ops = frozenset({"matmul"})
        tiles_sums = False
        parallel_rows = 16
        rows_at_a_time = 512

        def runs_whole(self, node):
            return node.op.name in self.library_ops

    assert not any(n.has(Trait.COMPOSITE) for n in optimize(graph, Bare()).nodes)


@pytest.mark.parametrize("name", [n for n, p in PASSES.items() if p.level > 0])
def test_a_disabled_pass_does_not_run(name):
    result = optimize(example(), TARGET, DefaultOptions(disabled_passes=frozenset({name})))
    assert name not in {e.name for e in result.history}


@pytest.mark.parametrize(
    "name, hint", [("simplfy", "did you mean 'simplify'"), ("zzz", "one of dead-code"), ("decompose", "no target can")]
)
def test_passes_that_cannot_be_disabled(name, hint):
    with pytest.raises(OptionError, match=hint):
        optimize(example(), TARGET, DefaultOptions(disabled_passes=frozenset({name})))


def test_eager_numerics_only_uses_exact_rules():
    b = Builder()
    x = b.input("x", TensorType(f32, (3, 8)))
    graph = b.finish([b.mul(b.add(x, 0.0), 1.0)])
    eager = optimize(graph, TARGET, DefaultOptions(numerics="eager"))
    assert [n.op.name for n in eager.nodes] == ["constant", "add"]


def test_fuel_applies_the_first_rewrites_only():
    total = Fuel()
    optimize(example(), TARGET, fuel=total)
    assert total.spent > 5
    x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    expected = interpret_graph(example(), [x])
    for limit in range(total.spent + 1):
        fuel = Fuel(limit)
        result = optimize(example(), TARGET, fuel=fuel)
        assert fuel.spent == limit
        for a, e in zip(interpret_graph(result, [x]), expected):
            np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6)


def test_a_wrong_rule_is_found_by_its_number_and_name(monkeypatch):
    wrong = algebra("plus-one-is-nothing", "x + 1 --> x", exact=True)
    monkeypatch.setattr(simplify, "RULES", RuleTable((*simplify.RULES, wrong)))
    x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    expected = interpret_graph(example(), [x])

    def is_right(graph: Graph) -> bool:
        return all(np.allclose(a, e, rtol=1e-4, atol=1e-5) for a, e in zip(interpret_graph(graph, [x]), expected))

    culprit = find_culprit(example(), TARGET, None, is_right)
    assert culprit is not None and culprit.number > 0
    assert culprit.rewrite.startswith("simplify: plus-one-is-nothing at %gelu")
    assert find_culprit(example(), TARGET, None, lambda graph: False) == Culprit(0, "")
    monkeypatch.undo()
    assert find_culprit(example(), TARGET, None, is_right) is None


def test_a_rule_that_changes_a_type_is_caught():
    @rule("drop-columns", "exp", exact=True)
    def drop_columns(b, node):
        """exp(x) --> reduce_sum(x)"""
        return b.reduce_sum(node.inputs[0], axes=(1,), keepdims=False)

    b = Builder()
    graph = b.finish([b.exp(b.input("x", TensorType(f32, (3, 8))))])
    with pytest.raises(VerifyError, match=r"f32\[3\] where f32\[3, 8\]"):
        apply_rules(graph, RuleTable([drop_columns]), Context(TARGET))


def test_rules_that_undo_each_other_are_caught():
    table = RuleTable([algebra("there", "x + y --> x - neg(y)", exact=True), algebra("back", "x - neg(y) --> x + y", exact=True)])
    b = Builder()
    graph = b.finish([b.add(b.input("x", TensorType(f32, (3,))), b.input("y", TensorType(f32, (3,))))])
    with pytest.raises(VerifyError, match="undo each other"):
        apply_rules(graph, table, Context(TARGET))


def test_passes_are_named_once():
    assert len({p.name for p in PIPELINE}) == len(PASSES) and set(PASSES.values()) == set(PIPELINE)
    assert pipeline.PIPELINE[0].name == pipeline.PIPELINE[-1].name == "dead-code"
