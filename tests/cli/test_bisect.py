"""`verify --bisect`: a planted fault is named by one command, and what it leaves behind fails for the same reason."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from dlcompiler.ir.graph import Builder, Graph
from dlcompiler.ir.text import parse_graph
from dlcompiler.ir.types import TensorType, f32
from dlcompiler.passes.block import simplify
from dlcompiler.passes.pattern import algebra
from dlcompiler.passes.rewrite import RuleTable
from onnx import TensorProto, helper

from dlcompiler.isolate import around, isolate
from dlcompiler.reference import run_reference
from tests.cli.conftest import WIDTH, Cli, save


def plant(monkeypatch: pytest.MonkeyPatch, name: str, rule: str) -> None:
    """Add a rule that is not true."""
    wrong = algebra(name, rule, takes="float", exact=True)
    monkeypatch.setattr(simplify, "RULES", RuleTable((*simplify.RULES, wrong)))


def repeat(cli: Cli, culprit: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of the command that was left, run in its folder."""
    command = culprit["command"]
    assert f"    {shlex.join(command)}\n" in (Path(culprit["repro"]) / "README.md").read_text()
    with monkeypatch.context() as patch:
        patch.chdir(culprit["repro"])
        return cli(*command[1:]).code


def test_a_wrong_rule_is_named(cli: Cli, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        plant(patch, "double-is-nothing", "x * 2 --> x")
        plain = cli("verify", text)
        assert plain.code == 5 and "DIFFERS" in plain.out and "1 of 1 outputs differ from reference" in plain.err
        found = cli("verify", text, "--bisect", "--json")
        assert found.code == 5
        culprit = found.json["culprit"]
        assert (culprit["kind"], culprit["pass_name"], culprit["rule"]) == ("rewrite", "simplify", "double-is-nothing")
        assert culprit["without_pass"] == "right without it" and culprit["node"] == "1"
        # the product is gone, so the step is the one that reads it
        assert culprit["group_kind"] == "kernel" and culprit["group"] == ["neg %2", "neg %3", "exp %4"]
        # what it says reproduces
        assert cli("verify", text, "--fuel", culprit["fuel"]).code == 5
        assert cli("verify", text, "--fuel", culprit["fuel"] - 1).code == 0
        assert cli("verify", text, "--disable-pass", "simplify").code == 0
        # and so does what it leaves, which is smaller
        assert culprit["repro"] == "dlcompiler-repro"
        small = parse_graph((tmp_path / "dlcompiler-repro/graph.txt").read_text())
        assert [node.op.name for node in small.nodes] == ["constant", "mul", "neg"]
        assert repeat(cli, culprit, monkeypatch) == 5
        again = cli("verify", text, "--bisect")
        assert "repro  dlcompiler-repro-2" in again.out and "rule   double-is-nothing" in again.out
    assert repeat(cli, culprit, monkeypatch) == 0  # the rule is gone


def test_a_wrong_rule_in_an_onnx_file(cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = ("--input-shape", f"x:0:3x{WIDTH}")
    with monkeypatch.context() as patch:
        # a softmax is written out, so the node that the rule is applied to is no node of the file
        plant(patch, "shift-outside", "exp(x - y) --> exp(x) - y")
        found = cli("verify", model, "--bisect", "--json", *shape, "--repro", tmp_path / "found", "--against", "onnxruntime")
        culprit = found.json["culprit"]
        assert (culprit["rule"], culprit["location"]) == ("shift-outside", "softmax")
        assert "sub %softmax.exp" in culprit["group"]
        assert repeat(cli, culprit, monkeypatch) == 5
    assert repeat(cli, culprit, monkeypatch) == 0


def test_a_node_where_no_rewrite_is_to_blame(cli: Cli, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dlcompiler.reference as reference

    honest = reference.interpret_graph

    def wrong_from_exp_on(graph: Graph, inputs: Any, **more: Any) -> list[np.ndarray]:
        results = honest(graph, inputs, **more)
        return [r + 1 if any(n.op.name == "exp" for n in graph.nodes) else r for r in results]

    monkeypatch.setattr(reference, "interpret_graph", wrong_from_exp_on)
    culprit = cli("verify", text, "--bisect", "--json", "--repro", tmp_path / "found").json["culprit"]
    assert (culprit["kind"], culprit["node"], culprit["rule"]) == ("node", "4", None)
    assert "exp %4" in culprit["group"]
    small = parse_graph((tmp_path / "found/graph.txt").read_text())
    assert [node.op.name for node in small.nodes] == ["exp"]  # its operand is an input, saved beside it
    assert repeat(cli, culprit, monkeypatch) == 5


def test_nothing_is_left_where_nothing_is_wrong(cli: Cli, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    result = cli("verify", text, "--bisect", "--json")
    assert result.code == 0 and result.json["culprit"] is None and sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("reach", [(0, 0), (1, 0), (1, 1), (8, 8)])
def test_a_part_computes_what_the_whole_does(reach: tuple[int, int]) -> None:
    """With symbolic sizes too: `2*N` alone binds no N, so the input that does is kept."""
    from dlcompiler.ir.expression import symbol

    n = symbol("N")
    b = Builder("whole")
    x = b.input("x", TensorType(f32, (n, 4)))
    doubled = b.concat(x, b.exp(x), axis=0)
    summed = b.reduce_sum(b.mul(doubled, 3.0), axes=(1,))
    shaped = b.reshape(summed, shape=(2, n))
    graph = b.finish([b.neg(shaped)])
    value = np.random.default_rng(0).standard_normal((5, 4), np.float32)
    for node in (doubled, summed, shaped):
        keep, outputs = around(graph, node, *reach)
        part = isolate(graph, [value], keep, outputs)
        wanted = run_reference(graph.replace(outputs=outputs), [value])
        for ours, theirs in zip(run_reference(part.graph, part.values), wanted):
            np.testing.assert_array_equal(ours, theirs)
        assert part.size <= len([each for each in graph.nodes if each.op.name != "constant"])
        assert parse_graph(str(part.graph)).symbols == part.graph.symbols


@pytest.mark.parametrize("against", ["onnxruntime", "onnx"])
def test_a_node_that_is_imported_wrongly(
    cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, against: str
) -> None:
    from dlcompiler.frontends.onnx_registry import OPERATORS

    arguments = ("--against", against, "--bisect", "--input-shape", f"x:0:3x{WIDTH}", "--repro", tmp_path / "found")
    with monkeypatch.context() as patch:
        honest = OPERATORS[("", "Relu")]
        patch.setitem(OPERATORS, ("", "Relu"), lambda call: call.b.mul(honest(call), 1.5))
        found = cli("verify", model, *arguments, "--json")
        assert found.code == 5
        culprit = found.json["culprit"]
        told = {"kind": "import", "node": "relu", "operator": "ai.onnx.Relu", "version": 21, "output": "h3", "proved": True}
        assert told.items() <= culprit.items()
        small = onnx.load(Path(culprit["repro"]) / "node.onnx")
        assert [node.op_type for node in small.graph.node] == ["Relu"]
        onnx.checker.check_model(small)
        assert repeat(cli, culprit, monkeypatch) == 5
        assert (
            "import 'relu', Relu [ai.onnx 21], is imported as something else: h3: DIFFERS" in cli("verify", model, *arguments).out
        )
    assert repeat(cli, culprit, monkeypatch) == 0  # the fault is gone


def test_a_node_that_needs_to_know_a_shape(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shape that the file computes is a constant of the node that is left. A wrong branch is one node of the file."""
    from dlcompiler.frontends.onnx_registry import OPERATORS

    sizes = np.array([3, 2], np.int64)
    result = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
    branches = [helper.make_graph([helper.make_node(op, ["r"], ["b"])], op, [], [result]) for op in ("Neg", "Abs")]
    nodes = [
        helper.make_node("ReduceSum", ["x:0"], ["s"], keepdims=0),
        helper.make_node("Cast", ["s"], ["c"], to=TensorProto.BOOL),
        helper.make_node("Add", ["sizes", "zero"], ["shape"]),
        helper.make_node("Reshape", ["x:0", "shape"], ["r"], name="reshaped"),
        helper.make_node("If", ["c"], ["y"], name="chosen", then_branch=branches[0], else_branch=branches[1]),
    ]
    path = save(tmp_path / "m.onnx", nodes, [2, 3], [3, 2], sizes=sizes, zero=np.zeros(2, np.int64))
    arguments = ("verify", path, "--against", "onnxruntime", "--bisect", "--json", "--repro", tmp_path / "found")
    for op, name in (("Reshape", "reshaped"), ("Neg", "chosen")):
        with monkeypatch.context() as patch:
            honest = OPERATORS[("", op)]
            patch.setitem(OPERATORS, ("", op), lambda call, honest=honest: call.b.add(honest(call), 1.0))
            culprit = cli(*arguments, "--fill", "ones").json["culprit"]
            assert (culprit["node"], culprit["proved"]) == (name, True)
            assert repeat(cli, culprit, monkeypatch) == 5
        assert repeat(cli, culprit, monkeypatch) == 0
