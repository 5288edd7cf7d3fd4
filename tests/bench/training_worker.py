"""One system that trains one workload in a process of its own: what is behind `tests.bench.training`.

JSON requests on stdin, one answer a line on stdout:

{"do": "prepare"}                 builds it and does two steps; seconds from nothing to then, planned bytes
{"do": "time", "seconds": 0.3}    steps for that long, at least one, after one that is not timed; seconds of each
{"do": "peak"}                    bytes that a step takes; see `peak`
{"do": "count"}                   bytes of tensors alive in an eager step, at most
"""

from __future__ import annotations

import ctypes
import gc
import json
import re
import statistics
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.bench.systems import THREADS
from tests.bench.training_systems import Setting, Trained, make

MEASURED = 3  # steps whose memory is measured


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operators have made and that still live, and the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self.seen: dict[int, Any] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and not function.is_view:
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        key = storage._cdata
        if key in self.seen:
            return
        size = storage.nbytes()
        self.alive += size
        self.peak = max(self.peak, self.alive)

        def gone() -> None:
            self.alive -= size
            self.seen.pop(key, None)

        self.seen[key] = weakref.finalize(storage, gone)


class Session:
    """A system and a workload, prepared when asked for."""

    def __init__(self, system: str, name: str, setting: Setting) -> None:
        self.system, self.name, self.setting = system, name, setting
        self.batches = [setting.build(name).make_batch(k) for k in range(4)]  # and what models import has been imported
        self.done = 0
        self.trained: Trained

    def prepare(self) -> dict[str, Any]:
        """Two steps done, and how long that took from nothing."""
        began = time.perf_counter()
        self.trained = make(self.system, self.name, self.setting)
        for _ in range(2):
            self._step()
        facts: dict[str, Any] = {"ready": time.perf_counter() - began}
        if self.trained.compiled:
            report = self.trained.compiled[0].reports[-1]
            facts |= {"planned": report.planned_peak, "bound": report.lower_bound}
        return facts

    def time(self, seconds: float) -> dict[str, Any]:
        """Single steps."""
        self._step()
        found: list[float] = []
        end = time.perf_counter() + seconds
        while not found or time.perf_counter() < end:
            began = time.perf_counter()
            self._step()
            found.append(time.perf_counter() - began)
        return {"seconds": found}

    def peak(self) -> dict[str, Any]:
        """What a step adds at most to this process's resident size, parameters and optimizer state made before.

        Before the step gradients are dropped, arenas that programs keep between calls are freed and the heap is trimmed, so that
        memory that a system holds on to counts as what it needs. The median of several steps.
        """
        found = []
        for _ in range(MEASURED):
            self._forget_gradients()
            _free_arenas()
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)
            before = _memory("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
            self._step()
            found.append(_memory("VmHWM") - before)
        return {"bytes": int(statistics.median(found)), "all": found}

    def count(self) -> dict[str, Any]:
        """Bytes of activations, gradients and temporaries alive at the worst moment of an eager step."""
        self._forget_gradients()
        with LiveBytes() as counter:
            self._step()
        return {"bytes": counter.peak}

    def _step(self) -> None:
        self.trained(self.batches[self.done % len(self.batches)])
        self.done += 1

    def _forget_gradients(self) -> None:
        for parameter in self.trained.workload.model.parameters():
            parameter.grad = None


def _free_arenas() -> None:
    """What our programs keep between calls."""
    module = sys.modules.get("dlcompiler.runtime.executable")
    if module is not None:
        for each in gc.get_objects():
            if type(each) is module.Executable:
                each.close()


def _memory(field: str) -> int:
    """A line of /proc/self/status in bytes."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def main() -> int:
    """Answer requests until there are no more. Arguments: system, workload, size, dropout, numerics."""
    system, name, size, dropout, numerics = sys.argv[1:]
    answers, sys.stdout = sys.stdout, sys.stderr  # compilers print too
    torch.set_num_threads(THREADS)
    session = Session(system, name, Setting(size, float(dropout), numerics))
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(session, request.pop("do"))(**request)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
