"""What one kernel becomes, stage by stage, as text: for dumps and `inspect`. Nothing here runs in a normal compilation."""

from __future__ import annotations

from dlcompiler.codegen.cpu.compile import chosen_for, machine_of, write_kernel
from dlcompiler.codegen.cpu.jit import LOWER_TO_LLVM, mlir_context
from dlcompiler.codegen.target import Target
from dlcompiler.ir.kernel import Kernel
from dlcompiler.ir.program import RoutineCall


def kernel_listing(kernel: Kernel | RoutineCall, target: Target) -> dict[str, str]:
    """`{"schedule": one line, "mlir": the kernel as written, "llvm": the same in MLIR's LLVM dialect}`."""
    text, written = write_kernel(kernel, machine_of(target), chosen=chosen_for(kernel, target))
    return {"schedule": f"{written.summary}\n", "mlir": text, "llvm": lower_to_llvm(text)}


def lower_to_llvm(text: str) -> str:
    """A module of MLIR text, lowered to the LLVM dialect as it is before machine code is made of it."""
    from torch_mlir import ir, passmanager

    with mlir_context(), ir.Location.unknown():
        module = ir.Module.parse(text)
        passmanager.PassManager.parse(LOWER_TO_LLVM).run(module.operation)
        return str(module)
