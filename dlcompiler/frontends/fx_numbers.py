"""Numbers made of sizes, or of numbers that were read out of tensors, as 0-d nodes.

A SymFloat, `1 / sqrt(s0)`, is an f64; a SymBool, `s0 >= 1024`, a bool.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dlcompiler.frontends.fx_types import WeakNumber, dim_from_sympy
from dlcompiler.ir.errors import UnsupportedError
from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import f64

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
_BINARY = {"Add": "add", "Mul": "mul", "IntTrueDiv": "div", "FloatTrueDiv": "div", "FloatPow": "pow", "Pow": "pow"}


def float_of_sizes(importer: Importer, expression: Any) -> float | WeakNumber:
    """The value of a sympy float expression of sizes. Raises UnsupportedError for a function that is not known here."""
    if expression.is_Number:
        return float(expression)
    return WeakNumber(_node(importer, expression))


def bool_of_sizes(importer: Importer, expression: Any) -> bool | WeakNumber:
    """The truth of a sympy relation of sizes. Raises UnsupportedError for one that is not known here."""
    if expression.is_Boolean and not expression.free_symbols:
        return bool(expression)
    return WeakNumber(_truth(importer, expression))


def _truth(importer: Importer, expression: Any) -> Node:
    kind = type(expression).__name__
    if kind in _RELATIONS:
        left, right = expression.args
        if left.is_integer and right.is_integer and not importer.floats.keys() & {x.name for x in expression.free_symbols}:
            operands = [importer.size(dim_from_sympy(x)) for x in (left, right)]
        else:
            operands = [_node(importer, x) for x in (left, right)]
        return importer.b(_RELATIONS[kind], *operands)
    if kind in _CONNECTIVES:
        first, *rest = (_truth(importer, x) for x in expression.args)
        for each in rest:
            first = importer.b(_CONNECTIVES[kind], first, each)
        return first if kind != "Not" else importer.b(_CONNECTIVES[kind], first)
    raise UnsupportedError(f"the truth of {expression}", items=(kind,))


def _node(importer: Importer, expression: Any) -> Node:
    b = importer.b
    kind = type(expression).__name__
    if expression.is_Number:
        return b.constant(float(expression), f64)
    if expression.is_Symbol and expression.name in importer.floats:
        return importer.floats[expression.name]
    if kind == "ToFloat":
        return importer.cast(importer.size(dim_from_sympy(expression.args[0])), f64)
    if kind in ("IntTrueDiv",) or expression.is_Symbol or expression.is_integer:
        if kind != "IntTrueDiv":
            return importer.cast(importer.size(dim_from_sympy(expression)), f64)
        left, right = (importer.cast(importer.size(dim_from_sympy(a)), f64) for a in expression.args)
        return b.div(left, right)
    if kind in _UNARY:
        return b(_UNARY[kind], _node(importer, expression.args[0]))
    if kind == "Pow" and expression.args[1] == -1:
        return b.div(b.constant(1.0, f64), _node(importer, expression.args[0]))
    if kind in _BINARY:
        first, *rest = expression.args
        value = _node(importer, first)
        for each in rest:
            value = b(_BINARY[kind], value, _node(importer, each))
        return value
    if expression.is_number:
        return b.constant(float(expression), f64)
    raise UnsupportedError(f"the number {expression} of sizes", items=(kind,), hint=f"known functions: {', '.join(_UNARY)}")
