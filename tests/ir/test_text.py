"""Text: what is printed reads back to an equal object; what cannot be read says where and why."""

import math
import struct
import time
from dataclasses import replace

import numpy as np
import pytest
from dlcompiler.ir.errors import ParseError
from dlcompiler.ir.expression import floor_div, maximum, modulo, symbol
from dlcompiler.ir.graph import Builder, Event, Graph, Node
from dlcompiler.ir.kernel_builder import Refusal
from dlcompiler.ir.text import (
    graph_constants,
    graphs_equal,
    kernels_equal,
    parse_graph,
    parse_kernel,
    parse_program,
    print_graph,
    print_kernel,
    print_program,
    programs_equal,
)
from dlcompiler.ir.types import DTYPES, TensorType, bf16, c64, f16, f32, i32
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lowering import graph_kernel, graph_program
from tests.strategies import graphs

QUICK = settings(derandomize=True, deadline=None, max_examples=60)
N = symbol("N")

GRAPH = """graph main {
  input %x : f32[N, 768]   at "bert: modeling_bert.py:120"
  input %t : f32[768, 768] strides [1, 768]
  size %n : N
  %w = constant @w "sha256:3c530deb5b085ed7" : f32[768]
  %c = constant 1e-05 : f32[]
  %h.1 = layer_norm(%x, %w) {rank = 1, epsilon = 1e-05} : f32[N, 768]   at "bert/encoder.layer.0: modeling_bert.py:120"
  %r = reshape(%h.1) {shape = (2*N, 384)} : f32[2*N, 384]
  output %r strides [1, 2*N] as "hidden"
  output %h.1 as "last \\"state\\""
  writeback %h.1 -> %x
}
"""

KERNEL = """kernel softmax(x: f32[M, N] strides [1, M], out y: f32[M, N]) for i < M, j < N from "%softmax at bert.py:12" {
  v0 = load x[i, j] : f32
  v1 = reduce.max(v0) over j : f32
  v2 = sub(v0, v1) : f32
  v3 = exp(v2) : f32
  v4 = reduce.add(v3) over j : f32
  v5 = div(v3, v4) : f32
  store y[i, j] = v5
}
"""

PROGRAM = """program mlp {
  slot x : f32[8, 16] input 0
  slot w : f32[16, 16] strides [1, 16] constant 0
  slot h : f32[8, 16] intermediate at 0
  slot g : f32[8, 16] intermediate at 0 in h
  slot g~1 : f32[8, 4] output 0
  slot s : f32[8, 4] extern
  inputs (x, none)
  constants 1
  library matmul(x, w) -> (h) {scale = 0.5} from "%3 at mlp.py:4"
  launch double(h, g)
  launch double~1(g[8, 4] strides [16, 1] offset 4, g~1)
  aten aten.sort.default(g~1) -> (s, none) with ({operand = 0}, {dim = N}) because "no entry" from "a", "b"
  output g~1
  output x[4, 4] strides [16, 1] offset 3
  placement arena 512 lower_bound 512 eager_peak 1024 extern 128
  refused "%a and %b: \\"other\\" axis"
}

graph mlp {
  input %x : f32[8, 16]
  size %n : N
  output %x
}

kernel double(x: f32[8, 16], out y: f32[8, 16]) for i < 8, j < 16 {
  v0 = load x[i, j] : f32
  store y[i, j] = v0
}

kernel double~1(x: f32[8, 4] strides [16, 1], out y: f32[8, 4]) for i < 8, j < 4 {
  v0 = load x[i, j] : f32
  store y[i, j] = v0
}
"""


# -- round trips -------------------------------------------------------------------------------------------------------------


@QUICK
@given(case=graphs(writebacks=True))
def test_random_graphs_kernels_and_programs_read_back(case):
    graph = case.graph
    again = parse_graph(print_graph(graph), graph_constants(graph))
    assert graphs_equal(graph, again) is None
    program = graph_program(graph)
    read = parse_program(print_program(program), program.constants, graph_constants(graph))
    assert programs_equal(program, read) is None
    try:
        kernel, _ = graph_kernel(graph)
    except Refusal:
        return
    assert kernels_equal(kernel, parse_kernel(print_kernel(kernel))) is None


@settings(QUICK, max_examples=30)
@given(case=graphs(symbolic=True))
def test_random_graphs_with_sizes_given_late_read_back(case):
    program = graph_program(case.graph)
    read = parse_program(print_program(program), program.constants, graph_constants(case.graph))
    assert programs_equal(program, read) is None


def test_the_printed_form():
    graph = parse_graph(GRAPH, {"w": np.arange(768, dtype=np.float32)})
    assert print_graph(graph) == GRAPH
    assert print_kernel(parse_kernel(KERNEL)) == KERNEL
    assert print_program(parse_program(PROGRAM, [np.zeros((16, 16))])) == PROGRAM


def test_str_of_each_is_its_text():
    assert str(parse_kernel(KERNEL)) == KERNEL
    assert str(parse_graph("graph g { }")) == "graph g {\n}\n"
    assert str(parse_program(PROGRAM, allow_missing=True)) == PROGRAM


def test_history_is_printed_as_comments():
    graph = parse_graph("graph g { input %x : f32[] output %x }")
    graph = graph.replace(history=(Event("simplify", 41, 33, 0.0021, "add-zero ×3"),))
    assert "  # simplify: 41 → 33 ops, 2.1 ms; add-zero ×3\n" in print_graph(graph)
    assert parse_graph(print_graph(graph)).history == ()


def attributes() -> st.SearchStrategy:
    numbers = st.integers() | st.floats() | st.booleans() | st.none() | st.complex_numbers(allow_nan=False)
    dims = st.sampled_from([N, 2 * N + 1, floor_div(N, 3) * 2, modulo(N - 1, 4), maximum(N, symbol("a.b")), N * symbol("s0") - 7])
    return st.recursive(
        numbers | st.text() | dims,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
            | st.dictionaries(st.text(max_size=5), inner, max_size=3)
        ),
        max_leaves=6,
    )


@settings(QUICK, max_examples=150)
@given(st.dictionaries(st.text(max_size=6), attributes(), max_size=4), st.text(min_size=1), st.text())
def test_any_attribute_name_and_location_reads_back(attributes, name, location):
    builder = Builder(name)
    x = builder.input("x", TensorType(f32, (N,)))
    node = Node(builder.neg(x).op, (x,), attributes, x.type, name if name != "x" else "y", location)
    graph = Graph(name, (x,), (node,), (node, x), ((node, x),), output_names=(name, location))
    again = parse_graph(print_graph(graph))
    assert graphs_equal(graph, again) is None
    assert graphs_equal(again, graph) is None


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_bit_pattern_of_a_constant_reads_back(dtype):
    random = np.random.default_rng(0)
    if dtype.kind == "bool":
        values = np.array([True, False])
    else:
        bits = random.integers(0, 256, (200, dtype.bytes), dtype=np.uint8)
        bits[0], bits[1] = 0, 255
        values = bits.reshape(-1).view(dtype.numpy)
    for start in range(0, len(values), 16):
        builder = Builder()
        graph = builder.finish([builder.constant(values[start : start + 16])])
        text = print_graph(graph)
        assert "@" not in text
        assert graphs_equal(graph, parse_graph(text)) is None


@pytest.mark.parametrize(
    ("dtype", "value", "text"),
    [
        (f32, 0.1, "0.1"),
        (f16, 0.1, "0.1"),
        (bf16, 0.1, "0.100098"),
        (f32, -0.0, "-0.0"),
        (f32, math.nan, "nan"),
        (f32, -math.inf, "-inf"),
        (f32, struct.unpack("f", struct.pack("I", 0xFFC00001))[0], "0xffc00001"),
        (i32, -7, "-7"),
        (c64, 1 - 2j, "(1.0, -2.0)"),
    ],
)
def test_constants_are_short(dtype, value, text):
    builder = Builder()
    if text.startswith("0x"):
        array = np.frombuffer(struct.pack("I", int(text, 16)), np.float32).reshape(())
    else:
        array = np.asarray(value).astype(dtype.numpy)
    assert f"constant {text} : {dtype}[]" in print_graph(builder.finish([builder.constant(array)]))


# -- constants kept beside the text --------------------------------------------------------------------------------------------


def graph_with_weight() -> Graph:
    builder = Builder()
    return builder.finish([builder.neg(builder.constant(np.arange(20, dtype=np.float32), name="my weight"))])


def test_large_constants_are_kept_beside_the_text():
    graph = graph_with_weight()
    data = graph_constants(graph)
    assert list(data) == ["my_weight"] and data["my_weight"] is graph.nodes[0].attributes["value"]
    text = print_graph(graph)
    assert 'constant @my_weight "sha256:' in text
    assert graphs_equal(graph, parse_graph(text, data)) is None
    with pytest.raises(ParseError, match="data of constant @my_weight is missing") as error:
        parse_graph(text)
    assert error.value.line == 2
    zeros = parse_graph(text, allow_missing=True).nodes[0].attributes["value"]
    assert zeros.shape == (20,) and zeros.strides == (0,) and not zeros.any()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.arange(20, dtype=np.float64), r"is float64\[20\], not f32\[20\]"),
        (np.arange(21, dtype=np.float32), r"is float32\[21\], not f32\[20\]"),
        (np.arange(1, 21, dtype=np.float32), "another checksum"),
    ],
)
def test_wrong_data_for_a_constant(array, message):
    with pytest.raises(ParseError, match=message):
        parse_graph(print_graph(graph_with_weight()), {"my_weight": array})


def test_without_digests_contents_are_not_checked():
    text = print_graph(graph_with_weight(), digests=False)
    assert "sha256" not in text
    parse_graph(text, {"my_weight": np.zeros(20, np.float32)})


# -- differences ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "difference"),
    [
        ("graph main", "graph other", "called 'main'"),
        ("%c = constant 1e-05", "%c = constant 2e-05", "attribute value of %c differs"),
        ("epsilon = 1e-05", "epsilon = 1e-06", "attribute epsilon of %h.1 differs"),
        ("rank = 1", "rank = 1.0", "attribute rank of %h.1 differs"),
        ("layer_norm", "rms_norm", "is layer_norm in one and rms_norm"),
        ("%c = constant 1e-05 : f32[]", "%d = constant 1e-05 : f32[]", "%c and %d stand at one place"),
        ("layer_norm(%x, %w)", "layer_norm(%x, %x)", "%h.1 has other operands"),
        ("modeling_bert.py:120", "modeling_bert.py:121", "comes from"),
        ("(2*N, 384)} : f32[2*N, 384]", "(2*N, 384)} : f32[N, 384]", "is f32[2*N"),
        ("output %r strides", "output %h.1 strides", "output 0 is %r"),
        ("strides [1, 2*N]", "strides [384, 1]", "output strides"),
        ('as "hidden"', 'as "other"', "output names"),
        ("  writeback %h.1 -> %x\n", "", "1 writebacks, the other 0"),
    ],
)  # fmt: skip
def test_the_first_difference_of_graphs(old, new, difference):
    constants = {"w": np.arange(768, dtype=np.float32)}
    assert old in GRAPH
    found = graphs_equal(parse_graph(GRAPH, constants), parse_graph(GRAPH.replace(old, new), constants))
    assert found is not None and difference in found


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("softmax(x", "other(x"),
        ("strides [1, M]", ""),
        ("reduce.max", "reduce.min"),
        ("y[i, j] =", "y[j, i] ="),
        ("sub(v0, v1)", "sub(v1, v0)"),
    ],
)
def test_different_kernels(old, new):
    assert old in KERNEL
    assert kernels_equal(parse_kernel(KERNEL), parse_kernel(KERNEL.replace(old, new))) is not None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("program mlp", "program other"),
        ("at 0 in h", "at 0"),
        ("intermediate at 0\n", "intermediate at 64\n"),
        ("eager_peak 1024", "eager_peak 1"),
        ("scale = 0.5", "scale = 0.25"),
        ("double(h, g)", "double(x, g)"),
        ("offset 4", "offset 5"),
        ("(s, none)", "(s)"),
        ("no entry", "an entry"),
        ("{operand = 0}", "{operand = 1}"),
        ("output g~1\n", "output x\n"),
        ("%a and %b", "%a or %b"),
        ("strides [1, 16] constant", "constant"),
    ],
)
def test_different_programs(old, new):
    assert old in PROGRAM
    same, other = (parse_program(text, allow_missing=True) for text in (PROGRAM, PROGRAM.replace(old, new)))
    assert programs_equal(same, parse_program(PROGRAM, allow_missing=True)) is None
    assert programs_equal(same, other) is not None


# -- errors --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "column", "message"),
    [
        ("", 1, 1, "expected 'graph', found the end of the text"),
        ("graph g {\n  input %x : f32[2]\n  output %y\n}", 3, 10, "%y is not defined above"),
        ("graph g {\n  input %x : f33[2]\n}", 2, 14, "'f33' is not an element type"),
        ("graph g {\n  input %x : f32[2]\n  %y = rellu(%x) : f32[2]\n}", 3, 8, "did you mean relu"),
        ("graph g {\n  input %x : f32[2]\n  input %x : f32[2]\n}", 3, 9, "%x is defined twice"),
        ("graph g {\n  input %x : f32[2]\n  %y = neg(%x : f32[2]\n}", 3, 15, "expected ',', found ':'"),
        ("graph g {\n  input %x : f32[N +]\n}", 2, 21, "expected a size, found ']'"),
        ("graph g {\n  input %x : f32[pow(N, 2)]\n}", 2, 18, "'pow' is not an operation on sizes"),
        ("graph g {\n  input %x : f32[div(N, 0)]\n}", 2, 18, "a divisor is positive"),
        ("graph g {\n  input %x : f32[none]\n}", 2, 18, "'none' is not a size"),
        ("graph g {\n  input %x : f32[1.5]\n}", 2, 18, "expected an integer"),
        ("graph g {\n  %c = constant [1, 2] : f32[3]\n}", 2, 17, "f32[3] has 3 elements, not 2"),
        ("graph g {\n  %c = constant 300 : u8[]\n}", 2, 17, "300 does not fit u8"),
        ("graph g {\n  %c = constant 1.5 : i32[]\n}", 2, 17, "expected an integer"),
        ("graph g {\n  %c = constant 0x1ffff : f16[]\n}", 2, 17, "more bits than float16"),
        ("graph g {\n  input %x : f32[2]\n  %y = neg(%x) {a = 1, a = 2} : f32[2]\n}", 3, 24, "'a' is given twice"),
        ("graph g {\n  input %x : f32[2] at 5\n}", 2, 24, "expected a string"),
        ("graph g {\n  input %x : f32[2]\n  writeback %x -> %n\n}", 3, 19, "%n is not defined above"),
        ("graph g {\n  size %n : N\n  writeback %n -> %n\n}", 3, 19, "%n is not a tensor input"),
        ('graph g {\n  input %x : f32[2]\n  output %x as "a"\n  output %x\n}', 5, 1, "every output has a name or none has"),
        ("graph g { } graph h { }", 1, 13, "expected the end of the text, found 'graph'"),
        ("graph g {\n  input %x : f32[2] ; \n}", 2, 21, "found ';'"),
        ("graph g {\n  nonsense\n}", 2, 3, "expected '%value =', input, size, output, writeback or '}', found 'nonsense'"),
        ('graph "a\\q" { }', 1, 7, "bad string"),
    ],
)
def test_graph_text_errors(text, line, column, message):
    with pytest.raises(ParseError) as error:
        parse_graph(text)
    assert (error.value.line, error.value.column) == (line, column), error.value
    shown = str(error.value)
    assert message in shown
    source = text.splitlines()[line - 1] if text else ""
    if source:  # the line itself, and a caret under the column
        assert shown.endswith(f"\n  {source}\n  {' ' * (column - 1)}^")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("exp(v2)", "expp(v2)", "there is no scalar operation 'expp'"),
        ("reduce.max", "reduce.most", "there is no reduction 'most'"),
        ("over j : f32\n  v2", "over k : f32\n  v2", "there is no axis 'k'"),
        ("sub(v0, v1)", "sub(v0, v9)", "v9 is not defined above"),
        ("load x[", "load z[", "there is no buffer 'z'"),
        ("j < N from", "i < N from", "axis 'i' is defined twice"),
        ("out y:", "out x:", "buffer 'x' is defined twice"),
        ("v1 = reduce", "v0 = reduce", "v0 is defined twice"),
        ("reduce.max(v0)", "reduce.max(v0, v0)", "a reduction has one operand"),
        ("load x[i, j]", "load x[i, j] if 1 <= i < M", "a bound begins '0 <='"),
    ],
)
def test_kernel_text_errors(old, new, message):
    assert old in KERNEL
    with pytest.raises(ParseError, match="line") as error:
        parse_kernel(KERNEL.replace(old, new))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("launch double(h", "launch triple(h", "there is no kernel 'triple'"),
        ("inputs (x", "inputs (z", "there is no slot 'z' above"),
        ("slot g~1", "slot g", "slot 'g' is defined twice"),
        ("input 0", "somewhere 0", "expected input or output or constant or intermediate or extern"),
        ("kernel double~1", "kernel double", "kernel 'double' is defined twice"),
        ("  output x[4", "  result x[4", "found 'result'"),
    ],
)
def test_program_text_errors(old, new, message):
    assert old in PROGRAM
    with pytest.raises(ParseError, match="line") as error:
        parse_program(PROGRAM.replace(old, new, 1), allow_missing=True)
    assert message in str(error.value)


def test_program_constants_must_be_given():
    with pytest.raises(ParseError, match="the data of 1 constants is missing"):
        parse_program(PROGRAM)
    with pytest.raises(ParseError, match="the program has 1 constants, not 2"):
        parse_program(PROGRAM, [1, 2])


@settings(QUICK, max_examples=150)
@given(st.data())
def test_damaged_text_is_read_or_refused_in_one_way(data):
    """Whatever is cut out of or put into a text, reading it gives a graph or a ParseError."""
    text = data.draw(st.sampled_from([GRAPH, GRAPH.replace("768", "2")]))
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(start + 20, len(text))))
    inserted = data.draw(st.sampled_from(["", "%", '"', "[", "}", "1.5", "nan", "-", "@", "%x", "\\", "(", "0x", "~3", "é"]))
    try:
        parse_graph(text[:start] + inserted + text[end:], allow_missing=True)
    except ParseError as error:
        assert error.line >= 1 and error.column >= 1


# -- size ----------------------------------------------------------------------------------------------------------------------


def test_time_grows_with_the_length_of_the_text():
    def seconds(count: int) -> float:
        builder = Builder(location="model.py:1")
        node = builder.input("x", TensorType(f32, (N, 8)))
        for _ in range(count):
            node = builder.softmax(node, axis=1)
        graph = builder.finish([node])
        start = time.perf_counter()
        again = parse_graph(print_graph(graph))
        elapsed = time.perf_counter() - start
        assert len(again.nodes) == count
        return elapsed

    small = min(seconds(1000) for _ in range(3))
    assert seconds(20_000) < max(20 * small * 4, 1.0)


def test_copies_that_differ_only_in_identity_are_equal():
    graph = parse_graph(GRAPH, {"w": np.arange(768, dtype=np.float32)})
    copies: dict[Node, Node] = {}
    for node in (*graph.inputs, *graph.nodes):
        copies[node] = replace(node, inputs=tuple(copies[i] for i in node.inputs), attributes=dict(node.attributes))
    again = graph.replace(
        inputs=tuple(copies[n] for n in graph.inputs),
        nodes=tuple(copies[n] for n in graph.nodes),
        outputs=tuple(copies[n] for n in graph.outputs),
        writebacks=tuple((copies[a], copies[b]) for a, b in graph.writebacks),
    )
    assert graphs_equal(graph, again) is None
