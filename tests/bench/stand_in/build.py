"""Libraries that stand in for CUDA's, so that a torch that is built for CUDA can be imported, and used, where there is no GPU.

    python -m tests.bench.stand_in.build FOLDER [--include FOLDER_OF_cuda_runtime_api.h]

Needs gcc, nm and objdump on x86-64. Every function that torch's libraries want of CUDA's and that `cudart.c` has not does nothing
and says that all is well: cuBLAS and cuDNN compute nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
from collections.abc import Iterable
from pathlib import Path

PREFIXES = ("cu", "__cuda", "nccl", "nvshmem", "nvrtc", "nvJit")
RETURNS = {"cudnnGetVersion": 91900}
FIRST = {
    "cuDevicePrimaryCtxGetState": "movl $1,(%rdx)",  # the third argument, whether there is a context: there is
    # number 0, 1 or 2 of the version 9.19.0 goes where the second argument says
    "cudnnGetProperty": ("movl $9,(%rsi)\ntestl %edi,%edi\nje 1f\nmovl $19,(%rsi)\ncmpl $1,%edi\nje 1f\nmovl $0,(%rsi)\n1:"),
}
# what torch asks for by name when it is used
DRIVER = (
    "cuInit", "cuGetErrorString", "cuDevicePrimaryCtxGetState", "cuDevicePrimaryCtxRetain", "cuCtxGetCurrent", "cuCtxSetCurrent",
    "cuModuleLoadData", "cuModuleLoad", "cuModuleUnload", "cuModuleGetFunction", "cuLaunchKernel", "cuLaunchCooperativeKernel",
    "cuOccupancyMaxActiveBlocksPerMultiprocessor", "cuLinkCreate", "cuLinkAddData", "cuLinkComplete", "cuFuncSetAttribute",
    "cuFuncGetAttribute", "cuPointerGetAttribute", "cuTensorMapEncodeTiled",
)  # fmt: skip
COMPILER = tuple(
    f"nvrtc{name}" for name in (
        "Version", "CreateProgram", "AddNameExpression", "DestroyProgram", "CompileProgram", "GetErrorString", "GetLoweredName",
        "GetPTXSize", "GetPTX", "GetCUBINSize", "GetCUBIN", "GetProgramLogSize", "GetProgramLog",
    )
)  # fmt: skip


def names(path: Path, which: str) -> set[str]:
    """The symbols of a library that are defined, or undefined."""
    text = subprocess.run(["nm", "-D", f"--{which}-only", str(path)], capture_output=True, text=True, check=True).stdout
    return {line.split()[-1].partition("@")[0] for line in text.splitlines()}


def needed(path: Path) -> set[str]:
    """The libraries that a library is linked with."""
    text = subprocess.run(["objdump", "-p", str(path)], capture_output=True, text=True, check=True).stdout
    return {line.split()[1] for line in text.splitlines() if line.strip().startswith("NEEDED")}


def make(folder: Path, name: str, sources: Iterable[Path], *options: str) -> None:
    command = ["gcc", "-O1", "-w", "-fPIC", "-shared", f"-Wl,-soname,{name}", "-z", "noexecstack", "-o", str(folder / name)]
    subprocess.run([*command, *options, *map(str, sources)], check=True)


def stubs(path: Path, functions: Iterable[str]) -> Path:
    """Assembly of functions that return 0, or what `RETURNS` says, after what `FIRST` says."""
    lines = [f".globl {f}\n.type {f},@function\n{f}: {FIRST.get(f, '')}\nmovl ${RETURNS.get(f, 0)},%eax\nret" for f in functions]
    path.write_text(".text\n" + "\n".join(lines) + "\n")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--include", default="/usr/local/cuda/include")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    found = importlib.util.find_spec("torch")
    assert found is not None and found.origin is not None, "there is no torch here"
    libraries = sorted(Path(found.origin).parent.glob("lib/*.so"))
    own = {library.name for library in libraries}
    wanted = set[str]().union(*(names(library, "undefined") for library in libraries))
    wanted -= set[str]().union(*(names(library, "defined") for library in libraries))
    runtime = next(n for library in libraries for n in needed(library) if n.startswith("libcudart.so"))
    source = Path(__file__).with_name("cudart.c")
    make(chosen.folder, runtime, [source], f"-I{chosen.include}")
    missing = {name for name in wanted if name.startswith(PREFIXES)} - names(chosen.folder / runtime, "defined")
    make(chosen.folder, runtime, [source, stubs(chosen.folder / "stubs.s", missing)], f"-I{chosen.include}")
    nothing = stubs(chosen.folder / "nothing.s", ())
    others = (
        {n for library in libraries for n in needed(library) if n.startswith(("libcu", "libnv", "libnccl"))} - {runtime} - own
    )
    for name in others:
        functions = DRIVER if name.startswith("libcuda.") else COMPILER if name.startswith("libnvrtc.") else ()
        make(chosen.folder, name, [stubs(chosen.folder / "some.s", functions) if functions else nothing])


if __name__ == "__main__":
    main()
