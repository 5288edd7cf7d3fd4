"""Builds kernels by pulling: to know one element of a result, ask for the elements of the operands that it needs.

An op's `element(builder, node, index)` says what one element of its result is. `KernelBuilder` calls these rules recursively
through a group of graph nodes, shares equal values, simplifies index arithmetic with the axes' ranges, and stops at nodes
outside the group, which become loads.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from dlcompiler.ir import kernel as K
from dlcompiler.ir import narrow
from dlcompiler.ir.errors import UnsupportedError
from dlcompiler.ir.expression import (
    AXIS_LETTERS,
    Atom,
    Dim,
    floor_div,
    is_below,
    is_non_negative,
    modulo,
    substitute,
    symbol,
    symbol_name,
    symbols,
    terms_of,
)
from dlcompiler.ir.graph import Node
from dlcompiler.ir.scalar import SCALARS
from dlcompiler.ir.types import DType, bf16, boolean, compute_dtype, f16, i64, u8

# stored narrower than they are computed
NARROW = (f16, bf16)
# A group is lowered by recursion over its nodes; groups are bounded in size, so this is enough and fails cleanly otherwise.
sys.setrecursionlimit(max(sys.getrecursionlimit(), 10_000))


class Refusal(Exception):
    """These nodes do not make one (good) kernel; the message is the reason, a sentence a user can read."""


class KernelBuilder:
    """Collects axes, buffers and shared values of one kernel.

    `buffer_of(node)` gives the buffer to load from for a node outside the group, or None for a node inside it.
    """

    def __init__(self, buffer_of: Callable[[Node], K.Buffer | None]) -> None:
        self.buffer_of = buffer_of
        self.axes: dict[str, K.Axis] = {}
        self.extents: dict[str, Dim] = {}
        self.ranges: dict[str, Dim] = {}  # what index expressions are simplified with: the extents of axes and indirect indices
        self.guard: tuple[K.Bound, ...] = ()
        self.elements: dict[tuple, K.Value] = {}  # (node, index, guard) -> value
        self.visited: dict[Node, tuple[Dim, ...]] = {}  # the first index each group node was asked for, unguarded
        # the first index each group node was asked for, and within which bounds alone
        self.asked: dict[Node, tuple[Dim, ...]] = {}
        self.asked_within: dict[Node, tuple[K.Bound, ...]] = {}
        self._shared: dict[tuple, K.Value] = {}
        self._axes_of: dict[K.Value, frozenset[str]] = {}
        self._indirect: dict[str, K.Value] = {}  # symbol "@vN" -> the integer value it stands for

    # -- axes ----------------------------------------------------------------------------------------------------------

    def axis(self, extent: Dim, avoid: frozenset[str] = frozenset()) -> Dim:
        """An axis of this extent not in `avoid`: an existing one if there is one, else a new one; 0 for extent 1."""
        if extent == 1:
            return 0
        for axis in self.axes.values():
            if axis.extent == extent and axis.name not in avoid:
                return symbol(axis.name)
        return self.new_axis(extent)

    def new_axis(self, extent: Dim) -> Dim:
        """A new axis; 0 for extent 1."""
        if extent == 1:
            return 0
        count = len(self.axes)
        letter = AXIS_LETTERS[count % len(AXIS_LETTERS)]
        name = letter if count < len(AXIS_LETTERS) else f"{letter}{count // len(AXIS_LETTERS)}"
        self.axes[name] = K.Axis(name, extent)
        self.extents[name] = self.ranges[name] = extent
        return symbol(name)

    def div(self, value: Dim, divisor: Dim) -> Dim:
        return floor_div(value, divisor, self.ranges)

    def mod(self, value: Dim, divisor: Dim) -> Dim:
        return modulo(value, divisor, self.ranges)

    def axes_in(self, expressions: Iterable[Dim]) -> frozenset[str]:
        """Axes that index expressions depend on, also through indirect indices."""
        found = frozenset().union(*(symbols(e) for e in expressions))
        return found.union(*(self._axes_of[self._indirect[name]] for name in found if name in self._indirect))

    # -- values --------------------------------------------------------------------------------------------------------

    def share(self, key: tuple, make: Callable[[], K.Value]) -> K.Value:
        value = self._shared.get(key)
        if value is None:
            value = self._shared[key] = make()
            own = frozenset(s for s in value._index_symbols() if s in self.extents)
            self._axes_of[value] = own.union(*(self._axes_of[o] for o in value.operands)) - value._removed()
        return value

    def axes_of(self, value: K.Value) -> frozenset[str]:
        """Axes that a value of this builder depends on."""
        return self._axes_of[value]

    def constant(self, value: Any, dtype: DType) -> K.Value:
        number = np.asarray(value).astype(dtype.numpy)
        if dtype.is_narrow:
            return self.bitcast(self.constant(number.view(np.uint8), u8), dtype)
        key = ("constant", dtype, number.tobytes())
        return self.share(key, lambda: K.Constant(dtype, number.item() if dtype.name != "bf16" else float(number)))

    def index(self, expression: Dim, dtype: DType = i64) -> K.Value:
        """An index expression as a number."""
        if isinstance(expression, int):
            return self.constant(expression, dtype)
        if self._is_indirect(expression):
            return self.cast(self._arithmetic(expression), dtype)
        return self.share(("index", expression, dtype), lambda: K.Index(dtype, expression))

    def _is_indirect(self, expression: Dim) -> bool:
        return any(name in self._indirect for name in symbols(expression))

    def _arithmetic(self, expression: Dim) -> K.Value:
        """An i64 index expression that uses indirect indices, as scalar operations on them."""
        if not self._is_indirect(expression):
            return self.index(expression)
        total: K.Value | None = None
        for monomial, coefficient in terms_of(expression).items():
            term = self.constant(coefficient, i64)
            for atom in monomial:
                factor = self._arithmetic_atom(atom)
                term = factor if coefficient == 1 and atom is monomial[0] else self.compute("mul", term, factor)
            total = term if total is None else self.compute("add", total, term)
        assert total is not None
        return total

    def _arithmetic_atom(self, atom: Atom) -> K.Value:
        if atom.kind == "symbol":
            name = atom.operands[0]
            return self._indirect[name] if name in self._indirect else self.index(symbol(name))
        op = {"div": "floor_div", "mod": "remainder", "max": "maximum", "min": "minimum"}[atom.kind]
        return self.compute(op, *(self._arithmetic(o) for o in atom.operands))

    def compute(self, op: str, *inputs: K.Value) -> K.Value:
        """A scalar operation; operands share one dtype (`where`: a bool, then two)."""
        dtype = SCALARS[op].result(inputs[-1].dtype)
        return self.share((op, inputs), lambda: K.Compute(dtype, op, inputs))

    def bitcast(self, value: K.Value, dtype: DType) -> K.Value:
        """The same bits as another dtype of the same width."""
        if value.dtype is dtype:
            return value
        if isinstance(value, K.Compute) and value.op == "bitcast":
            return self.bitcast(value.inputs[0], dtype)
        return self.share(("bitcast", value, dtype), lambda: K.Compute(dtype, "bitcast", (value,)))

    def cast(self, value: K.Value, dtype: DType) -> K.Value:
        if value.dtype is dtype:
            return value
        if value.dtype.is_narrow:
            return narrow.decode(self, value, dtype)
        if dtype.is_narrow:
            return narrow.encode(self, value, dtype)
        if isinstance(value, K.Constant):
            from dlcompiler.ir.scalar import cast_array

            return self.constant(cast_array(np.asarray(value.value, value.dtype.numpy), dtype), dtype)
        if isinstance(value, K.Compute) and value.op == "cast":
            source = value.inputs[0]
            if source.dtype is dtype and dtype in NARROW and value.dtype is compute_dtype(dtype):
                return source  # narrow -> wide -> narrow changes nothing
        return self.share(("cast", value, dtype), lambda: K.Compute(dtype, "cast", (value,)))

    def reduce(
        self, kind: str, extents: Sequence[Dim], avoid: Sequence[Dim], body: Callable[[tuple[Dim, ...]], K.Value]
    ) -> K.Value:
        """`body(position)` reduced over new positions of these extents; `avoid`: index expressions whose axes are taken."""
        taken = self.axes_in((*avoid, *(b.expression for b in self.guard)))
        position: list[Dim] = []
        for extent in extents:
            axis = self.axis(extent, taken)
            taken |= symbols(axis)
            position.append(axis)
        operand = body(tuple(position))
        names = [symbol_name(p) for p in position]
        over = tuple(n for n in names if n is not None)
        if kind in ("argmax", "argmin"):
            if not over:  # one element: its position is 0
                return self.constant(0, i64)
            return self.share((kind, operand, over), lambda: K.Reduce(i64, kind, operand, over))
        if not over:
            return operand
        return self.share((kind, operand, over), lambda: K.Reduce(operand.dtype, kind, operand, over))

    def select_within(
        self, bounds: Sequence[tuple[Dim, Dim]], inside: Callable[[], K.Value], outside: Callable[[], K.Value]
    ) -> K.Value:
        """`inside()` where `0 <= expression < extent` holds for every bound, else `outside()`; reads nothing out of bounds."""
        ranges = self.ranges
        needed = tuple(K.Bound(e, n) for e, n in bounds if not (is_non_negative(e, ranges) and is_below(e, n, ranges)))
        if not needed:
            return inside()
        if any(bound.extent == 0 for bound in needed):
            return outside()
        if any(self._is_indirect(bound.expression) for bound in needed):
            raise Refusal("an index that data gives would decide what is read at all")
        with self.guarded(needed):
            value = inside()
        return self.compute("where", self.within(needed), value, outside())

    def within(self, bounds: tuple[K.Bound, ...]) -> K.Value:
        """Whether all bounds hold."""
        return self.share(("within", bounds), lambda: K.Within(boolean, bounds))

    @contextmanager
    def guarded(self, bounds: tuple[K.Bound, ...]):
        """Loads made inside read only where the bounds hold."""
        saved = self.guard
        self.guard = saved + tuple(b for b in bounds if b not in saved)
        try:
            yield
        finally:
            self.guard = saved

    # -- pulling through the graph -------------------------------------------------------------------------------------

    def operand(self, node: Node, position: int, index: Sequence[Dim]) -> K.Value:
        """The element of operand `position` of `node` at `index`, in the operand's compute dtype."""
        return self.element(node.inputs[position], tuple(index))

    def element(self, node: Node, index: tuple[Dim, ...]) -> K.Value:
        """The element of `node` at `index`, in the compute dtype of its dtype."""
        index = tuple(0 if size == 1 else position for position, size in zip(index, node.shape))
        key = (node, index, self.guard)
        if key in self.elements:
            return self.elements[key]
        buffer = self.buffer_of(node)
        if buffer is not None:
            value = self.cast(self.load(buffer, index), compute_dtype(node.dtype))
        else:
            if node not in self.asked:
                self.asked[node], self.asked_within[node] = index, self.guard
            if not self.guard:
                self.visited.setdefault(node, index)
            if node.op.element is None:
                raise UnsupportedError(f"{node.op.name} has no element form", location=node.location)
            value = node.op.element(self, node, index)
        self.elements[key] = value
        return value

    def broadcast_operand(self, node: Node, position: int, index: Sequence[Dim]) -> K.Value:
        """As `operand`, for an operand broadcast to the node's shape: its trailing dimensions line up, size 1 repeats."""
        rank = node.inputs[position].tensor.rank
        return self.operand(node, position, index[len(index) - rank :] if rank else ())

    def load(self, buffer: K.Buffer, index: tuple[Dim, ...]) -> K.Value:
        """A load in the storage dtype. Symbols named by `indirect_index` are carried along."""
        guard = self.guard
        names = sorted({s for e in index for s in symbols(e) if s in self._indirect})
        indirect = tuple(self._indirect[name] for name in names)
        if names:
            mapping = {name: symbol(f"@{k}") for k, name in enumerate(names)}
            index = tuple(substitute(e, mapping) for e in index)
        return self.share(("load", buffer, index, guard, indirect), lambda: K.Load(buffer.dtype, buffer, index, guard, indirect))

    def indirect_index(self, value: K.Value, extent: Dim) -> Dim:
        """An integer value as an index into a dimension of `extent`; one outside is clamped: no read leaves the memory."""
        low = self.compute("maximum", self.cast(value, i64), self.constant(0, i64))
        value = self.compute("minimum", low, self.index(extent - 1))
        for name, known in self._indirect.items():
            if known is value:
                return symbol(name)
        name = f"@v{len(self._indirect)}"
        self._indirect[name] = value
        self.ranges[name] = extent
        return symbol(name)

    def store_value(self, value: K.Value, dtype: DType) -> K.Value:
        """The value as it is stored: cast to the storage dtype."""
        return self.cast(value, dtype)
