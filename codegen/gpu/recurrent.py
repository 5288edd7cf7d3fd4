"""Recurrences of layers as hand-written kernels: what `routines` asks. See `recurrent_form` for how they run."""

from __future__ import annotations

from collections.abc import Iterator

from dlcompiler.codegen.gpu.device import Device
from dlcompiler.codegen.gpu.recurrent_backward import BackwardLines
from dlcompiler.codegen.gpu.recurrent_form import candidates, scan_of, scratch
from dlcompiler.codegen.gpu.recurrent_writer import ForwardLines
from dlcompiler.codegen.gpu.triton_writer import TritonKernel
from dlcompiler.ir.program import RoutineCall

__all__ = ["key", "scratch", "writers"]


def key(call: RoutineCall) -> str:
    """What the text depends on besides the parameters."""
    return f"{call.op} {sorted(call.attributes.items())}"


def writers(call: RoutineCall, device: Device, precision: str, aligned: frozenset[str]) -> Iterator[TritonKernel]:
    """The kernel by one schedule after another, the preferred one first."""
    scan = scan_of(call)
    lines = BackwardLines if scan.backward else ForwardLines
    return (lines(scan, schedule, aligned).write() for schedule in candidates(scan, device, precision))
