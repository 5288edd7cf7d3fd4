"""Node-level passes, as text before and after."""

from __future__ import annotations

import numpy as np
import pytest
from dlcompiler.codegen.target import Target
from dlcompiler.ir.graph import Builder, Graph
from dlcompiler.ir.ops import lookup
from dlcompiler.ir.text import parse_graph
from dlcompiler.ir.types import TensorType, f32, i64
from dlcompiler.ir.verify import verify_graph
from dlcompiler.passes.context import Context, DefaultOptions
from dlcompiler.passes.node.common_subexpressions import frozen
from dlcompiler.passes.pipeline import PASSES, run_pass

TARGET = Target("cpu", "x86-64-v3")


def after(name: str, text: str) -> str:
    """The body of the graph after one pass."""
    graph = run_pass(PASSES[name], parse_graph(f"graph g {{\n{text}\n}}"), Context(TARGET))
    return "\n".join(line.strip() for line in str(graph.replace(history=())).splitlines()[1:-1])


def check(name: str, before: str, expected: str) -> None:
    assert after(name, before) == "\n".join(line.strip() for line in expected.strip().splitlines())


def test_dead_code():
    check(
        "dead-code",
        """
        input %x : f32[4]
        %a = exp(%x) : f32[4]
        %b = neg(%a) : f32[4]
        %c = neg(%x) : f32[4]
        output %c
        """,
        """
        input %x : f32[4]
        %c = neg(%x) : f32[4]
        output %c
        """,
    )


def test_a_call_with_an_effect_is_not_dead():
    b = Builder()
    x = b.input("x", TensorType(f32, (4,)))
    attributes = {"target": "aten.bernoulli.default", "arguments": [{"operand": 0}], "impure": True}
    b.make(lookup("aten.call"), (b.exp(x),), attributes, TensorType(f32, (4,)))
    graph = b.finish([x])
    assert run_pass(PASSES["dead-code"], graph, Context(TARGET)) is graph


def test_written_back_values_are_not_dead():
    b = Builder()
    x = b.input("x", TensorType(f32, (4,)))
    graph = b.finish([], writebacks=((b.exp(x), x),))
    assert run_pass(PASSES["dead-code"], graph, Context(TARGET)) is graph


def test_common_subexpressions():
    check(
        "common-subexpressions",
        """
        input %x : f32[4]
        input %y : f32[4]
        %a = add(%x, %y) : f32[4]
        %b = add(%y, %x) : f32[4]
        %s = sub(%a, %b) : f32[4]
        %t = sub(%b, %a) : f32[4]
        %c = constant 0.0 : f32[]
        %d = constant -0.0 : f32[]
        %e = constant -0.0 : f32[]
        %p = pow(%s, %c) : f32[4]
        %q = pow(%t, %d) : f32[4]
        %r = pow(%t, %e) : f32[4]
        %u = concat(%p, %q, %r) {axis = 0} : f32[12]
        output %u
        """,
        """
        input %x : f32[4]
        input %y : f32[4]
        %a = add(%x, %y) : f32[4]
        %s = sub(%a, %a) : f32[4]
        %c = constant 0.0 : f32[]
        %d = constant -0.0 : f32[]
        %p = pow(%s, %c) : f32[4]
        %q = pow(%s, %d) : f32[4]
        %u = concat(%p, %q, %q) {axis = 0} : f32[12]
        output %u
        """,
    )


def test_equal_results_stay_two_tensors():
    check(
        "common-subexpressions",
        """
        input %x : f32[4]
        %a = exp(%x) : f32[4]
        %b = exp(%x) : f32[4]
        %c = reshape(%x) {shape = (2, 2)} : f32[2, 2]
        %d = reshape(%x) {shape = (2, 2)} : f32[2, 2]
        output %a
        output %b
        output %c
        output %d
        """,
        """
        input %x : f32[4]
        %a = exp(%x) : f32[4]
        %b.copy = cast(%a) {dtype = "f32"} : f32[4]
        %c = reshape(%x) {shape = (2, 2)} : f32[2, 2]
        output %a
        output %b.copy
        output %c
        output %c
        """,
    )


def test_random_numbers_are_not_merged():
    b = Builder()
    type = TensorType(f32, (4,))
    attributes = {"target": "aten.rand.default", "arguments": [[4]], "impure": True}
    calls = [b.make(lookup("aten.call"), (), attributes, type) for _ in range(2)]
    graph = b.finish([b.sub(*calls)])
    assert run_pass(PASSES["common-subexpressions"], graph, Context(TARGET)) is graph


@pytest.mark.parametrize(
    "one, other", [(1, 1.0), (1, True), (0.0, -0.0), ((1,), (1.0,)), (np.float32(1), np.float64(1)), ("1", 1)]
)
def test_attributes_are_told_apart(one, other):
    assert frozen({"a": one}) != frozen({"a": other})
    assert frozen({"a": one}) == frozen({"a": one})


def test_equal_attributes_are_the_same():
    assert frozen({"a": float("nan"), "b": [1, {"operand": 0}]}) == frozen({"b": [1, {"operand": 0}], "a": float("nan")})
    assert frozen(np.arange(3)) == frozen(np.arange(3)) != frozen(np.arange(3, dtype=np.int32))


def test_constant_folding():
    check(
        "constant-folding",
        """
        input %x : f32[4]
        %a = constant [1.0, 4.0, 9.0, 16.0] : f32[4]
        %b = sqrt(%a) : f32[4]
        %c = constant 2.0 : f32[]
        %d = mul(%b, %c) : f32[4]
        %y = add(%x, %d) : f32[4]
        output %y
        """,
        """
        input %x : f32[4]
        %d = constant [2.0, 4.0, 6.0, 8.0] : f32[4]
        %y = add(%x, %d) : f32[4]
        output %y
        """,
    )


def test_what_is_the_same_everywhere_is_one_number():
    check(
        "constant-folding",
        """
        input %x : bool[1000, 1000]
        %i = iota() {size = 1000} : i64[1000]
        %r = reshape(%i) {shape = (1000, 1)} : i64[1000, 1]
        %s = add(%i, %r) : i64[1000, 1000]
        %c = constant 0 : i64[]
        %g = ge(%s, %c) : bool[1000, 1000]
        %y = bitwise_xor(%x, %g) : bool[1000, 1000]
        output %y
        """,
        """
        input %x : bool[1000, 1000]
        %g_1 = constant true : bool[]
        %g = expand(%g_1) {shape = (1000, 1000)} : bool[1000, 1000]
        %y = bitwise_xor(%x, %g) : bool[1000, 1000]
        output %y
        """,
    )


def constant_bytes(graph: Graph) -> int:
    return sum(n.attributes["value"].nbytes for n in graph.nodes if n.op.name == "constant")


@pytest.mark.parametrize("size", [10**4, 10**12])
def test_folding_does_not_blow_up(size):
    b = Builder()
    one = b.expand(b.constant(1.5, f32), shape=(size,))
    many = [b.add(b.expand(b.constant(np.float32(k)), shape=(size,)), one) for k in range(5)]
    count = b.iota(size=size)
    graph = b.finish([b.add(b.concat(*many, axis=0), 1.0), b.add(count, count)])
    for name in ("constant-folding", "views", "constant-folding", "dead-code"):
        graph = run_pass(PASSES[name], graph, Context(TARGET))
    verify_graph(graph)
    assert constant_bytes(graph) < 100_000


def test_folding_keeps_weights_that_others_read():
    b = Builder()
    x = b.input("x", TensorType(f32, (64, 64)))
    weight = b.constant(np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32), name="weight")
    graph = b.finish([b.add(b.mul(x, weight), b.exp(weight))])
    assert run_pass(PASSES["constant-folding"], graph, Context(TARGET)) is graph


def test_folding_shares_the_memory_of_large_constants():
    b = Builder()
    x = b.input("x", TensorType(f32, (256, 512)))
    array = np.ones((512, 256), dtype=np.float32)
    weight = b.constant(array)
    graph = b.finish([b.add(x, b.reshape(weight, shape=(256, 512)))])
    folded = run_pass(PASSES["constant-folding"], graph, Context(TARGET))
    (constant,) = (n for n in folded.nodes if n.op.name == "constant")
    assert np.shares_memory(constant.attributes["value"], array)
    b = Builder()
    x = b.input("x", TensorType(f32, (256, 512)))
    transposed = b.finish([b.add(x, b.permute(b.constant(array), dims=(1, 0)))])
    assert run_pass(PASSES["constant-folding"], transposed, Context(TARGET)) is transposed


def test_many_small_folds_stay_within_the_budget():
    b = Builder()
    shared = b.constant(np.arange(100, dtype=np.float64))
    graph = b.finish([b.concat(*(b.add(shared, float(k)) for k in range(500)), axis=0)])
    assert constant_bytes(run_pass(PASSES["constant-folding"], graph, Context(TARGET))) <= 64 * 1024 + 800 + 500 * 8


def test_sizes_that_are_numbers_are_folded():
    b = Builder()
    x = b.input("x", TensorType(i64, (4,)))
    graph = b.finish([b.mul(x, b.dim(value=12))])
    folded = run_pass(PASSES["constant-folding"], graph, Context(TARGET))
    assert [n.op.name for n in folded.nodes] == ["constant", "mul"]


def test_decompose_keeps_places_and_names():
    b = Builder()
    x = b.input("x", TensorType(f32, (4, 8)))
    b.location = "model.py:12"
    graph = run_pass(PASSES["decompose"], b.finish([b.softmax(x, axis=1, name="weights")]), Context(TARGET))
    assert [n.name for n in graph.nodes] == ["weights.reduce_max", "weights.sub", "weights.exp", "weights.reduce_sum", "weights"]
    assert {n.location for n in graph.nodes} == {"model.py:12"}


def test_a_composite_that_is_its_operand_is_copied_where_it_is_a_result():
    check(
        "decompose",
        """
        input %x : f32[4]
        %y = clamp(%x) {low = none, high = none} : f32[4]
        output %y
        """,
        """
        input %x : f32[4]
        %y = cast(%x) {dtype = "f32"} : f32[4]
        output %y
        """,
    )


RESULTS_KEEP_THEIR_MEMORY = [
    ("simplify", "%y = mul(%x, %one) : f32[4]\noutput %y"),
    ("simplify", "%e = exp(%x) : f32[4]\n%y = mul(%e, %one) : f32[4]\noutput %e\noutput %y"),
    ("simplify", "%m = mul(%x, %one) : f32[4]\n%y = reshape(%m) {shape = (2, 2)} : f32[2, 2]\noutput %y"),
    ("views", '%y = cast(%x) {dtype = "f32"} : f32[4]\noutput %y'),
    ("views", "%a = concat(%x) {axis = 0} : f32[4]\n%y = neg(%a) : f32[4]\noutput %x\noutput %y\n"),
]


@pytest.mark.parametrize("name, body", RESULTS_KEEP_THEIR_MEMORY[:4])
def test_a_result_does_not_become_an_alias(name, body):
    text = f"graph g {{\ninput %x : f32[4]\n%one = constant 1.0 : f32[]\n{body}\n}}"
    graph = parse_graph(text)
    assert run_pass(PASSES[name], graph, Context(TARGET)) is graph


def test_only_results_are_held_back():
    name, body = RESULTS_KEEP_THEIR_MEMORY[4]
    graph = parse_graph(f"graph g {{\ninput %x : f32[4]\n{body}\n}}")
    assert [n.op.name for n in run_pass(PASSES[name], graph, Context(TARGET)).nodes] == ["neg"]


def test_levels_of_numerics_reach_the_passes():
    graph = parse_graph("graph g {\ninput %x : f32[4]\n%c = constant 3.0 : f32[]\n%y = div(%x, %c) : f32[4]\noutput %y\n}")
    assert run_pass(PASSES["replace-ops"], graph, Context(TARGET, DefaultOptions(numerics="eager"))) is graph
    assert run_pass(PASSES["replace-ops"], graph, Context(TARGET)) is not graph
