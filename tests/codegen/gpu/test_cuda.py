"""The CUDA writer with no GPU: its text is run on the CPU, a thread a thread, and assembled for real chips."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from dlcompiler.codegen.gpu.cubin import resources_of
from dlcompiler.codegen.gpu.cuda_assemble import assemble_cuda, is_available
from dlcompiler.codegen.gpu.cuda_writer import CudaKernel, write_cuda
from dlcompiler.codegen.gpu.device import device_of
from dlcompiler.codegen.gpu.schedule import candidates
from dlcompiler.codegen.target import parse_target
from dlcompiler.ir.errors import UnsupportedError
from dlcompiler.ir.expression import evaluate, symbol
from dlcompiler.ir.interpret import interpret_graph
from dlcompiler.ir.types import TensorType, bf16, boolean, f32, f64, i64
from dlcompiler.passes.block.fuse import fuse
from dlcompiler.passes.block.lower import lower_group
from dlcompiler.passes.pipeline import optimize

from tests.codegen.cpu.run import assert_close, concrete
from tests.codegen.cpu.test_kernels import graph_of, random_array

SHIM = Path(__file__).parent / "host_shim.h"
CASES = {
    "chain": (lambda b, x, y: b.gelu(b.add(x, b.mul(y, 2.0))), [(6, 40), (40,)], f32),
    "odd": (lambda b, x, y: b.sub(b.exp(x), y), [(5, 7), (5, 1)], f32),
    "turned": (lambda b, x: b.add(b.pad(x, low=(1, 2), high=(0, 3), value=7.0), 1.0), [(6, 8)], f32),
    "softmax": (lambda b, x: b.softmax(x, axis=1), [(5, 77)], f32),
    "norm": (lambda b, x, w: b.layer_norm(x, w, rank=1, epsilon=1e-5), [(9, 256), (256,)], f32),
    "wide": (lambda b, x: b.softmax(x, axis=1), [(33, 8200)], f64),
    "columns": (lambda b, x: b.reduce_sum(b.mul(x, x), axes=(0,)), [(130, 96)], f32),
    "whole": (lambda b, x: b.reduce_max(x, axes=(0, 1)), [(13, 40)], f32),
    "doubles": (lambda b, x: b.softmax(b.sigmoid(x), axis=1), [(3, 40)], f64),
    "integers": (lambda b, x: b.reduce_min(b.abs(x), axes=(1,)), [(7, 33)], i64),
    "draws": (lambda b, x, y: b.philox(x, y, b.neg(x)), [(6, 40), (40,)], i64),
    "bools": (lambda b, x: b.reduce_all(x, axes=(1,)), [(7, 33)], boolean),
    "half": (lambda b, x: b.softmax(b.mul(x, 3.0), axis=1), [(5, 64)], bf16),
}


def one_kernel(case, arch: str = "sm_90", name: str = "kernel"):
    """A graph that becomes one kernel, and that kernel."""
    build, shapes, dtype = case
    target = parse_target(f"cuda:{arch}")
    graph = optimize(graph_of(build, *(TensorType(dtype, s) for s in shapes)), target, None)
    fusion = fuse(graph, target)
    (group,) = fusion.groups
    kernel, reads, writes = lower_group("kernel", group.nodes, group.outputs, lambda n: fusion.inlined(n) or n in group.outputs)
    schedule = next(iter(candidates(kernel, device_of(arch))))
    written = write_cuda(kernel, schedule, name, aligned=frozenset(b.name for b in kernel.buffers))
    return graph, kernel, reads, writes, written


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory) -> ctypes.CDLL:
    """Every case's text compiled as C++ around the shim: a function `start_CASE(blocks, addresses...)` each."""
    if shutil.which("g++") is None:
        pytest.skip("needs a C++ compiler")
    text = SHIM.read_text()
    for name, case in CASES.items():
        written: CudaKernel = one_kernel(case, name=name)[-1]
        head, body = written.source.split(f" {name}(", 1)
        parameters = ", ".join(part.strip() for part in body.split(")", 1)[0].split(","))
        arguments = ", ".join([b.name for b in written.kernel.buffers] + list(written.kernel.size_symbols))
        call = f"shim_run(blocks, {written.threads}, [=] {{ {name}({arguments}); }});"
        start = f'extern "C" void start_{name}(int blocks, {parameters}) {{ {call} }}'
        text += f"namespace space_{name} {{\n{head} {name}({body}\n{start}\n}}\n"
    folder = tmp_path_factory.mktemp("shim")
    path, library = folder / "kernels.cpp", folder / "kernels.so"
    path.write_text(text)
    subprocess.run(["g++", "-std=c++20", "-O1", "-w", "-shared", "-fPIC", "-pthread", "-o", library, path], check=True)
    return ctypes.CDLL(str(library))


def aligned_array(shape, dtype) -> np.ndarray:
    memory = np.zeros(int(np.prod(shape)) * dtype.itemsize + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + int(np.prod(shape)) * dtype.itemsize].view(dtype).reshape(shape)


@pytest.mark.parametrize("case", CASES)
def test_the_text_computes_what_the_graph_means(case, on_cpu):
    _, shapes, dtype = CASES[case]
    graph, kernel, reads, writes, written = one_kernel(CASES[case], name=case)
    inputs = [random_array(s, dtype, k) for k, s in enumerate(shapes)]
    sizes = graph.bind([x.shape for x in inputs])
    values = dict(zip(graph.inputs, inputs))
    buffers = {}
    for buffer, node in zip(kernel.buffers, (*reads, *writes)):
        buffers[buffer.name] = aligned_array(concrete(node.shape, sizes), node.dtype.numpy)
        if node in values:
            buffers[buffer.name][...] = values[node]
    start = getattr(on_cpu, f"start_{case}")
    start(evaluate(written.grid, sizes), *(ctypes.c_void_p(buffers[b.name].ctypes.data) for b in kernel.buffers))
    outs = {node: buffers[buffer.name] for buffer, node in zip(kernel.buffers[len(reads) :], writes)}
    for output, want in zip(graph.outputs, interpret_graph(graph, inputs)):
        assert_close(outs[output], np.asarray(want), 2e-2 if dtype is bf16 else 4e-6)


@pytest.mark.skipif(not is_available(), reason="needs NVRTC or nvcc")
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_the_text_assembles_without_spills(arch):
    for case in ("norm", "half", "columns"):
        written = one_kernel(CASES[case], arch)[-1]
        ptx, cubin = assemble_cuda(written.source, arch)
        assert ".entry kernel" in ptx
        resources = resources_of(cubin, "kernel")
        assert 0 < resources.registers <= 128 and not resources.local_bytes


def test_vectors_are_loaded_where_memory_is_aligned():
    written = one_kernel(CASES["norm"])[-1]
    assert "Vector_4_4" in written.source
    kernel = written.kernel
    plain = write_cuda(kernel, next(iter(candidates(kernel, device_of("sm_90")))))
    assert "Vector_" not in plain.source


def test_what_has_no_form_is_refused_by_name():
    with pytest.raises(UnsupportedError, match="argmax"):
        one_kernel((lambda b, x: b.argmax(x, axes=(1,)), [(4, 40)], f32))
    with pytest.raises(UnsupportedError, match="tiles"):
        one_kernel((lambda b, x: b.add(b.permute(x, dims=(1, 0)), 1.0), [(64, 96)], f32))
    assert "long long N" in one_kernel((lambda b, x: b.neg(x), [(symbol("N"), 8)], f32))[-1].source
