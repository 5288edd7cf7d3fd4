"""Attributes of nodes, as Python values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnx import AttributeProto, NodeProto

from dlcompiler.frontends.onnx_load import TensorReader
from dlcompiler.ir.errors import InvalidModelError, UnsupportedError


def resolved_attributes(node: NodeProto, of_call: Mapping[str, AttributeProto]) -> list[AttributeProto]:
    """The node's attributes; those that refer to attributes of the function's call are replaced, or left out if it has none."""
    result = []
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            given = of_call.get(attribute.ref_attr_name)
            if given is None:
                continue
            renamed = AttributeProto()
            renamed.CopyFrom(given)
            renamed.name = attribute.name
            attribute = renamed
        result.append(attribute)
    return result


def attribute_values(attributes: Sequence[AttributeProto], reader: TensorReader, location: str) -> dict[str, Any]:
    """Values by name: numbers, texts, tuples of them, arrays, graphs. Raises UnsupportedError for one of another kind."""
    return {a.name: _value(a, reader, location) for a in attributes}


def _value(attribute: AttributeProto, reader: TensorReader, location: str) -> Any:
    match attribute.type:
        case AttributeProto.FLOAT:
            return attribute.f
        case AttributeProto.INT:
            return attribute.i
        case AttributeProto.STRING:
            return _text(attribute.s, location)
        case AttributeProto.TENSOR:
            return reader.array(attribute.t)
        case AttributeProto.SPARSE_TENSOR:
            return reader.dense(attribute.sparse_tensor)
        case AttributeProto.FLOATS:
            return tuple(attribute.floats)
        case AttributeProto.INTS:
            return tuple(attribute.ints)
        case AttributeProto.STRINGS:
            return tuple(_text(s, location) for s in attribute.strings)
        case AttributeProto.GRAPH:
            return attribute.g
    raise UnsupportedError("attribute type", items=(f"attribute {attribute.name} of an unusual type",))


def _text(data: bytes, location: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidModelError("an attribute's text is not UTF-8", location=location) from None
