"""A loss over many classes: the product before it is not stored, results are the same; and what stays as it is."""

from __future__ import annotations

import numpy as np
import pytest
from dlcompiler.codegen.target import Target, parse_target
from dlcompiler.ir.graph import Builder, Graph
from dlcompiler.ir.interpret import interpret_graph
from dlcompiler.ir.types import TensorType, f32, i64
from dlcompiler.passes.block import linear_loss, row_chunks
from dlcompiler.passes.block.fuse import fuse
from dlcompiler.passes.context import Context
from dlcompiler.passes.dataflow.program import plan
from dlcompiler.passes.pipeline import optimize

from tests.passes.test_row_chunks import DEPTH, ROWS, WIDTH, inputs_of, largest, layer, loss_and_gradients


class Small(Target):
    """A target for which a few rows are many."""

    rows_at_a_time = 16
    parallel_rows = 16


TARGET = Small("cuda", "sm_90", float32="tf32")


@pytest.fixture(autouse=True)
def _small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_chunks, "LARGE_BYTES", 1)
    monkeypatch.setattr(linear_loss, "LARGE_BYTES", 1)
    monkeypatch.setattr(linear_loss, "FEWEST_COLUMNS", 8)


def assert_same(graph: Graph, result: Graph) -> None:
    for expected, found in zip(interpret_graph(graph, inputs_of(graph)), interpret_graph(result, inputs_of(graph)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_a_loss_and_its_gradients(bias: bool) -> None:
    b = Builder()
    graph = b.finish(loss_and_gradients(b, bias))
    result = optimize(graph, TARGET)
    assert {"linear-loss", "rows-in-parts"} <= {event.name for event in result.history}
    assert largest(result) < ROWS * WIDTH
    assert_same(graph, result)


def test_a_loss_alone_stores_nothing_of_the_product() -> None:
    b = Builder()
    x, w = b.input("x", TensorType(f32, (2, ROWS // 2, DEPTH))), b.input("w", TensorType(f32, (WIDTH, DEPTH)))
    targets = b.input("targets", TensorType(i64, (ROWS,)))
    logs = b.log_softmax(b.reshape(b.linear(x, w), shape=(ROWS, WIDTH)), axis=1)
    picked = b.gather(logs, b.reshape(b.maximum(targets, 0), shape=(ROWS, 1)), axis=1)
    graph = b.finish([b.reduce_sum(picked, axes=(0, 1))])
    exact = parse_target("cuda:sm_90")  # multiplies without tensor cores
    result = optimize(graph, exact)
    assert "linear" not in {node.op.name for node in result.nodes}
    assert_same(graph, result)
    program = plan(fuse(result, exact), exact)
    assert all(slot.elements < ROWS * WIDTH for slot in program.slots)


def test_what_stays_as_it_is() -> None:
    def stays(results, b, target=TARGET) -> bool:
        graph = b.finish(results)
        return linear_loss.store_no_logits(graph, Context(target)) is graph

    b = Builder()
    _, _, logits = layer(b, False)
    assert stays([logits, b.reduce_max(b.log_softmax(logits, axis=1), axes=(1,))], b), "the logits are a result"
    b = Builder()
    _, _, logits = layer(b, False)
    assert stays([b.log_softmax(logits, axis=1)], b), "all of log_softmax is a result"
    b = Builder()
    _, _, logits = layer(b, False)
    assert stays([b.reduce_max(b.log_softmax(logits, axis=0), axes=(1,))], b), "a softmax over rows"
    for target in (parse_target("cuda:sm_90"), parse_target("cpu:x86-64-v3")):
        b = Builder()
        assert stays(loss_and_gradients(b, False), b, target), "to multiply again takes longer"
