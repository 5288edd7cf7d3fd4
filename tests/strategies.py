"""Random graphs with inputs to match, for the property that everything agrees: interpreters, passes, kernels, compiled code.

    @given(case=graphs(max_nodes=8))
    def test(case): case.check(run(case.graph, case.inputs))

Each value carries a bound on its elements and on the error that rounding and reordering may leave in it, so graphs stay in safe
ranges and an output's tolerance follows from how it was computed. Ops that jump (floor, comparisons, argmax, casts to integers)
are applied to floats only where every way to compute their operand gives the same bits.
"""

from __future__ import annotations

import random as standard_random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from dlcompiler.ir.graph import Graph
from dlcompiler.ir.interpret import interpret_graph
from dlcompiler.ir.text import print_graph
from dlcompiler.ir.types import DType, dtype_of
from hypothesis import strategies as st

from tests.graph_maker import ALL_DTYPES, EPSILON, SAFETY, GraphMaker
from tests.graph_steps import STEPS


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
                np.testing.assert_allclose(*wide, rtol=EPSILON[dtype_of(e)] * SAFETY, atol=tolerance, err_msg=f"result {number}")

    def __repr__(self) -> str:
        shown = "\n".join(f"# input {k}: {np.asarray(x).tolist()}" for k, x in enumerate(self.inputs) if np.size(x) <= 40)
        return f"Case(\n{print_graph(self.graph)}{shown})"


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
    return Case(*maker.finish(writebacks))
