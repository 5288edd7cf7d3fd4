"""A driver without a GPU: the functions of `libcuda` that the runtime calls, which refuse what a real one refuses.

It is called through ctypes as the real one is: each function is a C function pointer without declared arguments, so a pointer
that is passed as a plain number loses its upper half here too. What a kernel takes is read out of the cubin or the PTX that is
loaded. What a launch starts is given to `run`; kernels never run wrong here, they are refused.

Checked besides what a driver checks, since on a GPU it would be an error of memory somewhere later: that each argument lies in
the array of words, and that there are as many words as the kernel takes.
"""

from __future__ import annotations

import _ctypes
import ctypes
import re
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dlcompiler.codegen.gpu.cubin import resources_of, sections_of

SUCCESS, INVALID_VALUE, OUT_OF_MEMORY, NOT_INITIALIZED, NO_DEVICE, INVALID_DEVICE = 0, 1, 2, 3, 100, 101
INVALID_IMAGE, INVALID_CONTEXT, NO_BINARY, INVALID_PTX, UNSUPPORTED_PTX = 200, 201, 209, 218, 222
INVALID_HANDLE, NOT_FOUND, OUT_OF_RESOURCES, UNKNOWN = 400, 500, 701, 999
WORDS = {
    INVALID_VALUE: "invalid argument", OUT_OF_MEMORY: "out of memory", NOT_INITIALIZED: "initialization error",
    NO_DEVICE: "no CUDA-capable device is detected", INVALID_DEVICE: "invalid device ordinal",
    INVALID_IMAGE: "device kernel image is invalid", INVALID_CONTEXT: "invalid device context",
    NO_BINARY: "no kernel image is available for execution on the device", INVALID_PTX: "a PTX JIT compilation failed",
    UNSUPPORTED_PTX: "the provided PTX was compiled with an unsupported toolchain.", INVALID_HANDLE: "invalid resource handle",
    NOT_FOUND: "named symbol not found", OUT_OF_RESOURCES: "too many resources requested for launch",
}  # fmt: skip

LARGEST_GRID, LARGEST_OTHER, LARGEST_BLOCK = (1 << 31) - 1, 65535, 1024
UNASKED_SHARED = 48 << 10
REGISTERS = 65536
OPT_IN_SHARED = {(8, 0): 163 << 10, (8, 6): 99 << 10, (8, 9): 99 << 10, (9, 0): 227 << 10, (10, 0): 227 << 10, (12, 0): 99 << 10}
CUDA_MACHINE = 190
PARAMETER, REQUIRED_THREADS, MOST_THREADS, PARAMETER_BYTES = 0x17, 0x10, 0x05, 0x19  # attributes of `.nv.info.NAME`

ADDRESS = ctypes.c_void_p
UNSIGNED = ctypes.c_uint


class _Foreign(_ctypes.CFuncPtr):
    """What `ctypes.CDLL` makes of a symbol: any arguments, a C int as the result."""

    _flags_ = _ctypes.FUNCFLAG_CDECL
    _restype_ = ctypes.c_int


@dataclass
class Function:
    """A kernel that was loaded. `sizes`: bytes of each parameter; `threads`: those that a block must have, None for any."""

    name: str
    image: bytes = field(repr=False)
    context: int
    sizes: tuple[int, ...]
    threads: tuple[int, int, int] | None
    most_threads: int = LARGEST_BLOCK
    registers: int = 0
    static_shared: int = 0
    allowed_shared: int = UNASKED_SHARED


@dataclass
class Launch:
    """A launch that was accepted: the words its kernel reads."""

    function: Function
    blocks: int
    words: list[int]
    stream: int


@dataclass(eq=False, repr=False)
class StandInDriver:
    """One driver: `library` is what `ctypes.CDLL("libcuda.so.1")` would be.

    capability   of its GPUs; ptx: the newest version of PTX that it compiles
    code_bytes   how much memory there is for code
    run          what is done with a launch; by default it is only kept in `launches`
    refused      why what was refused was, for a person
    expected     how many words the caller has, where the test knows it
    """

    capability: tuple[int, int] = (9, 0)
    ptx: tuple[int, int] = (9, 9)
    devices: int = 1
    code_bytes: int = 1 << 30
    run: Callable[[Launch], None] | None = None
    launches: list[Launch] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    expected: int | None = None
    streams: dict[int, int] = field(default_factory=dict)  # stream -> context; 0 belongs to all

    def __post_init__(self) -> None:
        self._started = False
        self._failure: BaseException | None = None
        self._thread = threading.local()
        self._modules: dict[int, dict[str, Function]] = {}
        self.functions: dict[int, Function] = {}
        self._next = 0x7F00_0000_1000  # handles need more than 32 bits, as a real driver's do
        self._texts = {status: ctypes.c_char_p(text.encode()) for status, text in WORDS.items()}
        self._kept: list[Any] = []
        self.library = self._library()

    @property
    def loaded(self) -> int:
        """Modules that are loaded now."""
        return len(self._modules)

    def context_of(self, index: int) -> int:
        return 0x5555_0000_1000 + 0x1000 * index

    @property
    def current(self) -> int:
        return getattr(self._thread, "context", 0)

    def _library(self) -> Any:
        """The functions as C ones, under their names."""
        types = {
            "cuInit": (UNSIGNED,), "cuGetErrorString": (ctypes.c_int, ADDRESS), "cuDeviceGet": (ADDRESS, ctypes.c_int),
            "cuDevicePrimaryCtxRetain": (ADDRESS, ctypes.c_int), "cuCtxGetCurrent": (ADDRESS,), "cuCtxSetCurrent": (ADDRESS,),
            "cuModuleLoadData": (ADDRESS, ADDRESS), "cuModuleUnload": (ADDRESS,),
            "cuModuleGetFunction": (ADDRESS, ADDRESS, ctypes.c_char_p),
            "cuFuncSetAttribute": (ADDRESS, ctypes.c_int, ctypes.c_int),
            "cuThreadExchangeStreamCaptureMode": (ADDRESS,),
            "cuLaunchKernel": (ADDRESS, *[UNSIGNED] * 7, ADDRESS, ADDRESS, ADDRESS),
        }  # fmt: skip
        found = type("Library", (), {})()
        for name, arguments in types.items():
            callback = ctypes.CFUNCTYPE(ctypes.c_int, *arguments)(self._guarded(getattr(self, name)))
            self._kept.append(callback)
            setattr(found, name, _Foreign(ctypes.cast(callback, ADDRESS).value))
        return found

    def _guarded(self, function: Callable[..., int]) -> Callable[..., int]:
        """No exception passes through C: it is kept for `reraise`."""

        def run(*arguments: Any) -> int:
            try:
                return function(*arguments)
            except BaseException as error:  # noqa: BLE001 - handed on
                self._failure = error
                return UNKNOWN

        return run

    def reraise(self) -> None:
        """Raise what was raised in a function of the driver."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _refuse(self, status: int, why: str) -> int:
        self.refused.append(why)
        return status

    def _handle(self) -> int:
        self._next += 0x1000
        return self._next

    # -- the functions ---------------------------------------------------------------------------------------------------------

    def cuInit(self, flags: int) -> int:
        if flags:
            return self._refuse(INVALID_VALUE, "flags must be 0")
        if not self.devices:
            return self._refuse(NO_DEVICE, "there is none")
        self._started = True
        return SUCCESS

    def cuGetErrorString(self, status: int, text: int) -> int:
        if status not in self._texts:
            ADDRESS.from_address(text).value = None
            return INVALID_VALUE
        ADDRESS.from_address(text).value = ctypes.cast(self._texts[status], ADDRESS).value
        return SUCCESS

    def cuDeviceGet(self, found: int, index: int) -> int:
        if not self._started:
            return self._refuse(NOT_INITIALIZED, "cuInit comes first")
        if not 0 <= index < self.devices:
            return self._refuse(INVALID_DEVICE, f"there is no GPU {index}")
        ctypes.c_int.from_address(found).value = index
        return SUCCESS

    def cuDevicePrimaryCtxRetain(self, found: int, device: int) -> int:
        if not 0 <= device < self.devices:
            return self._refuse(INVALID_DEVICE, f"there is no GPU {device}")
        ADDRESS.from_address(found).value = self.context_of(device)
        return SUCCESS

    def cuCtxGetCurrent(self, found: int) -> int:
        if not self._started:
            return self._refuse(NOT_INITIALIZED, "cuInit comes first")
        ADDRESS.from_address(found).value = self.current or None
        return SUCCESS

    def cuCtxSetCurrent(self, context: int | None) -> int:
        if context is not None and context not in map(self.context_of, range(self.devices)):
            return self._refuse(INVALID_CONTEXT, f"no context {context:#x}")
        self._thread.context = context or 0
        return SUCCESS

    def cuThreadExchangeStreamCaptureMode(self, mode: int) -> int:
        held = ctypes.c_int.from_address(mode)
        if held.value not in (0, 1, 2):
            return self._refuse(INVALID_VALUE, f"no mode {held.value}")
        held.value, self._thread.mode = getattr(self._thread, "mode", 0), held.value
        return SUCCESS

    def cuModuleLoadData(self, module: int, image: int) -> int:
        if not self.current:
            return self._refuse(INVALID_CONTEXT, "this thread has no context")
        if not image:
            return self._refuse(INVALID_VALUE, "no image")
        status, functions = self._read_image(image)
        if status:
            return status
        if self.code_bytes < (size := sum(len(f.image) for f in functions)):
            return self._refuse(OUT_OF_MEMORY, "no memory for code")
        self.code_bytes -= size
        handle = self._handle()
        self._modules[handle] = {function.name: function for function in functions}
        ADDRESS.from_address(module).value = handle
        return SUCCESS

    def cuModuleUnload(self, module: int | None) -> int:
        if module not in self._modules:
            return self._refuse(INVALID_HANDLE, "no such module")
        gone = self._modules.pop(module).values()
        self.code_bytes += sum(len(f.image) for f in gone)
        self.functions = {k: f for k, f in self.functions.items() if not any(f is each for each in gone)}
        return SUCCESS

    def cuModuleGetFunction(self, found: int, module: int | None, name: bytes) -> int:
        if module not in self._modules:
            return self._refuse(INVALID_HANDLE, "no such module")
        function = self._modules[module].get(name.decode())
        if function is None:
            return self._refuse(NOT_FOUND, f"{name!r} is not among {sorted(self._modules[module])}")
        handle = self._handle()
        self.functions[handle] = function
        ADDRESS.from_address(found).value = handle
        return SUCCESS

    def cuFuncSetAttribute(self, function: int | None, attribute: int, value: int) -> int:
        known = self.functions.get(function or 0)
        if known is None:
            return self._refuse(INVALID_HANDLE, "no such function")
        if attribute != 8 or not 0 <= value <= OPT_IN_SHARED[self.capability] - known.static_shared:
            return self._refuse(INVALID_VALUE, f"attribute {attribute} cannot be {value}")
        known.allowed_shared = value
        return SUCCESS

    def cuLaunchKernel(
        self, function: int | None, x: int, y: int, z: int, threads: int, threads_y: int, threads_z: int, shared: int,
        stream: int | None, arguments: int | None, extra: int | None,
    ) -> int:  # fmt: skip
        known = self.functions.get(function or 0)
        if known is None:
            return self._refuse(INVALID_HANDLE, "no such function")
        why = self._wrong_shape(known, (x, y, z), (threads, threads_y, threads_z), shared)
        if why is not None:
            return self._refuse(INVALID_VALUE, why)
        if known.registers * threads * threads_y * threads_z > REGISTERS:
            return self._refuse(OUT_OF_RESOURCES, "more registers than there are")
        if self.current != known.context:
            return self._refuse(INVALID_CONTEXT, "the kernel was loaded in another context than this thread's")
        if stream and self.streams.get(stream) != known.context:
            return self._refuse(INVALID_HANDLE, f"stream {stream:#x} is none of this context's")
        words = self._read_words(known, arguments)
        if words is None or extra:
            return self._refuse(INVALID_VALUE, "arguments that cannot be read")
        launch = Launch(known, x, words, stream or 0)
        self.launches.append(launch)
        if self.run is not None:
            self.run(launch)
        return SUCCESS

    # -- what they rest on -----------------------------------------------------------------------------------------------------

    @staticmethod
    def _wrong_shape(function: Function, grid: Sequence[int], block: Sequence[int], shared: int) -> str | None:
        if not 1 <= grid[0] <= LARGEST_GRID or not all(1 <= n <= LARGEST_OTHER for n in grid[1:]):
            return f"a grid of {grid}"
        count = block[0] * block[1] * block[2]
        if not 1 <= count <= min(function.most_threads, LARGEST_BLOCK):
            return f"{count} threads"
        if function.threads is not None and tuple(block) != function.threads:
            return f"blocks of {block} threads for a kernel made for {function.threads}"
        if shared > function.allowed_shared:
            return f"{shared} bytes of shared memory, of which {function.allowed_shared} were asked for"
        return None

    def _read_words(self, function: Function, arguments: int | None) -> list[int] | None:
        if not function.sizes:
            return []
        if not arguments or self.expected not in (None, len(function.sizes)):
            return None
        first = ADDRESS.from_address(arguments).value
        words = []
        for number, size in enumerate(function.sizes):
            at = ADDRESS.from_address(arguments + 8 * number).value
            if not first or at != first + 8 * number or size != 8:
                return None
            words.append(ctypes.c_int64.from_address(at).value)
        return words

    def _read_image(self, image: int) -> tuple[int, list[Function]]:
        if ctypes.string_at(image, 4) == b"\x7fELF":
            return self._read_cubin(image)
        return self._read_ptx(ctypes.string_at(image).decode())

    def _read_cubin(self, image: int) -> tuple[int, list[Function]]:
        head = ctypes.string_at(image, 64)
        (programs, table), (program_count,) = struct.unpack_from("<QQ", head, 32), struct.unpack_from("<H", head, 56)
        (count,) = struct.unpack_from("<H", head, 60)
        size = max(64, table + 64 * count, programs + 56 * program_count)
        for k in range(count):  # whatever lies farthest back
            (kind,) = struct.unpack("<I", ctypes.string_at(image + table + 64 * k + 4, 4))
            at, length = struct.unpack("<QQ", ctypes.string_at(image + table + 64 * k + 24, 16))
            size = max(size, at + (0 if kind == 8 else length))
        data = ctypes.string_at(image, size)
        (machine,), (flags,) = struct.unpack_from("<H", data, 18), struct.unpack_from("<I", data, 48)
        made_for = flags >> 8 & 0xFF if data[8] >= 8 else flags & 0xFF
        if machine != CUDA_MACHINE:
            return self._refuse(INVALID_IMAGE, "no machine code for GPUs"), []
        made_for_capability = divmod(made_for, 10)
        exact = made_for >= 90  # made for one architecture alone, as Triton's are from there on
        runs = made_for_capability == self.capability if exact else (
            made_for_capability[0] == self.capability[0] and made_for_capability <= self.capability
        )  # fmt: skip
        if not runs:
            return self._refuse(NO_BINARY, f"machine code for sm_{made_for}"), []
        found = sections_of(data)
        names = [name.removeprefix(".text.") for name in found if name.startswith(".text.")]
        return SUCCESS, [self._function_of(name, found, data) for name in names]

    def _function_of(self, name: str, found: Any, image: bytes) -> Function:
        data, at = found[f".nv.info.{name}"][1], 0
        sizes: dict[int, int] = {}
        threads, most, total = None, LARGEST_BLOCK, None
        while at + 4 <= len(data):
            form, kind, length = struct.unpack_from("<BBH", data, at)
            value = data[at + 4 : at + 4 + length] if form == 4 else b""
            if kind == PARAMETER:
                _, ordinal, _, packed = struct.unpack("<IHHI", value)
                sizes[ordinal] = packed >> 18
            elif kind == REQUIRED_THREADS:
                threads = struct.unpack("<III", value)
            elif kind == MOST_THREADS:
                most = struct.unpack_from("<I", value)[0]
            elif kind == PARAMETER_BYTES:
                total = length
            at += 4 + len(value)
        assert total == sum(sizes.values()), (total, sizes)
        registers = resources_of(image, name).registers
        return Function(name, image, self.current, tuple(sizes[k] for k in range(len(sizes))), threads, most, registers)

    def _read_ptx(self, text: str) -> tuple[int, list[Function]]:
        version = re.search(r"^\.version (\d+)\.(\d+)", text, re.M)
        target = re.search(r"^\.target sm_(\d+)(\w?)", text, re.M)
        if version is None or target is None:
            return self._refuse(INVALID_IMAGE, "neither a cubin nor PTX"), []
        if tuple(map(int, version.groups())) > self.ptx:
            return self._refuse(UNSUPPORTED_PTX, f"PTX {version.group(0)}"), []
        made_for = divmod(int(target.group(1)), 10)
        if made_for > self.capability or (target.group(2) and made_for != self.capability):
            return self._refuse(INVALID_PTX, f"PTX for {target.group(0)}"), []
        found = []
        for match in re.finditer(r"\.entry (\w+)\((.*?)\)(.*?)\{", text, re.S):
            sizes = [int(bits) // 8 for bits in re.findall(r"\.param \.[a-z](\d+)", match.group(2))]
            threads = re.search(r"\.reqntid (\d+)", match.group(3))
            required = None if threads is None else (int(threads.group(1)), 1, 1)
            found.append(Function(match.group(1), text.encode() + b"\0", self.current, tuple(sizes), required))
        return SUCCESS, found
