"""The driver of the stand-in: launches of our runtime are checked and, if asked for, interpreted on the device's memory."""

from __future__ import annotations

import atexit
import ctypes
import sys
from typing import Any

import torch
from dlcompiler.codegen.gpu.simulate import run_at
from dlcompiler.ir.program import DeviceKernel
from dlcompiler.runtime import cuda_driver, device

from tests.bench.stand_in.operators import RUN, Operators
from tests.runtime.stand_in_cuda import checking_driver
from tests.runtime.stand_in_driver import Launch, StandInDriver


class AllStreams(dict):
    """Streams are torch's, and all of the one context."""

    def __init__(self, context: int) -> None:
        super().__init__()
        self.context = context

    def get(self, stream: int, default: Any = None) -> int:
        return self.context


class StandIn:
    """The driver between our runtime and the runtime library's stand-in."""

    def __init__(self, interprets: bool) -> None:
        self.library = ctypes.CDLL("libcudart.so.13" if torch.version.cuda.startswith("13") else "libcudart.so.12")
        self.library.stand_in_launch.argtypes = [ctypes.c_void_p, RUN, ctypes.c_long]
        self.library.stand_in_holds.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self.driver = StandInDriver(capability=torch.cuda.get_device_capability(), run=self.start)
        self.driver.streams = AllStreams(self.driver.context_of(0))
        self.images: dict[bytes, DeviceKernel] = {}
        self.launches: list[tuple[DeviceKernel, Launch]] = []
        self.count = 0
        self._run = RUN(self.run) if interprets else RUN()
        self.operators = Operators(self.library) if interprets else None
        image_for = device.image_for

        def remembered(kernel: DeviceKernel, capability: tuple[int, int]) -> bytes:
            image = image_for(kernel, capability)
            self.images[image] = kernel
            return image

        device.image_for = remembered
        device.Driver = checking_driver(self.driver)  # type: ignore[misc]
        cuda_driver._open_library = lambda: self.driver.library

    def start(self, launch: Launch) -> None:
        kernel = self.images[launch.function.image]
        written, self.count = kernel.written, self.count + 1
        for buffer, word in zip(written.kernel.buffers, launch.words):
            assert not word or self.library.stand_in_holds(word, 1), f"{kernel.name}: {buffer.name} is no memory of the device"
            assert buffer.name not in getattr(written, "aligned", ()) or not word % 16, f"{buffer.name} at {word:#x}"
        if kernel.scratch_bytes:
            scratch = launch.words[-kernel.extra_words]
            assert not scratch % 128 and self.library.stand_in_holds(scratch, kernel.scratch_bytes * launch.blocks)
        self.driver.launches.clear()
        self.launches.append((kernel, launch))
        self.library.stand_in_launch(launch.stream, self._run, len(self.launches) - 1)

    def run(self, number: int) -> None:
        kernel, launch = self.launches[number]
        run_at(kernel.written, launch.words[: len(launch.words) - kernel.extra_words], launch.blocks)

    def summary(self) -> None:
        refused = "; ".join(self.driver.refused) or "none"
        kernels = self.library.stand_in_torch_launches()
        print(
            f"stand-in: {self.count} launches, refused: {refused}; {kernels} of torch's own, which did nothing", file=sys.stderr
        )


def install(interprets: bool) -> None:
    """Let this process have a GPU; what was started is said when it ends."""
    atexit.register(StandIn(interprets).summary)
