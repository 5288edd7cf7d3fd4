"""Triton kernels, with no GPU: run by Triton's interpreter they equal the graph interpreter, and they assemble for real chips."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from dlcompiler.codegen.gpu.compile import assemble
from dlcompiler.codegen.gpu.scalars import spelled
from dlcompiler.codegen.gpu.simulate import run_interpreted
from dlcompiler.codegen.gpu.triton_writer import TritonKernel, write_triton
from dlcompiler.codegen.target import parse_target
from dlcompiler.ir.expression import symbol
from dlcompiler.ir.graph import Graph, Node
from dlcompiler.ir.interpret import interpret_graph
from dlcompiler.ir.scalar import SCALARS
from dlcompiler.ir.types import TensorType, bf16, boolean, f16, f32, i64
from dlcompiler.passes.block.fuse import fuse
from dlcompiler.passes.block.lower import lower_group
from dlcompiler.passes.pipeline import optimize

from tests.codegen.cpu.run import assert_close, concrete
from tests.codegen.cpu.test_kernels import REAL, graph_of, random_array

pytest.importorskip("triton")


def simulated(graph: Graph, inputs: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[TritonKernel]]:
    """The outputs of a graph made of kernels, by Triton's interpreter, and the kernels."""
    target = parse_target("cuda:sm_90")
    graph = optimize(graph, target, None)
    fusion = fuse(graph, target)
    sizes = graph.bind([x.shape for x in inputs])
    values: dict[Node, np.ndarray] = dict(zip(graph.inputs, map(np.ascontiguousarray, inputs)))
    groups = [(g.nodes, g.outputs) for g in fusion.groups]
    groups += [((n,), (n,)) for n in dict.fromkeys(graph.outputs) if fusion.inlined(n)]
    written = []
    for nodes, outputs in groups:
        kernel, reads, writes = lower_group(
            "kernel", nodes, outputs, lambda n, own=outputs: fusion.inlined(n) or n in own, cost_matters=False
        )
        buffers = {}
        for buffer, node in zip(kernel.buffers, (*reads, *writes)):
            if node in writes:
                values[node] = np.zeros(concrete(node.shape, sizes), node.dtype.numpy)
            elif node not in values:
                values[node] = np.ascontiguousarray(node.attributes["value"])
            buffers[buffer.name] = values[node]
        written.append(write_triton(kernel))
        run_interpreted(written[-1], buffers, sizes)
    return [values[n] for n in graph.outputs], written


def check(build, *types: TensorType, inputs=None) -> list[TritonKernel]:
    graph = graph_of(build, *types)
    inputs = inputs or [random_array(t.shape, t.dtype, k) for k, t in enumerate(types)]
    got, kernels = simulated(graph, inputs)
    for output, a, b in zip(graph.outputs, got, interpret_graph(graph, list(inputs))):
        assert_close(a, np.asarray(b), {"f16": 2e-3, "bf16": 2e-2}.get(output.dtype.name, 4e-6))
    return kernels


@pytest.mark.parametrize("name", [n for n in SCALARS if n not in ("where", "erfinv", "lgamma", "digamma")])
def test_scalar_operations_of_every_dtype(name):
    scalar = SCALARS[name]
    for dtype in REAL:
        compute = f32 if dtype in (f16, bf16) else dtype
        if not scalar.accepts(dtype) or not spelled(name, compute):
            continue
        positive = dtype.is_float and name in ("log", "log2", "log10", "log1p", "sqrt", "rsqrt", "acosh", "pow")
        shift = (lambda b, x, d=dtype: b.add(b.abs(x), b.constant(1, d))) if positive else (lambda b, x: x)
        check(lambda b, *xs, s=shift: b(name, s(b, xs[0]), *xs[1:]), *[TensorType(dtype, (3, 37))] * scalar.arity)


def test_pointwise_views_and_broadcasts():
    x, y = TensorType(f32, (6, 8, 10)), TensorType(f32, (10,))
    check(lambda b, x, y: b.gelu(b.add(b.permute(x, dims=(1, 0, 2)), y)), x, y)
    check(lambda b, x, y: b.pad(b.mul(x, y), low=(0, 1, 2), high=(3, 0, 1), value=7.0), x, y)
    check(lambda b, x, y: b.add(b.concat(x, b.neg(x), axis=1), y), x, y)
    check(lambda b, x, y: b.reshape(b.flip(x, axes=(2,)), shape=(16, 30)), x, y)


@pytest.mark.parametrize("length", [1, 77, 9000])
def test_reductions_kept_in_registers_and_looped(length):
    x = TensorType(f32, (3, length))
    check(lambda b, x: [b.softmax(x, axis=1), b.layer_norm(x, rank=1, epsilon=1e-5)], x)
    # Triton's interpreter combines pairs of value and place one by one, so one row
    check(lambda b, x: b.argmax(x, axes=(1,)), TensorType(f32, (1, length)))
    check(lambda b, x: [b.reduce_sum(x, axes=(1,)), b.reduce_min(x, axes=(0,))], TensorType(i64, (3, length)))
    check(lambda b, x: [b.reduce_any(x, axes=(1,)), b.reduce_all(x, axes=(0,))], TensorType(boolean, (3, length)))


def test_indices_from_data():
    rng = np.random.default_rng(0)
    table, at = rng.standard_normal((11, 19)).astype(np.float32), rng.integers(0, 11, (4, 7))
    check(lambda b, w, i: b.index(w, i, axes=(0,)), TensorType(f32, (11, 19)), TensorType(i64, (4, 7)), inputs=[table, at])


@pytest.mark.parametrize("rows", [0, 1, 17])
def test_symbolic_sizes_are_arguments(rows):
    x = TensorType(f32, (symbol("N"), 40))
    check(lambda b, x: [b.softmax(b.gelu(x), axis=1), b.reduce_sum(x, axes=(0,))], x, inputs=[random_array((rows, 40), f32)])


def test_nan_goes_where_numpy_says():
    values = np.array([np.nan, np.inf, -np.inf, 0.0, 1.0, -1.0], np.float32)
    x, y = (a.copy() for a in np.broadcast_arrays(values[:, None], values[None, :]))
    check(
        lambda b, x, y: [b.maximum(x, y), b.minimum(x, y), b.ne(x, y), b.reduce_max(x, axes=(1,)), b.argmax(y, axes=(1,))],
        *[TensorType(f32, (6, 6))] * 2, inputs=[x, y],
    )  # fmt: skip


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_kernels_assemble_without_a_gpu(arch):
    kernels = check(
        lambda b, x, w: b.layer_norm(b.gelu(x), w, rank=1, epsilon=1e-5), TensorType(bf16, (5, 300)), TensorType(bf16, (300,))
    )
    for kernel in kernels:
        assembled = assemble(kernel, parse_target(f"cuda:{arch}"))
        stages = assembled.stages
        assert assembled.binary[:4] == b"\x7fELF" and assembled.resources.registers > 0
        assert not assembled.resources.local_bytes
        assert ".visible .entry kernel" in stages["ptx"] and f".target {arch}" in stages["ptx"]
