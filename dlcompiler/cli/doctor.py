"""`dlcompiler doctor`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass
from typing import Any

import click

from dlcompiler.cli.commands import flags, manual
from dlcompiler.cli.shared import Session, print_json, table
from dlcompiler.codegen.cache import open_store
from dlcompiler.ir.errors import CompilerError
from dlcompiler.options import Options, could_write
from dlcompiler.report import format_bytes
from dlcompiler.version import __version__

# package, what it is for, and how to get it; the first five are needed
PACKAGES = (
    ("numpy", "everything", "pip install numpy"),
    ("torch", "the runtime and torch models", "pip install 'torch>=2.11,<2.14'"),
    ("torch-mlir", "CPU code", "pip install torch-mlir"),
    ("ml_dtypes", "bfloat16", "pip install ml_dtypes"),
    ("click", "the command line", "pip install click"),
    ("onnx", "ONNX files", "pip install onnx"),
    ("triton", "code for NVIDIA GPUs", "pip install triton (Linux only)"),
    ("onnxruntime", "verify and bench --against onnxruntime", "pip install onnxruntime"),
    ("openvino", "bench --against openvino", "pip install openvino"),
)
NEEDED = 5


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `fix` says what to do where it is not ok; only what is `needed` makes doctor fail."""

    what: str
    found: str
    ok: bool = True
    needed: bool = False
    fix: str = ""


EXAMPLES = """
dlcompiler doctor
DLCOMPILER_STRICT=1 dlcompiler doctor                        where each value comes from
"""


@click.command(name="doctor", epilog=manual(EXAMPLES))
@flags(compiles=False)
def command(**parameters: Any) -> int:
    """Show versions, targets, what is missing and how to get it, and each option's value and where it came from.

    Exits with 6 if something that is needed to compile for this machine's CPU is missing.
    """
    session = Session.start(parameters)
    findings = [*_system(), *_packages(), _cpu(), _gpu(), *_folders(session.options)]
    healthy = all(finding.ok for finding in findings if finding.needed)
    options = [_option_row(session.options, row) for row in Options.documentation()]
    if session.as_json:
        print_json({"healthy": healthy, "findings": [vars(f) for f in findings], "options": options})
    else:
        rows = [
            (f.what, "ok" if f.ok else "MISSING" if f.needed else "-", f.found, f"fix: {f.fix}" if f.fix else "")
            for f in findings
        ]
        click.echo(table(rows, left=4))
        click.echo()
        keys = ("option", "value", "from", "environment", "meaning")
        click.echo(table([keys, *([row[key] for key in keys] for row in options)], left=5))
        click.echo()
        click.echo("ready to compile for this machine" if healthy else "not ready: see MISSING above")
    return 0 if healthy else 6


def _option_row(options: Options, row: tuple[str, str, Any, str | None, str]) -> dict[str, Any]:
    name, takes, _, variable, meaning = row
    value = options.as_dict()[name]
    return {
        "option": name,
        "value": ",".join(value) if isinstance(value, list) else value,
        "from": options.sources[name],
        "environment": variable or "",
        "takes": takes,
        "meaning": meaning,
    }


def _system() -> list[Finding]:
    return [
        Finding("dlcompiler", __version__),
        Finding("python", f"{platform.python_version()} on {platform.platform()}", needed=True),
    ]


def _packages() -> list[Finding]:
    findings = []
    for number, (name, purpose, fix) in enumerate(PACKAGES):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(name, f"not installed; for {purpose}", False, number < NEEDED, fix))
        else:
            findings.append(Finding(name, f"{version}; for {purpose}", needed=number < NEEDED))
    return findings


def _cpu() -> Finding:
    """Compile and run a kernel, which is the only proof."""
    try:
        import dlcompiler
        from dlcompiler.ir.graph import Builder
        from dlcompiler.ir.types import TensorType, f32

        builder = Builder("doctor")
        x = builder.input("x", TensorType(f32, (4,)))
        compiled = dlcompiler.compile(builder.finish([builder.add(x, 1.0)]), options={"dump_dir": None, "verify": False})
        import numpy as np

        right = bool((compiled(np.zeros(4, np.float32)) == 1.0).all())
    except (CompilerError, ImportError, OSError) as error:
        return Finding("target cpu", str(error), False, True, "see the missing packages above")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Finding("target cpu", f"{compiled.target}, {cores} cores; a kernel ran", right, True, "" if right else "report this")


def _gpu() -> Finding:
    if importlib.util.find_spec("triton") is None:
        return Finding("target cuda", "needs triton to compile, and a GPU to run", False, fix="pip install triton (Linux only)")
    import torch

    if torch.cuda.is_available():
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        fix = "" if compiler else "install a C compiler: Triton builds its launcher with it"
        return Finding("target cuda", torch.cuda.get_device_name(), compiler is not None, fix=fix)
    return Finding("target cuda", "compiles for cuda:sm_NN; no GPU to run on here (simulate runs on the CPU)")


def _kept(options: Options) -> str:
    """What the cache holds."""
    store = open_store(options)
    if store is None:
        return "; nothing is kept in it"
    usage, kinds = store.usage(), store.kinds()
    return f"; {usage.entries} entries, {format_bytes(usage.bytes)}, {kinds.get('tuned', 0)} of them decisions of the tuner"


def _folders(options: Options) -> list[Finding]:
    findings = []
    for name in ("cache_dir", "dump_dir"):
        folder = getattr(options, name)
        if folder is None:
            findings.append(Finding(name, "none"))
        elif could_write(folder):
            findings.append(Finding(name, folder + (_kept(options) if name == "cache_dir" else "")))
        else:
            findings.append(
                Finding(name, f"{folder} cannot be written", False, fix=f"give another {name}; work goes on without it")
            )
    return findings
