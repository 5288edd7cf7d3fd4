"""MLIR text to machine code in this process: text -> LLVM dialect -> LLVM's JIT.

Entry points are called by plain C convention, not through the packed wrappers of MLIR's ExecutionEngine: one small
public function writes the addresses of all entry points into a table, which is read once. Every other function stays
internal, so LLVM makes no wrapper (a second copy) of it. The engine compiles for the live processor; a lower level is
kept by `Machine.attributes()` on the functions.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LOWER_TO_LLVM = (
    "builtin.module(convert-vector-to-llvm,convert-scf-to-cf,convert-math-to-llvm,convert-arith-to-llvm,convert-cf-to-llvm,"
    "reconcile-unrealized-casts)"
)
# a context without threads of its own does not guard itself against ours
COMPILING = threading.Lock()
TABLE_FUNCTION = "dlcompiler_entry_points"


@dataclass
class Module:
    """Compiled code. The addresses are valid as long as this object lives; `milliseconds` is the time of each stage."""

    engine: Any
    addresses: dict[str, int]
    text: str
    lowered: Any
    milliseconds: dict[str, float] = field(default_factory=dict)

    @property
    def stages(self) -> dict[str, str]:
        """The text of each stage, for a dump: printing takes as long as lowering, so it is done when asked for."""
        return {"mlir": self.text, "llvm-dialect": str(self.lowered)}

    def address(self, name: str) -> int:
        """The plain C address of an entry point: its arguments are what its `llvm.func` says (`!llvm.ptr` is void *,
        i64 is int64_t).
        """
        return self.addresses[name]

    def function(self, name: str, *argument_types: Any, result: Any = None) -> Any:
        """An entry point as a ctypes function that keeps this module alive; the default arguments are (void **,
        int64_t, int64_t).
        """
        kinds = argument_types or (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
        function: Any = ctypes.CFUNCTYPE(result, *kinds)(self.addresses[name])
        function.module = self
        return function

    def write_object(self, path: Path) -> None:
        """Write the machine code as an ELF object file, for a listing or an artefact."""
        self.engine.dump_to_object_file(str(path))


@functools.cache
def mlir_context() -> Any:
    """The one MLIR context of this process: making one and loading its dialects takes 10 ms, as long as a kernel does."""
    from torch_mlir import ir

    context = ir.Context()
    # its threads would not survive a fork, and the pipeline has no work for them
    context.enable_multithreading(False)
    return context


def libgomp() -> list[str]:
    """The OpenMP runtime that torch brings along, as `shared_libs`; empty if there is none. Does not import torch."""
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


def compile_mlir(text: str, entry_points: list[str], opt_level: int = 2, openmp: bool = False) -> Module:
    """Compile a module of `llvm.func`s (their bodies in arith, vector, scf, math, llvm) and look up its entry points.

    `openmp` links torch's libgomp, so that the code may declare and call GOMP_parallel. ImportError if the MLIR
    bindings are missing; the bindings' MLIRError names the line of a text that does not parse; RuntimeError for a
    symbol that cannot be found.
    """
    from torch_mlir import ir, passmanager
    from torch_mlir.execution_engine import ExecutionEngine

    whole = text.rstrip().removesuffix("}") + entry_point_table(entry_points) + "\n}\n"
    clock = [time.perf_counter()]
    with COMPILING, mlir_context(), ir.Location.unknown():
        module = ir.Module.parse(whole)
        clock.append(time.perf_counter())
        passmanager.PassManager.parse(LOWER_TO_LLVM).run(module.operation)
        clock.append(time.perf_counter())
        engine = ExecutionEngine(module, opt_level=opt_level, shared_libs=libgomp() if openmp else [])
        packed = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(engine.raw_lookup(TABLE_FUNCTION))
        clock.append(time.perf_counter())
    table = (ctypes.c_void_p * len(entry_points))()
    argument = ctypes.c_void_p(ctypes.addressof(table))
    arguments = (ctypes.c_void_p * 1)(ctypes.addressof(argument))
    packed(ctypes.addressof(arguments))
    addresses = {name: int(address or 0) for name, address in zip(entry_points, table)}
    durations = [1e3 * (after - before) for before, after in zip(clock, clock[1:])]
    return Module(engine, addresses, text, module, dict(zip(("parse", "lower", "machine code"), durations)))
