"""Groups are revised on GPUs: fewer bytes between steps, fewer steps, the same answers."""

from __future__ import annotations

import numpy as np
from dlcompiler.codegen.target import Target, parse_target
from dlcompiler.ir.graph import Builder, Graph, Node
from dlcompiler.ir.interpret import interpret_graph, interpret_program
from dlcompiler.ir.types import TensorType, f32
from dlcompiler.ir.verify import verify_program
from dlcompiler.passes.block.fuse import Fusion, fuse
from dlcompiler.passes.dataflow.program import plan
from dlcompiler.passes.pipeline import optimize
from hypothesis import given, settings

from dlcompiler.options import Options
from tests.strategies import Case, graphs

TARGET = parse_target("cuda:sm_90")


class AsFused(Target):
    """The same GPU, with groups left as they were found."""

    counts_bytes = False


AS_FUSED = AsFused("cuda", "sm_90")


def moved(fusion: Fusion) -> int:
    """Bytes that all kernels read and write."""
    total = 0
    for group in fusion.groups:
        read: set[Node] = set()
        stack = [i for n in group.nodes for i in n.inputs if i not in group.nodes]
        while stack:
            node = stack.pop()
            if node in fusion.stored:
                read.add(node)
            elif node not in group.nodes:
                stack.extend(node.inputs)
        total += sum(n.tensor.bytes for n in (*read, *group.outputs) if isinstance(n.type, TensorType))
    return total


@settings(max_examples=300, derandomize=True, deadline=None)
@given(case=graphs(max_nodes=14))
def test_revised_groups_move_no_more_and_give_the_same(case: Case):
    graph = optimize(case.graph, TARGET, Options())
    before, after = fuse(graph, AS_FUSED), fuse(graph, TARGET)
    assert len(after.groups) <= len(before.groups)
    assert moved(after) <= moved(before)
    program = plan(after, TARGET, Options())
    verify_program(program)
    with np.errstate(all="ignore"):
        case.check(interpret_program(program, case.inputs), case.expected())


def gradient_of_layer_norm(kept: bool = False) -> Graph:
    """What a product's gradient goes through in front of a layer norm; `kept`: what its rows are summed of is a result."""
    b = Builder()
    gradient = b.matmul(b.input("g", TensorType(f32, (64, 48))), b.input("w", TensorType(f32, (48, 32))))
    x, weight = b.input("x", TensorType(f32, (64, 32))), b.input("weight", TensorType(f32, (32,)))
    scaled = b.mul(gradient, weight)
    of_x = b.mul(scaled, x)
    rows = b.sub(scaled, b.mul(x, b.reduce_sum(of_x, axes=(1,), keepdims=True)))
    columns = [b.reduce_sum(b.mul(gradient, x), axes=(0,), keepdims=False), b.reduce_sum(gradient, axes=(0,), keepdims=False)]
    return b.finish([rows, *columns, *([of_x] if kept else [])])


def test_what_a_reduction_alone_reads_is_computed_there():
    graph = gradient_of_layer_norm()
    assert [len(g.outputs) for g in fuse(graph, AS_FUSED).groups] == [4, 1, 1, 1]
    product, *others = fuse(graph, TARGET).groups
    assert [n.op.name for n in product.nodes] == ["matmul"]
    assert sorted(sorted(n.op.name for n in group.nodes) for group in others) == [
        ["mul", "mul", "mul", "reduce_sum", "sub"],
        ["mul", "reduce_sum", "reduce_sum"],
    ]
    inputs = [np.random.default_rng(k).standard_normal(i.shape).astype(np.float32) for k, i in enumerate(graph.inputs)]
    results = interpret_program(plan(fuse(graph, TARGET), TARGET, Options()), inputs)
    for got, expected in zip(results, interpret_graph(graph, inputs), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_results_stay_where_they_are_made():
    graph = gradient_of_layer_norm(kept=True)
    product = fuse(graph, TARGET).groups[0]
    assert graph.outputs[-1] in product.outputs


def test_no_group_is_revised_on_a_cpu():
    assert not parse_target("cpu").counts_bytes


def test_what_a_few_ops_make_of_stored_values_is_computed_by_each_reader():
    """A normalised input that rows and columns of a gradient need, in the group of a product that it has nothing to do with."""
    b = Builder()
    g, w, x = (b.input(n, TensorType(f32, s)) for n, s in (("g", (64, 48)), ("w", (48, 32)), ("x", (64, 32))))
    mean, weight = b.input("mean", TensorType(f32, (64, 1))), b.input("weight", TensorType(f32, (32,)))
    gradient = b.add(b.matmul(g, w), b.input("more", TensorType(f32, (64, 32))))
    normal = b.sub(x, mean)
    scaled = b.mul(gradient, weight)
    rows = b.sub(scaled, b.mul(normal, b.reduce_sum(b.mul(scaled, normal), axes=(1,), keepdims=True)))
    graph = b.finish([rows, b.reduce_sum(b.mul(gradient, normal), axes=(0,), keepdims=False)])
    found = fuse(graph, TARGET)
    assert found.inlined(normal)
    assert not fuse(graph, AS_FUSED).inlined(normal)
    # `x` is read by both instead of being written once more
    assert moved(found) <= moved(fuse(graph, AS_FUSED)) - normal.tensor.bytes
