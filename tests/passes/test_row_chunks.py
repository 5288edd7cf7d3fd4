"""Large row-wise products in parts: nothing as large as the whole is left, results are the same; and what must stay whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from dlcompiler.codegen.target import Target
from dlcompiler.ir.graph import Builder, Graph, Node
from dlcompiler.ir.interpret import interpret_graph
from dlcompiler.ir.types import TensorType, f32, i64
from dlcompiler.ir.verify import verify_graph
from dlcompiler.passes.block import row_chunks
from dlcompiler.passes.context import Context, DefaultOptions
from dlcompiler.passes.pipeline import optimize

ROWS, DEPTH, WIDTH = 50, 6, 40


class Small(Target):
    """A target for which a few rows are many."""

    rows_at_a_time = 16


TARGET = Small("cpu", "x86-64-v3")


@pytest.fixture(autouse=True)
def _small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_chunks, "LARGE_BYTES", 1)


def layer(b: Builder, bias: bool) -> tuple[Node, Node, Node]:
    """x, w and logits."""
    x, w = b.input("x", TensorType(f32, (ROWS, DEPTH))), b.input("w", TensorType(f32, (WIDTH, DEPTH)))
    return x, w, b.linear(x, w, *([b.input("bias", TensorType(f32, (WIDTH,)))] if bias else []))


def loss_and_gradients(b: Builder, bias: bool, factor_of_loss: bool = False) -> list[Node]:
    """Cross-entropy with ignored targets and smoothed labels, and its gradients, as AOTAutograd writes them."""
    x, w, logits = layer(b, bias)
    targets = b.input("targets", TensorType(i64, (ROWS,)))
    column = b.reshape(targets, shape=(ROWS, 1))
    known, safe = b.ne(column, -100), b.maximum(column, 0)
    logs = b.log_softmax(logits, axis=1)
    picked = b.where(known, b.neg(b.gather(logs, safe, axis=1)), 0.0)
    smooth = b.reduce_sum(b.mul(b.where(known, logs, 0.0), -0.1 / WIDTH), axes=(0, 1))
    loss = b.add(b.reduce_sum(picked, axes=(0, 1)), smooth)
    chosen = b.where(b.eq(b.iota(size=WIDTH), safe), b.constant(-1.0, f32), b.constant(0.0, f32))
    share = b.where(known, b.sub(chosen, 0.1 / WIDTH), 0.0)
    if factor_of_loss:
        share = b.mul(share, loss)
    g = b.sub(share, b.mul(b.exp(logs), b.reduce_sum(share, axes=(1,), keepdims=True)))
    rows_last = b.permute(g, dims=(1, 0))
    gradients = [b.linear(g, b.permute(w, dims=(1, 0))), b.linear(rows_last, b.permute(x, dims=(1, 0)))]
    return [loss, *gradients, *([b.reduce_sum(g, axes=(0,))] if bias else [])]


def inputs_of(graph: Graph) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    given: list[Any] = []
    for node in graph.inputs:
        if node.name == "targets":
            given.append(np.where(random.random(ROWS) < 0.2, -100, random.integers(0, WIDTH, ROWS)))
        else:
            given.append(random.standard_normal(node.tensor.known_shape).astype(np.float32))
    return given


def largest(graph: Graph) -> int:
    return max(n.tensor.numel for n in graph.nodes if isinstance(n.type, TensorType) and isinstance(n.tensor.numel, int))


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_a_loss_and_its_gradients_are_made_a_few_rows_at_a_time(bias: bool) -> None:
    b = Builder()
    graph = b.finish(loss_and_gradients(b, bias))
    result = optimize(graph, TARGET)
    verify_graph(result)
    assert any(event.name == "rows-in-parts" for event in result.history)
    assert largest(result) < ROWS * WIDTH
    for expected, found in zip(interpret_graph(graph, inputs_of(graph)), interpret_graph(result, inputs_of(graph))):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_loss_alone_and_rows_of_several_dimensions() -> None:
    b = Builder()
    x, w = b.input("x", TensorType(f32, (2, ROWS // 2, DEPTH))), b.input("w", TensorType(f32, (WIDTH, DEPTH)))
    rows = b.reshape(b.linear(x, w), shape=(ROWS, WIDTH))
    graph = b.finish([b.reduce_max(b.log_softmax(rows, axis=1), axes=(1,))])
    result = optimize(graph, TARGET)
    assert largest(result) < ROWS * WIDTH
    (expected,), (found,) = interpret_graph(graph, inputs_of(graph)), interpret_graph(result, inputs_of(graph))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def stays_whole(results: list[Node], b: Builder) -> bool:
    graph = b.finish(results)
    return row_chunks.make_rows_in_parts(graph, Context(TARGET)) is graph


def test_what_needs_all_rows_at_once_stays_whole() -> None:
    b = Builder()
    _, _, logits = layer(b, False)
    assert stays_whole([logits, b.reduce_max(logits, axes=(1,))], b), "the logits are a result"
    b = Builder()
    _, _, logits = layer(b, False)
    assert stays_whole([b.reduce_sum(b.exp(b.log_softmax(logits, axis=0)), axes=(1,))], b), "a softmax over rows"
    b = Builder()
    assert stays_whole(loss_and_gradients(b, False, factor_of_loss=True), b), "the gradient depends on the whole loss"
    b = Builder()
    _, _, logits = layer(b, False)
    assert stays_whole([b.reduce_sum(b.flip(logits, axes=(0,)), axes=(1,))], b), "rows change places"


def test_sums_in_another_order_are_not_made_where_bits_count() -> None:
    b = Builder()
    graph = b.finish(loss_and_gradients(b, False))
    assert row_chunks.make_rows_in_parts(graph, Context(TARGET, DefaultOptions(numerics="eager"))) is graph
