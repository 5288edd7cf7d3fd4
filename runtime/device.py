"""What a program for a GPU is run on: a real one, or whatever else can hold tensors and start kernels."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol
from weakref import WeakKeyDictionary, finalize

import torch
from dlcompiler.ir.errors import LaunchError
from dlcompiler.ir.program import DeviceKernel
from dlcompiler.runtime.cuda_driver import Driver, Words

CPU_HINT = "compile with target='cpu', or call .simulate(...) to run its kernels in Triton's interpreter"
OLDEST = (7, 5)


class Device(Protocol):
    """One device. `torch_device` is where tensors lie."""

    torch_device: torch.device

    def load(self, kernel: DeviceKernel) -> Any:
        """A kernel made ready to start. Raises LaunchError if this device cannot run it."""
        ...

    def start(self, loaded: Any, blocks: int, words: Words, stream: int) -> None:
        """Start a loaded kernel on a stream."""
        ...

    def stream(self) -> int:
        """The current stream."""
        ...

    def free_bytes(self) -> int:
        """Memory that can be allocated now, about."""
        ...

    def active(self) -> AbstractContextManager[Any]:
        """While it lasts, memory is allocated and kernels are started on this device."""
        ...

    def share(self, tensors: Sequence[torch.Tensor]) -> None:
        """Say that the current stream uses tensors that were made on another: their memory goes to nobody before it is done."""
        ...

    def synchronize(self) -> None:
        """Wait until everything started is done."""
        ...

    def is_recording(self) -> bool:
        """Whether somebody is recording a graph on the current stream."""
        ...

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """What `run` starts, as a graph: the result starts all of it at once on the current stream.

        Raises RuntimeError, as torch does, for what cannot be recorded.
        """
        ...

    def seconds(self, runs: Sequence[Callable[[], Any]]) -> list[float]:
        """How long the device takes for what each starts, one after another, measured by itself."""
        ...


class Loaded:
    """A function of the driver, and what starting it needs."""

    __slots__ = ("function", "shared", "threads")

    def __init__(self, function: int, threads: int, shared: int) -> None:
        self.function, self.threads, self.shared = function, threads, shared


class CudaDevice:
    """A GPU of this machine, through torch and the driver. Each kernel is loaded once, and unloaded after it is gone."""

    def __init__(self, index: int, capability: tuple[int, int], driver: Driver) -> None:
        self.torch_device = torch.device("cuda", index)
        self.capability = capability
        self._index, self._driver = index, driver
        self._loaded: WeakKeyDictionary[DeviceKernel, Loaded] = WeakKeyDictionary()
        self._lock = threading.Lock()
        self._gone: list[int] = []  # modules whose kernels are
        self._recording_stream: Any = None

    def load(self, kernel: DeviceKernel) -> Loaded:
        with self._lock:
            known = self._loaded.get(kernel)
            if known is not None:
                return known
            image = image_for(kernel, self.capability)
            with self.active():
                self._unload_gone()
                module, function = self._driver.load(image, kernel.name, torch.cuda.empty_cache)
                self._driver.allow_shared(function, kernel.shared_bytes)
            loaded = self._loaded[kernel] = Loaded(function, kernel.threads, kernel.shared_bytes)
            # whatever started it may not be done, nor this thread allowed to wait
            finalize(kernel, self._gone.append, module).atexit = False
        return loaded

    def _unload_gone(self) -> None:
        if self._gone and not self.is_recording():
            self.synchronize()
            while self._gone:
                self._driver.unload(self._gone.pop())

    def start(self, loaded: Loaded, blocks: int, words: Words, stream: int) -> None:
        self._driver.launch(loaded.function, blocks, loaded.threads, loaded.shared, stream, words)

    def stream(self) -> int:
        return torch.cuda.current_stream(self.torch_device).cuda_stream

    def free_bytes(self) -> int:
        free, _ = torch.cuda.mem_get_info(self.torch_device)
        kept = torch.cuda.memory_reserved(self.torch_device) - torch.cuda.memory_allocated(self.torch_device)
        return free + kept

    def active(self) -> AbstractContextManager[Any]:
        return _Active(self._index, self._driver)

    def share(self, tensors: Sequence[torch.Tensor]) -> None:
        stream = torch.cuda.current_stream(self.torch_device)
        for tensor in tensors:
            tensor.record_stream(stream)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.torch_device)

    def is_recording(self) -> bool:
        return torch.cuda.is_current_stream_capturing()

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        if self._recording_stream is None:  # torch's own is on whichever GPU it was first asked for
            self._recording_stream = torch.cuda.Stream(self.torch_device)
        graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.torch_device)
        try:
            # other threads may go on allocating meanwhile
            with self.active(), torch.cuda.graph(graph, stream=self._recording_stream, capture_error_mode="thread_local"):
                run()
        except RuntimeError:
            torch.cuda.set_stream(before)  # torch leaves the other one where a recording fails
            self._recording_stream = None
            raise
        return graph.replay

    def seconds(self, runs: Sequence[Callable[[], Any]]) -> list[float]:
        with self.active():
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(runs) + 1)]
            marks[0].record()
            for run, mark in zip(runs, marks[1:]):
                run()
                mark.record()
            marks[-1].synchronize()
            return [begin.elapsed_time(end) / 1e3 for begin, end in zip(marks, marks[1:])]


class _Active:
    """Makes a device torch's current one, and its context the driver's."""

    def __init__(self, index: int, driver: Driver) -> None:
        self._index, self._driver = index, driver
        self._guard = torch.cuda.device(index)

    def __enter__(self) -> None:
        self._guard.__enter__()
        self._driver.make_current(self._index)

    def __exit__(self, *reason: Any) -> None:
        self._guard.__exit__(*reason)


def image_for(kernel: DeviceKernel, capability: tuple[int, int]) -> bytes:
    """What to load on a GPU of that capability: the cubin if it was made for its family, else PTX that the driver compiles.

    Code that uses what one architecture alone has runs there only. Raises LaunchError for a GPU that can run neither.
    """
    made_for = capability_of(kernel.arch)
    ptx = kernel.stages.get("ptx", "")
    is_general = not _is_for_one_architecture(ptx)
    if capability == made_for or (is_general and capability[0] == made_for[0] and capability > made_for):
        return kernel.binary
    if is_general and capability > made_for:
        return ptx.encode() + b"\0"
    raise LaunchError(
        f"kernel {kernel.name} is made for {kernel.arch}, and this GPU is sm_{capability[0]}{capability[1]}",
        hint=f"compile with target='cuda:sm_{capability[0]}{capability[1]}'",
    )


def _is_for_one_architecture(ptx: str) -> bool:
    """Whether PTX uses what later architectures do not have: its target has a letter, as sm_90a."""
    target = next((line.split()[1].rstrip(",") for line in ptx.splitlines() if line.startswith(".target")), "sm_0a")
    return not target[-1].isdigit()


def capability_of(arch: str) -> tuple[int, int]:
    """`sm_90` --> (9, 0)"""
    number = int(arch.removeprefix("sm_"))
    return number // 10, number % 10


_opened: dict[int, CudaDevice] = {}


def open_device(index: int | None = None) -> CudaDevice:
    """A GPU of this machine, by its number; None: the one that torch would use. The same object for all who ask.

    Raises LaunchError saying what is missing, before anything is allocated.
    """
    if torch.version.cuda is None:
        raise LaunchError(f"this torch ({torch.__version__}) is built without CUDA", hint=CPU_HINT)
    driver = next(iter(_opened.values()))._driver if _opened else Driver()
    if not torch.cuda.is_available():
        raise LaunchError("torch finds no GPU that it can use", hint="its driver may be too old for this torch; " + CPU_HINT)
    number = torch.cuda.current_device() if index is None else index
    if number in _opened:
        return _opened[number]
    capability = torch.cuda.get_device_capability(number)
    if capability < OLDEST:
        name = torch.cuda.get_device_name(number)
        raise LaunchError(
            f"{name} is sm_{capability[0]}{capability[1]}; kernels need sm_{OLDEST[0]}{OLDEST[1]} or newer", hint=CPU_HINT
        )
    return _opened.setdefault(number, CudaDevice(number, capability, driver))


def require_memory(device: Device, wanted: int, what: Sequence[str]) -> None:
    """Raises LaunchError if a device has not so many bytes left."""
    free = device.free_bytes()
    if wanted > free:
        raise LaunchError(
            f"{', '.join(what)} need {wanted / 2**20:,.0f} MiB, and {device.torch_device} has {free / 2**20:,.0f} MiB left",
            hint="use a smaller batch, or free memory; " + CPU_HINT,
        )
