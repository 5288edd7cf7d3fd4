"""The op table: one entry an op.

An entry says everything there is to know of an op, side by side: its name, the rule for its type, its meaning in NumPy, what
one element of its result is in Kernel IR (`element`), how it is written with other ops (`expand`), and its traits. Passes ask
traits, never lists of names.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from dlcompiler.ir.errors import UnsupportedError
from dlcompiler.ir.types import Type

if TYPE_CHECKING:
    from dlcompiler.ir.graph import Builder, Node
    from dlcompiler.ir.kernel import Value
    from dlcompiler.ir.kernel_builder import KernelBuilder

Attributes = Mapping[str, Any]
Infer = Callable[[tuple[Any, ...], Attributes], Type]


class Trait(Enum):
    """What a pass may ask of an op."""

    __hash__ = object.__hash__  # asked some hundred thousand times a compilation: enum's own is a function in Python

    POINTWISE = auto()  # element i of the result needs element i of each (broadcast) operand, nothing else
    REDUCTION = auto()  # an element of the result needs a whole range of elements of operand 0
    VIEW = auto()  # moves elements without computing: index arithmetic in whoever reads it
    PARTIAL = auto()  # a view that takes an element from one place or another: it is read under a condition
    INDEXING = auto()  # like a view, but where it reads depends on data
    CONTRACTION = auto()  # sums of products: matrix units and libraries may claim it
    LIBRARY = auto()  # no element form: a call of a library into planned buffers
    EXTERN = auto()  # run by ATen, allocating its own results
    BARRIER = auto()  # runs between programs: control flow, the host, sizes that data tells (`ir.control`)
    SOURCE = auto()  # has no operands: constants, index ranges, sizes
    COMMUTATIVE = auto()  # operands 0 and 1 may be exchanged
    COMPOSITE = auto()  # written with other ops by `expand`
    IMPURE = auto()  # two equal nodes are two results (random numbers); never merged or folded


@dataclass(frozen=True, eq=False, repr=False)
class Op:
    """One entry of the table.

    infer     (operand types, attributes) -> result type; raises ShapeError or DTypeError. None: the node's own type stands
    evaluate  (operand arrays, attributes) -> array: the definition. A composite's is its expansion's
    element   (builder, node, index) -> the value of one element, pulling elements of the operands; None for a library call
    expand    (graph builder, operands, attributes) -> the same result written with other ops: a node, or a tuple of nodes for a
              type that is a tuple; None where these operands have no such form
    """

    name: str
    infer: Infer
    evaluate: Callable[..., Any] | None = None
    element: Callable[[KernelBuilder, Node, tuple], Value] | None = None
    expand: Callable[[Builder, tuple[Node, ...], Attributes], Any] | None = None
    traits: frozenset[Trait] = frozenset()

    def has(self, trait: Trait) -> bool:
        return trait in self.traits

    def __repr__(self) -> str:
        return f"Op({self.name})"


TABLE: dict[str, Op] = {}


def register(name: str, infer: Infer, *traits: Trait, **meaning: Any) -> Op:
    """Add one entry to the table and return it."""
    assert name not in TABLE, name
    TABLE[name] = Op(name, infer, traits=frozenset(traits), **meaning)
    return TABLE[name]


def lookup(name: str) -> Op:
    """The entry called `name`. Raises UnsupportedError with the nearest names."""
    op = TABLE.get(name)
    if op is None:
        near = difflib.get_close_matches(name, TABLE, 3)
        raise UnsupportedError(
            f"there is no op {name!r}", items=(name,), hint=f"did you mean {', '.join(near)}?" if near else None
        )
    return op


def _fill_table() -> None:
    # each module registers its entries when imported
    from dlcompiler.ir.ops import (  # noqa: F401
        attention_training,
        block_scaled,
        compaction,
        composite,
        contraction,
        control,
        convolution_training,
        linear_logsumexp,
        order,
        pointwise,
        recurrent,
        recurrent_training,
        reduction,
        scan,
        scatter,
        source,
        view,
    )


_fill_table()
