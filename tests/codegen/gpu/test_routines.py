"""Scans and updates as hand-written kernels: no spills, and equal to the ops' meaning under Triton's interpreter."""

from __future__ import annotations

import numpy as np
import pytest
from dlcompiler.codegen import emit
from dlcompiler.codegen.gpu.simulate import simulate
from dlcompiler.codegen.target import parse_target
from dlcompiler.ir.expression import symbol
from dlcompiler.ir.interpret import interpret_graph
from dlcompiler.ir.program import Program, RoutineCall
from dlcompiler.ir.types import TensorType, f16, f32, f64, i64
from dlcompiler.passes.block.fuse import fuse
from dlcompiler.passes.dataflow.program import plan
from dlcompiler.passes.pipeline import optimize

from tests.codegen.cpu.run import assert_close
from tests.codegen.cpu.test_kernels import graph_of, random_array

pytest.importorskip("triton")
TARGET = parse_target("cuda:sm_90")


def run(build, *inputs: np.ndarray, types=None) -> Program:
    """Compile, simulate and compare; every routine keeps to registers."""
    types = types or [TensorType({"f": f32, "i": i64}[x.dtype.kind], x.shape) for x in inputs]
    graph = graph_of(build, *types)
    program = emit(plan(fuse(optimize(graph, TARGET), TARGET), TARGET), TARGET)
    for got, want, node in zip(simulate(program, inputs), interpret_graph(graph, list(inputs)), graph.outputs):
        assert_close(got, np.asarray(want), 2e-3 if node.dtype is f16 else 4e-6)
    assert not any(k.resources.local_bytes for k in program.code.kernels if k is not None)
    return program


def routines(program: Program) -> list[str]:
    return [s.op for s in program.steps if isinstance(s, RoutineCall)]


@pytest.mark.parametrize("kind", ["add", "mul", "max", "min", "logaddexp"])
@pytest.mark.parametrize("axis", [0, 1])
def test_scans_of_every_kind(kind, axis):
    x = random_array((3, 70), f32, 0) * np.float32(0.5)
    x[1, 5] = -np.inf if kind == "logaddexp" else x[1, 5]
    for exclusive, reverse in ((False, False), (True, True)):
        program = run(lambda b, x, e=exclusive, r=reverse: b.scan(x, axis=axis, kind=kind, exclusive=e, reverse=r), x)
        assert routines(program) == ["scan"]


@pytest.mark.parametrize("dtype", [f32, f16])
def test_sums_of_exponentials_of_a_product_that_is_never_stored(dtype):
    shapes = [(symbol("N"), 20), (150, 20), *([(150,)] if dtype is f32 else [])]
    build = lambda b, *operands: b.linear_logsumexp(*operands, parts=3)  # noqa: E731
    for rows in (3, 40):
        inputs = [random_array((rows, *s[1:]) if k == 0 else s, dtype, k) for k, s in enumerate(shapes)]
        program = run(build, *inputs, types=[TensorType(dtype, shape) for shape in shapes])
    assert routines(program) == ["linear_logsumexp"]
    # rows of nothing but -inf, and one of +inf
    x, w = np.ones((3, 1), np.float32), np.full((5, 1), -np.inf, np.float32)
    x[1], w[2, 0] = -1.0, 1.0
    graph = graph_of(lambda b, x, w: b.linear_logsumexp(x, w, parts=2), *(TensorType(f32, a.shape) for a in (x, w)))
    program = emit(plan(fuse(optimize(graph, TARGET), TARGET), TARGET), TARGET)
    np.testing.assert_allclose(simulate(program, [x, w])[0], interpret_graph(graph, [x, w])[0])


def test_scans_of_long_rows_carry_what_came_before():
    run(lambda b, x: b.scan(x, axis=1, kind="add", exclusive=True, reverse=False), np.ones((2, 5000), np.int64))
    for dtype in (f16, f64):
        x = random_array((2, 4100), dtype, 1) * dtype.numpy.type(0.01)
        run(lambda b, x: b.scan(x, axis=1, kind="max", exclusive=False, reverse=False), x, types=[TensorType(dtype, x.shape)])


def test_a_scan_of_unknown_size():
    shape = TensorType(f32, (symbol("N"), 5))
    for rows in (1, 40):
        run(
            lambda b, x: b.scan(x, axis=0, kind="add", exclusive=False, reverse=True), random_array((rows, 5), f32), types=[shape]
        )


@pytest.mark.parametrize("kind", ["set", "add", "mul", "max", "min"])
def test_updates_of_rows_in_the_order_of_their_indices(kind):
    rng = np.random.default_rng(0)
    x, updates = random_array((7, 5), f32, 0), random_array((4, 6, 5), f32, 1)
    at = rng.integers(-1, 8, (4, 6))  # some several times, some outside
    program = run(lambda b, x, u, i: b.index_update(x, u, i, axes=(0,), shape=(7, 5), kind=kind), x, updates, at)
    assert routines(program) == ["index_update"]


def test_the_gradient_of_an_embedding_starts_from_one_zero():
    at = np.random.default_rng(1).integers(0, 50, (3, 40))
    build = lambda b, u, i: b.index_update(b.constant(0.0, f32), u, i, axes=(0,), shape=(50, 33), kind="add")  # noqa: E731
    run(build, random_array((3, 40, 33), f32), at)


@pytest.mark.parametrize("kind", ["set", "add"])
@pytest.mark.parametrize("axis", [0, 1])
def test_few_updates_along_an_axis(kind, axis):
    rng = np.random.default_rng(2)
    shape = (9, 3) if axis else (3, 9)
    x, updates = random_array((9, 11), f32, 0), random_array(shape, f32, 1)
    at = rng.integers(0, (9, 11)[axis], shape)
    program = run(lambda b, x, u, i: b.scatter(x, u, i, axis=axis, shape=(9, 11), kind=kind), x, updates, at)
    assert routines(program) == ["scatter"]


def test_many_updates_are_a_library_s():
    shape = (40, 4)
    at = np.random.default_rng(3).integers(0, 9, shape)
    inputs = random_array((9, 4), f32), random_array(shape, f32), at
    program = run(lambda b, x, u, i: b.scatter(x, u, i, axis=0, shape=(9, 4), kind="add"), *inputs)
    assert not routines(program)
