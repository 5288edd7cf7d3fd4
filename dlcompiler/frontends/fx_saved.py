"""What a forward graph keeps for its backward graph: in memory as the forward program leaves it, which the backward one is told.

    output %relu  (saved, channels innermost, stored again row major)  -->  output %relu strides any

Only AOTAutograd holds these results, and hands them to the backward graph that it compiles next. It gives that graph's
placeholders the strides that a backend reports, so a network of images keeps its channels innermost through both passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from dlcompiler.ir.control import is_staged
from dlcompiler.ir.expression import known
from dlcompiler.ir.graph import Graph, OutputStrides
from dlcompiler.ir.program import Program


def leave_saved_results_open(graph: Graph, kinds: Sequence[str]) -> Graph:
    """The graph of a forward part, with any strides allowed where sizes are known and only the backward part reads.

    kinds   of AOTAutograd's results: see `result_kinds`
    """
    saved = saved_positions(kinds)
    if not saved or is_staged(graph) or graph.symbols:
        return graph
    positions = [k for k, kind in enumerate(kinds) if kind != "none"]
    strides: tuple[OutputStrides, ...] = graph.output_strides or (None,) * len(graph.outputs)
    if len(positions) != len(strides):  # some are written into inputs
        return graph
    return graph.replace(output_strides=tuple("any" if k in saved else s for k, s in zip(positions, strides)))


def report_strides(graph: Graph, program: Program | None, kinds: Sequence[str]) -> None:
    """Tell AOTAutograd how those results lie in memory, for which the program could choose."""
    context = torch._guards.TracingContext.try_get()
    if program is None or context is None or context.output_strides is None or "any" not in graph.output_strides:
        return
    views = iter(zip(graph.output_strides, program.outputs))
    for kind in kinds:
        wanted, view = (None, None) if kind == "none" else next(views)
        context.output_strides.append(tuple(map(known, view.strides)) if view is not None and wanted == "any" else None)


def restrided(run: Callable[[list[Any]], Any], module: torch.fx.GraphModule, given: Sequence[Any]) -> Callable[[list[Any]], Any]:
    """A boxed function of a backward graph that torch runs: results saved in another order are put into eager's first."""
    examples = [n.meta.get("val") for n in module.graph.nodes if n.op == "placeholder"]
    wanted = {
        k: example.stride()
        for k, (example, other) in enumerate(zip(examples, given))
        if isinstance(example, torch.Tensor) and isinstance(other, torch.Tensor) and example.stride() != other.stride()
    }
    if not wanted:
        return run

    def call(arguments: list[Any]) -> Any:
        for k, strides in wanted.items():
            tensor = arguments[k]
            arguments[k] = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
        return run(arguments)

    call._boxed_call = True  # type: ignore[attr-defined]
    return call


def saved_positions(kinds: Sequence[str]) -> frozenset[int]:
    """Positions of the tensors, among the results of the forward graph being compiled, that only its backward graph reads."""
    context = torch._guards.TracingContext.try_get()
    metadata = None if context is None or context.output_strides is None else context.fw_metadata
    if metadata is None:
        return frozenset()
    every = range(len(kinds))[metadata.tensors_saved_for_backwards_slice]
    return frozenset(k for k in every if kinds[k] == "tensor")
