"""Block-level passes: what becomes of attention, batch norms and linears of one operand."""

from __future__ import annotations

import numpy as np
import pytest
from dlcompiler.codegen.target import Target
from dlcompiler.ir.graph import Builder, Graph, Node
from dlcompiler.ir.interpret import interpret_graph
from dlcompiler.ir.program import Launch
from dlcompiler.ir.types import TensorType, f32
from dlcompiler.passes.context import Context, DefaultOptions
from dlcompiler.passes.dataflow.program import plan_graph
from dlcompiler.passes.pipeline import PASSES, optimize, run_pass

TARGET = Target("cpu", "x86-64-v3")


def ops(graph: Graph) -> list[str]:
    return [n.op.name for n in graph.nodes if n.op.name != "constant"]


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def assert_same_answer(before: Graph, after: Graph, inputs: list[np.ndarray], rtol: float = 1e-5) -> None:
    for old, new in zip(interpret_graph(before, inputs), interpret_graph(after, inputs), strict=True):
        np.testing.assert_allclose(new, old, rtol=rtol, atol=rtol)


def convolution(b: Builder, x: Node, channels: int, *, biased: bool, transposed: bool = False, groups: int = 1) -> Node:
    rank = x.tensor.rank - 2
    shape = (x.shape[1], channels // groups) if transposed else (channels, x.shape[1] // groups)
    weight = b.constant(random(*shape, *(3,) * rank))
    attributes = {"strides": (1,) * rank, "padding": (1,) * rank, "dilations": (1,) * rank, "output_padding": (0,) * rank}
    bias = [b.constant(random(channels))] if biased else []
    return b.convolution(x, weight, *bias, **attributes, groups=groups, transposed=transposed)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("transposed, groups", [(False, 1), (False, 2), (True, 1), (True, 2)])
@pytest.mark.parametrize("spatial", [(6, 5), (7,)])
def test_a_batch_norm_disappears_into_the_convolution_before_it(biased, transposed, groups, spatial):
    b = Builder()
    x = b.input("x", TensorType(f32, (2, 4, *spatial)))
    y = convolution(b, x, 8, biased=biased, transposed=transposed, groups=groups)
    statistics = [b.constant(random(8)) for _ in range(3)] + [b.constant(np.abs(random(8)) + 0.5)]
    graph = b.finish([b.relu(b.batch_norm(y, *statistics, epsilon=1e-5))])
    result = optimize(graph, TARGET)
    assert ops(result) == ["convolution", "maximum"]
    assert_same_answer(graph, result, [random(2, 4, *spatial)], rtol=1e-4)


def test_a_batch_norm_of_arguments_stays():
    b = Builder()
    x = b.input("x", TensorType(f32, (2, 4, 6, 6)))
    statistics = [b.input(n, TensorType(f32, (8,))) for n in ("w", "b", "m", "v")]
    graph = b.finish([b.batch_norm(convolution(b, x, 8, biased=True), *statistics, epsilon=1e-5)])
    result = optimize(graph, TARGET)
    assert "convolution" in ops(result) and "rsqrt" in ops(result)


def test_a_convolution_read_twice_keeps_its_weights():
    b = Builder()
    y = convolution(b, b.input("x", TensorType(f32, (2, 4, 6, 6))), 8, biased=True)
    graph = b.finish([b.mul(y, b.constant(random(8, 1, 1))), b.exp(y)])
    assert optimize(graph, TARGET) is graph


def attention_graph(scale: str, mask: str, heads: int = 2) -> tuple[Graph, list[np.ndarray]]:
    """Attention as models write it: how it is scaled and how it is masked."""
    b = Builder()
    inputs = [random(3, heads, n, 8) for n in (5, 5, 5)]
    q, k, v = (b.input(n, TensorType(f32, x.shape)) for n, x in zip("qkv", inputs))
    if scale == "query":
        q = b.mul(q, 0.25)
    if scale == "both":
        q, k = b.mul(q, 0.5), b.mul(k, 0.5)
    scores = b.matmul(q, b.permute(k, dims=(0, 1, 3, 2)))
    if scale == "div":
        scores = b.div(scores, 8**0.5)
    if scale == "mul":
        scores = b.mul(0.25, scores)
    lower = np.tri(5, dtype=bool)
    rows = b.reshape(b.iota(size=5), shape=(5, 1))
    match mask:
        case "added":
            inputs.append(random(3, 1, 1, 5))
            scores = b.add(b.input("mask", TensorType(f32, (3, 1, 1, 5))), scores)
        case "kept":
            inputs.append(np.ones((5, 5), dtype=bool))
            scores = b.where(b.constant(np.roll(lower, 1)), scores, -np.inf)
            inputs.pop()
        case "causal constant":
            scores = b.where(b.constant(lower[None]), scores, float(np.finfo(np.float32).min))
        case "causal arithmetic":
            scores = b.where(b.le(b.iota(size=5), rows), scores, -np.inf)
        case "causal negated":
            scores = b.where(b.bitwise_not(b.gt(b.iota(size=5), rows)), scores, -1e9)
        case "causal added":
            scores = b.add(scores, b.constant(np.where(lower, 0, -np.inf), f32))
        case "causal product":  # (1 - mask) * -1e9, as the first models wrote it
            kept = b.cast(b.ge(rows, b.iota(size=5)), dtype="f32")
            scores = b.add(scores, b.mul(b.sub(1.0, kept), -1e9))
    return b.finish([b.matmul(b.softmax(scores, axis=-1), v)]), inputs


@pytest.mark.parametrize("scale", ["none", "query", "both", "div", "mul"])
@pytest.mark.parametrize(
    "mask", ["none", "added", "kept", "causal constant", "causal arithmetic", "causal negated", "causal added", "causal product"]
)
def test_attention_is_found_however_it_is_written(scale, mask):
    graph, inputs = attention_graph(scale, mask)
    result = optimize(graph, TARGET)
    (attention,) = (n for n in result.nodes if n.op.name == "attention")
    assert attention.attributes["causal"] == mask.startswith("causal")
    assert len(attention.inputs) == (4 if mask in ("added", "kept") else 3)
    assert_same_answer(graph, result, inputs)


def test_attention_stays_written_out_where_no_library_has_it():
    class Bare:
        library_ops = frozenset({"matmul"})
        tiles_sums = False
        parallel_rows = 16

        def runs_whole(self, node):
            return node.op.name in self.library_ops

    graph, inputs = attention_graph("div", "added")
    result = optimize(graph, Bare())
    assert "attention" not in ops(result) and ops(result).count("matmul") == 2
    assert_same_answer(graph, result, inputs)


def test_attention_whose_weights_are_a_result_stays():
    b = Builder()
    q, k, v = (b.input(n, TensorType(f32, (2, 5, 8))) for n in "qkv")
    weights = b.softmax(b.matmul(q, b.permute(k, dims=(0, 2, 1))), axis=-1)
    assert "attention" not in ops(optimize(b.finish([b.matmul(weights, v), weights]), TARGET))


def test_heads_that_share_keys_are_not_copied():
    b = Builder()
    q = b.input("q", TensorType(f32, (1, 6, 5, 16)))
    shared = []
    for name in "kv":
        heads = b.reshape(b.input(name, TensorType(f32, (1, 3, 7, 16))), shape=(1, 3, 1, 7, 16))
        shared.append(b.reshape(b.expand(heads, shape=(1, 3, 2, 7, 16)), shape=(1, 6, 7, 16)))
    result = b.attention(q, *shared, scale=0.25, causal=True)
    graph = b.finish([b.reshape(b.permute(result, dims=(0, 2, 1, 3)), shape=(1, 5, 96))])
    optimized = optimize(graph, TARGET)
    assert_same_answer(graph, optimized, [random(1, heads, length, 16) for heads, length in ((6, 5), (3, 7), (3, 7))])
    steps = plan_graph(optimized, TARGET).steps
    assert [step.op for step in steps if not isinstance(step, Launch)] == ["attention"]
    # one copy hands out the result, which a call of the model would have read where it is
    assert len(steps) <= 2


def test_what_is_joined_to_be_rows_of_a_product_is_stored_once():
    """As columns it would be packed as it is, but then the result's vectors would lie apart."""
    b = Builder()
    parts = [b.input(name, TensorType(f32, (40, 16))) for name in "xyz"]
    graph = b.finish([b.linear(b.concat(*parts, axis=1), b.input("w", TensorType(f32, (64, 48))))])
    program = plan_graph(optimize(graph, TARGET), TARGET)
    *_, product = program.steps
    assert isinstance(product, Launch)
    assert [view.shape for view in product.reads if view.slot.role == "intermediate"][0] == (40, 48)
    columns = next(buffer for buffer in product.kernel.buffers if len(buffer.shape) == 3)
    assert columns.shape[1] == 48 and columns.shape[0] * columns.shape[2] >= 64


def linears(shared: bool = False, argument: bool = False) -> Graph:
    b = Builder()
    x = b.input("x", TensorType(f32, (2, 5, 8)))
    weights = [b.constant(random(n, 8)) for n in (3, 4, 5)]
    if argument:
        weights[1] = b.input("w", TensorType(f32, (4, 8)))
    biases = [b.constant(random(n)) for n in (3, 4, 5)]
    parts = [b.tanh(b.linear(x, w, c)) for w, c in zip(weights, biases)]
    if shared:
        parts.append(b.exp(weights[0]))
    return b.finish(parts)


def test_linears_of_one_operand_are_merged():
    graph = linears()
    result = run_pass(PASSES["merge-linears"], graph, Context(TARGET))
    assert ops(result).count("linear") == 1 and ops(result).count("slice") == 3
    assert_same_answer(graph, result, [random(2, 5, 8)])
    stays = {
        "arguments": linears(argument=True),
        "read elsewhere": linears(shared=True),
    }
    for graph in stays.values():
        assert ops(run_pass(PASSES["merge-linears"], graph, Context(TARGET))).count("linear") == 2
    eager = Context(TARGET, DefaultOptions(numerics="eager"))
    assert run_pass(PASSES["merge-linears"], linears(), eager).history == ()
    assert "merge-linears" not in {e.name for e in optimize(linears(), TARGET).history}


def test_large_sums_are_split_along_whole_axes_where_they_can_be():
    b = Builder()
    x = b.input("x", TensorType(f32, (64, 32, 64)))
    result = optimize(b.finish([b.mean(b.exp(x), axes=(0, 1, 2), keepdims=False)]), TARGET)
    first, second = (n for n in result.nodes if n.op.name == "reduce_sum")
    assert first.attributes["axes"] == (1, 2) and second.attributes["axes"] == (0,)
    assert "reshape" not in ops(result)
