"""Common subexpressions: equal ops on equal operands are computed once.

    %1 = add(%x, %y); %2 = add(%y, %x); %3 = mul(%1, %2)  -->  %1 = add(%x, %y); %3 = mul(%1, %1)

Value numbering in one sweep. Impure ops (random numbers) are never merged. Of two equal results that eager would give memory
of their own, the second becomes a copy of the first.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from dlcompiler.ir.control import has_effect
from dlcompiler.ir.graph import Graph, Node, Rewriter
from dlcompiler.ir.ops import Trait
from dlcompiler.ir.types import TupleType
from dlcompiler.passes.aliasing import escaping, may_stand_for, view_chain
from dlcompiler.passes.context import Context

# Constants up to this many bytes are compared by their bits; larger ones only by the memory they lie in (tied weights).
COMPARED_BYTES = 64 * 1024


def merge_common_subexpressions(graph: Graph, context: Context) -> Graph:
    """The graph with every node that equals an earlier one replaced by it."""
    rewriter = Rewriter(graph)
    first: dict[Hashable, Node] = {}
    escapes = escaping(graph)
    for node in graph.nodes:
        if has_effect(node) or node.has(Trait.IMPURE):
            rewriter.keep(node)
            continue
        key = _key(node, tuple(rewriter.new[i] for i in node.inputs))
        kept = rewriter.keep(node)
        if node in escapes:
            escapes.add(kept)
        same = first.setdefault(key, kept)
        if same is kept or (apart := not may_stand_for(same, kept, escapes)) and not _is_worth_copying(node):
            continue
        if context.spend("merge", node.name):
            rewriter.nodes.pop()
            rewriter.location = node.location
            value = rewriter.cast(same, dtype=same.dtype.name, name=f"{node.name}.copy") if apart else same
            rewriter.replace(node, value)
            if node in escapes:
                escapes.update(view_chain(value))
    return rewriter.finish_like()


def _is_worth_copying(node: Node) -> bool:
    """Whether copying the first of two equal results costs less than computing it twice."""
    return not (node.has(Trait.VIEW) or node.has(Trait.SOURCE) or node.op.name == "cast" or isinstance(node.type, TupleType))


def _key(node: Node, inputs: tuple[Node, ...]) -> Hashable:
    """Equal for two nodes exactly if they compute the same bits."""
    operands = tuple(map(id, inputs))
    if node.has(Trait.COMMUTATIVE):
        operands = (*sorted(operands[:2]), *operands[2:])
    return node.op.name, operands, frozen(node.attributes), node.type


def frozen(value: Any) -> Hashable:
    """A hashable stand-in for an attribute, equal only for the same value: 1, 1.0 and True differ, so do 0.0 and -0.0."""
    match value:
        case float():
            return "float", struct.pack("d", value)
        case bool() | int() | str() | None:
            return type(value).__name__, value
        case np.ndarray():
            return _frozen_array(value)
        case Mapping():
            return "mapping", frozenset((k, frozen(v)) for k, v in value.items())
        case tuple() | list():
            return "sequence", tuple(map(frozen, value))
        case np.generic():
            return _frozen_array(np.asarray(value))
    return type(value), value if isinstance(value, Hashable) else id(value)


def _frozen_array(array: np.ndarray) -> Hashable:
    kind = (array.dtype.name, array.shape)
    if array.nbytes <= COMPARED_BYTES:
        return "array", kind, array.tobytes()
    return "memory", kind, array.__array_interface__["data"][0], array.strides
