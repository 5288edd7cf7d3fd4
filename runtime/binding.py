"""The symbols of a program, solved from what a call is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dlcompiler.ir.control import symbols_of
from dlcompiler.ir.errors import InputError, VerifyError
from dlcompiler.ir.expression import Dim, Expression, substitute, symbols, terms_of
from dlcompiler.ir.program import Launch, LibraryCall, Program

Reader = Callable[[Sequence[Any]], int]


class Binder:
    """Reads the value of every symbol off a call's inputs: from an integer argument, or from a size or stride that is the
    symbol times a number plus a number.
    """

    def __init__(self, program: Program) -> None:
        used = used_symbols(program) if program.graph.symbols else set()
        self.names = tuple(name for name in program.graph.symbols if name in used)
        found: dict[str, Reader] = {}
        for position, node in enumerate(program.graph.inputs):
            if node.op.name == "size":
                found.setdefault(node.attributes["symbol"], _integer(position, node.name))
        for attribute in ("shape", "strides"):
            for position, slot in enumerate(program.inputs):
                for d, dim in enumerate(getattr(slot, attribute) if slot is not None else ()):
                    solved = _linear(dim)
                    if solved is not None and solved[0] not in found:
                        name, scale, shift = solved
                        found[name] = _size(position, d, attribute == "shape", scale, shift)
        missing = [name for name in self.names if name not in found]
        if missing:
            raise VerifyError(f"no input of {program.name} says what {', '.join(missing)} is")
        self._readers = tuple(found[name] for name in self.names)

    def __call__(self, inputs: Sequence[Any]) -> tuple[int, ...]:
        """Values in the order of `names`. Raises InputError for an argument that has no such size."""
        return tuple([read(inputs) for read in self._readers])


def used_symbols(program: Program) -> set[str]:
    """Symbols that some size, offset or argument of the program depends on."""
    found: set[str] = set()
    seen: set[int] = set()

    def collect(value: Any) -> None:
        if isinstance(value, Expression):
            found.update(symbols(value))
        elif isinstance(value, Mapping):
            for part in value.values():
                collect(part)
        elif isinstance(value, tuple | list):
            for part in value:
                collect(part)

    for slot in program.slots:
        collect((slot.shape, slot.strides))
    for step in program.steps:
        for view in (*step.reads, *step.writes):
            if view is not None:
                collect((view.shape, view.strides, view.offset))
        if isinstance(step, Launch):
            if id(step.kernel) not in seen:
                seen.add(id(step.kernel))
                found.update(step.kernel.size_symbols)
        else:
            collect(step.attributes if isinstance(step, LibraryCall) else step.arguments)
    for view in program.outputs:
        collect((view.shape, view.strides, view.offset))
    for node in program.graph.nodes:  # by which the plan's memory is compared with eager's, though no kernel may be left of them
        found.update(symbols_of(node))
    return found


def _linear(dim: Dim) -> tuple[str, int, int] | None:
    """(name, a, b) if `dim` is a*name + b with a != 0."""
    if isinstance(dim, int) or len(names := symbols(dim)) != 1:
        return None
    (name,) = names
    shift = substitute(dim, {name: 0})
    assert isinstance(shift, int)
    rest = terms_of(dim - shift)
    if len(rest) != 1:
        return None
    ((monomial, scale),) = rest.items()
    return (name, scale, shift) if len(monomial) == 1 and monomial[0].kind == "symbol" else None


def _integer(position: int, name: str) -> Reader:
    def read(inputs: Sequence[Any]) -> int:
        value = inputs[position]
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise InputError(f"input {name} must be an integer, not {type(value).__name__}")
        return int(value)

    return read


def _size(position: int, dimension: int, is_shape: bool, scale: int, shift: int) -> Reader:
    def read(inputs: Sequence[Any]) -> int:
        value = inputs[position]
        if len(getattr(value, "shape", ())) <= dimension:
            return 0  # the check of the inputs against the plan says what is wrong
        size = value.shape[dimension] if is_shape else value.stride(dimension)
        return (size - shift) // scale

    return read
