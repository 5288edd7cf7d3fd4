"""What torch.export relied on while it traced: conditions on the sizes of a call, as limits that the Graph states and checks.

`x * 2 if len(x) % 2 == 0 else x * 3` is traced one way. A call of another length would be answered with wrong numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any

import torch
from torch.export import ExportedProgram

from dlcompiler.frontends.fx_types import dim_from_sympy
from dlcompiler.ir.errors import UnsupportedError
from dlcompiler.ir.expression import Dim, maximum, minimum, symbol, symbol_name, symbols

# (a number made of sizes, its lowest value, its highest or None)
Limit = tuple[Dim, int, "int | None"]

# torch's own ranges begin at 2, since it takes sizes of 0 and 1 for special cases while tracing; what it traces holds for them
_ORDINARY = 2


def limits_of(program: ExportedProgram) -> dict[str, tuple[Limit, ...]]:
    """The limits of a program, each with the first placeholder at which all its sizes are known.

    Raises UnsupportedError for a condition that no limit can say.
    """
    return _at_placeholders(program, [*_ranges(program), *_guards(program)])


def _ranges(program: ExportedProgram) -> Iterable[Limit]:
    """Sizes between the numbers that the user or a guard has named."""
    for size, found in program.range_constraints.items():
        lowest = int(found.lower) if found.lower.is_Integer and found.lower > _ORDINARY else 0
        highest = int(found.upper) if found.upper.is_Integer else None
        if (lowest or highest is not None) and size.is_Symbol and not _is_of_data(size):
            yield symbol(size.name), lowest, highest


def _guards(program: ExportedProgram) -> Iterable[Limit]:
    """Relations of sizes on which a branch was taken."""
    environment = next(filter(None, map(_environment, program.graph.nodes)), None)
    for guard in getattr(environment, "guards", ()):
        if guard.expr.free_symbols and not any(map(_is_of_data, guard.expr.free_symbols)):
            yield _limit(guard.expr)


def _environment(node: torch.fx.Node) -> Any:
    """torch's record of symbolic sizes, if the node has one of them."""
    example = node.meta.get("val")
    sizes = example.shape if isinstance(example, torch.Tensor) else (example,)
    return next((size.node.shape_env for size in sizes if isinstance(size, torch.SymInt)), None)


def _is_of_data(size: Any) -> bool:
    return size.name.startswith("u")


def _limit(relation: Any) -> Limit:
    """A relation as bounds of one number: `a % 2 == 0` --> (a % 2, 0, 0)."""
    kind = type(relation).__name__
    if kind == "Equality":
        left, right = map(dim_from_sympy, relation.args)
        return (left, right, right) if isinstance(right, int) else (left - right, 0, 0)
    return _truth(relation), 0, None


def _truth(relation: Any) -> Dim:
    """A number that is not negative exactly where the relation holds."""
    kind = type(relation).__name__
    if kind in _CONNECTIVES:
        return _CONNECTIVES[kind](*map(_truth, relation.args))
    if kind not in _RELATIONS:
        raise UnsupportedError(
            f"the condition {relation} on sizes, on which torch.export relied",
            items=(kind,),
            hint="state ranges with Dim",
        )
    return _RELATIONS[kind](*map(dim_from_sympy, relation.args))


def _folded(function: Callable[[Dim, Dim], Dim]) -> Callable[..., Dim]:
    return lambda *operands: reduce(function, operands)


_RELATIONS: dict[str, Callable[[Dim, Dim], Dim]] = {
    "GreaterThan": lambda left, right: left - right,
    "StrictGreaterThan": lambda left, right: left - right - 1,
    "LessThan": lambda left, right: right - left,
    "StrictLessThan": lambda left, right: right - left - 1,
    "Equality": lambda left, right: (left - right) * (right - left),
    "Unequality": lambda left, right: (left - right) * (left - right) - 1,
}
_CONNECTIVES: dict[str, Callable[..., Dim]] = {
    "And": _folded(minimum),
    "Or": _folded(maximum),
    "Not": lambda operand: -operand - 1,
}


def _at_placeholders(program: ExportedProgram, limits: Iterable[Limit]) -> dict[str, tuple[Limit, ...]]:
    waiting, told = list(dict.fromkeys(limits)), set()
    found: dict[str, tuple[Limit, ...]] = {}
    for node in program.graph.nodes:
        example = node.meta.get("val")
        if node.op != "placeholder" or not isinstance(example, torch.Tensor | torch.SymInt):
            continue
        sizes = example.shape if isinstance(example, torch.Tensor) else (example,)
        told |= {symbol_name(dim_from_sympy(size.node.expr)) for size in sizes if isinstance(size, torch.SymInt)}
        found[str(node.target)] = tuple(limit for limit in waiting if symbols(limit[0]) <= told)
        waiting = [limit for limit in waiting if limit not in found[str(node.target)]]
    return found
