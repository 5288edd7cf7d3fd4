"""What ONNX's own operator schemas say of a node, checked before the node is imported, so that entries may rely on it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import onnx
from onnx import AttributeProto, FunctionProto, NodeProto, TypeProto

from dlcompiler.frontends.onnx_host import parse_type, without_shapes
from dlcompiler.frontends.onnx_registry import ELEMENT_TYPES
from dlcompiler.ir.errors import InvalidModelError
from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import DType, HostType

_TYPE_NAMES = {
    "f32": "float", "f64": "double", "f16": "float16", "bf16": "bfloat16", "bool": "bool",
    "c64": "complex64", "c128": "complex128", "f8e4m3fn": "float8e4m3fn", "f8e4m3fnuz": "float8e4m3fnuz", "f8e5m2": "float8e5m2",
    "f8e5m2fnuz": "float8e5m2fnuz", "f8e8m0": "float8e8m0", "f6e2m3": "float6e2m3", "f6e3m2": "float6e3m2",
    "f4e2m1": "float4e2m1", "i4": "int4", "u4": "uint4", "i2": "int2", "u2": "uint2",
    **{f"i{b}": f"int{b}" for b in (8, 16, 32, 64)}, **{f"u{b}": f"uint{b}" for b in (8, 16, 32, 64)},
}  # fmt: skip
ELEMENT_CODES = {dtype: code for code, dtype in ELEMENT_TYPES.items()}


@dataclass(frozen=True)
class Schema:
    """One version of one operator."""

    raw: Any

    @property
    def version(self) -> int:
        return self.raw.since_version

    @cached_property
    def attributes(self) -> dict[str, tuple[int, bool]]:
        """Type number and whether required, by name."""
        return {name: (a.type.value, a.required) for name, a in self.raw.attributes.items()}

    @cached_property
    def formal_inputs(self) -> list[tuple[str, frozenset[str], bool, bool]]:
        """Type variable, allowed types, whether homogeneous, whether variadic."""
        variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
        return [(p.type_str, frozenset(p.types), p.is_homogeneous, p.option == variadic) for p in self.raw.inputs]

    @property
    def defaults(self) -> list[AttributeProto]:
        """Values of attributes that a node may leave out."""
        return [a.default_value for a in self.raw.attributes.values() if a.default_value.name]

    @property
    def has_function(self) -> bool:
        return self.raw.has_function or self.raw.has_context_dependent_function


@lru_cache(maxsize=4096)
def schema_of(op_type: str, version: int, domain: str) -> Schema | None:
    """The operator's schema in that version of its operator set, or None if it has none."""
    if version >= 2**31:  # onnx takes no larger one
        return None
    try:
        return Schema(onnx.defs.get_schema(op_type, version, domain))
    except onnx.defs.SchemaError:
        return None


@lru_cache(maxsize=256)
def first_schema(op_type: str, domain: str) -> Schema | None:
    """The oldest schema of an operator, which a file of an older operator set must not use; several are taken all the same."""
    newest = schema_of(op_type, onnx.defs.onnx_opset_version(), domain)
    while newest is not None and (older := schema_of(op_type, newest.version - 1, domain)) is not None:
        newest = older
    return newest


def check_node(node: NodeProto, schema: Schema, location: str) -> None:
    """Numbers of inputs and outputs, and attributes. Raises InvalidModelError."""
    raw = schema.raw
    given = len(node.input)
    if not raw.min_input <= given <= raw.max_input:
        wanted = raw.min_input if raw.min_input == raw.max_input else f"{raw.min_input} to {raw.max_input}"
        raise InvalidModelError(f"{node.op_type} takes {wanted} inputs, not {given}", location=location)
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    for side, names, formals in (("input", node.input, raw.inputs), ("output", node.output, raw.outputs)):
        for name, formal in zip(names, formals):
            if not name and formal.option == single:
                raise InvalidModelError(f"{node.op_type}: the required {side} {formal.name} is left out", location=location)
    if not raw.min_output <= len(node.output) <= raw.max_output:
        raise InvalidModelError(f"{node.op_type} does not give {len(node.output)} outputs", location=location)
    seen = set()
    for attribute in node.attribute:
        known = schema.attributes.get(attribute.name)
        if known is None:
            raise InvalidModelError(f"{node.op_type} has no attribute {attribute.name!r}", location=location)
        if attribute.name in seen:
            raise InvalidModelError(f"{node.op_type} has attribute {attribute.name} twice", location=location)
        if attribute.type != known[0] and not attribute.ref_attr_name:
            names = {v: k for k, v in AttributeProto.AttributeType.items()}
            wanted, got = names[known[0]].lower(), names.get(attribute.type, "none").lower()
            raise InvalidModelError(f"{node.op_type}: attribute {attribute.name} must be {wanted}, not {got}", location=location)
        seen.add(attribute.name)
    for name, (_, required) in schema.attributes.items():
        if required and name not in seen:
            raise InvalidModelError(f"{node.op_type}: the required attribute {name} is missing", location=location)


def check_types(node: NodeProto, schema: Schema, inputs: list[Any], location: str) -> None:
    """Element types of the inputs against the schema. Raises InvalidModelError."""
    bound: dict[str, str] = {}
    formals = schema.formal_inputs
    for position, value in enumerate(inputs):
        variable, allowed, homogeneous, _ = formals[min(position, len(formals) - 1)]
        if not isinstance(value, Node):
            continue
        name = type_name(value)
        if variable in bound and homogeneous and bound[variable] != name:
            raise InvalidModelError(
                f"{node.op_type}: input {position} is {name}, but another input of the same type is {bound[variable]}",
                location=location,
            )
        if name not in allowed and variable != name:
            raise InvalidModelError(f"{node.op_type} does not take {name} as input {position}", location=location)
        if homogeneous:
            bound[variable] = name


def element_type_name(dtype: DType) -> str:
    """As schemas write it: `float`, `int64`."""
    return _TYPE_NAMES[dtype.name]


def type_name(node: Node) -> str:
    """A value's type as schemas write it."""
    return without_shapes(node.type) if isinstance(node.type, HostType) else f"tensor({_TYPE_NAMES[node.dtype.name]})"


def function_body(schema: Schema, node: NodeProto, inputs: list[Node | None], version: int) -> FunctionProto | None:
    """The body that the schema gives for this call, or None if it has none for these inputs."""
    raw = schema.raw
    if raw.has_function:
        versions = [v for v in raw.function_opset_versions if v <= version] or list(raw.function_opset_versions)[:1]
        return _parsed(raw.get_function_with_opset_version(max(versions)))
    if not raw.has_context_dependent_function:
        return None
    versions = [v for v in raw.context_dependent_function_opset_versions if v <= version]
    if not versions:
        return None
    types = [type_proto(i).SerializeToString() for i in inputs]
    try:
        data = raw.get_context_dependent_function_with_opset_version(max(versions), node.SerializeToString(), types)
    except (RuntimeError, ValueError):
        # the C++ builder refuses, for instance where it needs a shape that is not there
        return None
    return _parsed(data) if data else None


def _parsed(data: bytes) -> FunctionProto:
    function = FunctionProto()
    function.ParseFromString(data)
    return function


def type_proto(node: Node | None) -> TypeProto:
    """A value's type as ONNX holds it; sizes that are not numbers are names."""
    type = TypeProto()
    if node is not None and isinstance(node.type, HostType):
        return parse_type(node.type.name)
    if node is not None:
        type.tensor_type.elem_type = ELEMENT_CODES[node.dtype]
        type.tensor_type.shape.SetInParent()
        for dim in node.shape:
            if isinstance(dim, int):
                type.tensor_type.shape.dim.add().dim_value = dim
            else:
                type.tensor_type.shape.dim.add().dim_param = str(dim)
    return type
