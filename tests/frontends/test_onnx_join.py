"""Open sizes of inputs that a model asks to be equal."""

from __future__ import annotations

import numpy as np
import pytest
from dlcompiler.ir.errors import InputError, UnsupportedError
from onnx import helper

import dlcompiler
from dlcompiler.frontends.onnx import import_onnx
from tests.frontends.onnx_checks import model_of

OPEN = "float32"


def shapes(nodes, inputs, outputs=("y",), **constants) -> list[list[str]]:
    model = model_of(nodes, {name: (OPEN, shape) for name, shape in inputs.items()}, outputs, constants)
    return [[str(d) for d in node.shape] for node in import_onnx(model).inputs]


@pytest.mark.parametrize("names", [("a", "b"), (None, None), ("?", "?")])
def test_columns_of_one_table(names):
    concat = helper.make_node("Concat", ["p", "q"], ["y"], axis=1)
    (p, _), (q, _) = shapes(concat, {"p": [names[0], 1], "q": [names[1], 1]})
    assert p == q


def test_the_axis_of_a_concatenation_stays_open():
    (p, c), (q, d) = shapes(helper.make_node("Concat", ["p", "q"], ["y"], axis=1), {"p": ["a", "c"], "q": ["b", "d"]})
    assert p == q and c != d


def test_sizes_called_by_no_name_are_not_one_size():
    ((first, second),) = shapes(helper.make_node("Relu", ["x"], ["y"]), {"x": ["?", "?"]})
    assert first != second


def test_weights_tell_a_number():
    conv = helper.make_node("Conv", ["x", "w"], ["y"], group=2)
    ((_, channels, *_),) = shapes(conv, {"x": ["?"] * 4}, w=np.ones((4, 3, 1, 1), np.float32))
    assert channels == "6"


def test_a_size_that_is_the_sum_of_others():
    nodes = [helper.make_node("Concat", ["past", "x"], ["k"], axis=1), helper.make_node("Add", ["k", "mask"], ["y"])]
    past, x, mask = shapes(nodes, {"past": [1, "past"], "x": [1, "new"], "mask": [1, "total"]})
    assert mask == ["1", "new + past"] and past[1] == "past" and x[1] == "new"


def test_a_call_with_other_sizes_is_refused():
    nodes = [helper.make_node("Concat", ["past", "x"], ["k"], axis=1), helper.make_node("Add", ["k", "mask"], ["y"])]
    inputs = {"past": (OPEN, [1, "past"]), "x": (OPEN, [1, "new"]), "mask": (OPEN, [1, "total"])}
    compiled = dlcompiler.compile(model_of(nodes, inputs, ["y"]))
    given = [np.ones((1, size), np.float32) for size in (2, 3, 5)]
    np.testing.assert_array_equal(compiled(*given), np.full((1, 5), 2, np.float32))
    with pytest.raises(InputError):
        compiled(*given[:2], np.ones((1, 4), np.float32))


def test_what_is_repeated_is_not_joined():
    assert shapes(helper.make_node("Add", ["p", "q"], ["y"]), {"p": ["a", 1], "q": [1, "b"]}) == [["a", "1"], ["1", "b"]]


def test_sizes_that_only_values_tell_are_not_joined():
    nodes = [helper.make_node("NonZero", ["x"], ["n"]), helper.make_node("Reshape", ["z", "s"], ["y"])]
    with pytest.raises(UnsupportedError):
        shapes(nodes, {"x": ["a"], "z": ["b"]}, ("y", "n"), s=np.array([3, 7], np.int64))
