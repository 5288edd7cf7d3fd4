"""Compiles the kernels of a program for a CPU: each distinct kernel once in this process, and once on this machine's disk."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence

from dlcompiler.codegen.cache import Store
from dlcompiler.codegen.cpu import scalars
from dlcompiler.codegen.cpu.emitter import Emitter
from dlcompiler.codegen.cpu.machine import Machine, host, machine
from dlcompiler.codegen.cpu.machine_code import find_functions
from dlcompiler.codegen.cpu.writer import KernelWriter
from dlcompiler.codegen.schedule import Schedule, schedule_kernel
from dlcompiler.codegen.target import Target
from dlcompiler.ir import kernel as K
from dlcompiler.ir.program import Code, CompiledKernel, Launch, Program

# Kernels of this process: what they compute, for which machine -> machine code. Guarded by the lock.
_compiled: dict[str, CompiledKernel] = {}
_made = {"compiled": 0, "loaded": 0}
_lock = threading.Lock()


def forget() -> None:
    """Drop every compiled kernel that no program holds."""
    with _lock:
        _compiled.clear()


def compiled_count() -> int:
    """Kernels compiled by this process so far."""
    return _made["compiled"]


def loaded_count() -> int:
    """Kernels whose code this process has taken from the cache on disk so far."""
    return _made["loaded"]


def machine_of(target: Target) -> Machine:
    """The description of the target's CPU: the live one if that is what was asked for."""
    return host() if target.host else machine(target.arch)


def kernel_key(kernel: K.Kernel, described: Machine) -> str:
    """What makes two kernels the same code: everything but their names and origins."""
    text = str(kernel.replace(name="kernel", origin=()))
    return hashlib.sha256(f"{described.name} {described.cache_bytes}\n{text}".encode()).hexdigest()[:24]


def _schedule(kernel: K.Kernel, described: Machine) -> Schedule:
    streams = described.name.startswith("x86")
    return schedule_kernel(kernel, described.vector_bytes, described.cache_bytes[2] if streams else 1 << 62)


def write_kernel(kernel: K.Kernel, described: Machine, name: str = "kernel") -> tuple[str, Schedule]:
    """One kernel as a module of MLIR text, and the schedule it follows."""
    schedule = _schedule(kernel, described)
    e = Emitter(machine=described)
    KernelWriter(e, kernel, schedule, described).write(name)
    return e.text(), schedule


def compile_kernels(kernels: Sequence[K.Kernel], target: Target, store: Store | None = None) -> list[CompiledKernel]:
    """Machine code for each kernel, in order. Equal kernels share one, and so do those that this process or `store` has."""
    described = machine_of(target)
    keys = [kernel_key(kernel, described) for kernel in kernels]
    with _lock:
        new = {f"k{key}": kernel for key, kernel in zip(keys, kernels) if key not in _compiled}
        if new:
            schedules = {name: _schedule(kernel, described) for name, kernel in new.items()}

            def write(missing: Sequence[str]) -> str:
                e = Emitter(machine=described)
                for name in missing:
                    KernelWriter(e, new[name], schedules[name], described).write(name)
                return e.text()

            for name, function in find_functions(list(new), write, store).items():
                schedule = schedules[name]
                _compiled[name[1:]] = CompiledKernel(
                    name, function.address, schedule.work, schedule.grain, text="", keep_alive=function.code
                )  # fmt: skip
                _made["compiled" if function.compiled else "loaded"] += 1
        return [_compiled[key] for key in keys]


def emit_program(program: Program, target: Target, store: Store | None = None) -> Program:
    """Attach machine code for every launch, and the driver that starts them, from `store` where it has them."""
    from dlcompiler.codegen.cpu.driver import compile_driver, driver_address

    launches = [step.kernel for step in program.steps if isinstance(step, Launch)]
    codes = iter(compile_kernels(launches, target, store))
    kernels = tuple(next(codes) if isinstance(step, Launch) else None for step in program.steps)
    return program.replace(code=Code(kernels, driver_address(store), keep_alive=compile_driver(store)))


def unspelled(op: str, dtype) -> bool:
    """Whether kernels for CPUs cannot compute this scalar operation."""
    return op != "cast" and not scalars.spelled(op, dtype)
