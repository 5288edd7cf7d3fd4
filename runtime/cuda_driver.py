"""The door to the GPU's driver: binaries are loaded and kernels started through `libcuda`, with no C compiler on the machine.

Memory, streams and graphs are torch's; only loading a binary and starting a kernel are asked of the driver directly.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

from dlcompiler.ir.errors import LaunchError

_MAXIMUM_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_PLENTY_OF_SHARED = 48 << 10  # bytes that need no attribute
_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED
MOST_BLOCKS = (1 << 31) - 1  # of one launch
OUT_OF_MEMORY = 2
# What to do about refusals to load code, by the driver's number.
_HINTS = {
    200: "it was made by a newer CUDA than this driver knows: update the driver",
    209: "compile for the architecture of this GPU, or leave the target to this machine",
    218: "update the driver, or compile for the architecture of this GPU",
    222: "its PTX was made by a newer CUDA than this driver knows: update the driver, or compile for this GPU's architecture",
    OUT_OF_MEMORY: "free memory on the GPU, or use a smaller batch",
}


class Words:
    """A kernel's arguments as the driver reads them: an array of words, and one of their addresses. Words may be changed."""

    def __init__(self, values: Sequence[int]) -> None:
        count = max(len(values), 1)
        # addresses are read as unsigned, sizes as signed: 64 bits are 64 bits
        self.values = (ctypes.c_int64 * count)(*(v - (1 << 64) if v >= 1 << 63 else v for v in values))
        start = ctypes.addressof(self.values)
        self.pointers = (ctypes.c_void_p * count)(*(start + 8 * k for k in range(count)))


class Driver:
    """`libcuda`, loaded. Raises LaunchError if this machine has none."""

    def __init__(self, library: Any = None) -> None:
        self._library = library or _open_library()
        self._contexts: dict[int, int] = {}
        self.check(self._library.cuInit(0), "starting the driver")

    def check(self, status: int, what: str, hint: str | None = None) -> None:
        """Raises LaunchError, with the driver's own words, for a status that is not success."""
        if not status:
            return
        text = ctypes.c_char_p()
        self._library.cuGetErrorString(status, ctypes.byref(text))
        words = text.value.decode() if text.value else f"error {status}"
        raise LaunchError(f"{what} failed: {words}", hint=hint)

    def make_current(self, index: int) -> None:
        """Have this thread work in the context of a GPU that its runtime library, and so torch, uses.

        A thread has none before its first call of that library, which torch may not have made: memory often comes out of a pool.
        """
        wanted, current = self._contexts.get(index), ctypes.c_void_p()
        self.check(self._library.cuCtxGetCurrent(ctypes.byref(current)), "asking for the context")
        if wanted is not None and current.value == wanted:
            return
        if wanted is None:
            device, context = ctypes.c_int(), ctypes.c_void_p()
            self.check(self._library.cuDeviceGet(ctypes.byref(device), index), f"finding GPU {index}")
            self.check(self._library.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), f"opening GPU {index}")
            assert context.value is not None
            wanted = self._contexts[index] = context.value
        if current.value != wanted:
            self.check(self._library.cuCtxSetCurrent(ctypes.c_void_p(wanted)), f"choosing GPU {index}")

    def load(self, binary: bytes, name: str, free_memory: Callable[[], None] = lambda: None) -> tuple[int, int]:
        """(module, function called `name`) of a cubin, or of PTX text (ending in a zero byte), in the current context.

        Where there is no memory for it, `free_memory` is called, and it is tried again. A stream of this thread may be recorded.
        """
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        mode = ctypes.c_int(_RELAXED)
        # memory for code may be allocated while a stream is recorded if the thread says that it knows what it does
        self.check(self._library.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode)), "loading a kernel")
        try:
            status = self._library.cuModuleLoadData(ctypes.byref(module), binary)
            if status == OUT_OF_MEMORY:
                free_memory()
                status = self._library.cuModuleLoadData(ctypes.byref(module), binary)
            self.check(status, f"loading kernel {name}", _HINTS.get(status))
            found = self._library.cuModuleGetFunction(ctypes.byref(function), module, name.encode())
            self.check(found, f"finding kernel {name}")
        finally:
            self._library.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))
        assert module.value is not None and function.value is not None
        return module.value, function.value

    def unload(self, module: int) -> None:
        """Free a module. Nothing of it may be running, or start again."""
        self.check(self._library.cuModuleUnload(ctypes.c_void_p(module)), "unloading a kernel")

    def allow_shared(self, function: int, size: int) -> None:
        """Let a function have so many bytes of dynamic shared memory."""
        if size > _PLENTY_OF_SHARED:
            status = self._library.cuFuncSetAttribute(ctypes.c_void_p(function), _MAXIMUM_DYNAMIC_SHARED, size)
            self.check(status, f"asking for {size} bytes of shared memory", "compile for the architecture of this GPU")

    def launch(self, function: int, blocks: int, threads: int, shared: int, stream: int, words: Words) -> None:
        """Start a kernel on a stream."""
        status = self._library.cuLaunchKernel(
            ctypes.c_void_p(function), blocks, 1, 1, threads, 1, 1, shared, ctypes.c_void_p(stream), words.pointers, None
        )
        if status:
            self.check(status, "starting a kernel")


def _open_library() -> Any:
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise LaunchError(
        "this machine has no NVIDIA driver (libcuda.so.1)", hint="compile with target='cpu', or call .simulate(...)"
    )
