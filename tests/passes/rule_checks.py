"""What every rule is held to: the same answer as before, bit for bit if it says so."""

from __future__ import annotations

import numpy as np
from dlcompiler.codegen.target import Target
from dlcompiler.ir.expression import evaluate
from dlcompiler.ir.graph import Builder, Graph, Node
from dlcompiler.ir.interpret import interpret_graph
from dlcompiler.ir.types import TensorType, f64
from dlcompiler.ir.verify import verify_graph
from dlcompiler.passes.context import Context
from dlcompiler.passes.rewrite import Rule, RuleTable, apply_rules

from tests.passes.algebra_samples import values

TARGET = Target("cpu", "x86-64-v3")
# units in the last place that an approximate rule may be off, beyond what was off before
ULPS = 4


def apply_rule(rule: Rule, graph: Graph) -> tuple[Graph, int]:
    """The graph after this rule alone, and how often it fired."""
    context = Context(TARGET)
    result = apply_rules(graph, RuleTable([rule]), context)
    verify_graph(result)
    assert [o.type for o in result.outputs] == [o.type for o in graph.outputs]
    return result, context.counts[rule.name]


def inputs_of(graph: Graph, seed: int, bindings: dict[str, int] | None = None, calm: bool = False) -> list[np.ndarray | int]:
    """Difficult inputs, or calm ones: normally distributed, as activations are."""
    given: list[np.ndarray | int] = []
    for k, node in enumerate(graph.inputs):
        if node.op.name == "size":
            given.append((bindings or {})[node.attributes["symbol"]])
            continue
        type = TensorType(node.dtype, tuple(evaluate(d, bindings or {}) for d in node.shape))
        if calm and type.dtype.is_float:
            given.append(np.random.default_rng(seed + k).standard_normal(type.shape).astype(type.dtype.numpy))
        else:
            given.append(values(type, seed + k))
    return given


def assert_same_bits(before: np.ndarray, after: np.ndarray) -> None:
    """Equal, NaN for NaN, -0.0 only for -0.0."""
    assert before.dtype == after.dtype and before.shape == after.shape
    if before.dtype.kind in "iub":
        np.testing.assert_array_equal(before, after)
        return
    left, right = before.astype(np.float64), after.astype(np.float64)
    np.testing.assert_array_equal(left, right)
    np.testing.assert_array_equal(np.signbit(left) & ~np.isnan(left), np.signbit(right) & ~np.isnan(right))


def assert_close(before: np.ndarray, after: np.ndarray, truth: np.ndarray) -> None:
    """Within `ULPS` of the answer computed in wider numbers, or no further from it than before; zeros of either sign."""
    assert before.dtype == after.dtype and before.shape == after.shape
    if before.dtype.kind in "iub":
        np.testing.assert_array_equal(before, after)
        return
    with np.errstate(all="ignore"):
        narrowed = truth.astype(before.dtype).astype(np.float64)
        old, new = before.astype(np.float64), after.astype(np.float64)
        same = (new == narrowed) | (np.isnan(new) & np.isnan(narrowed)) | (new == old) | (np.isnan(new) & np.isnan(old))
        allowed = ULPS * _spacing(before.dtype, narrowed)
        near = (np.abs(new - narrowed) <= allowed) | (np.abs(new - narrowed) <= np.abs(old - narrowed))
    wrong = ~(same | near)
    assert not wrong.any(), f"{after[wrong][:3]} instead of {truth[wrong][:3]}, before {before[wrong][:3]}"


def _spacing(dtype: np.dtype, x: np.ndarray) -> np.ndarray:
    """The distance to the next number of a dtype."""
    bits = {"float64": (52, -1074), "float32": (23, -149), "float16": (10, -24), "bfloat16": (7, -133)}[dtype.name]
    exponent = np.frexp(np.where(np.isfinite(x), x, 1.0))[1] - 1
    return np.ldexp(1.0, np.maximum(exponent - bits[0], bits[1]))


def assert_as_accurate(before: np.ndarray, after: np.ndarray, truth: np.ndarray, summed: int) -> None:
    """As near the truth as before, within a few units in the last place of what `summed` normal numbers add up to."""
    assert before.dtype == after.dtype and before.shape == after.shape
    unit = _spacing(before.dtype, np.max(np.abs(truth), initial=np.sqrt(summed)))
    assert np.max(np.abs(after - truth), initial=0.0) <= np.max(np.abs(before - truth), initial=0.0) + ULPS * unit


def check_rule(rule: Rule, graph: Graph, seed: int, bindings: dict[str, int] | None = None, calm: bool = False) -> None:
    """The rule fires, and both graphs agree on difficult inputs; on calm ones where it speaks of finite numbers only."""
    result, fired = apply_rule(rule, graph)
    assert fired, f"{rule} does not fire on\n{graph}"
    inputs = inputs_of(graph, seed, bindings, calm)
    with np.errstate(all="ignore"):
        before, after = interpret_graph(graph, inputs), interpret_graph(result, inputs)
        truth = before if rule.exact else interpret_graph(_widened(graph), [_wide(x) for x in inputs])
    for old, new, true in zip(before, after, truth):
        if rule.exact:
            assert_same_bits(old, new)
        elif calm and old.dtype.kind not in "iub":
            assert_as_accurate(old, new, true, max(np.size(x) for x in inputs))
        else:
            assert_close(old, new, true)


def _wide(x: np.ndarray | int) -> np.ndarray | int:
    return x if isinstance(x, int) or x.dtype.kind in "iub" else x.astype(np.float64)


def _widened(graph: Graph) -> Graph:
    """The graph with every float as float64."""
    b = Builder()
    new: dict[Node, Node] = {}
    for node in graph.inputs:
        if node.op.name == "size":
            new[node] = b.size_input(node.name, node.attributes["symbol"])
            continue
        new[node] = b.input(node.name, node.tensor.with_dtype(f64) if node.dtype.is_float else node.tensor)
    for node in graph.nodes:
        attributes = dict(node.attributes)
        if node.op.name == "constant":
            new[node] = b.constant(_wide(attributes["value"]))
            continue
        if node.op.name == "cast" and node.dtype.is_float:
            attributes["dtype"] = "f64"
        new[node] = b(node.op.name, *(new[i] for i in node.inputs), **attributes)
    return b.finish([new[o] for o in graph.outputs])
