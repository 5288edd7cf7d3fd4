"""Numbers made of sizes, or of numbers that were read out of tensors, as 0-d nodes.

A SymFloat, `1 / sqrt(s0)`, is an f64; a SymBool, `s0 >= 1024`, a bool.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dlcompiler.frontends.fx_types import WeakNumber, dim_from_sympy
from dlcompiler.ir.errors import UnsupportedError
from dlcompiler.ir.expression import Dim
from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import boolean, f64, i64

if TYPE_CHECKING:
    from dlcompiler.frontends.fx_import import Importer

_UNARY = {
    "OpaqueUnaryFn_sqrt": "sqrt", "OpaqueUnaryFn_exp": "exp", "OpaqueUnaryFn_log": "log", "OpaqueUnaryFn_log2": "log2",
    "OpaqueUnaryFn_cos": "cos", "OpaqueUnaryFn_sin": "sin", "OpaqueUnaryFn_tan": "tan", "OpaqueUnaryFn_tanh": "tanh",
    "OpaqueUnaryFn_cosh": "cosh", "OpaqueUnaryFn_sinh": "sinh", "OpaqueUnaryFn_acos": "acos", "OpaqueUnaryFn_asin": "asin",
    "OpaqueUnaryFn_atan": "atan",
}  # fmt: skip
_RELATIONS = {
    "Equality": "eq", "Unequality": "ne", "StrictLessThan": "lt", "LessThan": "le", "StrictGreaterThan": "gt",
    "GreaterThan": "ge",
}  # fmt: skip
_CONNECTIVES = {"And": "bitwise_and", "Or": "bitwise_or", "Not": "bitwise_not"}
_ROUNDED = {"TruncToInt": "trunc", "FloorToInt": "floor", "CeilToInt": "ceil", "RoundToInt": "round"}
_OF_INTEGERS = {
    "Add": "add", "Mul": "mul", "Max": "maximum", "Min": "minimum", "FloorDiv": "floor_div", "Mod": "remainder",
    "PythonMod": "remainder",
}  # fmt: skip
_BINARY = {"Add": "add", "Mul": "mul", "IntTrueDiv": "div", "FloatTrueDiv": "div", "FloatPow": "pow", "Pow": "pow"}


def float_of_sizes(importer: Importer, number: torch.SymFloat) -> float | WeakNumber:
    """A float made of sizes. Raises UnsupportedError for a function that is not known here."""
    expression = number.node.expr
    if expression.is_Number:
        return float(expression)
    return WeakNumber(_node(importer, expression, number.node.shape_env))


def bool_of_sizes(importer: Importer, truth: torch.SymBool) -> bool | WeakNumber:
    """The truth of a relation of sizes. Raises UnsupportedError for one that is not known here."""
    expression = truth.node.expr
    if expression.is_Boolean and not expression.free_symbols:
        return bool(expression)
    return WeakNumber(truth_of_sizes(importer, expression, truth.node.shape_env))


def relation_of_sizes(importer: Importer, expression: Any, environment: Any) -> tuple[str, Dim, Dim] | None:
    """(name, left, right) of a sympy relation of two sizes; None for anything else."""
    name = _RELATIONS.get(type(expression).__name__)
    if name is None or expression in importer.told.truths or not _is_of_integers(importer, expression):
        return None
    try:
        left, right = (dim_from_sympy(x, environment) for x in expression.args)
    except UnsupportedError:
        return None
    return name, left, right


def _is_of_integers(importer: Importer, expression: Any) -> bool:
    floats = importer.told.floats.keys() & {x.name for x in expression.free_symbols}
    return all(x.is_integer for x in expression.args) and not floats


def truth_of_sizes(importer: Importer, expression: Any, environment: Any) -> Node:
    """A sympy condition of sizes as a 0-d bool. Raises UnsupportedError for one that is not known here."""
    known = importer.told.truths.get(expression)
    if known is not None:
        return known
    kind = type(expression).__name__
    if kind in _RELATIONS:
        left, right = expression.args
        if _is_of_integers(importer, expression):
            operands = [integer_of_sizes(importer, x, environment) for x in (left, right)]
        else:
            operands = [_node(importer, x, environment) for x in (left, right)]
        return importer.b(_RELATIONS[kind], *operands)
    if kind in _CONNECTIVES:
        first, *rest = (truth_of_sizes(importer, x, environment) for x in expression.args)
        for each in rest:
            first = importer.b(_CONNECTIVES[kind], first, each)
        return first if kind != "Not" else importer.b(_CONNECTIVES[kind], first)
    if kind in ("BooleanTrue", "BooleanFalse"):
        return importer.b.constant(bool(expression), boolean)
    raise UnsupportedError(f"the truth of {expression}", items=(kind,))


def integer_of_sizes(importer: Importer, expression: Any, environment: Any) -> Node:
    """A sympy integer expression as a 0-d i64, also one that is rounded from a float, or chosen by a condition.

    Raises UnsupportedError for a function that is not known here.
    """
    try:
        return importer.size(dim_from_sympy(expression, environment))
    except UnsupportedError:
        kind, b = type(expression).__name__, importer.b
    if kind in _ROUNDED:
        number = _node(importer, expression.args[0], environment)
        return importer.cast(b(_ROUNDED[kind], number), i64)
    if kind == "Piecewise":
        pairs = [pair.args for pair in expression.args]
        result = integer_of_sizes(importer, pairs[-1][0], environment)
        for value, condition in reversed(pairs[:-1]):
            chosen = truth_of_sizes(importer, condition, environment)
            result = b.where(chosen, integer_of_sizes(importer, value, environment), result)
        return result
    if kind == "Abs":
        return b.abs(integer_of_sizes(importer, expression.args[0], environment))
    if kind in _OF_INTEGERS:
        first, *rest = (integer_of_sizes(importer, x, environment) for x in expression.args)
        for each in rest:
            first = b(_OF_INTEGERS[kind], first, each)
        return first
    raise UnsupportedError(f"the number {expression} of sizes", items=(kind,))


def _node(importer: Importer, expression: Any, environment: Any) -> Node:
    b = importer.b
    kind = type(expression).__name__
    if expression.is_Number:
        return b.constant(float(expression), f64)
    if expression.is_Symbol and expression.name in importer.told.floats:
        return importer.told.floats[expression.name]

    def size(of: Any) -> Node:
        return importer.cast(integer_of_sizes(importer, of, environment), f64)

    if kind == "ToFloat":
        return size(expression.args[0])
    if kind == "IntTrueDiv":
        return b.div(*map(size, expression.args))
    if expression.is_Symbol or expression.is_integer:
        return size(expression)
    if kind in _UNARY:
        return b(_UNARY[kind], _node(importer, expression.args[0], environment))
    if kind == "Pow" and expression.args[1] == -1:
        return b.div(b.constant(1.0, f64), _node(importer, expression.args[0], environment))
    if kind in _BINARY:
        first, *rest = expression.args
        value = _node(importer, first, environment)
        for each in rest:
            value = b(_BINARY[kind], value, _node(importer, each, environment))
        return value
    if expression.is_number:
        return b.constant(float(expression), f64)
    raise UnsupportedError(f"the number {expression} of sizes", items=(kind,), hint=f"known functions: {', '.join(_UNARY)}")
