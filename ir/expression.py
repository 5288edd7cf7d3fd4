"""Integer expressions: the sizes of tensors and the indices into them.

A dimension or an index is a Python `int` or an `Expression`: a polynomial over named, non-negative integer symbols whose
atoms may also be floor divisions, remainders, minima and maxima. Polynomials are kept in normal form (a sum of terms, each
an integer times a sorted product of atoms), so two expressions are equal exactly when their normal forms are, and no
solver is needed. Facts about ranges (an axis lies in `[0, extent)`) are passed in where they help: `floor_div(i*N + j, N,
{"j": N})` is `i`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, reduce
from typing import TypeAlias, Union

Dim: TypeAlias = Union[int, "Expression"]
Extents: TypeAlias = Mapping[str, "Dim"]
NO_EXTENTS: Extents = {}


def known(dim: Dim) -> int:
    """A dimension that must be a number by now."""
    assert isinstance(dim, int), f"{dim} is not known yet"
    return dim


class Atom:
    """One factor of a term: a `Symbol`, or an operation on expressions that is not a polynomial."""

    __slots__ = ("kind", "operands", "_hash", "text")

    def __init__(self, kind: str, operands: tuple) -> None:
        self.kind, self.operands = kind, operands
        self._hash = hash((kind, operands))
        self.text = operands[0] if kind == "symbol" else f"{kind}({', '.join(map(str, operands))})"

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Atom) and self._hash == other._hash and self.kind == other.kind and self.operands == other.operands
        )

    def __lt__(self, other: Atom) -> bool:
        return self.text < other.text

    def __repr__(self) -> str:
        return self.text


Monomial: TypeAlias = tuple[Atom, ...]


class Expression:
    """A polynomial in normal form: `terms` maps a sorted tuple of atoms to its non-zero integer coefficient.

    Build expressions with `symbol` and arithmetic. A result without symbols is a plain `int`, so `isinstance(x, int)` tells
    whether a dimension is known.
    """

    __slots__ = ("terms", "_hash", "_symbols")

    def __init__(self, terms: Mapping[Monomial, int]) -> None:
        self.terms = dict(terms)
        self._hash: int | None = None
        self._symbols: frozenset[str] | None = None

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(frozenset(self.terms.items()))
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Expression) and self.terms == other.terms)

    def __add__(self, other: Dim) -> Dim:
        if isinstance(other, int):
            if other == 0:
                return self
            other_terms: Mapping[Monomial, int] = {(): other}
        else:
            other_terms = other.terms
        terms = dict(self.terms)
        for monomial, coefficient in other_terms.items():
            total = terms.get(monomial, 0) + coefficient
            if total:
                terms[monomial] = total
            else:
                terms.pop(monomial, None)
        return _from_terms(terms)

    __radd__ = __add__

    def __mul__(self, other: Dim) -> Dim:
        if isinstance(other, int):
            if other == 1:
                return self
            return Expression({m: c * other for m, c in self.terms.items()}) if other else 0
        terms: dict[Monomial, int] = {}
        for left, a in self.terms.items():
            for right, b in other.terms.items():
                monomial = tuple(sorted(left + right)) if left and right else left + right
                terms[monomial] = terms.get(monomial, 0) + a * b
        return _from_terms({m: c for m, c in terms.items() if c})

    __rmul__ = __mul__

    def __neg__(self) -> Dim:
        return self * -1

    def __sub__(self, other: Dim) -> Dim:
        return self + other * -1

    def __rsub__(self, other: int) -> Dim:
        return self * -1 + other

    def __floordiv__(self, other: Dim) -> Dim:
        return floor_div(self, other)

    def __rfloordiv__(self, other: int) -> Dim:
        return floor_div(other, self)

    def __mod__(self, other: Dim) -> Dim:
        return modulo(self, other)

    def __rmod__(self, other: int) -> Dim:
        return modulo(other, self)

    def __str__(self) -> str:
        parts: list[str] = []
        for monomial, coefficient in sorted(self.terms.items(), key=lambda item: (not item[0], [a.text for a in item[0]])):
            magnitude = abs(coefficient)
            factors = [str(a) for a in monomial]
            if magnitude != 1 or not factors:
                factors.insert(0, str(magnitude))
            sign = "-" if coefficient < 0 else "+"
            text = "*".join(factors)
            parts.append((f"-{text}" if sign == "-" else text) if not parts else f" {sign} {text}")
        return "".join(parts)

    def __repr__(self) -> str:
        return str(self)


def _from_terms(terms: dict[Monomial, int]) -> Dim:
    if not terms:
        return 0
    if len(terms) == 1 and () in terms:
        return terms[()]
    return Expression(terms)


def _atom(kind: str, *operands: Dim | str) -> Expression:
    return Expression({(Atom(kind, operands),): 1})


@lru_cache(maxsize=4096)
def symbol(name: str) -> Expression:
    """The non-negative integer called `name`."""
    return _atom("symbol", name)


# Names of a kernel's loop variables. No s and no u: torch calls sizes s0, s1, u0.
AXIS_LETTERS = "ijklmnpqrtvw"
# words that mean something else where a size may stand in the IR's text
RESERVED_NAMES = frozenset({"true", "false", "none", "nan", "inf"})
_AXIS_NAME = re.compile(rf"[{AXIS_LETTERS}]\d*\Z")
_SIZE_NAME = re.compile(r"[^\W\d][\w.]*\Z")


def is_size_name(name: str) -> bool:
    """Whether a size of a graph may be called so: an identifier (dots allowed) that cannot be an axis of a kernel."""
    return bool(_SIZE_NAME.match(name)) and not _AXIS_NAME.match(name) and name not in RESERVED_NAMES


def size_name(text: str) -> str:
    """`text` made a valid name of a size: "batch size" --> batch_size, "n" --> n_."""
    name = re.sub(r"[^\w.]", "_", text)
    if not name or name[0].isdigit() or name[0] == ".":
        name = f"_{name}"
    return name if is_size_name(name) else f"{name}_"


def terms_of(value: Dim) -> Mapping[Monomial, int]:
    """The normal form of an int or an expression: `{monomial: coefficient}`."""
    return value.terms if isinstance(value, Expression) else ({(): value} if value else {})


def symbols(value: Dim) -> frozenset[str]:
    """Names of every symbol that `value` depends on."""
    if isinstance(value, int):
        return frozenset()
    if value._symbols is None:
        found: set[str] = set()
        for monomial in value.terms:
            for atom in monomial:
                if atom.kind == "symbol":
                    found.add(atom.operands[0])
                else:
                    for operand in atom.operands:
                        found |= symbols(operand)
        value._symbols = frozenset(found)
    return value._symbols


def symbol_name(value: Dim) -> str | None:
    """The name if `value` is exactly one symbol, else None."""
    if isinstance(value, Expression) and len(value.terms) == 1:
        ((monomial, coefficient),) = value.terms.items()
        if coefficient == 1 and len(monomial) == 1 and monomial[0].kind == "symbol":
            return monomial[0].operands[0]
    return None


def linear_coefficients(value: Dim, names: Iterable[str]) -> dict[str, Dim] | None:
    """`{name: coefficient}` of an expression that is linear in the named symbols, the rest under `""`; None if it is not."""
    names = frozenset(names)
    found: dict[str, Dim] = {}
    for monomial, coefficient in terms_of(value).items():
        inside = [a for a in monomial if a.kind == "symbol" and a.operands[0] in names]
        if len(inside) > 1 or any(a.kind != "symbol" and any(symbols(o) & names for o in a.operands) for a in monomial):
            return None
        rest = _from_terms({_divide_monomial(monomial, tuple(inside)) or (): coefficient})
        name = inside[0].operands[0] if inside else ""
        found[name] = found.get(name, 0) + rest
    return found


def product(values) -> Dim:
    """The product of dimensions; 1 when there is none."""
    return reduce(lambda a, b: a * b, values, 1)


def rebuild(value: Dim, leaf: Callable[[str], Dim], extents: Extents = NO_EXTENTS) -> Dim:
    """`value` with each symbol replaced by `leaf(name)`, simplified under `extents`."""
    if isinstance(value, int):
        return value
    total: Dim = 0
    for monomial, coefficient in value.terms.items():
        term: Dim = coefficient
        for atom in monomial:
            if atom.kind == "symbol":
                factor: Dim = leaf(atom.operands[0])
            else:
                factor = OPERATIONS[atom.kind](*(rebuild(o, leaf, extents) for o in atom.operands), extents)
            term = term * factor
        total = total + term
    return total


def substitute(value: Dim, mapping: Mapping[str, Dim], extents: Extents = NO_EXTENTS) -> Dim:
    """`value` with every symbol in `mapping` replaced, simplified with what `extents` says of the new symbols."""
    if isinstance(value, int) or not mapping:
        return value
    return rebuild(value, lambda name: mapping[name] if name in mapping else symbol(name), extents)


def evaluate(value: Dim, bindings: Mapping[str, int]) -> int:
    """The number that `value` is once every symbol is bound. Raises KeyError naming an unbound symbol."""
    result = value if isinstance(value, int) else rebuild(value, lambda name: bindings[name])
    assert isinstance(result, int)
    return result


class Evaluator:
    """`evaluate` under one binding of the symbols, remembering results: a program asks for few distinct sizes, often."""

    def __init__(self, bindings: Mapping[str, int]) -> None:
        self.bindings = bindings
        self._known: dict[Dim, int] = {}

    def __call__(self, value: Dim) -> int:
        if isinstance(value, int):
            return value
        found = self._known.get(value)
        if found is None:
            found = self._known[value] = evaluate(value, self.bindings)
        return found


def _atom_is_non_negative(atom: Atom, extents: Extents) -> bool:
    match atom.kind:
        case "div":
            return is_non_negative(atom.operands[0], extents)
        case "max":
            return any(is_non_negative(o, extents) for o in atom.operands)
        case "min":
            return all(is_non_negative(o, extents) for o in atom.operands)
    return True  # a symbol, or a remainder


def _factors_are_non_negative(value: Dim, extents: Extents) -> bool:
    return all(_atom_is_non_negative(a, extents) for monomial in terms_of(value) for a in monomial if a.kind != "symbol")


def upper_bound(value: Dim, extents: Extents) -> Dim:
    """A value that is never exceeded: axes replaced by the end of their range that makes each term largest."""
    total: Dim = 0
    for monomial, coefficient in terms_of(value).items():
        total = total + _term_bound(monomial, coefficient, extents)
    return total


def _term_bound(monomial: Monomial, coefficient: int, extents: Extents) -> Dim:
    whole = _from_terms({monomial: coefficient})
    if not _factors_are_non_negative(whole, extents):
        return whole  # which end is the larger one is not known
    term: Dim = coefficient
    for atom in monomial:
        if atom.kind == "symbol" and atom.operands[0] in extents:
            term = term * (extents[atom.operands[0]] - 1 if coefficient > 0 else 0)
        elif atom.kind == "mod":
            term = term * (atom.operands[1] - 1 if coefficient > 0 else 0)
        elif atom.kind == "div" and coefficient > 0:
            term = term * floor_div(upper_bound(atom.operands[0], extents), atom.operands[1], extents)
        else:
            term = term * _from_terms({(atom,): 1})
    return term


def is_non_negative(value: Dim, extents: Extents = NO_EXTENTS) -> bool:
    """True only if provably `value >= 0`: no negative term once axes sit at the end that makes it smallest."""
    if isinstance(value, int):
        return value >= 0
    if all(c > 0 for c in value.terms.values()) and _factors_are_non_negative(value, extents):
        return True
    lowest = upper_bound(value * -1, extents) * -1 if extents else value
    return all(c >= 0 for c in terms_of(lowest).values()) and _factors_are_non_negative(lowest, extents)


def is_below(value: Dim, limit: Dim, extents: Extents = NO_EXTENTS) -> bool:
    """True only if provably `value < limit`."""
    if isinstance(value, int) and isinstance(limit, int):
        return value < limit
    return is_non_negative(limit - 1 - upper_bound(value, extents))


def _divide_monomial(monomial: Monomial, by: Monomial) -> Monomial | None:
    rest = list(monomial)
    for atom in by:
        if atom not in rest:
            return None
        rest.remove(atom)
    return tuple(rest)


def _split(value: Dim, divisor: Dim) -> tuple[Dim, Dim]:
    """`(quotient, rest)` with `value == quotient*divisor + rest`, taking every term that `divisor` divides exactly."""
    divisor_terms = terms_of(divisor)
    quotient: dict[Monomial, int] = {}
    rest: dict[Monomial, int] = {}
    if len(divisor_terms) != 1:  # a sum: only a multiple of the whole sum divides
        ratio = _exact_ratio(value, divisor)
        return (ratio, 0) if ratio is not None else (0, value)
    ((by, scale),) = divisor_terms.items()
    for monomial, coefficient in terms_of(value).items():
        left = _divide_monomial(monomial, by)
        if left is None:
            rest[monomial] = coefficient
            continue
        whole, over = divmod(coefficient, scale)
        if left or not over:
            if whole:
                quotient[left] = whole
            if over:
                rest[monomial] = over
        else:
            quotient[left] = whole
            rest[monomial] = over
    return _from_terms({m: c for m, c in quotient.items() if c}), _from_terms(rest)


def _exact_ratio(value: Dim, divisor: Dim) -> Dim | None:
    """`value / divisor` when `value` is an integer or single-term multiple of `divisor`, found by leading terms."""
    value_terms, divisor_terms = terms_of(value), terms_of(divisor)
    if len(value_terms) != len(divisor_terms) or not value_terms:
        return None
    lead = max(divisor_terms, key=lambda m: (len(m), [a.text for a in m]))
    for monomial, coefficient in value_terms.items():
        left = _divide_monomial(monomial, lead)
        if left is not None and coefficient % divisor_terms[lead] == 0:
            ratio = _from_terms({left: coefficient // divisor_terms[lead]})
            if ratio * divisor == value:
                return ratio
    return None


def _common_factor(value: Dim, divisor: Dim, extents: Extents) -> tuple[int, Dim, Dim] | None:
    """`(g, high, low)` with `value == g*high + low`, `0 <= low < g`, `g` dividing the int `divisor`; largest such g > 1."""
    if not isinstance(divisor, int) or isinstance(value, int):
        return None
    for g in sorted({math.gcd(c, divisor) for c in value.terms.values()} - {1}, reverse=True):
        high, low = _split(value, g)
        if high != 0 and is_non_negative(low, extents) and is_below(low, g, extents):
            return g, high, low
    return None


def floor_div(value: Dim, divisor: Dim, extents: Extents = NO_EXTENTS) -> Dim:
    """`value` divided by `divisor`, rounded towards minus infinity; an expression as divisor stands for positive numbers."""
    if isinstance(divisor, int):
        if divisor < 0:
            value, divisor = -value, -divisor
        if divisor == 1:
            return value
        if isinstance(value, int):
            return value // divisor
    if value == 0:
        return 0
    quotient, rest = _split(value, divisor)
    if rest == 0 or (is_non_negative(rest, extents) and is_below(rest, divisor, extents)):
        return quotient
    if rest == -1:
        return quotient - 1
    common = _common_factor(rest, divisor, extents)
    if common is not None and isinstance(divisor, int):
        g, high, _ = common
        return quotient + floor_div(high, divisor // g, extents)
    shift = terms_of(rest).get((), 0)
    atom = _single_atom(rest - shift)
    if atom is not None and atom.kind == "div":  # floor((floor(a / b) + c) / d) is floor((a + b*c) / (b*d))
        inner, by = atom.operands
        return quotient + floor_div(inner + by * shift, by * divisor, extents)
    return quotient + _atom("div", rest, divisor)


def modulo(value: Dim, divisor: Dim, extents: Extents = NO_EXTENTS) -> Dim:
    """The remainder of `floor_div`: in `[0, divisor)`, or in `(divisor, 0]` for a negative one."""
    if isinstance(divisor, int):
        if divisor < 0:
            return -modulo(-value, -divisor, extents)
        if divisor == 1:
            return 0
        if isinstance(value, int):
            return value % divisor
    _, rest = _split(value, divisor)
    if rest == 0 or (is_non_negative(rest, extents) and is_below(rest, divisor, extents)):
        return rest
    common = _common_factor(rest, divisor, extents)
    if common is not None and isinstance(divisor, int):
        g, high, low = common
        return modulo(high, divisor // g, extents) * g + low
    return _atom("mod", rest, divisor)


def _single_atom(value: Dim) -> Atom | None:
    if isinstance(value, Expression) and len(value.terms) == 1:
        ((monomial, coefficient),) = value.terms.items()
        if coefficient == 1 and len(monomial) == 1:
            return monomial[0]
    return None


def maximum(left: Dim, right: Dim, extents: Extents = NO_EXTENTS) -> Dim:
    """The larger of two dimensions."""
    if isinstance(left, int) and isinstance(right, int):
        return max(left, right)
    if is_non_negative(left - right, extents):
        return left
    if is_non_negative(right - left, extents):
        return right
    first, second = sorted((left, right), key=str)
    return _atom("max", first, second)


def minimum(left: Dim, right: Dim, extents: Extents = NO_EXTENTS) -> Dim:
    """The smaller of two dimensions."""
    if isinstance(left, int) and isinstance(right, int):
        return min(left, right)
    if is_non_negative(left - right, extents):
        return right
    if is_non_negative(right - left, extents):
        return left
    first, second = sorted((left, right), key=str)
    return _atom("min", first, second)


OPERATIONS: dict[str, Callable[..., Dim]] = {"div": floor_div, "mod": modulo, "max": maximum, "min": minimum}


def recombine(value: Dim) -> Dim:
    """Undo a split index: `c*b*div(x, b) + c*mod(x, b) --> c*x`."""
    if isinstance(value, int):
        return value
    for monomial, coefficient in value.terms.items():
        for position, atom in enumerate(monomial):
            if atom.kind != "mod":
                continue
            inner, by = atom.operands
            others = _from_terms({monomial[:position] + monomial[position + 1 :]: coefficient})
            whole = others * by * floor_div(inner, by)
            without = value - _from_terms({monomial: coefficient})
            candidate = without - whole
            if len(terms_of(candidate)) < len(terms_of(without)):
                return recombine(candidate + others * inner)
    return value


def parse_dim(text: str) -> Dim:
    """The inverse of `str`: sums and products of integers, names, `div(a, b)`, `mod(a, b)`, `max(a, b)`, `min(a, b)`.

    Raises ValueError with the offending text.
    """
    from dlcompiler.ir.errors import ParseError
    from dlcompiler.ir.text.scanner import Scanner

    try:
        scanner = Scanner(text)
        value = scanner.dim()
        scanner.end()
    except ParseError:
        raise ValueError(f"not a dimension: {text!r}") from None
    return value
