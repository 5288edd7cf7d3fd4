"""From a kernel to the ops in it to the line of the model, in the folder that a compilation leaves when asked to."""

from __future__ import annotations

import tempfile
from pathlib import Path

import models

import dlcompiler

with tempfile.TemporaryDirectory() as folder:
    model, inputs = models.encoder()
    # or: DLCOMPILER_DUMP_DIR=folder python program.py
    report = dlcompiler.compile(model, inputs, options={"dump_dir": folder}).report()
    dump = Path(str(report.dump))

    print("what is there:")
    for path in sorted(dump.iterdir()):
        print(f"  {path.name}{f'/ ({len(list(path.iterdir()))} kernels)' if path.is_dir() else ''}")

    index = (dump / "index.md").read_text()
    stages = [line for line in index.splitlines() if line.startswith("| [") and ".txt](" in line]
    print("\nthe graph after each pass that changed it:", *stages, sep="\n  ")

    largest = max((dump / "kernels").iterdir(), key=lambda path: len((path / "kernel.txt").read_text()))
    print(f"\nthe largest kernel, {largest.name}, its ops and where they come from:")
    print((largest / "index.md").read_text())
    print((largest / "kernel.txt").read_text()[:1500])
    print("its schedule:", (largest / "schedule.txt").read_text())
