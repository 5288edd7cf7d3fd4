"""Launches that do not depend on each other become one on GPUs; sums of parts are made by whoever reads them."""

from __future__ import annotations

import numpy as np
from dlcompiler.codegen.gpu.bundle import bundle_writers, forms_of
from dlcompiler.codegen.gpu.device import device_of
from dlcompiler.codegen.gpu.simulate import run_interpreted
from dlcompiler.codegen.target import Target, parse_target
from dlcompiler.ir.graph import Builder, Graph
from dlcompiler.ir.interpret import interpret_graph, interpret_program
from dlcompiler.ir.interpret_kernel import interpret_kernel
from dlcompiler.ir.kernel import Bundle
from dlcompiler.ir.ops import lookup
from dlcompiler.ir.program import Launch, Program
from dlcompiler.ir.text import graph_constants, parse_program, print_program
from dlcompiler.ir.text.equal import programs_equal
from dlcompiler.ir.types import TensorType, f16, f32
from dlcompiler.ir.verify import verify_program
from dlcompiler.passes.block.fuse import fuse
from dlcompiler.passes.dataflow.program import plan
from dlcompiler.passes.pipeline import optimize
from hypothesis import given, settings

from dlcompiler.options import Options
from tests.strategies import Case, graphs

TARGET = parse_target("cuda:sm_90")
DEVICE = device_of("sm_90")


class Alone(Target):
    """The same GPU, each launch by itself."""

    shares_launches = False


def planned(graph: Graph, target: Target = TARGET) -> Program:
    program = plan(fuse(optimize(graph, target, Options()), target), target, Options())
    verify_program(program)
    return program


def bundles(program: Program) -> list[Bundle]:
    return [step.kernel for step in program.steps if isinstance(step, Launch) and isinstance(step.kernel, Bundle)]


@settings(max_examples=150, derandomize=True, deadline=None)
@given(case=graphs(max_nodes=14))
def test_bundled_programs_are_right_and_hardly_larger(case: Case):
    alone, together = planned(case.graph, Alone("cuda", "sm_90")), planned(case.graph)
    assert len(together.steps) <= len(alone.steps)
    if alone.placement is not None and together.placement is not None:
        assert together.placement.lower_bound <= alone.placement.lower_bound + (2 << 20)
    with np.errstate(all="ignore"):
        case.check(interpret_program(together, case.inputs), case.expected())
    read = parse_program(print_program(together), together.constants, graph_constants(together.graph))
    assert programs_equal(read, together) is None


def updates(sizes: list[tuple[int, ...]]) -> Graph:
    """Momentum for each parameter: m = 0.9 m + g; p = p - rate m, written back."""
    b = Builder("updates")
    rate = b.input("rate", TensorType(f32, ()))
    written, results = [], []
    for k, shape in enumerate(sizes):
        p, g, m = (b.input(f"{name}{k}", TensorType(f32, shape)) for name in "pgm")
        moved = b.add(b.mul(m, 0.9), g)
        written += [(moved, m), (b.sub(p, b.mul(moved, rate)), p)]
        results.append(moved)
    return b.finish([], writebacks=written)


def test_an_optimizer_is_a_few_launches_of_one_text():
    sizes = [(64, 33), (33,), (7, 5, 3), (128, 64), (64,)] * 20
    program = planned(updates(sizes))
    found = bundles(program)
    assert len(program.steps) == len(found) == 2  # 100 parameters; each takes 6 of the 448 words that a launch has
    assert all(len(forms_of(each, frozenset())) == 1 for each in found)
    arrays = [np.random.default_rng(k).standard_normal(n.shape).astype(np.float32) for k, n in enumerate(program.graph.inputs)]
    for got, want in zip(interpret_program(program, arrays), interpret_graph(program.graph, arrays)):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)
    text = next(bundle_writers(found[0], DEVICE, frozenset())).source
    assert text.count("def form_") == 1 and "if program >= " in text


def side_by_side(dtype=f32) -> Graph:
    """Small kernels of several kinds that need each other's results for nothing."""
    b = Builder("side")
    x, y, z = (b.input(n, TensorType(dtype, s)) for n, s in (("x", (24, 40)), ("y", (7, 96)), ("z", (12, 40, 6))))
    return b.finish([
        b.softmax(x, axis=-1), b.reduce_sum(y, axes=(0,)), b.relu(b.permute(z, dims=(1, 0, 2))), b.exp(y), b.mul(x, 3.0),
        b.reduce_max(z, axes=(1,)),
    ])  # fmt: skip


def test_every_form_of_a_bundle_is_simulated_as_its_parts_are_interpreted():
    for dtype in (f32, f16):
        (bundle,) = bundles(planned(side_by_side(dtype)))
        assert len(bundle.parts) >= 4
        random = np.random.default_rng(0)
        memory = [random.standard_normal(b.shape).astype(dtype.numpy) for b in bundle.buffers]
        want = {b.name: array.copy() for b, array in zip(bundle.buffers, memory)}
        interpret_kernel(bundle, want)
        for kernel in bundle_writers(bundle, DEVICE, frozenset()):
            got = {b.name: array.copy() for b, array in zip(bundle.buffers, memory)}
            run_interpreted(kernel, got, {})
            for name, array in got.items():
                tolerance = 4e-6 if dtype is f32 else 4e-3
                np.testing.assert_allclose(array.astype(np.float64), want[name].astype(np.float64), tolerance, tolerance)


def test_what_depends_on_a_launch_is_not_beside_it():
    b = Builder("chain")
    x = b.input("x", TensorType(f32, (64, 64)))
    total = b.reduce_sum(x, axes=(1,), keepdims=True)
    graph = b.finish([b.reduce_max(b.mul(x, total), axes=(0,)), b.reduce_max(x, axes=(0,))])
    program = planned(graph)
    for bundle in bundles(program):
        assert len(bundle.parts) == 2
    assert len(program.steps) == 2


def test_parts_of_a_sum_are_added_up_by_the_norm_that_reads_them():
    b = Builder("split")
    x, w, r = (b.input(n, TensorType(f32, s)) for n, s in (("x", (32, 8192)), ("w", (64, 8192)), ("r", (32, 64))))
    y = b.add(b.linear(x, w), r)
    total = b.reduce_sum(b.mul(y, y), axes=(1,), keepdims=True)
    program = planned(b.finish([b.mul(y, b.rsqrt(total)), y]))
    first, second = program.steps
    assert [tuple(v.shape) for v in first.writes] == [(first.writes[0].shape[0], 32, 64)] and first.writes[0].shape[0] > 1
    assert len(second.writes) == 2 and any(v.slot is first.writes[0].slot for v in second.reads)
    arrays = [np.random.default_rng(k).standard_normal(n.shape).astype(np.float32) for k, n in enumerate(program.graph.inputs)]
    for got, want in zip(interpret_program(program, arrays), interpret_graph(program.graph, arrays)):
        np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4)


def test_a_result_that_is_a_view_is_made_once_for_all_that_read_it():
    b = Builder("views")
    x, y = b.input("x", TensorType(f32, (2, 8, 16))), b.input("y", TensorType(f32, (2, 4, 16, 4)))
    wide = b.reshape(b.expand(b.reshape(b.exp(x), shape=(2, 1, 8, 16)), shape=(2, 4, 8, 16)), shape=(8, 8, 16))
    attributes = {"target": "aten.bmm.default", "arguments": [{"operand": 0}, {"operand": 1}], "reason": "test"}
    operands = (wide, b.reshape(y, shape=(8, 16, 4)))
    graph = b.finish([wide, b.make(lookup("aten.call"), operands, attributes, TensorType(f32, (8, 8, 4)))])
    program = planned(graph)
    copies = [v for step in program.steps for v in step.writes if v is not None and tuple(v.shape) == (8, 8, 16)]
    assert len(copies) == 1
