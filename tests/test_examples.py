"""Every example runs as it stands, alone, in a folder of its own, with no C compiler to be found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples"
NAMES = sorted(path.name for path in FOLDER.glob("*.py") if path.name != "models.py")


@pytest.mark.parametrize("name", NAMES)
def test_example(name: str, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("DLCOMPILER_")}
    done = subprocess.run(
        [sys.executable, str(FOLDER / name)],
        cwd=tmp_path, env={**environment, "PATH": ""}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr and done.stdout.strip()


def test_the_demo_is_found() -> None:
    assert "demo.py" in NAMES and len(NAMES) >= 5
