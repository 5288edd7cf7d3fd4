"""Phases: in how many passes over the reduced axes a kernel can be computed, and what each pass does.

A reduction is known only after a whole pass, so whatever needs it belongs to a later one. softmax has three: the largest element;
the sum of the exponentials; the quotients. Every target's writer follows the same phases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from dlcompiler.codegen.schedule import Access
from dlcompiler.ir import kernel as K
from dlcompiler.ir.expression import Dim, symbols


class Axes(Protocol):
    """What is asked of a schedule: its axes after merging, those that are reduced, and every access in terms of them."""

    @property
    def axes(self) -> Mapping[str, Dim]: ...
    @property
    def inner(self) -> tuple[str, ...]: ...
    @property
    def accesses(self) -> Mapping[object, Access]: ...


class Phases:
    """What belongs to which pass, for a kernel under a schedule's (merged) axes.

    phase_of  value -> the first pass in which it can be computed; a reduction is ready in the pass after its operand's
    axes_of   value -> the merged axes it depends on
    """

    def __init__(self, kernel: K.Kernel, schedule: Axes) -> None:
        self.kernel = kernel
        self.schedule = schedule
        self.inner = frozenset(schedule.inner)
        self.axes_of = self._merged_axes()
        self.phase_of = self._phases()
        self.last = max(self.phase_of.values(), default=0)

    def _merged_axes(self) -> dict[K.Value, frozenset[str]]:
        axes = frozenset(self.schedule.axes)
        found: dict[K.Value, frozenset[str]] = {}
        for value in self.kernel.values:
            own: frozenset[str] = frozenset()
            if isinstance(value, K.Load):
                bounds = (symbols(b.expression) | symbols(b.extent) for b in value.guard)
                own = symbols(self.schedule.accesses[value].offset).union(*bounds) & axes
            elif isinstance(value, K.Index | K.Within):
                own = value._index_symbols() & axes
            found[value] = own.union(*(found[o] for o in value.operands))
            if isinstance(value, K.Reduce):
                found[value] -= self.inner
        return found

    def _phases(self) -> dict[K.Value, int]:
        found: dict[K.Value, int] = {}
        for value in self.kernel.values:
            phase = max((found[o] for o in value.operands), default=0)
            found[value] = phase + 1 if isinstance(value, K.Reduce) else phase
        return found

    def is_inner(self, value: K.Value) -> bool:
        """Whether a value changes along a reduced axis."""
        return bool(self.axes_of[value] & self.inner)

    def is_inner_store(self, store: K.Store) -> bool:
        return bool(symbols(self.schedule.accesses[store].offset) & self.inner)

    def targets(self, phase: int) -> tuple[list[K.Reduce], list[K.Store]]:
        """The reductions and the stores that one pass is for."""
        reduces = [v for v in self.kernel.values if isinstance(v, K.Reduce) and self.phase_of[v] == phase + 1]
        stores = [s for s in self.kernel.stores if self.is_inner_store(s) and self.phase_of[s.value] == phase]
        return reduces, stores

    def between(self, phase: int) -> list[K.Value]:
        """Values without reduced axes that can be computed before the pass and not earlier."""
        values = self.kernel.values
        return [v for v in values if self.phase_of[v] == phase and not self.is_inner(v) and not isinstance(v, K.Reduce)]

    def needed(self, roots: Iterable[K.Value], known: Callable[[K.Value], bool] = lambda value: False) -> list[K.Value]:
        """Everything the roots are computed from, operands first. Reductions are left out, and so is what a known value needs."""
        wanted: set[K.Value] = set()
        stack = list(roots)
        while stack:
            value = stack.pop()
            if value in wanted or isinstance(value, K.Reduce):
                continue
            wanted.add(value)
            if not known(value):
                stack.extend(value.operands)
        return [v for v in self.kernel.values if v in wanted]
