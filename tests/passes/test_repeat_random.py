"""Random values that are computed again by their readers: what is copied, what is not, and that no number changes."""

from __future__ import annotations

import numpy as np
import pytest
from dlcompiler.codegen.target import parse_target
from dlcompiler.ir.graph import Builder, Graph
from dlcompiler.ir.interpret import interpret_graph
from dlcompiler.ir.types import TensorType, f32, i64
from dlcompiler.ir.verify import verify_graph
from dlcompiler.passes.context import Context, DefaultOptions, Fuel
from dlcompiler.passes.node.repeat_random import repeat_random


def masked_twice(build) -> Graph:
    """`build(b, x, mask)` gives the results of a graph, where the mask is made of bits for each element of `x`."""
    b = Builder("masked")
    x, seed = b.input("x", TensorType(f32, (6, 5))), b.input("seed", TensorType(i64, ()))
    index = b.reshape(b.iota(size=30), shape=(6, 5))
    bits = b.philox(index, b.constant(np.int64(3)), seed)
    mask = b.cast(b.lt(b.cast(bits, dtype="i32"), b.constant(np.int32(1 << 29))), dtype="f32")
    return b.finish(build(b, x, mask))


def run(graph: Graph, fuel: int | None = None) -> Graph:
    context = Context(parse_target("cpu"), DefaultOptions(), Fuel(fuel))
    result = repeat_random(graph, context)
    verify_graph(result)
    return result


def count(graph: Graph) -> int:
    return sum(node.op.name == "philox" for node in graph.nodes)


CASES = {
    # name: (results of the graph, draws after the pass)
    "two readers": (lambda b, x, m: [b.mul(x, m), b.mul(b.exp(x), m)], 2),
    "three readers": (lambda b, x, m: [b.mul(x, m), b.mul(b.exp(x), m), b.reduce_sum(m, axes=(0,))], 3),
    "through views": (lambda b, x, m: [b.mul(x, m), b.mul(b.reshape(x, shape=(30,)), b.reshape(m, shape=(30,)))], 2),
    "one reader": (lambda b, x, m: [b.exp(b.mul(x, m))], 1),
    "a result is kept": (lambda b, x, m: [m, b.mul(x, m), b.mul(b.exp(x), m)], 1),
    "a library reads": (lambda b, x, m: [b.mul(x, m), b.matmul(b.permute(x, dims=(1, 0)), m)], 1),
    "mixed with data": (lambda b, x, m: (lambda y: [b.exp(y), b.neg(y)])(b.mul(x, m)), 1),
}


@pytest.mark.parametrize("name", CASES)
def test_readers_compute_bits_again(name):
    build, draws = CASES[name]
    graph = masked_twice(build)
    repeated = run(graph)
    assert (count(graph), count(repeated)) == (1, draws)
    inputs = [np.random.default_rng(0).standard_normal((6, 5), dtype=np.float32), np.array(123456789, np.int64)]
    for a, b in zip(interpret_graph(graph, inputs), interpret_graph(repeated, inputs)):
        np.testing.assert_array_equal(a, b)


def test_fuel_counts_copies():
    graph = masked_twice(CASES["three readers"][0])
    assert [count(run(graph, fuel)) for fuel in range(4)] == [1, 2, 3, 3]
