"""ONNX files that are broken, hostile or of another kind: one clear error, never another exception, nothing allocated."""

from __future__ import annotations

import os
import resource

import numpy as np
import pytest
from dlcompiler.ir.errors import InputError, InvalidModelError, UnsupportedError
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

from dlcompiler.frontends.onnx import NeedsValuesError, import_onnx
from dlcompiler.weights import place_in_file
from tests.frontends.onnx_checks import interpret, model_of, run


def small_model() -> ModelProto:
    """A convolution, a reshape, a split, a matmul and a branch: something of every field that a file has."""
    then = helper.make_graph([helper.make_node("Relu", ["m"], ["t"])], "then", [], [helper.make_empty_tensor_value_info("t")])
    other = helper.make_graph([helper.make_node("Neg", ["m"], ["e"])], "else", [], [helper.make_empty_tensor_value_info("e")])
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Shape", ["c"], ["shape"], end=1),
        helper.make_node("Concat", ["shape", "rest"], ["to"], axis=0),
        helper.make_node("Reshape", ["c", "to"], ["flat"]),
        helper.make_node("Split", ["flat"], ["left", "right"], axis=1, num_outputs=2),
        helper.make_node("MatMul", ["left", "k"], ["m"]),
        helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True))),
        helper.make_node("If", ["yes"], ["branch"], then_branch=then, else_branch=other),
        helper.make_node("Softmax", ["branch"], ["y"], axis=-1),
    ]
    random = np.random.default_rng(0)
    constants = {
        "w": random.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "b": np.zeros(4, np.float32),
        "rest": np.array([-1], dtype=np.int64),
        "k": random.standard_normal((8, 5)).astype(np.float32),
    }
    return model_of(nodes, {"x": ("float32", ("batch", 3, 4, 4))}, ["y", "right"], constants)


FEEDS = {"x": np.random.default_rng(1).standard_normal((2, 3, 4, 4)).astype(np.float32)}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.onnx"


def test_the_small_model_is_right():
    """The bytes that the tests below damage are those of a model that works."""
    y, right = run(small_model(), FEEDS)
    assert y.shape == (2, 5) and right.shape == (2, 8)
    np.testing.assert_allclose(y.sum(1), 1, rtol=1e-6)


# -- files -------------------------------------------------------------------------------------------------------------------


def refused(path, *parts: str) -> None:
    with pytest.raises(InvalidModelError) as caught:
        import_onnx(path)
    text = str(caught.value)
    assert "\n" not in text and str(path) in text, text
    for part in parts:
        assert part in text, text


def test_missing_empty_and_foreign_files(path, tmp_path):
    refused(path, "no such file")
    path.write_bytes(b"")
    refused(path, "is empty")
    path.write_text("graph main {\n  this is text\n}\n" * 50)
    refused(path, "not an ONNX")
    path.write_bytes(b"PK\x03\x04" + os.urandom(64))
    refused(path, "not an ONNX")
    refused(tmp_path, "is a folder")
    path.write_bytes(small_model().graph.SerializeToString())
    refused(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(path):
    path.write_bytes(small_model().SerializeToString())
    path.chmod(0)
    refused(path, "cannot be read")


def test_truncated_files(path):
    data = small_model().SerializeToString()
    for place in np.linspace(1, len(data) - 1, 50).astype(int):
        path.write_bytes(data[:place])
        refused(path)


def imports_or_refuses(model) -> None:
    try:
        import_onnx(model)
    except (InvalidModelError, UnsupportedError) as error:
        assert "\n" not in str(error), str(error)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 7)), min_size=1, max_size=3))
def test_bit_flips(tmp_path_factory, flips):
    data = bytearray(small_model().SerializeToString())
    for place, bit in flips:
        data[place % len(data)] ^= 1 << bit
    path = tmp_path_factory.getbasetemp() / "flipped.onnx"
    path.write_bytes(bytes(data))
    imports_or_refuses(path)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(data=st.data())
def test_wrong_numbers(data):
    """A valid message whose attributes, dimensions and names are wrong."""
    model = small_model()
    for _ in range(data.draw(st.integers(1, 2))):
        _spoil(model, data)
    imports_or_refuses(model)


def _spoil(model: ModelProto, data) -> None:
    graph = model.graph
    number = data.draw(st.sampled_from([-(2**63), -7, -1, 0, 1, 2, 3, 1000, 2**31, 2**62]))
    match data.draw(st.sampled_from(["attribute", "dims", "input", "opset", "type", "constant", "drop", "shape", "op"])):
        case "attribute":
            attributes = [a for n in graph.node for a in n.attribute if a.type in (AttributeProto.INT, AttributeProto.INTS)]
            attribute = data.draw(st.sampled_from(attributes))
            if attribute.type == AttributeProto.INT:
                attribute.i = number
            else:
                attribute.ints[data.draw(st.integers(0, len(attribute.ints) - 1))] = number
                if data.draw(st.booleans()):
                    attribute.ints.append(number)
        case "dims":
            tensor = data.draw(st.sampled_from(list(graph.initializer)))
            tensor.dims[data.draw(st.integers(0, len(tensor.dims) - 1))] = number
        case "constant":
            graph.initializer[2].CopyFrom(numpy_helper.from_array(np.array([number], dtype=np.int64), "rest"))
        case "input":
            node = data.draw(st.sampled_from([n for n in graph.node if n.input]))
            names = [*(o for n in graph.node for o in n.output), "x", "w", "b", "", "nothing"]
            node.input[data.draw(st.integers(0, len(node.input) - 1))] = data.draw(st.sampled_from(names))
        case "opset":
            model.opset_import[0].version = number
        case "type":
            tensor = data.draw(st.sampled_from(list(graph.initializer)))
            tensor.data_type = data.draw(st.integers(-1, 30))
        case "drop":
            node = data.draw(st.sampled_from(list(graph.node)))
            field = data.draw(st.sampled_from(["input", "output", "attribute"]))
            if getattr(node, field):
                del getattr(node, field)[-1]
        case "shape":
            dims = graph.input[0].type.tensor_type.shape.dim
            if data.draw(st.booleans()):
                del dims[-1]
            else:
                dims[data.draw(st.integers(0, len(dims) - 1))].dim_value = number
        case "op":
            node = data.draw(st.sampled_from(list(graph.node)))
            node.op_type = data.draw(st.sampled_from("Gemm Add Slice Pad Resize LSTM Gather Where If Einsum Conv Tile".split()))


# -- graphs that break the rules -----------------------------------------------------------------------------------------------


def broken(message: str, model: ModelProto) -> None:
    with pytest.raises(InvalidModelError, match=message):
        import_onnx(model)


def chain(*nodes, outputs=("y",)) -> ModelProto:
    return model_of([helper.make_node(*n) for n in nodes], {"x": ("float32", (2,))}, outputs)


def test_names_and_order():
    broken("defined twice", chain(("Relu", ["x"], ["y"]), ("Neg", ["x"], ["y"])))
    broken("defined twice", chain(("Relu", ["x"], ["x"]), ("Neg", ["x"], ["y"])))
    broken("nothing defines", chain(("Relu", ["z"], ["y"])))
    broken("nothing defines", chain(("Relu", ["x"], ["y"]), outputs=("q",)))
    broken("cycle", chain(("Add", ["x", "y"], ["z"]), ("Relu", ["z"], ["y"])))
    broken("cycle", chain(("Relu", ["y"], ["y"])))
    # nodes out of order are put in order
    assert len(import_onnx(chain(("Neg", ["z"], ["y"]), ("Relu", ["x"], ["z"]))).nodes) == 2


def test_operator_rules():
    broken("takes 1 inputs, not 2", chain(("Relu", ["x", "x"], ["y"])))
    relu = chain(("Relu", ["x"], ["y"]))
    relu.graph.node[0].attribute.append(helper.make_attribute("slope", 1.0))
    broken("no attribute 'slope'", relu)
    broken("required attribute", chain(("Concat", ["x"], ["y"])))
    softmax = chain(("Softmax", ["x"], ["y"]))
    softmax.graph.node[0].attribute.append(helper.make_attribute("axis", 1.0))
    broken("axis must be int, not float", softmax)
    softmax.graph.node[0].attribute[0].CopyFrom(helper.make_attribute("axis", 5))
    broken("out of range", softmax)
    both = model_of(helper.make_node("Add", ["x", "i"], ["y"]), {"x": ("float32", (2,)), "i": ("int64", (2,))}, ["y"])
    broken("another input of the same type", both)


def test_unknown_operator_set():
    model = small_model()
    model.opset_import[0].version = 999
    with pytest.raises(UnsupportedError, match="operator set 999") as caught:
        import_onnx(model)
    assert caught.value.items
    model.opset_import[0].version = 0
    broken("version 0", model)


def test_long_chains_and_deep_branches():
    """Nothing recurses over the graph's depth."""
    nodes = [helper.make_node("Neg", [f"v{k}"], [f"v{k + 1}"]) for k in range(20_000)]
    model = model_of(nodes, {"v0": ("float32", (2,))}, ["v20000"])
    assert len(import_onnx(model).nodes) == 20_000
    body = helper.make_graph([helper.make_node("Neg", ["x"], ["o"])], "leaf", [], [helper.make_empty_tensor_value_info("o")])
    for _ in range(30):
        inner = helper.make_node("If", ["yes"], ["o"], then_branch=body, else_branch=body)
        body = helper.make_graph([inner], "branch", [], [helper.make_empty_tensor_value_info("o")])
        if body.ByteSize() > 1e5:
            break
    yes = helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True)))
    model = model_of([yes, *body.node], {"x": ("float32", (2,))}, ["o"])
    imports_or_refuses(model)


# -- what is not supported -----------------------------------------------------------------------------------------------------


def test_everything_unsupported_is_listed_at_once():
    inner = helper.make_graph(
        [helper.make_node("Riddle", ["x"], ["o"], name="inside", domain="com.example")],
        "g",
        [],
        [helper.make_empty_tensor_value_info("o")],
    )
    nodes = [
        helper.make_node("Enigma", ["x"], ["u"], name="first", domain="com.example"),
        helper.make_node("Enigma", ["u"], ["v"], name="second", domain="com.example"),
        helper.make_node("Relu", ["v"], ["r"]),
        helper.make_node("Mystery", ["r"], ["m"], name="third", domain="com.example"),
        helper.make_node("Gradient", ["x"], ["d"], name="fourth", domain="ai.onnx.preview.training", xs=["x"], y="x"),
        helper.make_node("If", ["c"], ["y"], name="fifth", then_branch=inner, else_branch=inner),
    ]
    model = model_of(nodes, {"x": ("float32", (2, 2)), "c": ("bool", ())}, ["y", "m", "d"])
    model.opset_import.append(helper.make_opsetid("com.example", 3))
    model.opset_import.append(helper.make_opsetid("ai.onnx.preview.training", 1))
    with pytest.raises(UnsupportedError) as caught:
        import_onnx(model)
    items = caught.value.items
    for part in (
        "Enigma [com.example 3, f32]",
        "'first'",
        "Mystery [com.example 3]",
        "Gradient [ai.onnx.preview.training 1, f32]",
        "Riddle [com.example 3, f32]",
    ):
        assert any(part in item for item in items), (part, items)
    assert all(item in str(caught.value) for item in items)


def test_element_types_that_are_no_numbers():
    """Texts are values of the host; an element type that ONNX does not have is an error."""
    model = model_of(helper.make_node("Identity", ["x"], ["y"]), {"x": ("float32", (2,))}, ["y"])
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    assert str(import_onnx(model).inputs[0].type) == 'host "tensor(string)[2]"'
    model.graph.input[0].type.tensor_type.elem_type = 99
    with pytest.raises(InvalidModelError, match="99 is no ONNX element type"):
        import_onnx(model)
    # a tensor that nobody reads does no harm
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    model.graph.initializer.append(helper.make_tensor("s", TensorProto.STRING, [1], [b"text"]))
    assert len(import_onnx(model).outputs) == 1


def test_a_shape_given_as_an_input_is_asked_for():
    model = model_of(helper.make_node("Reshape", ["x", "s"], ["y"]), {"x": ("float32", (6,)), "s": ("int64", (2,))}, ["y"])
    with pytest.raises(NeedsValuesError) as caught:
        import_onnx(model)
    assert caught.value.inputs == ("s",)
    graph = import_onnx(model, input_values={"s": np.array([2, 3])})
    assert graph.outputs[0].shape == (2, 3) and [n.location for n in graph.inputs] == ["x"]
    with pytest.raises(InputError, match="'s'"):
        import_onnx(model, input_values={"s": np.array([2.0, 3.0])})


# -- sizes that only a liar would write ----------------------------------------------------------------------------------------

HUGE = 10**12


@pytest.mark.parametrize(
    "op, constants, attributes",
    [
        ("Expand", {"shape": np.array([HUGE, 2])}, {}),
        ("ConstantOfShape", {"shape": np.array([HUGE])}, {}),
        ("Tile", {"repeats": np.array([HUGE])}, {}),
        ("Range", {"a": np.int64(0), "b": np.int64(HUGE), "c": np.int64(1)}, {}),
        ("Pad", {"pads": np.array([HUGE, HUGE])}, {}),
        ("Pad", {"pads": np.array([HUGE, HUGE])}, {"mode": "edge"}),
        ("Resize", {"sizes": np.array([HUGE])}, {"mode": "linear"}),
        ("OneHot", {"depth": np.array(HUGE), "values": np.array([0.0, 1.0])}, {}),
        ("EyeLike", {}, {}),
    ],
)
def test_huge_results_are_not_computed(op, constants, attributes):
    """Sizes of 10**12 elements are imported in a process that may not allocate 1 GiB more."""
    feeds = {} if op in ("ConstantOfShape", "Range") else {"x": ("float32", (2,))}
    order = [*feeds, *constants]
    if op == "Resize":
        order = ["x", "", "", "sizes"]
    if op == "EyeLike":
        feeds = {"x": ("float32", (10**6, 10**6))}
    model = model_of(helper.make_node(op, order, ["y"], **attributes), feeds, ["y"], constants)
    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, hard))
    try:
        graph = import_onnx(model)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))
    assert graph.outputs[0].tensor.numel >= HUGE


def test_functions_that_double_are_bounded():
    """Thirty functions, each calling the next twice, would be 2**30 nodes."""
    functions = []
    for k in range(30):
        callee = ("Neg", "") if k == 29 else (f"f{k + 1}", "local")
        nodes = [
            helper.make_node(callee[0], ["a"], ["b"], domain=callee[1]),
            helper.make_node(callee[0], ["b"], ["c"], domain=callee[1]),
        ]
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
        functions.append(helper.make_function("local", f"f{k}", ["a"], ["c"], nodes, opsets))
    call = helper.make_node("f0", ["x"], ["y"], domain="local")
    model = model_of(call, {"x": ("float32", (2,))}, ["y"], functions=functions)
    model.opset_import.append(helper.make_opsetid("local", 1))
    from dlcompiler.frontends import onnx_import

    limit, onnx_import.MOST_NODES = onnx_import.MOST_NODES, 10_000
    try:
        broken("more than 10,000 nodes", model)
    finally:
        onnx_import.MOST_NODES = limit
    functions[1].node[0].op_type = "f0"
    model = model_of(call, {"x": ("float32", (2,))}, ["y"], functions=functions)
    model.opset_import.append(helper.make_opsetid("local", 1))
    broken("calls itself", model)


# -- external data -------------------------------------------------------------------------------------------------------------


def with_external(location: str, **entries: int | str) -> ModelProto:
    model = model_of(helper.make_node("Add", ["x", "w"], ["y"]), {"x": ("float32", (3,))}, ["y"])
    tensor = model.graph.initializer.add()
    tensor.name, tensor.data_type, tensor.data_location = "w", TensorProto.FLOAT, TensorProto.EXTERNAL
    tensor.dims.append(3)
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return model


@pytest.fixture
def weights(tmp_path):
    """A folder with 24 bytes of weights beside the model, and a secret outside it."""
    folder = tmp_path / "model"
    folder.mkdir()
    np.arange(6, dtype=np.float32).tofile(folder / "w.bin")
    np.arange(6, dtype=np.float32).tofile(tmp_path / "secret.bin")
    return folder


def save(folder, model: ModelProto):
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data_is_mapped(weights):
    graph = import_onnx(save(weights, with_external("w.bin", offset=12, length=12)))
    (constant,) = [n for n in graph.nodes if n.op.name == "constant"]
    value = constant.attributes["value"]
    assert place_in_file(value) == (os.path.realpath(weights / "w.bin"), 12) and not value.flags.writeable
    np.testing.assert_array_equal(value, [3, 4, 5])
    np.testing.assert_array_equal(interpret(graph, {"x": np.ones(3, np.float32)})[0], [4, 5, 6])


def test_external_data_at_an_odd_offset_is_aligned(weights):
    (weights / "odd.bin").write_bytes(b"\0" + np.arange(3, dtype=np.float32).tobytes())
    graph = import_onnx(save(weights, with_external("odd.bin", offset=1, length=12)))
    (constant,) = [n for n in graph.nodes if n.op.name == "constant"]
    assert constant.attributes["value"].flags.aligned
    np.testing.assert_array_equal(constant.attributes["value"], [0, 1, 2])


@pytest.mark.parametrize(
    "location, entries, says",
    [
        ("../secret.bin", {}, "outside the model's folder"),
        ("sub/../../secret.bin", {}, "outside the model's folder"),
        ("/etc/passwd", {}, "outside the model's folder"),
        ("..\\secret.bin", {}, "outside the model's folder"),
        ("C:\\secret.bin", {}, "outside the model's folder"),
        ("link.bin", {}, "outside the model's folder"),
        ("folder/secret.bin", {}, "outside the model's folder"),
        ("", {}, "outside the model's folder"),
        ("w\0.bin", {}, "outside the model's folder"),
        ("missing.bin", {}, "is missing"),
        (".", {}, "is missing"),
        ("w.bin", {"offset": 16, "length": 12}, "ends at byte 28"),
        ("w.bin", {"offset": 2**62, "length": 12}, "ends at byte"),
        ("w.bin", {"offset": -4, "length": 12}, "not a number of bytes"),
        ("w.bin", {"offset": "1e3"}, "not a number of bytes"),
        ("w.bin", {"length": 8}, "takes 12 bytes"),
        ("w.bin", {"length": 10**30}, "not a number of bytes"),
    ],
)
def test_external_data_that_is_refused(weights, location, entries, says):
    (weights / "link.bin").symlink_to(weights.parent / "secret.bin")
    (weights / "folder").symlink_to(weights.parent)
    with pytest.raises(InvalidModelError, match=says) as caught:
        import_onnx(save(weights, with_external(location, **entries)))
    assert "'w'" in str(caught.value) or "tensor w" in str(caught.value)


def test_external_data_without_a_folder():
    with pytest.raises(InvalidModelError, match="give the path"):
        import_onnx(with_external("w.bin"))


def test_external_data_of_more_than_the_file_claims(weights):
    model = with_external("w.bin")
    model.graph.initializer[0].dims[0] = HUGE
    with pytest.raises(InvalidModelError):
        import_onnx(save(weights, model))
