"""Torch's operator database, forward and backward, compiled: which operators are right, by dtype, and the names of the others.

python -m tests.bench.opinfo [--ops 'conv*,softmax'] [--dtypes float32,bfloat16] [--samples 2] [--jobs 2] [--resume FILE]

Samples of each differentiable operator go through `torch.compile(backend="dlcompiler")`; results and the gradients of all inputs
are compared with eager's, and where they differ both with float64's. Operators run in processes of their own: a crash or a hang
is a line of the answer. With `--resume` verdicts are kept in a file, and operators that are in it do not run again.
Needs the package expecttest, which torch's own tests import.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from tests.bench import harness

DTYPES = ("float32", "float64", "bfloat16", "float16", "complex64")


class Worker:
    """A process that checks operators (or models, see `families`) until it dies or takes too long."""

    def __init__(self, seconds: float, module: str = "opinfo_worker") -> None:
        self.seconds, self.module = seconds, module
        self.process: subprocess.Popen[str] | None = None

    def check(self, task: dict[str, Any]) -> dict[str, Any]:
        """The verdict as data. A process that crashes or hangs is one, and the next task gets a new process."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"tests.bench.{self.module}"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                text=True, cwd=harness.REPOSITORY, env=harness.worker_environment(),
            )  # fmt: skip
        process = self.process
        assert process.stdin is not None and process.stdout is not None
        clock = threading.Timer(self.seconds, process.kill)
        clock.start()
        process.stdin.write(json.dumps(task) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        alive = clock.is_alive()
        clock.cancel()
        if line:
            return json.loads(line)
        status, self.process = process.wait(), None
        reason = f"the process ended with status {status}" if alive else f"not done after {self.seconds:.0f} s"
        return {**task, "right": 0, "skipped": 0, "wrong": [], "failed": [reason], "calls": {}}

    def stop(self) -> None:
        """Ends the process."""
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
            self.process.wait()


def check_all(
    tasks: Iterable[dict[str, Any]], jobs: int, seconds: float, kept: IO[str] | None, module: str = "opinfo_worker"
) -> list[dict[str, Any]]:
    """Every task, by that many processes; `module` says whose."""
    waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    for task in tasks:
        waiting.put(task)
    verdicts: list[dict[str, Any]] = []
    lock = threading.Lock()

    def work() -> None:
        worker = Worker(seconds, module)
        while True:
            try:
                task = waiting.get_nowait()
            except queue.Empty:
                break
            verdict = worker.check(task)
            with lock:
                verdicts.append(verdict)
                if kept is not None:
                    kept.write(json.dumps(verdict) + "\n")
                    kept.flush()
                for kind in ("wrong", "failed"):
                    for line in verdict[kind][:1]:
                        harness.log(f"{kind} {verdict['name']} {verdict['dtype']} ({len(verdict[kind])}): {line[:300]}")
        worker.stop()

    threads = [threading.Thread(target=work) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return verdicts


def operators(pattern: str | None, dtypes: Iterable[str], samples: int) -> list[dict[str, Any]]:
    """Tasks: differentiable operators by name, each dtype that torch differentiates them in."""
    from torch.testing._internal.common_methods_invocations import op_db

    from tests.bench.opinfo_worker import DTYPES as TORCH_DTYPES
    from tests.bench.opinfo_worker import operator_name

    patterns = pattern.split(",") if pattern else ["*"]
    return [
        {"name": operator_name(op), "dtype": dtype, "samples": samples}
        for dtype in dtypes
        for op in op_db
        if op.supports_autograd
        and TORCH_DTYPES[dtype] in op.supported_backward_dtypes("cpu")
        and any(fnmatch.fnmatchcase(operator_name(op), each) for each in patterns)
    ]


def table(verdicts: list[dict[str, Any]]) -> str:
    """A row for each dtype: operators compared, and shares."""
    rows = []
    for dtype in DTYPES:
        mine = [v for v in verdicts if v["dtype"] == dtype]
        tried = [v for v in mine if v["right"] or v.get("as_torch") or v["wrong"] or v["failed"]]
        if not tried:
            continue
        right = [v for v in tried if not v["wrong"] and not v["failed"]]
        native = [v for v in right if not v["calls"]]
        share = f"{len(native)} ({len(native) / len(tried):.0%})"
        rows.append(
            [
                dtype, str(len(tried)), str(len(right)), f"{len(right) / len(tried):.1%}", share,
                str(sum(bool(v["wrong"]) for v in tried)), str(sum(bool(v["failed"]) for v in tried)),
                str(sum(v["right"] for v in tried)), str(len(mine) - len(tried)),
            ]
        )  # fmt: skip
    header = [
        "forward and backward", "operators", "right", "share", "of them without ATen", "other numbers", "errors", "samples right",
        "random, not compared",
    ]  # fmt: skip
    return harness.table(header, rows)


def names(verdicts: list[dict[str, Any]]) -> str:
    """Each operator that fails, with its first reason."""
    lines = []
    for kind in ("wrong", "failed"):
        lines += [f"* {v['name']} ({v['dtype']}, {kind}): {' '.join(v[kind][0].split())[:300]}" for v in verdicts if v[kind]]
    return "\n".join(sorted(lines))


def main() -> int:
    """Runs the survey."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ops", help="patterns of names, separated by commas")
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--samples", type=int, default=2, help="of each operator and dtype")
    parser.add_argument("--jobs", type=int, default=harness.THREADS)
    parser.add_argument("--seconds", type=float, default=120, help="after which an operator counts as hanging")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="JSON lines to go on from and add to")
    parser.add_argument("--calls", action="store_true", help="also name what ATen runs")
    arguments = parser.parse_args()
    began = time.perf_counter()
    tasks = operators(arguments.ops, arguments.dtypes.split(","), arguments.samples)
    wanted = {(t["name"], t["dtype"]) for t in tasks}
    done: list[dict[str, Any]] = []
    if arguments.resume and arguments.resume.exists():
        done = [json.loads(line) for line in arguments.resume.read_text().splitlines()]
        done = [v for v in done if (v["name"], v["dtype"]) in wanted]
    finished = {(v["name"], v["dtype"]) for v in done}
    tasks = [t for t in tasks if (t["name"], t["dtype"]) not in finished]
    kept = arguments.resume.open("a") if arguments.resume else None
    verdicts = done + check_all(tasks, arguments.jobs, arguments.seconds, kept)
    if kept is not None:
        kept.close()
    harness.print_machine(1)
    print(table(verdicts) + "\n\n" + names(verdicts))
    if arguments.calls:
        for v in verdicts:
            if v["calls"]:
                print(f"aten {v['name']} ({v['dtype']}): {'; '.join(v['calls'])}")
    harness.log(f"{len(tasks)} checked in {time.perf_counter() - began:.0f} s")
    return 1 if any(v["wrong"] or v["failed"] for v in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
