"""ONNX models that are more than one program, and shapes that hold a size which the inputs leave open."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import pytest
from dlcompiler.ir.errors import InvalidModelError, UnsupportedError
from dlcompiler.ir.text import graph_constants, parse_graph, print_graph

import dlcompiler
from dlcompiler.frontends.onnx import import_onnx
from dlcompiler.reference import run_reference

HEAD = '<ir_version: 9, opset_import: ["" : 18]>\n'


def model(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(HEAD + text)


def both(text: str, *inputs: np.ndarray) -> list[np.ndarray]:
    """The outputs, once compiled code, the interpreter, the parsed text and the reference evaluator agree."""
    made = model(text)
    graph = import_onnx(made)
    again = parse_graph(print_graph(graph), graph_constants(graph))
    names = [i.name for i in made.graph.input]
    expected = onnx.reference.ReferenceEvaluator(made).run(None, dict(zip(names, inputs)))
    compiled = dlcompiler.compile(made)(*inputs)
    compiled = compiled if isinstance(compiled, tuple) else (compiled,)
    for ours in (run_reference(graph, inputs), run_reference(again, inputs), compiled):
        for got, want in zip(ours, expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    return expected


IF = """g (bool c, float[N] x) => (float[M] y) {
  t = Add(x, x)
  y = If (c) <then_branch = a () => (float[K] p) { p = Mul(t, x) },
              else_branch = b () => (float[L] q) { two = Constant <value = int64[1] {2}> ()  q = Tile(x, two) }>
}"""


@pytest.mark.parametrize("condition", [True, False])
@pytest.mark.parametrize("size", [1, 4])
def test_if_whose_branches_have_other_sizes(condition, size):
    (y,) = both(IF, np.array(condition), np.arange(size, dtype=np.float32))
    assert y.shape == (size if condition else 2 * size,)


LOOP = """g (int64 trips, float[N] x) => (float[N] last, float[T, N] all) {
  yes = Constant <value = bool {1}> ()
  last, all = Loop (trips, yes, x) <body = step (int64 i, bool go, float[N] s) => (bool goes, float[N] next, float[N] row) {
    f = Cast <to = 1> (i)  next = Add(s, f)  row = Mul(next, x)
    total = ReduceSum <keepdims = 0> (next)  limit = Constant <value = float {50.0}> ()  goes = Less(total, limit)
  }>
}"""


@pytest.mark.parametrize("trips", [1, 3, 30])
def test_loop(trips):
    both(LOOP, np.array(trips), np.ones(3, np.float32))


GROWS = """g (int64 trips, float[2] x) => (float[K] y) {
  yes = Constant <value = bool {1}> ()
  y = Loop (trips, yes, x) <body = step (int64 i, bool go, float[K] s) => (bool go2, float[L] next) {
    go2 = Identity(go)  next = Concat <axis = 0> (s, x)
  }>
}"""


def test_a_carried_value_may_grow():
    (y,) = both(GROWS, np.array(3), np.array([1, 2], np.float32))
    assert y.shape == (8,)


SCAN = """g (float[2] s, float[T, 2] x) => (float[2] last, float[2, T] sums) {
  last, sums = Scan <num_scan_inputs = 1, scan_output_axes = [1], scan_input_directions = [1],
    body = step (float[2] a, float[2] b) => (float[2] c, float[2] d) { c = Add(a, b)  d = Identity(c) }> (s, x)
}"""


@pytest.mark.parametrize("steps", [1, 5])
def test_scan_backwards_with_rows_in_another_axis(steps):
    x = np.arange(2 * steps, dtype=np.float32).reshape(steps, 2)
    sums = np.cumsum(x[::-1], axis=0)
    graph = import_onnx(model(SCAN))
    for last, all in (run_reference(graph, [x[0] * 0, x]), dlcompiler.compile(graph)(x[0] * 0, x)):
        np.testing.assert_array_equal(last, sums[-1])
        np.testing.assert_array_equal(all, sums.T)


NONZERO = """g (float[N, 3] x) => (int64[2, K] at, float[K] twice, float[K, 3] rows) {
  at = NonZero(x)
  places = Transpose <perm = [1, 0]> (at)
  found = GatherND(x, places)
  twice = Add(found, found)
  zero = Constant <value = int64 {0}> ()
  first = Gather <axis = 0> (at, zero)
  rows = Gather <axis = 0> (x, first)
}"""


def test_sizes_that_data_tells_flow_on():
    x = np.array([[0, 1, 0], [2, 0, 3]], np.float32)
    both(NONZERO, x)
    compiled = dlcompiler.compile(model(NONZERO))
    assert compiled(x)[0].shape == (2, 3) and compiled(np.zeros((5, 3), np.float32))[0].shape == (2, 0)
    assert [host.name for host in compiled.report().host] == ["ai.onnx.NonZero"]
    with pytest.raises(UnsupportedError, match="NonZero"):
        dlcompiler.compile(model(NONZERO), options={"strict": True})


def test_texts_and_sequences_pass_through_the_host():
    text = """g (float[N] x) => (float[N] y, int64 n) {
      one = Constant <value = int64 {1}> ()
      zero = Constant <value = int64 {0}> ()
      s = SequenceConstruct(x, x)
      doubled = Add(x, x)
      t = SequenceInsert(s, doubled)
      y = SequenceAt(t, one)
      n = SequenceLength(t)
    }"""
    both(text, np.arange(3, dtype=np.float32))


BAKED = """g (float[N, 6] x) => (float[M, 2, 3] y) <int64[3] shape = {1, 2, 3}> {
  z = Reshape(x, shape)
  y = Relu(z)
}"""


def test_a_baked_batch_is_named_and_fixed(caplog):
    with pytest.raises(
        UnsupportedError, match=r"'shape' \[1, 2, 3\] holds 1 in dimension 0, where f32\[N, 6\] needs N.*fix-batch"
    ):
        import_onnx(model(BAKED))
    graph = import_onnx(model(BAKED), fix_batch=True)
    assert "shape" in str(graph.history[0]) and graph.outputs[0].shape[0] == graph.inputs[0].shape[0]
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    result = dlcompiler.compile(model(BAKED), options={"fix_batch": True})(x)
    np.testing.assert_array_equal(result, x.reshape(4, 2, 3))
    with caplog.at_level(logging.WARNING):
        assert import_onnx(model(BAKED), {"x": (1, 6)}).outputs[0].shape == (1, 2, 3)


HIDDEN = {
    "in -1": "h = Reshape(x, s1) t = Transpose <perm = [0, 2, 1, 3]> (h) e = Expand(t, s4)",
    "in the first size": "h = Reshape(x, s2) t = Transpose <perm = [0, 2, 1]> (h) e = Reshape(t, s3)",
    "beside a weight of batch 1": "h = Reshape(x, s1) e = Concat <axis = 2> (h, w)",
}


@pytest.mark.parametrize("body", HIDDEN.values(), ids=HIDDEN)
def test_a_hidden_batch_is_found_and_each_sample_is_as_the_file_says(body):
    """As torch's exports of transformers with a batch of 1 have it."""
    text = f"""g (float[N, 4, 6] x) => (float[M, a, b, c] y)
      <int64[4] s1 = {{1, -1, 2, 3}}, int64[3] s2 = {{8, 3, 1}}, int64[4] s3 = {{1, 8, 1, 3}}, int64[4] s4 = {{1, 2, 4, 3}},
       float[1, 4, 1, 3] w = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}}> {{
      {body}
      y = Relu(e)
    }}"""
    with pytest.raises(UnsupportedError, match="fix_batch=True"):
        import_onnx(model(text))
    graph = import_onnx(model(text), fix_batch=True)
    assert any("rewritten" in str(event) for event in graph.history)
    assert graph.outputs[0].shape[0] == graph.inputs[0].shape[0]
    x = np.random.default_rng(0).standard_normal((3, 4, 6)).astype(np.float32)
    result = dlcompiler.compile(model(text), options={"fix_batch": True})(x)
    evaluator = onnx.reference.ReferenceEvaluator(model(text))
    expected = [evaluator.run(None, {"x": x[k : k + 1]})[0] for k in range(3)]
    np.testing.assert_array_equal(result, np.concatenate(expected))


def test_a_shape_that_no_open_size_fits_stays_an_error():
    with pytest.raises(UnsupportedError, match="cannot reshape"):
        import_onnx(model(BAKED.replace("{1, 2, 3}", "{5, 2, 2}")), fix_batch=True)


def test_a_body_of_other_inputs_is_invalid():
    text = LOOP.replace("(int64 i, bool go, float[N] s)", "(int64 i, bool go)").replace("Add(s, f)", "Identity(f)")
    with pytest.raises(InvalidModelError, match="takes 2 inputs, not 3"):
        import_onnx(model(text))


SLICED = """g (float[N] x) => (float[K] y, float[K] z) {
  at = NonZero(x)
  flat = Reshape(at, minus)
  kept = Gather(x, flat)
  y = Slice(kept, one, far)
  z = Slice(kept, minus_two, far)
}"""


def test_a_slice_of_a_size_that_data_tells_stays_inside():
    constants = "<int64[1] one = {1}, int64[1] far = {9223372036854775807}, int64[1] minus = {-1}, int64[1] minus_two = {-2}>"
    text = SLICED.replace(" {\n  at", f" {constants} {{\n  at")
    for x in ([0, 0, 0], [0, 7, 0], [1, 2, 3]):
        both(text, np.array(x, np.float32))


NESTED = """g (int64 n, float[N] x) => (float[N] y) {
  yes = Constant <value = bool {1}> ()
  y = Loop (n, yes, x) <body = outer (int64 i, bool go, float[N] s) => (bool go2, float[N] t) {
    go2 = Identity(go)
    inner = Loop (n, go, s) <body = step (int64 j, bool more, float[N] a) => (bool more2, float[N] b) {
      more2 = Identity(more)  f = Cast <to = 1> (j)  g = Add(a, f)  b = Add(g, x)
    }>
    t = Mul(inner, x)
  }>
}"""


def test_loops_in_loops_keep_known_sizes():
    graph = import_onnx(model(NESTED))
    assert graph.outputs[0].shape == graph.inputs[1].shape
    both(NESTED, np.array(2), np.float32([1, 2, 3]))
