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
from dlcompiler.ir.interpret import Call, interpret_program
from dlcompiler.ir.interpret_kernel import interpret_kernel
from dlcompiler.ir.program import DeviceCode, Launch, Program, RoutineCall
from dlcompiler.ir.types import NARROW_TYPES


def simulate(program: Program, inputs: Sequence[np.ndarray | int], call: Call | None = None) -> list[np.ndarray]:
    """The program's outputs, then the final contents of the inputs that its graph writes back.

    Each launch runs from its Triton source by Triton's interpreter, library calls by the op table, calls of ATen by `call`.
    Raises LaunchError for a program of another target, UnsupportedError naming an ATen call where there is no `call`.
    """
    code = program.code
    if not isinstance(code, DeviceCode):
        raise LaunchError(f"{program.name} was not compiled for a GPU")

    def launch(number: int, arrays: Mapping[str, np.ndarray], sizes: Mapping[str, int]) -> None:
        kernel, step = code.kernels[number], program.steps[number]
        assert isinstance(kernel, AssembledKernel) and isinstance(step, Launch | RoutineCall)
        written = kernel.written
        # equal kernels share one text, whose buffers may have other names; arrays are in the order of the step's arguments
        own = {b.name: array for b, array in zip(written.kernel.buffers, arrays.values())}
        if isinstance(written, TritonKernel):
            run_interpreted(written, own, sizes)
        else:  # nothing here runs CUDA C++: it was assembled, and numbers come from the kernel that it was written from
            interpret_kernel(written.kernel, own, sizes)

    return interpret_program(program, inputs, call=call, launch=launch)


def run_interpreted(kernel: TritonKernel, buffers: Mapping[str, np.ndarray], sizes: Mapping[str, int]) -> None:
    """Run one kernel over NumPy arrays, one for each buffer by name and strided as the buffer says; out buffers are written."""
    programs = evaluate(kernel.grid, sizes)
    if not programs:
        return
    words = [*(buffers[b.name].ctypes.data for b in kernel.kernel.buffers), *(sizes[s] for s in kernel.kernel.size_symbols)]
    if kernel.repeats is None:
        run_at(kernel, words, programs)
        return
    for step in range(evaluate(kernel.repeats, sizes)):
        run_at(kernel, [*words, step], programs)


def run_at(kernel: TritonKernel, words: Sequence[int], programs: int) -> None:
    """Run one kernel as a GPU's driver would start it: words are the addresses of its buffers in this process, then sizes."""
    function = load_function(kernel.source, kernel.name, interpret=True)
    types = [b.dtype.name for b in kernel.kernel.buffers]
    arguments = [_tensor(word, types[k]) if k < len(types) else word for k, word in enumerate(words)]
    with completed_interpreter():
        function[(programs,)](*arguments, **kernel.constants)


def _tensor(address: int, dtype: str):
    """A one-element torch tensor over memory; Triton's interpreter only takes its address and dtype."""
    import ctypes

    import torch

    types = {"f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16", "bool": "bool"}
    types |= {each.name: "uint8" for each in NARROW_TYPES}
    name = types.get(dtype) or ("uint" if dtype[0] == "u" else "int") + dtype[1:]
    held = (ctypes.c_char * 8).from_address(address)
    return torch.frombuffer(held, dtype=getattr(torch, name), count=1)
