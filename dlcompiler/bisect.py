"""Which rewrite, or which node, makes compiled results wrong: found by binary search against the reference.

Every rewrite is paid from a purse of fuel, so "with the first n rewrites the result is right, with n+1 it is wrong" names one
rewrite. If results are wrong without any rewrite, the graph itself is cut: the first node whose value is wrong is named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dlcompiler.codegen.target import Target
from dlcompiler.ir.graph import Graph, reachable
from dlcompiler.ir.ops import Trait
from dlcompiler.ir.types import TensorType
from dlcompiler.options import Options
from dlcompiler.passes.context import Context, Fuel
from dlcompiler.passes.pipeline import PASSES, PIPELINE, run_pass

MOST_REWRITES = 1 << 24

# (graph, options) -> whether compiled results agree with the reference's
IsRight = Callable[[Graph, Options], bool]


@dataclass(frozen=True)
class Culprit:
    """What was found. `kind`: rewrite, node or none; `fuel` reproduces a rewrite, `without_pass`: is disabling it a help."""

    kind: str
    text: str
    pass_name: str | None = None
    rule: str | None = None
    fuel: int | None = None
    node: str | None = None
    location: str | None = None
    without_pass: str | None = None
    compilations: int = 0

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def find_culprit(graph: Graph, target: Target, options: Options, is_right: IsRight) -> Culprit:
    """Compile and compare with less and less fuel, then with less and less of the graph.

    `is_right` compiles a graph with options and compares; it is asked about 2 log2(rewrites or nodes) times.
    """
    count = 0

    def right(candidate: Graph, chosen: Options) -> bool:
        nonlocal count
        count += 1
        return is_right(candidate, chosen)

    if right(graph, options):
        return Culprit("none", "compiled results agree with the reference", compilations=count)
    if right(graph, _with(options, fuel=0)):
        good, bad = 0, 1
        while bad < MOST_REWRITES and right(graph, _with(options, fuel=bad)):
            good, bad = bad, 2 * bad
        good, bad = _narrow(good, bad, lambda fuel: right(graph, _with(options, fuel=fuel)))
        pass_name, rule, node = rewrite_number(graph, target, options, bad)
        helps = "cannot be disabled"
        if PASSES[pass_name].level > 0:
            without = _with(options, disabled_passes=options.disabled_passes | {pass_name})
            helps = "right without it" if right(graph, without) else "still wrong without it"
        located = {n.name: n.location for n in graph.nodes}.get(node)
        text = f"rewrite {bad} is wrong: {rule} of pass {pass_name} at %{node} (--fuel {good} is right, --fuel {bad} is not)"
        return Culprit("rewrite", text, pass_name, rule, bad, node, located, helps, count)
    return _first_wrong_node(graph, _with(options, fuel=0), right, lambda: count)


def _with(options: Options, **changes: Any) -> Options:
    from dataclasses import replace

    return replace(options, dump_dir=None, verify=False, **changes)


def _narrow(good: int, bad: int, is_good: Callable[[int], bool]) -> tuple[int, int]:
    """Neighbours: the last good number before the first bad one."""
    while bad - good > 1:
        middle = (good + bad) // 2
        if is_good(middle):
            good = middle
        else:
            bad = middle
    return good, bad


def rewrite_number(graph: Graph, target: Target, options: Options, number: int) -> tuple[str, str, str]:
    """Pass, rule and node of the rewrite that the last of `number` units of fuel pays for."""
    fuel = Fuel(number)
    context = Context(target, options, fuel)
    for each in PIPELINE:
        if each.name not in options.disabled_passes and each.level <= options.optimization_level and not fuel.empty:
            graph = run_pass(each, graph, context)
    pass_name, _, rest = fuel.last.partition(": ")
    rule, _, node = rest.partition(" at %")
    return pass_name, rule, node


def _first_wrong_node(graph: Graph, options: Options, right: IsRight, count: Callable[[], int]) -> Culprit:
    """Cut the graph after node k, with that node as its only output."""
    nodes = [n for n in graph.nodes if isinstance(n.type, TensorType) and not n.has(Trait.SOURCE)]

    def prefix_is_right(length: int) -> bool:
        return length == 0 or right(cut(graph, nodes[:length]), options)

    good, bad = _narrow(0, len(nodes), prefix_is_right)
    node = nodes[bad - 1]
    operands = ", ".join(f"{i.type}" for i in node.inputs)
    text = f"no rewrite is to blame: %{node.name} = {node.op.name}({operands}) : {node.type} is computed wrongly"
    return Culprit("node", text, node=node.name, location=node.location, compilations=count())


def cut(graph: Graph, nodes: Sequence[Any]) -> Graph:
    """The graph that computes the last of `nodes` and nothing else."""
    (last,) = nodes[-1:]
    needed = reachable([last])
    kept = tuple(n for n in graph.nodes if n in needed)
    return graph.replace(nodes=kept, outputs=(last,), writebacks=(), output_strides=(), output_names=(), history=())
