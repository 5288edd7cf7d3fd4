"""`runtime.device` with everything under it replaced: a driver that refuses what a real one does, and the part of `torch.cuda`
that the runtime uses, over memory of the CPU. Kernels run in Triton's interpreter, calls of torch on the CPU.

    cuda = StandInCuda(monkeypatch)
    run = GpuExecutable(program, place)      # `open_device` finds the stand-in
    run(inputs)
    cuda.driver.launches, cuda.driver.refused

A graph records launches and calls of torch alike, and runs them when it is replayed, not before. What is not allowed while a
stream is recorded (to wait, to copy from memory of the host) raises, as torch does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from dlcompiler.codegen.gpu.simulate import run_at
from dlcompiler.ir.program import DeviceKernel
from dlcompiler.runtime import cuda_driver, device
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from tests.runtime.stand_in_driver import Launch, StandInDriver

CAPTURING = "CUDA error: operation not permitted when stream is capturing"


class Stream:
    """As `torch.cuda.Stream`: 0 is the default one."""

    def __init__(self, owner: StandInCuda, handle: int) -> None:
        self.owner, self.cuda_stream = owner, handle


class Recorded(TorchDispatchMode):
    """Calls of torch while a graph is recorded: done once, for their results' memory, and again at each replay."""

    def __init__(self, steps: list[Callable[[], None]]) -> None:
        super().__init__()
        self.steps = steps

    def __torch_dispatch__(self, function: Any, types: Any, given: tuple = (), settings: Any = None) -> Any:
        settings = settings or {}
        result = function(*given, **settings)
        makes_views = any(a.alias_info is not None for a in function._schema.arguments) and not function._schema.is_mutable
        if "empty" not in str(function) and not makes_views:

            def again() -> None:
                found = function(*given, **settings)
                for old, new in zip(_pytree.tree_leaves(result), _pytree.tree_leaves(found)):
                    if isinstance(old, torch.Tensor) and old is not new:
                        old.copy_(new)

            self.steps.append(again)
        return result


class Graph:
    """As `torch.cuda.CUDAGraph`."""

    def __init__(self, owner: StandInCuda) -> None:
        self.owner, self.steps = owner, []

    def replay(self) -> None:
        self.owner.replays += 1
        for step in self.steps:
            step()


def checking_driver(stand_in: StandInDriver) -> type[cuda_driver.Driver]:
    """`Driver`, which tells the stand-in how many words there are before that counts them, and raises what went wrong there."""

    class Checking(cuda_driver.Driver):
        def launch(self, function: int, blocks: int, threads: int, shared: int, stream: int, words: Any) -> None:
            stand_in.expected = len(words.values)
            try:
                super().launch(function, blocks, threads, shared, stream, words)
            finally:
                stand_in.reraise()

    return Checking


class StandInCuda:
    """See the module. `free`: bytes of memory; `waits`, `recordings` and `replays` count."""

    def __init__(self, monkeypatch: Any, driver: StandInDriver | None = None, free: int = 1 << 40) -> None:
        self.driver = driver or StandInDriver()
        self.driver.run = self._launched
        self.free = free
        self.waits = self.recordings = self.replays = 0
        self.fails = False  # whether recordings do
        self.shared: list[torch.Tensor] = []  # memory of the runtime's own that more streams use
        self.images: dict[bytes, DeviceKernel] = {}
        self.current = Stream(self, 0)
        self._handles = itertools.count(0x7FFF_0000_0010, 16)
        self._recording: list[Callable[[], None]] | None = None
        image_for = device.image_for

        def remembered(kernel: DeviceKernel, capability: tuple[int, int]) -> bytes:
            image = image_for(kernel, capability)
            self.images[image] = kernel
            return image

        self.torch = self._torch_cuda()
        names = SimpleNamespace(
            cuda=self.torch, version=SimpleNamespace(cuda="13.0"), device=lambda *_: torch.device("cpu"), __version__="2",
            Tensor=torch.Tensor,
        )  # fmt: skip
        monkeypatch.setattr(device, "torch", names)
        monkeypatch.setattr(device, "_opened", {})
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: self.shared.append(tensor))
        monkeypatch.setattr(device, "image_for", remembered)
        monkeypatch.setattr(device, "Driver", checking_driver(self.driver))
        monkeypatch.setattr(cuda_driver, "_open_library", lambda: self.driver.library)

    # -- what a launch does ------------------------------------------------------------------------------------------------------

    def _launched(self, launch: Launch) -> None:
        kernel = self.images[launch.function.image]
        if self._recording is not None:
            assert launch.stream == self.current.cuda_stream, "a launch on a stream that is not recorded"
            self._recording.append(lambda: self._run(kernel, launch))
        else:
            self._run(kernel, launch)

    @staticmethod
    def _run(kernel: DeviceKernel, launch: Launch) -> None:
        written = kernel.written
        for buffer, word in zip(written.kernel.buffers, launch.words):
            assert buffer.name not in written.aligned or not word % 16, f"{buffer.name} at {word:#x}"
        if kernel.scratch_bytes:
            scratch = launch.words[-kernel.extra_words]
            assert scratch and not scratch % 128, f"scratch memory at {scratch:#x}"
        run_at(written, launch.words[: len(launch.words) - kernel.extra_words], launch.blocks)

    # -- torch.cuda --------------------------------------------------------------------------------------------------------------

    def _torch_cuda(self) -> SimpleNamespace:
        return SimpleNamespace(
            is_available=lambda: self.driver.devices > 0, current_device=lambda: 0,
            get_device_capability=lambda index: self.driver.capability, get_device_name=lambda index: "a stand-in",
            mem_get_info=lambda where: (self.free, self.free), memory_reserved=lambda where: 0, memory_allocated=lambda where: 0,
            empty_cache=lambda: None, current_stream=lambda where=None: self.current, synchronize=self.synchronize,
            device=self._device, set_stream=self.set_stream, is_current_stream_capturing=lambda: self._recording is not None,
            stream=self.on,
            Stream=lambda *_, **__: self.new_stream(), CUDAGraph=lambda: Graph(self), graph=self._graph, Event=Event,
        )  # fmt: skip

    def new_stream(self) -> Stream:
        stream = Stream(self, next(self._handles))
        self.driver.streams[stream.cuda_stream] = self.driver.context_of(0)
        return stream

    def synchronize(self, where: Any = None) -> None:
        if self._recording is not None:
            raise RuntimeError(CAPTURING)
        self.waits += 1

    @contextmanager
    def _device(self, where: Any) -> Iterator[None]:
        # torch does nothing here if the device is the current one already: a thread may be without a context after it
        yield

    def set_stream(self, stream: Stream) -> None:
        self.current = stream

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    @contextmanager
    def _graph(self, graph: Graph, pool: Any = None, stream: Stream | None = None, capture_error_mode: str = "global"):
        assert self._recording is None, "one recording within another"
        self.synchronize()
        self.recordings += 1
        before, self.current = self.current, stream or self.new_stream()
        self._recording = graph.steps
        try:
            with Recorded(graph.steps):
                yield
        finally:
            self._recording = None
        if self.fails:  # torch does not come to what makes the stream before the current one again
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        self.current = before


class Event:
    """As `torch.cuda.Event`; each millisecond is a record."""

    clock = 0.0

    def __init__(self, enable_timing: bool = False) -> None:
        self.at: float | None = None

    def record(self) -> None:
        Event.clock += 1.0
        self.at = Event.clock

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: Event) -> float:
        assert self.at is not None and other.at is not None
        return other.at - self.at
