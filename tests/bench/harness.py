"""Interleaved, side-by-side timing: every system in its own process, measured round by round, medians compared.

Processes keep the systems apart (thread pools that spin, global settings, crashes); rounds interleave them, so that a
slow minute of the machine falls on all of them alike.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import fnmatch
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tests.bench.systems import FROM_ONNX, THREADS

REPOSITORY = Path(__file__).resolve().parents[2]
VECTOR_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "sve")
PACKAGES = ("torch", "triton", "torch-mlir", "transformers", "onnx", "onnxruntime", "openvino")
# malloc gives large blocks back to the kernel at once, and page faults then outweigh the kernels being compared
KEEP_MEMORY = {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184"}


class WorkerDiedError(Exception):
    """The process of a system ended; the message is the last line it wrote."""


class Worker:
    """A process of its own that answers requests, line by line; the module says which."""

    def __init__(self, arguments: Sequence[str], environment: dict[str, str] | None = None, module: str = "worker") -> None:
        self.errors: IO[str] = tempfile.TemporaryFile("w+")
        self.process: Any = subprocess.Popen(
            [sys.executable, "-m", f"tests.bench.{module}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            cwd=REPOSITORY,
            env=worker_environment(environment),
        )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Sends one request and waits for its answer; raises WorkerDiedError when the process ends instead."""
        line = ""
        with contextlib.suppress(BrokenPipeError):  # it died before it read; its last words say why
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            raise WorkerDiedError(self._last_words() or f"ended with status {code}")
        return json.loads(line)

    def _last_words(self) -> str:
        self.errors.seek(0)
        lines = [line for line in self.errors.read().splitlines() if line.strip()]
        raised = [line for line in lines if not line.startswith((" ", "\t")) and "Error" in line.split(":")[0]]
        return (raised or lines or [""])[-1].strip()

    def stop(self) -> None:
        """Ends the process."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.errors.close()


def worker_environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of every worker: this one, two threads, the repository importable."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(THREADS), **(extra or {})}


@dataclass
class Entry:
    """One system on one workload: why it failed, or its answers and the medians of its rounds."""

    system: str
    reason: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    rounds: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """The median of the rounds' medians; NaN when there is none."""
        return statistics.median(self.rounds) if self.rounds else math.nan

    @property
    def wrong(self) -> bool:
        """Whether the system built but answered something other than eager."""
        return self.reason.startswith("WrongResultError") or "WrongResultError:" in self.reason

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        seconds = None if math.isnan(self.seconds) else self.seconds
        return {"system": self.system, "seconds": seconds, "reason": self.reason, "rounds": self.rounds, **self.facts}


class Bench:
    """Workers for a set of systems, one folder for their ONNX files; use it as a context manager."""

    def __init__(self, names: Sequence[str], rounds: int, burst: float, environment: dict[str, str] | None = None) -> None:
        self.names = names
        self.rounds = rounds
        self.burst = burst
        self.environment = environment
        self.workers: dict[str, Worker] = {}

    def __enter__(self) -> Bench:
        self._folder = tempfile.TemporaryDirectory(prefix="dlcompiler-bench-")
        self.folder = Path(self._folder.name)
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self.workers.values():
            worker.stop()
        self._folder.cleanup()

    def worker(self, system: str) -> Worker:
        """The live process of a system; started when it is not there."""
        if system not in self.workers:
            self.workers[system] = Worker((system, str(self.folder)), self.environment)
        return self.workers[system]

    def _ask(self, entry: Entry, do: str, **arguments: Any) -> dict[str, Any] | None:
        try:
            return self.worker(entry.system).ask(do, **arguments)
        except WorkerDiedError as error:
            entry.reason = str(error)
            log(f"  {entry.system}: {entry.reason}")
            self.workers.pop(entry.system).stop()
            return None

    def compare(self, kind: str, name: str, size: str = "real", tolerance: float = 1e-4) -> dict[str, Entry]:
        """Prepares, checks and times every system on one workload."""
        entries = {system: Entry(system) for system in self.names}
        exported = True
        if any(system in FROM_ONNX for system in self.names):
            exporter = Entry("eager")
            log(f"  {name}: export to ONNX")
            exported = self._ask(exporter, "load", kind=kind, name=name, size=size) is not None
            exported = exported and self._ask(exporter, "export") is not None
        for entry in entries.values():
            log(f"  {name}: {entry.system}")
            if entry.system in FROM_ONNX and not exported:
                entry.reason = f"torch.onnx.export: {exporter.reason}"
            elif self._ask(entry, "load", kind=kind, name=name, size=size) is not None:
                entry.facts = self._ask(entry, "prepare", tolerance=tolerance) or {}
        self.time(entries)
        return entries

    def time(self, entries: dict[str, Entry]) -> None:
        """Interleaves bursts of the systems that were prepared."""
        ready = [entry for entry in entries.values() if not entry.reason]
        for _ in range(self.rounds):
            for entry in ready:
                if not entry.reason:
                    answer = self._ask(entry, "time", seconds=self.burst, minimum=2)
                    entry.rounds += [statistics.median(answer["seconds"])] if answer else []
        for entry in ready:
            log(f"    {entry.system:18} {milliseconds(entry.seconds)} ms")


def measured_by(label: str, module: str, arguments: Sequence[str], environment: dict[str, str]) -> Any:
    """What a benchmark's module, run as a fresh process, prints as its last line: JSON. Raises SystemExit where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=REPOSITORY, env=worker_environment(environment), capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{label} failed:\n{done.stderr[-3000:]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    log(f"  {label}: {answer}")
    return answer


def keep_memory() -> None:
    """Starts this process again with KEEP_MEMORY, unless it has it: for commands that measure in their own process."""
    if any(os.environ.get(name) != value for name, value in KEEP_MEMORY.items()):
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **KEEP_MEMORY})


def log(message: str) -> None:
    """Progress goes to stderr; stdout is the table."""
    print(message, file=sys.stderr, flush=True)


def machine(threads: int | str = THREADS) -> dict[str, str]:
    """What a reader must know to judge a table: processor, cores, vector instructions, versions, date."""
    described = {"date": datetime.date.today().isoformat(), "cpu": platform.processor() or platform.machine()}
    flags: set[str] = set()
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                described["cpu"] = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags = set(value.split())
    described["cores"] = f"{os.cpu_count()} (timed with {threads} threads)"
    described["vector"] = " ".join(flag for flag in VECTOR_FLAGS if flag in flags) or "unknown"
    described["python"] = platform.python_version()
    for package in PACKAGES:
        try:
            described[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            described[package] = "not installed"
    return described


def print_machine(threads: int | str = THREADS) -> None:
    """The machine's description as one Markdown paragraph."""
    print("; ".join(f"{key} {value}" for key, value in machine(threads).items()) + "\n")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with aligned columns."""
    lines = [list(header), *[list(row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    rule = ["-" * width for width in widths]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths)] for line in [lines[0], rule, *lines[1:]]]
    return "\n".join("| " + " | ".join(line) + " |" for line in padded)


def geomean(values: Iterable[float]) -> float:
    """The geometric mean of what is finite; NaN when nothing is."""
    logs = [math.log(value) for value in values if math.isfinite(value) and value > 0]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def milliseconds(seconds: float) -> str:
    """Three significant digits of milliseconds, or a dash."""
    return "–" if math.isnan(seconds) else f"{seconds * 1e3:#.3g}".rstrip(".")


def ratio(value: float) -> str:
    """A ratio with two decimals, or a dash."""
    return "–" if math.isnan(value) else f"{value:.2f}"


def mebibytes(count: float | None) -> str:
    """Bytes as MiB with one decimal, or a dash."""
    return "–" if count is None else f"{count / 2**20:.1f}"


def parser(description: str, rounds: int = 7) -> argparse.ArgumentParser:
    """The arguments every benchmark takes."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--only", default="*", metavar="PATTERN", help="cases whose name matches this shell pattern")
    made.add_argument("--rounds", type=int, default=rounds, help=f"interleaved rounds (default {rounds})")
    made.add_argument("--json", type=Path, metavar="FILE", help="also write everything measured to this file")
    return made


def chosen(names: Iterable[str], pattern: str) -> list[str]:
    """The names that match; a pattern that matches nothing is an error, not an empty table."""
    names = list(names)
    found = [name for name in names if fnmatch.fnmatch(name, pattern)]
    if not found:
        raise SystemExit(f"--only {pattern!r} matches none of: {', '.join(names)}")
    return found


def write_json(path: Path | None, result: Any) -> None:
    """Writes the measurements with the machine's description when ``--json`` was given."""
    if path is not None:
        path.write_text(json.dumps({"machine": machine(), "result": result}, indent=1) + "\n")


def finish(entries: Iterable[Entry]) -> int:
    """Prints every failure with its reason; the exit status is 1 when a system answered wrongly or ours failed."""
    status = 0
    for entry in entries:
        if entry.reason:
            print(f"\nFAILED {entry.facts.get('case', '')} {entry.system}: {entry.reason}")
            status = max(status, int(entry.wrong or entry.system.startswith("dlcompiler")))
    return status
