"""GPU programs as callables. Launching on a device is not built yet: such a program is compiled, inspected and simulated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dlcompiler.ir.errors import LaunchError
from dlcompiler.ir.program import Placement, Program


class GpuExecutable:
    """Holds a program compiled for a GPU; `place` makes the memory plan for one binding of its symbols."""

    def __init__(self, program: Program, place: Any = None) -> None:
        self.program = program
        self._place = place

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        raise LaunchError(
            f"{self.program.name} was compiled for a GPU, and this version does not launch on one",
            hint="use .simulate(...) to run its kernels through Triton's interpreter, or compile with target='cpu'",
        )

    def placement(self, bindings: Mapping[str, int] | None = None) -> Placement:
        """The memory plan for these sizes."""
        return self.program.placement or self._place(self.program, bindings or {})
