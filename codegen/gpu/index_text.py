"""Index expressions as text: sums of products of variables, in Triton's language or in C++."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dlcompiler.ir.expression import Dim, is_non_negative

Symbol = Callable[[str], str]


@dataclass(frozen=True)
class Words:
    """How a language says what an index expression has besides sums and products.

    division, remainder             operators that round towards zero, for numbers that are not negative
    floor_division, floor_remainder functions that round towards minus infinity
    """

    division: str
    remainder: str
    floor_division: str
    floor_remainder: str
    maximum: str
    minimum: str


TRITON = Words("//", "%", "_floor_div", "_remainder", "tl.maximum", "tl.minimum")
CUDA = Words("/", "%", "floor_div", "floor_mod", "max", "min")


def index_text(expression: Dim, extents: Mapping[str, Dim], name: Symbol = str, words: Words = TRITON) -> str:
    """The expression, where `name` gives the variable of a symbol; `extents` bound the axes, which are never negative."""
    if isinstance(expression, int):
        return str(expression)
    terms = []
    for monomial, coefficient in expression.terms.items():
        factors = [_atom_text(atom, extents, name, words) for atom in monomial]
        if coefficient != 1 or not factors:
            factors.insert(0, str(coefficient) if coefficient >= 0 else f"({coefficient})")
        terms.append(" * ".join(factors))
    return " + ".join(terms)


def _atom_text(atom, extents: Mapping[str, Dim], name: Symbol, words: Words) -> str:
    if atom.kind == "symbol":
        return name(atom.operands[0])
    left, right = (index_text(o, extents, name, words) for o in atom.operands)
    if atom.kind in ("div", "mod"):
        numerator, divisor = atom.operands
        if is_non_negative(numerator, extents) and isinstance(divisor, int) and divisor > 0:
            return f"(({left}) {words.division if atom.kind == 'div' else words.remainder} {right})"
        return f"{words.floor_division if atom.kind == 'div' else words.floor_remainder}({left}, {right})"
    return f"{words.maximum if atom.kind == 'max' else words.minimum}({left}, {right})"
