"""A joint graph and an optimizer's updates as one Graph, whose writebacks are the step.

loss, gradients  -->  loss; parameter <- update(parameter, gradient, state, numbers), state <- ...
loss, gradients  -->  loss; sum of gradients <- sum + gradient / n          (while gradients are accumulated)

Scaled gradients are divided by their scale first, and if one of them is not finite, everything keeps its value:

parameter <- update(parameter, ...)  -->  parameter <- where(finite, update(parameter, ...), parameter)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from dlcompiler.frontends.fx_types import strides_of_fake, type_of_fake
from dlcompiler.ir.graph import Builder, Graph, Node
from dlcompiler.ir.types import DType, TensorType, compute_dtype, f32, f64
from dlcompiler.training.hyperparameters import Class, Division
from dlcompiler.training.joint import Joint
from dlcompiler.training.optimizers import Rule

# what clip_grad_norm_ adds to the norm that it divides by
CLIP_EPSILON = 1e-6


@dataclass(frozen=True)
class Clipping:
    """What is done to gradients before the update: their joint 2-norm, or each number, is limited. None: it is not."""

    norm: float | None = None
    value: float | None = None


class Assembler:
    """Appends to a joint graph. `trained`: positions of the parameters among its inputs, in the order of everything here."""

    def __init__(self, joint: Joint, trained: Sequence[int], accumulate: int) -> None:
        graph = joint.graph
        self.graph = graph
        self.b = Builder(graph.name, list(graph.inputs), list(graph.nodes))
        for node in (*graph.inputs, *graph.nodes):
            self.b._names[node.name] = 1
        self.parameters = [graph.inputs[k] for k in trained]
        changed = {target: value for value, target in graph.writebacks}
        # what the loss function itself makes of parameters, as by clamp_: it is this that the update starts from
        self.values = [changed.get(parameter, parameter) for parameter in self.parameters]
        self.gradients = [joint.gradients[k] for k in trained]
        self.accumulate = accumulate
        self.scaled = joint.scaled
        self.writebacks = list(graph.writebacks)
        self.outputs: list[Node] = list(graph.outputs)

    def accumulating(self, sums: Sequence[Tensor]) -> Graph:
        """The graph that only adds the gradients, divided by `accumulate`, to `sums`: its inputs after those of the loss."""
        inputs = self._inputs("sum", sums)
        for gradient, total in zip(self._with_sums(inputs), inputs):
            self.writebacks.append((gradient, total))
        return self._finish()

    def updating(
        self, rule: Rule, division: Division, states: Sequence[dict[str, Tensor]], sums: Sequence[Tensor], clipping: Clipping
    ) -> Graph:
        """The graph that updates parameters.

        Inputs after those of the loss: `sums` (empty unless gradients were accumulated), the tensors of `states` in order, and a
        vector for each class of the division; and, of a scaled loss, the inverse of the scale. Outputs: the loss, of a scaled
        loss whether all gradients were finite, and the gradients' norm if it is limited.
        """
        own = set(self.parameters)
        self.writebacks = [(value, target) for value, target in self.writebacks if target not in own]
        gradients = self._with_sums(self._inputs("sum", sums)) if sums else self.gradients
        state_nodes = [dict(zip(state, self._inputs("state", list(state.values())))) for state in states]
        numbers = [self._numbers(k, each) for k, each in enumerate(division.classes)]
        gradients = [self._wide(g) for g in gradients]
        finite = None
        if self.scaled:
            gradients, finite = self._unscaled(gradients)
        gradients = self._clipped(gradients, clipping)
        for parameter, value, gradient, state, k in zip(self.parameters, self.values, gradients, state_nodes, division.of):
            dtype = gradient.dtype
            old = {name: self._cast(node, dtype) for name, node in state.items()}
            switches = division.classes[k].switches
            new, new_state = rule.update(self.b, self._cast(value, dtype), gradient, old, numbers[k], switches)
            self._write(new, parameter, finite, value)
            for name, number in new_state.items():
                self._write(number, state[name], finite, state[name])
        return self._finish()

    def _write(self, value: Node, target: Node, finite: Node | None, before: Node) -> None:
        """The target becomes the value, or what was before where gradients are not finite."""
        value = self._cast(value, target.dtype)
        self.writebacks.append((value if finite is None else self.b.where(finite, value, before), target))

    def _unscaled(self, gradients: Sequence[Node]) -> tuple[list[Node], Node]:
        """The gradients of the loss itself, and whether every number in them is finite."""
        b = self.b
        inverse = b.input("inverse_scale", TensorType(f32, ()))
        gradients = [b.mul(g, self._cast(inverse, g.dtype)) for g in gradients]
        finite = [b.reduce_all(b.isfinite(g), axes=tuple(range(g.tensor.rank))) for g in gradients]
        whole = finite[0]
        for each in finite[1:]:
            whole = b.bitwise_and(whole, each)
        self.outputs.append(whole)
        return gradients, whole

    def _inputs(self, name: str, tensors: Sequence[Tensor]) -> list[Node]:
        return [self.b.input(name, type_of_fake(t), strides_of_fake(t)) for t in tensors]

    def _numbers(self, position: int, each: Class) -> dict[str, Node]:
        """The numbers of a class as 0-d nodes."""
        vector = self.b.input(f"numbers{position}", TensorType(f64 if each.wide else f32, (len(each.names),)))
        found = {}
        for k, name in enumerate(each.names):
            one = self.b.slice(vector, starts=(k,), limits=(k + 1,), steps=(1,))
            found[name] = self.b.reshape(one, shape=())
        return found

    def _with_sums(self, sums: Sequence[Node]) -> list[Node]:
        return [self.b.add(total, self.b.mul(gradient, 1 / self.accumulate)) for gradient, total in zip(self.gradients, sums)]

    def _clipped(self, gradients: list[Node], clipping: Clipping) -> list[Node]:
        b = self.b
        if clipping.norm is not None:
            squares = [b.reduce_sum(b.mul(g, g), axes=tuple(range(g.tensor.rank))) for g in gradients]
            total = squares[0]
            for square in squares[1:]:
                total = b.add(total, self._cast(square, total.dtype))
            norm = b.sqrt(total)
            self.outputs.append(norm)
            factor = b.minimum(b.div(b.constant(clipping.norm, norm.dtype), b.add(norm, CLIP_EPSILON)), 1.0)
            gradients = [b.mul(g, self._cast(factor, g.dtype)) for g in gradients]
        if clipping.value is not None:
            limit = clipping.value
            gradients = [b.minimum(b.maximum(g, -limit), limit) for g in gradients]
        return gradients

    def _wide(self, node: Node) -> Node:
        return self._cast(node, compute_dtype(node.dtype))

    def _cast(self, node: Node, dtype: DType) -> Node:
        return node if node.dtype is dtype else self.b.cast(node, dtype=dtype.name)

    def _finish(self) -> Graph:
        return self.graph.replace(
            inputs=tuple(self.b.inputs),
            nodes=tuple(self.b.nodes),
            outputs=tuple(self.outputs),
            output_strides=(),
            writebacks=tuple(self.writebacks),
        )
