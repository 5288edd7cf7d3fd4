"""What runs between programs: control flow over regions, calls of the host, and sizes that only data tells.

A node with the trait BARRIER is no part of a kernel. Its operands and results are whole tensors, or values that only the host
holds (`HostType`). A size in the type of its result that nothing before tells is a symbol that the result itself binds.

    %r = if(%condition, %x) {then = graph a {...}, else = graph b {...}} : (f32[N])
    %r = loop(%trips, %condition, %state, %x) {body = graph step {...}, carried = 1} : (f32[N], f32[T, N])
    %r = host.call(%x) {target = "ai.onnx.NonZero", ...} : (i64[2, K])
    %s = sizes(%shape) {symbols = ("s0", "s1")} : i64[2]
    %k = check() {relation = "le", left = s0, right = N, message = "too long"} : ()
    %k = check(%condition) {message = "not sorted"} : ()

Both regions of an `if` take its operands behind the condition. A `loop`'s region takes the number of the iteration (i64) and the
condition, then the carried values and the rest of the operands, which stay the same; it gives the next condition, the next
carried values, and a row of each scanned result. A region's `size` input takes a 0-d i64 operand.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from dlcompiler.ir.errors import CheckError, LaunchError
from dlcompiler.ir.expression import Expression, evaluate, symbol_name, symbols
from dlcompiler.ir.graph import Graph, Node, reachable
from dlcompiler.ir.ops import Trait
from dlcompiler.ir.types import HostType, TensorType, TupleType, Type, boolean, i64

Run = Callable[[Graph, Sequence[Any]], Sequence[Any]]

RELATIONS: Mapping[str, Callable[[Any, Any], bool]] = {
    name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")
}


def is_staged(graph: Graph) -> bool:
    """Whether a graph is no single program of tensors: it has barriers, or takes values of the host."""
    return any(node.has(Trait.BARRIER) for node in graph.nodes) or any(isinstance(i.type, HostType) for i in graph.inputs)


def regions(node: Node) -> Iterator[tuple[str, Graph]]:
    """The graphs inside a node, by the names of their attributes."""
    if node.has(Trait.BARRIER):
        for name, value in node.attributes.items():
            if isinstance(value, Graph):
                yield name, value


def misfit(node: Node) -> str | None:
    """What is wrong with a barrier's regions, operands and results, as a sentence; None if they fit each other."""
    results = node.type.elements if isinstance(node.type, TupleType) else ()
    match node.op.name:
        case "if":
            wanted = {"then": (len(node.inputs) - 1, len(results)), "else": (len(node.inputs) - 1, len(results))}
            heads = [(node.inputs[:1], boolean)]
        case "loop":
            carried = node.attributes.get("carried")
            if type(carried) is not int or not 0 <= carried <= min(len(results), len(node.inputs) - 2):
                return f"carried is {carried!r}"
            wanted = {"body": (len(node.inputs), 1 + len(results))}
            heads = [(node.inputs[:1], i64), (node.inputs[1:2], boolean)]
        case "host.call":
            named = all(isinstance(node.attributes.get(name), str) for name in ("target", "operator", "domain"))
            given = node.attributes.get("given")
            fits = isinstance(given, tuple) and sum(map(bool, given)) == len(node.inputs)
            return None if named and fits else "it does not say what it calls with which operands"
        case "check":
            named = isinstance(node.attributes.get("message"), str)
            fits = len(node.inputs) == 1 or (not node.inputs and node.attributes.get("relation") in RELATIONS)
            if not (named and fits):
                return "it does not say what is asserted, or with which message"
            heads, wanted = ([(node.inputs, boolean)] if node.inputs else []), {}
        case _:
            return None
    for operands, dtype in heads:
        if not operands or operands[0].type != TensorType(dtype, ()):
            return f"an operand is no {dtype}[]"
    for name, (inputs, outputs) in wanted.items():
        region = node.attributes.get(name)
        if not isinstance(region, Graph):
            return f"the region {name} is missing"
        if len(region.inputs) != inputs or len(region.outputs) != outputs:
            return (
                f"the region {name} takes {len(region.inputs)} values and gives {len(region.outputs)}, not {inputs} and {outputs}"
            )
        if region.writebacks:
            return f"the region {name} writes to its inputs"
    return None


def tensor_types(type: Type) -> list[TensorType]:
    """The tensors in a type: itself, or those of a tuple."""
    elements = type.elements if isinstance(type, TupleType) else (type,)
    return [element for element in elements if isinstance(element, TensorType)]


def bound_by(node: Node) -> set[str]:
    """Sizes that a barrier's result may tell. Those that are known before are only checked."""
    if not node.has(Trait.BARRIER):
        return set()
    if node.op.name == "sizes":
        return set(node.attributes["symbols"])
    strides = node.attributes.get("strides", ())
    dims = (*(type.shape for type in tensor_types(node.type)), *(each for each in strides if each is not None))
    return {name for shape in dims for name in map(symbol_name, shape) if name is not None}


def has_effect(node: Node) -> bool:
    """Whether a node must run even if its result is not read: it draws random numbers, or checks something."""
    return bool(node.attributes.get("impure", False)) or node.op.name == "check"


def require(node: Node, operands: Sequence[Any], bindings: Mapping[str, int]) -> None:
    """Run a `check`. Raises CheckError with its message, and the sizes that break it."""
    if operands:
        if not bool(operands[0]):
            raise CheckError(node.attributes["message"], location=node.location)
        return
    left, right = (evaluate(node.attributes[side], bindings) for side in ("left", "right"))
    if not RELATIONS[node.attributes["relation"]](left, right):
        raise CheckError(f"{node.attributes['message']}: {left} and {right}", location=node.location)


def bind(node: Node, results: Sequence[Any], bindings: dict[str, int]) -> None:
    """Add the sizes that a barrier's results tell; `results` have a `shape`, or are host values.

    Raises LaunchError for a result of another shape than its type, CheckError for a negative size.
    """
    if node.op.name == "sizes":
        for name, size in zip(node.attributes["symbols"], results[0].tolist()):
            if size < 0:
                raise CheckError(f"the size {name} that the model computes is {size}", location=node.location)
            bindings[name] = size
        return
    types = node.type.elements if isinstance(node.type, TupleType) else (node.type,)
    for strides, result in zip(node.attributes.get("strides", ()), results):
        for name, step in zip(map(symbol_name, strides or ()), _steps(result) if strides else ()):
            if name is not None:
                bindings.setdefault(name, step)
    for type, result in zip(types, results):
        if not isinstance(type, TensorType):
            continue
        shape = tuple(result.shape)
        fits = len(shape) == type.rank
        for dim, size in zip(type.shape, shape):
            name = symbol_name(dim)
            if name is not None:
                fits &= bindings.setdefault(name, size) == size
            elif symbols(dim) <= bindings.keys():
                fits &= evaluate(dim, bindings) == size
        if not fits:
            raise LaunchError(f"{node.op.name} gave {list(shape)} where {type} was expected", location=node.location)


def _steps(result: Any) -> tuple[int, ...]:
    """Strides in elements, of a tensor of torch's or an array."""
    return (
        tuple(result.stride())
        if callable(getattr(result, "stride", None))
        else tuple(step // result.itemsize for step in result.strides)
    )


def used_symbols(value: Any) -> Iterator[str]:
    """Sizes in an attribute's value, however deeply nested; a region has its own."""
    if isinstance(value, Expression):
        yield from symbols(value)
    elif isinstance(value, tuple | list):
        for each in value:
            yield from used_symbols(each)
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from used_symbols(each)


def symbols_of(node: Node) -> set[str]:
    """Sizes in a node's type and attributes."""
    found = {name for type in tensor_types(node.type) for dim in type.shape for name in symbols(dim)}
    return found.union(used_symbols(node.attributes))


def needed(outputs: Iterable[Node], nodes: Sequence[Node]) -> set[Node]:
    """Every node that some output depends on: by its operands, or by a size that only a barrier among `nodes` tells."""
    binders = {name: node for node in reversed(nodes) for name in bound_by(node)}
    found: set[Node] = set()
    waiting = list(outputs)
    while waiting:
        new = reachable(waiting) - found
        found |= new
        waiting = [binders[s] for node in new for s in symbols_of(node) if s in binders and binders[s] not in found]
    return found


def run_if(attributes: Mapping[str, Any], operands: Sequence[Any], run: Run) -> tuple[Any, ...]:
    """The results of an `if`; `run` runs a region."""
    return tuple(run(attributes["then" if bool(operands[0]) else "else"], operands[1:]))


def run_loop(
    attributes: Mapping[str, Any],
    operands: Sequence[Any],
    run: Run,
    number: Callable[[int], Any],
    stack: Callable[[list[Any], int], Any],
) -> tuple[Any, ...]:
    """The results of a `loop`. `number` makes a 0-d i64, `stack` the k-th scanned result of its rows, which may be none."""
    body, carried = attributes["body"], attributes["carried"]
    trips, condition = int(operands[0]), operands[1]
    state, outer = list(operands[2 : 2 + carried]), operands[2 + carried :]
    rows: list[list[Any]] = [[] for _ in range(len(body.outputs) - 1 - carried)]
    iteration = 0
    while iteration < trips and bool(condition):
        condition, *results = run(body, (number(iteration), condition, *state, *outer))
        state = results[:carried]
        for row, result in zip(rows, results[carried:]):
            row.append(result)
        iteration += 1
    return (*state, *(stack(row, k) for k, row in enumerate(rows)))
