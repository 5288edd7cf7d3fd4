"""What makes two groups of nodes the same kernel: equal layers of a model are looked at once.

%3 = linear(%x, %w), %4 = tanh(%3)  and  %7 = linear(%y, %v), %8 = tanh(%7)  -->  one signature, if types and layouts agree
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from dlcompiler.ir.graph import Node


class Descriptions:
    """Numbers of nodes: equal ones for nodes of one operation, type and attributes, whatever they read.

    A node is described once, and keys made of numbers are quick to hash and to compare.
    """

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._of: dict[Node, int] = {}

    def number(self, node: Node) -> int:
        found = self._of.get(node)
        if found is None:
            description = (node.op.name, str(node.type), _attributes(node))
            found = self._of[node] = self._numbers.setdefault(description, len(self._numbers))
        return found

    def type(self, node: Node) -> int:
        """A number for the type alone, of a node that is read from memory."""
        return self._numbers.setdefault(str(node.type), len(self._numbers))


def signature(
    nodes: Sequence[Node],
    outputs: Sequence[Node],
    inlined: Callable[[Node], bool],
    about: Callable[[Node], Hashable],
    described: Descriptions,
) -> tuple[Hashable, tuple[Node, ...]]:
    """A key that groups which lower to the same kernel share, and the nodes it speaks of in its order.

    inlined    whether a node outside the group has no memory: it is part of the key, with all that it is computed from
    about      what else there is to know of a node that is read from memory, as how it will lie there
    described  of all groups whose keys are compared
    """
    numbers: dict[Node, int] = {}
    lines: list[Hashable] = []
    members = set(nodes)

    def describe(node: Node) -> None:
        if node in members or inlined(node):
            operands = tuple(numbers[operand] for operand in node.inputs)
            lines.append((described.number(node), operands, node in members))
        else:
            lines.append((described.type(node), about(node)))
        numbers[node] = len(numbers)

    stack = list(reversed(nodes))
    while stack:
        node = stack[-1]
        operands = node.inputs if node in members or inlined(node) else ()
        missing = [operand for operand in operands if operand not in numbers]
        if missing and node not in numbers:
            stack.extend(reversed(missing))
            continue
        stack.pop()
        if node not in numbers:
            describe(node)
    return (tuple(lines), tuple(numbers[node] for node in outputs)), tuple(numbers)


def _attributes(node: Node) -> Hashable:
    return tuple((name, _hashable(value)) for name, value in sorted(node.attributes.items()))


def _hashable(value: Any) -> Hashable:
    if isinstance(value, np.ndarray):
        return (str(value.dtype), value.shape, value.tobytes())
    return str(value)
