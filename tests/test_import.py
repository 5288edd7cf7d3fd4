"""`import dlcompiler` is quick and opens no door: no torch, no NumPy, no MLIR."""

from __future__ import annotations

import subprocess
import sys

import pytest

DOORS = ("torch", "torch_mlir", "onnx", "triton", "numpy", "click", "networkx")


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_import_opens_no_door() -> None:
    code = f"import sys, dlcompiler; print([m for m in {DOORS!r} if m in sys.modules])"
    assert run(code).strip() == "[]"


def test_import_is_quick() -> None:
    """The least of a few, without the interpreter's own start: machines of tests are busy."""
    code = "import time; start = time.perf_counter(); import dlcompiler; print(time.perf_counter() - start)"
    assert min(float(run(code)) for _ in range(3)) < 0.15


@pytest.mark.parametrize(
    "module", ["dlcompiler.options", "dlcompiler.report", "dlcompiler.ir.graph", "dlcompiler.passes.pipeline"]
)
def test_the_compiler_itself_needs_no_torch(module: str) -> None:
    assert run(f"import sys, {module}; print('torch' in sys.modules)").strip() == "False"


def test_version_and_help_need_no_torch() -> None:
    for arguments in (["--version"], ["--help"], ["run", "--help"], ["compile", "nothing.onnx"]):
        code = (
            "import sys; from dlcompiler.cli.boundary import run\n"
            f"run({arguments!r}); print('torch' in sys.modules, file=sys.stderr)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stderr.splitlines()[-1] == "False", arguments


def test_every_public_name_is_there() -> None:
    import dlcompiler

    for name in dlcompiler.__all__:
        assert getattr(dlcompiler, name) is not None
    with pytest.raises(AttributeError):
        dlcompiler.nothing  # noqa: B018
