"""Every way of starting kernels, through a driver that refuses what a real one refuses: see `stand_in_cuda`."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dlcompiler.codegen import emit
from dlcompiler.codegen.target import parse_target
from dlcompiler.ir.errors import LaunchError
from dlcompiler.ir.expression import symbol
from dlcompiler.ir.graph import Builder, Graph
from dlcompiler.ir.program import LibraryCall, Program
from dlcompiler.ir.types import TensorType, f32, f64
from dlcompiler.passes.block.fuse import fuse
from dlcompiler.passes.dataflow.memory import place
from dlcompiler.passes.dataflow.program import plan
from dlcompiler.passes.pipeline import optimize
from dlcompiler.runtime.gpu import GpuExecutable
from torch import nn

import dlcompiler
from dlcompiler.cli import boundary
from tests.runtime.stand_in_cuda import StandInCuda
from tests.runtime.stand_in_driver import StandInDriver

pytest.importorskip("triton")
TARGET = parse_target("cuda:sm_90")


def program_of(graph: Graph, target: Any = TARGET) -> Program:
    return emit(plan(fuse(optimize(graph, target), target), target), target)


def network(rows: Any, dtype: Any = f32) -> Graph:
    """Of float64 the product is a library's."""
    b = Builder("network")
    x, w = b.input("x", TensorType(dtype, (rows, 40))), b.input("w", TensorType(dtype, (40, 40)))
    return b.finish([b.softmax(b.add(b.matmul(b.gelu(x), w), 1.0), axis=1)])


def scaled(weight: torch.Tensor) -> Graph:
    """Of which the weight is a constant."""
    b = Builder("scaled")
    x = b.input("x", TensorType(f32, (6, 40)))
    return b.finish([b.softmax(b.mul(x, b.constant(weight.numpy(), f32)), axis=1)])


def small() -> Graph:
    b = Builder("small")
    x = b.input("x", TensorType(f32, (6, 40)))
    return b.finish([b.softmax(x, axis=1)])


def expected(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.softmax(torch.nn.functional.gelu(x) @ w + 1, 1)


@pytest.mark.parametrize("rows", [6, symbol("N")])
def test_a_program_runs(monkeypatch, rows):
    cuda = StandInCuda(monkeypatch)
    run = GpuExecutable(program_of(network(rows)), place)
    for count in (6,) if rows == 6 else (5, 1, 0, 5):
        x, w = torch.randn(count, 40), torch.randn(40, 40)
        torch.testing.assert_close(run([x, w])[0], expected(x, w))
    assert cuda.driver.launches and not cuda.driver.refused


def test_a_graph_holds_kernels_and_calls_of_a_library(monkeypatch):
    cuda = StandInCuda(monkeypatch)
    program = program_of(network(6, f64))
    assert any(isinstance(step, LibraryCall) for step in program.steps)
    run = GpuExecutable(program, place, graphs=True)
    w = torch.randn(40, 40).double()
    xs = [torch.randn(6, 40).double() for _ in range(4)]
    results = [run([x, w])[0] for x in xs]
    for x, result in zip(xs, results):
        torch.testing.assert_close(result, expected(x, w))
    assert cuda.recordings == 1 and cuda.replays == 3 and not cuda.driver.refused


def test_what_cannot_be_recorded_runs_step_by_step(monkeypatch, caplog):
    cuda = StandInCuda(monkeypatch)
    run = GpuExecutable(program_of(network(6)), place, graphs=True)
    cuda.fails = True
    w = torch.randn(40, 40)
    for _ in range(4):
        x = torch.randn(6, 40)
        torch.testing.assert_close(run([x, w])[0], expected(x, w))
    assert cuda.recordings == 1 and not cuda.replays and "without a CUDA graph" in caplog.text
    assert cuda.current.cuda_stream == 0  # a recording that fails leaves torch on the other stream


def test_a_call_goes_into_a_graph_of_somebody_else(monkeypatch):
    cuda = StandInCuda(monkeypatch)
    weight = torch.randn(6, 40)
    run = GpuExecutable(program_of(scaled(weight)), place)
    x = torch.randn(6, 40)
    graph = cuda.torch.CUDAGraph()
    with pytest.raises(LaunchError, match="call it once"), cuda.torch.graph(graph):
        run([x])
    run([x])
    graph = cuda.torch.CUDAGraph()
    with cuda.torch.graph(graph):
        (result,) = run([x])
    for _ in range(2):
        x.copy_(torch.randn(6, 40))
        graph.replay()
        torch.testing.assert_close(result, torch.softmax(x * weight, 1))
    weight.mul_(2)
    with pytest.raises(LaunchError, match="changed"), cuda.torch.graph(cuda.torch.CUDAGraph()):
        run([x])
    torch.testing.assert_close(run([x])[0], torch.softmax(x * weight, 1))


def test_streams_wait_once_for_what_they_share(monkeypatch):
    cuda = StandInCuda(monkeypatch)
    run = GpuExecutable(program_of(scaled(torch.randn(6, 40))), place)
    x = torch.randn(6, 40)
    first = run([x])[0]
    with cuda.on(cuda.new_stream()):
        for _ in range(2):
            torch.testing.assert_close(run([x])[0], first)
    assert cuda.waits == 1 and cuda.shared  # their memory is known to be used there
    assert len({launch.stream for launch in cuda.driver.launches}) == 2


def test_a_training_step_and_a_file(monkeypatch, tmp_path: Path):
    """Bundles, an update in place, and kernels out of a `.dlc`, which hold no more than what a launch needs."""
    cuda = StandInCuda(monkeypatch)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    batch = torch.randn(4, 5)
    step = dlcompiler.train_step(
        model, lambda m, x: m(x).square().mean(), optimizer, batch, target="cuda:sm_90", options={"cuda_graphs": True}
    )
    losses = [float(step(batch)) for _ in range(3)]
    assert losses == sorted(losses, reverse=True) and cuda.replays == 2 and not cuda.driver.refused
    path = tmp_path / "m.dlc"
    dlcompiler.compile(model.eval(), (batch,), target="cuda:sm_90").save(path)
    dlcompiler.reset()
    torch.testing.assert_close(dlcompiler.load(path, target="cuda:sm_90")(batch), model(batch))
    assert not cuda.driver.refused


def changed(program: Program, **fields: Any) -> Program:
    """A program whose first kernel says something else of itself."""
    first, *others = program.code.kernels
    return program.replace(code=replace(program.code, kernels=(replace(first, **fields), *others)))


WRONG: dict[str, dict[str, Any]] = {
    "threads": {"threads": 96}, "too few words": {"extra_words": 1}, "too many words": {"extra_words": 3},
    "no blocks of more than there are": {"grid": 1 << 31}, "shared memory": {"shared_bytes": 228 << 10},
    "name": {"name": "another"}, "binary": {"binary": b"\x7fELF" + bytes(60)},
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_launch_is_refused(monkeypatch, wrong):
    cuda = StandInCuda(monkeypatch)
    program = program_of(small())
    with pytest.raises(LaunchError):
        GpuExecutable(changed(program, **WRONG[wrong]), place)([torch.zeros(6, 40)])
    assert cuda.driver.refused or wrong.startswith("no blocks")
    assert GpuExecutable(program, place)([torch.zeros(6, 40)])  # as it was it runs


def break_stream(cuda: StandInCuda) -> None:
    cuda.current.cuda_stream = 0x1234


def break_context(cuda: StandInCuda) -> None:
    for function in cuda.driver.functions.values():
        function.context = 0x7777


@pytest.mark.parametrize("breaks", [break_stream, break_context])
def test_a_launch_elsewhere_is_refused(monkeypatch, breaks: Callable[[StandInCuda], None]):
    cuda = StandInCuda(monkeypatch)
    run = GpuExecutable(program_of(small()), place)
    run([torch.zeros(6, 40)])
    breaks(cuda)
    with pytest.raises(LaunchError, match="resource handle|context"):
        run([torch.zeros(6, 40)])


# -- what is wrong is said before anything runs ------------------------------------------------------------------------------


BAD: dict[str, tuple[str, dict[str, Any], int, str]] = {  # target, the driver, free memory, what is said
    "no GPU": ("sm_90", {"devices": 0}, 1 << 40, "no CUDA-capable device"),
    "an old GPU": ("sm_90", {"capability": (7, 0)}, 1 << 40, "is sm_70; kernels need sm_75 or newer"),
    "another GPU": ("sm_90", {"capability": (8, 0)}, 1 << 40, "made for sm_90, and this GPU is sm_80.*target='cuda:sm_80'"),
    "a relative": ("sm_100", {"capability": (10, 3)}, 1 << 40, "made for sm_100, and this GPU is sm_103"),
    "an old driver": ("sm_80", {"ptx": (7, 0)}, 1 << 40, "unsupported toolchain.*update the driver"),
    "no room for code": ("sm_90", {"code_bytes": 100}, 1 << 40, "loading kernel.*out of memory.*free memory"),
    "no room": ("sm_90", {}, 100, "MiB left.*smaller batch"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said_before_anything_runs(monkeypatch, tmp_path: Path, capsys, case):
    pytest.importorskip("torch_mlir")  # for the CPU, which goes on working
    arch, settings, free, words = BAD[case]
    saved, result = tmp_path / "m.dlc", tmp_path / "y.npz"
    text = tmp_path / "m.txt"
    text.write_text("graph m {\n  input %x : f32[6, 40]\n  %y = softmax(%x) {axis = 1} : f32[6, 40]\n  output %y\n}\n")
    assert boundary.run(["compile", str(text), "--target", f"cuda:{arch}", "--target", "cpu", "-o", str(saved)]) == 0
    cuda = StandInCuda(monkeypatch, StandInDriver(**settings), free)
    call = ["run", str(saved), "--fill", "random", "-o", str(result)]
    assert boundary.run([*call, "--target", f"cuda:{arch}"]) == boundary.RESOURCE
    said = capsys.readouterr().err
    assert re.search(words, said) and "Traceback" not in said
    assert not cuda.driver.launches and not result.exists()
    assert boundary.run([*call, "--target", "cpu"]) == 0 and result.exists()


def test_memory_that_torch_keeps_is_given_back_for_code(monkeypatch):
    cuda = StandInCuda(monkeypatch, StandInDriver(code_bytes=100))
    cuda.torch.empty_cache = lambda: setattr(cuda.driver, "code_bytes", 1 << 30)
    x = torch.randn(6, 40)
    torch.testing.assert_close(GpuExecutable(program_of(small()), place)([x])[0], torch.softmax(x, 1))


def test_code_of_programs_that_are_gone_is_unloaded(monkeypatch):
    cuda = StandInCuda(monkeypatch)
    counts = []
    for rows in range(1, 6):
        dlcompiler.reset()
        b = Builder("small")
        x = b.input("x", TensorType(f32, (rows, 40)))
        run = GpuExecutable(program_of(b.finish([b.softmax(x, axis=1)])), place)
        run([torch.zeros(rows, 40)])
        cuda.images.clear()
        cuda.driver.launches.clear()
        counts.append(cuda.driver.loaded)
        del run
        gc.collect()
    assert max(counts) <= 2
