"""Graph: what is computed. Values are tensors; a node is one op and its one result.

A graph is immutable data. A pass takes one and returns another, or the same object when nothing changed; `Builder` makes new
graphs, `Rewriter` copies one with changes. Mutation of an input (batch-norm statistics, `add_` on an argument) is data:
`Graph.writebacks` pairs a result with the input that it must be written into.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
from dlcompiler.ir.errors import CompilerError, InputError, VerifyError
from dlcompiler.ir.expression import Dim, evaluate, symbol_name, symbols
from dlcompiler.ir.ops import Op, Trait, lookup
from dlcompiler.ir.types import DType, TensorType, Type, dtype_of

Attributes = Mapping[str, Any]
# How an output lies in memory: strides in elements; None: row major; "any": as whoever plans it likes, for only he will read it
OutputStrides = tuple[Dim, ...] | Literal["any"] | None


@dataclass(frozen=True, eq=False, repr=False)
class Node:
    """One op applied to other nodes' results; the node is also the name of its own result.

    `name` is unique in a graph. `location` says where in the user's model it came from and survives every pass.
    """

    op: Op
    inputs: tuple[Node, ...]
    attributes: Attributes
    type: Type
    name: str
    location: str | None = None

    @property
    def shape(self) -> tuple[Dim, ...]:
        """Shape of a tensor result; a tuple result has none and raises VerifyError."""
        return self.tensor.shape

    @property
    def dtype(self) -> DType:
        return self.tensor.dtype

    @property
    def tensor(self) -> TensorType:
        if not isinstance(self.type, TensorType):
            raise VerifyError(f"%{self.name} is {self.type}, not a tensor", location=self.location)
        return self.type

    def has(self, trait: Trait) -> bool:
        return trait in self.op.traits

    def __repr__(self) -> str:
        inputs = ", ".join(f"%{i.name}" for i in self.inputs)
        return f"%{self.name} = {self.op.name}({inputs}) : {self.type}"


@dataclass(frozen=True)
class Event:
    """One line of a graph's history: what a pass did to it."""

    name: str
    nodes_before: int
    nodes_after: int
    seconds: float
    detail: str = ""

    def __str__(self) -> str:
        detail = f"; {self.detail}" if self.detail else ""
        return f"{self.name}: {self.nodes_before} → {self.nodes_after} ops, {self.seconds * 1e3:.1f} ms{detail}"


@dataclass(frozen=True, eq=False)
class Graph:
    """A whole computation.

    inputs     nodes of op `input` (tensors) or `size` (an integer that binds a symbol), in call order
    nodes      every other node, each after its inputs
    outputs    what a call returns, in order; a node may occur twice, and an input may be an output
    writebacks (result, input) pairs: after the call the input's memory holds the result
    """

    name: str
    inputs: tuple[Node, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Node, ...]
    writebacks: tuple[tuple[Node, Node], ...] = ()
    # strides that each output is to have, eager's; see `OutputStrides`
    output_strides: tuple[OutputStrides, ...] = ()
    # what the model calls its outputs (ONNX); empty where it does not
    output_names: tuple[str, ...] = ()
    history: tuple[Event, ...] = ()

    @cached_property
    def users(self) -> dict[Node, tuple[Node, ...]]:
        """Nodes that read each node (once for each operand position), without outputs and writebacks."""
        users: dict[Node, list[Node]] = {n: [] for n in (*self.inputs, *self.nodes)}
        for node in self.nodes:
            for operand in node.inputs:
                users[operand].append(node)
        return {n: tuple(u) for n, u in users.items()}

    @cached_property
    def results(self) -> frozenset[Node]:
        """Nodes that leave the graph: outputs and written-back values."""
        return frozenset(self.outputs) | frozenset(value for value, _ in self.writebacks)

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        """Names of the sizes that are only known when called, in order of first appearance in the inputs."""
        found: dict[str, None] = {}
        for node in self.inputs:
            if node.op.name == "size":
                found.setdefault(node.attributes["symbol"])
            elif isinstance(node.type, TensorType):
                for dim in (*node.shape, *(node.attributes.get("strides") or ())):
                    found.update(dict.fromkeys(sorted(symbols(dim))))
        return tuple(found)

    def bind(self, shapes: Iterable[tuple[int, ...] | int]) -> dict[str, int]:
        """Values of the symbols for a call whose inputs have these shapes (an int for a `size` input, () for a host value).

        Raises InputError for a negative number, which no symbol stands for.
        """
        bindings: dict[str, int] = {}
        for node, shape in zip(self.inputs, shapes):
            if isinstance(shape, int):
                if shape < 0 and not node.attributes["symbol"].startswith("unused_"):
                    raise InputError(f"the size %{node.name} is {shape}", location=node.location)
                bindings[node.attributes["symbol"]] = shape
                continue
            if not isinstance(node.type, TensorType):
                continue
            for dim, size in zip(node.shape, shape):
                name = symbol_name(dim)
                if name is not None:
                    bindings.setdefault(name, size)
        return bindings

    def check_limits(self, bindings: Mapping[str, int]) -> None:
        """Raise InputError for a size outside the limits that an input states.

        An input's attribute `limits` holds (number made of sizes, lowest, highest or None) for what the graph relies on.
        """
        for node in self.inputs:
            for number, lowest, highest in node.attributes.get("limits", ()):
                if not symbols(number) <= bindings.keys():
                    continue
                size = evaluate(number, bindings)
                if size < lowest or (highest is not None and size > highest):
                    allowed = f"at least {lowest}" if highest is None else f"{lowest} to {highest}"
                    allowed = f"only {lowest}" if highest == lowest else allowed
                    raise InputError(f"the size {number} is {size}, but the model takes {allowed}", location=node.location)

    def indices(self, bindings: Mapping[str, int]) -> tuple[tuple[int, int, int, int | None], ...]:
        """Inputs whose elements are positions in a dimension: (which input, the lowest, the highest, one more that is allowed).

        An input's attribute `positions` holds the last three. Who runs the graph checks them: its ops read the nearest element,
        or update none, where an index lies outside.
        """
        return tuple(
            (k, evaluate(lowest, bindings), evaluate(highest, bindings), allowed)
            for k, node in enumerate(self.inputs)
            for lowest, highest, allowed in node.attributes.get("positions", ())
            if symbols(highest) <= bindings.keys()
        )

    def replace(self, **changes: Any) -> Graph:
        """A copy with these fields changed."""
        return replace(self, **changes)

    def __str__(self) -> str:
        from dlcompiler.ir.text import print_graph

        return print_graph(self)


@dataclass
class Builder:
    """Makes a graph node by node, inferring each node's type.

    `b("add", x, y)` and `b.add(x, y)` are the same; a Python or NumPy number as an operand becomes a constant of the other
    operands' dtype. `location` is put on every node until changed.
    """

    name: str = "main"
    inputs: list[Node] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    location: str | None = None
    _names: dict[str, int] = field(default_factory=dict)

    def fresh_name(self, hint: str) -> str:
        """A name not yet used in this graph: `hint` itself, else `hint_1`, `hint_2` and so on."""
        if not (hint.isascii() and hint.isidentifier()):
            hint = "".join(c if c.isalnum() or c in "_." else "_" for c in hint) or "v"
        count = self._names.get(hint)
        self._names[hint] = 1 if count is None else count + 1
        return hint if count is None else self.fresh_name(f"{hint}_{count}")

    def input(
        self,
        name: str,
        type: TensorType,
        strides: tuple[Dim, ...] | None = None,
        location: str | None = None,
        is_parameter: bool = False,
        marks: Iterable[str] = (),
        limits: Collection[tuple[Dim, int, int | None]] = (),
    ) -> Node:
        """A tensor input; `strides` in elements, None for row major.

        A parameter is the same tensor in nearly every call. Other marks: what is `owned` belongs to the call, which may free or
        overwrite it; what is `trained` is changed between this call and the next, after a backward pass. For `limits` see
        `Graph.check_limits`.
        """
        attributes: dict[str, Any] = {} if strides is None else {"strides": tuple(strides)}
        if is_parameter:
            attributes["parameter"] = True
        attributes |= dict.fromkeys(marks, True)
        if limits:
            attributes["limits"] = tuple(limits)
        node = Node(lookup("input"), (), attributes, type, self.fresh_name(name), location)
        self.inputs.append(node)
        return node

    def state_positions(self, node: Node, lowest: Dim, highest: Dim, allowed: int | None) -> None:
        """Say of an input of the graph being built that its elements are positions, see `Graph.indices`."""
        assert isinstance(node.attributes, dict) and node in self.inputs
        found, stated = node.attributes.get("positions", ()), (lowest, highest, allowed)
        node.attributes["positions"] = found if stated in found else (*found, stated)

    def size_input(self, name: str, symbol: str, limits: Collection[tuple[Dim, int, int | None]] = ()) -> Node:
        """An integer argument that binds the symbol; its value is a 0-d i64 tensor."""
        op = lookup("size")
        attributes: dict[str, Any] = {"symbol": symbol, **({"limits": tuple(limits)} if limits else {})}
        node = Node(op, (), attributes, op.infer((), attributes), self.fresh_name(name))
        self.inputs.append(node)
        return node

    def constant(self, value: Any, dtype: DType | None = None, name: str = "c") -> Node:
        """A tensor known now. `value`: anything NumPy makes an array of; `dtype` converts it."""
        array = np.asarray(value) if dtype is None else np.asarray(value, dtype=dtype.numpy)
        return self.make(lookup("constant"), (), {"value": array}, TensorType(dtype_of(array), array.shape), name)

    def make(self, op: Op, inputs: tuple[Node, ...], attributes: Attributes, type: Type, name: str | None = None) -> Node:
        """Append a node whose type is already known."""
        node = Node(op, inputs, attributes, type, self.fresh_name(name or op.name), self.location)
        self.nodes.append(node)
        return node

    def __call__(self, op_name: str, *operands: Node | float | int | bool, name: str | None = None, **attributes: Any) -> Node:
        """Append `op_name` applied to `operands`. Raises ShapeError or DTypeError with this builder's location."""
        op = lookup(op_name)
        inputs = tuple(self._as_node(x, operands) for x in operands)
        try:
            type = op.infer(tuple(i.type for i in inputs), attributes)
        except CompilerError as error:
            if error.location is None and self.location is not None:
                raise error.__class__(f"{op_name}: {error.message}", location=self.location, hint=error.hint) from None
            raise
        return self.make(op, inputs, attributes, type, name)

    def __getattr__(self, op_name: str) -> Callable[..., Node]:
        if op_name.startswith("_"):
            raise AttributeError(op_name)
        return partial(self, op_name)

    def _as_node(self, operand: Any, operands: tuple[Any, ...]) -> Node:
        if isinstance(operand, Node):
            return operand
        dtype = next((x.dtype for x in reversed(operands) if isinstance(x, Node)), None)
        return self.constant(operand, dtype)

    def finish(self, outputs: Iterable[Node], **fields: Any) -> Graph:
        """The finished graph; `fields` are the other fields of `Graph`."""
        return Graph(self.name, tuple(self.inputs), tuple(self.nodes), tuple(outputs), **fields)


class Rewriter(Builder):
    """Copies a graph node by node; `self.new[old]` is what stands for `old` in the copy.

    >>> rewriter = Rewriter(graph)
    >>> for node in graph.nodes: rewriter.keep(node)      # or: rewriter.replace(node, rewriter.add(...))
    >>> graph = rewriter.finish_like()
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph.name)
        self.graph = graph
        self.new: dict[Node, Node] = {}
        self.changed = False
        for node in (*graph.inputs, *graph.nodes):
            self._names[node.name] = 1
        for node in graph.inputs:
            self.inputs.append(node)
            self.new[node] = node

    def keep(self, node: Node) -> Node:
        """Copy `node` (the same object if its inputs are unchanged)."""
        inputs = tuple(self.new[i] for i in node.inputs)
        if inputs != node.inputs:
            node_copy = replace(node, inputs=inputs)
            self.changed = True
        else:
            node_copy = node
        self.nodes.append(node_copy)
        self.new[node] = node_copy
        return node_copy

    def replace(self, node: Node, value: Node) -> Node:
        """Let `value`, a node of the new graph, stand for `node`."""
        self.new[node] = value
        self.changed = True
        return value

    def finish_like(self, **fields: Any) -> Graph:
        """The new graph, with outputs and writebacks mapped; the old graph itself if nothing changed."""
        if not self.changed and not fields and len(self.nodes) == len(self.graph.nodes):
            return self.graph
        mapped: dict[str, Any] = {
            "inputs": tuple(self.inputs),
            "nodes": tuple(self.nodes),
            "outputs": tuple(self.new[o] for o in self.graph.outputs),
            "writebacks": tuple((self.new[v], self.new[i]) for v, i in self.graph.writebacks),
        }
        return self.graph.replace(**{**mapped, **fields})


def reachable(outputs: Iterable[Node]) -> set[Node]:
    """Every node that some output depends on, itself included. Iterative: chains may be long."""
    seen: set[Node] = set()
    stack = list(outputs)
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack.extend(node.inputs)
    return seen


def walk(graph: Graph) -> Iterator[Node]:
    """Inputs, then nodes."""
    yield from graph.inputs
    yield from graph.nodes
