"""Runs a GPU program on the CPU: its own Triton sources through Triton's interpreter, so that numbers are checked with no GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlcompiler.codegen.gpu.load import load_function
from dlcompiler.codegen.gpu.triton_writer import TritonKernel
from dlcompiler.ir.expression import evaluate


def run_interpreted(kernel: TritonKernel, buffers: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    """Run one kernel on CPU torch tensors, one for each buffer by name, each beginning at the buffer's first element."""
    function = load_function(kernel.source, kernel.name, interpret=True)
    arguments = [buffers[b.name] for b in kernel.kernel.buffers] + [sizes[s] for s in kernel.kernel.size_symbols]
    programs = evaluate(kernel.grid, sizes)
    if programs:
        function[(programs,)](*arguments, **kernel.constants)
