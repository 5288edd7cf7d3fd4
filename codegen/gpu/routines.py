"""Hand-written kernels of GPUs: ops that no formula of one element gives well. Each says which nodes it computes, and writes.

A routine's parameters are the addresses of the call's reads and writes, in order, then the sizes that are symbols.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from dlcompiler.codegen.gpu import attention, linear_logsumexp, recurrent, routine_text, scan, scatter
from dlcompiler.ir.ops.recurrent import CELLS
from dlcompiler.ir.program import RoutineCall
from dlcompiler.ir.types import TensorType

if TYPE_CHECKING:
    from dlcompiler.codegen.gpu.device import Device
    from dlcompiler.codegen.gpu.triton_writer import TritonKernel
    from dlcompiler.ir.graph import Node
    from dlcompiler.ir.kernel import Kernel


def scratch(node: Node) -> Sequence[TensorType] | None:
    """The scratch memory of the routine that computes a graph node; None if there is no such routine."""
    if node.op.name in attention.ROLES:
        return () if attention.applies(node) else None
    own = OF_OP.get(node.op.name)
    return None if own is None else own.scratch(node)


def routine_parameters(call: RoutineCall) -> Kernel:
    """The routine's parameters, one buffer for each of the call's `arguments`; it has no statements."""
    return attention.problem_of(call).parameters if call.op in attention.ROLES else routine_text.parameters(call)


def routine_key(call: RoutineCall) -> str:
    """What the routine's text depends on, besides the architecture and where the call came from."""
    if call.op in attention.ROLES:
        return f"{call.op} {attention.problem_of(call).without_origin()!r}"
    return OF_OP[call.op].key(call)


def routine_writers(call: RoutineCall, device: Device, precision: str, aligned: frozenset[str]) -> Iterator[TritonKernel]:
    """What writes the routine, by one schedule after another, the preferred one first."""
    if call.op in attention.ROLES:
        return attention.attention_writers(attention.problem_of(call), device, precision, aligned)
    return OF_OP[call.op].writers(call, device, precision, aligned)


# op -> the module that computes it: in what `scratch` memory, None if it does not; what its text depends on (`key`); `writers`
OF_OP: dict[str, ModuleType] = {
    "scan": scan, "index_update": scatter, "scatter": scatter, "linear_logsumexp": linear_logsumexp,
}  # fmt: skip
OF_OP |= {f"{cell}_scan{rest}": recurrent for cell in CELLS for rest in ("", "_keeping", "_backward")}
