"""Types of the results of operators that the host runs, by the shape inference of their own schemas."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
from onnx import NodeProto, TypeProto, helper, numpy_helper

from dlcompiler.frontends.onnx_fold import FoldingBuilder
from dlcompiler.frontends.onnx_host import host_type, is_numeric
from dlcompiler.frontends.onnx_registry import element_type
from dlcompiler.frontends.onnx_schema import Schema, type_proto
from dlcompiler.ir.expression import Dim, symbol_name
from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import HostType, TensorType

SMALL = 1024  # elements of an input whose values inference is told


def infer_types(
    node: NodeProto,
    schema: Schema,
    inputs: Sequence[Any],
    versions: Mapping[str, int],
    b: FoldingBuilder,
    fresh: Callable[[str], Dim],
) -> tuple[TensorType | HostType | None, ...] | None:
    """A type for each output, None for one that is not asked for; None if not even their kinds can be told.

    Sizes that inference does not tell are fresh symbols; a tensor of unknown rank is a value of the host.
    """
    named = NodeProto()
    named.CopyFrom(node)
    types: dict[str, TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    for k, value in enumerate(inputs):
        if not isinstance(value, Node):
            continue
        # a name of its own for each input, so that two uses of one value are told apart
        name = named.input[k] = f"x{k}"
        types[name] = type_proto(value)
        array = b.array(value) if isinstance(value.type, TensorType) and not value.dtype.is_narrow else None
        if array is not None and array.size <= SMALL:
            data[name] = numpy_helper.from_array(array, name)
    for k, name in enumerate(node.output):
        named.output[k] = f"y{k}" if name else ""
    sizes = {symbol_name(d): d for v in inputs if isinstance(v, Node) and isinstance(v.type, TensorType) for d in v.shape}
    imports = [helper.make_opsetid(domain, version) for domain, version in versions.items()]
    try:
        found = onnx.shape_inference.infer_node_outputs(schema.raw, named, types, data, opset_imports=imports)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError, KeyError):
        return None
    result: list[TensorType | HostType | None] = []
    for k, name in enumerate(node.output):
        proto = found.get(f"y{k}")
        if not name:
            result.append(None)
        elif proto is None or proto.WhichOneof("value") is None:
            return None
        else:
            result.append(_type(proto, sizes, fresh))
    while result and result[-1] is None:
        result.pop()
    return tuple(result)


def _type(proto: TypeProto, sizes: Mapping[str | None, Dim], fresh: Callable[[str], Dim]) -> TensorType | HostType:
    if not is_numeric(proto):
        return host_type(proto)
    dims: list[Dim] = []
    for dim in proto.tensor_type.shape.dim:
        if dim.HasField("dim_value"):
            dims.append(dim.dim_value)
        else:
            known = sizes.get(dim.dim_param) if dim.dim_param else None
            dims.append(known if known is not None else fresh("size"))
    return TensorType(element_type(proto.tensor_type.elem_type), tuple(dims))
