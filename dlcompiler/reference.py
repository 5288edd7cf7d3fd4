"""The reference: a graph run by the interpreter, with torch for the operators that only ATen knows, and the host for its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlcompiler.ir.graph import Graph
from dlcompiler.ir.interpret import RANDOM_SEED, interpret_graph


def run_reference(graph: Graph, inputs: Sequence[Any]) -> list[np.ndarray]:
    """The outputs of `graph`, then the values of its writebacks. `inputs`: arrays, and ints for sizes; they are not changed.

    torch's generator is left as it was, so that what is compiled, run next, draws the same numbers.
    """
    import torch

    with torch.random.fork_rng(devices=()):
        return interpret_graph(graph, inputs, call=_call)


def draw() -> np.ndarray:
    """The seed of a call, from torch's generator."""
    from dlcompiler.runtime.library import draw_seed

    return np.asarray(draw_seed().item(), dtype=np.int64)


def _call(target: str, arguments: Mapping[str, Any], operands: list[np.ndarray]) -> Any:
    if target == RANDOM_SEED:
        return draw()
    if "operator" in arguments:  # a host.call: its attributes name the operator
        from dlcompiler.staged import call_host

        return call_host(target, arguments, operands)
    return _call_aten(target, arguments, operands)


def _call_aten(target: str, arguments: Mapping[str, Any], operands: list[np.ndarray]) -> Any:
    import torch

    from dlcompiler.arrays import array_from_tensor, tensor_from_array
    from dlcompiler.runtime.aten import prepare_aten

    tensors = [tensor_from_array(np.ascontiguousarray(array).reshape(array.shape)) for array in operands]
    result = prepare_aten(target, arguments, range(len(tensors)), {})(tensors)
    if isinstance(result, torch.Tensor):
        return array_from_tensor(result.contiguous())
    return tuple(array_from_tensor(r.contiguous()) if isinstance(r, torch.Tensor) else None for r in result)
