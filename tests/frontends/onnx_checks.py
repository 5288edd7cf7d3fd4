"""Small ONNX models, imported and interpreted, against the reference evaluator of the onnx package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from dlcompiler.ir.errors import UnsupportedError
from dlcompiler.ir.graph import Graph
from dlcompiler.ir.verify import verify_graph
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from dlcompiler.frontends.onnx import NeedsValuesError, import_onnx
from dlcompiler.reference import run_reference

Feeds = Mapping[str, np.ndarray]
Oracle = Callable[[ModelProto, Feeds], list[np.ndarray]]


def model_of(
    nodes: Sequence[NodeProto] | NodeProto,
    inputs: Mapping[str, tuple[str, Sequence[Any] | None]],
    outputs: Sequence[str],
    constants: Feeds | None = None,
    opset: int = 20,
    **fields: Any,
) -> ModelProto:
    """A model. `inputs`: name -> (dtype name, shape); `constants` become initializers."""
    types = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
        for name, (dtype, shape) in inputs.items()
    ]
    graph = helper.make_graph(
        list(nodes) if not isinstance(nodes, NodeProto) else [nodes],
        "checked",
        types,
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10, **fields)


def interpret(graph: Graph, feeds: Feeds) -> list[np.ndarray]:
    """The graph's outputs; it is verified first."""
    verify_graph(graph)
    return run_reference(graph, [feeds[node.location or ""] for node in graph.inputs])


def run(model: ModelProto, feeds: Feeds, **settings: Any) -> list[np.ndarray]:
    """The outputs by import and interpreter."""
    return interpret(import_onnx(model, **settings), feeds)


def symbolic_shapes(feeds: Feeds) -> dict[str, tuple[int | str, ...]]:
    """Every size above 1 of every input as a symbol; equal sizes are one symbol, so that tensors still fit each other."""
    return {name: tuple(f"N{size}" if size > 1 else size for size in x.shape) for name, x in feeds.items()}


def by_reference(model: ModelProto, feeds: Feeds) -> list[np.ndarray]:
    """The outputs by the onnx package's reference evaluator."""
    return ReferenceEvaluator(model).run(None, dict(feeds))


def by_onnxruntime(model: ModelProto, feeds: Feeds) -> list[np.ndarray]:
    """The outputs by onnxruntime, for what the reference evaluator does not do (all float32)."""
    import onnxruntime

    typed = ModelProto()
    typed.CopyFrom(model)
    for output in typed.graph.output:
        output.type.tensor_type.elem_type = TensorProto.FLOAT
    return onnxruntime.InferenceSession(typed.SerializeToString()).run(None, dict(feeds))


def check_node(
    op_type: str,
    feeds: Feeds,
    constants: Feeds | None = None,
    *,
    outputs: int = 1,
    opset: int = 20,
    tolerance: float = 1e-4,
    expected: Sequence[np.ndarray] | None = None,
    oracle: Oracle = by_reference,
    symbolic: bool = True,
    order: Sequence[str] | None = None,
    **attributes: Any,
) -> Graph:
    """One node with these inputs gives what the oracle gives, or `expected`; also with every size symbolic.

    Inputs are `feeds`, then `constants`, in the order of `order` if given ("" for one left out). With symbolic sizes the
    import may refuse (a shape that hangs on one), but what it accepts must be right.
    """
    constants = constants or {}
    names = list(order) if order is not None else [*feeds, *constants]
    results = [f"result{k}" for k in range(outputs)]
    node = helper.make_node(op_type, names, results, **attributes)
    model = model_of(node, {n: (x.dtype.name, x.shape) for n, x in feeds.items()}, results, constants, opset)
    if expected is None:
        expected = oracle(model, feeds)
    graph = import_onnx(model)
    compare(interpret(graph, feeds), expected, tolerance, f"{op_type} {attributes}")
    if symbolic:
        try:
            general = import_onnx(model, symbolic_shapes(feeds))
        except (UnsupportedError, NeedsValuesError):
            return graph
        compare(interpret(general, feeds), expected, tolerance, f"{op_type} {attributes} with symbolic sizes")
    return graph


def compare(actual: Sequence[np.ndarray], expected: Sequence[np.ndarray], tolerance: float, what: str) -> None:
    """Equal dtypes and shapes; integers equal, floats within `tolerance` of the largest."""
    assert len(actual) == len(expected)
    for got, want in zip(actual, map(np.asarray, expected)):
        assert got.dtype == want.dtype and got.shape == want.shape, (
            f"{what}: {got.dtype}{got.shape}, not {want.dtype}{want.shape}"
        )
        if want.dtype.kind in "biu":
            np.testing.assert_array_equal(got, want, what)
            continue
        finite = np.abs(want[np.isfinite(want)].astype(np.float64))
        scale = max(float(finite.max()), 1.0) if finite.size else 1.0
        np.testing.assert_allclose(
            got.astype(np.float64), want.astype(np.float64), rtol=tolerance, atol=tolerance * scale, err_msg=what
        )


__all__ = ["check_node", "compare", "interpret", "model_of", "run", "symbolic_shapes"]
