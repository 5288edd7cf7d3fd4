"""Which rewrite made a result wrong: a binary search over fuel.

Rewrites happen in a fixed order, so with fuel N the first N of them are applied. If the result is right with none and wrong with
all of them, there is an N whose last rewrite makes the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass

from dlcompiler.ir.graph import Graph
from dlcompiler.passes.context import DefaultOptions, Fuel, PassOptions, PassTarget
from dlcompiler.passes.pipeline import optimize


@dataclass(frozen=True)
class Culprit:
    """The rewrite after which results are wrong: its number, counted from 1, and as `simplify: add-zero at %add_3`.

    Number 0: they are wrong without any rewrite, so the fault lies elsewhere.
    """

    number: int
    rewrite: str

    def __str__(self) -> str:
        return f"rewrite {self.number}, {self.rewrite}" if self.number else "no rewrite: the result is wrong without any"


@dataclass(frozen=True)
class _WithFuel:
    options: PassOptions
    fuel: int | None

    @property
    def optimization_level(self) -> int:
        return self.options.optimization_level

    @property
    def disabled_passes(self) -> Set[str]:
        return self.options.disabled_passes

    @property
    def numerics(self) -> str:
        return self.options.numerics

    @property
    def activation_memory_budget(self) -> float | None:
        return self.options.activation_memory_budget


def find_culprit(
    graph: Graph, target: PassTarget, options: PassOptions | None, is_right: Callable[[Graph], bool]
) -> Culprit | None:
    """The first rewrite with which `is_right(optimized graph)` no longer holds; None if it holds with all of them.

    Calls `is_right` about log2(number of rewrites) + 2 times.
    """
    options = options or DefaultOptions()

    def try_with(limit: int | None) -> tuple[bool, Fuel]:
        fuel = Fuel(limit)
        return is_right(optimize(graph, target, _WithFuel(options, limit), fuel=fuel)), fuel

    right, fuel = try_with(None)
    if right:
        return None
    if not try_with(0)[0]:
        return Culprit(0, "")
    good, bad, last = 0, fuel.spent, fuel.last
    while bad - good > 1:
        middle = (good + bad) // 2
        right, fuel = try_with(middle)
        if right:
            good = middle
        else:
            bad, last = middle, fuel.last
    return Culprit(bad, last)
