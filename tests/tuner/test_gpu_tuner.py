"""The tuner for GPUs, on a device that runs kernels in Triton's interpreter and says itself how long each takes."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from dlcompiler.codegen.target import parse_target
from dlcompiler.ir.graph import Builder, Graph
from dlcompiler.ir.program import LibraryCall
from dlcompiler.ir.types import TensorType, f32

from dlcompiler import tuner
from dlcompiler.compiler import compile_graph
from dlcompiler.options import Options
from dlcompiler.tuner.bench import GpuBench
from tests.runtime.interpreted_device import InterpretedDevice

pytest.importorskip("triton")
TARGET = parse_target("cuda:sm_90")


def rows() -> Graph:
    b = Builder("rows")
    x = b.input("x", TensorType(f32, (4, 200)))
    return b.finish([b.softmax(x, axis=1)])


def tuned(monkeypatch, graph: Graph, device: InterpretedDevice, folder: Path, budget: float = 60.0):
    monkeypatch.setattr(tuner, "open_bench", lambda target: GpuBench(device))
    found = []

    class Watching(tuner.Search):
        def run(self, deadline):
            found.append(self)
            return super().run(deadline)

    monkeypatch.setattr(tuner, "Search", Watching)
    options = Options.resolve({"tune_budget": budget, "cache_dir": str(folder), "cache_bytes": 1 << 30})
    return compile_graph(graph, TARGET, options).program, found


def test_the_quickest_candidate_is_taken_and_kept(monkeypatch, tmp_path):
    graph = rows()
    first = compile_graph(graph, TARGET, Options()).program
    device = InterpretedDevice(cost=lambda kernel: 1e-4 if kernel.schedule == first.code.kernels[0].schedule else 1e-5)
    program, searches = tuned(monkeypatch, graph, device, tmp_path)
    assert len(searches) == 1 and program.code.kernels[0].schedule != first.code.kernels[0].schedule
    device.started.clear()
    again, searches = tuned(monkeypatch, graph, device, tmp_path)
    assert not searches and not device.started  # from disk
    assert again.code.kernels[0].schedule == program.code.kernels[0].schedule


def test_nothing_changes_where_the_cost_model_is_right(monkeypatch, tmp_path):
    graph = rows()
    first = compile_graph(graph, TARGET, Options()).program.code.kernels[0].schedule
    program, _ = tuned(monkeypatch, graph, InterpretedDevice(), tmp_path)
    assert program.code.kernels[0].schedule == first


def test_a_library_may_be_quicker(monkeypatch, tmp_path):
    b = Builder("product")
    x, w = b.input("x", TensorType(f32, (32, 32))), b.input("w", TensorType(f32, (32, 32)))
    graph = b.finish([b.matmul(x, w)])
    device = InterpretedDevice(cost=lambda kernel: 1e-4)  # library calls cost nothing here
    program, _ = tuned(monkeypatch, graph, device, tmp_path)
    assert [type(step) for step in program.steps] == [LibraryCall]


def test_a_machine_without_that_gpu_tunes_nothing_and_says_so(tmp_path, caplog):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    options = Options.resolve({"mode": "max-autotune", "cache_dir": str(tmp_path)})
    assert options.tune_budget
    with caplog.at_level(logging.WARNING, "dlcompiler"):
        assert compile_graph(rows(), TARGET, options).program.code.kernels
    assert "nothing is tuned for cuda:sm_90" in caplog.text
