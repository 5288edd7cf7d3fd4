"""Which results may share memory.

Eager may return a view of an input, or the same tensor twice; a clone must be memory of its own. Rules drop clones, since values
are immutable, so at the end the importer compares the memory that torch's example results share with what the graph's views would
share, and puts a `copy` where only the graph would share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dlcompiler.ir.graph import Node

if TYPE_CHECKING:
    from dlcompiler.frontends.fx_import import Importer

# views that a planner can hand on without moving an element
_SHARING = ("reshape", "permute", "expand", "slice")


def root_of(node: Node) -> Node:
    """The node whose memory a chain of views may show."""
    while node.op.name in _SHARING:
        node = node.inputs[0]
    return node


def _storage(example: torch.Tensor) -> int:
    return example.untyped_storage()._cdata


class Owners:
    """For each node, the storage that torch's example of it has, once a result shows that node's memory."""

    def __init__(self, importer: Importer) -> None:
        self.storages: dict[Node, int] = {}
        for fx_node, value in importer.values.items():
            if fx_node.op not in ("placeholder", "get_attr") or not isinstance(value, Node):
                continue
            example = fx_node.meta.get("val")
            if isinstance(example, torch.Tensor):
                self.storages[value] = _storage(example)

    def claim_input(self, target: Node, value: Node) -> None:
        """`value` will be written into the input `target`."""
        self.storages.setdefault(root_of(value), self.storages.get(target, 0))

    def would_alias(self, value: Node, example: torch.Tensor) -> bool:
        """Whether `value` as a result would show memory that torch's result does not share."""
        root = root_of(value)
        if root.op.name == "constant":
            return self.storages.get(root) != _storage(example)
        return root in self.storages and self.storages[root] != _storage(example)

    def hides(self, value: Node, example: torch.Tensor) -> bool:
        """Whether torch's result shows an input's memory from a place known only when called, and `value` is a copy.

        torch makes such a result of the input again, by the strides and the place of ours.
        """
        root = root_of(value)
        if root in self.storages or _storage(example) not in self.storages.values():
            return False
        place = example.storage_offset()
        layout = (*example.shape, *example.stride(), place)
        known_to_be_first = isinstance(place, int) and place == 0
        return not known_to_be_first and any(isinstance(number, torch.SymInt) for number in layout)

    def claim(self, value: Node, example: torch.Tensor) -> None:
        """`value` is a result."""
        self.storages.setdefault(root_of(value), _storage(example))
