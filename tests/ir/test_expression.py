"""Expressions: simplification never changes a value, bounds are sound, text reads back."""

import itertools

import pytest
from dlcompiler.ir.expression import (
    Expression,
    evaluate,
    floor_div,
    is_below,
    is_non_negative,
    linear_coefficients,
    maximum,
    minimum,
    modulo,
    parse_dim,
    product,
    recombine,
    substitute,
    symbol,
    symbol_name,
    symbols,
    upper_bound,
)
from hypothesis import given, settings
from hypothesis import strategies as st

QUICK = settings(derandomize=True, deadline=None, max_examples=120)
# axes i, j, k run below these; N and M are sizes, at least 1
EXTENTS = {"i": 4, "j": symbol("N"), "k": 6}
POINTS = [
    {"N": n, "M": m, "i": i, "j": j, "k": k}
    for n, m in ((1, 1), (2, 3), (5, 4))
    for i in (0, 3)
    for j in {0, n - 1}
    for k in (0, 1, 5)
]


class Tree:
    """An expression as it was written, so that it can be evaluated without any simplification."""

    def __init__(self, op, *operands):
        self.op, self.operands = op, operands

    def build(self, extents):
        if self.op == "leaf":
            return self.operands[0] if isinstance(self.operands[0], int) else symbol(self.operands[0])
        left, right = (o.build(extents) for o in self.operands)
        match self.op:
            case "+":
                return left + right
            case "-":
                return left - right
            case "*":
                return left * right
            case "div":
                return floor_div(left, right, extents)
            case "mod":
                return modulo(left, right, extents)
            case "max":
                return maximum(left, right, extents)
        return minimum(left, right, extents)

    def value(self, point):
        if self.op == "leaf":
            return self.operands[0] if isinstance(self.operands[0], int) else point[self.operands[0]]
        left, right = (o.value(point) for o in self.operands)
        operations = {
            "+": lambda: left + right, "-": lambda: left - right, "*": lambda: left * right, "div": lambda: left // right,
            "mod": lambda: left % right, "max": lambda: max(left, right), "min": lambda: min(left, right),
        }  # fmt: skip
        return operations[self.op]()

    def __repr__(self):
        return str(self.operands[0]) if self.op == "leaf" else f"({self.operands[0]} {self.op} {self.operands[1]})"


def leaves(*names):
    return st.sampled_from(names).map(lambda n: Tree("leaf", n))


CONSTANTS = st.integers(-7, 9).map(lambda n: Tree("leaf", n))
# what divides is positive: a size, a positive number, or a product of them
DIVISORS = st.recursive(
    leaves("N", "M") | st.integers(1, 8).map(lambda n: Tree("leaf", n)),
    lambda inner: st.builds(Tree, st.just("*"), inner, inner),
    max_leaves=2,
)
TREES = st.recursive(
    CONSTANTS | leaves("i", "j", "k", "N", "M"),
    lambda inner: (
        st.builds(Tree, st.sampled_from(["+", "-", "*", "+", "max", "min"]), inner, inner)
        | st.builds(Tree, st.sampled_from(["div", "mod"]), inner, DIVISORS)
    ),
    max_leaves=7,
)
# index arithmetic as views make it: a flat index split again
INDICES = st.lists(st.sampled_from(["i", "j", "k"]), min_size=1, max_size=3, unique=True)


@QUICK
@given(TREES, st.booleans())
def test_simplification_never_changes_the_value(tree, with_ranges):
    built = tree.build(EXTENTS if with_ranges else {})
    for point in POINTS:
        assert evaluate(built, point) == tree.value(point)


@QUICK
@given(INDICES, st.lists(st.integers(0, 2), min_size=1, max_size=2), st.integers(0, 3))
def test_a_flat_index_split_again_never_changes_the_value(axes, cuts, offset):
    """Flatten over the axes' extents, shift, and split by products of some of the extents: what reshape does."""
    flat, plain = 0, Tree("leaf", 0)
    for axis in axes:
        extent = EXTENTS[axis]
        flat = flat * extent + symbol(axis)
        leaf = Tree("leaf", extent if isinstance(extent, int) else "N")
        plain = Tree("+", Tree("*", plain, leaf), Tree("leaf", axis))
    flat, plain = flat + offset, Tree("+", plain, Tree("leaf", offset))
    for cut in cuts:
        below = product(EXTENTS[a] for a in axes[cut:])
        for op, function in (("div", floor_div), ("mod", modulo)):
            built = function(flat, below, EXTENTS)
            for point in POINTS:
                by = evaluate(below, point)
                assert evaluate(built, point) == Tree(op, plain, Tree("leaf", by)).value(point)


def test_a_flat_index_split_by_its_own_extents_is_the_axes_again():
    i, j, k, n = (symbol(s) for s in "ijkN")
    flat = (i * n + j) * 6 + k
    assert floor_div(flat, 6, EXTENTS) == i * n + j and modulo(flat, 6, EXTENTS) == k
    assert floor_div(floor_div(flat, 6, EXTENTS), n, EXTENTS) == i == floor_div(flat, n * 6, EXTENTS)
    assert modulo(flat, n * 6, EXTENTS) == j * 6 + k
    assert modulo(floor_div(flat, 2, EXTENTS), 3, EXTENTS) == floor_div(k, 2)


@QUICK
@given(TREES)
def test_bounds_are_sound(tree):
    built = tree.build(EXTENTS)
    bound = upper_bound(built, EXTENTS)
    known = is_non_negative(built, EXTENTS)
    for point in POINTS:
        value = evaluate(built, point)
        assert value <= evaluate(bound, point), (bound, point)
        assert not known or value >= 0, point


@QUICK
@given(TREES, TREES)
def test_is_below_is_sound(left, right):
    a, b = left.build(EXTENTS), right.build(EXTENTS)
    if is_below(a, b, EXTENTS):
        for point in POINTS:
            assert evaluate(a, point) < evaluate(b, point), point


@QUICK
@given(TREES, st.booleans())
def test_text_reads_back(tree, with_ranges):
    built = tree.build(EXTENTS if with_ranges else {})
    again = parse_dim(str(built))
    assert again == built and type(again) is type(built)


@QUICK
@given(TREES, TREES)
def test_substitution_then_evaluation(tree, inner):
    built = tree.build({})
    if any(inner.value(p) < 1 for p in POINTS):  # what stands for a size is a size
        return
    replaced = substitute(built, {"N": inner.build({})})
    for point in POINTS:
        assert evaluate(replaced, point) == tree.value({**point, "N": inner.value(point)})


@QUICK
@given(TREES)
def test_recombining_never_changes_the_value(tree):
    built = tree.build({})
    for point in POINTS:
        assert evaluate(recombine(built), point) == tree.value(point)


@QUICK
@given(TREES)
def test_linear_coefficients(tree):
    built = tree.build(EXTENTS)
    found = linear_coefficients(built, ("i", "k"))
    if found is None:
        return
    assert not any(symbols(c) & {"i", "k"} for c in found.values())
    for point in POINTS:
        total = sum(evaluate(c, point) * (point[name] if name else 1) for name, c in found.items())
        assert total == tree.value(point)


@QUICK
@given(TREES, TREES)
def test_equal_and_hash(left, right):
    a, b = left.build({}), right.build({})
    assert a + b == b + a and hash(a + b) == hash(b + a)
    assert (a - b) + b == a and a * b == b * a
    if a == b:
        assert all(left.value(p) == right.value(p) for p in POINTS)


def test_numbers_stay_numbers():
    n = symbol("N")
    for value in (n - n, n * 0, floor_div(6 * n, 6) - n, modulo(4 * n, 2), floor_div(0, n), minimum(n, n + 1) - n):
        assert isinstance(value, int) and value == 0
    assert isinstance(n + 1, Expression) and symbol_name(n) == "N" and symbol_name(n + 1) is None


def test_recombine_joins_a_split_index():
    x, b = symbol("x"), 4
    assert recombine(floor_div(x, b) * b + modulo(x, b)) == x
    assert recombine(floor_div(x, b) * 12 + modulo(x, b) * 3 + 5) == 3 * x + 5


@pytest.mark.parametrize(
    "text", ["", "N +", "pow(N, 2)", "N / 2", "1.5", "(N", "div(N)", "N M", "div(N, 0)", "true", '"N"', "f(1)"]
)
def test_text_that_is_no_size(text):
    with pytest.raises(ValueError, match="not a dimension"):
        parse_dim(text)


def test_a_sum_of_many_terms_reads_back():
    total = 0
    for number in range(1200):
        total = total + symbol(f"s{number}") * (number + 1)
    assert parse_dim(str(total)) == total


def test_unbound_symbols_are_named():
    with pytest.raises(KeyError, match="M"):
        evaluate(symbol("N") + symbol("M"), {"N": 1})


def test_every_small_division():
    """Exhaustive where it is cheap: (a*i + b*j + c) div and mod d for an axis of 3 and one of 4."""
    ranges = {"i": 3, "j": 4}
    i, j = symbol("i"), symbol("j")
    for a, b, c, d in itertools.product(range(-4, 9, 2), range(-3, 7), (-5, 0, 1, 6), (1, 2, 3, 4, 6, 8, 12)):
        expression = a * i + b * j + c
        quotient, rest = floor_div(expression, d, ranges), modulo(expression, d, ranges)
        for x, y in itertools.product(range(3), range(4)):
            at = {"i": x, "j": y}
            assert evaluate(quotient, at) == (a * x + b * y + c) // d and evaluate(rest, at) == (a * x + b * y + c) % d
