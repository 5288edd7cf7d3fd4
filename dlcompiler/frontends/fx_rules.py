"""The table of rules: ATen operator -> a function `(importer, *args, **kwargs) -> result`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch

from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import TensorType

Rule = Callable[..., Any]

RULES: dict[str, Rule] = {}
TAKES_NARROW: set[str] = set()  # operators of RULES
TAKES_COMPLEX: set[str] = set()  # and of these


class NoRule(Exception):
    """Raised by a rule that does not cover these arguments; ATen runs the operator, and the message is the reason."""


def refuse_values(operator: str, values: Iterable[Any]) -> None:
    """Raise NoRule for numbers that the operator's rule does not take, as it has not said that it does: complex and narrow ones."""
    takes_complex, takes_narrow = operator in TAKES_COMPLEX, operator in TAKES_NARROW
    stack = list(values)
    while stack:
        value = stack.pop()
        if isinstance(value, list | tuple):
            stack.extend(value)
        elif isinstance(value, Node):
            if not takes_complex and isinstance(value.type, TensorType) and value.dtype.kind == "complex":
                raise NoRule("complex numbers")
            if not takes_narrow and isinstance(value.type, TensorType) and value.dtype.is_narrow:
                raise NoRule(f"nothing is computed with {value.dtype}")
        elif not takes_complex and (isinstance(value, complex) or (isinstance(value, torch.Tensor) and value.is_complex())):
            raise NoRule("complex numbers")


def rule(*names: str, takes_narrow: bool = False, takes_complex: bool = False) -> Callable[[Rule], Rule]:
    """Register a function for these operators: `rule("add.Tensor")` is for `aten.add.Tensor`; a name may say its namespace.

    `takes_narrow`: also of floats of 8 bits and fewer, with which kernels do not compute, `takes_complex`: of complex numbers;
    else such a call is ATen's.
    """

    def apply(function: Rule) -> Rule:
        for name in names:
            full = name if name.count(".") == 2 else f"aten.{name}"
            assert full not in RULES, full
            RULES[full] = function
            if takes_narrow:
                TAKES_NARROW.add(full)
            if takes_complex:
                TAKES_COMPLEX.add(full)
        return function

    return apply


# for operators that only move elements, make them or convert them
moving = partial(rule, takes_narrow=True)


def _fill_table() -> None:
    # each module registers its rules when imported
    from dlcompiler.frontends import (  # noqa: F401
        fx_attention,
        fx_compaction,
        fx_convolution,
        fx_create,
        fx_index,
        fx_layer,
        fx_memory,
        fx_order,
        fx_pointwise,
        fx_pool,
        fx_quantized,
        fx_random,
        fx_reduction,
        fx_scatter,
        fx_view,
    )


_fill_table()
