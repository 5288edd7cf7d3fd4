"""Runs kernels and graphs through the CPU writer, without the runtime: arrays in, arrays out."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from dlcompiler.codegen.cpu.compile import write_kernel
from dlcompiler.codegen.cpu.jit import compile_mlir
from dlcompiler.codegen.cpu.machine import Machine, host, machine
from dlcompiler.codegen.target import parse_target
from dlcompiler.ir import kernel as K
from dlcompiler.ir.expression import Dim, evaluate
from dlcompiler.ir.graph import Graph, Node
from dlcompiler.ir.interpret import interpret_graph
from dlcompiler.passes.block.fuse import fuse
from dlcompiler.passes.block.lower import lower_group
from dlcompiler.passes.pipeline import optimize


@cache
def machines() -> tuple[Machine, ...]:
    """The live machine, and lesser ones that it can run: without mask registers, and with short vectors."""
    live = host()
    if live.name == "aarch64":
        return (live,)
    names = ["x86-64-v2", "x86-64-v3", "x86-64-v4"]
    return (live, *(machine(n) for n in names[: names.index(live.name)]))


def strided(shape: Sequence[int], strides: Sequence[int], dtype: np.dtype, misalign: int = 0) -> np.ndarray:
    """An array with these element strides, starting `misalign` elements into its memory."""
    extent = 1 + sum((n - 1) * s for n, s in zip(shape, strides)) if all(shape) else 1
    memory = np.zeros(extent + misalign, dtype)
    return np.lib.stride_tricks.as_strided(memory[misalign:], shape, [s * dtype.itemsize for s in strides])


def run_kernel(
    kernel: K.Kernel, buffers: Mapping[str, np.ndarray], sizes: Mapping[str, int], described: Machine, parts: int = 2
) -> None:
    """Run a kernel over its whole range in `parts` calls; out buffers are written in place."""
    text, written = write_kernel(kernel, described)
    function = compile_mlir(text, ["kernel"]).function("kernel")
    pointers = [buffers[b.name].ctypes.data for b in kernel.buffers]
    words = (ctypes.c_int64 * (len(pointers) + len(kernel.size_symbols) + 1))(*pointers, *(sizes[s] for s in kernel.size_symbols))
    work = evaluate(written.work, sizes)
    ends = [work * k // parts for k in range(parts + 1)]
    for low, high in zip(ends, ends[1:]):
        function(ctypes.addressof(words), low, high)


def concrete(shape: Sequence[Dim], sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(evaluate(d, sizes) for d in shape)


def run_graph(graph: Graph, inputs: Sequence[np.ndarray], described: Machine) -> list[np.ndarray]:
    """Optimize, fuse and compile a graph whose every compute op becomes a kernel; library ops are run by the interpreter."""
    target = parse_target("cpu")
    graph = optimize(graph, target, None)
    fusion = fuse(graph, target)
    sizes = graph.bind([x.shape for x in inputs])
    values: dict[Node, np.ndarray] = {}
    for node, array in zip(graph.inputs, inputs):
        values[node] = np.ascontiguousarray(array)
    wanted = [*graph.outputs]
    groups = [(g.nodes, g.outputs) for g in fusion.groups]
    groups += [((n,), (n,)) for n in dict.fromkeys(wanted) if fusion.inlined(n)]
    for nodes, outputs in groups:
        kernel, reads, writes = lower_group("kernel", nodes, outputs, lambda n, own=outputs: fusion.inlined(n) or n in own)
        buffers = {}
        for buffer, node in zip(kernel.buffers, (*reads, *writes)):
            if node in writes:
                values[node] = np.zeros(concrete(node.shape, sizes), node.dtype.numpy)
            elif node not in values:
                values[node] = np.ascontiguousarray(node.attributes["value"])
            buffers[buffer.name] = values[node]
        run_kernel(kernel, buffers, sizes, described)
    return [values[n] for n in wanted]


def check_graph(graph: Graph, inputs: Sequence[np.ndarray], described: Machine, tolerance: float = 2e-6) -> None:
    """Compiled kernels agree with the graph interpreter: integers and NaNs exactly, floats to `tolerance` of the largest."""
    expected = interpret_graph(graph, list(inputs))
    for output, got, want in zip(graph.outputs, run_graph(graph, inputs, described), expected):
        assert got.shape == want.shape and got.dtype == want.dtype
        assert_close(got, np.asarray(want), {"f16": 2e-3, "bf16": 2e-2}.get(output.dtype.name, tolerance))


def assert_close(got: np.ndarray, want: np.ndarray, tolerance: float) -> None:
    if got.dtype.kind in "iub":
        np.testing.assert_array_equal(got, want)
        return
    got, want = got.astype(np.float64), want.astype(np.float64)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    finite = np.isfinite(want)
    np.testing.assert_array_equal(got[~finite & ~np.isnan(want)], want[~finite & ~np.isnan(want)])
    scale = np.abs(want[finite]).max(initial=0.0) + 1e-30
    error = np.abs(got[finite] - want[finite]).max(initial=0.0) / scale
    assert error <= tolerance, f"relative error {error:.2g} above {tolerance}"
