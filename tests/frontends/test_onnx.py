"""Whole ONNX models: the light models of the onnx package, models exported by torch, symbolic sizes, functions, branches."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from dlcompiler.ir.errors import InputError, InvalidModelError
from dlcompiler.ir.expression import evaluate, symbol
from dlcompiler.ir.graph import Graph
from dlcompiler.ir.text import graph_constants, graphs_equal, parse_graph, print_graph
from dlcompiler.ir.verify import verify_graph
from onnx import AttributeProto, TensorProto, helper, numpy_helper

import dlcompiler
from dlcompiler.frontends.onnx import import_onnx
from tests.frontends.onnx_checks import compare, interpret, model_of, run
from tests.zoo import PlainOutputs, build

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
LIGHT_MODELS = sorted(p.stem for p in LIGHT.glob("*.onnx"))
QUICK = {"light_shufflenet", "light_squeezenet", "light_bvlc_alexnet", "light_zfnet512"}


# -- the light models ----------------------------------------------------------------------------------------------------------


def test_there_are_nine_light_models():
    assert len(LIGHT_MODELS) == 9


@pytest.mark.parametrize("name", LIGHT_MODELS)
def test_light_model(name):
    """Imported with its batch symbolic too; the quick ones give the packaged outputs (the rest by the `slow` test)."""
    graph = import_onnx(LIGHT / f"{name}.onnx")
    assert graph.inputs[0].shape == (1, 3, 224, 224) and graph.outputs[0].shape[:2] == (1, 1000)
    weights = [n for n in graph.nodes if n.op.name == "constant" and n.attributes["value"].size > 10_000]
    assert not weights, "ConstantOfShape takes no memory"
    if name in QUICK:
        _gives_the_packaged_output(name, graph)


@pytest.mark.slow
@pytest.mark.parametrize("name", LIGHT_MODELS)
def test_light_model_output(name):
    _gives_the_packaged_output(name, import_onnx(LIGHT / f"{name}.onnx"))


def _gives_the_packaged_output(name: str, graph: Graph) -> None:
    expected = TensorProto()
    expected.ParseFromString((LIGHT / f"{name}_output_0.pb").read_bytes())
    size = 3 * 224 * 224  # the input that the onnx package's test runner makes
    x = (np.arange(size).reshape(1, 3, 224, 224) / size).astype(np.float32)
    compare(interpret(graph, {graph.inputs[0].location: x}), [numpy_helper.to_array(expected)], 1e-5, name)


# -- models exported by torch --------------------------------------------------------------------------------------------------


def quick(names: str) -> list[str]:
    return names.split()


def slow(names: str) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow) for name in names.split()]


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """(name, batch symbolic) -> (path of the file, the zoo's model)."""

    def make(name: str, symbolic: bool):
        model = build(name, "tiny")
        inputs = model.make_inputs(2) if symbolic else model.inputs
        dynamic = tuple({0: torch.export.Dim("batch")} for _ in inputs) if symbolic else None
        if symbolic and isinstance(model.module, PlainOutputs):  # takes *tensors
            dynamic = (dynamic,)
        program = torch.onnx.export(model.module, inputs, dynamo=True, verbose=False, dynamic_shapes=dynamic)
        path = tmp_path_factory.mktemp("export") / f"{name}.onnx"
        program.save(path)
        return path, model

    return make


def eager(model, inputs) -> list[np.ndarray]:
    with torch.no_grad():
        result = model.module(*inputs)
    return [r.numpy() for r in (result if isinstance(result, tuple | list) else (result,))]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*quick("resnet50"), *slow("bert-base gpt2 t5-small vit-b16 convnext-t mobilenet-v2")])
def test_exported_model(export, name):
    path, model = export(name, False)
    graph = import_onnx(path)
    actual = interpret_in_order(graph, [x.numpy() for x in model.inputs])
    compare(actual, eager(model, model.inputs), 1e-4, name)
    assert all(node.location for node in graph.nodes if node.op.name != "constant")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*quick("lstm bert-base"), *slow("dcgan resnet50")])
def test_exported_model_of_symbolic_batch(export, name):
    """One graph for every batch size: shapes are computed from the symbol, not at run time."""
    path, model = export(name, True)
    graph = import_onnx(path)
    assert graph.inputs[0].shape[0] == symbol("batch") and graph.symbols == ("batch",)
    for batch in (1, 3):
        inputs = model.make_inputs(batch)
        actual = interpret_in_order(graph, [x.numpy() for x in inputs])
        compare(actual, eager(model, inputs), 1e-4, f"{name} at batch {batch}")


def interpret_in_order(graph: Graph, inputs: list[np.ndarray]) -> list[np.ndarray]:
    return interpret(graph, {node.location: x for node, x in zip(graph.inputs, inputs)})


# -- symbolic sizes ------------------------------------------------------------------------------------------------------------


def attention_like() -> onnx.ModelProto:
    """x[batch, length, 12] in three heads and back, the shapes computed as old exporters did."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["b"]),
        helper.make_node("Gather", ["s", "one"], ["l"]),
        helper.make_node("Unsqueeze", ["b", "at0"], ["b1"]),
        helper.make_node("Unsqueeze", ["l", "at0"], ["l1"]),
        helper.make_node("Concat", ["b1", "l1", "heads", "minus"], ["to"], axis=0),
        helper.make_node("Reshape", ["x", "to"], ["h"]),
        helper.make_node("Transpose", ["h"], ["t"], perm=[0, 2, 1, 3]),
        helper.make_node("Mul", ["l", "three"], ["rows"]),
        helper.make_node("Unsqueeze", ["rows", "at0"], ["rows1"]),
        helper.make_node("Concat", ["b1", "rows1", "minus"], ["back"], axis=0),
        helper.make_node("Reshape", ["t", "back"], ["y"]),
        helper.make_node("Range", ["zero", "l", "one"], ["positions"]),
        helper.make_node("Add", ["s", "s"], ["twice"]),
    ]
    numbers = {"zero": 0, "one": 1, "three": 3, "at0": [0], "heads": [3], "minus": [-1]}
    constants = {name: np.array(value, dtype=np.int64) for name, value in numbers.items()}
    return model_of(nodes, {"x": ("float32", ("batch", "seq length", 12))}, ["y", "positions", "twice"], constants)


def test_shapes_are_folded_into_symbols():
    graph = import_onnx(attention_like())
    batch, length = symbol("batch"), symbol("seq_length")
    assert graph.inputs[0].shape == (batch, length, 12)
    assert graph.outputs[0].shape == (batch, 3 * length, 4) and graph.outputs[1].shape == (length,)
    assert not any(n.op.name == "index" for n in graph.nodes), "nothing of the shape computation is left but sizes"
    x = np.arange(2 * 5 * 12, dtype=np.float32).reshape(2, 5, 12)
    y, positions, twice = interpret(graph, {"x": x})
    np.testing.assert_array_equal(y, x.reshape(2, 5, 3, 4).transpose(0, 2, 1, 3).reshape(2, 15, 4))
    np.testing.assert_array_equal(positions, np.arange(5))
    np.testing.assert_array_equal(twice, [4, 10, 24])


def test_input_shapes_fix_and_free_sizes():
    model = attention_like()
    fixed = import_onnx(model, {"x": (2, 5, 12)})
    assert fixed.symbols == () and fixed.outputs[0].shape == (2, 15, 4)
    partly = import_onnx(model, {"x": ("N", 5, 12)})
    assert partly.outputs[0].shape == (symbol("N"), 15, 4)
    static = model_of(helper.make_node("Relu", ["x"], ["y"]), {"x": ("float32", (1, 4))}, ["y"])
    assert import_onnx(static, {"x": ("B", 4)}).outputs[0].shape == (symbol("B"), 4)


def test_a_size_given_once_holds_for_every_input_that_shares_its_name():
    model = model_of(helper.make_node("Add", ["a", "b"], ["y"]), {"a": ("float32", ("n", 2)), "b": ("float32", ("n", 1))}, ["y"])
    assert [n.shape for n in import_onnx(model, {"b": (7, 1)}).inputs] == [(7, 2), (7, 1)]
    with pytest.raises(InputError, match="dimension 'n'"):
        import_onnx(model, {"a": (3, 2), "b": (4, 1)})


def test_input_shapes_that_do_not_fit_the_model():
    model = attention_like()
    with pytest.raises(InputError, match="did you mean 'x'|its inputs are 'x'"):
        import_onnx(model, {"X": (1, 2, 12)})
    with pytest.raises(InputError, match="3 dimensions"):
        import_onnx(model, {"x": (1, 2)})
    for wrong in (-1, 2.0, True, "", None):
        with pytest.raises(InputError):
            import_onnx(model, {"x": (wrong, 2, 12)})


def test_unnamed_and_odd_dimensions_get_symbols_of_their_own():
    """Nothing in the file can clash with another symbol, an axis of a kernel, or the text of an expression."""
    names = (None, None, "n", "in", "batch size", "batch_size", "9", "div")
    model = model_of(helper.make_node("Relu", ["x"], ["y"]), {"x": ("float32", names)}, ["y"])
    graph = import_onnx(model)
    assert len(set(graph.symbols)) == len(names)
    verify_graph(graph)
    assert graphs_equal(graph, parse_graph(print_graph(graph))) is None
    assert "n" not in graph.symbols, "kernels call their axes by one letter"


@pytest.mark.parametrize("sizes", [(1, 1), (2, 5), (4, 3)])
def test_symbolic_arithmetic_on_sizes(sizes):
    """Div, Mod, Max, Where, comparisons and reductions over a shape, against the same model with its sizes fixed."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Slice", ["s", "at0", "at1"], ["first"]),
        helper.make_node("Slice", ["s", "at1", "at2"], ["second"]),
        helper.make_node("Add", ["first", "second"], ["sum"]),
        helper.make_node("Mul", ["sum", "four"], ["product"]),
        helper.make_node("Div", ["product", "four"], ["quotient"]),
        helper.make_node("Max", ["quotient", "at1"], ["most"]),
        helper.make_node("Equal", ["first", "minus"], ["never"]),
        helper.make_node("Where", ["never", "four", "most"], ["chosen"]),
        helper.make_node("ReduceProd", ["s"], ["all"], keepdims=1),
        helper.make_node("Concat", ["chosen", "all"], ["to"], axis=0),
        helper.make_node("ConstantOfShape", ["to"], ["y"]),
    ]
    numbers = {"at0": [0], "at1": [1], "at2": [2], "four": [4], "minus": [-1]}
    constants = {name: np.array(value, dtype=np.int64) for name, value in numbers.items()}
    model = model_of(nodes, {"x": ("float32", ("a", "b"))}, ["y"], constants)
    shape = import_onnx(model).outputs[0].shape
    first, second = sizes
    bindings = dict(zip(import_onnx(model).symbols, sizes))
    assert tuple(evaluate(d, bindings) for d in shape) == (first + second, first * second)
    assert import_onnx(model, {"x": sizes}).outputs[0].shape == (first + second, first * second)


def test_declared_shapes_that_contradict_are_told(caplog):
    model = model_of(helper.make_node("Flatten", ["x"], ["y"]), {"x": ("float32", (2, 3, 4))}, ["y"])
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, (2, 99)))
    with caplog.at_level(logging.WARNING, logger="dlcompiler"):
        assert import_onnx(model).outputs[0].shape == (2, 12)
    assert "'y'" in caplog.text and "99" in caplog.text
    caplog.clear()
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "any"
    with caplog.at_level(logging.WARNING, logger="dlcompiler"):
        import_onnx(model)
    assert not caplog.text


# -- structure -----------------------------------------------------------------------------------------------------------------


def test_initializers_are_constants_and_names_are_kept():
    """Old files list initializers among the inputs too."""
    model = model_of(
        helper.make_node("Add", ["in/x", "w"], ["out:0"], name="the sum"),
        {"in/x": ("float32", (2,)), "w": ("float32", (2,))},
        ["out:0"],
        {"w": np.array([1, 2], np.float32), "unused": np.zeros(3, np.float32)},
    )
    graph = import_onnx(model)
    assert [n.location for n in graph.inputs] == ["in/x"] and graph.output_names == ("out:0",)
    assert sorted(n.op.name for n in graph.nodes) == ["add", "constant"]
    assert graph.outputs[0].location == "the sum"


def referring(name: str, to: str) -> AttributeProto:
    """A float attribute whose value is the enclosing function's attribute `to`."""
    return AttributeProto(name=name, ref_attr_name=to, type=AttributeProto.FLOAT)


def test_functions_are_inlined_with_their_attributes():
    """A function of a function; one attribute is given, one has a default, one is left out."""
    inner = helper.make_node("LeakyRelu", ["a"], ["b"])
    inner.attribute.append(referring("alpha", "slope"))
    leaky = helper.make_function("local", "leaky", ["a"], ["b"], [inner], [helper.make_opsetid("", 20)], attributes=["slope"])
    call = helper.make_node("leaky", ["a"], ["c"], domain="local")
    call.attribute.append(referring("slope", "steep"))
    twice = helper.make_function(
        "local",
        "twice",
        ["a", "bias"],
        ["d"],
        [call, helper.make_node("Clip", ["c", "", "bias"], ["d"])],
        [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)],
        attribute_protos=[helper.make_attribute("steep", 0.5)],
    )
    nodes = [
        helper.make_node("twice", ["x"], ["p"], name="first", domain="local", steep=2.0),
        helper.make_node("twice", ["x", "limit"], ["q"], name="second", domain="local"),
        helper.make_node("leaky", ["x"], ["r"], name="third", domain="local"),
    ]
    model = model_of(nodes, {"x": ("float32", (3,))}, ["p", "q", "r"], {"limit": np.float32(1)}, functions=[leaky, twice])
    model.opset_import.append(helper.make_opsetid("local", 1))
    x = np.array([-2, 0.5, 3], np.float32)
    p, q, r = run(model, {"x": x})
    np.testing.assert_allclose(p, [-4, 0.5, 3])
    np.testing.assert_allclose(q, [-1, 0.5, 1])
    np.testing.assert_allclose(r, [-0.02, 0.5, 3])
    assert any(n.location and n.location.startswith("first/") for n in import_onnx(model).nodes)


@pytest.mark.parametrize("rank", [1, 2])
def test_a_branch_chosen_by_a_shape_is_inlined(rank):
    """If the input has two dimensions then its transpose, else the input doubled: known at import although sizes are not."""
    empty = [helper.make_empty_tensor_value_info("o")]
    then = helper.make_graph([helper.make_node("Transpose", ["x"], ["o"])], "then", [], empty)
    other = helper.make_graph([helper.make_node("Add", ["x", "x"], ["o"])], "else", [], empty)
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Size", ["s"], ["rank"]),
        helper.make_node("Equal", ["rank", "two"], ["is2"]),
        helper.make_node("If", ["is2"], ["y"], then_branch=then, else_branch=other),
    ]
    model = model_of(nodes, {"x": ("float32", ("n", "m")[:rank])}, ["y"], {"two": np.int64(2)})
    x = np.arange(6, dtype=np.float32).reshape((2, 3) if rank == 2 else (6,))
    np.testing.assert_array_equal(run(model, {"x": x})[0], x.T if rank == 2 else x + x)


def test_schema_function_bodies_serve_operators_without_an_entry():
    """NegativeLogLikelihoodLoss has no entry of its own: its body in the schema is imported."""
    scores = np.log(np.array([[0.2, 0.8], [0.6, 0.4]], np.float32))
    model = model_of(
        helper.make_node("NegativeLogLikelihoodLoss", ["x", "t"], ["y"], reduction="mean"),
        {"x": ("float32", (2, 2)), "t": ("int64", (2,))},
        ["y"],
        opset=13,
    )
    (loss,) = run(model, {"x": scores, "t": np.array([1, 0])})
    np.testing.assert_allclose(loss, -(np.log(0.8) + np.log(0.6)) / 2, rtol=1e-6)


def test_every_element_type_in_both_ways_of_storing_it():
    import ml_dtypes

    for dtype in "float32 float64 float16 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool complex64 complex128".split():
        value = np.array([[0, 1], [2, 3]]).astype(dtype)
        _stored(value)
    _stored(np.array([0.5, -2, 300]).astype(ml_dtypes.bfloat16))
    _stored(np.array([2**63 + 5, 7], dtype=np.uint64))
    _stored(np.array([-(2**63), 7], dtype=np.int64))


def _stored(value: np.ndarray) -> None:
    code = helper.np_dtype_to_tensor_dtype(value.dtype)
    raw = numpy_helper.from_array(value, "w")
    typed = helper.make_tensor("w", code, value.shape, value.reshape(-1).tolist())
    assert raw.HasField("raw_data") and not typed.HasField("raw_data")
    for tensor in (raw, typed):
        model = model_of(helper.make_node("Identity", ["w"], ["y"]), {}, ["y"])
        model.graph.initializer.append(tensor)
        (result,) = run(model, {})
        assert result.dtype == value.dtype and result.tobytes() == value.tobytes(), value.dtype


def test_tensors_whose_bytes_do_not_match_their_shape():
    for change in ("longer", "shorter"):
        model = model_of(helper.make_node("Identity", ["w"], ["y"]), {}, ["y"], {"w": np.zeros(4, np.float32)})
        tensor = model.graph.initializer[0]
        tensor.raw_data = tensor.raw_data + b"\0" if change == "longer" else tensor.raw_data[:-1]
        with pytest.raises(InvalidModelError, match="takes 16 bytes"):
            import_onnx(model)


# -- what a graph relies on ----------------------------------------------------------------------------------------------------


def positions_model(rows: int) -> onnx.ModelProto:
    """Token rows plus the first rows of a table of `rows` positions, and the last row of the result."""
    nodes = [
        helper.make_node("Shape", ["x"], ["length"], start=0, end=1),
        helper.make_node("Slice", ["table", "zero", "length"], ["positions"]),
        helper.make_node("Add", ["x", "positions"], ["sum"]),
        helper.make_node("Gather", ["sum", "last"], ["y"]),
    ]
    constants = {
        "table": np.arange(rows * 2, dtype=np.float32).reshape(rows, 2),
        "zero": np.zeros(1, np.int64),
        "last": np.int64(-1),
    }
    return model_of(nodes, {"x": ("float32", ("length", 2))}, ["sum", "y"], constants)


def test_sizes_that_the_graph_relies_on_are_stated_and_checked():
    """A table of 8 positions holds for lengths 1 to 8: a longer call is refused, not read out of bounds."""
    graph = import_onnx(positions_model(8))
    assert graph.inputs[0].attributes["limits"] == ((symbol("length"), 1, 8),)
    table = np.arange(16, dtype=np.float32).reshape(8, 2)
    for length in (1, 5, 8):
        total, last = interpret(graph, {"x": np.ones((length, 2), np.float32)})
        np.testing.assert_array_equal(total, table[:length] + 1)
        np.testing.assert_array_equal(last, table[length - 1] + 1)
    for length in (0, 9):
        with pytest.raises(InputError, match=f"length is {length}, but the model takes 1 to 8"):
            interpret(graph, {"x": np.ones((length, 2), np.float32)})


def test_compiled_programs_refuse_sizes_outside_of_the_limits():
    program = dlcompiler.compile(positions_model(8))
    total, _ = program(np.zeros((3, 2), np.float32))
    np.testing.assert_array_equal(total, np.arange(6, dtype=np.float32).reshape(3, 2))
    with pytest.raises(InputError, match="1 to 8"):
        program(np.zeros((9, 2), np.float32))


def test_limits_survive_the_text():
    graph = import_onnx(positions_model(8))
    again = parse_graph(print_graph(graph), graph_constants(graph))
    assert graphs_equal(graph, again) is None and again.inputs[0].attributes == graph.inputs[0].attributes
