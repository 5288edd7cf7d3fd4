"""Kernels written for CPUs compute what the graph interpreter says, for odd sizes, every dtype, every vector width."""

from __future__ import annotations

import numpy as np
import pytest
from dlcompiler.codegen.cpu.scalars import spelled
from dlcompiler.codegen.schedule import schedule_kernel
from dlcompiler.ir.expression import symbol
from dlcompiler.ir.graph import Builder, Graph
from dlcompiler.ir.scalar import SCALARS
from dlcompiler.ir.types import DTYPES, DType, TensorType, boolean, f32, i64

from tests.codegen.cpu.run import check_graph, machines
from tests.lowering import graph_kernel

REAL = [d for d in DTYPES.values() if d.kind != "complex"]
every_machine = pytest.mark.parametrize("described", machines(), ids=lambda m: m.name)


def random_array(shape, dtype: DType, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if dtype is boolean:
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.is_integer:
        low = 0 if dtype.kind == "uint" else -9
        return rng.integers(low, 10, shape).astype(dtype.numpy)
    return (rng.standard_normal(shape) * 2).astype(np.float32).astype(dtype.numpy)


def graph_of(build, *types: TensorType) -> Graph:
    b = Builder()
    outputs = build(b, *(b.input(f"x{k}", t) for k, t in enumerate(types)))
    return b.finish(outputs if isinstance(outputs, list) else [outputs])


def check(build, *types: TensorType, described, seed: int = 0) -> None:
    check_graph(graph_of(build, *types), [random_array(t.shape, t.dtype, seed + k) for k, t in enumerate(types)], described)


@pytest.mark.parametrize("name", [n for n in SCALARS if n not in ("where", "erfinv", "lgamma", "digamma")])
def test_scalar_operations_of_every_dtype(name):
    described = machines()[0]
    scalar = SCALARS[name]
    for dtype in REAL:
        compute = f32 if dtype.name in ("f16", "bf16") else dtype
        if scalar.accepts(dtype) and spelled(name, compute):
            positive = name in ("log", "log2", "log10", "sqrt", "rsqrt", "acosh", "pow") and dtype.is_float

            def build(b, *xs, positive=positive, dtype=dtype):
                if positive:
                    xs = (b.add(b.abs(xs[0]), b.constant(1, dtype)), *xs[1:])
                return b(name, *xs)

            # f16 and bf16 are compared after one rounding, so values near a tie may differ by one step of the narrow type
            check(build, *[TensorType(dtype, (3, 37))] * scalar.arity, described=described)


@pytest.mark.parametrize("source", REAL, ids=str)
def test_casts_between_all_dtypes(source):
    outputs = [d for d in REAL if d is not source]
    # values that every dtype holds: what does not fit is unspecified; f8e8m0 has no zero
    values = np.arange(1, 46).reshape(5, 9).astype(source.numpy)
    graph = graph_of(lambda b, x: [b.cast(x, dtype=d.name) for d in outputs], TensorType(source, (5, 9)))
    check_graph(graph, [values], machines()[0])


SHAPES = [(1,), (7,), (64,), (1001,), (3, 5), (17, 33), (2, 3, 4, 5), (5, 1, 7), (0, 4), ()]


@every_machine
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pointwise_chain(shape, described):
    check(lambda b, x, y: b.mul(b.gelu(b.add(x, y)), b.sigmoid(x)), *[TensorType(f32, shape)] * 2, described=described)


@every_machine
@pytest.mark.parametrize("shape", [(1, 1), (3, 16), (5, 1), (4, 77), (2, 1030), (3, 4, 130)], ids=str)
@pytest.mark.parametrize("axis", [0, -1])
def test_normalisations(shape, axis, described):
    axis %= len(shape)
    x = TensorType(f32, shape)
    check(lambda b, x: [b.softmax(x, axis=axis), b.log_softmax(x, axis=axis)], x, described=described)
    if axis:
        check(lambda b, x, w: b.layer_norm(x, w, rank=1, epsilon=1e-5), x, TensorType(f32, shape[-1:]), described=described)


@every_machine
@pytest.mark.parametrize("kind", ["reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "argmax", "argmin"])
@pytest.mark.parametrize("axes", [(0,), (1,), (2,)])
def test_reductions(kind, axes, described):
    for dtype in (f32, i64):
        check(lambda b, x: b(kind, x, axes=axes), TensorType(dtype, (5, 19, 35)), described=described)


@every_machine
def test_sums_down_columns_fill_lanes_with_columns_whatever_follows(described):
    """An update reads and writes more numbers than the sum that it follows, but only once for each sum."""

    def update(b, gradient, parameter, *moments):
        total = b.reduce_sum(gradient, axes=(0,), keepdims=False)
        moments = [b.add(b.mul(m, total), total) for m in moments]
        return [*moments, b.sub(parameter, b.div(moments[0], moments[1]))]

    graph = graph_of(update, TensorType(f32, (40, 37)), *[TensorType(f32, (37,))] * 3)
    kernel, _ = graph_kernel(graph)
    schedule = schedule_kernel(kernel, described.vector_bytes)
    assert schedule.vector is not None and not schedule.vector_is_reduced
    check_graph(graph, [random_array(node.shape, f32, k) for k, node in enumerate(graph.inputs)], described)


def test_reductions_over_several_axes_and_bools():
    described = machines()[0]
    check(lambda b, x: b.reduce_sum(x, axes=(0, 2)), TensorType(f32, (5, 19, 35)), described=described)
    check(
        lambda b, x: [b.reduce_any(x, axes=(1,)), b.reduce_all(x, axes=(0,))], TensorType(boolean, (5, 19)), described=described
    )


@every_machine
def test_transposes_are_turned_in_registers(described):
    for rows, columns in ((16, 16), (64, 64), (33, 77), (130, 19), (1, 40)):
        check(
            lambda b, x, y: b.add(b.permute(x, dims=(1, 0)), y),
            TensorType(f32, (rows, columns)), TensorType(f32, (columns, rows)), described=described,
        )  # fmt: skip


@every_machine
@pytest.mark.parametrize("dtype", [f32, i64])
def test_what_is_filled_up_is_turned_in_registers_too(dtype, described):
    """Rows beyond the end are zeros, in tiles beyond it or across it."""
    for axis, rows, columns in ((0, 33, 64), (0, 70, 40), (1, 33, 64)):
        low, high = ((3, 0), (40, 0)) if axis == 0 else ((0, 3), (0, 40))
        graph = graph_of(
            lambda b, x, low=low, high=high: b.permute(b.pad(x, low=low, high=high, value=0.0), dims=(1, 0)),
            TensorType(dtype, (rows, columns)),
        )
        assert axis == 1 or schedule_kernel(graph_kernel(graph)[0], described.vector_bytes).transposes
        check_graph(graph, [random_array((rows, columns), dtype)], described)


@every_machine
def test_views_become_index_arithmetic(described):
    x = TensorType(f32, (6, 8, 10))
    for view in (
        lambda b, x: b.reshape(x, shape=(12, 40)),
        lambda b, x: b.reshape(x, shape=(16, 30)),
        lambda b, x: b.permute(x, dims=(2, 0, 1)),
        lambda b, x: b.slice(x, starts=(1, 0, 2), limits=(5, 8, 9), steps=(2, 3, 1)),
        lambda b, x: b.flip(x, axes=(0, 2)),
        lambda b, x: b.pad(x, low=(0, 1, 2), high=(3, 0, 1), value=7.0),
        lambda b, x: b.concat(x, b.mul(x, 2.0), x, axis=2),
        lambda b, x: b.window(x, axes=(1, 2), sizes=(2, 3), strides=(2, 1), dilations=(1, 2)),
        lambda b, x: b.expand(b.reshape(x, shape=(6, 1, 80)), shape=(6, 3, 80)),
        lambda b, x: b.slice_update(
            x, b.slice(x, starts=(0, 0, 0), limits=(2, 8, 3), steps=(1, 1, 1)), starts=(1, 0, 2), steps=(2, 1, 3)
        ),
    ):
        check(lambda b, x, view=view: b.add(view(b, x), 1.0), x, described=described)


@every_machine
def test_pooling(described):
    x = TensorType(f32, (2, 5, 13, 17))
    window = {"kernel": (3, 2), "strides": (2, 2), "padding": (1, 1), "dilations": (1, 1)}
    check(lambda b, x: [b.max_pool(x, **window), b.average_pool(x, **window, count_padding=False)], x, described=described)


@every_machine
def test_indices_from_data(described):
    rng = np.random.default_rng(1)
    table, at = rng.standard_normal((11, 19)).astype(np.float32), rng.integers(0, 11, (4, 7))
    graph = graph_of(lambda b, w, i: b.mul(b.index(w, i, axes=(0,)), 2.0), TensorType(f32, (11, 19)), TensorType(i64, (4, 7)))
    check_graph(graph, [table, at], described)
    rows = rng.integers(0, 19, (11, 5))
    graph = graph_of(lambda b, w, i: b.gather(w, i, axis=1), TensorType(f32, (11, 19)), TensorType(i64, (11, 5)))
    check_graph(graph, [table, rows], described)


@every_machine
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 17, 300])
def test_one_kernel_for_all_sizes(rows, described):
    shape = (symbol("N"), 40)
    graph = graph_of(lambda b, x: [b.softmax(b.gelu(x), axis=1), b.reduce_sum(x, axes=(0,))], TensorType(f32, shape))
    check_graph(graph, [random_array((rows, 40), f32)], described)


def test_nan_and_signed_zero_go_where_numpy_says():
    values = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 1e-45], np.float32)
    x, y = (a.copy() for a in np.broadcast_arrays(values[:, None], values[None, :]))
    graph = graph_of(
        lambda b, x, y: [b.maximum(x, y), b.minimum(x, y), b.lt(x, y), b.eq(x, y), b.ne(x, y), b.div(x, y), b.relu(x), b.sign(x)],
        *[TensorType(f32, (8, 8))] * 2,
    )
    check_graph(graph, [x, y], machines()[0])
    rows = graph_of(
        lambda b, x: [b.reduce_max(x, axes=(1,)), b.argmax(x, axes=(1,)), b.argmin(x, axes=(1,))], TensorType(f32, (8, 8))
    )
    check_graph(rows, [y], machines()[0])
