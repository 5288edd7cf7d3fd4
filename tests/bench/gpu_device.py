"""The GPU that the scripts measure; or, for a dry run, Triton's interpreter in its place, on tensors of the CPU.

A dry run goes through all of a script, and of the runtime for GPUs, but for the driver's calls: it finds what raises, not what
is slow.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch


class Gpu:
    """What scripts ask of the device, and of torch for it. `name`: where tensors go; `target`: what `train_step` is given.

    is_interpreted   whether kernels run in Triton's interpreter: on the stand-in (`tests.bench.stand_in`), or in a dry run
    """

    name, target, is_dry = "cuda", None, False
    is_interpreted = os.environ.get("STAND_IN_INTERPRETS") == "1"

    def title(self) -> str:
        return torch.cuda.get_device_name()

    def size(self, real: int, dry: int) -> int:
        """A size of tensors; the interpreter is given a small one."""
        return dry if self.is_interpreted else real

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def empty_cache(self) -> None:
        torch.cuda.empty_cache()

    def other_stream(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(torch.cuda.Stream())

    def seconds(self, run: Callable[[], Any]) -> float:
        """Between events of the device around one run; waits for it."""
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def peak_bytes(self, run: Callable[[], Any]) -> int:
        """Bytes that a run allocates beyond what was there, at the most."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before


class DryGpu(Gpu):
    """Kernels run in Triton's interpreter. Seconds are those of the CPU, and mean nothing."""

    name, target, is_dry = "cpu", "cuda:sm_90", True
    is_interpreted = True

    def __init__(self) -> None:
        from tests.runtime.interpreted_device import InterpretedDevice

        self.device = InterpretedDevice()

    def title(self) -> str:
        return "dry run: no GPU, kernels in Triton's interpreter, times mean nothing"

    def synchronize(self) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    @contextmanager
    def other_stream(self):
        self.device.stream_now += 1
        yield
        self.device.stream_now -= 1

    def seconds(self, run: Callable[[], Any]) -> float:
        begin = time.monotonic()
        run()
        return time.monotonic() - begin

    def peak_bytes(self, run: Callable[[], Any]) -> int:
        run()
        return 0


GPU: Gpu = Gpu()


def be_dry() -> None:
    """Let GPUs be simulated in this process, whatever it compiles next."""
    global GPU
    from dlcompiler.codegen.target import parse_target
    from dlcompiler.runtime.gpu import GpuExecutable

    from dlcompiler import compiler, torch_backend

    GPU = dry = DryGpu()
    torch_backend._target_of = lambda module: parse_target("cuda:sm_90")  # type: ignore[assignment]
    compiler.GpuExecutable = partial(GpuExecutable, open_device=lambda _: dry.device)  # type: ignore[assignment,misc]


def gpu() -> Gpu:
    """The one that scripts are to use."""
    return GPU
