"""The command line in this process, and small models as files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dlcompiler.cli.boundary import run

WIDTH, CLASSES = 12, 5
OPSETS = [helper.make_opsetid("", 21), helper.make_opsetid("acme", 1)]


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout as the one JSON document that it must be."""
        return json.loads(self.out)


Cli = Callable[..., Result]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a command; every error must be one line, without a traceback."""

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No option comes from whoever runs the tests."""
    for name in ("CACHE_DIR", "DISABLE_CACHE", "DUMP_DIR", "LOGS", "STRICT", "VERIFY", "PROGRESS", "FUEL"):
        monkeypatch.delenv(f"DLCOMPILER_{name}", raising=False)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """softmax(relu(x @ w + b)), with a batch size that is known when called. Input `x:0`, output `y`."""
    random = np.random.default_rng(0)
    weight, bias = random.standard_normal((WIDTH, CLASSES), np.float32), random.standard_normal(CLASSES, np.float32)
    nodes = [
        helper.make_node("MatMul", ["x:0", "w"], ["h1"], name="dense"),
        helper.make_node("Add", ["h1", "b"], ["h2"], name="bias"),
        helper.make_node("Relu", ["h2"], ["h3"], name="relu"),
        helper.make_node("Softmax", ["h3"], ["y"], name="softmax", axis=-1),
    ]
    return save(tmp_path_factory.mktemp("model") / "model.onnx", nodes, ["batch", WIDTH], ["batch", CLASSES], w=weight, b=bias)


def save(path: Path, nodes: list[Any], x: list[Any], y: list[Any], **weights: np.ndarray) -> Path:
    """An ONNX file with one float input `x:0` and one float output `y`."""
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info("x:0", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=OPSETS, ir_version=10), path)
    return path


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Three rows of input, by name."""
    path = tmp_path / "in.npz"
    np.savez(path, **{"x:0": np.random.default_rng(1).standard_normal((3, WIDTH), np.float32)})
    return path


TEXT = """graph small {
  input %x : f32[4, 3]
  %c = constant 2.0 : f32[]
  %1 = mul(%x, %c) : f32[4, 3]
  %2 = neg(%1) : f32[4, 3]
  %3 = neg(%2) : f32[4, 3]
  %4 = exp(%3) : f32[4, 3]
  output %4
}
"""


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A graph as text: exp(neg(neg(x * 2)))."""
    path = tmp_path / "small.txt"
    path.write_text(TEXT)
    return path
