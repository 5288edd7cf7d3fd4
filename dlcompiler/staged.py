"""Compiling a graph that has barriers: each piece and each region by the straight line, and one report of them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dlcompiler.arrays import array_from_tensor, tensor_from_array
from dlcompiler.ir.control import regions
from dlcompiler.ir.errors import UnsupportedError
from dlcompiler.ir.expression import evaluate
from dlcompiler.ir.graph import Graph, Node
from dlcompiler.ir.ops import Trait
from dlcompiler.ir.types import DType, TensorType, TupleType
from dlcompiler.passes.stages import Barrier, Piece, split_stages
from dlcompiler.report import Report
from dlcompiler.runtime.aten import CPU, prepare_aten
from dlcompiler.runtime.staged import StagedExecutable
from dlcompiler.runtime.tensors import copy_strided

if TYPE_CHECKING:
    from dlcompiler.recorded import AnyExecutable

Compile = Callable[[Graph], "tuple[AnyExecutable, Report]"]


def compile_stages(graph: Graph, compile: Compile) -> tuple[StagedExecutable, list[Report]]:
    """The executable of a graph with barriers, and the reports of its parts. `compile` compiles a piece or a region.

    On a GPU pieces and regions are programs for it; conditions, numbers of rounds, sizes and what the host computes are read back
    where they are asked for.
    """
    reports: list[Report] = []
    compiled: dict[Graph, AnyExecutable] = {}

    def part(of: Graph) -> AnyExecutable:
        if of not in compiled:
            compiled[of], report = compile(of)
            reports.append(report)
        return compiled[of]

    steps: list[tuple[Any, Any]] = []  # a piece and its executable, or the node of a barrier and None
    of_regions: dict[Graph, Any] = {}
    for stage in split_stages(graph):
        if isinstance(stage, Piece):
            steps.append((stage, part(stage.graph)))
            continue
        assert isinstance(stage, Barrier)
        steps.append((stage.node, None))
        of_regions.update((region, part(region)) for _, region in regions(stage.node))
    return StagedExecutable(graph, steps, of_regions, _constants(graph), run_on_host), reports


def _constants(graph: Graph) -> dict[Node, Any]:
    """Tensors of the constants that barriers or the caller read."""
    read = {i for n in graph.nodes if n.has(Trait.BARRIER) for i in n.inputs} | set(graph.outputs)
    return {n: tensor_from_array(np.asarray(n.attributes["value"])) for n in read if n.op.name == "constant"}


def run_on_host(node: Node, operands: Sequence[Any], bindings: Mapping[str, int]) -> list[Any]:
    """The results of a `host.call` on tensors and host values."""
    if "arguments" in node.attributes:
        return _run_by_torch(node, operands, bindings)
    given = [
        array_from_tensor(x, i.dtype) if isinstance(i.type, TensorType) and not isinstance(x, np.ndarray) else x
        for i, x in zip(node.inputs, operands)
    ]
    results = call_host(node.attributes["target"], node.attributes, given)
    assert isinstance(node.type, TupleType)
    return [
        _tensor(result, type.dtype, node) if isinstance(type, TensorType) else result
        for type, result in zip(node.type.elements, results)
    ]


def _run_by_torch(node: Node, operands: Sequence[Any], bindings: Mapping[str, int]) -> list[Any]:
    """An operator of torch on tensors where they are: results whose sizes only they tell."""
    attributes = node.attributes
    given = list(operands)
    for k, strides in enumerate(attributes.get("operand_strides", ())):
        wanted = None if strides is None else tuple(evaluate(s, bindings) for s in strides)
        if wanted is not None and given[k].stride() != wanted and 0 not in wanted:
            given[k] = copy_strided(given[k], wanted)
    device = next((x.device for x in given), CPU)
    results = prepare_aten(attributes["target"], attributes["arguments"], range(len(given)), bindings, device)(given)
    return results if isinstance(results, list) else [results]


def _tensor(result: Any, dtype: DType, node: Node) -> Any:
    array = np.asarray(result)
    if array.dtype != dtype.numpy:
        raise UnsupportedError(
            f"{node.attributes['target']} gave {array.dtype}, not {dtype}",
            items=(node.attributes["target"],),
            location=node.location,
        )
    return tensor_from_array(np.ascontiguousarray(array).reshape(array.shape))


def call_host(target: str, attributes: Any, operands: Sequence[Any]) -> Sequence[Any]:
    """Run an operator on the host, on arrays and host values: by the package that knows its kind."""
    from dlcompiler.frontends.onnx_host import run_operator

    return run_operator(target, attributes, operands)


def host_calls(graph: Graph) -> list[Node]:
    """Every host call of a graph and of the regions in it."""
    found = []
    for node in graph.nodes:
        if node.op.name == "host.call":
            found.append(node)
        for _, region in regions(node):
            found += host_calls(region)
    return found
