"""MLIR text to machine code in this process: text -> LLVM dialect -> LLVM's JIT -> an object file -> memory.

Several threads may compile at once, each in a context of its own: what takes long is called past the bindings, which would hold
Python's lock meanwhile. LLVM's optimizer (level 2) takes nearly half of the time; without it a step of ResNet-18 lost 1 %, but
single kernels far more (1.4 times longer for a sort, 1.5 for a convolution in steps of two).

MLIR's ExecutionEngine is used as a compiler only: the object that it makes is taken out, loaded as one from the cache on disk
would be (`object_file.py`), and the engine is dropped. Entry points are called by plain C convention, not through the engine's
packed wrappers: one small public function names them all, so every other function can stay internal, and LLVM makes no wrapper
(a second copy) of it. The engine compiles for the live processor; a lower level is kept by `Machine.attributes()` on the
functions.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dlcompiler.codegen.cpu.object_file import ELF_MAGIC, LoadedObject, load_object

LOWER_TO_LLVM = (
    "builtin.module(convert-vector-to-llvm,convert-scf-to-cf,convert-math-to-llvm,convert-arith-to-llvm,convert-cf-to-llvm,"
    "reconcile-unrealized-casts)"
)
TABLE_FUNCTION = "dlcompiler_entry_points"


@dataclass
class Module:
    """Compiled code. `milliseconds` is the time of each stage.

    code    its functions in memory; they stay as long as it lives
    object  the ELF file that it was loaded from; None where the system has another format
    """

    code: LoadedObject
    object: bytes | None
    milliseconds: dict[str, float] = field(default_factory=dict)

    def address(self, name: str) -> int:
        """The plain C address of an entry point: its arguments are what its `llvm.func` says (`!llvm.ptr` is void *,
        i64 is int64_t).
        """
        return self.code.address(name)

    def function(self, name: str, *argument_types: Any, result: Any = None) -> Any:
        """An entry point as a ctypes function that keeps its code alive; the default arguments are (void **,
        int64_t, int64_t).
        """
        return self.code.function(name, *argument_types, result=result)


_idle_contexts: list[Any] = []


@contextmanager
def mlir_context() -> Iterator[Any]:
    """An MLIR context that nobody else uses meanwhile, entered. Making one takes 10 ms, as long as a kernel does: they are kept.

    A context without threads of its own does not guard itself against ours. Its threads would not survive a fork, and the
    pipeline has no work for them.
    """
    from torch_mlir import ir

    try:
        context = _idle_contexts.pop()
    except IndexError:
        context = ir.Context()
        context.enable_multithreading(False)
    try:
        with context:
            yield context
    finally:
        _idle_contexts.append(context)


class _Text(ctypes.Structure):
    """MLIR's own `MlirStringRef`."""

    _fields_ = [("data", ctypes.c_char_p), ("length", ctypes.c_size_t)]


@functools.cache
def _c_interface() -> Any:
    """MLIR's C functions, as the library behind the bindings has them; ctypes calls them without Python's lock."""
    bindings = importlib.import_module("torch_mlir._mlir_libs._mlir")
    library = ctypes.CDLL(bindings.__file__)  # and what it depends on
    library.mlirPassManagerRunOnOp.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    library.mlirPassManagerRunOnOp.restype = ctypes.c_int8
    library.mlirExecutionEngineLookup.argtypes = (ctypes.c_void_p, _Text)
    library.mlirExecutionEngineLookup.restype = ctypes.c_void_p
    return library


def _pointer(wrapped: Any) -> int:
    """The address of what an object of the bindings stands for."""
    capsule = wrapped._CAPIPtr
    name, pointer = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    name.argtypes, name.restype = (ctypes.py_object,), ctypes.c_char_p
    pointer.argtypes, pointer.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_void_p
    return int(pointer(capsule, name(capsule)))


def libgomp() -> list[str]:
    """The OpenMP runtime that torch brings along, as files; empty if there is none. Does not import torch."""
    specification = importlib.util.find_spec("torch")
    if specification is None or specification.origin is None:
        return []
    return [str(path) for path in sorted((Path(specification.origin).parent / "lib").glob("libgomp*.so*"))]


def entry_point_table(names: list[str]) -> str:
    """The function that writes the address of each name to an array of pointers."""
    lines = [f"llvm.func @{TABLE_FUNCTION}(%table: !llvm.ptr) {{"]
    for number, name in enumerate(names):
        lines += [
            f"%f{number} = llvm.mlir.addressof @{name} : !llvm.ptr",
            f"%p{number} = llvm.getelementptr %table[{number}] : (!llvm.ptr) -> !llvm.ptr, !llvm.ptr",
            f"llvm.store %f{number}, %p{number} : !llvm.ptr, !llvm.ptr",
        ]
    return "\n".join([*lines, "llvm.return", "}"])


def compile_mlir(text: str, entry_points: list[str], opt_level: int = 2, libraries: Sequence[str] = ()) -> Module:
    """Compile a module of `llvm.func`s (their bodies in arith, vector, scf, math, llvm) and look up its entry points.

    libraries   files of shared libraries that the code may declare functions of, and call; `libgomp()` for GOMP_parallel
    ImportError if the MLIR bindings are missing; the bindings' MLIRError names the line of a text that does not parse;
    RuntimeError for a symbol that cannot be found.
    """
    from torch_mlir import ir

    whole = text.rstrip().removesuffix("}") + entry_point_table(entry_points) + "\n}\n"
    milliseconds: dict[str, float] = {}
    with mlir_context(), ir.Location.unknown():
        made = _machine_code(whole, entry_points, opt_level, libraries, milliseconds)
    if isinstance(made, LoadedObject):
        return Module(made, None, milliseconds)
    began = time.perf_counter()
    code = load_object(made, libraries)
    milliseconds["load"] = 1e3 * (time.perf_counter() - began)
    return Module(code, made, milliseconds)


def _machine_code(
    text: str, entry_points: list[str], opt_level: int, libraries: Sequence[str], milliseconds: dict[str, float]
) -> bytes | LoadedObject:
    """The ELF object of a module's text; the engine's own code where it made another kind of object.

    What MLIR holds of the module is freed on return, while the context is ours.
    """
    from torch_mlir import ir
    from torch_mlir.execution_engine import ExecutionEngine

    clock = [time.perf_counter()]
    module = ir.Module.parse(text)
    clock.append(time.perf_counter())
    _lower(module)
    clock.append(time.perf_counter())
    engine = ExecutionEngine(module, opt_level=opt_level, shared_libs=list(libraries), enable_object_dump=True)
    # the engine compiles when something is looked up
    name = TABLE_FUNCTION.encode()
    table_function = _c_interface().mlirExecutionEngineLookup(_pointer(engine), _Text(name, len(name)))
    if not table_function:
        raise RuntimeError(f"the module's code has no {TABLE_FUNCTION}")
    data = object_of(engine)
    clock.append(time.perf_counter())
    durations = [1e3 * (after - before) for before, after in zip(clock, clock[1:])]
    milliseconds.update(zip(("parse", "lower", "machine code"), durations))
    return data if data.startswith(ELF_MAGIC) else LoadedObject(table_entries(table_function, entry_points), engine)


def _lower(module: Any) -> None:
    """A module, verified when it was parsed, to the LLVM dialect. The bindings' MLIRError where it cannot be."""
    from torch_mlir import passmanager

    lowering = passmanager.PassManager.parse(LOWER_TO_LLVM)
    lowering.enable_verifier(False)  # after each pass; it would take as long as they do
    if not _c_interface().mlirPassManagerRunOnOp(_pointer(lowering), _pointer(module.operation)):
        lowering.run(module.operation)  # which fails again, and says why


def object_of(engine: Any) -> bytes:
    """The object file that an engine has compiled. It gives it as a file only, so here is one that no disk has to hold."""
    if hasattr(os, "memfd_create"):
        with open(os.memfd_create("object"), "rb") as file:
            engine.dump_to_object_file(f"/proc/self/fd/{file.fileno()}")
            return file.read()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "object"
        engine.dump_to_object_file(str(path))
        return path.read_bytes()


def table_entries(table_function: int, names: Sequence[str]) -> dict[str, int]:
    """Call the function that gives every entry point's address: for objects that this process cannot load by itself."""
    table = (ctypes.c_void_p * len(names))()
    argument = ctypes.c_void_p(ctypes.addressof(table))
    arguments = (ctypes.c_void_p * 1)(ctypes.addressof(argument))
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(table_function)(ctypes.addressof(arguments))
    return {name: int(address or 0) for name, address in zip(names, table)}
