"""From an ONNX model to a `Graph`.

Nodes are imported in order, each by its entry in the table of operators (`onnx_ops_*.py`), else by the function body in the
operator's schema, else as a call of the host if onnx's reference evaluator has the operator. Functions and an `If` whose
condition is known are inlined; other control flow becomes region ops (`onnx_control.py`). What cannot be imported does not end
the import: its results are marked missing, the rest is still looked at, and one UnsupportedError lists everything that was found.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, helper

from dlcompiler import extend
from dlcompiler.frontends import onnx_ops_all  # noqa: F401 - fills the table
from dlcompiler.frontends.onnx_attributes import attribute_values, resolved_attributes
from dlcompiler.frontends.onnx_contrib_schema import check_contrib
from dlcompiler.frontends.onnx_control import ControlFlow
from dlcompiler.frontends.onnx_fold import FoldingBuilder, Limits
from dlcompiler.frontends.onnx_host import host_attributes, is_implemented
from dlcompiler.frontends.onnx_host_call import append_call, call_host, own_operator
from dlcompiler.frontends.onnx_interface import Interface
from dlcompiler.frontends.onnx_join import Joined, SizesToJoin, sizes_to_join, with_joined
from dlcompiler.frontends.onnx_load import TensorReader, check_header, newest_opset, opset_versions, printable, read_model
from dlcompiler.frontends.onnx_order import ordered
from dlcompiler.frontends.onnx_registry import (
    OPERATORS,
    TAKES_HOST_VALUES,
    BakedSizes,
    Call,
    NeedsValuesError,
    ToFunctionBody,
)
from dlcompiler.frontends.onnx_schema import Schema, check_node, check_types, first_schema, function_body, schema_of
from dlcompiler.frontends.onnx_seen import SeenNode
from dlcompiler.ir.control import needed, tensor_types
from dlcompiler.ir.errors import DTypeError, InputError, InvalidModelError, ShapeError, UnsupportedError
from dlcompiler.ir.expression import symbol, symbols
from dlcompiler.ir.graph import Event, Graph, Node
from dlcompiler.ir.ops import lookup
from dlcompiler.ir.types import HostType, TensorType, TupleType

logger = logging.getLogger("dlcompiler")

MOST_NODES = 5_000_000
MOST_NESTED = 64
MOST_WARNINGS = 20


def import_onnx(
    model: ModelProto | str | os.PathLike[str],
    input_shapes: Mapping[str, Sequence[int | str]] | None = None,
    input_values: Mapping[str, np.ndarray] | None = None,
    inventory: list[SeenNode] | None = None,
    fix_batch: bool = False,
    files: list[str] | None = None,
) -> Graph:
    """The graph of an ONNX model, given as a message or as the path of a file.

    `input_shapes` gives some inputs' sizes: an int fixes a dimension, a name makes it symbolic. Named dimensions of the file
    (`dim_param`) are symbols, equal names equal symbols; dimensions without a name get fresh ones. Each input node's `location`
    is the input's ONNX name, and `Graph.output_names` holds the outputs'. An input in `input_values` is a constant of the graph,
    not an input: a shape that is handed to the model as a tensor must be given so (NeedsValuesError says which). `inventory`
    receives what was looked at: a SeenNode for each node of the file, also where the import fails. With `fix_batch` a constant
    shape that holds a size which the inputs leave open is rewritten where that is proved; the graph's history names each.
    `files` receives the paths of the external data that was read.

    Raises InvalidModelError for a file that is no valid model, UnsupportedError listing every operator and element type that
    cannot be imported, and InputError for a name or a rank in `input_shapes` that the model does not have.
    """
    if isinstance(model, ModelProto):
        shown, folder = model.graph.name or "the model", None
        check_header(model, shown)
    else:
        shown, folder = os.fspath(model), Path(model).parent
        model = read_model(model)
    reader = TensorReader(folder)
    limits: Limits = {}
    joined: Joined = {}
    while True:
        importer = _Importer(model, shown, reader, input_shapes or {}, input_values or {}, limits, joined)
        importer.baked.rewrite = fix_batch
        try:
            graph = importer.run()
        except SizesToJoin as found:
            joined = with_joined(joined, found.joined)
            continue
        finally:
            if inventory is not None:
                inventory[:] = importer.inventory()
        if importer.b.limits == limits:
            if files is not None:
                files[:] = reader.files
            return graph
        # the inputs, made first, must state what the rest turned out to rely on
        limits = importer.b.limits


@dataclass(frozen=True)
class _Missing:
    """Stands for a value that could not be imported."""

    reason: str


Value = Any  # Node, None (an optional input not given) or _Missing
CONTROL_FLOW = ("If", "Loop", "Scan")


@dataclass
class _Attempt:
    """An import of a body that may turn out to need other types."""

    discarded: bool = False

    def discard(self) -> None:
        self.discarded = True


@dataclass
class Scope:
    """Names of one graph or function body; `outer` is the graph around a branch."""

    outer: Scope | None = None
    values: dict[str, Value] = field(default_factory=dict)
    initializers: dict[str, TensorProto | SparseTensorProto] = field(default_factory=dict)
    versions: Mapping[str, int] = field(default_factory=dict)
    # attributes of the function call, for `ref_attr_name`
    attributes: Mapping[str, AttributeProto] = field(default_factory=dict)
    in_function: bool = False
    path: str = ""
    depth: int = 0
    builder: FoldingBuilder | None = None

    def defines(self, name: str) -> bool:
        return name in self.values or name in self.initializers or (self.outer is not None and self.outer.defines(name))


class _Importer:
    def __init__(
        self,
        model: ModelProto,
        shown: str,
        reader: TensorReader,
        input_shapes: Mapping[str, Sequence[int | str]],
        input_values: Mapping[str, np.ndarray],
        limits: Limits,
        joined: Joined,
    ) -> None:
        self.model, self.shown, self.reader, self.input_values = model, shown, reader, input_values
        self.b = FoldingBuilder(model.graph.name or "main", limits)
        self.unstated = dict(limits)
        self.interface = Interface(model.graph, input_shapes, joined)
        self.functions: dict[tuple[str, str, str], FunctionProto] = {}
        for function in model.functions:
            self.functions[(_domain(function.domain), function.name, function.overload)] = function
        self.problems: dict[str, list[Any]] = {}  # text -> [count, first location]
        self.wanted: dict[str, None] = {}  # inputs whose values must be known
        self.only_values_missing = True
        self.seen: list[SeenNode] = []
        self.reasons: dict[str, str] = {}  # location -> why the node there cannot be imported
        self.active: list[tuple[str, str, str]] = []
        self.control = ControlFlow(self)
        self.baked = BakedSizes()
        self.joined = joined
        self.imported = 0
        self.warnings = 0

    # -- the whole ---------------------------------------------------------------------------------------------------------

    def run(self) -> Graph:
        graph = self.model.graph
        scope = Scope(versions={"": newest_opset(), **opset_versions(self.model, self.shown)}, builder=self.b)
        self.root = scope
        self.add_initializers(graph, scope)
        for info in self.interface.inputs:
            if info.name in scope.values:
                raise InvalidModelError(f"{self.shown}: the name {info.name!r} is defined twice")
            try:
                type = self.interface.type_of(info)
            except UnsupportedError as error:
                self._problem(f"input of {error.items[0]}", info.name)
                scope.values[info.name] = _Missing(error.items[0])
                continue
            value = self.input_values.get(info.name)
            if value is None:
                scope.values[info.name] = self._input(info.name, type)
            else:
                scope.values[info.name] = self._given_value(info.name, type, np.asarray(value))
        self.b.checked = self._sizes_of_inputs()
        self.import_nodes(graph.node, scope)
        outputs = [self.value_of(info.name, scope, "the graph's outputs") for info in graph.output]
        for info, value in zip(graph.output, outputs):
            if value is None:
                self._problem("output that is an optional without a value", info.name)
        self._raise_problems()
        keep = needed(outputs, self.b.nodes)
        history = tuple(Event("fix-batch", 1, 1, 0.0, sentence) for sentence in self.baked.fixed)
        finished = self.b.finish(outputs, output_names=tuple(info.name for info in graph.output), history=history)
        return finished.replace(nodes=tuple(n for n in finished.nodes if n in keep))

    def _input(self, name: str, type: TensorType | HostType) -> Node:
        """An input of the graph, with the limits of the symbols that no input before it has."""
        dims = type.shape if isinstance(type, TensorType) else ()
        if isinstance(type, TensorType) and not type.is_addressable:
            raise InvalidModelError(f"input {name}: {type} takes more memory than can be addressed")
        own = sorted(name for name in frozenset().union(*map(symbols, dims)) if name in self.unstated)
        limits = tuple((symbol(size), *self.unstated.pop(size)) for size in own)
        attributes = {"limits": limits} if limits else {}
        node = Node(lookup("input"), (), attributes, type, self.b.fresh_name(name), name)
        self.b.inputs.append(node)
        return node

    def _given_value(self, name: str, type: TensorType | HostType, value: np.ndarray) -> Node:
        if isinstance(type, HostType):
            raise InputError(f"input {name!r} is {type}, whose value cannot be part of a program")
        sizes_fit = all(not isinstance(d, int) or d == size for d, size in zip(type.shape, value.shape))
        if value.dtype != type.dtype.numpy or value.ndim != type.rank or not sizes_fit:
            raise InputError(f"input {name!r} is {type}, not {value.dtype}{list(value.shape)}")
        return self.b.constant(value)

    def add_initializers(self, graph: GraphProto, scope: Scope) -> None:
        """Define a graph's initializers in its scope; they are read when first asked for."""
        for tensor in graph.initializer:
            if tensor.name in scope.initializers:
                raise InvalidModelError(f"{self.shown}: two initializers are called {tensor.name!r}")
            scope.initializers[tensor.name] = tensor
        for sparse in graph.sparse_initializer:
            if sparse.values.name in scope.initializers:
                raise InvalidModelError(f"{self.shown}: two initializers are called {sparse.values.name!r}")
            scope.initializers[sparse.values.name] = sparse

    # -- problems ----------------------------------------------------------------------------------------------------------

    def _problem(self, text: str, location: str, inputs: tuple[str, ...] = ()) -> None:
        self.problems.setdefault(text, [0, location])[0] += 1
        self.reasons.setdefault(location, text)
        self.wanted.update(dict.fromkeys(inputs))
        self.only_values_missing &= bool(inputs)

    def _raise_problems(self) -> None:
        if not self.problems:
            return
        items = tuple(
            f"{text}{f' ×{count}' if count > 1 else ''} (first at {location!r})"
            for text, (count, location) in self.problems.items()
        )
        message = f"{self.shown}: {len(items)} thing{'s are' if len(items) > 1 else ' is'} not supported: {'; '.join(items)}"
        if self.only_values_missing:
            raise NeedsValuesError(message, items=items, inputs=tuple(self.wanted))
        baked = self.baked.suspected
        hint = f"{baked[0]}; --fix-batch (fix_batch=True) applies it to each sample" if baked else None
        raise UnsupportedError(message, items=items, hint=hint)

    # -- names -------------------------------------------------------------------------------------------------------------

    def value_of(self, name: str, scope: Scope, reader: str) -> Value:
        """What a name stands for in a scope. Raises InvalidModelError naming the reader if nothing defines it."""
        at: Scope | None = scope
        while at is not None:
            if name in at.values:
                return at.values[name]
            tensor = at.initializers.get(name)
            if tensor is not None:
                # a constant of a graph around this one belongs there
                here, self.b = self.b, at.builder or self.b
                at.values[name] = value = self._constant(tensor)
                self.b = here
                return value
            at = at.outer
        raise InvalidModelError(f"{self.shown}: {reader} read {name!r}, which nothing defines")

    def _constant(self, tensor: TensorProto | SparseTensorProto) -> Value:
        is_dense = isinstance(tensor, TensorProto)
        if is_dense and tensor.data_type == TensorProto.STRING:
            return self._text_constant(tensor)
        name = tensor.name if is_dense else tensor.values.name
        try:
            array = self.reader.array(tensor) if is_dense else self.reader.dense(tensor)
        except UnsupportedError as error:
            self._problem(f"initializer of {error.items[0]}", name)
            return _Missing(error.items[0])
        self.b.location = name
        return self.b.constant(array, name=name or "c")

    def _text_constant(self, tensor: TensorProto) -> Node:
        node = helper.make_node("Constant", [], ["y"], value=tensor)
        attributes = host_attributes(node, "", 13)
        dims = ", ".join(map(str, tensor.dims))
        made = self.b.make(lookup("host.call"), (), attributes, TupleType((HostType(f"tensor(string)[{dims}]"),)), "texts")
        return self.b("tuple.get", made, index=0)

    # -- nodes -------------------------------------------------------------------------------------------------------------

    def import_nodes(self, nodes: Sequence[NodeProto], scope: Scope) -> None:
        """Import nodes in an order in which each comes after what it reads."""
        for node in ordered(nodes, scope.defines, self.shown):
            self.imported += 1
            if self.imported > MOST_NODES:
                raise InvalidModelError(f"{self.shown}: more than {MOST_NODES:,} nodes once functions are inlined")
            self._node(node, scope)

    def _node(self, node: NodeProto, scope: Scope) -> None:
        location = scope.path + printable(node.name or f"{node.op_type}:{next((o for o in node.output if o), '')}")
        inputs = [self.value_of(name, scope, f"node {location!r}") if name else None for name in node.input]
        if "schema" not in {overload for _, _, overload in self.active}:
            self._see(node, scope, inputs, location)
        results = self._results(node, scope, inputs, location)
        results = (*results, *(None,) * (len(node.output) - len(results)))
        for name, result in zip(node.output, results):
            if not name:
                continue
            if name in scope.values or name in scope.initializers:
                raise InvalidModelError(f"{self.shown}: the name {name!r} is defined twice", location=location)
            scope.values[name] = result
            if scope.outer is None and not scope.in_function and isinstance(result, Node) and isinstance(result.type, TensorType):
                self._compare_declared(name, result, location)

    def inventory(self) -> list[SeenNode]:
        """What was looked at, each with the first thing that is not supported at it or inside it."""
        known = {node.location for node in self.seen}
        problems: dict[str, str] = {}
        for location, text in self.reasons.items():
            while location not in known and "/" in location:
                location = location.rpartition("/")[0]
            problems.setdefault(location, text)
        return [replace(node, problem=problems.get(node.location)) for node in self.seen]

    def _see(self, node: NodeProto, scope: Scope, inputs: list[Value], location: str) -> None:
        """Write a node of the file, not of an operator's own function body, into the inventory."""
        domain = _domain(node.domain)
        dtypes = tuple(i.dtype.name if isinstance(i, Node) and isinstance(i.type, TensorType) else "" for i in inputs)
        inlined = (domain, node.op_type, node.overload) in self.functions
        self.seen.append(SeenNode(node.op_type, domain, scope.versions.get(domain, 0), dtypes, location, inlined=inlined))

    def _results(self, node: NodeProto, scope: Scope, inputs: list[Value], location: str) -> tuple[Value, ...]:
        """What a node's outputs are; those of a node that cannot be imported are missing."""
        domain = _domain(node.domain)
        key = (domain, node.op_type, node.overload)
        own = extend.find(*key[:2])
        if key in self.functions and own is None:
            return self._call(self.functions[key], key, node, scope, inputs, location)
        missing = (_Missing(node.op_type),) * len(node.output)
        if domain not in scope.versions:
            raise InvalidModelError(f"{self.shown}: operator set {domain or 'ai.onnx'!r} is not imported", location=location)
        schema = schema_of(node.op_type, version := scope.versions[domain], domain)
        described = self._described(node, domain, version, inputs)
        mapped = _is_mapped(*key[:2])
        by_host = schema is not None and is_implemented(node.op_type, domain, schema.version)
        if not (mapped or own or (schema is not None and (schema.has_function or by_host))):
            self._problem(described, location)
            self._scan_branches(node, scope)
            return missing
        rules = schema or first_schema(node.op_type, domain)
        if rules is not None:
            check_node(node, rules, location)
        else:
            check_contrib(node, inputs, location)
        if any(isinstance(i, _Missing) for i in inputs):
            self._scan_branches(node, scope)
            return missing
        if rules is not None:
            check_types(node, rules, inputs, location)
        try:
            if own is not None:
                return own_operator(self, own, node, scope, inputs, location)
            results = self._operator(node, scope, inputs, schema, mapped, location)
            return missing if results is None else results
        except UnsupportedError as error:
            if by_host and schema is not None and not isinstance(error, NeedsValuesError):
                reason = error.items[0] if error.items and error.items[0] != described else ""
                results = call_host(self, node, scope, inputs, schema, location, reason)
                if results is not None:
                    return results
            reason = error.items[0] if error.items else error.message
            wanted = error.inputs if isinstance(error, NeedsValuesError) else ()
            self._problem(described if reason == described else f"{described}: {reason}", location, wanted)
            self._scan_branches(node, scope)
            return missing
        except DTypeError as error:
            self._problem(f"{described}: {error.message}", location)
            return missing
        except ShapeError as error:
            results = self._misfit(node, inputs, schema if by_host else None, described, location, error, scope)
            return missing if results is None else results

    def _misfit(
        self,
        node: NodeProto,
        inputs: list[Value],
        by_host: Schema | None,
        described: str,
        location: str,
        error: ShapeError,
        scope: Scope,
    ) -> tuple[Value, ...] | None:
        """What a node gives whose inputs do not fit, or are not known to: None where a problem is noted.

        Raises SizesToJoin where they fit if open sizes are equal, and InvalidModelError where they cannot fit.
        """
        open_sizes = _open_sizes(i for i in inputs if isinstance(i, Node))
        # what data tells may fit or broadcast once it is known
        if by_host is not None and open_sizes - self._sizes_of_inputs():
            results = call_host(self, node, scope, inputs, by_host, location, error.message)
            if results is not None:
                return results
        if equal := sizes_to_join(node, inputs, self.b, self._sizes_of_inputs()):
            raise SizesToJoin(equal) from None
        if open_sizes or self.joined:  # with other sizes than those that were joined it may fit
            self._problem(f"{described}: {error.message} (symbolic sizes; fix them with input shapes)", location)
            return None
        raise InvalidModelError(f"{self.shown}: {node.op_type}: {error.message}", location=location) from None

    def _described(self, node: NodeProto, domain: str, version: int, inputs: Iterable[Value]) -> str:
        dtypes = [i.type.name if isinstance(i.type, HostType) else i.dtype.name for i in inputs if isinstance(i, Node)]
        operator = f"{printable(node.op_type)} [{printable(domain) or 'ai.onnx'} {version}"
        return f"{operator}{', ' if dtypes else ''}{' '.join(dtypes)}]"

    def _operator(
        self, node, scope: Scope, inputs: list[Value], schema: Schema | None, mapped: bool, location: str
    ) -> tuple[Value, ...] | None:
        """The results of an entry, of control flow or of the schema's function body; None where a problem was found inside."""
        if node.op_type in CONTROL_FLOW and _domain(node.domain) == "":
            return self._control_flow(node, scope, inputs, schema, location)
        on_host = any(isinstance(i, Node) and isinstance(i.type, HostType) for i in inputs)
        attributes = attribute_values(resolved_attributes(node, scope.attributes), self.reader, location)
        self.b.location = location
        domain = _domain(node.domain)
        version = schema.version if schema is not None else scope.versions[domain]
        call = Call(node.op_type, version, inputs, attributes, tuple(node.output), self.b, location, self.interface.fresh)
        call.baked = self.baked
        call.host = lambda made, since, given, types, reason: append_call(self, made, since, given, types, location, reason)
        try:
            if mapped and (not on_host or node.op_type in TAKES_HOST_VALUES):
                result = OPERATORS[(domain, node.op_type)](call)
                return result if isinstance(result, tuple) else (result,)
        except ToFunctionBody:
            pass
        if schema is None or (on_host and not schema.has_function):
            raise UnsupportedError(described := self._described(node, domain, version, inputs), items=(described,))
        resolved = NodeProto()
        resolved.CopyFrom(node)
        del resolved.attribute[:]
        resolved.attribute.extend(resolved_attributes(node, scope.attributes))
        body = function_body(schema, resolved, inputs, scope.versions[_domain(node.domain)])
        if body is None:
            described = self._described(node, _domain(node.domain), scope.versions[_domain(node.domain)], inputs)
            raise UnsupportedError(described, items=(described,))
        key = (_domain(node.domain), node.op_type, "schema")
        return self._call(body, key, resolved, scope, inputs, location, schema.defaults)

    # -- functions and branches --------------------------------------------------------------------------------------------

    def _call(
        self,
        function: FunctionProto,
        key: tuple[str, str, str],
        node: NodeProto,
        scope: Scope,
        inputs: list[Value],
        location: str,
        defaults: Sequence[AttributeProto] = (),
    ) -> tuple[Value, ...]:
        """The outputs of a function's body with these inputs; None for an output that the call leaves out."""
        if key in self.active:
            raise InvalidModelError(f"{self.shown}: function {key[1]} calls itself", location=location)
        if len(inputs) > len(function.input) or len(node.output) > len(function.output):
            raise InvalidModelError(
                f"{self.shown}: function {key[1]} has fewer inputs or outputs than its call", location=location
            )
        self._check_depth(scope, location)
        inner = Scope(
            values=dict(zip(function.input, [*inputs, *(None,) * (len(function.input) - len(inputs))])),
            versions={**scope.versions, **{_domain(e.domain): e.version for e in function.opset_import}},
            attributes={a.name: a for a in (*defaults, *function.attribute_proto, *resolved_attributes(node, scope.attributes))},
            in_function=True,
            path=f"{location}/",
            depth=scope.depth + 1,
            builder=self.b,
        )
        self.active.append(key)
        self.import_nodes(function.node, inner)
        self.active.pop()
        return tuple(
            self.value_of(name, inner, f"function {key[1]}'s outputs") if wanted else None
            for name, wanted in zip(function.output, node.output)
        )

    def _check_depth(self, scope: Scope, location: str) -> None:
        if scope.depth >= MOST_NESTED:
            raise InvalidModelError(f"{self.shown}: functions or branches nested deeper than {MOST_NESTED}", location=location)

    def _control_flow(
        self, node: NodeProto, scope: Scope, inputs: list[Value], schema: Schema | None, location: str
    ) -> tuple[Value, ...] | None:
        attributes = attribute_values(resolved_attributes(node, scope.attributes), self.reader, location)
        self.b.location = location
        if node.op_type == "If":
            return self._if(node, attributes, scope, inputs, location)
        body: GraphProto = attributes["body"]
        if node.op_type == "Loop":
            wanted = len(body.output) - 1
            results = self.control.loop(inputs[0], inputs[1], inputs[2:], body, scope, location)
        elif schema is not None and schema.version >= 9:
            wanted = len(body.output)
            results = self.control.scan(inputs, attributes, scope, location, wanted)
        else:
            wanted = len(body.output)
            results = self.control.batched_scan(inputs, attributes, scope, location, wanted)
        if wanted != len(node.output):
            raise InvalidModelError(f"{self.shown}: a body gives {wanted} outputs, not {len(node.output)}", location=location)
        return results

    def _if(
        self, node: NodeProto, attributes: dict[str, Any], scope: Scope, inputs: list[Value], location: str
    ) -> tuple[Value, ...] | None:
        then, other = attributes["then_branch"], attributes["else_branch"]
        for branch in (then, other):
            if len(branch.output) != len(node.output):
                raise InvalidModelError(f"{self.shown}: a branch gives {len(branch.output)} outputs", location=location)
        if isinstance(inputs[0].type, HostType) or inputs[0].tensor.numel != 1:
            raise InvalidModelError(f"{self.shown}: the condition of an If is {inputs[0].type}, not one bool", location=location)
        condition = self.b.array(inputs[0])
        if condition is None:
            return self.control.branch(inputs[0], then, other, scope, location)
        inner = self.inner_scope(scope, location)
        chosen = then if condition.reshape(()).item() else other
        self.add_initializers(chosen, inner)
        self.import_nodes(chosen.node, inner)
        return tuple(self.value_of(o.name, inner, f"a branch of {location!r}") for o in chosen.output)

    def inner_scope(self, scope: Scope, location: str) -> Scope:
        """The scope of a graph inside a node."""
        self._check_depth(scope, location)
        path = f"{location}/"
        return Scope(scope, {}, {}, scope.versions, scope.attributes, scope.in_function, path, scope.depth + 1, self.b)

    def _sizes_of_inputs(self) -> set[str]:
        """Sizes that the model's inputs leave open."""
        values = self.root.values.values()
        return _open_sizes(value for value in values if isinstance(value, Node) and value.op.name == "input")

    @contextmanager
    def attempt(self) -> Iterator[_Attempt]:
        """Import something that may be discarded: then the problems found are forgotten too."""
        before = {text: list(found) for text, found in self.problems.items()}
        wanted, only_values = dict(self.wanted), self.only_values_missing
        attempt = _Attempt()
        yield attempt
        if attempt.discarded:
            self.problems, self.wanted, self.only_values_missing = before, wanted, only_values

    def _scan_branches(self, node: NodeProto, scope: Scope) -> None:
        """List what is unmapped inside the graphs of a node that is not imported itself."""
        stack = [(a.g, scope.path + node.name) for a in node.attribute if a.type == AttributeProto.GRAPH]
        while stack:
            graph, path = stack.pop()
            for inner in graph.node:
                domain = _domain(inner.domain)
                schema = schema_of(inner.op_type, scope.versions.get(domain, 1), domain)
                known = (domain, inner.op_type, inner.overload) in self.functions or _is_mapped(domain, inner.op_type)
                known = known or extend.find(domain, inner.op_type) is not None
                by_schema = schema is not None and (schema.has_function or is_implemented(inner.op_type, domain, schema.version))
                if not known and not by_schema:
                    self._problem(self._described(inner, domain, scope.versions.get(domain, 1), ()), f"{path}/{inner.name}")
                stack.extend((a.g, f"{path}/{inner.name}") for a in inner.attribute if a.type == AttributeProto.GRAPH)

    # -- declared types ----------------------------------------------------------------------------------------------------

    def _compare_declared(self, name: str, node: Node, location: str) -> None:
        """Warn where the file declares another type than the one inferred."""
        says = None if self.warnings >= MOST_WARNINGS else self.interface.contradiction(name, node.tensor)
        if says is not None:
            self.warnings += 1
            logger.warning("%s: tensor %r is declared as %s (at %s)", self.shown, name, says, location)


def _open_sizes(nodes: Iterable[Node]) -> set[str]:
    """Symbols in the types of some values."""
    return {s for node in nodes for type in tensor_types(node.type) for dim in type.shape for s in symbols(dim)}


def _is_mapped(domain: str, op_type: str) -> bool:
    return (domain, op_type) in OPERATORS or (domain == "" and op_type in CONTROL_FLOW)


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain
