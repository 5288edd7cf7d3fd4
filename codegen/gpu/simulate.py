"""Runs a GPU program on the CPU: its own Triton sources through Triton's interpreter, so that numbers are checked with no GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from dlcompiler.codegen.gpu.compile import AssembledKernel
from dlcompiler.codegen.gpu.emulate import completed_interpreter
from dlcompiler.codegen.gpu.load import load_function
from dlcompiler.codegen.gpu.triton_writer import TritonKernel
from dlcompiler.ir.errors import LaunchError
from dlcompiler.ir.expression import evaluate
from dlcompiler.ir.interpret import interpret_program
from dlcompiler.ir.program import DeviceCode, Launch, Program, RoutineCall


def simulate(program: Program, inputs: Sequence[np.ndarray | int]) -> list[np.ndarray]:
    """The program's outputs, each launch run from its Triton source by Triton's interpreter, library calls by the op table.

    Raises LaunchError for a program of another target, UnsupportedError naming an ATen call.
    """
    code = program.code
    if not isinstance(code, DeviceCode):
        raise LaunchError(f"{program.name} was not compiled for a GPU")

    def launch(number: int, arrays: Mapping[str, np.ndarray], sizes: Mapping[str, int]) -> None:
        kernel, step = code.kernels[number], program.steps[number]
        assert isinstance(kernel, AssembledKernel) and isinstance(step, Launch | RoutineCall)
        # equal kernels share one text, whose buffers may have other names; arrays are in the order of the step's arguments
        own = {b.name: array for b, array in zip(kernel.triton.kernel.buffers, arrays.values())}
        run_interpreted(kernel.triton, own, sizes)

    return interpret_program(program, inputs, launch=launch)[: len(program.outputs)]


def run_interpreted(kernel: TritonKernel, buffers: Mapping[str, np.ndarray], sizes: Mapping[str, int]) -> None:
    """Run one kernel over NumPy arrays, one for each buffer by name and strided as the buffer says; out buffers are written."""
    function = load_function(kernel.source, kernel.name, interpret=True)
    programs = evaluate(kernel.grid, sizes)
    if not programs:
        return
    pointers = [_Memory(buffers[b.name], b.dtype.name) for b in kernel.kernel.buffers]
    arguments = [*pointers, *(sizes[s] for s in kernel.kernel.size_symbols)]
    with completed_interpreter():
        function[(programs,)](*(_tensor(a) if isinstance(a, _Memory) else a for a in arguments), **kernel.constants)


class _Memory:
    """An array whose first element's address Triton's interpreter reads and writes from."""

    def __init__(self, array: np.ndarray, dtype: str) -> None:
        self.array = array
        self.dtype = dtype


def _tensor(memory: _Memory):
    """A one-element torch tensor over the array's first element; the interpreter only takes its address and dtype."""
    import ctypes

    import torch

    types = {"f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16", "bool": "bool"}
    letter = memory.dtype[0]
    name = types.get(memory.dtype) or ("uint" if letter == "u" else "int") + memory.dtype[1:]
    held = (ctypes.c_char * max(memory.array.itemsize, 1)).from_address(memory.array.ctypes.data)
    return torch.frombuffer(held, dtype=getattr(torch, name), count=1)
