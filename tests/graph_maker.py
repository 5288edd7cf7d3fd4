"""What makes random graphs: drawn shapes, inputs and operands, and for each value what is known of its elements."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np
from dlcompiler.ir.expression import Dim, evaluate, symbol
from dlcompiler.ir.graph import Builder, Graph, Node
from dlcompiler.ir.types import DType, TensorType, bf16, boolean, compute_dtype, f16, f32, f64, i8, i32, i64, u8

# half the distance from 1 to the next number
EPSILON = {f64: 1.2e-16, f32: 6e-8, f16: 4.9e-4, bf16: 4e-3}
LARGEST = {f64: 1e6, f32: 1e4, f16: 300.0, bf16: 1e3}
ALL_DTYPES = (f32, f64, f16, bf16, i64, i32, i8, u8, boolean)
SPECIAL_VALUES = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-30, -1.0)
SIZES = (1, 2, 3, 4, 5, 7, 8, 16, 17)
MAXIMUM_ELEMENTS = 3000
# how many error bounds a result may be off: both sides round
SAFETY = 2


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
        """The fact of a value computed with so many roundings in the compute dtype and, if it is narrow, one at the end."""
        if not dtype.is_float:
            return Fact(bound)
        each = EPSILON[compute_dtype(dtype)] * units + (EPSILON[dtype] if dtype in (f16, bf16) else 0)
        return Fact(bound, error + each * bound, False)

    def finish(self, writebacks: bool) -> tuple[Graph, list[np.ndarray | int], list[float]]:
        """The graph, inputs for it, and the tolerance of each result: values that nothing reads, now and then one more."""
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
                values = [n for n in graph_nodes if n.type == node.type and n in self.facts]
                if values and self.random.random() < 0.5:
                    written.append((self.random.choice(values), node))
        graph = self.builder.finish(outputs, writebacks=tuple(written))
        results = (*outputs, *(value for value, _ in written))
        return graph, [make() for make in self.arrays], [self.facts[n].error * SAFETY for n in results]
