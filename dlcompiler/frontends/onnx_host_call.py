"""Nodes of an ONNX model that become calls of the host, and those that the user has defined (`dlcompiler.extend`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onnx import AttributeProto, NodeProto

from dlcompiler import extend
from dlcompiler.frontends.onnx_attributes import attribute_values, resolved_attributes
from dlcompiler.frontends.onnx_host import host_attributes
from dlcompiler.frontends.onnx_infer import infer_types
from dlcompiler.frontends.onnx_schema import Schema
from dlcompiler.ir.errors import DTypeError, InvalidModelError, UnsupportedError
from dlcompiler.ir.graph import Node
from dlcompiler.ir.ops import lookup
from dlcompiler.ir.types import DTYPES, HostType, TensorType, TupleType

if TYPE_CHECKING:
    from dlcompiler.frontends.onnx_import import Scope, _Importer

Types = Sequence[TensorType | HostType | None]


def call_host(
    importer: _Importer, node: NodeProto, scope: Scope, inputs: Sequence[Any], schema: Schema, location: str, reason: str
) -> tuple[Any, ...] | None:
    """A call of an operator with a schema; None where the types of its results cannot be told."""
    resolved = _resolved(node, scope)
    if any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for a in resolved.attribute):
        return None
    types = infer_types(resolved, schema, inputs, scope.versions, importer.b, importer.interface.fresh)
    if types is None:
        return None
    return append_call(importer, resolved, schema.version, inputs, types, location, reason)


def own_operator(
    importer: _Importer, definition: extend.Operator, node: NodeProto, scope: Scope, inputs: Sequence[Any], location: str
) -> tuple[Any, ...]:
    """What a node is by the user's definition. Raises InvalidModelError, UnsupportedError, ShapeError, DTypeError."""
    attributes = attribute_values(resolved_attributes(node, scope.attributes), importer.reader, location)
    importer.b.location = location
    if isinstance(definition, extend.HostOperator):
        types = _own_types(importer, definition, inputs, attributes)
        resolved = _resolved(node, scope)
        version = scope.versions["" if node.domain == "ai.onnx" else node.domain]
        return append_call(importer, resolved, version, inputs, types, location, "defined by the user")
    result = definition.build(importer.b, inputs, attributes)
    results = result if isinstance(result, tuple) else (result,)
    if len(results) < len(node.output) or not all(isinstance(each, Node) or each is None for each in results):
        raise InvalidModelError(
            f"{definition.name} gives {len(node.output)} results here, its definition {len(results)}; they are nodes, or None",
            location=location,
            hint=f"see {definition.where}",
        )
    return results


def _own_types(
    importer: _Importer, definition: extend.HostOperator, inputs: Sequence[Any], attributes: Mapping[str, Any]
) -> list[TensorType]:
    definition.require_fit(inputs, attributes)
    types = []
    for dtype, shape in definition.types([None if i is None else i.type for i in inputs], attributes):
        if dtype not in DTYPES:
            raise DTypeError(f"{definition.name}: there is no element type {dtype!r}", hint=f"see {definition.where}")
        types.append(TensorType(DTYPES[dtype], tuple(importer.interface.fresh("size") if d is None else d for d in shape)))
    return types


def _resolved(node: NodeProto, scope: Scope) -> NodeProto:
    """The node with the attributes that a function's call gives it."""
    resolved = NodeProto()
    resolved.CopyFrom(node)
    del resolved.attribute[:]
    resolved.attribute.extend(resolved_attributes(node, scope.attributes))
    return resolved


def append_call(
    importer: _Importer, node: NodeProto, version: int, inputs: Sequence[Any], types: Types, location: str, reason: str
) -> tuple[Node | None, ...]:
    """The results, of `types`, of a node that the host runs. Raises UnsupportedError where it has more of them."""
    while node.output and not node.output[-1]:
        del node.output[-1]
    if len(types) < len(node.output):
        raise UnsupportedError(f"{node.op_type} with {len(node.output)} results", items=(node.op_type,), location=location)
    attributes = host_attributes(node, "" if node.domain == "ai.onnx" else node.domain, version, reason)
    importer.b.location = location
    given = tuple(i for i in inputs if i is not None)
    made = importer.b.make(lookup("host.call"), given, attributes, TupleType(tuple(types)), node.op_type)
    return tuple(importer.b("tuple.get", made, index=k) if type is not None else None for k, type in enumerate(types))
