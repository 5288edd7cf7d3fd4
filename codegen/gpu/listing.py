"""What one kernel becomes for a GPU, stage by stage, as text: for dumps and `inspect`."""

from __future__ import annotations

from dlcompiler.codegen.gpu.compile import assemble_kernel, assemble_kernels, parameter_names
from dlcompiler.codegen.target import Target
from dlcompiler.ir.kernel import Kernel
from dlcompiler.ir.program import RoutineCall


def kernel_listing(kernel: Kernel | RoutineCall, target: Target) -> dict[str, str]:
    """`{"schedule": one line, "triton": the source, "ttir": ..., "ttgir": ..., "llir": ..., "ptx": ...}`."""
    (assembled,) = assemble_kernels([kernel], target)
    if "triton" in assembled.stages and "ttir" not in assembled.stages:  # out of a file, which holds less
        assembled = assemble_kernel(kernel, target, frozenset(parameter_names(kernel)))
    return {"schedule": assembled.schedule + "\n", **assembled.stages}
