"""The tables' own code on one tiny case each: that they run and count rightly, never how fast anything is."""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import dlcompiler
from tests import zoo
from tests.bench import contraction_cases, contraction_libraries, contractions, machine_peak, where


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """No gradients, and one thread, which a busy machine gives too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)
    dlcompiler.reset()


def test_limits_are_measured() -> None:
    single = machine_peak.multiply_add_peak(1, seconds=0.002)
    double = machine_peak.multiply_add_peak(1, torch.float64, seconds=0.002)
    assert 1e9 < double < single < 1e12
    assert 1e8 < machine_peak.read_bandwidth(1, 1 << 20, seconds=0.002) < 1e13
    assert 1e8 < machine_peak.copy_bandwidth(1, 1 << 20, seconds=0.002) < 1e13


@pytest.mark.parametrize("loop", ("copy", "copy_past_caches"))
def test_threads_share_a_loop(loop: str) -> None:
    part = machine_peak.part_elements(1 << 12, 2)
    source, target = torch.arange(float(2 * part)), torch.zeros(2 * part)
    machine_peak.runner(loop, (source, target), part, 2, 2)()
    assert torch.equal(source, target)


def test_the_table_has_at_least_44_contractions() -> None:
    assert len(contraction_cases.CASES) >= 44


@pytest.mark.parametrize(
    "name",
    (
        "relu-128x768x768",
        "f64-127x515x333",
        "odd-33x1001x77",
        "weight-gradient-515x333x127",
        "bert-scores-12x128x128x64",
        "mobilenet-960-depthwise-3x3s1@7",
        "transposed-512-256-4x4s2@4",
        "line-64-128-5@1024",
    ),
)
def test_libraries_agree(name: str) -> None:
    case = contraction_cases.build(name)
    expected = case.module(*case.inputs)
    for label, call in contraction_libraries.candidates(case).items():
        torch.testing.assert_close(call(), expected, rtol=1e-4, atol=1e-4, msg=lambda text, label=label: f"{label}: {text}")


def test_a_case_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(contraction_cases.CASES, "tiny", lambda name: contraction_cases.epilogue(name, 3, 5, 7, "add"))
    measured = contractions.measure("tiny", 1, 1, {torch.float32: 1e9})
    assert measured.reason == "" and measured.error < 1e-5
    assert measured.speed == pytest.approx(2 * 3 * 5 * 7 / measured.seconds)
    assert math.isfinite(measured.epilogue_cost) and math.isfinite(measured.library_epilogue_cost)
    assert len(contractions.row(measured)) == len(contractions.HEADER)
    contractions.print_summary([measured])
    assert "tiny" in capsys.readouterr().out


def test_thread_counts() -> None:
    assert contractions.thread_counts("1,2") == [1, 2]
    for text in ("", "0", "two", "1,"):
        with pytest.raises(argparse.ArgumentTypeError):
            contractions.thread_counts(text)


def test_a_models_steps_are_grouped(capsys: pytest.CaptureFixture[str]) -> None:
    model = zoo.build("bert-base", "tiny")
    compiled = dlcompiler.compile(model.module, model.inputs)
    limits = where.Limits(1e9, 1e9, 1e9)
    groups = where.groups_of(compiled.program, compiled.profile(*model.inputs, rounds=1), limits)
    assert sum(group.count for group in groups) == len(compiled.program.steps)
    # 11 tokens: in each of two layers four linears of 32 x 32, two of 32 x 64, and attention; the pooler sees one token
    layer = 2 * 11 * (4 * 32 * 32 + 2 * 32 * 64) + 2 * 2 * 11 * 11 * 32
    assert sum(group.flops for group in groups) == 2 * layer + 2 * 32 * 32
    assert all(group.floor > 0 for group in groups)
    where.print_table("bert-base", groups, 2)
    assert "other groups" in capsys.readouterr().out


def test_a_convolutions_flops_are_counted() -> None:
    case = contraction_cases.convolution("c", "c", torch.nn.Conv2d(4, 6, 3, 2, 1, groups=2), (9, 8))
    compiled = dlcompiler.compile(case.module, case.inputs)
    assert sum(map(where.contraction_flops, compiled.program.graph.nodes)) == case.flops == 2 * 5 * 4 * 6 * 2 * 9


def test_a_lookup_counts_what_comes_out() -> None:
    class Lookup(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Parameter(torch.ones(1000, 8), requires_grad=False)

        def forward(self, index: torch.Tensor) -> torch.Tensor:
            return self.table[index] + 1

    (step,) = dlcompiler.compile(Lookup(), (torch.arange(5),)).program.steps
    assert where.bytes_of(step) == (5 * 8 * 4, 5 * 8 + 5 * 8 * 4)


def test_the_script_for_gpus_finds_the_whole_package(tmp_path: Path):
    """Where nothing is installed: the folder that it is started in holds a part of the package, and must not come first."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'import dlcompiler; print(dlcompiler.__file__)'\n")
    python.chmod(0o755)
    root = Path(__file__).parents[2]
    linked = tmp_path / "copy"
    linked.mkdir()
    for folder in ("dlcompiler", "ir", "passes", "codegen", "runtime", "tests"):
        (linked / folder).symlink_to(root / folder)
    script, environment = root / "tests/bench/gpu.sh", {**os.environ, "PYTHON": str(python)}
    done = subprocess.run(["sh", str(script)], cwd=linked, env=environment, capture_output=True, text=True)
    assert Path(done.stdout.strip()) == linked / "build/linked/dlcompiler/__init__.py", done.stderr
