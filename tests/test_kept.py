"""Programs kept on disk: found for the same file compiled in the same way, and for nothing else; the same bits; no torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from dlcompiler.ir.errors import InputError
from onnx import TensorProto, helper, numpy_helper

import dlcompiler
from dlcompiler import files
from dlcompiler.compiled import Compiled, KeptCompiled

WIDTH = 24
X = np.random.default_rng(1).standard_normal((3, WIDTH)).astype(np.float32)


def write_model(path: Path, seed: int = 0, rows: int | str = 3) -> None:
    """softmax(x @ w + b), its weight in a file beside it, its bias in the model."""
    random = np.random.default_rng(seed)
    weight = numpy_helper.from_array(random.standard_normal((WIDTH, WIDTH)).astype(np.float32), "w")
    bias = numpy_helper.from_array(random.standard_normal(WIDTH).astype(np.float32), "b")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Add", ["h", "b"], ["g"]),
        helper.make_node("Softmax", ["g"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, WIDTH]) for name in ("x", "y"))
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], [weight, bias]), ir_version=10)
    beside = {"save_as_external_data": True, "all_tensors_to_one_file": True, "location": "weights.bin"}
    (path.parent / "weights.bin").unlink(missing_ok=True)
    onnx.save(model, path, **beside, size_threshold=1024)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all: what this process has compiled is in it from the first time on."""
    from dlcompiler.codegen.cpu import driver

    dlcompiler.reset()
    driver._compiled.clear()
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def options(cache: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Files count as settled at once."""
    monkeypatch.setattr(files, "CLOCK_TICK", -(10**12))
    return {"cache_dir": str(cache), "cache_bytes": 1 << 28}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    write_model(path)
    return path


def compiled(path: Path, options: dict[str, Any], **more: Any) -> Compiled:
    return dlcompiler.compile(str(path), options=options, **more)


def test_found_again_with_the_same_bits(model: Path, options: dict[str, Any]) -> None:
    first, second = compiled(model, options), compiled(model, options)
    assert not isinstance(first, KeptCompiled) and isinstance(second, KeptCompiled)
    assert second(X).tobytes() == first(X).tobytes()
    assert second(x=X).tobytes() == first(X).tobytes()
    given = torch.from_numpy(X)
    result = second(given)
    assert isinstance(result, torch.Tensor) and result.numpy().tobytes() == first(X).tobytes()
    wide = np.repeat(X, 2, axis=1)[:, ::2]
    assert second(wide).tobytes() == first(X).tobytes()
    assert "graph" not in vars(second)  # nothing was compiled so far
    assert second.report().distinct == first.report().distinct
    assert len(second.program.steps) == len(first.program.steps) and second.input_names == ("x",)


def test_an_artefact_is_found_by_what_it_holds(model: Path, options: dict[str, Any], tmp_path: Path) -> None:
    whole = compiled(model, options)
    whole.save(tmp_path / "m.dlc")
    assert not isinstance(dlcompiler.load(tmp_path / "m.dlc", options=options), KeptCompiled)
    other = tmp_path / "elsewhere.dlc"
    other.write_bytes((tmp_path / "m.dlc").read_bytes())
    found = dlcompiler.load(other, options=options)
    assert isinstance(found, KeptCompiled) and found(X).tobytes() == whole(X).tobytes()
    damaged = bytearray(other.read_bytes())
    at = damaged.rindex(b"weights.safetensors", 0, len(damaged) // 2) + 1500
    damaged[at] ^= 1
    other.write_bytes(damaged)
    with pytest.raises(dlcompiler.ir.errors.InvalidModelError, match="SHA-256"):
        dlcompiler.load(other, options=options)


@pytest.mark.parametrize("change", ["model", "data", "options", "target", "shape", "sources"])
def test_what_has_changed_is_compiled(
    model: Path, options: dict[str, Any], change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = compiled(model, options)(X)
    more: dict[str, Any] = {}
    match change:
        case "model":
            write_model(model, seed=1)
        case "data":
            data = np.fromfile(tmp_path / "weights.bin", np.float32)
            (-data).tofile(tmp_path / "weights.bin")
        case "options":
            options = {**options, "optimization_level": 1}
        case "target":
            more = {"target": "cpu:x86-64-v3"}
        case "shape":
            more = {"dynamic_shapes": {"x": (3, WIDTH)}}
        case "sources":
            monkeypatch.setattr("dlcompiler.kept.compiler_state", lambda: "later")
    again = compiled(model, options, **more)
    assert not isinstance(again, KeptCompiled)
    assert np.allclose(again(X), before, atol=1e-5) == (change not in ("model", "data"))
    assert isinstance(compiled(model, options, **more), KeptCompiled)


def test_files_just_written_are_not_relied_on(model: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A second change within one tick of the clock would not show."""
    monkeypatch.setattr(files, "CLOCK_TICK", 10**12)
    compiled(model, options)
    assert not isinstance(compiled(model, options), KeptCompiled)


@pytest.mark.parametrize("kind", ["object", "program", "seen"])
def test_entries_that_are_gone_or_damaged_are_made_again(model: Path, options: dict[str, Any], tmp_path: Path, kind: str) -> None:
    expected = compiled(model, options)(X)
    folder = tmp_path / "copy"
    shutil.copytree(options["cache_dir"], folder)
    copy = {**options, "cache_dir": str(folder)}
    assert isinstance(compiled(model, copy), KeptCompiled)
    for path in folder.glob(f"*.{kind}"):
        path.write_bytes(path.read_bytes()[:-1]) if kind == "program" else path.unlink()
    again = compiled(model, copy)
    assert not isinstance(again, KeptCompiled) and again(X).tobytes() == expected.tobytes()
    if kind != "object":  # those this process holds, and does not write again
        assert isinstance(compiled(model, copy), KeptCompiled)


def test_inputs_that_do_not_fit_are_refused_as_ever(model: Path, options: dict[str, Any]) -> None:
    compiled(model, options)
    found = compiled(model, options)
    with pytest.raises(InputError, match="input 'x' must be"):
        found(X[:2])
    with pytest.raises(InputError, match="input 'x' must be"):
        found(X.astype(np.float64))
    with pytest.raises(InputError, match="no input 'z'"):
        found(z=X)


def test_sizes_known_when_called_are_not_kept(model: Path, options: dict[str, Any]) -> None:
    write_model(model, rows="n")
    assert not any(isinstance(compiled(model, options), KeptCompiled) for _ in range(2))


def test_calls_from_many_threads(model: Path, options: dict[str, Any]) -> None:
    compiled(model, options)
    found = compiled(model, options)
    expected = {k: (compiled(model, options)(X * k)).tobytes() for k in range(8)}
    wrong: list[int] = []

    def call(k: int) -> None:
        for _ in range(20):
            if found(X * k).tobytes() != expected[k]:
                wrong.append(k)

    threads = [threading.Thread(target=call, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_another_process_runs_it_without_torch_or_mlir(model: Path, options: dict[str, Any]) -> None:
    time.sleep(0.05)  # past a tick of the clock
    expected = compiled(model, options)(X)
    script = (
        "import json, sys; import numpy as np; import dlcompiler\n"
        f"y = dlcompiler.compile({str(model)!r}, options={options!r})(np.array({X.tolist()!r}, np.float32))\n"
        "heavy = ('torch', 'torch_mlir', 'onnx', 'dlcompiler.passes.pipeline')\n"
        "print(json.dumps([y.tolist(), [m for m in heavy if m in sys.modules]]))\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    values, loaded = json.loads(done.stdout)
    assert np.array(values, np.float32).tobytes() == expected.tobytes() and loaded == []
