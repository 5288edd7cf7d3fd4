"""The FX frontend without the rest of the compiler: graphs are imported, verified and run by the graph interpreter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from dlcompiler.ir.expression import evaluate
from dlcompiler.ir.graph import Graph
from dlcompiler.ir.interpret import bind_inputs, interpret_graph
from dlcompiler.ir.types import contiguous_strides
from dlcompiler.ir.verify import verify_graph
from dlcompiler.runtime.aten import prepare_aten
from torch import Tensor

from dlcompiler.arrays import array_from_tensor, tensor_from_array
from dlcompiler.frontends.fx import decompositions, import_fx, result_kinds
from dlcompiler.torch_backend import Backend, _boxed


def call_aten(target: str, template: Any, arrays: list[np.ndarray]) -> Any:
    """Runs an `aten.call` for the interpreter, whose sizes are numbers by now."""
    tensors = [tensor_from_array(np.array(a)) for a in arrays]
    result = prepare_aten(target, template, range(len(tensors)), {})(tensors)
    if isinstance(result, Tensor):
        return array_from_tensor(result)
    return tuple(None if r is None else array_from_tensor(r) for r in result or ())


def run_graph(graph: Graph, inputs: Sequence[Any]) -> list[Tensor]:
    """The graph's outputs with eager's strides; inputs that it writes back are written."""
    arrays = [x if isinstance(x, int) else array_from_tensor(x) for x in inputs]
    values = [np.array(v, order="C") for v in interpret_graph(graph, arrays, call=call_aten)]
    bindings = bind_inputs(graph, arrays)
    positions = {node: position for position, node in enumerate(graph.inputs)}
    with torch.no_grad():
        outputs = []
        for node, value, strides in zip(graph.outputs, values, graph.output_strides):
            if node in positions and isinstance(inputs[positions[node]], Tensor):
                outputs.append(inputs[positions[node]])
                continue
            tensor = tensor_from_array(value)
            wanted = [evaluate(s, bindings) for s in strides] if isinstance(strides, tuple) else contiguous_strides(value.shape)
            outputs.append(with_strides(tensor, wanted).expand(value.shape))
        for (_, target), value in zip(graph.writebacks, values[len(graph.outputs) :]):
            inputs[positions[target]].copy_(tensor_from_array(value))
    return outputs


def with_strides(tensor: Tensor, strides: Sequence[int]) -> Tensor:
    """A copy laid out like that; a stride of 0 repeats the first element."""
    for axis, stride in enumerate(strides):
        if stride == 0 and tensor.shape[axis] > 1:
            tensor = tensor.narrow(axis, 0, 1)
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)


class Interpreting:
    """A backend for torch.compile, and for functions without Dynamo; keeps the graphs that it was given, newest last."""

    def __init__(self) -> None:
        self.graphs: list[Graph] = []
        self.backend = Backend(lambda graph, target, options, timings, key: self.compile(graph))

    def compile(self, graph: Graph) -> Callable[[Sequence[Any]], list[Tensor]]:
        verify_graph(graph)
        self.graphs.append(graph)
        return lambda inputs: run_graph(graph, list(inputs))

    def function(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function through AOTAutograd only, which is much quicker than torch.compile."""
        from functorch.compile import aot_function

        def compile_part(module: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
            return _boxed(self.compile(import_fx(module)), result_kinds(module))

        compiled = aot_function(
            function, compile_part, compile_part, decompositions=decompositions(), keep_inference_input_mutations=True
        )
        return torch._functorch.config.patch(unlift_effect_tokens=True)(compiled)

    @property
    def graph(self) -> Graph:
        return self.graphs[-1]

    def ops(self) -> list[str]:
        """Names of the ops of the newest graph, a call of ATen by its operator's name."""
        return [n.attributes["target"] if n.op.name == "aten.call" else n.op.name for n in self.graph.nodes]
