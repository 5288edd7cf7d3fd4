"""Control flow of ONNX as region ops: `If`, `Loop` and `Scan`.

A branch or body is imported with a builder of its own, in the scope of what is around it. What it reads from there becomes an
operand of the op and an input of the region (constants are not handed over: a region has its own). Sizes that differ between
branches, or change from one iteration to the next, become symbols.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from onnx import GraphProto

from dlcompiler.frontends.onnx_fold import FoldingBuilder
from dlcompiler.frontends.onnx_host import without_shapes
from dlcompiler.ir.control import bound_by, needed, symbols_of
from dlcompiler.ir.errors import InvalidModelError, UnsupportedError
from dlcompiler.ir.expression import Dim, symbol, symbol_name, symbols
from dlcompiler.ir.graph import Graph, Node
from dlcompiler.ir.ops import lookup
from dlcompiler.ir.types import HostType, TensorType, TupleType, boolean, i64
from dlcompiler.passes.stages import is_given

if TYPE_CHECKING:
    from dlcompiler.frontends.onnx_import import Scope, _Importer

ENDLESS = 2**63 - 1
MOST_ATTEMPTS = 6

ValueType: TypeAlias = TensorType | HostType


@dataclass
class _Region:
    """A branch or body that was imported, not yet closed: nodes around it are still read directly."""

    builder: FoldingBuilder
    inputs: list[Node]
    outputs: list[Node]

    def outside(self) -> list[Node]:
        """What it reads from around it, in order of first use."""
        own = {*self.builder.nodes, *self.inputs}
        read = [i for n in self._nodes() for i in n.inputs] + self.outputs
        return list(dict.fromkeys(n for n in read if n not in own and not is_given(n)))

    def needed(self, captured: Sequence[Node]) -> set[str]:
        """Sizes that no input of the region tells."""
        nodes = self._nodes()
        types = [n.type for n in (*self.inputs, *captured)]
        bound = {symbol_name(d) for t in types if isinstance(t, TensorType) for d in t.shape}
        bound = bound.union(*(bound_by(n) for n in nodes)) if nodes else bound
        used = set().union(*(symbols_of(n) for n in (*nodes, *self.inputs, *captured)))
        return {s for s in used if s not in bound}

    def _nodes(self) -> list[Node]:
        """Its nodes that its outputs need, constants and sizes from outside first."""
        used = needed(self.outputs, self.builder.nodes)
        own = set(self.builder.nodes)
        read = {i for n in used & own for i in n.inputs} | set(self.outputs)
        given = [n for n in read if is_given(n) and n not in own]
        return [*sorted(given, key=lambda n: n.name), *(n for n in self.builder.nodes if n in used)]

    def close(self, captured: Sequence[Node], sizes: Sequence[str]) -> Graph:
        """The region as a graph whose inputs are its own, then one for each captured value, then the sizes."""
        new: dict[Node, Node] = {}
        added = []
        for node in captured:
            new[node] = Node(lookup("input"), (), {}, node.type, self.builder.fresh_name(node.name))
            added.append(new[node])
        added += [
            Node(lookup("size"), (), {"symbol": s}, TensorType(i64, ()), self.builder.fresh_name(f"size.{s}")) for s in sizes
        ]
        nodes = []
        for node in self._nodes():
            inputs = tuple(new.get(i, i) for i in node.inputs)
            new[node] = node if inputs == node.inputs else replace(node, inputs=inputs)
            nodes.append(new[node])
        outputs = tuple(new.get(n, n) for n in self.outputs)
        return Graph(self.builder.name, (*self.inputs, *added), tuple(nodes), outputs)


class ControlFlow:
    """Imports control flow for an importer."""

    def __init__(self, importer: _Importer) -> None:
        self.importer = importer

    # -- regions -----------------------------------------------------------------------------------------------------------

    def _begin(self, name: str, types: Sequence[tuple[str, ValueType]]) -> tuple[FoldingBuilder, list[Node]]:
        builder = self.importer.b.region(name)
        inputs = [Node(lookup("input"), (), {}, type, builder.fresh_name(hint or "x")) for hint, type in types]
        builder.inputs += inputs
        return builder, inputs

    def _body(
        self, graph: GraphProto, scope: Scope, builder: FoldingBuilder, values: Sequence[Node], location: str
    ) -> list[Node] | None:
        """The outputs of a branch or body whose inputs have these values; None if something in it cannot be imported."""
        importer, outer = self.importer, self.importer.b
        if len(values) != len(graph.input):
            raise InvalidModelError(f"a graph of {location!r} takes {len(graph.input)} inputs, not {len(values)}")
        importer.b = builder
        try:
            inner = importer.inner_scope(scope, location)
            inner.values.update((info.name, value) for info, value in zip(graph.input, values))
            importer.add_initializers(graph, inner)
            importer.import_nodes(graph.node, inner)
            outputs = [importer.value_of(o.name, inner, f"a graph of {location!r}") for o in graph.output]
        finally:
            importer.b = outer
        return outputs if all(isinstance(o, Node) for o in outputs) else None

    def _join(self, a: ValueType, b: ValueType, general: set[Dim]) -> ValueType:
        """A type that both values have. Sizes that differ become symbols; `general` holds those made so."""
        if a == b:
            return b
        if isinstance(a, TensorType) and isinstance(b, TensorType):
            if a.dtype is not b.dtype:
                raise InvalidModelError(f"{a} and {b} stand for one value")
            if a.rank == b.rank:
                dims = []
                for left, right in zip(a.shape, b.shape):
                    if left != right and left not in general:
                        left = self.importer.interface.fresh("size")
                        general.add(left)
                    dims.append(left)
                return a.with_shape(dims)
        names = [without_shapes(t) if isinstance(t, HostType) else f"tensor({_onnx_name(t)})" for t in (a, b)]
        if names[0] != names[1]:
            for one, other in (names, reversed(names)):
                if one == f"optional({other})":
                    return HostType(one)
            raise UnsupportedError("types", items=(f"a value that is {names[0]} or {names[1]}",))
        return HostType(names[0])

    def _results(
        self, op: str, operands: Iterable[Node], attributes: dict[str, Any], types: Sequence[ValueType]
    ) -> tuple[Node, ...]:
        b = self.importer.b
        node = b.make(lookup(op), tuple(operands), attributes, TupleType(tuple(types)))
        return tuple(b("tuple.get", node, index=k) for k in range(len(types)))

    def _outside(self, types: Sequence[ValueType], known: set[str]) -> list[ValueType]:
        """Types with the regions' own symbols replaced by fresh ones: only the result tells those sizes."""

        def dim(d: Dim) -> Dim:
            return d if isinstance(d, int) or self._is_known(d, known) else self.importer.interface.fresh("size")

        return [t.with_shape(map(dim, t.shape)) if isinstance(t, TensorType) else t for t in types]

    def _is_known(self, dim: Dim, known: set[str]) -> bool:
        return symbols(dim) <= known

    def _sizes(self, names: Iterable[str]) -> list[Node]:
        return [self.importer.b.dim(value=symbol(name)) for name in names]

    # -- operators -----------------------------------------------------------------------------------------------------------

    def branch(
        self, condition: Node, then: GraphProto, other: GraphProto, scope: Scope, location: str
    ) -> tuple[Node, ...] | None:
        """An `If` whose condition is known at run time only."""
        regions = []
        known = self.importer.b.known_symbols()
        for name, graph in (("then", then), ("else", other)):
            builder, _ = self._begin(name, ())
            outputs = self._body(graph, scope, builder, (), location)
            if outputs is None:
                return None
            regions.append(_Region(builder, [], outputs))
        captured = list(dict.fromkeys(n for region in regions for n in region.outside()))
        sizes = sorted(set().union(*(region.needed(captured) for region in regions)))
        general: set[Dim] = set()
        types = [self._join(_value_type(a), _value_type(b), general) for a, b in zip(regions[0].outputs, regions[1].outputs)]
        attributes = {name: region.close(captured, sizes) for name, region in zip(("then", "else"), regions)}
        operands = (self.importer.b.reshape(condition, shape=()), *captured, *self._sizes(sizes))
        return self._results("if", operands, attributes, self._outside(types, known))

    def loop(
        self, trips: Node | None, condition: Node | None, states: Sequence[Node], body: GraphProto, scope: Scope, location: str
    ) -> tuple[Node, ...] | None:
        b = self.importer.b
        trips = b.constant(np.int64(ENDLESS)) if trips is None else b.cast(b.reshape(trips, shape=()), dtype="i64")
        condition = b.constant(True) if condition is None else b.reshape(condition, shape=())
        counted = is_true(b, condition)

        def make(builder: FoldingBuilder, inputs: list[Node]) -> list[Node] | None:
            going = builder.constant(True) if counted else inputs[1]
            return self._body(body, scope, builder, [inputs[0], going, *inputs[2:]], location)

        return self._loop(trips, condition, states, make)

    def _loop(self, trips: Node, condition: Node, states: Sequence[Node], make) -> tuple[Node, ...] | None:
        importer = self.importer
        known = importer.b.known_symbols()
        types = [_value_type(state) for state in states]
        general: set[Dim] = set()
        for _ in range(MOST_ATTEMPTS):
            with importer.attempt() as attempt:
                head = [("iteration", TensorType(i64, ())), ("going", TensorType(boolean, ()))]
                builder, inputs = self._begin("body", [*head, *((s.name, t) for s, t in zip(states, types))])
                outputs = make(builder, inputs)
                if outputs is None:
                    return None
                given = [_value_type(o) for o in outputs[1 : 1 + len(states)]]
                joined = [self._join(a, b, general) for a, b in zip(types, given)]
                if joined == types:
                    break
                attempt.discard()
            types = joined
        else:
            raise UnsupportedError("a loop", items=("a loop whose values change their sizes in ever new ways",))
        outputs[0] = builder.reshape(outputs[0], shape=())
        region = _Region(builder, inputs, outputs)
        captured = region.outside()
        sizes = sorted(region.needed(captured))
        graph = region.close(captured, sizes)
        b = importer.b
        rows: Dim | None = None
        if is_true(b, condition) and is_true(builder, outputs[0]):
            (rows,) = b.dims(trips) or (None,)
        if rows is None or (isinstance(rows, int) and rows == ENDLESS):
            rows = importer.interface.fresh("trips")
        rows = max(rows, 0) if isinstance(rows, int) else rows
        scanned: list[ValueType] = []
        for output in outputs[1 + len(states) :]:
            if not isinstance(output.type, TensorType):
                raise UnsupportedError("a loop", items=("a loop that scans values of unknown rank",))
            scanned.append(output.tensor.with_shape((rows, *output.shape)))
        known = known | ({s for s in (symbol_name(rows),) if s is not None})
        operands = (trips, condition, *states, *captured, *self._sizes(sizes))
        return self._results("loop", operands, {"body": graph, "carried": len(states)}, self._outside([*types, *scanned], known))

    def scan(
        self, values: Sequence[Node], attributes: dict[str, Any], scope: Scope, location: str, count: int
    ) -> tuple[Node, ...] | None:
        """A `Scan` (opset 9 and later) as a loop whose body reads one slice of each scanned input. `count`: number of outputs."""
        b = self.importer.b
        inputs = attributes["num_scan_inputs"]
        body: GraphProto = attributes["body"]
        states, scanned = values[: len(values) - inputs], values[len(values) - inputs :]
        _require_tensors(scanned)
        rows = count - len(states)
        axes = [_axis(a, x.tensor.rank) for a, x in zip(attributes.get("scan_input_axes", (0,) * inputs), scanned)]
        backwards = attributes.get("scan_input_directions", (0,) * inputs)
        if not inputs or len(axes) != inputs or len(backwards) != inputs:
            raise InvalidModelError("Scan: axes or directions do not fit its inputs", location=location)
        length = scanned[0].shape[axes[0]]

        def make(builder: FoldingBuilder, own: list[Node]) -> list[Node] | None:
            slices = []
            for x, axis, back in zip(scanned, axes, backwards):
                last = builder.dim(value=length - 1) if not isinstance(length, int) else builder.constant(np.int64(length - 1))
                at = builder.sub(last, own[0]) if back else own[0]
                slices.append(builder.index(x, at, axes=(axis,)))
            outputs = self._body(body, scope, builder, [*own[2:], *slices], location)
            return None if outputs is None else [builder.constant(True), *outputs]

        trips = b.constant(np.int64(length)) if isinstance(length, int) else b.dim(value=length)
        results = self._loop(trips, b.constant(True), states, make)
        if results is None:
            return None
        turned = list(results[: len(states)])
        places = attributes.get("scan_output_axes", (0,) * rows)
        flips = attributes.get("scan_output_directions", (0,) * rows)
        for x, axis, back in zip(results[len(states) :], places, flips):
            x = b.flip(x, axes=(0,)) if back else x
            axis = _axis(axis, x.tensor.rank)
            order = [*range(1, axis + 1), 0, *range(axis + 1, x.tensor.rank)]
            turned.append(b.permute(x, dims=tuple(order)) if axis else x)
        return tuple(turned)

    def batched_scan(
        self, values: Sequence[Node | None], attributes: dict[str, Any], scope: Scope, location: str, count: int
    ) -> tuple[Node, ...] | None:
        """A `Scan` of opset 8, whose operands have a dimension of images in front: a loop over images of scans."""
        lengths, *operands = values
        given = [x for x in operands if x is not None]
        _require_tensors(given)
        if lengths is not None or len(given) < len(operands) or not all(x.tensor.rank for x in given):
            raise UnsupportedError("Scan", items=("a scan of rows of several lengths",))
        images = given[0].shape[0]
        plain = {k: v for k, v in attributes.items() if k in ("body", "num_scan_inputs")}
        plain["scan_input_directions"] = attributes.get("directions", (0,) * attributes["num_scan_inputs"])
        importer = self.importer

        def make(builder: FoldingBuilder, own: list[Node]) -> list[Node] | None:
            outer, importer.b = importer.b, builder
            try:
                rows = [builder.index(x, own[0], axes=(0,)) for x in given]
                results = self.scan(rows, plain, scope, location, count)
            finally:
                importer.b = outer
            return None if results is None else [builder.constant(True), *results]

        b = importer.b
        trips = b.constant(np.int64(images)) if isinstance(images, int) else b.dim(value=images)
        return self._loop(trips, b.constant(True), (), make)


def is_true(b: FoldingBuilder, node: Node) -> bool:
    """Whether a bool is known to be true."""
    elements = b.array(node)
    return elements is not None and bool(elements.reshape(-1).all())


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise InvalidModelError(f"Scan: axis {axis} is out of range for rank {rank}")
    return axis % rank


def _value_type(value: Node | None) -> ValueType:
    if value is None:
        raise InvalidModelError("a value that is carried through control flow is left out")
    assert not isinstance(value.type, TupleType)
    return value.type


def _require_tensors(scanned: Sequence[Node]) -> None:
    if not all(isinstance(x.type, TensorType) for x in scanned):
        raise UnsupportedError("Scan", items=("a scan of texts, whose slices only the host could take",))


def _onnx_name(type: TensorType) -> str:
    from dlcompiler.frontends.onnx_schema import element_type_name

    return element_type_name(type.dtype)
