"""What a model calls its inputs and outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dlcompiler.ir.graph import Graph


def names_of_inputs(graph: Graph) -> tuple[str, ...]:
    """What the model calls its inputs: an ONNX file's own names stand as the inputs' locations, else the nodes' names."""
    if graph.output_names:
        return tuple(node.location or node.name for node in graph.inputs)
    return tuple(node.name for node in graph.inputs)


def names_of_outputs(graph: Graph) -> tuple[str, ...]:
    """What the model calls its outputs, else `output_0` and so on."""
    return tuple(graph.output_names) or tuple(f"output_{k}" for k in range(len(graph.outputs)))
