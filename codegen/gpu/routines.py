"""Hand-written kernels of GPUs: ops that no formula of one element gives well. Each says which nodes it computes, and writes.

A routine's parameters are the addresses of the call's reads and writes, in order, then the sizes that are symbols.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from dlcompiler.codegen.gpu import attention
from dlcompiler.ir.program import RoutineCall
from dlcompiler.ir.types import TensorType

if TYPE_CHECKING:
    from dlcompiler.codegen.gpu.device import Device
    from dlcompiler.codegen.gpu.triton_writer import TritonKernel
    from dlcompiler.ir.graph import Node

Writers = Iterator[Callable[[], "TritonKernel"]]


def scratch(node: Node) -> Sequence[TensorType] | None:
    """The scratch memory of the routine that computes a graph node; None if there is no such routine."""
    return () if node.op.name in attention.ROLES and attention.applies(node) else None


def parameter_names(call: RoutineCall) -> list[str]:
    """The routine's parameters that are addresses, one for each of the call's `arguments`."""
    return [b.name for b in attention.problem_of(call).buffers]


def routine_key(call: RoutineCall) -> str:
    """What the routine's text depends on, besides the architecture and where the call came from."""
    return f"{call.op} {attention.problem_of(call).without_origin()!r}"


def routine_writers(call: RoutineCall, device: Device, precision: str, aligned: frozenset[str]) -> Writers:
    """What writes the routine, by one schedule after another, the preferred one first."""
    return attention.attention_writers(attention.problem_of(call), device, precision, aligned)
