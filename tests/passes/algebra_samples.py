"""Samples of rules that are a line of algebra, derived from the line itself: graphs where it must fire, and near misses."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from dlcompiler.ir.errors import CompilerError
from dlcompiler.ir.graph import Builder, Graph, Node
from dlcompiler.ir.ops import TABLE, Trait
from dlcompiler.ir.types import DType, TensorType, bf16, boolean, f16, f32, f64, i8, i32, i64, u8
from dlcompiler.passes.pattern import TAKES, Call, Literal, Pattern, Term, Variable, build

DTYPES = (f32, f64, f16, bf16, i64, i32, i8, u8, boolean)
# shapes of the letters in turn: equal, broadcast both ways, 0-d, empty, all of size 1
SHAPES = (((3, 16), (3, 16)), ((16,), (3, 1)), ((3, 1), (3, 16)), ((), ()), ((0, 4), (1,)), ((1, 1), (1,)), ((), (2, 3)))
NUMBERS = {"float": (0.75, -3.0, 1e-3), "int": (3, -2, 100), "uint": (3, 7, 100)}


@dataclass(frozen=True)
class Sample:
    """A graph whose one output is a copy of the rule's left side, so that the rule may give it any memory."""

    graph: Graph
    dtype: DType


def values(type: TensorType, seed: int) -> np.ndarray:
    """Numbers of a type, the difficult ones often among them."""
    random = np.random.default_rng(seed)
    dtype = type.dtype
    if dtype is boolean:
        return random.random(type.shape) < 0.5
    if dtype.is_float:
        special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 1e-40, -1e30, 1e30, 2.5, -0.5], dtype=np.float64)
        plain = random.standard_normal(type.shape) * 10.0 ** random.integers(-3, 4, type.shape)
    else:
        info = np.iinfo(dtype.numpy)
        special = np.array([info.min, info.max, 0, 1, info.max - 1, 2], dtype=dtype.numpy)
        plain = random.integers(max(info.min, -9), 9, type.shape)
    with np.errstate(all="ignore"):
        picked = special[random.integers(0, len(special), type.shape)]
        return np.where(random.random(type.shape) < 0.4, picked, plain).astype(dtype.numpy)


def positives(pattern: Pattern) -> Iterator[Sample]:
    """Graphs of the left side, for every element type and mix of shapes that it takes."""
    for dtypes, shapes, number in _choices(pattern):
        sample = _sample(pattern, pattern.before, dtypes, shapes, number)
        if sample is not None and TAKES[pattern.takes](dtypes[_speaks_for_type(pattern)]):
            yield sample


def near_misses(pattern: Pattern) -> Iterator[tuple[str, Sample]]:
    """Graphs that differ from the left side in one place, with what differs."""
    for what, term in _altered(pattern.before):
        for dtypes, shapes, number in itertools.islice(_choices(replace(pattern, before=term)), 200):
            sample = _sample(pattern, term, dtypes, shapes, number)
            if sample is not None:
                yield what, sample
    for dtypes, shapes, number in _choices(pattern):
        if not TAKES[pattern.takes](dtypes[_speaks_for_type(pattern)]):
            sample = _sample(pattern, pattern.before, dtypes, shapes, number)
            if sample is not None:
                yield f"takes {pattern.takes}, given {dtypes}", sample


def _speaks_for_type(pattern: Pattern) -> int:
    """The letter whose element type `takes` is about."""
    names = [v.name for v in pattern.variables]
    return names.index("x") if "x" in names else 0


def _choices(pattern: Pattern) -> Iterator[tuple[tuple[DType, ...], tuple[tuple[int, ...], ...], int]]:
    """Element types (one for all letters but a bool condition), shapes, and which number the capitals are."""
    letters = pattern.variables
    for dtype in DTYPES:
        for pair in SHAPES:
            for number in range(3 if any(v.is_constant for v in letters) else 1):
                dtypes = tuple(boolean if v.name == "c" else dtype for v in letters)
                shapes = tuple(() if v.is_constant else pair[k % 2] for k, v in enumerate(letters))
                yield dtypes, shapes, number


def _sample(pattern: Pattern, term: Term, dtypes, shapes, number: int) -> Sample | None:
    b = Builder()
    bound: dict[str, Node] = {}
    letters = dict.fromkeys((*pattern.variables, *Pattern(term, term).variables))  # type: ignore[arg-type]
    for k, letter in enumerate(letters):
        dtype, shape = (dtypes[k], shapes[k]) if k < len(dtypes) else (dtypes[0], shapes[0])
        if letter.is_constant:
            if dtype is boolean:
                return None
            bound[letter.name] = b.constant(NUMBERS[dtype.kind][(number + k) % 3], dtype)
        else:
            bound[letter.name] = b.input(letter.name, TensorType(dtype, shape))
    try:
        node = build(b, term, bound, dtypes[0])
    except (CompilerError, OverflowError):
        return None
    if node.op.name == "constant" or node in b.inputs:
        return None
    return Sample(b.finish([b.cast(node, dtype=node.dtype.name)]), dtypes[_speaks_for_type(pattern)])


def _altered(term: Term, is_root: bool = True) -> Iterator[tuple[str, Term]]:
    """The term with one literal, one inner op, or one of several equal letters changed."""
    if is_root:
        yield from _letters_told_apart(term)
        yield from _capitals_made_inputs(term)
    if isinstance(term, Literal):
        other = not term.value if isinstance(term.value, bool) else 0.0 if str(term.value) == "-0.0" else term.value + 3
        yield f"{term} is {other}", Literal(other)
    if isinstance(term, Call):
        if not is_root:
            for op in _of_equal_arity(term.op):
                yield f"{term.op} is {op}", Call(op, term.operands)
        for k, operand in enumerate(term.operands):
            for what, changed in _altered(operand, False):
                yield what, Call(term.op, (*term.operands[:k], changed, *term.operands[k + 1 :]))


def _of_equal_arity(op: str) -> list[str]:
    candidates = ("abs", "floor", "sign", "isnan") if op not in ("abs", "floor", "sign") else ("neg", "exp")
    by_arity = {1: candidates, 2: ("sub", "lt", "add", "bitwise_xor", "maximum")}
    arity = 1 if op in ("neg", "abs", "floor", "ceil", "round", "trunc", "sign", "sqrt", "bitwise_not") else 2
    return [c for c in by_arity.get(arity, ()) if c != op and Trait.POINTWISE in TABLE[c].traits]


def _letters_told_apart(term: Term) -> Iterator[tuple[str, Term]]:
    counts: dict[str, int] = {}
    for letter in _letters(term):
        counts[letter] = counts.get(letter, 0) + 1
    for letter, count in counts.items():
        if count > 1:
            seen = itertools.count()
            yield f"two {letter} differ", _renamed(term, letter, lambda seen=seen: "other" if next(seen) == 0 else None)


def _capitals_made_inputs(term: Term) -> Iterator[tuple[str, Term]]:
    for letter in dict.fromkeys(_letters(term)):
        if letter.isupper():
            yield f"{letter} is no constant", _renamed(term, letter, lambda: "other")


def _letters(term: Term) -> list[str]:
    if isinstance(term, Variable):
        return [term.name]
    return [name for o in term.operands for name in _letters(o)] if isinstance(term, Call) else []


def _renamed(term: Term, letter: str, name) -> Term:
    if isinstance(term, Variable) and term.name == letter:
        return Variable(name() or letter)
    if isinstance(term, Call):
        return Call(term.op, tuple(_renamed(o, letter, name) for o in term.operands))
    return term
