"""What the results of an FX graph are."""

from __future__ import annotations

from typing import Any

import torch

from dlcompiler.ir.errors import UnsupportedError


def result_kinds(graph_module: torch.fx.GraphModule) -> list[str]:
    """What each result of an FX graph is: "tensor", "int", "float" or "bool" (a 0-d tensor in the Graph), "none"
    (left out there)."""
    kinds = []
    for value in flat_results(graph_module):
        example = value.meta.get("val") if isinstance(value, torch.fx.Node) else value
        if value is None or (isinstance(value, torch.fx.Node) and example is None):
            kinds.append("none")
        elif isinstance(example, torch.Tensor):
            kinds.append("tensor")
        elif isinstance(example, bool | torch.SymBool):
            kinds.append("bool")
        elif isinstance(example, int | torch.SymInt):
            kinds.append("int")
        elif isinstance(example, float | torch.SymFloat):
            kinds.append("float")
        else:
            raise UnsupportedError(f"a result of type {type(example).__name__}", items=(type(example).__name__,))
    return kinds


def flat_results(graph_module: torch.fx.GraphModule) -> list[Any]:
    """The arguments of the output node, in order."""
    (output,) = (n for n in reversed(graph_module.graph.nodes) if n.op == "output")
    results = output.args[0]
    return list(results) if isinstance(results, tuple | list) else [results]
