"""The interpreters agree with each other on random graphs, and do what they say on the small."""

import weakref

import numpy as np
import pytest
from dlcompiler.ir import interpret
from dlcompiler.ir.errors import InputError, UnsupportedError, VerifyError
from dlcompiler.ir.expression import symbol
from dlcompiler.ir.graph import Builder
from dlcompiler.ir.interpret import interpret_graph, interpret_kernel, interpret_program
from dlcompiler.ir.kernel_builder import Refusal
from dlcompiler.ir.text import parse_graph, parse_kernel, parse_program
from dlcompiler.ir.types import TensorType, f32, i64
from dlcompiler.ir.verify import verify_graph, verify_kernel, verify_program
from hypothesis import given, settings

from tests.lowering import graph_kernel, graph_program, run_as_kernel
from tests.strategies import Case, graphs

QUICK = settings(derandomize=True, deadline=None, max_examples=120)


def check_kernel(case: Case) -> None:
    verify_graph(case.graph)
    try:
        kernel, _ = graph_kernel(case.graph)
    except Refusal:  # a pad or concat read where data says
        return
    verify_kernel(kernel)
    outputs = len(case.graph.outputs)
    Case(case.graph, case.inputs, case.tolerances[:outputs]).check(
        run_as_kernel(case.graph, case.inputs), case.expected()[:outputs]
    )


@QUICK
@given(case=graphs())
def test_one_kernel_agrees_with_the_graph(case):
    check_kernel(case)


@QUICK
@given(case=graphs(special=True, families=("pointwise", "reduction", "composite", "view")))
def test_one_kernel_agrees_on_nan_and_infinity(case):
    check_kernel(case)


@QUICK
@given(case=graphs(symbolic=True))
def test_one_kernel_agrees_with_sizes_given_late(case):
    check_kernel(case)


@QUICK
@given(case=graphs())
def test_program_agrees_with_the_graph(case):
    program = graph_program(case.graph)
    verify_program(program)
    case.check(interpret_program(program, case.inputs))


@settings(QUICK, max_examples=40)
@given(case=graphs(symbolic=True))
def test_program_agrees_with_sizes_given_late(case):
    program = graph_program(case.graph)
    verify_program(program)
    case.check(interpret_program(program, case.inputs))


# -- graphs ------------------------------------------------------------------------------------------------------------------


def test_outputs_then_written_back_values():
    text = """graph g {
      input %x : f32[N, 2]
      size %n : N
      %y = add(%x, %x) : f32[N, 2]
      %d = dim() {value = 2*N + 1} : i64[]
      output %n
      output %d
      output %y
      output %y
      writeback %y -> %x
    }"""
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    n, d, *ys = interpret_graph(parse_graph(text), [x, 3])
    assert (n, d) == (3, 7) and n.dtype == np.int64
    assert all(np.array_equal(y, 2 * x) for y in ys) and len(ys) == 3


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([np.zeros((3, 4), np.float32)], "takes 2 inputs, not 1"),
        ([np.zeros((3, 5), np.float32), np.zeros(3, np.float32)], "input %x is f32[N, 4]"),
        ([np.zeros((3, 4), np.float64), np.zeros(3, np.float32)], "not float64[3, 4]"),
        ([np.zeros((3, 4), np.float32), np.zeros(2, np.float32)], "expected shape [3]"),
    ],
)
def test_inputs_that_do_not_fit(inputs, message):
    graph = parse_graph("graph g { input %x : f32[N, 4] input %y : f32[N] output %x }")
    with pytest.raises(InputError, match="input") as error:
        interpret_graph(graph, inputs)
    assert message in str(error.value)


def test_size_that_no_input_binds():
    graph = parse_graph("graph g { input %x : f32[2*N] output %x }")
    with pytest.raises(InputError, match="no input binds the size 'N'"):
        interpret_graph(graph, [np.zeros(4, np.float32)])


def test_aten_call_needs_a_hook():
    graph = parse_graph("""graph g {
      input %x : f32[N]
      %c = aten.call(%x) {target = "aten.sort.default", arguments = ({operand = 0}, {dim = N})} : (f32[N], i64[N])   at "m.py:3"
      %v = tuple.get(%c) {index = 0} : f32[N]
      output %v
    }""")
    x = np.array([3, 1, 2], np.float32)
    with pytest.raises(UnsupportedError, match=r"aten.sort.default.*m\.py:3"):
        interpret_graph(graph, [x])

    def call(target, arguments, operands):
        assert target == "aten.sort.default" and arguments == ({"operand": 0}, {"dim": 3})
        return np.sort(operands[0]), np.argsort(operands[0])

    (result,) = interpret_graph(graph, [x], call=call)
    assert result.tolist() == [1, 2, 3]


def test_values_are_dropped_after_their_last_use(monkeypatch):
    """A chain of 50 nodes holds two values at a time."""
    builder = Builder()
    node = builder.input("x", TensorType(f32, (4,)))
    for _ in range(50):
        node = builder.neg(node)
    alive: list[weakref.ref] = []
    most = 0

    def watched(op, operands, attributes, call=None):
        nonlocal most
        result = np.negative(operands[0])
        alive.append(weakref.ref(result))
        most = max(most, sum(r() is not None for r in alive))
        return result

    monkeypatch.setattr(interpret, "evaluate_op", watched)
    interpret_graph(builder.finish([node]), [np.zeros(4, np.float32)])
    assert most == 2


def test_a_type_that_the_meaning_does_not_have_is_found():
    graph = parse_graph("graph g { input %x : f32[3] %y = neg(%x) : f32[1, 3] output %y }")
    with pytest.raises(VerifyError, match=r"%y = neg\(%x\) : f32\[1, 3\] gave float32\[3\]"):
        interpret_graph(graph, [np.zeros(3, np.float32)])


def test_a_chain_of_20000_nodes():
    builder = Builder()
    node = builder.input("x", TensorType(i64, ()))
    one = builder.constant(1)
    for _ in range(20_000):
        node = builder.add(node, one)
    assert interpret_graph(builder.finish([node]), [np.array(5)])[0] == 20_005


# -- kernels -----------------------------------------------------------------------------------------------------------------


def test_buffers_are_seen_through_their_strides():
    kernel = parse_kernel("""kernel turn(x: f32[M, 3] strides [1, M], out y: f32[M, 3] strides [4, 1]) for i < M, j < 3 {
      v0 = load x[i, j] : f32
      store y[i, j] = v0
    }""")
    memory = np.arange(6, dtype=np.float32)
    out = np.full(7, -1, np.float32)
    interpret_kernel(kernel, {"x": memory, "y": out}, {"M": 2})
    assert out.tolist() == [0, 2, 4, -1, 1, 3, 5]


def test_reading_under_a_guard():
    text = """kernel pad(x: f32[3], out y: f32[5]) for i < 5 {{
      v0 = within 0 <= i - 1 < 3 : bool
      v1 = load x[i - 1]{} : f32
      v2 = constant 7.0 : f32
      v3 = where(v0, v1, v2) : f32
      store y[i] = {}
    }}"""
    x, y = np.array([1, 2, 3], np.float32), np.zeros(5, np.float32)
    interpret_kernel(parse_kernel(text.format(" if 0 <= i - 1 < 3", "v3")), {"x": x, "y": y})
    assert y.tolist() == [7, 1, 2, 3, 7]
    # what a guard leaves unread shows as NaN
    interpret_kernel(parse_kernel(text.format(" if 0 <= i - 1 < 3", "v1")), {"x": x, "y": y})
    assert np.isnan(y).tolist() == [True, False, False, False, True]
    with pytest.raises(VerifyError, match=r"reads x\[i - 1\] out of bounds"):
        interpret_kernel(parse_kernel(text.format("", "v3")), {"x": x, "y": y})


def test_writing_out_of_bounds():
    kernel = parse_kernel("kernel k(out y: f32[3]) for i < 3 { v0 = constant 1.0 : f32 store y[i + 1] = v0 }")
    with pytest.raises(VerifyError, match="writes y out of bounds"):
        interpret_kernel(kernel, {"y": np.zeros(3, np.float32)})


@pytest.mark.parametrize(("kind", "expected"), [("argmax", 3), ("argmin", 2)])
def test_position_over_two_axes_counts_row_major(kind, expected):
    kernel = parse_kernel(f"""kernel k(x: i32[2, 3], out y: i64[]) for i < 2, j < 3 {{
      v0 = load x[i, j] : i32
      v1 = reduce.{kind}(v0) over i, j : i64
      store y[] = v1
    }}""")
    y = np.zeros((), np.int64)
    interpret_kernel(kernel, {"x": np.array([[4, 5, 1], [9, 9, 1]], np.int32), "y": y})
    assert y == expected


def test_reducing_what_does_not_depend_on_the_axis_and_what_is_empty():
    kernel = parse_kernel("""kernel k(x: f32[N], out s: f32[], out m: f32[]) for i < 4, j < N {
      v0 = constant 2.5 : f32
      v1 = reduce.add(v0) over i : f32
      v2 = load x[j] : f32
      v3 = reduce.max(v2) over j : f32
      store s[] = v1
      store m[] = v3
    }""")
    s, m = np.zeros((), np.float32), np.zeros((), np.float32)
    interpret_kernel(kernel, {"x": np.zeros(0, np.float32), "s": s, "m": m}, {"N": 0})
    assert (s, m) == (10, -np.inf)


def test_buffers_that_do_not_fit():
    kernel = parse_kernel("kernel k(out y: f32[N]) for i < N { v0 = constant 1.0 : f32 store y[i] = v0 }")
    for buffers, sizes, message in (
        ({}, {"N": 3}, "no array for buffer 'y'"),
        ({"y": np.zeros(3)}, {"N": 3}, "buffer 'y' is f32, not float64"),
        ({"y": np.zeros(2, np.float32)}, {"N": 3}, r"buffer 'y' is f32\[3\], not float32\[2\]"),
        ({"y": np.zeros(3, np.float32)}, {}, "the size 'N' is not given"),
    ):
        with pytest.raises(InputError, match=message):
            interpret_kernel(kernel, buffers, sizes)


# -- programs ----------------------------------------------------------------------------------------------------------------

PROGRAM = """program p {{
  slot x : f32[4] input 0
  slot a : f32[4] intermediate at 0
  slot b : f32[4] intermediate at {}
  slot y : f32[4] output 0
  inputs (x)
  launch double(x, a)
  launch double(a, b)
  launch sum(a, b, y)
  output y
  placement arena 32 lower_bound 32 eager_peak 32 extern 0
}}
graph g {{ input %x : f32[4] output %x }}
kernel double(x: f32[4], out y: f32[4]) for i < 4 {{ v0 = load x[i] : f32 v1 = add(v0, v0) : f32 store y[i] = v1 }}
kernel sum(x: f32[4], z: f32[4], out y: f32[4]) for i < 4 {{
  v0 = load x[i] : f32 v1 = load z[i] : f32 v2 = add(v0, v1) : f32 store y[i] = v2
}}
"""


def test_a_wrong_plan_gives_wrong_numbers():
    x = np.array([1, 2, 3, 4], np.float32)
    right = parse_program(PROGRAM.format(16))
    verify_program(right)
    assert interpret_program(right, [x])[0].tolist() == [6, 12, 18, 24]
    wrong = parse_program(PROGRAM.format(8))
    with pytest.raises(VerifyError, match="b and a are alive at step 1 and overlap"):
        verify_program(wrong)
    assert interpret_program(wrong, [x])[0].tolist() != [6, 12, 18, 24]


def test_library_and_aten_calls_and_writing_back():
    text = """program p {
      slot x : f32[2, 3] input 0
      slot w : f32[3, 2] strides [1, 3] constant 0
      slot h : f32[2, 2] intermediate
      slot s : f32[2, 2] extern
      inputs (x)
      constants 1
      library matmul(x, w) -> (h)
      aten aten.neg.default(h) -> (s, none) with ({operand = 0})
      launch put(s, x[2, 2] strides [3, 1] offset 1)
      output s
    }
    graph g { input %x : f32[2, 3] output %x writeback %x -> %x }
    kernel put(x: f32[2, 2], out y: f32[2, 2] strides [3, 1]) for i < 2, j < 2 { v0 = load x[i, j] : f32 store y[i, j] = v0 }
    """
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    w = np.arange(6, dtype=np.float32).reshape(3, 2)
    program = parse_program(text, [w])
    verify_program(program)
    kept = x.copy()
    negative, written = interpret_program(program, [x], call=lambda target, arguments, operands: -operands[0])
    assert np.array_equal(negative, -(x @ w)) and np.array_equal(x, kept)
    assert np.array_equal(written[:, 1:], negative) and np.array_equal(written[:, 0], x[:, 0])
    with pytest.raises(UnsupportedError, match="aten.neg.default"):
        interpret_program(program, [x])


def test_graph_symbols_are_the_programs():
    graph = Builder("g")
    x = graph.input("x", TensorType(f32, (symbol("N"), 3)))
    program = graph_program(graph.finish([graph.exp(x)]))
    for size in (1, 4, 0):
        given_array = np.ones((size, 3), np.float32)
        assert np.allclose(interpret_program(program, [given_array])[0], np.exp(given_array))
