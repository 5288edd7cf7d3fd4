"""Compiles what a program runs on a CPU: each distinct kernel once in this process, and once on this machine's disk."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from dlcompiler.codegen.cache import Store
from dlcompiler.codegen.choices import NOTHING, Answer, subject_text
from dlcompiler.codegen.contraction import ContractionSchedule, schedule_contraction
from dlcompiler.codegen.cpu import scalars
from dlcompiler.codegen.cpu.contraction import ContractionWriter
from dlcompiler.codegen.cpu.emitter import Emitter
from dlcompiler.codegen.cpu.machine import Machine, host, machine
from dlcompiler.codegen.cpu.machine_code import find_functions
from dlcompiler.codegen.cpu.packing import Packing, PackingWriter, find_packing
from dlcompiler.codegen.cpu.routines import routines
from dlcompiler.codegen.cpu.winograd import WinogradWriter
from dlcompiler.codegen.cpu.writer import KernelWriter
from dlcompiler.codegen.schedule import Schedule, schedule_kernel
from dlcompiler.codegen.target import Target
from dlcompiler.codegen.winograd import WinogradSchedule, schedule_winograd
from dlcompiler.ir import kernel as K
from dlcompiler.ir.expression import Dim, parse_dim
from dlcompiler.ir.program import Code, CompiledKernel, Launch, Program, RoutineCall, Step

# What is compiled: a loop nest that Kernel IR describes, or a call of a hand-written kernel.
Unit: TypeAlias = K.Kernel | RoutineCall
AnySchedule: TypeAlias = WinogradSchedule | ContractionSchedule | Packing | Schedule


@dataclass(frozen=True)
class WrittenKernel:
    """A kernel as text, before it is machine code; `summary` says on one line how it runs."""

    name: str
    work: Dim
    grain: int
    summary: str
    multiple: int = 1


# A module is closed beyond so many lines: what a module costs (6 ms) does not matter then, and cores end together.
MODULE_LINES = 1500

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


def kernel_key(unit: Unit, described: Machine, chosen: Answer = NOTHING) -> str:
    """What makes two kernels the same code: everything but their names and origins."""
    # routines and Winograd's tiles are written for a number of cores (not of threads: it is this machine's)
    takes_cores = isinstance(unit, RoutineCall) or unit.winograd is not None
    facts = [described.name, described.has_bfloat_products, described.has_byte_products, described.cache_bytes]
    text = " ".join(map(str, [*facts, *([described.cores] if takes_cores else [])]))
    text += f"\n{subject_text(unit)}"
    if chosen:
        text += "\n" + json.dumps(dict(chosen), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def schedule_for(kernel: K.Kernel, described: Machine, chosen: Answer = NOTHING) -> AnySchedule:
    """How a kernel runs on that machine."""
    found: AnySchedule | None = schedule_winograd(kernel, described.tiles) if kernel.winograd is not None else None
    found = found or schedule_contraction(kernel, described.tiles, chosen) or find_packing(kernel, described.lanes(4))
    if found is not None:
        return found
    streams = described.name.startswith("x86")
    return schedule_kernel(kernel, described.vector_bytes, described.cache_bytes[2] if streams else 1 << 62, chosen)


def _write(e: Emitter, unit: Unit, described: Machine, name: str, chosen: Answer = NOTHING) -> WrittenKernel:
    """Write the function of one kernel or routine into an open module."""
    if isinstance(unit, RoutineCall):
        routine = routines()[unit.op]
        written = routine.write(e, unit, described, name)
        return WrittenKernel(name, written.work, written.grain, written.summary, written.multiple)
    schedule = schedule_for(unit, described, chosen)
    match schedule:
        case WinogradSchedule():
            WinogradWriter(e, unit, schedule, described).write(name)
        case ContractionSchedule():
            ContractionWriter(e, unit, schedule, described).write(name)
        case Packing():
            PackingWriter(e, unit, schedule, described).write(name)
        case Schedule():
            KernelWriter(e, unit, schedule, described).write(name)
    return WrittenKernel(name, schedule.work, schedule.grain, str(schedule))


def write_kernel(unit: Unit, described: Machine, name: str = "kernel", chosen: Answer = NOTHING) -> tuple[str, WrittenKernel]:
    """One kernel as a module of MLIR text, and how it runs."""
    e = Emitter(machine=described)
    written = _write(e, unit, described, name, chosen)
    return e.text(), written


def compile_kernels(kernels: Sequence[Unit], target: Target, store: Store | None = None) -> list[CompiledKernel]:
    """Machine code for each kernel, in order. Equal kernels share one, and so do those that this process or `store` has."""
    described = machine_of(target)
    answers = [chosen_for(kernel, target) for kernel in kernels]
    keys = [kernel_key(kernel, described, answer) for kernel, answer in zip(kernels, answers)]
    with _lock:
        new = {f"k{key}": (kernel, answer) for key, kernel, answer in zip(keys, kernels, answers) if key not in _compiled}
        if new:

            def write(missing: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
                e, facts = Emitter(machine=described), {}
                for name in missing:
                    facts[name] = _facts(_write(e, new[name][0], described, name, new[name][1]))
                    if len(e.top) >= MODULE_LINES:
                        yield e.text(), facts
                        e, facts = Emitter(machine=described), {}
                if facts:
                    yield e.text(), facts

            for name, function in find_functions(list(new), write, store).items():
                work, grain, multiple = json.loads(function.facts)
                _compiled[name[1:]] = CompiledKernel(
                    name, function.address, parse_dim(work), grain, multiple, keep_alive=function.code
                )  # fmt: skip
                _made["compiled" if function.compiled else "loaded"] += 1
        return [_compiled[key] for key in keys]


def chosen_for(unit: Unit, target: Target) -> Answer:
    """What a tuner has chosen for a kernel's loops."""
    if target.choices is None or isinstance(unit, RoutineCall):
        return NOTHING
    return target.choices.ask("schedule", unit)


def _facts(written: WrittenKernel) -> str:
    """What a launch has to know of a kernel, as text that is kept beside its code."""
    return json.dumps([str(written.work), written.grain, written.multiple])


def emit_program(program: Program, target: Target, store: Store | None = None) -> Program:
    """Attach machine code for every launch, and the driver that starts them, from `store` where it has them."""
    from dlcompiler.codegen.cpu.driver import compile_driver

    units = [_unit(step) for step in (*program.preparation, *program.steps)]
    codes = iter(compile_kernels([unit for unit in units if unit is not None], target, store))
    kernels = tuple(None if unit is None else next(codes) for unit in units)
    first = len(program.preparation)
    preparation = tuple(kernel for kernel in kernels[:first] if kernel is not None)
    driver = compile_driver(store)
    driver_at, unchanged, touch = map(driver.address, ("driver", "unchanged", "touch"))
    code = Code(kernels[first:], driver_at, driver, preparation, unchanged, touch)
    return program.replace(code=code)


def _unit(step: Step) -> Unit | None:
    """What is compiled for a step, None for what a library runs."""
    if isinstance(step, Launch):
        return step.kernel
    return step if isinstance(step, RoutineCall) else None


def unspelled(op: str, dtype) -> bool:
    """Whether kernels for CPUs cannot compute this scalar operation."""
    return op != "cast" and not scalars.spelled(op, dtype)
