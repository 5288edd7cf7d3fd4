"""Dumps: whole, linked both ways, readable back, safe in their names, and never in the way."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from dlcompiler.codegen.target import parse_target
from dlcompiler.ir.graph import Builder, Graph
from dlcompiler.ir.text import parse_graph
from dlcompiler.ir.types import TensorType, f32
from onnx import TensorProto, helper

import dlcompiler
from dlcompiler.dump import open_dump, safe_name
from dlcompiler.options import Options

LINK = re.compile(r"\]\(([^)\s]+)\)")


def two_kernels(name: str = "model") -> Graph:
    """A softmax, then a product with an exponential in the same kernel; each op has a line."""
    b = Builder(name)
    x = b.input("x", TensorType(f32, (6, 6)))
    b.location = "net.py:3"
    soft = b.softmax(x, axis=1)
    b.location = "net.py:4"
    product = b.matmul(soft, x)
    b.location = "net.py:5 | [odd] <name>"
    return b.finish([b.exp(b.neg(b.neg(product)))])


def dump_of(graph: Graph, folder: Path) -> Path:
    return Path(str(dlcompiler.compile(graph, options={"dump_dir": str(folder)}).report().dump))


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    return dump_of(two_kernels(), tmp_path)


def test_what_is_there(dump: Path) -> None:
    names = {path.name for path in dump.iterdir()}
    assert names >= {
        "index.md", "00-captured.txt", "ops.md", "sources.md", "program.txt", "memory.txt", "memory.json", "refusals.txt",
        "report.json", "kernels",
    }  # fmt: skip
    assert dump.name == "0001-model" and not list(dump.parent.glob(".*"))
    kernels = sorted(path.name for path in (dump / "kernels").iterdir())
    assert kernels == ["000-softmax", "001-linear_exp"]
    for kernel in (dump / "kernels").iterdir():
        files = {path.name for path in kernel.iterdir()}
        assert files >= {"index.md", "kernel.txt", "schedule.txt", "kernel.mlir", "kernel.llvm.mlir"}


def test_every_link_leads_somewhere(dump: Path) -> None:
    count = 0
    for page in dump.rglob("*.md"):
        text = page.read_text()
        for link in LINK.findall(text):
            file, _, anchor = link.partition("#")
            target = (page.parent / file).resolve()
            assert target.exists(), f"{page.name} -> {link}"
            if anchor and anchor != "steps":
                assert f'<a id="{anchor}"></a>' in target.read_text(), f"{page.name} -> {link}"
            count += 1
    assert count > 20


def test_from_a_kernel_to_its_ops_to_their_lines_and_back(dump: Path) -> None:
    kernel = next(path for path in (dump / "kernels").iterdir() if "softmax" in path.name)
    page = (kernel / "index.md").read_text()
    assert "ops.md#op-softmax" in page and "net.py:3" in page and "net.py:4" not in page
    for other in ("ops.md", "sources.md", "index.md"):
        assert f"kernels/{kernel.name}/index.md" in (dump / other).read_text()


def test_stages_are_numbered_and_parse_back(dump: Path) -> None:
    stages = sorted(path for path in dump.glob("[0-9][0-9]-*.txt"))
    assert [int(path.name[:2]) for path in stages] == list(range(len(stages)))
    graphs = [parse_graph(path.read_text()) for path in stages]
    assert [n.op.name for n in graphs[0].nodes].count("neg") == 2
    assert [n.op.name for n in graphs[-1].nodes].count("neg") == 0
    index = (dump / "index.md").read_text()
    assert all(f"[{path.name}]({path.name})" in index for path in stages)


def test_memory_plan_is_the_programs(dump: Path) -> None:
    plan = json.loads((dump / "memory.json").read_text())
    slots = {slot["name"]: slot for slot in plan["slots"]}
    inside = [slot for slot in slots.values() if slot["role"] == "intermediate"]
    assert inside and max(slot["offset"] + slot["bytes"] for slot in inside) <= plan["arena_bytes"]
    assert max(plan["live_bytes"]) == plan["lower_bound"]
    text = (dump / "memory.txt").read_text()
    assert all(name in text for name in slots)
    assert json.loads((dump / "report.json").read_text())["planned_peak"] == plan["arena_bytes"]


def test_each_compilation_has_a_folder_of_its_own(tmp_path: Path) -> None:
    names = [dump_of(two_kernels(name), tmp_path).name for name in ("a", "a", "b")]
    assert names == ["0001-a", "0002-a", "0003-b"]


@pytest.mark.parametrize("name", ["../../etc/passwd", "con|out:*?", "", ".", "x" * 500, "größe", "a/b\\c\0d"])
def test_names_are_safe(name: str) -> None:
    safe = safe_name(name)
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,59}", safe) and ".." not in safe


def test_stays_inside_its_folder(tmp_path: Path) -> None:
    inside = tmp_path / "dumps"
    dump_of(two_kernels("../../escape"), inside)
    assert [path.name for path in tmp_path.iterdir()] == ["dumps"]


def test_a_failed_compilation_leaves_its_traceback(tmp_path: Path) -> None:
    dump = open_dump(Options(dump_dir=str(tmp_path)), "broken", parse_target("cpu"))
    assert dump is not None
    with pytest.raises(ZeroDivisionError), dump:
        dump.graph("captured", two_kernels())
        raise ZeroDivisionError("half way")
    (folder,) = tmp_path.iterdir()
    assert "half way" in (folder / "error.txt").read_text() and (folder / "00-captured.txt").exists()


def test_an_interrupted_compilation_leaves_nothing(tmp_path: Path) -> None:
    dump = open_dump(Options(dump_dir=str(tmp_path)), "broken", parse_target("cpu"))
    assert dump is not None
    with pytest.raises(KeyboardInterrupt), dump:
        dump.graph("captured", two_kernels())
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_disk_that_takes_no_more_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("dlcompiler").propagate = True

    def full(self: Path, *arguments: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    compiled = dlcompiler.compile(two_kernels(), options={"dump_dir": str(tmp_path)})
    x = np.zeros((6, 6), np.float32)
    assert compiled(x).shape == (6, 6)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "No space left" in caplog.text and not list(tmp_path.iterdir())


def test_torch_and_onnx_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLCOMPILER_DUMP_DIR", str(tmp_path))
    torch._dynamo.reset()

    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x, -1) * 2

    with torch.no_grad():
        torch.compile(function, backend="dlcompiler")(torch.ones(3, 4))
    node = helper.make_node("Softmax", ["x"], ["y"], name="soft", axis=-1)
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [3, 4]) for n in "xy"]
    model = helper.make_model(helper.make_graph([node], "onnx_graph", values[:1], values[1:]), ir_version=10,
                              opset_imports=[helper.make_opsetid("", 21)])  # fmt: skip
    onnx.checker.check_model(model)
    dlcompiler.compile(model)
    first, second = sorted(tmp_path.iterdir())
    assert "test_dump.py" in (first / "sources.md").read_text()
    assert second.name == "0002-onnx_graph" and "soft" in (second / "sources.md").read_text()


def test_dynamic_programs_say_what_is_open(tmp_path: Path) -> None:
    from dlcompiler.ir.expression import symbol

    b = Builder("open")
    x = b.input("x", TensorType(f32, (symbol("N"), 5)))
    dump = dump_of(b.finish([b.matmul(b.softmax(x, axis=1), b.permute(b.exp(x), dims=(1, 0)))]), tmp_path)
    assert "offsets are made at the first call, when N are known" in (dump / "memory.txt").read_text()


def test_folder_that_cannot_be_written_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("dlcompiler").propagate = True
    (tmp_path / "file").write_text("")
    compiled = dlcompiler.compile(two_kernels(), options={"dump_dir": str(tmp_path / "file" / "dump")})
    assert compiled.report().dump is None and len(caplog.records) == 1
    assert os.listdir(tmp_path) == ["file"]
