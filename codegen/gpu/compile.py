"""Stages of a GPU kernel: Triton source -> ttir -> ttgir -> llir -> ptx -> cubin, for an architecture, on any machine."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dlcompiler.codegen.gpu.load import load_function
from dlcompiler.codegen.gpu.triton_writer import TritonKernel, write_triton
from dlcompiler.codegen.target import Target
from dlcompiler.ir import kernel as K
from dlcompiler.ir.program import Launch, Program

WARPS = 4


@dataclass(frozen=True, eq=False)
class AssembledKernel:
    """A kernel assembled for an architecture. `stages`: name -> text (ttir, ttgir, llir, ptx) or bytes (cubin)."""

    triton: TritonKernel
    stages: Mapping[str, str | bytes] = field(repr=False)

    @property
    def name(self) -> str:
        return self.triton.name

    @property
    def text(self) -> str:
        """The Triton source."""
        return self.triton.source


@dataclass(frozen=True, eq=False)
class GpuCode:
    """What codegen attaches to a program for a GPU: an AssembledKernel for each launch, None for the other steps.

    preparation  the same for each launch of the program's preparation
    """

    kernels: tuple[AssembledKernel | None, ...]
    target: Target
    preparation: tuple[AssembledKernel, ...] = ()


_assembled: dict[tuple[str, str], AssembledKernel] = {}
_lock = threading.Lock()


def forget() -> None:
    """Drop every assembled kernel that no program holds."""
    with _lock:
        _assembled.clear()


def assembled_count() -> int:
    """Distinct kernels assembled and kept in this process."""
    return len(_assembled)


def assemble(kernel: TritonKernel, target: Target) -> AssembledKernel:
    """Run all of Triton's stages for the target's architecture; needs no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    capability = int(target.arch.removeprefix("sm_"))
    function = load_function(kernel.source, kernel.name, interpret=False)
    source = ASTSource(function, dict(kernel.signature), dict(kernel.constants))
    compiled = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": WARPS, "enable_fp_fusion": True}
    )
    return AssembledKernel(kernel, {stage: text for stage, text in compiled.asm.items() if stage != "source"})


def assemble_kernels(kernels: Sequence[K.Kernel], target: Target) -> list[AssembledKernel]:
    """Each kernel assembled, in order; equal ones once."""
    results = []
    for kernel in kernels:
        key = (str(kernel.replace(name="kernel", origin=())), target.arch)
        with _lock:
            if key not in _assembled:
                _assembled[key] = assemble(write_triton(kernel, "kernel"), target)
            results.append(_assembled[key])
    return results


def emit_program(program: Program, target: Target) -> Program:
    """Attach every launch's Triton source and its assembled stages."""
    launches = [step.kernel for step in (*program.preparation, *program.steps) if isinstance(step, Launch)]
    assembled = assemble_kernels(launches, target)
    first = len(program.preparation)
    codes = iter(assembled[first:])
    kernels = tuple(next(codes) if isinstance(step, Launch) else None for step in program.steps)
    return program.replace(code=GpuCode(kernels, target, tuple(assembled[:first])))
