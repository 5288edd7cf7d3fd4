"""A graph with barriers as a callable: programs one after the other, and between them control flow, the host, and new sizes.

Values live from the stage that makes them to the last that reads them, which owns them. A region of an `if` or a `loop` is an
executable of its own, which is called once for each time it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from dlcompiler.ir.control import bind, require, run_if, run_loop
from dlcompiler.ir.errors import InputError
from dlcompiler.ir.expression import evaluate
from dlcompiler.ir.graph import Graph, Node, OutputStrides
from dlcompiler.ir.ops import Trait
from dlcompiler.ir.program import Program
from dlcompiler.ir.types import TensorType, TupleType
from dlcompiler.runtime.tensors import copy_strided, same_layout, torch_dtype
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
    written: tuple[Node, ...]


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
        written = {target for step, _ in self.steps if not isinstance(step, Node) for target in step.written}
        # what no piece could write where it lies, since something after it reads what was there
        self._writes = [(value, target) for value, target in graph.writebacks if target not in written]
        self._used_up, self._dropped = self._find_dropped()
        self._inputs = frozenset(graph.inputs)
        # what pieces give, laid out as it is first asked for
        first = dict(zip(reversed(graph.outputs), reversed(graph.output_strides)))
        asked = [node for node, strides in zip(graph.outputs, graph.output_strides) if first[node] != strides]
        self._made = {n for step, _ in self.steps if not isinstance(step, Node) for n in step.outputs}.difference(asked)
        self._owned = {node: k for k, node in enumerate(graph.inputs) if node.attributes.get("owned")}
        self._expected = [_expected(k, node) for k, node in enumerate(graph.inputs)]
        # positions of inputs that are sizes, or have some that are known only when called, and the graph with no others
        self._symbolic = [k for k, _, _, shape in self._expected if shape is None]
        self._symbolic_part = graph.replace(inputs=tuple(graph.inputs[k] for k in self._symbolic))

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

    def _find_dropped(self) -> tuple[list[list[Node]], list[list[Node]]]:
        """Of each step: values that nothing later reads, and results that nothing reads at all."""
        last: dict[Node, int] = {}
        read: set[Node] = set()
        for number, (step, _) in enumerate(self.steps):
            reads = step.inputs if not isinstance(step, Node) else [_source(i) for i in step.inputs]
            made = step.outputs if not isinstance(step, Node) else (step,)
            last.update((_source(n), number) for n in (*reads, *made) if isinstance(n, Node))
            read |= {_source(n) for n in reads if isinstance(n, Node)}
        later = [node for write in self._writes for node in write]
        kept = {_source(n) for n in (*self.graph.outputs, *later)} | set(self._constants)
        used_up: list[list[Node]] = [[] for _ in self.steps]
        dropped: list[list[Node]] = [[] for _ in self.steps]
        for node, number in last.items():
            if node not in kept:
                (used_up if node in read else dropped)[number].append(node)
        return used_up, dropped

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        """Tensors, ints for sizes, and host values, in the order of the graph's inputs, to its outputs.

        Of a list of inputs, those that the graph owns become None once nothing later reads them. Raises InputError.
        """
        bindings = self._bind_inputs(inputs)
        values: dict[Node, Any] = {**self._constants, **dict(zip(self.graph.inputs, inputs))}

        def value(node: Node) -> Any:
            if node.op.name == "tuple.get" and node.inputs[0].has(Trait.BARRIER):
                return values[node.inputs[0]][node.attributes["index"]]
            if node.op.name == "dim":
                return torch.tensor(evaluate(node.attributes["value"], bindings), dtype=torch.int64)
            return values[node] if node.op.name != "size" else torch.tensor(values[node], dtype=torch.int64)

        for (step, executable), used_up, dropped in zip(self.steps, self._used_up, self._dropped):
            if isinstance(step, Node):
                results = self._run_barrier(step, [value(i) for i in step.inputs], bindings)
                bind(step, results, bindings)
                values[step] = results if isinstance(step.type, TupleType) else results[0]
                self._let_go(used_up, values, inputs)
            else:
                assert executable is not None
                given = [bindings[i] if isinstance(i, str) else value(i) for i in step.inputs]
                self._let_go(used_up, values, inputs)  # before the call, which then holds alone what it owns
                values.update(zip(step.outputs, executable(given)))
                del given
            for node in dropped:
                values.pop(node, None)
        with torch.no_grad():
            for made, target in self._writes:
                values[target].copy_(value(made))
        strides = self.graph.output_strides or (None,) * len(self.graph.outputs)
        return [self._handed_out(node, value(node), wanted, bindings) for node, wanted in zip(self.graph.outputs, strides)]

    def _let_go(self, nodes: Sequence[Node], values: dict[Node, Any], inputs: Sequence[Any]) -> None:
        for node in nodes:
            values.pop(node, None)
            if node in self._owned and isinstance(inputs, list):
                inputs[self._owned[node]] = None

    def _handed_out(self, node: Node, result: Any, strides: OutputStrides, bindings: Mapping[str, int]) -> Any:
        """A result as the caller wants it: it may write to it, and no piece has laid out what a barrier gives."""
        if not isinstance(result, Tensor) or node in self._inputs:
            return result
        if node in self._constants:
            result = result.clone()
        if not isinstance(strides, tuple) or node in self._made:
            return result
        wanted = tuple(evaluate(each, bindings) for each in strides)
        return result if same_layout(result.shape, result.stride(), wanted) or 0 in wanted else copy_strided(result, wanted)

    def _bind_inputs(self, inputs: Sequence[Any]) -> dict[str, int]:
        nodes = self.graph.inputs
        if len(inputs) != len(nodes):
            raise InputError(f"{self.graph.name} takes {len(nodes)} inputs, not {len(inputs)}")
        for (position, dtype, rank, shape), given in zip(self._expected, inputs):
            if dtype is not None and not (isinstance(given, Tensor) and given.dtype is dtype and given.ndim == rank):
                raise InputError(f"input %{nodes[position].name} must be {nodes[position].type}")
            if shape is not None and given.shape != shape:
                self._refuse_shape(nodes[position], given)
        if not self._symbolic:
            return {}
        some = [inputs[k] for k in self._symbolic]
        shapes = [x if isinstance(x, int) else tuple(x.shape) if isinstance(x, Tensor) else () for x in some]
        bindings = self._symbolic_part.bind(shapes)
        for node, given in zip(self._symbolic_part.inputs, some):
            is_tensor = node.op.name != "size" and isinstance(node.type, TensorType)
            if is_tensor and tuple(given.shape) != tuple(evaluate(d, bindings) for d in node.shape):
                self._refuse_shape(node, given)
        self.graph.check_limits(bindings)
        return bindings

    @staticmethod
    def _refuse_shape(node: Node, given: Tensor) -> None:
        raise InputError(f"input %{node.name} must be {node.type}, not of shape {list(given.shape)}")

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


def _expected(position: int, node: Node) -> tuple[int, torch.dtype | None, int, tuple[int, ...] | None]:
    """(position, dtype, rank, shape) of an input: no dtype of what is no tensor, no shape where a call tells a size."""
    if node.op.name == "size" or not isinstance(node.type, TensorType):
        return position, None, 0, None
    type = node.tensor
    return position, torch_dtype(type.dtype), type.rank, type.known_shape if type.is_static else None


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
