"""Values that are known before any input is: computed from constants and index ranges alone.

Masks and positions are often computed by a dozen ops from `iota`. Folding them into constants would make the model larger; their
values still tell what they are: the same everywhere, or a lower triangle. `KnownValues` computes them, within bounds, on demand.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from dlcompiler.ir.graph import Node
from dlcompiler.ir.ops import Trait
from dlcompiler.ir.types import TensorType

# Elements of one value, and of all values that one `KnownValues` computes together.
MAXIMUM_ELEMENTS = 1 << 21
MAXIMUM_WORK = 1 << 24
# Constants above this many bytes are weights, whose values tell nothing.
SOURCE_BYTES = 64 * 1024
# How many nodes stand between a value and the constants it comes from, at most.
MAXIMUM_NODES = 200
OPAQUE = (Trait.IMPURE, Trait.EXTERN, Trait.LIBRARY, Trait.CONTRACTION, Trait.COMPOSITE)


class KnownValues:
    """Computes and remembers values of nodes of one graph that is being rewritten."""

    def __init__(self) -> None:
        self.work = 0
        self._known: dict[Node, bool] = {}
        self._values: dict[Node, np.ndarray] = {}

    def is_known(self, node: Node) -> bool:
        """Whether `of(node)` gives a value, as long as the bounds on work allow; cheap if asked of operands first."""
        for each in _unseen_first(node, self._known):
            if each not in self._known:
                self._known[each] = _is_source(each) or (_is_computable(each) and all(self._known[i] for i in each.inputs))
        return self._known[node]

    def of(self, node: Node) -> np.ndarray | None:
        """The value of a node, or None if it is not known or costs too much. Not to be written to."""
        if not self.is_known(node):
            return None
        order = _unseen_first(node, self._values)
        if len(order) > MAXIMUM_NODES:
            return None
        for each in order:
            if each not in self._values:
                self.work += each.tensor.known_numel
                if self.work > MAXIMUM_WORK:
                    return None
                assert each.op.evaluate is not None
                with np.errstate(all="ignore"):
                    value = each.op.evaluate([self._values[i] for i in each.inputs], each.attributes)
                self._values[each] = np.asarray(value)
        return self._values[node]


def _unseen_first(node: Node, seen: Mapping[Node, object]) -> list[Node]:
    """`node` and what it depends on as far as not in `seen`, operands first. Iterative."""
    order: list[Node] = []
    stack: list[tuple[Node, bool]] = [(node, False)]
    entered: set[Node] = set()
    while stack:
        each, expanded = stack.pop()
        if expanded:
            order.append(each)
        elif each not in seen and each not in entered:
            entered.add(each)
            stack.append((each, True))
            stack.extend((i, False) for i in each.inputs)
    return order


def _is_source(node: Node) -> bool:
    if node.op.name == "dim":
        return isinstance(node.attributes["value"], int)
    if node.op.name == "constant":
        return node.attributes["value"].nbytes <= SOURCE_BYTES
    return node.op.name == "iota" and _is_bounded(node)


def _is_computable(node: Node) -> bool:
    if not node.inputs or node.op.evaluate is None or not _is_bounded(node):
        return False
    return not any(node.has(trait) for trait in OPAQUE)


def _is_bounded(node: Node) -> bool:
    """Whether a value is a tensor of known and moderate size."""
    return isinstance(node.type, TensorType) and node.type.is_static and node.type.known_numel <= MAXIMUM_ELEMENTS


def is_same_everywhere(value: np.ndarray) -> bool:
    """Whether all elements of a value, which has some, are the same bits."""
    if value.size == 0:
        return False
    flat = np.ascontiguousarray(value).reshape(-1).view(np.dtype((np.void, value.dtype.itemsize)))
    return bool(np.all(flat == flat[0]))
