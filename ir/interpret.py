"""Interpreters in NumPy for the three IRs: the definition that everything faster is compared with.

`interpret_graph` evaluates one node after another, composites by their expansion. `interpret_kernel` evaluates one scalar value
after another for all points of the axes at once. `interpret_program` runs a program's steps in its own memory plan, so that a
wrong plan gives wrong numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from dlcompiler.ir.control import bind, require, run_if, run_loop
from dlcompiler.ir.errors import InputError, UnsupportedError, VerifyError
from dlcompiler.ir.expression import Expression, evaluate, symbols
from dlcompiler.ir.graph import Builder, Graph, Node
from dlcompiler.ir.interpret_kernel import interpret_kernel
from dlcompiler.ir.ops import Op, Trait, lookup
from dlcompiler.ir.program import AtenCall, Launch, LibraryCall, Program, RoutineCall, Slot, View
from dlcompiler.ir.types import TensorType, dtype_of

# What runs an `aten.call`: (target, arguments template, operand arrays) -> array, or tuple of arrays. Called with RANDOM_SEED it
# draws the seed of a call.
Call = Callable[[str, Any, list[np.ndarray]], Any]
RANDOM_SEED = "dlcompiler.random_seed"
Start = Callable[[int, Mapping[str, np.ndarray], Mapping[str, int]], None]


# -- graphs ------------------------------------------------------------------------------------------------------------------


def interpret_graph(graph: Graph, inputs: Sequence[np.ndarray | int], *, call: Call | None = None) -> list[np.ndarray]:
    """The outputs of `graph`, then the values of its writebacks, each a NumPy array.

    `inputs`: an array for each tensor input, an int for each `size` input. Raises InputError where they do not fit, and
    UnsupportedError for an `aten.call` when no `call` is given.
    """
    bindings = bind_inputs(graph, inputs)
    values: dict[Node, Any] = {}
    for node, given in zip(graph.inputs, inputs):
        is_tensor = isinstance(node.type, TensorType)
        values[node] = np.asarray(given, dtype=np.int64) if node.op.name == "size" else np.asarray(given) if is_tensor else given
    run_nodes(graph.nodes, values, bindings, keep=graph.results, call=call)
    return [values[node] for node in (*graph.outputs, *(value for value, _ in graph.writebacks))]


def bind_inputs(graph: Graph, inputs: Sequence[np.ndarray | int]) -> dict[str, int]:
    """Values of the graph's symbols for these inputs. Raises InputError for a wrong number, dtype or shape."""
    if len(inputs) != len(graph.inputs):
        raise InputError(f"graph {graph.name} takes {len(graph.inputs)} inputs, not {len(inputs)}")
    given_shapes = [
        int(x) if node.op.name == "size" else np.shape(x) if isinstance(node.type, TensorType) else ()
        for node, x in zip(graph.inputs, inputs)
    ]
    bindings = graph.bind(given_shapes)
    for node, given in zip(graph.inputs, inputs):
        if node.op.name == "size" or not isinstance(node.type, TensorType):
            continue
        array = np.asarray(given)
        try:
            shape = tuple(evaluate(d, bindings) for d in node.shape)
        except KeyError as error:
            raise InputError(f"no input binds the size {error} in input %{node.name}: {node.type}") from None
        if array.shape != shape or array.dtype != node.dtype.numpy:
            raise InputError(
                f"input %{node.name} is {node.type}, not {array.dtype}{list(array.shape)}",
                location=node.location,
                hint=f"expected shape {list(shape)}" if array.dtype == node.dtype.numpy else None,
            )
    graph.check_limits(bindings)
    return bindings


def run_nodes(
    nodes: Sequence[Node],
    values: dict[Node, Any],
    bindings: Mapping[str, int],
    *,
    keep: frozenset[Node] = frozenset(),
    call: Call | None = None,
) -> None:
    """Evaluate `nodes` in order into `values`, dropping each value after its last use unless it is in `keep`."""
    last_use: dict[Node, int] = {}
    for number, node in enumerate(nodes):
        for operand in node.inputs:
            last_use[operand] = number
    bindings = dict(bindings)
    for number, node in enumerate(nodes):
        attributes = concrete(node.attributes, bindings)
        operands = [values[i] for i in node.inputs]
        try:
            if node.has(Trait.BARRIER):
                result = _evaluate_barrier(node, operands, attributes, bindings, call)
                bind(node, result if isinstance(result, tuple) else (result,), bindings)
            else:
                result = evaluate_op(node.op, operands, attributes, call)
        except UnsupportedError as error:
            raise UnsupportedError(error.message, items=error.items, location=node.location, hint=error.hint) from None
        _check_result(node, result, bindings)
        values[node] = result
        for dead in {i for i in node.inputs if last_use[i] == number and i not in keep}:
            del values[dead]
        if node not in last_use and node not in keep:
            del values[node]


def _evaluate_barrier(
    node: Node, operands: Sequence[Any], attributes: Mapping[str, Any], bindings: Mapping[str, int], call: Call | None
) -> Any:
    def run(region: Graph, values: Sequence[Any]) -> list[Any]:
        return interpret_graph(region, values, call=call)

    def stack(rows: list[Any], position: int) -> np.ndarray:
        type = node.attributes["body"].outputs[1 + node.attributes["carried"] + position].tensor
        known = tuple(d if isinstance(d, int) else 0 for d in type.shape)
        return np.stack(rows) if rows else np.empty((0, *known), type.dtype.numpy)

    match node.op.name:
        case "if":
            return run_if(node.attributes, operands, run)
        case "loop":
            return run_loop(node.attributes, operands, run, np.int64, stack)
        case "host.call" if call is None:
            target = node.attributes["target"]
            raise UnsupportedError(f"the interpreter has no meaning for {target}", items=(target,), hint="pass call=")
        case "host.call":
            assert call is not None
            if "arguments" not in attributes:
                return tuple(call(node.attributes["target"], attributes, list(operands)))
            result = call(node.attributes["target"], attributes["arguments"], _as_wanted(operands, attributes))
            return result if isinstance(result, tuple) else (result,)
        case "check":
            require(node, operands, bindings)
    return evaluate_op(node.op, operands, node.attributes, call)


def evaluate_op(op: Op, operands: Sequence[Any], attributes: Mapping[str, Any], call: Call | None = None) -> Any:
    """One op on arrays. A composite is expanded for the operands' shapes and its expansion evaluated."""
    if op.evaluate is not None:
        with np.errstate(all="ignore"):
            result = op.evaluate(operands, attributes)
        is_number = isinstance(result, np.ndarray | np.generic | int | float)
        return np.asarray(result) if is_number else result  # several results, or a value of the host
    if op.expand is not None:
        builder = Builder("expansion")
        inputs = tuple(builder.input("x", TensorType(dtype_of(a), a.shape)) for a in operands)
        output = op.expand(builder, inputs, attributes)
        values: dict[Node, Any] = dict(zip(inputs, operands))
        run_nodes(builder.nodes, values, {}, keep=frozenset((output, *inputs)))
        return values[output]
    if op.name == "random_seed":
        if call is None:
            return np.random.default_rng().integers(0, np.iinfo(np.int64).max, (), dtype=np.int64)
        return call(RANDOM_SEED, {}, [])
    if op.name == "aten.call":
        target = attributes["target"]
        if call is None:
            raise UnsupportedError(f"the interpreter has no meaning for {target}", items=(target,), hint="pass call=")
        return call(target, attributes["arguments"], _as_wanted(operands, attributes))
    raise UnsupportedError(f"the op {op.name} has no meaning in NumPy", items=(op.name,))


def _as_wanted(operands: Sequence[Any], attributes: Mapping[str, Any]) -> list[np.ndarray]:
    """Operands of one of torch's operators, laid out as it is to see them."""
    wanted = attributes.get("operand_strides") or (None,) * len(operands)
    return [_laid_out(x, strides) for x, strides in zip(operands, wanted)]


def _laid_out(array: np.ndarray, strides: Sequence[int] | None) -> np.ndarray:
    """The same numbers in memory of their own with those strides, in elements; None: as they are."""
    if strides is None or 0 in strides or not array.size:
        return array
    memory = np.empty(1 + sum((size - 1) * step for size, step in zip(array.shape, strides)), array.dtype)
    view = np.lib.stride_tricks.as_strided(memory, array.shape, [step * array.itemsize for step in strides])
    view[...] = array
    return view


def concrete(value: Any, bindings: Mapping[str, int]) -> Any:
    """`value` with every dimension in it, however deeply nested, replaced by its number."""
    if isinstance(value, Expression):
        return evaluate(value, bindings)
    if not bindings:
        return value
    if isinstance(value, tuple):
        return tuple(concrete(v, bindings) for v in value)
    if isinstance(value, list):
        return [concrete(v, bindings) for v in value]
    if isinstance(value, Mapping):
        return {k: concrete(v, bindings) for k, v in value.items()}
    return value


def _check_result(node: Node, result: Any, bindings: Mapping[str, int]) -> None:
    """The type rule and the meaning of an op must agree, so a value has the type of its node."""
    if not isinstance(node.type, TensorType) or not isinstance(result, np.ndarray):
        return
    known = {name: bindings.get(name) for dim in node.type.shape if isinstance(dim, Expression) for name in symbols(dim)}
    if None in known.values():  # a size that only the value itself knows
        return
    shape = tuple(evaluate(d, bindings) for d in node.type.shape)
    if result.shape != shape or result.dtype != node.type.dtype.numpy:
        raise VerifyError(f"{node!r} gave {result.dtype}{list(result.shape)}", location=node.location)


# -- programs ----------------------------------------------------------------------------------------------------------------


def interpret_program(
    program: Program,
    inputs: Sequence[np.ndarray | int],
    *,
    call: Call | None = None,
    bindings: Mapping[str, int] | None = None,
    launch: Start | None = None,
) -> list[np.ndarray]:
    """The outputs of `program`, then the final contents of the inputs that its graph writes back.

    Kernels run by the kernel interpreter (or by `launch`, as routines then are, given the number of the step, its buffers' arrays
    by name in order and its sizes), library calls by the op table. With a placement, intermediates share one arena at their
    planned offsets; without one each has memory of its own. Memory starts as NaN bits; `inputs` are not changed.
    """
    memory = _Memory(program, inputs, bindings or bind_inputs(program.graph, inputs))
    for made in program.preparation:
        interpret_kernel(made.kernel, memory.arguments(made), memory.sizes(made))
    for number, step in enumerate(program.steps):
        match step:
            case Launch():
                arrays, sizes = memory.arguments(step), memory.sizes(step)
                if launch is None:
                    interpret_kernel(step.kernel, arrays, sizes)
                else:
                    launch(number, arrays, sizes)
            case RoutineCall() if launch is not None:
                launch(number, memory.arguments(step), memory.sizes(step))
            case LibraryCall():
                operands = [memory.array(v).copy() for v in step.reads]
                result = evaluate_op(lookup(step.op), operands, concrete(step.attributes, memory.bindings), call)
                for view, array in zip(step.writes, result if isinstance(result, tuple) else (result,)):
                    memory.array(view)[...] = array
            case AtenCall():
                if call is None:
                    raise UnsupportedError(f"the interpreter has no meaning for {step.target}", items=(step.target,))
                operands = [memory.array(v).copy() for v in step.reads]
                result = call(step.target, concrete(step.arguments, memory.bindings), operands)
                for written, array in zip(step.writes, result if isinstance(result, tuple | list) else (result,)):
                    if written is not None:
                        memory.give(written.slot, np.asarray(array))
    results = [memory.array(output).copy() for output in program.outputs]
    places = {node: slot for node, slot in zip(program.graph.inputs, program.inputs)}
    for _, node in program.graph.writebacks:
        slot = places[node]
        assert slot is not None
        results.append(memory.array(slot.view()).copy())
    return results


class _Memory:
    """The bytes of every slot of a program."""

    def __init__(self, program: Program, inputs: Sequence[np.ndarray | int], bindings: Mapping[str, int]) -> None:
        self.program, self.bindings = program, bindings
        self.given: dict[Slot, np.ndarray] = {}
        placement = program.placement
        self.arena = _fresh(placement.arena_bytes) if placement is not None else None
        self.own: dict[Slot, np.ndarray] = {}
        self.group_bytes: dict[Slot, int] = {}  # of slots whose memory others take over
        for slot in (*program.aliases, *program.aliases.values()):
            root = self._root(slot)
            self.group_bytes[root] = max(self.group_bytes.get(root, 0), evaluate(slot.bytes, bindings))
        for taken, given in zip(program.inputs, inputs):
            if taken is not None:
                self.array(taken.view())[...] = given
        for slot in program.slots:
            if slot.role == "constant":
                self.array(slot.view())[...] = np.asarray(program.constants[slot.position])

    def arguments(self, step: Launch | RoutineCall) -> dict[str, np.ndarray]:
        """A launch's buffers by name, a routine's arguments by number."""
        names = [b.name for b in step.kernel.buffers] if isinstance(step, Launch) else map(str, range(len(step.arguments)))
        return {name: self.array(v) for name, v in zip(names, step.arguments)}

    def sizes(self, step: Launch | RoutineCall) -> dict[str, int]:
        """The sizes that a launch is given."""
        return {s: self.bindings[s] for s in (step.kernel if isinstance(step, Launch) else step).size_symbols}

    def array(self, view: View) -> np.ndarray:
        """The memory that a view sees, as a writable array of its shape."""
        shape, strides = (tuple(evaluate(d, self.bindings) for d in dims) for dims in (view.shape, view.strides))
        offset = evaluate(view.offset, self.bindings)
        given = self.given.get(view.slot)
        if given is not None:
            return np.lib.stride_tricks.as_strided(given.reshape(-1)[offset:], shape, tuple(s * given.itemsize for s in strides))
        item = view.dtype.bytes
        size = 0 if 0 in shape else (1 + sum((n - 1) * s for n, s in zip(shape, strides))) * item
        memory = self._bytes(view.slot)[offset * item :]
        if size > memory.size:
            raise VerifyError(f"a view of {size} bytes at element {offset} does not fit {view.slot}")
        if size == 0:
            return np.empty(shape, view.dtype.numpy)
        return np.ndarray(shape, view.dtype.numpy, memory, strides=tuple(s * item for s in strides))

    def give(self, slot: Slot, array: np.ndarray) -> None:
        """Memory that an aten call allocated, laid out as its slot says."""
        strides = tuple(evaluate(s, self.bindings) for s in slot.strides)
        reach = 0 if array.size == 0 else 1 + sum((n - 1) * s for n, s in zip(array.shape, strides))
        flat = np.empty(reach, array.dtype)
        if array.size:
            np.lib.stride_tricks.as_strided(flat, array.shape, tuple(s * flat.itemsize for s in strides))[...] = array
        self.given[slot] = flat

    def _root(self, slot: Slot) -> Slot:
        while slot in self.program.aliases:
            slot = self.program.aliases[slot]
        return slot

    def _bytes(self, slot: Slot) -> np.ndarray:
        root = self._root(slot)
        placement = self.program.placement
        if placement is not None and root.role == "intermediate":
            start = placement.offsets.get(slot, placement.offsets.get(root))
            if start is None:
                raise VerifyError(f"{slot} has no place in the arena")
            assert self.arena is not None
            return self.arena[start : start + evaluate(slot.bytes, self.bindings)]
        if root not in self.own:
            self.own[root] = _fresh(self.group_bytes.get(root) or evaluate(root.bytes, self.bindings))
        return self.own[root]


def _fresh(size: int) -> np.ndarray:
    """Memory whose floats are NaN and whose integers are -1; 16 bytes too many, aligned as NumPy allocates."""
    return np.full(size + 16, 0xFF, dtype=np.uint8)
