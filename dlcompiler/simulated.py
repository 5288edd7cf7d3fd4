"""A program for a GPU on the CPU: its own Triton sources in Triton's interpreter, with torch tensors in and out.

run = simulated(executable)         # of a program, or of one in stages
outputs = run(inputs)               # inputs that the program writes are written
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dlcompiler.arrays import array_from_tensor, tensor_from_array
from dlcompiler.codegen.gpu.simulate import simulate
from dlcompiler.ir.interpret import RANDOM_SEED
from dlcompiler.ir.program import Program
from dlcompiler.reference import draw
from dlcompiler.runtime.aten import prepare_aten
from dlcompiler.runtime.constants import update_copy
from dlcompiler.runtime.staged import StagedExecutable

if TYPE_CHECKING:
    from dlcompiler.recorded import AnyExecutable


def simulated(executable: AnyExecutable | Any) -> Callable[[Sequence[Any]], list[Any]]:
    """What calls of an executable for a GPU do, without one. Calls of ATen operators are run by torch on the CPU."""
    if isinstance(executable, StagedExecutable):
        return executable.with_parts(lambda part: Simulated(part.program))
    return Simulated(executable.program)


class Simulated:
    """One program; takes and gives tensors on the CPU, and writes to those that the program writes."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def __call__(self, inputs: Sequence[Any]) -> list[torch.Tensor]:
        """As the executable's own call. Raises as `codegen.gpu.simulate.simulate`."""
        types = [node.dtype for node in self.program.graph.inputs]
        arrays = [array_from_tensor(x, dtype) if isinstance(x, torch.Tensor) else x for x, dtype in zip(inputs, types)]
        for value in self.program.constants:
            update_copy(value)
        results = simulate(self.program, arrays, _call_aten)
        count = len(self.program.outputs)
        position = {node: k for k, node in enumerate(self.program.graph.inputs)}
        with torch.no_grad():
            for (_, node), array in zip(self.program.graph.writebacks, results[count:], strict=True):
                inputs[position[node]].copy_(tensor_from_array(array))
        return [tensor_from_array(array) for array in results[:count]]

    def close(self) -> None:
        """There is nothing to free."""


def _call_aten(target: str, template: Mapping[str, Any], operands: Sequence[np.ndarray]) -> Any:
    if target == RANDOM_SEED:
        return draw()
    run = prepare_aten(target, template, range(len(operands)), {})
    with torch.no_grad():
        results = run([tensor_from_array(array) for array in operands])
    if isinstance(results, tuple | list):
        return [array_from_tensor(x) if isinstance(x, torch.Tensor) else x for x in results]
    return array_from_tensor(results)
