"""Attention for GPUs, forward and backward: simulated it equals the op's meaning; assembled it keeps to registers."""

from __future__ import annotations

import numpy as np
import pytest
from dlcompiler.codegen.gpu.attention import attention_candidates, attention_writers, backward_candidates, problem_of
from dlcompiler.codegen.gpu.attention_backward import write_attention_backward
from dlcompiler.codegen.gpu.compile import assemble, first_without_spills
from dlcompiler.codegen.gpu.device import device_of
from dlcompiler.codegen.target import parse_target
from dlcompiler.ir.expression import symbol
from dlcompiler.ir.graph import Builder
from dlcompiler.ir.interpret import interpret_graph
from dlcompiler.ir.program import RoutineCall, Slot, View
from dlcompiler.ir.types import DType, TensorType, bf16, boolean, contiguous_strides, f16, f32
from dlcompiler.passes.pipeline import optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.codegen.cpu.run import assert_close
from tests.codegen.cpu.test_kernels import graph_of
from tests.codegen.gpu.written import TARGET, planned, simulated

pytest.importorskip("triton")

TOLERANCE = {"f16": 4e-3, "bf16": 3e-2}


def numbers(shape, dtype: DType, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.random(shape) > 0.3 if dtype is boolean else rng.standard_normal(shape).astype(dtype.numpy)


def check(build, *types: TensorType) -> None:
    graph = graph_of(build, *types)
    inputs = [numbers(t.shape, t.dtype, k) for k, t in enumerate(types)]
    got, kernels = simulated(graph, inputs)
    assert any("attention" in kernel.schedule for kernel in kernels)
    for output, a, b in zip(graph.outputs, got, interpret_graph(graph, inputs)):
        assert_close(a, np.asarray(b), TOLERANCE.get(output.dtype.name, 5e-6))


@settings(max_examples=12, derandomize=True, deadline=None)
@given(data=st.data())
def test_any_sizes_masks_and_layouts(data):
    dtype = data.draw(st.sampled_from([f32, f16, bf16]))
    length, seen = data.draw(st.sampled_from([1, 5, 16, 33, 40])), data.draw(st.sampled_from([1, 7, 32, 50, 130]))
    width, depth = data.draw(st.sampled_from([8, 16, 20])), data.draw(st.sampled_from([16, 24]))
    causal = data.draw(st.booleans())
    heads_inside = data.draw(st.booleans())
    mask = data.draw(st.sampled_from([None, (2, 2, length, seen), (1, 1, 1, seen), (2, 1, length, 1), (length, seen)]))
    mask_dtype = data.draw(st.sampled_from([boolean, dtype]))

    def build(b, q, k, v, *rest):
        if heads_inside:  # [N, L, H, E] as a projection writes it
            q, k, v = (b.permute(x, dims=(0, 2, 1, 3)) for x in (q, k, v))
        return b.attention(q, k, v, *rest, scale=0.3, causal=causal)

    shapes = [(2, 2, length, width), (2, 2, seen, width), (2, 2, seen, depth)]
    shapes = [(n, l, h, e) if heads_inside else (n, h, l, e) for n, h, l, e in shapes]
    types = [TensorType(dtype, shape) for shape in shapes]
    check(build, *types, *([TensorType(mask_dtype, mask)] if mask else []))


@pytest.mark.parametrize("length", [1, 19])
def test_heads_that_share_keys(length):
    q, kv = TensorType(f16, (2, 2, 3, length, 16)), TensorType(f16, (2, 2, 1, 40, 16))
    check(lambda b, q, k, v: b.attention(q, k, v, scale=0.25, causal=False), q, kv, kv)
    problem = problem_of(planned(graph_of(lambda b, q, k, v: b.attention(q, k, v, scale=0.25, causal=False), q, kv, kv)).steps[0])
    # one row each: heads become rows, so that keys are read once for all of them
    assert (problem.lead, problem.length) == (((2, 2), 3) if length == 1 else ((2, 2, 3), 19))


def test_a_row_that_sees_nothing_gives_zeros():
    b = Builder("g")
    q, k, v = (b.input(n, TensorType(f32, (1, 4, 16))) for n in "qkv")
    mask = b.input("m", TensorType(boolean, (4, 4)))
    graph = b.finish([b.attention(q, k, v, mask, scale=1.0, causal=False)])
    inputs = [numbers((1, 4, 16), f32, s) for s in range(3)] + [np.tril(np.ones((4, 4), bool), -1)]
    (got,), _ = simulated(graph, inputs)
    assert not got[0, 0].any() and np.isfinite(got).all() and got[0, 1].any()


def test_lengths_that_are_arguments():
    n = symbol("N")
    types = TensorType(f16, (2, n, 16)), TensorType(f16, (2, n, 16)), TensorType(f16, (2, n, 16))
    for causal in (False, True):
        graph = graph_of(lambda b, q, k, v, c=causal: b.attention(q, k, v, scale=0.25, causal=c), *types)
        inputs = [numbers((2, 37, 16), f16, s) for s in range(3)]
        (got,), _ = simulated(graph, inputs)
        assert_close(got, interpret_graph(graph, inputs)[0], 4e-3)


@settings(max_examples=8, derandomize=True, deadline=None)
@given(data=st.data())
def test_gradients(data):
    dtype = data.draw(st.sampled_from([f32, f16, bf16]))
    length, seen = data.draw(st.sampled_from([5, 16, 40])), data.draw(st.sampled_from([7, 32, 70]))
    width, depth = data.draw(st.sampled_from([16, 20])), data.draw(st.sampled_from([16, 24]))
    attributes = {"scale": 0.3, "causal": data.draw(st.booleans())}
    mask = data.draw(st.sampled_from([None, TensorType(f32, (2, 1, length, seen)), TensorType(boolean, (length, seen))]))

    def build(b, grad, q, k, v, *mask):
        forward = b.attention_with_logsumexp(q, k, v, *mask, **attributes)
        out, logsumexp = b("tuple.get", forward, index=0), b("tuple.get", forward, index=1)
        wide = [b.cast(x, dtype="f32") if dtype is not f32 else x for x in (grad, out)]
        delta = b.reduce_sum(b.mul(*wide), axes=(3,))
        back = b.attention_backward(grad, q, k, v, logsumexp, delta, *mask, **attributes)
        return [out, logsumexp, *(b("tuple.get", back, index=index) for index in range(3))]

    shapes = (2, 2, length, depth), (2, 2, length, width), (2, 2, seen, width), (2, 2, seen, depth)
    check(build, *(TensorType(dtype, shape) for shape in shapes), *([mask] if mask else []))


@pytest.mark.parametrize("mask", [None, TensorType(boolean, (4, 5)), TensorType(f32, (1, 5))])
def test_wide_heads_are_written_out_with_other_ops(mask):
    def build(b, grad, q, k, v, *mask):
        forward = b.attention_with_logsumexp(q, k, v, *mask, scale=0.1, causal=True)
        out, logsumexp = (b("tuple.get", forward, index=index) for index in range(2))
        delta = b.reduce_sum(b.mul(grad, out), axes=(2,))
        back = b.attention_backward(grad, q, k, v, logsumexp, delta, *mask, scale=0.1, causal=True)
        return [out, logsumexp, *(b("tuple.get", back, index=index) for index in range(3))]

    types = [TensorType(f32, (2, n, 300)) for n in (4, 4, 5, 5)] + ([mask] if mask else [])
    graph = graph_of(build, *types)
    assert not any(isinstance(step, RoutineCall) for step in planned(graph).steps)
    inputs = [numbers(t.shape, t.dtype, k) for k, t in enumerate(types)]
    for a, b in zip(interpret_graph(optimize(graph, TARGET), inputs), interpret_graph(graph, inputs)):
        assert_close(a, b, 5e-6)


def view(shape: tuple[int, ...], dtype: DType) -> View:
    return Slot("x", dtype, shape, contiguous_strides(shape), "input", 0).view()


@pytest.mark.parametrize(("arch", "op"), [("sm_80", "attention"), ("sm_90", "attention"), ("sm_90", "attention_backward")])
def test_chosen_schedules_assemble_without_spills(arch, op):
    x, row = view((2, 16, 1024, 64), bf16), view((2, 16, 1024), f32)
    reads = (x, x, x) if op == "attention" else (x, x, x, x, row, row)
    call = RoutineCall(op, reads, (x,) if op == "attention" else (x, x, x), {"scale": 0.125, "causal": True})
    problem, target = problem_of(call), parse_target(f"cuda:{arch}")
    aligned = frozenset(b.name for b in problem.buffers)
    assembled = first_without_spills(attention_writers(problem, device_of(arch), "ieee", aligned), target)
    assert assembled.resources.local_bytes == 0
    assert "mma" in assembled.stages["ptx"] and "cp.async" in assembled.stages["ptx"]
    assert next(attention_candidates(problem, device_of(arch), "ieee")).rows == 128


def test_gradients_of_the_widest_heads_keep_to_registers():
    x, row = view((2, 16, 1024, 256), f16), view((2, 16, 1024), f32)
    problem = problem_of(RoutineCall("attention_backward", (x, x, x, x, row, row), (x, x, x), {"scale": 0.1, "causal": True}))
    aligned = frozenset(b.name for b in problem.buffers)
    chosen = next(s for s in backward_candidates(problem, device_of("sm_90"), "ieee") if s.rows == 32)
    assembled = assemble(write_attention_backward(problem, chosen, "kernel", aligned), TARGET)
    assert chosen.warps == 8 and assembled.resources.local_bytes == 0


@pytest.mark.parametrize("mask", [None, TensorType(boolean, (2, 1, 1, 512)), TensorType(f16, (2, 1, 3, 1, 512))])
def test_few_rows_over_many_keys_are_done_in_parts(mask):
    is_grouped = mask is not None and len(mask.shape) == 5
    q = TensorType(f16, (2, 1, 3, 1, 16) if is_grouped else (2, 3, 1, 16))
    kv = TensorType(f16, (2, 1, 1, 512, 16) if is_grouped else (2, 3, 512, 16))
    types = [q, kv, kv] + ([mask] if mask else [])
    graph = graph_of(lambda b, q, k, v, *m: b.attention(q, k, v, *m, scale=0.25, causal=False), *types)
    inputs = [numbers(t.shape, t.dtype, k) for k, t in enumerate(types)]
    if mask is not None and mask.dtype is boolean:
        inputs[3][0] = False  # a row that sees nothing
        inputs[3][1, ..., 256:] = False  # and a part
    got, kernels = simulated(graph, inputs)
    (first,) = (kernel.kernel for kernel in kernels if "attention of" in kernel.schedule)
    assert [b.name for b in first.buffers if b.role == "out"] == ["out", "logsumexp"] and 2 in first.buffers[0].shape[:-2]
    assert_close(got[0], interpret_graph(graph, inputs)[0], 4e-3)


def test_many_rows_or_few_keys_are_not():
    for length, seen in ((64, 512), (1, 256)):
        types = [TensorType(f16, (2, 3, n, 16)) for n in (length, seen, seen)]
        program = planned(graph_of(lambda b, q, k, v: b.attention(q, k, v, scale=0.25, causal=False), *types))
        assert [step.op for step in program.steps if isinstance(step, RoutineCall)] == ["attention"]
