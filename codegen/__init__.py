"""Code generation: how a machine says what a program means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from dlcompiler.codegen.cache import CacheOptions
    from dlcompiler.codegen.target import Target
    from dlcompiler.ir.kernel import Kernel
    from dlcompiler.ir.program import Program, RoutineCall

    class EmitOptions(CacheOptions, Protocol):
        """What code generation asks of the options of a compilation. `gpu_writer`: triton or cuda, a kernel's language."""

        @property
        def gpu_writer(self) -> str: ...


def emit(program: Program, target: Target, options: EmitOptions | None = None) -> Program:
    """Give every kernel of the program its text and its machine code; for a CPU from the cache that `options` name, if it has it.

    Raises UnsupportedError for what the target cannot spell.
    """
    if target.kind == "cpu":
        from dlcompiler.codegen.cache import open_store
        from dlcompiler.codegen.cpu.compile import emit_program

        return emit_program(program, target, open_store(options) if options is not None else None)
    from dlcompiler.codegen.gpu.compile import emit_program as emit_for_gpu

    return emit_for_gpu(program, target, options.gpu_writer if options is not None else "triton")


def kernel_listing(kernel: Kernel | RoutineCall, target: Target) -> dict[str, str]:
    """What one kernel becomes for the target, stage by stage: `{"schedule": text, stage: text, ...}`."""
    if target.kind == "cpu":
        from dlcompiler.codegen.cpu.listing import kernel_listing as for_cpu

        return for_cpu(kernel, target)
    from dlcompiler.codegen.gpu.listing import kernel_listing as for_gpu

    return for_gpu(kernel, target)
