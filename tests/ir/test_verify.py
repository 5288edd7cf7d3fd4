"""Verifiers take what is right and name what is wrong, with the lines around it."""

import time
from dataclasses import replace

import numpy as np
import pytest
from dlcompiler.ir.errors import VerifyError
from dlcompiler.ir.expression import is_size_name, size_name, symbol
from dlcompiler.ir.graph import Builder
from dlcompiler.ir.ops import lookup
from dlcompiler.ir.text import parse_graph, parse_kernel, parse_program
from dlcompiler.ir.types import TensorType, f16, f32
from dlcompiler.ir.verify import verify_graph, verify_kernel, verify_program
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lowering import graph_program
from tests.strategies import graphs

QUICK = settings(derandomize=True, deadline=None, max_examples=60)

GRAPH = """graph g {
  input %x : f32[N, 4]
  input %y : f32[N, 4]
  %a = add(%x, %y) : f32[N, 4]   at "model.py:3"
  %s = softmax(%a) {axis = 1} : f32[N, 4]
  %m = reduce_sum(%s) {axes = (1,), keepdims = false} : f32[N]
  %c = constant 2.0 : f32[]
  %d = mul(%m, %c) : f32[N]
  output %d
  output %s strides [1, N]
  writeback %a -> %x
}"""


def fault(check, thing) -> str:
    with pytest.raises(VerifyError) as error:
        check(thing)
    return str(error.value)


# -- graphs ------------------------------------------------------------------------------------------------------------------


def test_a_right_graph():
    verify_graph(parse_graph(GRAPH))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("%a = add(%x, %y) : f32[N, 4]", "%a = add(%x, %y) : f16[N, 4]", "%a: the type is f16[N, 4], the op gives f32[N, 4]"),
        ("f32[N]\n  %c", "f32[N, 1]\n  %c", "%m: the type is f32[N, 1], the op gives f32[N]"),
        ("axes = (1,), ", "", "%m: the attribute 'axes' is missing"),
        ("axes = (1,)", "axes = (2,)", "%m: reduce_sum: (2,) are not distinct axes"),
        ("{axis = 1}", '{axis = "one"}', "%s: the type rule does not take these operands and attributes"),
        ("add(%x, %y)", "add(%x)", "%a: add takes 2 operands, not 1"),
        ("constant 2.0 : f32[]", "constant 2.0 : f64[]", "%d: mul needs operands of one dtype"),
        ("input %y : f32[N, 4]", "input %y : f32[M, 4]", "%a: shapes [N, 4], [M, 4] do not broadcast"),
        ("f32[N, 4]\n  input %y : f32[N, 4]", "f32[2*N, 4]\n  input %y : f32[2*N, 4]", "no input binds the size 'N'"),
        ("strides [1, N]", "strides [1]", "output %s has strides [1]"),
        ("writeback %a -> %x", "writeback %d -> %x", "writeback of f32[N] into f32[N, 4]"),
        ("writeback %a -> %x", "writeback %a -> %x writeback %s -> %x", "two writebacks into %x"),
    ],
)  # fmt: skip
def test_a_wrong_graph(old, new, message):
    assert old in GRAPH
    assert message in fault(verify_graph, parse_graph(GRAPH.replace(old, new)))


def test_the_lines_around_the_fault_are_shown():
    text = "graph g { input %x : f32[4] " + " ".join(f"%v{k} = neg(%{f'v{k - 1}' if k else 'x'}) : f32[4]" for k in range(30))
    graph = parse_graph(text.replace("%v20 = neg(%v19) : f32[4]", '%v20 = neg(%v19) : f32[5] at "m.py:7"') + " output %v29 }")
    message = fault(verify_graph, graph)
    lines = message.splitlines()
    assert lines[0] == "graph g: %v20: the type is f32[5], the op gives f32[4]"
    assert len(lines) == 11 and lines[6].startswith("> %v20 = neg(%v19) : f32[5]") and "(at m.py:7)" in lines[-1]
    assert lines[1].strip() == "%v15 = neg(%v14) : f32[4]"


def test_order_names_and_foreign_nodes():
    graph = parse_graph(GRAPH)
    nodes = graph.nodes
    assert "operand %a is not defined above" in fault(verify_graph, graph.replace(nodes=(nodes[1], nodes[0], *nodes[2:])))
    twice = replace(nodes[1], name="a")
    assert "the name %a is taken" in fault(verify_graph, graph.replace(nodes=(nodes[0], twice)))
    assert "output %s is not in the graph" in fault(verify_graph, graph.replace(nodes=nodes[:1], outputs=(nodes[1],)))
    assert "not one of its inputs" in fault(verify_graph, graph.replace(writebacks=((nodes[0], nodes[0]),)))
    assert "among the inputs" in fault(verify_graph, graph.replace(inputs=(*graph.inputs, nodes[3]), nodes=()))
    assert "another number of outputs" in fault(verify_graph, graph.replace(output_names=("a",)))


def test_attributes_are_plain_data_and_types_are_types():
    builder = Builder()
    x = builder.input("x", TensorType(f32, (4,)))
    for node, message in (
        (builder.make(lookup("neg"), (x,), {"a": {1, 2}}, x.type), "attribute a is not plain data: {1, 2}"),
        (builder.make(lookup("neg"), (x,), {"a": np.zeros(2)}, x.type), "attribute a is not plain data"),
        (builder.make(lookup("neg"), (x,), {"a": [{"b": object()}]}, x.type), "attribute a is not plain data"),
        (builder.make(lookup("neg"), (x,), {}, "f32[4]"), "the type is a str"),
        (builder.make(lookup("neg"), (x,), {}, TensorType(f32, (-4,))), "-4 is not a size"),
        (builder.make(lookup("neg"), (x,), {}, TensorType(f32, (4.0,))), "4.0 is not a size"),
        (builder.make(replace(lookup("neg"), name="other"), (x,), {}, x.type), "other is not in the op table"),
    ):
        graph = Builder().finish([])
        assert message in fault(verify_graph, graph.replace(inputs=(x,), nodes=(node,)))


def test_a_tuple_is_no_output():
    graph = parse_graph("""graph g {
      input %x : f32[4]
      %c = aten.call(%x) {target = "t", arguments = ()} : (f32[u0], none)
      %v = tuple.get(%c) {index = 0} : f32[u0]
      output %v
    }""")
    verify_graph(graph)  # a size that only the call knows is bound by it
    assert "output %c is not a tensor" in fault(verify_graph, graph.replace(outputs=(graph.nodes[0],)))


@pytest.mark.parametrize("name", ["N", "s0", "u1", "batch", "seq_len", "M2", "x", "a.b"])
def test_names_that_sizes_may_have(name):
    assert is_size_name(name) and size_name(name) == name
    verify_graph(parse_graph(f"graph g {{ input %x : f32[{name}] output %x }}"))


@pytest.mark.parametrize("name", ["i", "j2", "n", "none", "nan"])
def test_names_that_axes_or_words_have(name):
    builder = Builder()
    graph = builder.finish([builder.input("x", TensorType(f32, (symbol(name),)))])
    assert f"a size cannot be called {name!r}" in fault(verify_graph, graph)
    assert size_name(name) == f"{name}_"


@given(st.text())
@QUICK
def test_any_text_becomes_a_name_of_a_size(text):
    assert is_size_name(size_name(text))


@given(graphs(writebacks=True))
@QUICK
def test_random_graphs_are_right_and_a_changed_type_is_found(case):
    graph = case.graph
    verify_graph(graph)
    for position, node in enumerate(graph.nodes):
        wrong = replace(node, type=node.type.with_dtype(f16 if node.dtype is f32 else f32))
        assert f"%{node.name}: the type is" in fault(verify_graph, graph.replace(nodes=(*graph.nodes[:position], wrong)))


def test_verifying_again_costs_little():
    builder = Builder()
    node = builder.input("x", TensorType(f32, (symbol("N"), 8)))
    for _ in range(1000):
        node = builder.layer_norm(builder.add(node, 1.0), rank=1, epsilon=1e-5)
    graph = builder.finish([node])
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        verify_graph(graph)
        seconds.append(time.perf_counter() - start)
    # a millisecond for ten nodes at first, a tenth of it later
    assert seconds[0] < 0.3 * 5 and min(seconds[1:]) < 0.03 * 5


# -- kernels -----------------------------------------------------------------------------------------------------------------

KERNEL = """kernel k(x: f32[M, N], p: i64[M], out y: f32[M, N], out h: f16[M]) for i < M, j < N {
  v0 = load x[i, j] : f32
  v1 = reduce.max(v0) over j : f32
  v2 = sub(v0, v1) : f32
  v3 = load p[i] : i64
  v4 = load x[@0, j] using (v3) if 0 <= i - 1 < M : f32
  v5 = within 0 <= i - 1 < M : bool
  v6 = where(v5, v4, v2) : f32
  v7 = cast(v1) : f16
  store y[i, j] = v6
  store h[i] = v7
}"""


def test_a_right_kernel():
    verify_kernel(parse_kernel(KERNEL))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("v0 = load x[i, j] : f32", "v0 = load x[i] : f32", "x has 2 dimensions, not 1"),
        ("v0 = load x[i, j] : f32", "v0 = load x[i, j] : f64", "a load from f32 gives no f64"),
        ("x[@0, j] using (v3)", "x[@1, j] using (v3)", "indirect indices ['@1'] are used, ['@0'] are given"),
        ("x[@0, j] using (v3)", "x[i, j] using (v3)", "indirect indices [] are used"),
        ("v3 = load p[i] : i64", "v3 = load p[i] : i64 v9 = cast(v3) : i32", None),
        ("if 0 <= i - 1 < M", "if 0 <= @0 < M", "an indirect index does not decide what is read"),
        ("p: i64[M]", "p: f32[M]", "a load from f32 gives no i64"),
        ("sub(v0, v1) : f32", "sub(v0, v1) : f32 v9 = load p[0] : i64 v8 = sub(v2, v9) : f32", None),
        ("where(v5, v4, v2)", "where(v5, v4, v3)", "where of f32, i64"),
        ("sub(v0, v1) : f32", "sub(v0, v1) : f64", "sub gives f32, not f64"),
        ("sub(v0, v1) : f32", "sub(v0) : f32", "sub takes 2 operands, not 1"),
        ("where(v5, v4, v2)", "where(v4, v4, v2)", "the condition of where is a bool"),
        ("reduce.max(v0) over j : f32", "reduce.and(v0) over j : f32", "reduce.and does not take f32"),
        ("reduce.max(v0) over j : f32", "reduce.argmax(v0) over j : f32", "reduce.argmax gives i64, not f32"),
        ("reduce.max(v0) over j : f32", "reduce.max(v0) over j, j : f32", "cannot reduce over j, j"),
        ("reduce.max(v0) over j : f32", "reduce.max(v0) over : f32", "a reduction over nothing"),
        ("v7 = cast(v1) : f16", "v9 = cast(v1) : f16 v7 = neg(v9) : f16", "f16 is computed in f32"),
        ("within 0 <= i - 1 < M : bool", "within 0 <= i - 1 < M : i64", "a within is a bool"),
        ("within 0 <= i - 1 < M : bool", "within 0 <= @0 < M : bool", "only a load has indirect indices"),
        ("store y[i, j] = v6", "store y[i, 0] = v6", "the value depends on j"),
        ("store y[i, j] = v6", "store x[i, j] = v6", "x is not an out buffer"),
        ("store y[i, j] = v6", "store y[i] = v6", "y has 2 dimensions, not 1"),
        ("store y[i, j] = v6", "", "nothing is stored to y"),
        ("store h[i] = v7", "store h[i] = v1", "a store of f32 into f16"),
        ("j < N", "j < N*i", "the extent of j depends on an axis"),
        ("out y: f32[M, N]", "out y: f32[M, i]", "the shape or the strides of y are not sizes"),
    ],
)
def test_a_wrong_kernel(old, new, message):
    assert old in KERNEL
    kernel = parse_kernel(KERNEL.replace(old, new))
    if message is None:
        verify_kernel(kernel)
        return
    shown = fault(verify_kernel, kernel)
    assert message in shown.splitlines()[0]
    if new and not message.startswith("nothing"):
        assert any(line.startswith("> ") for line in shown.splitlines()[1:])


def test_a_buffer_of_another_kernel():
    kernel = parse_kernel(KERNEL)
    without = kernel.replace(buffers=(kernel.buffers[0], *kernel.buffers[2:]))
    assert "p is not a buffer of the kernel" in fault(verify_kernel, without)


# -- programs ----------------------------------------------------------------------------------------------------------------

PROGRAM = """program p {
  slot x : f32[4] input 0
  slot w : f32[4] constant 0
  slot a : f32[4] intermediate at 0
  slot b : f32[4] intermediate at 0 in a
  slot c : f32[4] intermediate at 16
  slot e : f32[4] extern
  slot y : f32[4] output 0
  inputs (x)
  constants 1
  launch double(x, a)
  launch double(a, b)
  launch sum(b, w, c)
  aten aten.sort.default(c) -> (e, none) with ({operand = 0})
  launch sum(c, e, y)
  output y
  output e[2] offset 1
  placement arena 32 lower_bound 32 eager_peak 32 extern 16
}
graph g { input %x : f32[4] output %x }
kernel double(x: f32[4], out y: f32[4]) for i < 4 { v0 = load x[i] : f32 v1 = add(v0, v0) : f32 store y[i] = v1 }
kernel sum(x: f32[4], z: f32[4], out y: f32[4]) for i < 4 {
  v0 = load x[i] : f32 v1 = load z[i] : f32 v2 = add(v0, v1) : f32 store y[i] = v2
}
"""


def test_a_right_program():
    verify_program(parse_program(PROGRAM, allow_missing=True))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  launch double(x, a)\n", "", "step 0 reads a before it is written"),
        ("launch sum(c, e, y)", "launch sum(c, e, c)", "output y is never written"),
        ("launch double(x, a)", "launch double(x, w)", "constant w is written"),
        ("launch double(x, a)", "launch double(x, e)", "extern e: f32[4] is written by a Launch"),
        ("-> (e, none)", "-> (c, none)", "intermediate c: f32[4] is written by a AtenCall"),
        ("launch double(x, a)", "launch double(x)", "double has 2 buffers, not 1"),
        ("launch double(x, a)", "launch double(x[4] strides [0], a)", "buffer x is f32[4] with strides [1]"),
        ("launch double(x, a)", "launch double(x[4] offset 1, a)", "a view of x ends at element 5 of 4"),
        ("slot c : f32[4] intermediate at 16", "slot c : f32[4] intermediate at 8", "c and a are alive at step 2 and overlap"),
        ("slot c : f32[4] intermediate at 16", "slot c : f32[4] intermediate at 20", "c at [20, 36) is outside the arena of 32"),
        ("slot c : f32[4] intermediate at 16", "slot c : f32[4] intermediate", "c has 0 places in the arena"),
        ("intermediate at 0 in a", "intermediate at 16 in a", "a has 2 places in the arena"),
        ("intermediate at 0 in a", "intermediate at 0", "b and a are alive at step 1 and overlap"),
        ("launch sum(b, w, c)", "launch sum(b, a, c)", "b takes over a, which is still needed later"),
        ("output y\n", "output c\n", "output c lies in the arena"),
        ("constant 0", "constant 1", "constant w has position 1 of 1"),
        ("inputs (x)", "inputs (none)", "input 0 is None"),
        ("inputs (x)", "inputs ()", "0 inputs for a graph with 1"),
        ("v0 = load x[i] : f32 v1 = add", "v0 = load x[i] : f32 v2 = load x[3 - i] : f32 v1 = add", None),
        ("add(v0, v0) : f32 store y[i]", "add(v0, v0) : f32 store y[3 - i]", "x and y share memory but not the order"),
        ("v1 = load z[i] : f32", "v1 = load z[i] : f64", "a load from f32 gives no f64"),
    ],
)
def test_a_wrong_program(old, new, message):
    assert old in PROGRAM
    program = parse_program(PROGRAM.replace(old, new), allow_missing=True)
    if message is None:  # a value that nothing stores is not part of the kernel
        verify_program(program)
        return
    assert message in fault(verify_program, program)


def test_a_library_call_does_not_work_in_place():
    text = PROGRAM.replace("launch double(a, b)", "library matmul(a, a) -> (b)")
    assert "b is read and written by one call" in fault(verify_program, parse_program(text, allow_missing=True))
    text = PROGRAM.replace("launch double(x, a)", "library matmull(x, x) -> (a)")
    assert "matmull is not in the op table" in fault(verify_program, parse_program(text, allow_missing=True))


def test_steps_around_the_fault_are_shown():
    message = fault(verify_program, parse_program(PROGRAM.replace("at 16", "at 8"), allow_missing=True))
    assert "> 2: launch sum(b, w, c)" in message and "  1: launch double(a, b)" in message


@given(graphs(), st.integers(0, 1 << 30))
@QUICK
def test_moving_an_intermediate_onto_another_is_found(case, seed):
    program = graph_program(case.graph)
    verify_program(program)
    place = program.placement
    random = np.random.default_rng(seed)
    alive = [(s, span) for s, span in program.lifetimes.items() if s.bytes > 0]
    pairs = [(a, b) for a, (f, l) in alive for b, (g, m) in alive if a is not b and f <= m and g <= l and a.bytes <= b.bytes]
    if not pairs:
        return
    a, b = pairs[random.integers(len(pairs))]
    wrong = replace(place, offsets={**place.offsets, a: place.offsets[b]})
    assert "overlap" in fault(verify_program, program.replace(placement=wrong))
