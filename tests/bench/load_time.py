"""From a file to the first result: seconds and bytes on disk, beside ONNX Runtime. Each in a process of its own, in turns.

    python -m tests.bench.load_time --models bert-base resnet50 mobilenet-v2 --rounds 3

`start` is the interpreter and the imports, `load` reading and compiling, `first` the first call, `second` one more. For
dlcompiler four cases: nothing cached, kernels of another model's process on disk (as after a change of the model), and the same
`.onnx` or `.dlc` as in an earlier process. Inputs are NumPy arrays.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

THREADS = 2
WAYS = ("onnxruntime", "nothing cached", "kernels cached", "compiled before", ".dlc, compiled before")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["bert-base", "resnet50", "mobilenet-v2"], help="names of the zoo")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keeps models, artefacts and caches, and has those of an earlier run")
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS, help="only these; a time / onnxruntime needs that one")
    parser.add_argument("--worker", nargs=3, metavar=("WAY", "FILE", "STARTED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        way, file, started = arguments.worker
        print(json.dumps(_measure(way, Path(file), float(started))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        print("| model | from | start s | load s | first s | sum s | / onnxruntime | second ms | MiB on disk |")
        print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        for name in arguments.models:
            _compare(name, folder / name, arguments.rounds, arguments.ways)


def _compare(name: str, folder: Path, rounds: int, ways: Sequence[str]) -> None:
    model, artifact, cache = folder / "model.onnx", folder / "model.dlc", folder / "cache"
    if not model.exists():
        _export(name, model)
    kernels = folder / "kernels"  # a cache that has the machine code, and no program that it belongs to
    if not kernels.exists():
        command = [sys.executable, "-m", "dlcompiler", "compile", str(model), "-o", str(artifact), "-q"]
        subprocess.run(command, check=True, env=_environment(cache), stdout=subprocess.DEVNULL)
        shutil.copytree(cache, kernels)
    caches = {"nothing cached": None, "kernels cached": kernels}
    times: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way in ways:
            for entry in kernels.glob("*.program"):
                entry.unlink()
            found = _in_a_process(way, artifact if way.startswith(".dlc") else model, caches.get(way, cache))
            if number:  # the first time is the one that it is compiled before
                times[way].append(found)
    sizes = {way: artifact.stat().st_size if way.startswith(".dlc") else _size(folder) for way in ways}
    reference = _median(times["onnxruntime"], "sum") if "onnxruntime" in times else float("nan")
    for way in ways:
        found = {key: _median(times[way], key) for key in ("start", "load", "first", "sum", "second")}
        print(
            f"| {name} | {way} | {found['start']:.2f} | {found['load']:.2f} | {found['first']:.3f} | {found['sum']:.2f} "
            f"| {found['sum'] / reference:.2f} | {found['second'] * 1e3:.1f} | {sizes[way] / 2**20:.1f} |",
            flush=True,
        )


def _median(rows: list[dict[str, float]], key: str) -> float:
    return statistics.median(row[key] for row in rows)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.name.startswith("model.onnx"))


def _environment(cache: Path | None) -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("DLCOMPILER_")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    off = {"DLCOMPILER_DISABLE_CACHE": "1", "DLCOMPILER_CACHE_BYTES": "0"}
    return {**environment, "OMP_NUM_THREADS": str(THREADS), **({"DLCOMPILER_CACHE_DIR": str(cache)} if cache else off)}


def _in_a_process(way: str, file: Path, cache: Path | None) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.bench.load_time", "--worker", way, str(file), repr(time.time())]
    done = subprocess.run(command, check=True, env=_environment(cache), capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _measure(way: str, file: Path, started: float) -> dict[str, float]:
    """In the process of its own. Inputs are zeros, made before the clock of the first call starts."""
    import numpy as np

    call: Any
    if way == "onnxruntime":
        import onnxruntime

        at = [time.time()]
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = THREADS
        session = onnxruntime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])
        types = {"tensor(int64)": np.int64, "tensor(float)": np.float32}
        feeds = {i.name: np.zeros(i.shape, types[i.type]) for i in session.get_inputs()}

        def call() -> object:
            return session.run(None, feeds)

    else:
        import dlcompiler

        at = [time.time()]
        compiled = dlcompiler.load(file) if way.startswith(".dlc") else dlcompiler.compile(str(file))
        values = [np.zeros(type.shape, type.dtype.numpy) for type in compiled.input_types]

        def call() -> object:
            return compiled(*values)

    at.append(time.time())
    call()
    at.append(time.time())
    call()
    at.append(time.time())
    return {
        "start": at[0] - started,
        "load": at[1] - at[0],
        "first": at[2] - at[1],
        "second": at[3] - at[2],
        "sum": at[2] - started,
    }


def _export(name: str, path: Path) -> None:
    import torch

    from tests import zoo

    model = zoo.build(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [f"x{k}" for k in range(len(model.inputs))]
    torch.onnx.export(model.module, model.inputs, path, dynamo=True, external_data=True, verbose=False, input_names=names)


if __name__ == "__main__":
    main()
