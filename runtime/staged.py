"""A graph with barriers as a callable: programs one after the other, and between them control flow, the host, and new sizes.

Values live from the stage that makes them to the last that reads them. A region of an `if` or a `loop` is an executable of its
own, which is called once for each time it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from dlcompiler.ir.control import bind, require, run_if, run_loop
from dlcompiler.ir.errors import InputError
from dlcompiler.ir.expression import evaluate
from dlcompiler.ir.graph import Graph, Node
from dlcompiler.ir.ops import Trait
from dlcompiler.ir.program import Program
from dlcompiler.ir.types import TensorType, TupleType
from dlcompiler.runtime.tensors import torch_dtype
from torch import Tensor


class Runs(Protocol):
    """What a stage or a region was compiled to."""

    program: Program

    def __call__(self, inputs: Sequence[Any]) -> list[Any]: ...

    def close(self) -> None: ...


class PieceLike(Protocol):
    """As `passes.stages.Piece`."""

    graph: Graph
    inputs: tuple[Node | str, ...]
    outputs: tuple[Node, ...]


# Runs a host call: its node, operands (tensors and host values), values of sizes -> results
Host = Callable[[Node, Sequence[Any], Mapping[str, int]], Sequence[Any]]


class StagedExecutable:
    """Runs a graph's stages in order.

    steps      (piece, its executable), or (barrier's node, None)
    regions    the executable of each region
    constants  tensors of the constants that barriers or the caller read
    program    that of the piece with the most steps, for whoever wants to look at one
    """

    def __init__(
        self,
        graph: Graph,
        steps: Sequence[tuple[PieceLike | Node, Runs | None]],
        regions: Mapping[Graph, Runs],
        constants: Mapping[Node, Tensor],
        host: Host,
    ) -> None:
        self.graph, self.steps, self.regions = graph, tuple(steps), dict(regions)
        self._constants, self._host = dict(constants), host
        programs = [r.program for r in (*(r for _, r in self.steps if r is not None), *self.regions.values())]
        self.program = max(programs, key=lambda p: len(p.steps), default=Program(graph.name, graph, (), (), (), ()))
        self._dropped = self._find_dropped()

    def with_parts(self, make: Callable[[Any], Runs]) -> StagedExecutable:
        """The same, where each program is run by what `make` gives for its executable."""
        steps = [(step, None if part is None else make(part)) for step, part in self.steps]
        regions = {region: make(part) for region, part in self.regions.items()}
        return StagedExecutable(self.graph, steps, regions, self._constants, self._host)

    @property
    def programs(self) -> list[Program]:
        """Those of all pieces and regions, and of these in turn."""
        parts = (*(part for _, part in self.steps if part is not None), *self.regions.values())
        return [p for part in parts for p in (part.programs if isinstance(part, StagedExecutable) else [part.program])]

    def _find_dropped(self) -> list[list[Node]]:
        """After each step: values that nothing later reads."""
        last: dict[Node, int] = {}
        for number, (step, _) in enumerate(self.steps):
            reads = step.inputs if not isinstance(step, Node) else [_source(i) for i in step.inputs]
            made = step.outputs if not isinstance(step, Node) else (step,)
            last.update((_source(n), number) for n in (*reads, *made) if isinstance(n, Node))
        kept = {_source(n) for n in self.graph.outputs} | set(self._constants)
        dropped: list[list[Node]] = [[] for _ in self.steps]
        for node, number in last.items():
            if node not in kept:
                dropped[number].append(node)
        return dropped

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        """Tensors, ints for sizes, and host values, in the order of the graph's inputs, to its outputs. Raises InputError."""
        bindings = self._bind_inputs(inputs)
        values: dict[Node, Any] = {**self._constants, **dict(zip(self.graph.inputs, inputs))}

        def value(node: Node) -> Any:
            if node.op.name == "tuple.get" and node.inputs[0].has(Trait.BARRIER):
                return values[node.inputs[0]][node.attributes["index"]]
            if node.op.name == "dim":
                return torch.tensor(evaluate(node.attributes["value"], bindings), dtype=torch.int64)
            return values[node]

        for (step, executable), dropped in zip(self.steps, self._dropped):
            if isinstance(step, Node):
                results = self._run_barrier(step, [value(i) for i in step.inputs], bindings)
                bind(step, results, bindings)
                values[step] = results if isinstance(step.type, TupleType) else results[0]
            else:
                assert executable is not None
                given = [bindings[i] if isinstance(i, str) else value(i) for i in step.inputs]
                values.update(zip(step.outputs, executable(given)))
            for node in dropped:
                values.pop(node, None)
        return [self._handed_out(node, value(node)) for node in self.graph.outputs]

    def _handed_out(self, node: Node, result: Any) -> Any:
        # the caller may write to what it is given
        return result.clone() if node in self._constants and isinstance(result, Tensor) else result

    def _bind_inputs(self, inputs: Sequence[Any]) -> dict[str, int]:
        expected = self.graph.inputs
        if len(inputs) != len(expected):
            raise InputError(f"{self.graph.name} takes {len(expected)} inputs, not {len(inputs)}")
        is_tensor = [n.op.name != "size" and isinstance(n.type, TensorType) for n in expected]
        for node, given, tensor in zip(expected, inputs, is_tensor):
            fits = not tensor or (
                isinstance(given, Tensor) and given.ndim == node.tensor.rank and given.dtype is torch_dtype(node.dtype)
            )
            if not fits:
                raise InputError(f"input %{node.name} must be {node.type}")
        bindings = self.graph.bind([tuple(x.shape) if t else x if isinstance(x, int) else () for x, t in zip(inputs, is_tensor)])
        for node, given, tensor in zip(expected, inputs, is_tensor):
            if tensor and tuple(given.shape) != tuple(evaluate(d, bindings) for d in node.shape):
                raise InputError(f"input %{node.name} must be {node.type}, not of shape {list(given.shape)}")
        self.graph.check_limits(bindings)
        return bindings

    def _run_barrier(self, node: Node, operands: list[Any], bindings: Mapping[str, int]) -> Sequence[Any]:
        match node.op.name:
            case "if":
                return run_if(node.attributes, operands, self._run_region)
            case "loop":
                return run_loop(node.attributes, operands, self._run_region, lambda n: torch.tensor(n), _stacker(node))
            case "sizes":
                return operands
            case "check":
                require(node, operands, bindings)
                return ()
        return self._host(node, operands, bindings)

    def _run_region(self, region: Graph, values: Sequence[Any]) -> list[Any]:
        given = [int(x) if n.op.name == "size" else x for n, x in zip(region.inputs, values)]
        return self.regions[region](given)

    def close(self) -> None:
        """Free what the pieces and regions hold between calls."""
        for executable in (*(r for _, r in self.steps if r is not None), *self.regions.values()):
            executable.close()


def _source(node: Any) -> Any:
    """The barrier behind one of its results."""
    return (
        node.inputs[0] if isinstance(node, Node) and node.op.name == "tuple.get" and node.inputs[0].has(Trait.BARRIER) else node
    )


def _stacker(node: Node) -> Callable[[list[Any], int], Any]:
    """Joins the rows of a loop's scanned result."""
    body, carried = node.attributes["body"], node.attributes["carried"]

    def stack(rows: list[Any], position: int) -> Any:
        type = body.outputs[1 + carried + position].tensor
        if rows:
            return torch.stack(rows)
        return torch.empty((0, *(d if isinstance(d, int) else 0 for d in type.shape)), dtype=torch_dtype(type.dtype))

    return stack
