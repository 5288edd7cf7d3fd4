"""Operators that the host runs, by the onnx package's reference evaluator: texts, sequences, optionals, what has no kernel.

An operator becomes a `host.call` whose attributes are plain data, so that it prints, is saved and comes back:
{operator, domain, version, given: which inputs there are, results, attributes: {...}, reason: why it is no kernel}.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, TypeProto, helper, numpy_helper

from dlcompiler import extend
from dlcompiler.frontends.onnx_host_own import OWN
from dlcompiler.frontends.onnx_registry import ELEMENT_TYPES
from dlcompiler.ir.errors import InputError, UnsupportedError
from dlcompiler.ir.types import HostType

# what the evaluator answers otherwise than the operators' text and ONNX Runtime in some cases: pools with padding, say, and
# recurrent layers whose sequences have lengths
OTHERWISE = frozenset({"MaxPool", "AveragePool", "LpPool", "ConvTranspose", "LSTM", "GRU", "RNN"})
# where the reference evaluator has each domain's operators
_PACKAGES = {"": "ops", "ai.onnx.ml": "ops.aionnxml", "ai.onnx.preview.training": "ops.aionnx_preview_training"}
_CODES = {name.lower(): code for name, code in TensorProto.DataType.items()}
_NAMES = {code: name for name, code in _CODES.items()}


@lru_cache(maxsize=4096)
def is_implemented(op_type: str, domain: str, version: int) -> bool:
    """Whether we or the reference evaluator have the operator."""
    if (domain, op_type) in OWN:
        return True
    if domain == "" and op_type in OTHERWISE:
        return False
    from importlib import import_module

    package = _PACKAGES.get(domain)
    if package is None:
        return False
    try:
        import_module(f"onnx.reference.{package}._op_list").load_op(domain, op_type, version)
    except (RuntimeError, ValueError, ImportError, KeyError, AttributeError, AssertionError, onnx.defs.SchemaError):
        return False
    return True


def host_attributes(node: NodeProto, domain: str, version: int, reason: str = "") -> dict[str, Any]:
    """A node as the attributes of a `host.call`; `reason` says why it is no kernel. Raises UnsupportedError for graphs inside."""
    told = {"reason": reason} if reason else {}
    return {
        "target": f"{domain or 'ai.onnx'}.{node.op_type}",
        "operator": node.op_type,
        "domain": domain,
        "version": version,
        "given": tuple(bool(name) for name in node.input),
        "results": len(node.output),
        "attributes": {a.name: _plain(a) for a in node.attribute},
        **told,
    }


def _plain(attribute: AttributeProto) -> Any:
    match attribute.type:
        case AttributeProto.FLOAT:
            return attribute.f
        case AttributeProto.INT:
            return attribute.i
        case AttributeProto.STRING:
            return attribute.s.decode("utf-8", "surrogateescape")
        case AttributeProto.FLOATS:
            return {"floats": tuple(attribute.floats)}
        case AttributeProto.INTS:
            return {"ints": tuple(attribute.ints)}
        case AttributeProto.STRINGS:
            return {"strings": tuple(s.decode("utf-8", "surrogateescape") for s in attribute.strings)}
        case AttributeProto.TENSOR | AttributeProto.TYPE_PROTO:
            bare = AttributeProto()
            bare.CopyFrom(attribute)
            return {"message": base64.b64encode(bare.SerializeToString()).decode()}
    raise UnsupportedError("an attribute", items=(f"attribute {attribute.name} of an unusual type",))


def _plain_value(value: Any) -> Any:
    """What an attribute is for a Python function: a number, a text, a tuple of them, or an array."""
    if not isinstance(value, Mapping):
        return value
    ((kind, content),) = value.items()
    if kind != "message":
        return tuple(content)
    attribute = _attribute("", value)
    return numpy_helper.to_array(attribute.t) if attribute.type == AttributeProto.TENSOR else attribute


def _attribute(name: str, value: Any) -> AttributeProto:
    if isinstance(value, Mapping):
        ((kind, content),) = value.items()
        if kind == "message":
            attribute = AttributeProto()
            attribute.ParseFromString(base64.b64decode(content))
            return attribute
        number = {"floats": AttributeProto.FLOATS, "ints": AttributeProto.INTS, "strings": AttributeProto.STRINGS}[kind]
        return helper.make_attribute(name, list(content), attr_type=number)
    return helper.make_attribute(name, value)


@lru_cache(maxsize=1024)
def _evaluator(text: str) -> tuple[Any, list[str]]:
    """The reference evaluator of a one-node model, and its inputs' names."""
    from onnx.reference import ReferenceEvaluator

    call = json.loads(text)
    names = [f"x{k}" if given else "" for k, given in enumerate(call["given"])]
    outputs = [f"y{k}" for k in range(call["results"])]
    node = NodeProto(op_type=call["operator"], domain=call["domain"], input=names, output=outputs)
    node.attribute.extend(_attribute(name, value) for name, value in call["attributes"].items())
    given = [helper.make_empty_tensor_value_info(name) for name in names if name]
    wanted = [helper.make_empty_tensor_value_info(name) for name in outputs]
    graph = helper.make_graph([node], "host", given, wanted)
    imports = [helper.make_opsetid(call["domain"], call["version"])]
    if call["domain"]:
        imports.append(helper.make_opsetid("", onnx.defs.onnx_opset_version()))
    model = helper.make_model(graph, opset_imports=imports)
    return ReferenceEvaluator(model), [name for name in names if name]


def run_operator(target: str, attributes: Mapping[str, Any], operands: Sequence[Any]) -> list[Any]:
    """The operator's results on arrays and host values. Raises InputError where it does not take them."""
    run = _operator(attributes)
    try:
        return run(operands)
    # OSError: no image, says the reader of images. ArithmeticError: parts of size zero
    except (ValueError, TypeError, IndexError, RuntimeError, OSError, ArithmeticError) as error:
        raise InputError(f"{target} does not take these values: {error}") from error
    except ImportError as error:
        raise UnsupportedError(f"{target} needs a package that is not installed: {error}", items=(target,)) from None


def _operator(attributes: Mapping[str, Any]) -> Callable[[Sequence[Any]], list[Any]]:
    domain, name = attributes["domain"], attributes["operator"]
    defined = extend.find(domain, name)
    own = defined.function if isinstance(defined, extend.HostOperator) else OWN.get((domain, name))
    if own is None and domain not in _PACKAGES:
        raise UnsupportedError(
            f"nothing here runs the operator {domain}::{name}",
            items=(f"{domain}::{name}",),
            hint="import the module that defines it with dlcompiler.extend.host_operator",
        )
    if own is None:
        key = {name: attributes[name] for name in ("operator", "domain", "version", "given", "results", "attributes")}
        evaluator, names = _evaluator(json.dumps(key))
        return lambda operands: [_with_texts(value) for value in evaluator.run(None, dict(zip(names, operands)))]
    is_ours = defined is None
    named = {key: _plain_value(value) for key, value in attributes["attributes"].items() if key != "type" or not is_ours}

    def run(operands: Sequence[Any]) -> list[Any]:
        given = iter(operands)
        result = own(*(next(given) if is_given else None for is_given in attributes["given"]), **named)
        return list(result) if isinstance(result, tuple) else [result]  # a sequence is a list

    return run


def _with_texts(value: Any) -> Any:
    """A result of the evaluator; texts are objects, as they are everywhere else."""
    return value.astype(object) if isinstance(value, np.ndarray) and value.dtype.kind == "U" else value


# -- types -------------------------------------------------------------------------------------------------------------------


def host_type(proto: TypeProto) -> HostType:
    """`seq(tensor(float)[2, _])`, `optional(...)`, `tensor(string)`: a type as text, with what is known of shapes."""
    return HostType(_type_text(proto))


def _name_of(code: int) -> str:
    if code not in _NAMES:
        raise UnsupportedError(f"element type {code}", items=(f"element type {code}",))
    return _NAMES[code]


def _type_text(proto: TypeProto) -> str:
    match proto.WhichOneof("value"):
        case "tensor_type":
            tensor = proto.tensor_type
            text = f"tensor({_name_of(tensor.elem_type)})"
            if not tensor.HasField("shape"):
                return text
            dims = [str(d.dim_value) if d.HasField("dim_value") else "_" for d in tensor.shape.dim]
            return f"{text}[{', '.join(dims)}]"
        case "sequence_type":
            return f"seq({_type_text(proto.sequence_type.elem_type)})"
        case "optional_type":
            return f"optional({_type_text(proto.optional_type.elem_type)})"
        case "map_type":
            return f"map({_name_of(proto.map_type.key_type)}, {_type_text(proto.map_type.value_type)})"
    raise UnsupportedError("a type", items=("a value of unknown type",))


def parse_type(text: str) -> TypeProto:
    """The inverse of `host_type`."""
    proto = TypeProto()
    head, _, rest = text.partition("(")
    if head == "tensor":
        name, _, shape = rest.partition(")")
        proto.tensor_type.elem_type = _CODES[name]
        if shape:
            proto.tensor_type.shape.SetInParent()
            for dim in filter(None, shape.strip("[]").split(", ")):
                added = proto.tensor_type.shape.dim.add()
                if dim != "_":
                    added.dim_value = int(dim)
        return proto
    inner = rest[:-1]
    if head == "map":
        key, _, value = inner.partition(", ")
        proto.map_type.key_type = _CODES[key]
        proto.map_type.value_type.CopyFrom(parse_type(value))
        return proto
    element = proto.sequence_type.elem_type if head == "seq" else proto.optional_type.elem_type
    element.CopyFrom(parse_type(inner))
    return proto


def is_numeric(proto: TypeProto) -> bool:
    """Whether a type is a tensor of numbers whose rank is known."""
    tensor = proto.tensor_type
    return proto.WhichOneof("value") == "tensor_type" and tensor.elem_type in ELEMENT_TYPES and tensor.HasField("shape")


def without_shapes(type: HostType) -> str:
    """As operator schemas write it: `seq(tensor(float))`."""
    text, depth = "", 0
    for letter in type.name:
        depth += letter == "["
        text += "" if depth else letter
        depth -= letter == "]"
    return text


def texts(strings: Sequence[bytes], shape: Sequence[int]) -> np.ndarray:
    """A tensor of texts, as the reference evaluator takes it."""
    decoded = [s.decode("utf-8", "replace") for s in strings]
    result = np.empty(len(decoded), dtype=object)
    result[:] = decoded
    return result.reshape(tuple(shape))
