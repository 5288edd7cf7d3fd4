"""Graphs as text.

graph main {
  # simplify: 41 → 33 ops, 2.1 ms; add-zero ×3
  input %x : f32[N, 768]   at "bert: modeling_bert.py:120"
  input %t : f32[768, 768] strides [1, 768]
  size %n : N
  %w = constant @w "sha256:2bb80d537b1da3e3" : f32[768]
  %c = constant 1e-05 : f32[]
  %3 = layer_norm(%x, %w) {rank = 1, epsilon = 1e-05} : f32[N, 768]   at "bert/encoder.layer.0: modeling_bert.py:120"
  output %3 strides [1, N] as "hidden"
  writeback %3 -> %x
}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from dlcompiler.ir.control import regions
from dlcompiler.ir.errors import UnsupportedError
from dlcompiler.ir.graph import Graph, Node, OutputStrides
from dlcompiler.ir.ops import lookup
from dlcompiler.ir.text.scanner import Scanner
from dlcompiler.ir.text.values import digest, quote, read_element, show_attributes, show_dims, show_element, show_name, show_value
from dlcompiler.ir.types import TensorType, Type

# constants of up to this many elements are written out
INLINE_ELEMENTS = 16


def print_graph(graph: Graph, *, digests: bool = True) -> str:
    """The text of a graph. Constants of more than 16 elements are named; `graph_constants` gives their data.

    `digests` writes a checksum of each named constant, which reads all of its memory.
    """
    lines = [f"graph {show_name(graph.name)} {{"]
    lines += [f"  # {' '.join(str(event).splitlines())}" for event in graph.history]
    nodes = (*graph.inputs, *graph.nodes)
    lines += ["  " + print_node(node, digests=digests).replace("\n", "\n  ") for node in nodes]
    for position, node in enumerate(graph.outputs):
        strides = graph.output_strides[position] if position < len(graph.output_strides) else None
        name = graph.output_names[position] if position < len(graph.output_names) else None
        lines.append(f"  output {show_value(node.name)}{_strides(strides)}{f' as {quote(name)}' if name is not None else ''}")
    lines += [f"  writeback {show_value(value.name)} -> {show_value(into.name)}" for value, into in graph.writebacks]
    return "\n".join((*lines, "}")) + "\n"


def print_node(node: Node, *, digests: bool = True) -> str:
    """One line of `print_graph`."""
    attributes = dict(node.attributes)
    match node.op.name:
        case "input":
            start = f"input {show_value(node.name)} : {node.type}{_strides(attributes.pop('strides', None))}"
        case "size":
            start = f"size {show_value(node.name)} : {show_name(attributes.pop('symbol'))}"
        case "constant":
            content = _constant(node.name, attributes.pop("value"), node.type, digests)
            start = f"{show_value(node.name)} = constant {content}"
        case name:
            start = f"{show_value(node.name)} = {name}({', '.join(show_value(i.name) for i in node.inputs)})"
    if attributes:
        start += f" {show_attributes(attributes)}"
    if node.op.name not in ("input", "size"):
        start += f" : {node.type}"
    return start + (f"   at {quote(node.location)}" if node.location is not None else "")


def _strides(strides: Any) -> str:
    return "" if strides is None else f" strides {strides if strides == 'any' else show_dims(strides)}"


def is_inline(array: np.ndarray) -> bool:
    """Whether a constant is written out in the text."""
    return array.size <= INLINE_ELEMENTS


def _constant(name: str, array: np.ndarray, type: Type, digests: bool) -> str:
    assert isinstance(type, TensorType)
    if not is_inline(array):
        return show_value(name, "@") + (f" {quote(digest(array))}" if digests else "")
    elements = [show_element(x, type.dtype) for x in array.reshape(-1)]
    return f"[{', '.join(elements)}]" if array.ndim else elements[0]


def graph_constants(graph: Graph) -> dict[str, np.ndarray]:
    """The constants that `print_graph` only names, those of regions too: `{node name: array}`, in order, sharing their memory."""
    found: dict[str, np.ndarray] = {}
    for node in graph.nodes:
        if node.op.name == "constant" and not is_inline(node.attributes["value"]):
            found[node.name] = node.attributes["value"]
        for _, region in regions(node):
            found.update(graph_constants(region))
    return found


def parse_graph(text: str, constants: Mapping[str, np.ndarray] | None = None, *, allow_missing: bool = False) -> Graph:
    """The graph that `text` describes.

    `constants` holds the named constants, as `graph_constants` gives them. Raises ParseError with line and column, also for a
    named constant that is missing or has other contents; with `allow_missing` a missing one is zeros that take no memory.
    """
    scanner = Scanner(text)
    graph = read_graph(scanner, constants, allow_missing=allow_missing)
    scanner.end()
    return graph


def read_graph(scanner: Scanner, constants: Mapping[str, np.ndarray] | None = None, *, allow_missing: bool = False) -> Graph:
    """As `parse_graph`, from a scanner that may go on."""
    return _Reader(scanner, constants or {}, allow_missing).read()


class _Reader:
    def __init__(self, scanner: Scanner, constants: Mapping[str, np.ndarray], allow_missing: bool) -> None:
        self.scanner, self.constants, self.allow_missing = scanner, constants, allow_missing
        self.known: dict[str, Node] = {}
        self.inputs: list[Node] = []
        self.nodes: list[Node] = []
        self.outputs: list[Node] = []
        self.strides: list[OutputStrides] = []
        self.names: list[str] = []
        scanner.read_region = lambda: self.region()
        self.writebacks: list[tuple[Node, Node]] = []

    def read(self) -> Graph:
        scanner = self.scanner
        scanner.expect("graph")
        name = scanner.name("the graph's name")
        scanner.expect("{")
        while not scanner.accept("}"):
            self.line()
        if self.names and len(self.names) != len(self.outputs):
            scanner.error("either every output has a name or none has", scanner.at - 1)
        strides = tuple(self.strides) if any(s is not None for s in self.strides) else ()
        return Graph(
            name, tuple(self.inputs), tuple(self.nodes), tuple(self.outputs), tuple(self.writebacks), strides, tuple(self.names)
        )

    def region(self) -> Graph:
        """A graph that is an attribute's value; names in it are its own."""
        region = _Reader(self.scanner, self.constants, self.allow_missing).read()
        self.scanner.read_region = self.region
        return region

    def line(self) -> None:
        scanner = self.scanner
        if scanner.kinds[scanner.at] == "value":
            self.nodes.append(self.node())
        elif scanner.accept("input"):
            self.inputs.append(self.input())
        elif scanner.accept("size"):
            self.inputs.append(self.size())
        elif scanner.accept("output"):
            self.outputs.append(self.operand())
            self.strides.append(self.output_strides() if scanner.accept("strides") else None)
            if scanner.accept("as"):
                self.names.append(scanner.string())
        elif scanner.accept("writeback"):
            value = self.operand()
            scanner.expect("->")
            at = scanner.at
            into = self.operand()
            if into.op.name != "input":
                scanner.error(f"%{into.name} is not a tensor input", at)
            self.writebacks.append((value, into))
        else:
            scanner.unexpected("'%value =', input, size, output, writeback or '}'")

    def output_strides(self) -> OutputStrides:
        return "any" if self.scanner.accept("any") else self.scanner.dims()

    def operand(self) -> Node:
        scanner = self.scanner
        node = self.known.get(scanner.value_name())
        if node is None:
            scanner.error(f"{scanner.tokens[scanner.at - 1]} is not defined above", scanner.at - 1)
        return node

    def define(self, name: str, at: int, op_name: str, inputs: tuple, attributes: dict[str, Any], type: Type) -> Node:
        scanner = self.scanner
        if name in self.known:
            scanner.error(f"%{name} is defined twice", at)
        location = scanner.string() if scanner.accept("at") else None
        node = self.known[name] = Node(lookup(op_name), inputs, attributes, type, name, location)
        return node

    def input(self) -> Node:
        scanner, at = self.scanner, self.scanner.at
        name = scanner.value_name()
        scanner.expect(":")
        type = scanner.value_type()
        strides = scanner.dims() if scanner.accept("strides") else None
        attributes = scanner.attributes()
        if strides is not None:
            attributes = {"strides": strides, **attributes}
        return self.define(name, at, "input", (), attributes, type)

    def size(self) -> Node:
        scanner, at = self.scanner, self.scanner.at
        name = scanner.value_name()
        scanner.expect(":")
        attributes = {"symbol": scanner.name("a size's name"), **scanner.attributes()}
        return self.define(name, at, "size", (), attributes, lookup("size").infer((), attributes))

    def node(self) -> Node:
        scanner, at = self.scanner, self.scanner.at
        name = scanner.value_name()
        scanner.expect("=")
        op_at = scanner.at
        op_name = scanner.take("name", "an op's name")
        if op_name == "constant":
            return self.constant(name, at)
        try:
            lookup(op_name)
        except UnsupportedError as error:
            scanner.error(str(error), op_at)
        scanner.expect("(")
        inputs: list[Node] = []
        while not scanner.accept(")"):
            inputs.append(self.operand())
            if scanner.peek() != ")":
                scanner.expect(",")
        attributes = scanner.attributes()
        scanner.expect(":")
        return self.define(name, at, op_name, tuple(inputs), attributes, scanner.type())

    def constant(self, name: str, at: int) -> Node:
        """What follows `%name = constant`. The type comes last, so elements are read once it is known."""
        scanner = self.scanner
        content = scanner.at
        key = None
        if scanner.peek().startswith("@"):
            key = scanner.marked_name("name", "a constant's name")
            if scanner.kinds[scanner.at] == "string":
                scanner.at += 1
        else:
            self.skip_elements()
        attributes = scanner.attributes()
        scanner.expect(":")
        type = scanner.tensor_type()
        after, scanner.at = scanner.at, content
        array = self.inline(type) if key is None else self.named(key, type)
        scanner.at = after
        return self.define(name, at, "constant", (), {"value": array, **attributes}, type)

    def skip_elements(self) -> None:
        scanner = self.scanner
        while scanner.peek() not in (":", "{"):
            if scanner.kinds[scanner.at] not in ("number", "name", "mark"):
                scanner.unexpected("a constant's elements")
            scanner.at += 1

    def inline(self, type: TensorType) -> np.ndarray:
        scanner = self.scanner
        start = scanner.at
        if not type.is_static:
            scanner.error(f"a constant of type {type} has no fixed size", start)
        elements = []
        if type.rank:
            scanner.expect("[")
            while not scanner.accept("]"):
                elements.append(read_element(scanner, type.dtype))
                if scanner.peek() != "]":
                    scanner.expect(",")
        else:
            elements.append(read_element(scanner, type.dtype))
        if scanner.peek() not in (":", "{"):
            scanner.unexpected("':'")
        if len(elements) != type.numel:
            scanner.error(f"{type} has {type.numel} elements, not {len(elements)}", start)
        return np.array(elements, dtype=type.dtype.numpy).reshape(type.known_shape)

    def named(self, key: str, type: TensorType) -> np.ndarray:
        scanner = self.scanner
        array = self.constants.get(key)
        if array is None:
            if not self.allow_missing:
                scanner.error(f"the data of constant @{key} is missing: pass it in `constants`")
            return np.broadcast_to(np.zeros((), type.dtype.numpy), type.known_shape)
        if array.dtype != type.dtype.numpy or array.shape != type.shape:
            scanner.error(f"the data of constant @{key} is {array.dtype}{list(array.shape)}, not {type}")
        scanner.at += 1
        if scanner.kinds[scanner.at] == "string" and scanner.string() != digest(array):
            scanner.error(f"the data of constant @{key} has another checksum", scanner.at - 1)
        return array
