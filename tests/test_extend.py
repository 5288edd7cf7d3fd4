"""Operators and rewrites of a user's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from dlcompiler.ir.errors import InvalidModelError, OptionError, UnsupportedError
from onnx import TensorProto, helper

import dlcompiler
from dlcompiler import extend
from dlcompiler.cli.boundary import run
from dlcompiler.kept import Place
from dlcompiler.options import Options

DEFINITIONS = """
from dlcompiler import extend

@extend.operator("com.example::SoftClip")
def soft_clip(b, x, limit=1.0):
    return b.mul(b.tanh(b.div(x, limit)), limit)
"""


@pytest.fixture(autouse=True)
def _nothing_registered() -> Iterator[None]:
    yield
    extend.forget()


def soft_clip(b, x, limit=1.0):
    return b.mul(b.tanh(b.div(x, limit)), limit)


def model_with(op: str, shape=("n", 8), **attributes) -> onnx.ModelProto:
    """relu(x), then an operator of com.example, whose rows are as many as it likes, then abs."""
    nodes = [
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node(op, ["h"], ["k"], name="own", domain="com.example", **attributes),
        helper.make_node("Abs", ["k"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", 8])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.example", 1)]
    return helper.make_model(helper.make_graph(nodes, "own", [x], [y]), opset_imports=opsets, ir_version=10)


X = np.linspace(-4, 4, 24, dtype=np.float32).reshape(3, 8)


def test_an_operator_is_fused_with_what_is_around_it_on_every_target() -> None:
    extend.operator("com.example::SoftClip")(soft_clip)
    model = model_with("SoftClip", (3, 8), limit=2.0)
    expected = np.abs(2 * np.tanh(np.maximum(X, 0) / 2))
    compiled = dlcompiler.compile(model, options={"strict": True})
    np.testing.assert_allclose(compiled(X), expected, atol=1e-6)
    assert len(compiled.program.steps) == 1
    on_gpu = dlcompiler.compile(model, target="cuda:sm_90", options={"strict": True})
    np.testing.assert_allclose(on_gpu.simulate(X), expected, atol=1e-6)


def test_an_operator_takes_the_place_of_ours_and_of_the_files_own_function() -> None:
    model = model_with("SoftClip")
    body = [helper.make_node("Neg", ["a"], ["b"])]
    model.functions.append(helper.make_function("com.example", "SoftClip", ["a"], ["b"], body, [helper.make_opsetid("", 21)]))
    np.testing.assert_allclose(dlcompiler.compile(model)(X), np.maximum(X, 0))
    extend.operator("com.example::SoftClip")(lambda b, x: b.mul(x, 3.0))
    extend.operator("ai.onnx::Abs")(lambda b, x: b.add(x, 1.0))
    np.testing.assert_allclose(dlcompiler.compile(model)(X), 3 * np.maximum(X, 0) + 1)


def test_a_host_operator_tells_sizes_that_only_data_knows_and_is_named_in_an_artefact(tmp_path: Path) -> None:
    @extend.host_operator("com.example::Longest", results=lambda x, at_least: [("f32", (None, x.shape[1]))])
    def longest(x, at_least):
        return x[np.abs(x).sum(axis=1) > at_least]

    compiled = dlcompiler.compile(model_with("Longest", at_least=1.0))
    assert compiled.report().host[0].reason == "defined by the user"
    h = np.maximum(X, 0)
    np.testing.assert_array_equal(compiled(X), h[h.sum(axis=1) > 1])
    compiled.save(tmp_path / "own.dlc")
    np.testing.assert_array_equal(dlcompiler.load(tmp_path / "own.dlc")(X), compiled(X))
    extend.forget()
    with pytest.raises(UnsupportedError, match=r"com\.example::Longest; import the module that defines it"):
        dlcompiler.load(tmp_path / "own.dlc")(X)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda b, x: x, r"given 1 inputs and the attributes limit, .*unexpected keyword argument 'limit'.*test_extend\.py"),
        (lambda b, x, y, limit: x, r"missing a required argument: 'y'"),
        (lambda b, x, limit: "x", r"they are nodes, or None \(at own\)"),
        (lambda b, x, limit: (), r"gives 1 results here, its definition 0; they are nodes"),
        (lambda b, x, limit: b.matmul(x, x), r"matmul"),
        (lambda b, x, limit: x / 0, r"the definition of com\.example::SoftClip fails: TypeError.*test_extend\.py"),
    ],
)  # fmt: skip
def test_a_definition_that_does_not_fit_says_where_it_is(function, message: str) -> None:
    extend.operator("com.example::SoftClip")(function)
    with pytest.raises(InvalidModelError, match=message):
        dlcompiler.compile(model_with("SoftClip", (3, 8), limit=1.0))


def test_a_torch_operator_is_no_call_of_aten_any_more_forward_or_backward() -> None:
    library = torch.library.Library("dlcompiler_test", "DEF")
    library.define("cube(Tensor x, float scale) -> Tensor")
    library.impl("cube", lambda x, scale: x * x * x * scale, "CPU")
    library.impl("cube", lambda x, scale: torch.empty_like(x), "Meta")
    torch.library.register_autograd(
        "dlcompiler_test::cube",
        lambda ctx, g: (3 * ctx.saved_tensors[0] ** 2 * ctx.scale * g, None),
        setup_context=lambda ctx, inputs, output: (ctx.save_for_backward(inputs[0]), setattr(ctx, "scale", inputs[1])),
    )

    def forward(x: torch.Tensor) -> torch.Tensor:
        return torch.ops.dlcompiler_test.cube(torch.relu(x), 0.5) + 1

    def run_both() -> None:
        torch._dynamo.reset()
        x = torch.linspace(-2, 2, 30).reshape(5, 6).requires_grad_()
        other = x.detach().clone().requires_grad_()
        result, expected = torch.compile(forward, backend="dlcompiler")(x), forward(other)
        result.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(result, expected)
        torch.testing.assert_close(x.grad, other.grad)

    run_both()
    assert dlcompiler.reports()[-2].aten[0].name == "dlcompiler_test.cube.default"

    @extend.operator("dlcompiler_test::cube")
    def cube(b, x, scale):
        return b.mul(b.mul(b.mul(x, x), x), scale)

    run_both()
    assert not dlcompiler.reports()[-2].aten and dlcompiler.reports()[-2].kernels == 1
    extend.forget()
    extend.operator("dlcompiler_test::cube")(lambda b, x, scale: b.reduce_sum(x, axes=(0,)))
    with pytest.raises(InvalidModelError, match=r"gave f32\[6\], torch gives f32\[5, 6\]"):
        dlcompiler.compile(forward, (torch.ones(5, 6),))


def test_a_rewrite_fires_where_its_numerics_allow_and_before_composites_are_broken_up() -> None:
    extend.rewrite("swish", "x * sigmoid(x) --> silu(x)", exact=False)
    extend.rewrite("log-exp", "log(exp(x)) --> x", exact=False, takes="float")

    def forward(x: torch.Tensor) -> torch.Tensor:
        return torch.log(torch.exp(x * torch.sigmoid(x))) * 2

    x = torch.linspace(-3, 3, 12)
    for options, fired in (({}, 2), ({"numerics": "eager"}, 0), ({"disabled_passes": ["own-rewrites"]}, 0)):
        compiled = dlcompiler.compile(forward, (x,), options=options)
        lines = [line for line in compiled.report().history if "own-rewrites" in line]
        assert sum(line.count("×1") for line in lines) == fired, compiled.report().history
        torch.testing.assert_close(compiled(x), forward(x))


@pytest.mark.parametrize(
    ("line", "message"),
    [("log(exp(x)) > x", "no -->"), ("x --> x", "x is no op"), ("log(x) --> y", "y is not on its left side"),
     ("logg(x) --> x", "did you mean log"), ("log(x --> x", "never closed")],
)  # fmt: skip
def test_a_line_that_is_no_rewrite_is_refused(line: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        extend.rewrite("bad", line, exact=True)


def test_names_are_checked_and_a_name_has_one_definition() -> None:
    for name in ("SoftClip", "::SoftClip", "com.example::"):
        with pytest.raises(OptionError, match="is no name of an operator"):
            extend.operator(name)(soft_clip)
    extend.operator("com.example::SoftClip")(soft_clip)
    extend.operator("com.example::SoftClip")(soft_clip)  # a module that is run again
    with pytest.raises(OptionError, match=r"is defined already, by .*test_extend\.py:\d+"):
        extend.operator("com.example::SoftClip")(lambda b, x: x)


def test_whole_programs_are_not_kept_while_something_is_registered(tmp_path: Path) -> None:
    options = Options.resolve({"cache_dir": str(tmp_path), "cache_bytes": 1 << 20})
    assert Place("load", "cpu", options, None).store is not None
    extend.operator("com.example::SoftClip")(soft_clip)
    assert Place("load", "cpu", options, None).store is None


def test_the_command_line_runs_an_extension_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, definitions, out = tmp_path / "own.onnx", tmp_path / "own.py", tmp_path / "out.npz"
    onnx.save(model_with("SoftClip", (3, 8), limit=2.0), path)
    definitions.write_text(DEFINITIONS)
    np.savez(tmp_path / "in.npz", x=X)
    assert run(["run", str(path), "-i", str(tmp_path / "in.npz")]) == 4
    assert run(["run", str(path), "--extension", str(definitions), "-i", str(tmp_path / "in.npz"), "-o", str(out)]) == 0
    with np.load(out) as outputs:
        np.testing.assert_allclose(outputs["y"], np.abs(2 * np.tanh(np.maximum(X, 0) / 2)), atol=1e-6)
    for missing in ("nothing.py", "no_such_module_1", "no.such.module"):
        assert run(["compile", str(path), "--extension", missing]) == 2
    assert "no such file" in capsys.readouterr().err
