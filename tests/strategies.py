"""Random graphs with inputs to match, for the property that everything agrees: interpreters, passes, kernels, compiled code.

    @given(case=graphs(max_nodes=8))
    def test(case): case.check(run(case.graph, case.inputs))

Each value carries a bound on its elements and on the error that rounding and reordering may leave in it, so graphs stay in safe
ranges and an output's tolerance follows from how it was computed. Ops that jump (floor, comparisons, argmax, casts to integers)
are applied to floats only where every way to compute their operand gives the same bits.
"""

from __future__ import annotations

import math
import random as standard_random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np
from dlcompiler.ir.expression import Dim, Expression, evaluate, symbol
from dlcompiler.ir.graph import Builder, Graph, Node
from dlcompiler.ir.interpret import interpret_graph
from dlcompiler.ir.text import print_graph
from dlcompiler.ir.types import DType, TensorType, bf16, boolean, f16, f32, f64, i8, i32, i64, u8
from hypothesis import strategies as st

EPSILON = {f64: 2.3e-16, f32: 1.2e-7, f16: 1e-3, bf16: 8e-3}
LARGEST = {f64: 1e6, f32: 1e4, f16: 300.0, bf16: 1e3}
ALL_DTYPES = (f32, f64, f16, bf16, i64, i32, i8, u8, boolean)
SPECIAL_VALUES = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-30, -1.0)
SIZES = (1, 2, 3, 4, 5, 7, 8, 16, 17)
MAXIMUM_ELEMENTS = 3000
# how many units of the error bound a result may be off
SAFETY = 8


@dataclass(frozen=True, eq=False, repr=False)
class Case:
    """A graph, inputs for it, and how far each result (outputs, then written-back values) may be off."""

    graph: Graph
    inputs: list[np.ndarray | int]
    tolerances: list[float]

    def expected(self) -> list[np.ndarray]:
        """What the graph interpreter gives."""
        return interpret_graph(self.graph, self.inputs)

    def check(self, actual: Sequence[np.ndarray], expected: Sequence[np.ndarray] | None = None) -> None:
        """Assert that results are within their tolerances; NaN and infinities must stand in the same places."""
        expected = self.expected() if expected is None else expected
        assert len(actual) == len(expected)
        for number, (a, e, tolerance) in enumerate(zip(actual, expected, self.tolerances)):
            a = np.asarray(a)
            assert (a.dtype, a.shape) == (e.dtype, e.shape), f"result {number}: {a.dtype}{a.shape}, expected {e.dtype}{e.shape}"
            if e.dtype.kind in "iub":
                np.testing.assert_array_equal(a, e, f"result {number}")
            else:
                wide = [x.astype(np.float64) for x in (a, e)]
                np.testing.assert_allclose(
                    *wide, rtol=EPSILON_OF[e.dtype.name] * SAFETY, atol=tolerance, err_msg=f"result {number}"
                )

    def __repr__(self) -> str:
        shown = "\n".join(f"# input {k}: {np.asarray(x).tolist()}" for k, x in enumerate(self.inputs) if np.size(x) <= 40)
        return f"Case(\n{print_graph(self.graph)}{shown})"


EPSILON_OF = {d.numpy.name: e for d, e in EPSILON.items()}


def graphs(**options: Any) -> st.SearchStrategy[Case]:
    """Random cases; the options are those of `random_case`."""
    return st.randoms(use_true_random=False).map(lambda random: random_case(random, **options))


def random_case(
    random: standard_random.Random | int,
    *,
    max_nodes: int = 10,
    dtypes: Sequence[DType] = ALL_DTYPES,
    families: Sequence[str] = ("pointwise", "reduction", "view", "indexing", "cast", "composite", "contraction"),
    special: bool = False,
    symbolic: bool = False,
    empty: bool = True,
    writebacks: bool = False,
) -> Case:
    """One random graph of about `max_nodes` nodes, with inputs.

    random      a random generator, or the seed of one
    families    which ops occur: pointwise, reduction, view, indexing, cast, composite, contraction
    special     float inputs hold NaN, infinities and zeros of both signs
    symbolic    leading dimensions may be the size N, bound by the first input; it is 1, 2, 3, 5 or 17 in `inputs`
    empty       dimensions of size 0 occur
    writebacks  results are written back into inputs of their type
    """
    if isinstance(random, int):
        random = standard_random.Random(random)
    maker = GraphMaker(random, tuple(dtypes), special, symbolic, empty)
    steps = [step for family in families for step in STEPS[family]]
    for _ in range(random.randint(1, max_nodes)):
        for _ in range(8):
            if random.choice(steps)(maker) is not None:
                break
    return maker.finish(writebacks)


@dataclass
class Fact:
    """What is known of a value: |element| <= bound (NaN and infinities aside), error, and whether its bits are certain."""

    bound: float
    error: float = 0.0
    exact: bool = True


@dataclass
class GraphMaker:
    random: Any
    dtypes: tuple[DType, ...]
    special: bool
    symbolic: bool
    empty: bool
    builder: Builder = field(default_factory=lambda: Builder("random"))
    facts: dict[Node, Fact] = field(default_factory=dict)
    arrays: list[Callable[[], np.ndarray]] = field(default_factory=list)
    bindings: dict[str, int] = field(default_factory=dict)
    read: set[Node] = field(default_factory=set)  # values that some node reads

    def __post_init__(self) -> None:
        # few dtypes a graph, so that values meet
        first = self.random.choice(self.dtypes)
        chosen = {first, *(d for d in self.dtypes if d in (first, boolean, i64) or self.random.random() < 0.2)}
        self.dtypes = tuple(d for d in self.dtypes if d in chosen)
        self.floats = [d for d in self.dtypes if d.is_float]
        self.integers = [d for d in self.dtypes if d.is_integer]
        count = self.random.randint(1, 3)
        self.sizes: list[Dim] = [self.random.choice(SIZES) for _ in range(count)]
        if self.empty and self.random.random() < 0.08:
            self.sizes[0] = 0
        self.seed = self.random.randint(0, 1 << 30)
        if self.symbolic:
            self.bindings["N"] = self.random.choice((1, 2, 3, 5, 17))
            shape = (symbol("N"), *self.shape(self.random.randint(0, 2)))
            self.input(self.random.choice(self.dtypes), shape)

    # -- drawing ---------------------------------------------------------------------------------------------------------

    def size(self) -> Dim:
        return 1 if self.random.random() < 0.15 else self.random.choice(self.sizes)

    def shape(self, rank: int | None = None) -> tuple[Dim, ...]:
        rank = self.random.choice((0, 1, 2, 2, 2, 3, 3, 4)) if rank is None else rank
        shape = [self.size() for _ in range(rank)]
        if self.symbolic and rank and self.random.random() < 0.5:
            shape[0] = symbol("N")
        while self.count(shape) > MAXIMUM_ELEMENTS:
            shape[shape.index(max(shape, key=self.number))] = 1
        return tuple(shape)

    def number(self, size: Dim) -> int:
        return evaluate(size, self.bindings)

    def count(self, shape: Iterable[Dim]) -> int:
        return math.prod(map(self.number, shape))

    def input(self, dtype: DType, shape: tuple[Dim, ...], low: float = -3, high: float = 3) -> Node:
        """A new input with random elements in [low, high]."""
        node = self.builder.input("x", TensorType(dtype, shape))
        seed = (self.seed, len(self.arrays))
        if dtype.is_integer and not dtype.is_signed:
            low = max(low, 0)
        self.arrays.append(lambda: self.elements(seed, dtype, tuple(map(self.number, shape)), low, high))
        self.facts[node] = Fact(max(abs(low), abs(high)))
        return node

    def elements(self, seed: tuple[int, int], dtype: DType, shape: tuple[int, ...], low: float, high: float) -> np.ndarray:
        random = np.random.default_rng(seed)
        if dtype is boolean:
            return np.asarray(random.random(shape) < 0.5)
        if dtype.is_integer:
            return np.asarray(random.integers(int(low), int(high) + 1, shape)).astype(dtype.numpy)
        values = np.asarray(random.uniform(low, high, shape))
        if self.special:
            chosen = random.random(shape) < 0.1
            values = np.where(chosen, random.choice(SPECIAL_VALUES, shape), values)
        return values.astype(dtype.numpy)

    def pick(
        self, wanted: Callable[[Node, Fact], bool], dtypes: Sequence[DType], shape: tuple[Dim, ...] | None = None
    ) -> Node | None:
        """A value of the graph that fits (unread ones more often), or a new input; None if no such dtype is in use."""
        if not dtypes:
            return None
        fitting = [n for n, f in self.facts.items() if n.dtype in dtypes and (shape is None or n.shape == shape) and wanted(n, f)]
        if fitting and (self.random.random() < 0.9 or len(self.arrays) >= 8):
            unread = [n for n in fitting if n not in self.read]
            return self.random.choice(unread if unread and self.random.random() < 0.7 else fitting)
        node = self.input(self.random.choice(list(dtypes)), self.shape() if shape is None else shape)
        return node if wanted(node, self.facts[node]) else None

    def any(self, dtypes: Sequence[DType] | None = None) -> Node | None:
        return self.pick(lambda n, f: True, self.dtypes if dtypes is None else dtypes)

    def partner(self, x: Node) -> Node:
        """A value of the same dtype that broadcasts with `x`."""
        fitting = [n for n in self.facts if n.dtype is x.dtype and self.broadcasts(n.shape, x.shape)]
        draw = self.random.random()
        if draw < 0.15:
            value = self.random.choice((0, 1, 2, 3)) if not x.dtype.is_float else self.random.choice((0.5, 1.0, -1.5, 2.0))
            constant = self.builder.constant(value, x.dtype)
            self.facts[constant] = Fact(abs(float(value)))
            return constant
        if draw < 0.3 and len(self.arrays) < 8:
            kept = x.shape[self.random.randint(0, len(x.shape)) :]
            return self.input(x.dtype, tuple(1 if self.random.random() < 0.3 else d for d in kept))
        unread = [n for n in fitting if n not in self.read]
        return self.random.choice(unread if unread and self.random.random() < 0.5 else fitting)

    def broadcasts(self, a: tuple[Dim, ...], b: tuple[Dim, ...]) -> bool:
        """Whether two shapes do, to a result that is not too large."""
        pairs = list(zip_longest(reversed(a), reversed(b), fillvalue=1))
        if any(x != y and x != 1 and y != 1 for x, y in pairs):
            return False
        return a == b or self.count(x if y == 1 else y for x, y in pairs) <= MAXIMUM_ELEMENTS

    # -- adding ----------------------------------------------------------------------------------------------------------

    def add(self, op: str, *operands: Any, fact: Fact, **attributes: Any) -> Node | None:
        """Append a node with what is known of it; nothing if it would be too large, in elements or in magnitude."""
        first = next(o for o in operands if isinstance(o, Node))
        if first.dtype.is_float and not math.isfinite(fact.bound):
            return None
        self.builder.location = f"model.py:{len(self.builder.nodes) + 1}"
        nodes = len(self.builder.nodes)
        node = self.builder(op, *operands, **attributes)
        limit = LARGEST.get(node.dtype)
        if self.count(node.shape) > MAXIMUM_ELEMENTS or (limit is not None and fact.bound > limit):
            del self.builder.nodes[nodes:]  # with the constants made for it
            return None
        self.facts[node] = fact if node.dtype.is_float else Fact(fact.bound)
        self.read.update(node.inputs)
        return node

    def rounded(self, dtype: DType, bound: float, error: float, units: float = 2) -> Fact:
        """The fact of a value computed with rounding in `dtype`."""
        return Fact(bound, error + units * EPSILON.get(dtype, 0.0) * bound, not dtype.is_float)

    def finish(self, writebacks: bool) -> Case:
        graph_nodes = self.builder.nodes
        used = {i for n in graph_nodes for i in n.inputs}
        outputs = [n for n in graph_nodes if n not in used and n.op.name != "constant"]
        others = [n for n in self.facts if n not in outputs and n.op.name != "constant"]
        if others and (not outputs or self.random.random() < 0.3):
            outputs.insert(self.random.randint(0, len(outputs)), self.random.choice(others))
        if not outputs:
            outputs = [self.input(self.dtypes[0], self.shape())]
        written = []
        if writebacks:
            for node in self.builder.inputs:
                values = [n for n in graph_nodes if n.type == node.type]
                if values and self.random.random() < 0.5:
                    written.append((self.random.choice(values), node))
        graph = self.builder.finish(outputs, writebacks=tuple(written))
        results = (*outputs, *(value for value, _ in written))
        return Case(graph, [make() for make in self.arrays], [self.facts[n].error * SAFETY for n in results])


# -- steps: each adds a few nodes to a maker and gives the last, or None where it does not apply ---------------------------------

Step = Callable[[GraphMaker], Node | None]
STEPS: dict[str, list[Step]] = {}


def step(family: str, weight: int = 1) -> Callable[[Step], Step]:
    def apply(function: Step) -> Step:
        STEPS.setdefault(family, []).extend([function] * weight)
        return function

    return apply


# name -> (shift that makes |x| + shift a safe operand, or None for x itself; bound of the result; how much it stretches errors)
UNARY: dict[str, tuple[float | None, Callable[[float], float], Callable[[float], float]]] = {
    "exp": (None, math.exp, math.exp),
    "exp2": (None, lambda b: 2**b, lambda b: 2**b),
    "expm1": (None, math.exp, math.exp),
    "tanh": (None, lambda b: 1.0, lambda b: 1.0),
    "sigmoid": (None, lambda b: 1.0, lambda b: 0.25),
    "erf": (None, lambda b: 1.0, lambda b: 1.2),
    "sin": (None, lambda b: 1.0, lambda b: 1.0),
    "cos": (None, lambda b: 1.0, lambda b: 1.0),
    "atan": (None, lambda b: 1.6, lambda b: 1.0),
    "asinh": (None, lambda b: b, lambda b: 1.0),
    "sqrt": (0.25, lambda b: math.sqrt(b) + 0.5, lambda b: 1.0),
    "rsqrt": (0.25, lambda b: 2.0, lambda b: 4.0),
    "log": (0.25, lambda b: math.log(b + 0.3) + 2, lambda b: 4.0),
    "log1p": (0.0, lambda b: b, lambda b: 1.0),
    "log2": (0.25, lambda b: 2 * math.log(b + 0.3) + 3, lambda b: 6.0),
    "reciprocal": (0.25, lambda b: 4.0, lambda b: 16.0),
}


@step("pointwise", 3)
def _unary(m: GraphMaker) -> Node | None:
    x = m.any(m.floats)
    if x is None:
        return None
    name = m.random.choice(list(UNARY))
    shift, bound, slope = UNARY[name]
    fact = m.facts[x]
    if fact.bound > 9:
        return None
    if shift is not None:
        magnitude = m.add("abs", x, fact=fact)
        x = m.add("add", magnitude, shift, fact=m.rounded(x.dtype, fact.bound + shift, fact.error)) if magnitude else None
        if x is None:
            return None
        fact = m.facts[x]
    return m.add(name, x, fact=m.rounded(x.dtype, bound(fact.bound), fact.error * slope(fact.bound), 4))


@step("pointwise")
def _exact_unary(m: GraphMaker) -> Node | None:
    x = m.any([d for d in m.dtypes if d is not boolean])
    if x is None:
        return None
    return m.add(m.random.choice(("neg", "abs", "copy")), x, fact=m.facts[x])


@step("pointwise", 4)
def _arithmetic(m: GraphMaker) -> Node | None:
    x = m.any([d for d in m.dtypes if d is not boolean])
    if x is None:
        return None
    y = m.partner(x)
    if m.random.random() < 0.5:
        x, y = y, x
    a, b = m.facts[x], m.facts[y]
    op = m.random.choice(("add", "sub", "mul", "maximum", "minimum"))
    if op == "mul":
        fact = m.rounded(x.dtype, a.bound * b.bound, a.error * b.bound + b.error * a.bound)
    elif op in ("add", "sub"):
        fact = m.rounded(x.dtype, a.bound + b.bound, a.error + b.error)
    else:
        fact = Fact(max(a.bound, b.bound), max(a.error, b.error), a.exact and b.exact)
    return m.add(op, x, y, fact=fact)


@step("pointwise")
def _division(m: GraphMaker) -> Node | None:
    x = m.any(m.floats)
    if x is None:
        return None
    y = m.partner(x)
    magnitude = m.add("abs", y, fact=m.facts[y])
    y = m.add("add", magnitude, 0.5, fact=m.rounded(x.dtype, m.facts[y].bound + 0.5, m.facts[y].error)) if magnitude else None
    if y is None:
        return None
    a, b = m.facts[x], m.facts[y]
    return m.add("div", x, y, fact=m.rounded(x.dtype, a.bound * 2, a.error * 2 + b.error * a.bound * 4))


@step("pointwise")
def _integer_arithmetic(m: GraphMaker) -> Node | None:
    x = m.any(m.integers)
    if x is None:
        return None
    ops = ("floor_div", "trunc_div", "remainder", "fmod", "bitwise_and", "bitwise_or", "bitwise_xor", "shift_left", "shift_right")
    return m.add(m.random.choice(ops), x, m.partner(x), fact=Fact(math.inf))


@step("pointwise")
def _jumps(m: GraphMaker) -> Node | None:
    x = m.pick(lambda n, f: f.exact, m.floats)
    if x is None:
        return None
    name = m.random.choice(("floor", "ceil", "round", "trunc", "sign", "isnan", "isinf", "isfinite"))
    return m.add(name, x, fact=Fact(m.facts[x].bound + 1))


@step("pointwise", 2)
def _compare(m: GraphMaker) -> Node | None:
    x = m.pick(lambda n, f: f.exact, m.dtypes)
    y = m.partner(x) if x is not None else None
    if x is None or y is None or not m.facts[y].exact or boolean not in m.dtypes:
        return None
    return m.add(m.random.choice(("eq", "ne", "lt", "le", "gt", "ge")), x, y, fact=Fact(1))


@step("pointwise", 2)
def _select(m: GraphMaker) -> Node | None:
    x = m.any()
    condition = m.any([boolean] if boolean in m.dtypes else [])
    if x is None or condition is None:
        return None
    y = m.partner(x)
    if not (m.broadcasts(condition.shape, x.shape) and m.broadcasts(condition.shape, y.shape)):
        return None
    a, b = m.facts[x], m.facts[y]
    fact = Fact(max(a.bound, b.bound), max(a.error, b.error), a.exact and b.exact)
    return m.add("where", condition, x, y, fact=fact)


@step("pointwise")
def _logic(m: GraphMaker) -> Node | None:
    x = m.any([boolean] if boolean in m.dtypes else [])
    if x is None:
        return None
    if m.random.random() < 0.3:
        return m.add("bitwise_not", x, fact=Fact(1))
    return m.add(m.random.choice(("bitwise_and", "bitwise_or", "bitwise_xor")), x, m.partner(x), fact=Fact(1))


# -- reductions ----------------------------------------------------------------------------------------------------------------


def _axes(m: GraphMaker, rank: int) -> tuple[int, ...]:
    if m.random.random() < 0.6:
        return (m.random.choice((rank - 1, rank - 1, m.random.randint(0, rank - 1))),)
    return tuple(sorted(m.random.sample(range(rank), m.random.randint(1, rank))))


@step("reduction", 3)
def _reduce(m: GraphMaker) -> Node | None:
    x = m.pick(lambda n, f: n.tensor.rank > 0, m.dtypes)
    if x is None:
        return None
    axes = _axes(m, x.tensor.rank)
    attributes = {"axes": axes, "keepdims": m.random.random() < 0.5}
    count = max(m.count(x.shape[a] for a in axes), 1)
    fact = m.facts[x]
    if x.dtype is boolean:
        return m.add(m.random.choice(("reduce_any", "reduce_all")), x, fact=Fact(1), **attributes)
    ops = ["reduce_sum", "reduce_sum", "reduce_max", "reduce_min"] + ["mean", "variance", "logsumexp"] * x.dtype.is_float
    op = m.random.choice(ops)
    if op in ("reduce_max", "reduce_min"):
        return m.add(op, x, fact=fact, **attributes)
    if op == "reduce_sum":
        return m.add(op, x, fact=m.rounded(x.dtype, fact.bound * count, fact.error * count, count), **attributes)
    if op == "mean":
        return m.add(op, x, fact=m.rounded(x.dtype, fact.bound, fact.error, count), **attributes)
    if op == "variance":
        bound = 4 * fact.bound**2
        return m.add(op, x, fact=m.rounded(x.dtype, bound, 8 * fact.bound * fact.error, count), **attributes)
    return m.add(op, x, fact=m.rounded(x.dtype, fact.bound + math.log(count), fact.error, count), **attributes)


@step("reduction")
def _position(m: GraphMaker) -> Node | None:
    x = m.pick(lambda n, f: f.exact and n.tensor.rank > 0, [d for d in m.dtypes if d is not boolean])
    if x is None or i64 not in m.dtypes:
        return None
    axis = m.random.randint(0, x.tensor.rank - 1)
    if x.shape[axis] == 0:
        return None
    op = m.random.choice(("argmax", "argmin"))
    return m.add(op, x, fact=Fact(m.number(x.shape[axis])), axes=(axis,), keepdims=m.random.random() < 0.5)


# -- views ---------------------------------------------------------------------------------------------------------------------


@step("view", 2)
def _reshape(m: GraphMaker) -> Node | None:
    x = m.any()
    if x is None:
        return None
    shape = list(x.shape)
    draw = m.random.random()
    if draw < 0.35 and len(shape) > 1:  # merge two neighbours
        k = m.random.randint(0, len(shape) - 2)
        shape[k : k + 2] = [shape[k] * shape[k + 1]]
    elif draw < 0.7 and shape:  # split one
        k = m.random.randint(0, len(shape) - 1)
        factors = [f for f in (2, 3, 4, 8) if isinstance(shape[k], int) and shape[k] and shape[k] % f == 0]
        if not factors:
            return None
        factor = m.random.choice(factors)
        shape[k : k + 1] = m.random.choice(([factor, shape[k] // factor], [shape[k] // factor, factor]))
    elif draw < 0.85:
        shape.insert(m.random.randint(0, len(shape)), 1)
    else:  # regroup everything
        total = x.tensor.numel
        shape = [total] if not isinstance(total, int) or total % 2 or not total else [total // 2, 2]
    return m.add("reshape", x, fact=m.facts[x], shape=tuple(shape)) if len(shape) < 6 else None


@step("view", 2)
def _permute(m: GraphMaker) -> Node | None:
    x = m.pick(lambda n, f: n.tensor.rank > 1, m.dtypes)
    if x is None:
        return None
    return m.add("permute", x, fact=m.facts[x], dims=tuple(m.random.sample(range(x.tensor.rank), x.tensor.rank)))


@step("view")
def _expand(m: GraphMaker) -> Node | None:
    x = m.any()
    if x is None or x.tensor.rank > 3:
        return None
    shape = tuple(m.size() if d == 1 and m.random.random() < 0.7 else d for d in x.shape)
    if m.random.random() < 0.4:
        shape = (m.size(), *shape)
    return m.add("expand", x, fact=m.facts[x], shape=shape) if m.count(shape) <= MAXIMUM_ELEMENTS else None


@step("view", 2)
def _slice(m: GraphMaker) -> Node | None:
    x = m.pick(lambda n, f: n.tensor.rank > 0, m.dtypes)
    if x is None:
        return None
    starts, limits, steps = [0] * x.tensor.rank, list(x.shape), [1] * x.tensor.rank
    for d, size in enumerate(x.shape):
        if isinstance(size, int) and m.random.random() < 0.6:
            starts[d] = m.random.randint(0, size)
            limits[d] = m.random.randint(starts[d], size)
            if limits[d] == starts[d] and not m.empty:
                starts[d], limits[d] = 0, size
            steps[d] = m.random.choice((1, 1, 2, 3))
    return m.add("slice", x, fact=m.facts[x], starts=tuple(starts), limits=tuple(limits), steps=tuple(steps))


@step("view")
def _flip(m: GraphMaker) -> Node | None:
    x = m.pick(lambda n, f: n.tensor.rank > 0, m.dtypes)
    return None if x is None else m.add("flip", x, fact=m.facts[x], axes=_axes(m, x.tensor.rank))


@step("view")
def _pad(m: GraphMaker) -> Node | None:
    x = m.pick(lambda n, f: n.tensor.rank > 0, m.dtypes)
    if x is None:
        return None
    low, high = (tuple(m.random.choice((0, 0, 1, 2)) for _ in x.shape) for _ in range(2))
    value = m.random.choice((0, 1)) if not x.dtype.is_float else m.random.choice((0.0, 1.5, -1.0))
    fact = m.facts[x]
    return m.add("pad", x, fact=Fact(max(fact.bound, 2), fact.error, fact.exact), low=low, high=high, value=value)


@step("view")
def _concat(m: GraphMaker) -> Node | None:
    x = m.pick(lambda n, f: n.tensor.rank > 0, m.dtypes)
    if x is None:
        return None
    axis = m.random.randint(0, x.tensor.rank - 1)

    def fits(node: Node) -> bool:
        shapes = zip(node.shape, x.shape)
        return node.tensor.rank == x.tensor.rank and all(d == axis or a == b for d, (a, b) in enumerate(shapes))

    fitting = [n for n in m.facts if n.dtype is x.dtype and fits(n)]
    parts = [x] + [m.random.choice(fitting) for _ in range(m.random.randint(1, 2))]
    if m.random.random() < 0.3 and len(m.arrays) < 8:
        parts[-1] = m.input(x.dtype, (*x.shape[:axis], m.size(), *x.shape[axis + 1 :]))
    facts = [m.facts[p] for p in parts]
    fact = Fact(max(f.bound for f in facts), max(f.error for f in facts), all(f.exact for f in facts))
    m.random.shuffle(parts)
    return m.add("concat", *parts, fact=fact, axis=axis)


@step("view")
def _slice_update(m: GraphMaker) -> Node | None:
    x = m.pick(lambda n, f: n.tensor.rank > 0 and 0 not in n.shape, m.dtypes)
    if x is None or len(m.arrays) >= 8:
        return None
    starts, steps, shape = [0] * x.tensor.rank, [1] * x.tensor.rank, list(x.shape)
    for d, size in enumerate(x.shape):
        if isinstance(size, int) and m.random.random() < 0.7:
            shape[d] = m.random.randint(1, size)
            steps[d] = m.random.choice((1, 1, 2)) if (shape[d] - 1) * 2 < size else 1
            starts[d] = m.random.randint(0, size - (shape[d] - 1) * steps[d] - 1)
    y = m.pick(lambda n, f: True, [x.dtype], tuple(shape))
    if y is None:
        return None
    a, b = m.facts[x], m.facts[y]
    fact = Fact(max(a.bound, b.bound), max(a.error, b.error), a.exact and b.exact)
    return m.add("slice_update", x, y, fact=fact, starts=tuple(starts), steps=tuple(steps))


@step("view")
def _window(m: GraphMaker) -> Node | None:
    x = m.pick(lambda n, f: 0 < n.tensor.rank < 4 and isinstance(n.shape[-1], int) and n.shape[-1] > 1, m.dtypes)
    if x is None:
        return None
    size = m.random.randint(1, min(x.shape[-1], 3))
    dilation = m.random.choice((1, 2)) if (size - 1) * 2 < x.shape[-1] else 1
    axis = x.tensor.rank - 1
    return m.add(
        "window", x, fact=m.facts[x], axes=(axis,), sizes=(size,), strides=(m.random.choice((1, 2)),), dilations=(dilation,)
    )


# -- indexing, casts -----------------------------------------------------------------------------------------------------------


@step("indexing", 2)
def _index(m: GraphMaker) -> Node | None:
    x = m.pick(lambda n, f: n.tensor.rank > 0, m.dtypes)
    dtypes = [d for d in (i64, i32) if d in m.dtypes]
    if x is None or not dtypes or len(m.arrays) >= 8:
        return None
    first = m.random.randint(0, x.tensor.rank - 1)
    axes = tuple(range(first, min(first + m.random.choice((1, 1, 2)), x.tensor.rank)))
    if any(m.number(x.shape[a]) == 0 for a in axes):
        return None
    shape = m.shape(m.random.randint(0, 2))
    indices = [m.input(m.random.choice(dtypes), shape, 0, m.number(x.shape[a]) - 1) for a in axes]
    return m.add("index", x, *indices, fact=m.facts[x], axes=axes)


@step("indexing")
def _gather(m: GraphMaker) -> Node | None:
    x = m.pick(lambda n, f: n.tensor.rank > 0 and all(m.number(d) > 0 for d in n.shape), m.dtypes)
    if x is None or i64 not in m.dtypes or len(m.arrays) >= 8:
        return None
    axis = m.random.randint(0, x.tensor.rank - 1)
    shape = tuple(m.random.randint(1, d) if isinstance(d, int) and m.random.random() < 0.5 else d for d in x.shape)
    indices = m.input(i64, (*shape[:axis], m.size(), *shape[axis + 1 :]), 0, m.number(x.shape[axis]) - 1)
    return m.add("gather", x, indices, fact=m.facts[x], axis=axis)


@step("indexing")
def _iota(m: GraphMaker) -> Node | None:
    if i64 not in m.dtypes:
        return None
    size = m.random.choice(m.sizes)
    node = m.builder.iota(size=size)
    m.facts[node] = Fact(m.number(size))
    return node


@step("cast", 2)
def _cast(m: GraphMaker) -> Node | None:
    x = m.any()
    if x is None:
        return None
    target = m.random.choice(m.dtypes)
    fact = m.facts[x]
    if target is x.dtype:
        return None
    if x.dtype.is_float and not target.is_float:
        if not fact.exact or fact.bound > 100 or (target is not boolean and (m.special or x.dtype is boolean)):
            return None
        if not target.is_signed and target is not boolean:  # a negative float has no unsigned value
            x = m.add("abs", x, fact=fact)
            if x is None:
                return None
        return m.add("cast", x, fact=Fact(fact.bound + 1), dtype=target.name)
    if target.is_float:
        bound = 1.0 if x.dtype is boolean else fact.bound
        if not bound <= 1000:
            return None
        return m.add("cast", x, fact=Fact(bound, fact.error + EPSILON[target] * bound, fact.exact), dtype=target.name)
    return m.add("cast", x, fact=Fact(math.inf), dtype=target.name)


# -- composites ----------------------------------------------------------------------------------------------------------------


@step("composite", 2)
def _activation(m: GraphMaker) -> Node | None:
    x = m.any(m.floats)
    if x is None:
        return None
    fact = m.facts[x]
    attributes = {
        "relu": {}, "clamp": {"low": -1.0, "high": 0.75}, "gelu": {"approximate": m.random.choice(("none", "tanh"))}, "silu": {},
        "hardsigmoid": {}, "hardswish": {}, "leaky_relu": {"slope": 0.1}, "elu": {"alpha": 1.5}, "softplus": {}, "mish": {},
    }  # fmt: skip
    name = m.random.choice(list(attributes))
    if name in ("relu", "clamp"):
        return m.add(name, x, fact=fact, **attributes[name])
    return m.add(name, x, fact=m.rounded(x.dtype, fact.bound + 2, fact.error * 2, 8), **attributes[name])


@step("composite", 2)
def _normalize(m: GraphMaker) -> Node | None:
    x = m.pick(lambda n, f: n.tensor.rank > 0 and f.bound < 50, m.floats)
    if x is None:
        return None
    fact, epsilon = m.facts[x], 0.01
    count = max(m.number(x.shape[-1]), 1)
    name = m.random.choice(("softmax", "log_softmax", "layer_norm", "rms_norm"))
    if name == "softmax":
        return m.add(
            name,
            x,
            fact=m.rounded(x.dtype, 1.0, 2 * fact.error + EPSILON[x.dtype] * fact.bound, 8),
            axis=_axes(m, x.tensor.rank)[0],
        )
    if name == "log_softmax":
        bound = 2 * fact.bound + math.log(m.count(x.shape) + 1)
        return m.add(name, x, fact=m.rounded(x.dtype, bound, 2 * fact.error, 8), axis=_axes(m, x.tensor.rank)[0])
    bound = math.sqrt(count) * 3
    error = (fact.error + EPSILON[x.dtype if x.dtype is f64 else f32] * count * fact.bound) * 2 / math.sqrt(epsilon) * (1 + bound)
    weights = [
        m.input(x.dtype, (x.shape[-1],))
        for _ in range(m.random.randint(0, 2 if name == "layer_norm" else 1))
        if len(m.arrays) < 8
    ]
    bound, error = bound * 3 + 3, error * 3
    return m.add(name, x, *weights, fact=m.rounded(x.dtype, bound, error, 8), rank=1, epsilon=epsilon)


@step("composite")
def _channels(m: GraphMaker) -> Node | None:
    x = m.pick(lambda n, f: n.tensor.rank in (3, 4) and f.bound < 20, m.floats)
    if x is None:
        return None
    fact, spatial = m.facts[x], x.tensor.rank - 2
    if m.random.random() < 0.4 and len(m.arrays) < 5:
        parameters = [m.input(x.dtype, (x.shape[1],), -2, 2) for _ in range(3)]
        spread = m.input(x.dtype, (x.shape[1],), 0.25, 2)
        if m.special:
            return None
        bound = (fact.bound + 2) * 2 * 2 + 2
        return m.add("batch_norm", x, *parameters, spread, fact=m.rounded(x.dtype, bound, fact.error * 4, 16), epsilon=1e-3)
    if any(not isinstance(d, int) or d < 2 for d in x.shape[2:]):
        return None
    pool = {"kernel": (2,) * spatial, "strides": (m.random.choice((1, 2)),) * spatial, "dilations": (1,) * spatial}
    pool["padding"] = (m.random.choice((0, 1)),) * spatial
    if m.random.random() < 0.5:
        return m.add("max_pool", x, fact=fact, **pool)
    counting = m.random.random() < 0.5
    return m.add(
        "average_pool", x, fact=m.rounded(x.dtype, fact.bound, fact.error, 8), count_padding=counting, divisor=None, **pool
    )


# -- contractions --------------------------------------------------------------------------------------------------------------


@step("contraction", 2)
def _matmul(m: GraphMaker) -> Node | None:
    x = m.pick(lambda n, f: n.tensor.rank > 1 and f.bound < 20, m.floats)
    if x is None or len(m.arrays) >= 8:
        return None
    inner = x.shape[-1]
    count = max(m.number(inner), 1)
    linear = m.random.random() < 0.5 and isinstance(inner, int)
    if linear:
        width = m.random.choice((1, 3, 4, 8))
        operands = [m.input(x.dtype, (width, inner))] + ([m.input(x.dtype, (width,))] if m.random.random() < 0.5 else [])
    else:
        y = m.pick(lambda n, f: f.bound < 20, [x.dtype], (inner, m.random.choice(m.sizes)))
        operands = [y if y is not None else m.input(x.dtype, (inner, 3))]
    a, b = m.facts[x], m.facts[operands[0]]
    if m.count(x.shape[:-1]) * count * m.number(operands[0].shape[0 if linear else 1]) > MAXIMUM_ELEMENTS * 10:
        return None
    bound = count * a.bound * b.bound + 3
    error = count * (a.error * b.bound + b.error * a.bound)
    return m.add("linear" if linear else "matmul", x, *operands, fact=m.rounded(x.dtype, bound, error, count))


def is_symbolic(graph: Graph) -> bool:
    """Whether some size is only known when called."""
    return any(isinstance(d, Expression) for n in graph.inputs for d in n.shape)
