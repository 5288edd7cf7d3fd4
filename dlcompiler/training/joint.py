"""A loss function and its gradients as one Graph, from what Dynamo captured of the loss function.

loss = f(parameters, buffers, batch)  -->  loss, gradient of every parameter, new values of the buffers
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._functorch._aot_autograd.descriptors import (
    GradAOTOutput,
    InputMutationAOTOutput,
    PlainAOTInput,
    PlainAOTOutput,
    TangentAOTInput,
)
from torch._functorch.aot_autograd import aot_export_joint_with_descriptors

from dlcompiler.frontends.fx import decompositions, import_fx, keep_recurrent_layers_whole, own_arguments
from dlcompiler.frontends.fx_location import input_names
from dlcompiler.ir.errors import InputError, UnsupportedError
from dlcompiler.ir.graph import Graph, Node


@dataclass(frozen=True)
class Joint:
    """The Graph's inputs are those of Dynamo's graph, in order; its one output is the loss, its writebacks are those of buffers.

    gradients   position of an input -> the node that is the loss's derivative with respect to it
    scaled      whether one more input of the loss's type says by what all gradients are multiplied
    """

    graph: Graph
    gradients: Mapping[int, Node]
    scaled: bool = False


def joint_graph(
    module: torch.fx.GraphModule,
    inputs: Sequence[Any],
    trained: Sequence[int],
    name: str,
    scaled: bool = False,
    numerics: str = "fast",
    scanned: Collection[str] = ("f32", "f64"),
) -> Joint:
    """Differentiate a captured loss function and import the result.

    trained    positions of the inputs whose gradients are wanted
    scaled     whether the derivative is that of the loss times a number that each call gives
    numerics   eager: random numbers are drawn by ATen
    scanned    names of the dtypes for which the target computes recurrent layers as scans
    Raises InputError if the function does not return one number that depends on such an input, UnsupportedError for what a Graph
    cannot hold.
    """
    keep_recurrent_layers_whole(module, scanned)
    with ExitStack() as stack, torch.enable_grad(), own_arguments():
        traced = aot_export_joint_with_descriptors(stack, module, tuple(inputs), decompositions=decompositions(numerics))
    found = _Results(traced.graph_module, set(trained), scaled)
    graph = import_fx(
        found.module,
        name=name,
        called=input_names(module),
        constants=found.constants,
        mutations=found.mutations,
        numerics=numerics,
    )
    loss, *gradients = (_without_copy(node) for node in graph.outputs)
    return Joint(graph.replace(outputs=(loss,), output_strides=()), dict(zip(found.gradients, gradients, strict=True)), scaled)


class _Results:
    """Reads the descriptors of a joint graph, and leaves of its results the loss, the gradients wanted, and mutations."""

    def __init__(self, module: torch.fx.GraphModule, trained: set[int], scaled: bool) -> None:
        self.module = module
        placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
        names = {n.meta["desc"].idx: str(n.target) for n in placeholders if isinstance(n.meta["desc"], PlainAOTInput)}
        strange = [n.meta["desc"] for n in placeholders if not isinstance(n.meta["desc"], PlainAOTInput | TangentAOTInput)]
        if strange:
            raise UnsupportedError(f"a training step that takes {strange[0]}", items=tuple(type(d).__name__ for d in strange))
        self.constants: dict[str, Any] = {}
        self.mutations: dict[int, str] = {}
        self.gradients: list[int] = []
        self._keep(trained, names)
        for node in placeholders:
            tangent = node.meta["desc"]
            if not isinstance(tangent, TangentAOTInput):
                continue
            # the loss is what is derived; what else the function changes, as a parameter in place, has no part in it
            is_loss = isinstance(tangent.output, PlainAOTOutput)
            if not (is_loss and scaled):
                example = node.meta["val"]
                self.constants[str(node.target)] = torch.full(tuple(example.shape), float(is_loss), dtype=example.dtype)

    def _keep(self, trained: set[int], names: Mapping[int, str]) -> None:
        (output,) = (n for n in self.module.graph.nodes if n.op == "output")
        losses, gradients, mutated = [], [], []
        for result, descriptor in zip(output.args[0], output.meta["desc"], strict=True):
            if isinstance(descriptor, GradAOTOutput):
                source = descriptor.grad_of
                if isinstance(source, PlainAOTInput) and source.idx in trained and result is not None:
                    _refuse_sparse(names[source.idx], result.meta["val"])
                    gradients.append((source.idx, result))
            elif isinstance(descriptor, PlainAOTOutput):
                losses.append(result)
            elif isinstance(descriptor, InputMutationAOTOutput) and isinstance(descriptor.mutated_input, PlainAOTInput):
                mutated.append((names[descriptor.mutated_input.idx], result))
            elif result is not None:
                raise UnsupportedError(f"a loss function that gives {descriptor}", items=(type(descriptor).__name__,))
        if len(losses) > 1:
            raise UnsupportedError(
                f"a loss function whose call leaves {len(losses)} tensors",
                items=("several results",),
                hint="return the loss alone; what a module keeps in forward (self.state = x) is a result too: such a model is "
                "for torch.compile",
            )
        if not losses or not isinstance(losses[0], torch.fx.Node) or losses[0].meta["val"].numel() != 1:
            raise InputError("the loss function must return one tensor of one element")
        if not gradients:
            raise InputError("the loss does not depend on any parameter of the optimizer")
        self.gradients = [position for position, _ in gradients]
        kept = [losses[0], *(g for _, g in gradients), *(value for _, value in mutated)]
        self.mutations = {len(kept) - len(mutated) + k: name for k, (name, _) in enumerate(mutated)}
        output.args = (tuple(kept),)


def _refuse_sparse(name: str, gradient: Tensor) -> None:
    if gradient.layout is not torch.strided:
        raise UnsupportedError(
            f"a training step in which the gradient of {name} is sparse",
            items=(str(gradient.layout),),
            hint='leave out sparse=True, or compile the loss function alone with torch.compile(..., backend="dlcompiler")',
        )


def _without_copy(node: Node) -> Node:
    """The value itself, of a result that was copied lest it share memory with another."""
    return node.inputs[0] if node.op.name == "copy" else node
