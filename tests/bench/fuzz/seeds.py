"""The files that mutations start from: small, many, and of every operator that the onnx package has cases for."""

from __future__ import annotations

import functools
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

LARGEST = 20_000  # bytes: a mutation of a larger file hits its weights nearly always, which proves little


@functools.cache
def models() -> tuple[tuple[str, ModelProto], ...]:
    """(name, model): the conformance cases of operators, the package's small models, and ours; always in the same order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        cases = {case.name: case.model for case in collect_testcases("") if case.model is not None}
    for path in sorted((Path(onnx.__file__).parent / "backend/test/data").glob("*/*/model.onnx")):
        if path.stat().st_size <= LARGEST:
            cases[path.parent.name] = onnx.load(path, load_external_data=False)
    cases.update(own_models())
    return tuple((name, cases[name]) for name in sorted(cases) if cases[name].ByteSize() <= LARGEST)


def own_models() -> dict[str, ModelProto]:
    """What the conformance cases have none of: several nodes, weights, functions, branches, shapes that the file computes."""
    random = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name)

    def numbers(name: str, *values: int) -> TensorProto:
        return numpy_helper.from_array(np.array(values, np.int64), name)

    node, info = helper.make_node, helper.make_tensor_value_info

    def model(name: str, nodes: list, x: list, y: list, *weights: TensorProto, functions: list | None = None) -> ModelProto:
        graph = helper.make_graph(
            nodes, name, [info("x", TensorProto.FLOAT, x)], [info("y", TensorProto.FLOAT, y)], list(weights)
        )
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=functions or [])

    twice = helper.make_function(
        "own", "Twice", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 21)]
    )  # fmt: skip
    branch = [
        helper.make_graph([node(op, ["x"], [f"{op}_out"])], op, [], [info(f"{op}_out", TensorProto.FLOAT, [2, 4])])
        for op in ("Relu", "Neg")
    ]
    made = [
        model(
            "own_dense",
            [
                node("MatMul", ["x", "w"], ["h"], name="dense"),
                node("Add", ["h", "b"], ["g"], name="bias"),
                node("Softmax", ["g"], ["y"], name="softmax", axis=-1),
            ],
            ["n", 4], ["n", 3], weight("w", 4, 3), weight("b", 3),
        ),
        model(
            "own_convolution",
            [
                node("Conv", ["x", "w", "b"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
                node("BatchNormalization", ["c", "s", "s", "b", "v"], ["n"]),
                node("Relu", ["n"], ["r"]),
                node("GlobalAveragePool", ["r"], ["p"]),
                node("Flatten", ["p"], ["y"]),
            ],
            [1, 2, 6, 6], [1, 4], weight("w", 4, 2, 3, 3), weight("b", 4), weight("s", 4),
            numpy_helper.from_array(np.ones(4, np.float32), "v"),
        ),
        model(
            "own_shapes",
            [
                node("Shape", ["x"], ["s"]),
                node("Gather", ["s", "zero"], ["n"]),
                node("Unsqueeze", ["n", "axis"], ["n1"]),
                node("Concat", ["n1", "rest"], ["shape"], axis=0),
                node("Reshape", ["x", "shape"], ["r"]),
                node("Transpose", ["r"], ["t"], perm=[1, 0, 2]),
                node("Expand", ["t", "big"], ["e"]),
                node("ReduceSum", ["e", "axis"], ["y"], keepdims=0),
            ],
            ["n", 12], [1, 4], numpy_helper.from_array(np.array(0, np.int64), "zero"), numbers("axis", 0),
            numbers("rest", 3, 4), numbers("big", 3, 1, 4),
        ),
        model("own_function", [node("Twice", ["x"], ["y"], domain="own")], [2, 4], [2, 4], functions=[twice]),
        model(
            "own_branches",
            [
                node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(True), "")),
                node("If", ["c"], ["y"], then_branch=branch[0], else_branch=branch[1]),
            ],
            [2, 4], [2, 4],
        ),
        model(
            "own_folding",
            [
                node("ConstantOfShape", ["big"], ["a"]),
                node("Tile", ["a", "times"], ["b"]),
                node("Add", ["x", "b"], ["y"]),
            ],
            [4, 6], [4, 6], numbers("big", 2, 3), numbers("times", 2, 2),
        ),
        model(
            "own_attention",
            [
                node("MatMul", ["x", "wq"], ["q"]),
                node("MatMul", ["x", "wk"], ["k"]),
                node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
                node("MatMul", ["q", "kt"], ["scores"]),
                node("Softmax", ["scores"], ["p"], axis=-1),
                node("MatMul", ["p", "x"], ["h"]),
                node("LayerNormalization", ["h", "g", "g"], ["n"], axis=-1),
                node("Gelu", ["n"], ["y"]),
            ],
            [2, 5, 4], [2, 5, 4], weight("wq", 4, 4), weight("wk", 4, 4), weight("g", 4),
        ),
    ]  # fmt: skip
    return {each.graph.name: each for each in made} | contrib_models()


# operator of com.microsoft -> (shapes of inputs, `i` in front for numbers of a table, None for one left out; attributes)
CONTRIB: dict[str, tuple[list, dict[str, object]]] = {
    "FastGelu": ([(2, 4), (4,)], {}),
    "QuickGelu": ([(2, 4)], {"alpha": 1.5}),
    "FusedMatMul": ([(2, 3, 4), (2, 5, 4)], {"transB": 1, "alpha": 0.5}),
    "SkipLayerNormalization": ([(2, 3, 4), (2, 3, 4), (4,), (4,), (4,)], {"epsilon": 1e-5}),
    "EmbedLayerNormalization": ([("i", 2, 3), ("i", 2, 3), (5, 4), (3, 4), (2, 4), (4,), (4,)], {}),
    "RotaryEmbedding": ([(2, 3, 8), ("l", 2, 3), (4, 2), (4, 2)], {"num_heads": 2}),
    "MatMulNBits": ([(3, 32), ("u", 6, 2, 8), (12,)], {"K": 32, "N": 6, "bits": 4, "block_size": 16}),
    "Attention": ([(2, 3, 4), (4, 12), (12,), ("i", 2, 3)], {"num_heads": 2, "unidirectional": 1}),
    "MultiHeadAttention": ([(2, 3, 4), (2, 3, 4), (2, 3, 4), (12,)], {"num_heads": 2}),
    "GroupQueryAttention": (
        [(2, 1, 16), (2, 1, 8), (2, 1, 8), (2, 2, 3, 4), (2, 2, 3, 4), ("i", 2), ("i", 1), (8, 2), (8, 2)],
        {"num_heads": 4, "kv_num_heads": 2, "do_rotary": 1},
    ),
}
CODES = {"i": TensorProto.INT32, "l": TensorProto.INT64, "u": TensorProto.UINT8}


def contrib_models() -> dict[str, ModelProto]:
    """A model of one node for each operator of `com.microsoft`, for which the onnx package has no cases."""
    found = {}
    for op, (shapes, attributes) in CONTRIB.items():
        infos = []
        for k, shape in enumerate(shapes):
            code = CODES.get(shape[0], TensorProto.FLOAT)
            infos.append(helper.make_tensor_value_info(f"x{k}", code, shape if code == TensorProto.FLOAT else shape[1:]))
        nodes = [helper.make_node(op, [info.name for info in infos], ["y"], domain="com.microsoft", **attributes)]
        graph = helper.make_graph(nodes, f"contrib_{op}", infos, [helper.make_empty_tensor_value_info("y")])
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        found[graph.name] = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return found


TEXTS = (
    """graph small {
  input %x : f32[N, 12]
  %c = constant 2.0 : f32[]
  %w = constant [1.0, 2.0, 3.0, 4.0] : f32[4]
  %1 = mul(%x, %c) : f32[N, 12]
  %2 = reshape(%1) {shape = [N, 3, 4]} : f32[N, 3, 4]
  %3 = add(%2, %w) : f32[N, 3, 4]   at "model.py:12"
  %4 = softmax(%3) {axis = 2} : f32[N, 3, 4]
  %5 = reduce_sum(%4) {axes = [1]} : f32[N, 4]
  output %5 as "y"
}
""",
)


@functools.cache
def texts() -> tuple[str, ...]:
    """Graph text: ours, and small models as they are imported."""
    from dlcompiler.ir.errors import CompilerError
    from dlcompiler.ir.text import graph_constants, print_graph

    from dlcompiler.frontends.onnx import import_onnx

    found = list(TEXTS)
    for _, model in models()[::7]:
        try:
            graph = import_onnx(model)
        except CompilerError:
            continue
        if not graph_constants(graph):
            found.append(print_graph(graph))
    return tuple(found)


@functools.cache
def artifacts() -> tuple[dict[str, bytes], ...]:
    """Members of small artefacts, by name."""
    from dlcompiler.artifact import Artifact, save_artifact
    from dlcompiler.frontends.onnx import import_onnx

    found = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.dlc"
        for name in ("own_dense", "own_convolution", "own_attention"):
            save_artifact(file, Artifact(import_onnx(own_models()[name]), "cpu"))
            with zipfile.ZipFile(file) as archive:
                found.append({member: archive.read(member) for member in archive.namelist()})
    return tuple(found)
