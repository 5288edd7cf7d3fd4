"""One node against ONNX Runtime, which defines the operators of `com.microsoft`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
from onnx import helper, numpy_helper

from dlcompiler.frontends.onnx import import_onnx
from dlcompiler.reference import run_reference

RANDOM = np.random.default_rng(0)


def floats(*shape: int, scale: float = 1.0) -> np.ndarray:
    return (RANDOM.standard_normal(shape) * scale).astype(np.float32)


def integers(low: int, high: int, *shape: int, dtype: Any = np.int32) -> np.ndarray:
    return RANDOM.integers(low, high, shape).astype(dtype)


def check(
    op: str,
    inputs: list[np.ndarray | None],
    outputs: int = 1,
    domain: str = "com.microsoft",
    tolerance: float = 2e-5,
    constants: Sequence[int] = (),
    **attributes: Any,
) -> None:
    """Ours, by the interpreter, equals ONNX Runtime's on one node. An input of None is left out; some are constants."""
    names = [f"x{k}" if x is not None else "" for k, x in enumerate(inputs)]
    wanted = [f"y{k}" for k in range(outputs)]
    arrays = {name: np.asarray(x) for name, x in zip(names, inputs) if x is not None}
    given = {name: x for name, x in arrays.items() if int(name[1:]) not in constants}
    node = helper.make_node(op, names, wanted, domain=domain, **attributes)
    infos = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape) for n, x in given.items()]
    held = [numpy_helper.from_array(x, name) for name, x in arrays.items() if name not in given]
    graph = helper.make_graph([node], op, infos, [helper.make_empty_tensor_value_info(n) for n in wanted], held)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    expected = session.run(None, given)
    ours = run_reference(import_onnx(model), list(given.values()))
    for k, (got, want) in enumerate(zip(ours, expected)):
        assert got.dtype == want.dtype and got.shape == want.shape, (k, got.shape, want.shape)
        if want.dtype == object:
            np.testing.assert_array_equal(got, want)
        else:
            np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance, err_msg=f"output {k}")
