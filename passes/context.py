"""What every pass is given: the target's needs, the options it may ask, the fuel left, and a tally of what it did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from dlcompiler.ir.graph import Node
    from dlcompiler.ir.types import DType


class PassTarget(Protocol):
    """What passes ask of a target."""

    @property
    def library_ops(self) -> frozenset[str]:
        """Ops that a library runs whole; composites among them are not expanded."""
        ...

    def runs_whole(self, node: Node) -> bool:
        """Whether a composite is run as it is, by a library or by a hand-written kernel."""
        ...

    @property
    def tiles_sums(self) -> bool:
        """Whether kernels of ours compute matrix products and convolutions well."""
        ...

    @property
    def multiplies_unsigned(self) -> bool:
        """Whether products of unsigned bytes are summed as quickly as of signed ones."""
        ...

    @property
    def parallel_rows(self) -> int:
        """How many independent pieces of work keep the target busy: a reduction with fewer results is split."""
        ...

    @property
    def rows_at_a_time(self) -> int:
        """Of how many rows a large matrix product is worth starting: see `passes.block.row_chunks`."""
        ...

    def multiplies_quickly(self, dtype: DType) -> bool:
        """Whether a large matrix product takes no longer than writing and reading its result a few times."""
        ...

    def winograd_sizes(self, convolution: Node, changes: bool) -> tuple[int, ...] | None:
        """Results of a tile, along each dimension, with which Winograd's algorithm pays for a plain convolution; None if none.

        `changes`: whether its weights have to be transformed in each call.
        """
        ...


class PassOptions(Protocol):
    """What passes ask of the options of a compilation."""

    @property
    def optimization_level(self) -> int:
        """0: only what is needed to run; 1: also cleaning up; 2: also other ops and patterns; 3: also what costs memory."""
        ...

    @property
    def disabled_passes(self) -> Set[str]: ...

    @property
    def fuel(self) -> int | None:
        """Apply only this many rewrites; None for all."""
        ...

    @property
    def numerics(self) -> str:
        """`fast` allows rules that change the last bits; `eager` only exact ones."""
        ...

    @property
    def activation_memory_budget(self) -> float | None:
        """How much of what backward passes read may be held from forward passes (`passes.dataflow.recompute`)."""
        ...


@dataclass(frozen=True)
class DefaultOptions:
    """What holds when no options are given."""

    optimization_level: int = 2
    disabled_passes: frozenset[str] = frozenset()
    fuel: int | None = None
    numerics: str = "fast"
    activation_memory_budget: float | None = None


class Fuel:
    """Counts rewrites, and stops them after `limit`: which rewrite broke a result is then a binary search.

    `last` names the last rewrite that was paid for, as `simplify: add-zero at %add_3`.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.spent = 0
        self.last = ""

    @property
    def empty(self) -> bool:
        return self.limit is not None and self.spent >= self.limit

    def spend(self, what: str) -> bool:
        """Pay for one rewrite. False, and nothing is paid, when none is left."""
        if self.empty:
            return False
        self.spent += 1
        self.last = what
        return True


@dataclass
class Context:
    """Passed to every pass. `counts` is what the pass did, by rule or verb, for the graph's history."""

    target: PassTarget
    options: PassOptions = field(default_factory=DefaultOptions)
    fuel: Fuel = field(default_factory=Fuel)
    counts: Counter[str] = field(default_factory=Counter)
    pass_name: str = ""
    # a `passes.block.fuse.Trials`: what a pass that fuses finds out, for whoever fuses next
    trials: Any = None

    def spend(self, what: str, name: str) -> bool:
        """Pay for rewrite `what` of the node called `name` and count it; False when the fuel is used up."""
        if not self.fuel.spend(f"{self.pass_name}: {what} at %{name}"):
            return False
        self.counts[what] += 1
        return True

    @property
    def allows_approximate(self) -> bool:
        """Whether rules that change the last bits may fire."""
        return self.options.numerics == "fast"
