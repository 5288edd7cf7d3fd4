"""Files from strangers: what mutation found once, and what it would take long to find. Never a traceback, never code 1.

`python -m tests.bench.fuzz` makes such files by the thousand.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.bench.fuzz import cases, mutations, seeds
from tests.cli.conftest import TEXT, Cli, save

CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_what_broke_it_once(cli: Cli, path: Path) -> None:
    command = ("run", path, "--fill", "random") if path.name.startswith("run-") else ("compile", path)
    result = cli(*command)
    assert result.code in (0, 3, 4) and len(result.err) < 4000


@pytest.mark.parametrize("deep", ["[" * 50_000, "(" * 50_000, "{a = " * 50_000, "- " * 50_000, "div(" * 50_000])
def test_deep_brackets_in_text(cli: Cli, text: Path, deep: str) -> None:
    text.write_text(TEXT.replace("neg(%1)", f"neg(%1) {{a = {deep}"))
    result = cli("compile", text)
    assert result.code == 3 and "nested more than" in result.err and len(result.err) < 1000
    text.write_text(TEXT.replace("f32[4, 3]\n  %3", f"f32[{deep}\n  %3"))
    assert cli("compile", text).code == 3


@pytest.mark.parametrize("size", ["9" * 19, "9" * 400, "9" * 5000, "9" * 30 + "*N", "div(N, " + "9" * 30 + ")"])
def test_sizes_that_no_machine_has(cli: Cli, text: Path, size: str) -> None:
    text.write_text(TEXT.replace("[4, 3]", f"[{size}, 3]"))
    assert cli("compile", text).code == 3


def test_a_device_is_no_model(cli: Cli, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.onnx"
    os.mkfifo(pipe)
    for path in ("/dev/zero", pipe):
        result = cli("compile", path)
        assert result.code == 3 and "a device or a pipe" in result.err


def test_an_onnx_file_of_more_than_protobuf_allows(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate((1 << 31) + 5)  # takes no space on disk
    result = cli("compile", path)
    assert result.code == 3 and "2 GiB" in result.err


def test_external_data_of_more_than_4_gib(cli: Cli, tmp_path: Path) -> None:
    """Offsets beyond 32 bits; the file is sparse, and only what is used is read."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "weights.bin"), ("offset", str(5 << 30)), ("length", "16")):
        weight.external_data.add(key=key, value=value)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "m.onnx")
    with (tmp_path / "weights.bin").open("wb") as file:
        file.seek(5 << 30)
        file.write(np.arange(4, dtype=np.float32).tobytes())
    assert cli("run", tmp_path / "m.onnx", "--fill", "zeros", "-o", tmp_path / "out.npz").code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "out.npz")["y"], np.arange(4, dtype=np.float32))


def test_a_bomb_is_not_folded(cli: Cli, tmp_path: Path) -> None:
    """A file of a few hundred bytes that asks for 16 TiB of constants compiles, since nobody reads more than one element."""
    big = np.array([1 << 21, 1 << 21], np.int64)
    nodes = [
        helper.make_node("ConstantOfShape", ["big"], ["zeros"]),
        helper.make_node("Slice", ["zeros", "start", "stop"], ["few"]),
        helper.make_node("Add", ["x:0", "few"], ["y"]),
    ]
    start, stop = np.zeros(2, np.int64), np.ones(2, np.int64)
    path = save(tmp_path / "bomb.onnx", nodes, [2, 3], [2, 3], big=big, start=start, stop=stop)
    assert path.stat().st_size < 1000
    result = cli("run", path, "--fill", "ones", "--json")
    assert result.code == 0 and result.json["outputs"][0]["max"] == 1.0


def test_more_than_memory_is_the_files_or_the_callers_doing(cli: Cli, tmp_path: Path) -> None:
    """The same tensors: 4 where the file says that they are so large, 6 where the command line does."""
    nodes = [helper.make_node("Softmax", ["x:0"], ["y"])]
    huge, open_ = (save(tmp_path / f"{size}.onnx", nodes, [size, 1 << 20], [size, 1 << 20]) for size in (1 << 30, "n"))
    of_file = cli("run", huge, "--fill", "ones")
    assert of_file.code == 4 and "8.0 PiB" in of_file.err and "'x:0'" in of_file.err and "this process may have" in of_file.err
    of_caller = cli("run", open_, "--fill", "ones", "--input-shape", f"x:0:{1 << 30}x{1 << 20}")
    assert of_caller.code == 6 and "out of memory" in of_caller.err and "8.0 PiB" in of_caller.err
    assert cli("verify", huge).code == 4 and cli("bench", huge).code == 4
    assert cli("compile", huge).code == 0  # it may be run elsewhere
    assert cli("run", open_, "--fill", "ones").code == 0


def test_some_mutations_of_each_kind(cli: Cli, tmp_path: Path) -> None:
    for kind in cases.KINDS:
        for index in range(0, 600, 40):
            case = cases.make(1, index, kind)
            path = tmp_path / case.name
            path.write_bytes(case.data)
            result = cli("compile", path)
            assert result.code in (0, 3, 4), f"{kind} {index}: {case.said}: {result.err}"
            assert result.code == 0 or result.err.startswith("dlcompiler: error: ")


def test_a_case_is_the_same_each_time() -> None:
    for kind in cases.KINDS:
        assert cases.make(3, 7, kind) == cases.make(3, 7, kind)
        assert cases.make(3, 7, kind) != cases.make(4, 8, kind)
    name, model = seeds.models()[0]
    assert mutations.truncate(model.SerializeToString(), 5)[0] == model.SerializeToString()[:5]
