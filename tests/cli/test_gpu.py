"""The command line for GPUs, on a machine without one."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from tests.cli.conftest import Cli

pytest.importorskip("triton")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "m.txt"
    path.write_text("graph m {\n  input %x : f32[6, 70]\n  %y = softmax(%x) {axis = 1} : f32[6, 70]\n  output %y\n}\n")
    return path


def test_one_file_for_several_targets(cli: Cli, text: Path, tmp_path: Path) -> None:
    import torch

    saved = tmp_path / "m.dlc"
    result = cli("compile", text, "--target", "cuda:sm_90", "--target", "cpu", "--target", "cuda:sm_80", "-o", saved, "--json")
    assert result.code == 0 and len(result.json["others"]) == 2
    with zipfile.ZipFile(saved) as archive:
        names = set(archive.namelist())
    for arch in ("sm_80", "sm_90"):
        assert {f"code/{arch}/{name}" for name in ("index.json", "0000.py", "0000.ptx", "0000.cubin")} <= names
    assert cli("run", saved, "--fill", "random").code == 0
    if not torch.cuda.is_available():
        refused = cli("run", saved, "--fill", "random", "--target", "cuda:sm_90")
        assert refused.code == 6 and "CUDA" in refused.err
        assert cli("run", saved, "--fill", "random", "--target", "cpu").code == 0


def test_every_stage_of_a_gpu_kernel_is_shown(cli: Cli, text: Path) -> None:
    words = {"triton": "@triton.jit", "ttir": "tt.func", "ptx": ".target sm_90", "evidence": "roofline on a H200"}
    for stage, word in words.items():
        result = cli("inspect", text, "--target", "cuda:sm_90", "--stage", stage)
        assert result.code == 0 and word in result.out
    assert cli("inspect", text, "--stage", "evidence").code == 2
    assert "moved by kernels" in cli("inspect", text, "--target", "cuda:sm_90").out


def test_a_dump_shows_kernels_and_hand_written_ones(cli: Cli, text: Path, tmp_path: Path) -> None:
    text.write_text(
        "graph m {\n  input %x : f32[6, 70]\n"
        '  %y = scan(%x) {axis = 1, kind = "add", exclusive = false, reverse = false} : f32[6, 70]\n'
        "  %z = softmax(%y) {axis = 1} : f32[6, 70]\n  output %z\n}\n"
    )
    assert cli("compile", text, "--target", "cuda:sm_90", "--dump", tmp_path / "dump", "-o", tmp_path / "m.dlc").code == 0
    assert len(list((tmp_path / "dump").rglob("kernel.py"))) == 2
