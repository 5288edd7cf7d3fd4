"""One system in one process, driven line by line from ``tests.bench.harness``.

JSON requests on stdin, JSON answers on stdout. A failure is not caught: the process dies with its traceback on stderr,
and the harness puts the last line of it into the table. A fresh process then takes the next workload.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from tests.bench import systems


def measure_burst(call: Any, seconds: float, minimum: int) -> list[float]:
    """Times single calls until the budget is spent, one untimed call first to wake threads and caches."""
    call()
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < minimum or time.perf_counter() < end:
        began = time.perf_counter()
        call()
        samples.append(time.perf_counter() - began)
    return samples


def eager_peak_bytes(workload: systems.Workload) -> int:
    """The most bytes eager holds at once beyond weights and inputs, from the profiler's allocation events."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        outputs = workload.module(*workload.inputs)
        del outputs
    live = peak = 0
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


class Session:
    """The state between requests: the workload now loaded and the system prepared for it."""

    def __init__(self, system: str, folder: Path) -> None:
        self.system = system
        self.folder = folder
        self.workload: Any = None
        self.prepared: Any = None

    def load(self, kind: str, name: str, size: str) -> dict[str, Any]:
        """Builds the model and its inputs, untimed."""
        self.drop()
        self.workload = systems.load_workload(kind, name, size)
        self.context = systems.Context(self.folder, f"{kind}/{name}/{size}")
        return {}

    def export(self) -> dict[str, Any]:
        """Writes the ONNX file that the other workers read."""
        systems.export_onnx(self.workload, self.context.onnx_path)
        return {}

    def prepare(self, tolerance: float = systems.TOLERANCE) -> dict[str, Any]:
        """Builds the system and checks its first answer; ``build_seconds`` covers both building and the first call."""
        began = time.perf_counter()
        self.prepared = systems.SYSTEMS[self.system](self.workload, self.context)
        built = time.perf_counter() - began
        result = systems.check(self.prepared, self.workload, tolerance)
        return {**result, **self.prepared.notes, "build_seconds": built + result["first_call_seconds"]}

    def time(self, seconds: float, minimum: int = 1) -> dict[str, Any]:
        """One burst of single-call timings."""
        return {"seconds": measure_burst(self.prepared.call, seconds, minimum)}

    def eager_peak(self) -> dict[str, Any]:
        """Eager's own peak on this workload."""
        return {"bytes": eager_peak_bytes(self.workload)}

    def reports(self) -> dict[str, Any]:
        """The newest compilation report and how many graphs this process compiled."""
        import dlcompiler

        found = dlcompiler.reports()
        return {"count": len(found), "last": found[-1].as_dict() if found else None}

    def drop(self) -> dict[str, Any]:
        """Forgets the workload and everything compiled for it."""
        import torch

        self.workload = self.prepared = None
        torch._dynamo.reset()
        gc.collect()
        return {}


def main() -> None:
    """Answers requests until stdin closes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("system", choices=systems.SYSTEMS)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not land between the answers
    import torch

    torch.set_num_threads(systems.THREADS)
    session = Session(arguments.system, arguments.folder)
    with torch.no_grad():
        for line in sys.stdin:
            request = json.loads(line)
            answer = getattr(session, request.pop("do"))(**request)
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
