"""Block-scaled weights: every way to write one down becomes the same narrow product, and what only looks like one does not."""

from __future__ import annotations

import numpy as np
import pytest
from dlcompiler.codegen.target import parse_target
from dlcompiler.ir.graph import Builder, Graph, Node
from dlcompiler.ir.types import DTYPES, TensorType, f32
from dlcompiler.passes.context import DefaultOptions
from dlcompiler.passes.pipeline import optimize

from dlcompiler.reference import run_reference

INNER, COLUMNS, BLOCK = 96, 40, 32
CPU = parse_target("cpu:x86-64-v3")
RANGES = {"i4": (-8, 8), "u4": (0, 16), "i2": (-2, 2), "u2": (0, 4), "i8": (-128, 128), "u8": (0, 256)}


def quantized(b: Builder, name: str, *shape: int, seed: int = 0) -> Node:
    random = np.random.default_rng(seed)
    return b.constant(random.integers(*RANGES[name], shape).astype(DTYPES[name].numpy), DTYPES[name])


def wide(b: Builder, node: Node) -> Node:
    return b.cast(node, dtype="f32")


def spread(b: Builder, part: Node, size: int, axis: int, places: np.ndarray | None = None) -> Node:
    """As the ONNX front end spreads blocks: an index of places."""
    each = size // part.shape[axis]
    return b.index(part, b.constant(np.arange(size) // each if places is None else places), axes=(axis,))


def columns_behind(b: Builder, x: Node, dtype: str, zero: bool) -> Node:
    """matmul(x, w[K, N]), blocks along the first dimension."""
    scale = b.constant(np.random.default_rng(2).random((INNER // BLOCK, COLUMNS), np.float32))
    values = wide(b, quantized(b, dtype, INNER, COLUMNS))
    if zero:
        values = b.sub(values, wide(b, spread(b, quantized(b, dtype, INNER // BLOCK, COLUMNS, seed=1), INNER, 0)))
    return b.matmul(x, b.mul(values, spread(b, scale, INNER, 0)))


def rows_transposed(b: Builder, x: Node, dtype: str, zero: bool) -> Node:
    """matmul(x, w[N, K].T), blocks along the second."""
    scale = b.constant(np.random.default_rng(2).random((COLUMNS, INNER // BLOCK), np.float32))
    values = wide(b, quantized(b, dtype, COLUMNS, INNER))
    if zero:
        values = b.sub(values, wide(b, spread(b, quantized(b, dtype, COLUMNS, INNER // BLOCK, seed=1), INNER, 1)))
    return b.matmul(x, b.permute(b.mul(spread(b, scale, INNER, 1), values), dims=(1, 0)))


def arithmetic(b: Builder, x: Node, dtype: str, zero: bool) -> Node:
    """linear(x, ((w.reshape(N, blocks, block) - z) * s).reshape(N, K), bias), as exports write it out."""
    scale = b.constant(np.random.default_rng(2).random((COLUMNS, INNER // BLOCK, 1), np.float32))
    values = wide(b, b.reshape(quantized(b, dtype, COLUMNS, INNER), shape=(COLUMNS, INNER // BLOCK, BLOCK)))
    if zero:
        values = b.sub(values, wide(b, quantized(b, dtype, COLUMNS, INNER // BLOCK, 1, seed=1)))
    weight = b.reshape(b.mul(values, scale), shape=(COLUMNS, INNER))
    return b.linear(x, weight, b.constant(np.arange(COLUMNS, dtype=np.float32)))


FORMS = (columns_behind, rows_transposed, arithmetic)


def graph_of(form, dtype: str, zero: bool) -> Graph:
    b = Builder("narrow")
    x = b.input("x", TensorType(f32, (3, INNER)))
    return b.finish([form(b, x, dtype, zero)])


def names(graph: Graph) -> set[str]:
    return {node.op.name for node in graph.nodes}


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("dtype", sorted(RANGES))
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_one_narrow_product(form, dtype: str, zero: bool) -> None:
    graph = graph_of(form, dtype, zero)
    better = optimize(graph, CPU)
    (product,) = [node for node in better.nodes if node.op.name == "block_linear"]
    assert product.attributes["block"] == BLOCK and product.attributes["bits"] == int(dtype[1:])
    # nothing as large as the weight is computed, and a symmetric one has no zero points
    assert all(node.tensor.numel < INNER * COLUMNS or node.op.name == "constant" for node in better.nodes)
    assert ("reduce_sum" in names(better)) == (zero or dtype.startswith("u"))
    x = np.random.default_rng(3).standard_normal((3, INNER), np.float32)
    expected, got = run_reference(graph, [x])[0], run_reference(better, [x])[0]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def shuffled(b: Builder, x: Node, dtype: str, zero: bool) -> Node:
    """Scales that do not stay the same over blocks."""
    places = np.arange(INNER) // BLOCK
    places[[0, -1]] = places[[-1, 0]]
    scale = b.constant(np.random.default_rng(2).random((INNER // BLOCK, COLUMNS), np.float32))
    return b.matmul(x, b.mul(wide(b, quantized(b, dtype, INNER, COLUMNS)), spread(b, scale, INNER, 0, places)))


def each_its_own(b: Builder, x: Node, dtype: str, zero: bool) -> Node:
    """A scale for each element."""
    scale = b.constant(np.random.default_rng(2).random((INNER, COLUMNS), np.float32))
    return b.matmul(x, b.mul(wide(b, quantized(b, dtype, INNER, COLUMNS)), scale))


def crossing(b: Builder, x: Node, dtype: str, zero: bool) -> Node:
    """Blocks that a reshape lays across rows."""
    scale = b.constant(np.random.default_rng(2).random((COLUMNS // 8, 1), np.float32))
    parts = b.reshape(wide(b, quantized(b, dtype, COLUMNS, INNER)), shape=(COLUMNS // 8, INNER * 8))
    return b.linear(x, b.reshape(b.mul(parts, scale), shape=(COLUMNS, INNER)))


@pytest.mark.parametrize("form", [shuffled, each_its_own, crossing])
def test_what_only_looks_like_one(form) -> None:
    assert "block_linear" not in names(optimize(graph_of(form, "u4", False), CPU))


def test_last_bits_may_not_change_under_eager_numerics() -> None:
    assert "block_linear" not in names(optimize(graph_of(columns_behind, "u4", True), CPU, DefaultOptions(numerics="eager")))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", sorted(RANGES))
def test_rows_of_a_narrow_table(dtype: str, axis: int) -> None:
    """Blocks along rows, or of rows: each row is scaled by the numbers of its own block."""
    b = Builder("table")
    rows = b.input("rows", TensorType(DTYPES["i64"], (2, 3)))
    shape, size = ((COLUMNS, INNER // BLOCK), INNER) if axis else ((COLUMNS // 8, INNER), COLUMNS)
    scale = b.constant(np.random.default_rng(2).random(shape, np.float32))
    zero = quantized(b, dtype, *shape, seed=1)
    values = b.sub(wide(b, quantized(b, dtype, COLUMNS, INNER)), wide(b, spread(b, zero, size, axis)))
    graph = b.finish([b.index(b.mul(values, spread(b, scale, size, axis)), rows, axes=(0,))])
    better = optimize(graph, CPU, DefaultOptions(numerics="eager"))
    assert all(node.tensor.numel < INNER * COLUMNS or node.op.name == "constant" for node in better.nodes)
    taken = np.array([[0, 5, 39], [7, 7, 1]])
    np.testing.assert_array_equal(run_reference(better, [taken])[0], run_reference(graph, [taken])[0])
