"""CUDA C++ -> PTX and cubin, with no GPU: by NVRTC in this process where its library is found, else by nvcc."""

from __future__ import annotations

import ctypes
import glob
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from typing import Any

from dlcompiler.ir.errors import UnsupportedError

HINT = "install nvidia-cuda-nvrtc or the CUDA toolkit, or leave gpu_writer='triton'"


def assemble_cuda(source: str, arch: str) -> tuple[str, bytes]:
    """(PTX, cubin) of a file of CUDA C++. Raises UnsupportedError if there is no compiler, or with what it says."""
    library = _nvrtc()
    if library is not None:
        return _by_nvrtc(library, source, arch)
    if shutil.which("nvcc"):
        return _by_nvcc(source, arch)
    raise UnsupportedError("there is no compiler for CUDA C++ on this machine", items=("cuda",), hint=HINT)


def is_available() -> bool:
    """Whether CUDA C++ can be assembled here."""
    return _nvrtc() is not None or shutil.which("nvcc") is not None


def _candidates() -> Iterator[str]:
    """Where NVRTC may lie: torch's own packages, the toolkit, what the loader finds."""
    found = importlib.util.find_spec("nvidia")
    for folder in found.submodule_search_locations or () if found is not None else ():
        yield from sorted(glob.glob(os.path.join(folder, "*", "lib", "libnvrtc.so.*")), reverse=True)
    for root in ("/usr/local/cuda",):
        yield from sorted(glob.glob(os.path.join(root, "lib64", "libnvrtc.so*")))
    yield from ("libnvrtc.so.13", "libnvrtc.so.12")


@cache
def _nvrtc() -> Any:
    for path in _candidates():
        if "alt" in path or "static" in path:
            continue
        try:
            _load_builtins(os.path.dirname(path))
            return ctypes.CDLL(path)
        except OSError:
            continue
    return None


def _load_builtins(folder: str) -> None:
    """What NVRTC opens by its bare name when it compiles: found wherever it lies once it is loaded."""
    for path in glob.glob(os.path.join(folder, "libnvrtc-builtins.so*")) if folder else ():
        ctypes.CDLL(path)


def _by_nvrtc(library: Any, source: str, arch: str) -> tuple[str, bytes]:
    program = ctypes.c_void_p()
    _check(library, library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None))
    try:
        options = [f"--gpu-architecture={arch}".encode(), b"--std=c++17"]
        status = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        if status:
            raise UnsupportedError(f"NVRTC refuses the kernel: {_text(library, program, 'ProgramLog')[:500]}", items=("cuda",))
        return _text(library, program, "PTX"), _bytes(library, program, "CUBIN")
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _bytes(library: Any, program: Any, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(library, getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    memory = ctypes.create_string_buffer(max(size.value, 1))
    _check(library, getattr(library, f"nvrtcGet{what}")(program, memory))
    return memory.raw[: size.value]


def _text(library: Any, program: Any, what: str) -> str:
    return _bytes(library, program, what).rstrip(b"\0").decode(errors="replace")


def _check(library: Any, status: int) -> None:
    if status:
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise UnsupportedError(f"NVRTC: {library.nvrtcGetErrorString(status).decode()}", items=("cuda",))


def _by_nvcc(source: str, arch: str) -> tuple[str, bytes]:
    with tempfile.TemporaryDirectory(prefix="dlcompiler-") as folder:
        path = os.path.join(folder, "kernel.cu")
        with open(path, "w") as file:
            file.write(source)
        results = []
        for kind in ("ptx", "cubin"):
            out = os.path.join(folder, f"kernel.{kind}")
            # -w: a kernel that does not use an index it computes is no fault
            done = subprocess.run(
                ["nvcc", f"-{kind}", f"-arch={arch}", "-std=c++17", "-w", "-o", out, path], capture_output=True, text=True
            )
            if done.returncode:
                raise UnsupportedError(f"nvcc refuses the kernel: {done.stderr[-500:]}", items=("cuda",))
            with open(out, "rb") as file:
                results.append(file.read())
    return results[0].decode(), results[1]
