"""Every example runs as it stands, in a folder of its own, with no C compiler to be found.

Those of training run in this process, where torch is there already, but for those that start processes of their own.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent.parent / "examples"
NAMES = sorted(path.name for path in FOLDER.glob("*.py") if path.name != "models.py")


TRAINING = sorted(path.stem for path in (FOLDER / "training").glob("*.py") if path.stem not in ("shared", "processes"))
OF_PROCESSES = ("distributed", "fully_sharded")
NEEDS = {"trainer": "accelerate", "accelerated": "accelerate", "lightning_module": "lightning", "deepspeed_engine": "deepspeed"}


def run_alone(path: Path, folder: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("DLCOMPILER_")}
    done = subprocess.run(
        [sys.executable, str(path)],
        cwd=folder, env={**environment, "PATH": "", "PYTHONFAULTHANDLER": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "Traceback" not in done.stderr and done.stdout.strip()


@pytest.mark.parametrize("name", NAMES)
def test_example(name: str, tmp_path: Path) -> None:
    run_alone(FOLDER / name, tmp_path)


@pytest.mark.parametrize("name", TRAINING)
def test_example_of_training(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = FOLDER / "training" / f"{name}.py"
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"needs {NEEDS[name]}")
    if name in OF_PROCESSES:
        run_alone(path, tmp_path)
        return
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    monkeypatch.syspath_prepend(str(path.parent))
    torch._dynamo.reset()
    importlib.import_module(name).main()
    torch._dynamo.reset()
    assert capsys.readouterr().out.strip()


def test_the_demo_is_found() -> None:
    assert "demo.py" in NAMES and len(NAMES) >= 5 and len(TRAINING) >= 10
