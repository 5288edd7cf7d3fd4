"""Verifiers: an IR that breaks its own rules raises VerifyError, which shows the lines around the fault.

A node is checked once in its life (its operands, attributes and type never change), so verifying a graph after every pass costs
little more than walking over it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any, NoReturn

import numpy as np
from dlcompiler.ir.control import bound_by, misfit, regions, symbols_of, tensor_types
from dlcompiler.ir.errors import CompilerError, VerifyError
from dlcompiler.ir.expression import Dim, Expression, is_size_name, symbol_name
from dlcompiler.ir.graph import Graph, Node
from dlcompiler.ir.ops import TABLE, Trait
from dlcompiler.ir.ops.source import GIVEN_TYPE
from dlcompiler.ir.text.graph import print_node
from dlcompiler.ir.types import HostType, TensorType, TupleType
from dlcompiler.ir.verify_kernel import verify_kernel
from dlcompiler.ir.verify_program import verify_program

__all__ = ["verify_graph", "verify_kernel", "verify_program"]

# lines of IR shown on either side of a fault
CONTEXT = 5
LONGEST_LINE = 240  # characters shown of each


def verify_graph(graph: Graph) -> None:
    """Raise VerifyError unless the graph keeps every rule of its IR.

    Nodes stand after their operands under names of their own; each type is what the op's rule infers; attributes are plain data;
    sizes are bound by the inputs; outputs, their strides and names, and writebacks fit.
    """
    sizes = _bound_sizes(graph)
    known: set[Node] = set()
    names: set[str] = set()
    for node in (*graph.inputs, *graph.nodes):
        if node.name in names:
            _fail(graph, node, f"the name %{node.name} is taken")
        names.add(node.name)
        for operand in node.inputs:
            if operand not in known:
                _fail(graph, node, f"operand %{operand.name} is not defined above")
        known.add(node)
        if "_verified" not in node.__dict__:
            _verify_node(graph, node)
            node.__dict__["_verified"] = True  # as cached_property does: facts of an immutable object
        sizes |= bound_by(node) if node.op.name != "aten.call" else symbols_of(node)  # a call may give sizes that its data tells
        if node.has(Trait.BARRIER):
            problem = misfit(node)
            if problem is not None:
                _fail(graph, node, problem)
        for _, region in regions(node):
            verify_graph(region)
        for name in _sizes_used(node) - sizes:
            _fail(graph, node, f"no input binds the size {name!r}")
    for node in graph.inputs:
        if node.op.name not in ("input", "size"):
            _fail(graph, node, f"{node.op.name} among the inputs")
    _verify_results(graph, known)


def _bound_sizes(graph: Graph) -> set[str]:
    """Sizes that a call's arguments tell: a dimension of an input that is only a name, or a `size` input."""
    found: set[str] = set()
    for node in graph.inputs:
        if node.op.name == "size":
            found.add(node.attributes["symbol"])
        elif isinstance(node.type, TensorType):
            found |= {name for name in map(symbol_name, node.type.shape) if name is not None}
    for name in found:
        if not is_size_name(name):
            raise VerifyError(f"graph {graph.name}: a size cannot be called {name!r}", hint="see expression.size_name")
    return found


def _sizes_used(node: Node) -> Set[str]:
    """Sizes in a node's type and attributes, found once."""
    found = node.__dict__.get("_sizes_used")
    if found is None:
        found = node.__dict__["_sizes_used"] = frozenset(symbols_of(node))
    return found


def _dims(node: Node) -> Sequence[Dim]:
    return [d for type in tensor_types(node.type) for d in type.shape]


def _verify_node(graph: Graph, node: Node) -> None:
    if TABLE.get(node.op.name) is not node.op:
        _fail(graph, node, f"{node.op.name} is not in the op table")
    for key, value in node.attributes.items():
        is_array = node.op.name == "constant" and key == "value" and isinstance(value, np.ndarray)
        is_region = node.has(Trait.BARRIER) and isinstance(value, Graph)
        if not (_is_plain(value) or is_array or is_region):
            _fail(graph, node, f"attribute {key} is not plain data: {str(value)[:80]}")
    if not isinstance(node.type, TensorType | TupleType | HostType):
        _fail(graph, node, f"the type is a {type(node.type).__name__}")
    for dim in _dims(node):
        if not (isinstance(dim, Expression) or (type(dim) is int and dim >= 0)):
            _fail(graph, node, f"{dim!r} is not a size")
        if not _is_word(dim):
            _fail(graph, node, "a size is too large for a 64-bit integer")
    for type_ in tensor_types(node.type):
        if not type_.is_addressable:
            _fail(graph, node, f"{type_} takes more memory than can be addressed")
    if node.op.name in GIVEN_TYPE:
        return
    try:
        inferred = node.op.infer(tuple(i.type for i in node.inputs), node.attributes)
    except KeyError as error:
        _fail(graph, node, f"the attribute {error} is missing")
    except CompilerError as error:
        _fail(graph, node, error.message)
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        _fail(graph, node, f"the type rule does not take these operands and attributes: {error}")
    if inferred != node.type:
        _fail(graph, node, f"the type is {node.type}, the op gives {inferred}")


def _is_plain(value: Any) -> bool:
    """Numbers, integers among them of at most 64 bits, texts and sequences and mappings of those."""
    if isinstance(value, int | Expression):
        return _is_word(value)
    if value is None or isinstance(value, float | str | complex | np.generic):
        return True
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return isinstance(value, Mapping) and all(isinstance(k, str) and _is_plain(v) for k, v in value.items())


def _is_word(value: Dim) -> bool:
    """Whether every integer in it fits 64 bits, with a sign or without, as compiled code has them."""
    if isinstance(value, int):
        return -(2**63) <= value < 2**64
    return all(
        _is_word(coefficient) and all(_is_word(inner) for atom in monomial if atom.kind != "symbol" for inner in atom.operands)
        for monomial, coefficient in value.terms.items()
    )


def _verify_results(graph: Graph, known: set[Node]) -> None:
    outputs = len(graph.outputs)
    for node in graph.outputs:
        if node not in known:
            _fail(graph, node, f"output %{node.name} is not in the graph")
        if isinstance(node.type, TupleType):
            _fail(graph, node, f"output %{node.name} is not a tensor")
    if len(graph.output_strides) not in (0, outputs) or len(graph.output_names) not in (0, outputs):
        raise VerifyError(f"graph {graph.name}: strides or names for another number of outputs than {outputs}")
    for node, strides in zip(graph.outputs, graph.output_strides):
        if isinstance(strides, tuple) and isinstance(node.type, TensorType) and len(strides) != node.tensor.rank:
            _fail(graph, node, f"output %{node.name} has strides {list(strides)}")
    inputs, written = set(graph.inputs), set()
    for value, into in graph.writebacks:
        if value not in known or into not in inputs or into.op.name != "input":
            _fail(graph, into, f"writeback %{value.name} -> %{into.name}: not a value of the graph, or not one of its inputs")
        if into in written:
            _fail(graph, into, f"two writebacks into %{into.name}")
        if value.type != into.type:
            _fail(graph, into, f"writeback of {value.type} into {into.type}")
        written.add(into)


def _fail(graph: Graph, node: Node, message: str) -> NoReturn:
    everything = (*graph.inputs, *graph.nodes)
    at = next((k for k, other in enumerate(everything) if other is node), len(everything))
    lines = []
    for position in range(max(at - CONTEXT, 0), min(at + CONTEXT, len(everything))):
        lines.append(f"{'>' if position == at else ' '} {_line(everything[position])[:LONGEST_LINE]}")
    raise VerifyError(f"graph {graph.name}: %{node.name}: {message}\n" + "\n".join(lines), location=node.location)


def _line(node: Node) -> str:
    try:
        return print_node(node, digests=False)
    except (CompilerError, KeyError, AttributeError, AssertionError, TypeError):  # the faulty node itself may not print
        return f"%{node.name} = {node.op.name}({', '.join(f'%{i.name}' for i in node.inputs)})"
