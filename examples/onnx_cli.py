"""An ONNX file through the command line: compile, run, verify, inspect."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def write_model(path: Path) -> None:
    """A small perceptron: softmax(relu(x @ w1 + b1) @ w2), with a batch size that is known only when called."""
    random = np.random.default_rng(0)
    weights = {"w1": (64, 128), "b1": (128,), "w2": (128, 10)}
    tensors = [numpy_helper.from_array(random.standard_normal(s).astype(np.float32) / 8, n) for n, s in weights.items()]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h1"], name="first"),
        helper.make_node("Add", ["h1", "b1"], ["h2"], name="bias"),
        helper.make_node("Relu", ["h2"], ["h3"], name="relu"),
        helper.make_node("MatMul", ["h3", "w2"], ["h4"], name="second"),
        helper.make_node("Softmax", ["h4"], ["y"], name="softmax", axis=-1),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", s]) for n, s in (("x", 64), ("y", 10)))
    graph = helper.make_graph(nodes, "perceptron", [x], [y], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


def dlcompiler(*arguments: object) -> None:
    """Run the command line as a shell would."""
    print(f"\n$ dlcompiler {' '.join(Path(str(a)).name if '/' in str(a) else str(a) for a in arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", "dlcompiler", *map(str, arguments)], check=True)


with tempfile.TemporaryDirectory() as folder:
    model, saved = Path(folder) / "model.onnx", Path(folder) / "model.dlc"
    write_model(model)
    np.savez(Path(folder) / "in.npz", x=np.ones((3, 64), np.float32))
    dlcompiler("compile", model, "-o", saved)
    dlcompiler("run", saved, "-i", Path(folder) / "in.npz", "-o", Path(folder) / "out.npz")
    dlcompiler("verify", model, "--input-shape", "x:4x64")
    dlcompiler("inspect", model, "--stage", "kernels")
    with np.load(Path(folder) / "out.npz") as outputs:
        assert np.allclose(outputs["y"].sum(axis=1), 1)
