"""Rules written as a line of algebra: `algebra("neg-neg", "neg(neg(x)) --> x", exact=True)`.

In such a line a call is an op; `+ - * /` are add, sub, mul and div; a small letter is any value, and twice the same letter the
same value; a capital is a constant of one element; a number or `true`/`false` is a constant all of whose elements are exactly
that (`-0.0` is not `0`). Operands of commutative ops match in either order.
"""

from __future__ import annotations

import ast
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from dlcompiler.ir.graph import Builder, Node
from dlcompiler.ir.ops import Trait, lookup
from dlcompiler.ir.types import DType, boolean
from dlcompiler.passes.rewrite import GraphRewriter, Rule

# A constant of more elements than this is not searched for whether all are equal.
UNIFORM_ELEMENTS = 4096

Bindings = dict[str, Node]


@dataclass(frozen=True)
class Variable:
    """`x`: any value. `A`: a constant of one element."""

    name: str

    @property
    def is_constant(self) -> bool:
        return self.name.isupper()

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Literal:
    value: int | float | bool

    def __str__(self) -> str:
        return str(self.value).lower() if isinstance(self.value, bool) else repr(self.value)


@dataclass(frozen=True)
class Call:
    op: str
    operands: tuple[Term, ...]

    def __str__(self) -> str:
        return f"{self.op}({', '.join(map(str, self.operands))})"


Term = Variable | Literal | Call
OPERATORS = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div"}


def parse_term(text: str) -> Term:
    """The term that a piece of a rule's line says. Raises ValueError."""

    def walk(tree: ast.expr) -> Term:
        match tree:
            case ast.Name(id="true" | "false"):
                return Literal(tree.id == "true")
            case ast.Name():
                return Variable(tree.id)
            case ast.Constant() if isinstance(tree.value, int | float):
                return Literal(tree.value)
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant()):
                return Literal(-tree.operand.value)  # type: ignore[attr-defined]
            case ast.UnaryOp(op=ast.USub()):
                return Call("neg", (walk(tree.operand),))
            case ast.BinOp() if type(tree.op) in OPERATORS:
                return Call(OPERATORS[type(tree.op)], (walk(tree.left), walk(tree.right)))
            case ast.Call(func=ast.Name()):
                return Call(lookup(tree.func.id).name, tuple(map(walk, tree.args)))  # type: ignore[attr-defined]
        raise ValueError(f"not a term of a rule: {text!r}")

    return walk(ast.parse(text.strip(), mode="eval").body)


def letters(term: Term) -> Iterator[Variable]:
    """Every letter of a term, as often as it stands there."""
    if isinstance(term, Variable):
        yield term
    elif isinstance(term, Call):
        for operand in term.operands:
            yield from letters(operand)


# What `takes` may say of the element type of `x`.
TAKES: Mapping[str, Callable[[DType], bool]] = {
    "any": lambda dtype: True,
    "float": lambda dtype: dtype.is_float,
    "integer": lambda dtype: dtype.is_integer,
    "signed": lambda dtype: dtype.is_float or dtype.kind == "int",
    "wide float": lambda dtype: dtype.is_float and dtype.bits >= 32,
    "number": lambda dtype: dtype.is_float or dtype.is_integer,
    "bool": lambda dtype: dtype is boolean,
    "whole": lambda dtype: dtype.is_integer or dtype is boolean,
}


@dataclass(frozen=True, eq=False)
class Pattern:
    """Both sides of a line of algebra.

    takes  which element types of `x` (of every operand, if there is no x) the rule holds for
    once   every op inside the left side must have no other reader, since it would still be computed for that one
    when   a condition on what the letters stand for
    """

    before: Call
    after: Term
    takes: str = "any"
    once: bool = False
    when: Callable[[Bindings], bool] | None = None

    @property
    def variables(self) -> tuple[Variable, ...]:
        """The letters of the left side, in order."""
        return tuple(dict.fromkeys(letters(self.before)))

    def accepts(self, bindings: Bindings) -> bool:
        """Whether the rule holds for what the letters are bound to."""
        bound = bindings.get("x") or next(iter(bindings.values()))
        return TAKES[self.takes](bound.dtype) and (self.when is None or self.when(bindings))


def build(b: Builder, term: Term, bindings: Bindings, dtype: DType) -> Node:
    """The term as nodes; a literal that stands alone is of `dtype`."""
    if isinstance(term, Variable):
        return bindings[term.name]
    if isinstance(term, Literal):
        return b.constant(term.value, dtype)
    return b(term.op, *(_operand(b, o, bindings, dtype) for o in term.operands))


def _operand(b: Builder, term: Term, bindings: Bindings, dtype: DType) -> Node | int | float:
    """An operand of a call: a number takes its element type from the operands beside it, true and false are bool."""
    if isinstance(term, Literal):
        return b.constant(term.value) if isinstance(term.value, bool) else term.value
    return build(b, term, bindings, dtype)


def algebra(
    name: str,
    line: str,
    *,
    exact: bool,
    takes: str = "any",
    once: bool = False,
    when: Callable[[Bindings], bool] | None = None,
) -> Rule:
    """A rule from a line `before --> after` (see `Pattern` for the conditions). Raises ValueError for what is none."""
    left, arrow, right = line.partition("-->")
    if not arrow:
        raise ValueError("there is no --> in it")
    before, after = parse_term(left), parse_term(right)
    if not isinstance(before, Call):
        raise ValueError(f"{left.strip()} is no op")
    pattern = Pattern(before, after, takes, once, when)
    unknown = set(letters(after)) - set(letters(before))
    if unknown:
        raise ValueError(f"{', '.join(sorted(map(str, unknown)))} is not on its left side")
    matchers = tuple(_matcher(variant, is_root=True, once=once) for variant in _variants(before))

    def apply(rewriter: GraphRewriter, node: Node) -> Node | None:
        for matches in matchers:
            bindings: Bindings = {}
            if matches(rewriter, node, bindings) and pattern.accepts(bindings):
                return build(rewriter, pattern.after, bindings, node.dtype)
        return None

    return Rule(name, (before.op,), exact, apply, " ".join(line.split()), pattern)


def _variants(term: Term) -> Iterator[Term]:
    """The term with operands of commutative ops in each order that makes a difference."""
    if not isinstance(term, Call):
        yield term
        return
    for operands in itertools.product(*(tuple(_variants(o)) for o in term.operands)):
        yield Call(term.op, operands)
        if Trait.COMMUTATIVE in lookup(term.op).traits and operands[0] != operands[1]:
            yield Call(term.op, operands[::-1])


Matcher = Callable[[GraphRewriter, Node, Bindings], bool]


def _matcher(term: Term, *, is_root: bool = False, once: bool) -> Matcher:
    if isinstance(term, Literal):
        return lambda rewriter, node, bindings: is_uniform(node, term.value)
    if isinstance(term, Variable):
        return _variable_matcher(term)
    operands = tuple(_matcher(o, once=once) for o in term.operands)
    op, check_uses = term.op, once and not is_root

    def matches(rewriter: GraphRewriter, node: Node, bindings: Bindings) -> bool:
        if node.op.name != op or (check_uses and not rewriter.is_used_once(node)):
            return False
        return all(match(rewriter, i, bindings) for match, i in zip(operands, node.inputs))

    return matches


def _variable_matcher(term: Variable) -> Matcher:
    name, must_be_constant = term.name, term.is_constant

    def matches(rewriter: GraphRewriter, node: Node, bindings: Bindings) -> bool:
        if must_be_constant and not (node.op.name == "constant" and node.attributes["value"].size == 1):
            return False
        return bindings.setdefault(name, node) is node

    return matches


def uniform_value(node: Node) -> np.generic | None:
    """The element of a constant all of whose elements are the same bits; None for any other node."""
    while node.op.name in ("expand", "reshape"):
        node = node.inputs[0]
    if node.op.name != "constant":
        return None
    value = node.attributes["value"]
    if value.size == 1:
        return value.reshape(())[()]
    if not 0 < value.size <= UNIFORM_ELEMENTS:
        return None
    flat = value.reshape(-1)
    return flat[0] if flat.tobytes() == flat[:1].tobytes() * flat.size else None


def is_uniform(node: Node, literal: Any) -> bool:
    """Whether `node` is a constant all of whose elements are `literal`: the sign of a zero counts, a bool is no number."""
    value = uniform_value(node)
    if value is None or isinstance(literal, bool) != (value.dtype.kind == "b"):
        return False
    if value.dtype.kind in "iub":
        is_negative_zero = literal == 0 and math.copysign(1, literal) < 0
        return not is_negative_zero and int(value) == literal
    return bool(value == literal) and bool(np.signbit(value)) == (math.copysign(1, literal) < 0)
