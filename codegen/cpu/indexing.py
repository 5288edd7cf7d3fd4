"""Index expressions as MLIR: on scalars, or with a different value in each lane."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from dlcompiler.codegen.cpu.emitter import Emitter, Value
from dlcompiler.ir.expression import Atom, Dim, Extents, is_non_negative

Number: TypeAlias = Value | int


class IndexWriter:
    """Writes index expressions as i64 values. `value_of` gives the value of a symbol: an axis, a size or an indirect index."""

    def __init__(self, e: Emitter, value_of: Callable[[str], Number], extents: Extents) -> None:
        self.e = e
        self.value_of = value_of
        self.extents = extents

    def write(self, expression: Dim) -> Number:
        """The expression's value; a plain int stays one."""
        if isinstance(expression, int):
            return expression
        total: Number = 0
        for monomial, coefficient in expression.terms.items():
            term: Number = coefficient
            for atom in monomial:
                term = self.times(term, self._atom(atom))
            total = self.plus(total, term)
        return total

    def _atom(self, atom: Atom) -> Number:
        if atom.kind == "symbol":
            return self.value_of(atom.operands[0])
        left, right = (self.write(o) for o in atom.operands)
        match atom.kind:
            case "div":
                return self._floor_div(left, right, atom.operands[0])
            case "mod":
                quotient = self._floor_div(left, right, atom.operands[0])
                return self.plus(left, self.times(self.times(quotient, right), -1))
            case "max":
                return self.e.maximum(left, right)
        return self.e.minimum(left, right)

    def _floor_div(self, left: Number, right: Number, expression: Dim) -> Number:
        e = self.e
        if isinstance(left, int) and isinstance(right, int):
            return left // right
        if is_non_negative(expression, self.extents):
            return e.div(left, right)
        if isinstance(left, int):
            left = e.constant(left, "i64")
        # rounding towards minus infinity by the division that rounds towards zero
        below = self.plus(left, self.plus(1, self.times(right, -1)))
        return e.div(e.select(e.compare("lt", left, 0), below, left), right)

    def plus(self, a: Number, b: Number) -> Number:
        if isinstance(a, int) and isinstance(b, int):
            return a + b
        if isinstance(a, int) and a == 0:
            return b
        if isinstance(b, int) and b == 0:
            return a
        return self.e.add(a, b)

    def times(self, a: Number, b: Number) -> Number:
        if isinstance(a, int) and isinstance(b, int):
            return a * b
        if isinstance(a, int) and a in (0, 1):
            return b if a else 0
        if isinstance(b, int) and b in (0, 1):
            return a if b else 0
        return self.e.mul(a, b)
