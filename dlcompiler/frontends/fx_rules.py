"""The table of rules: ATen operator -> a function `(importer, *args, **kwargs) -> result`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

Rule = Callable[..., Any]

RULES: dict[str, Rule] = {}
TAKES_NARROW: set[str] = set()  # operators of RULES
TAKES_COMPLEX: set[str] = set()  # and of these


class NoRule(Exception):
    """Raised by a rule that does not cover these arguments; ATen runs the operator, and the message is the reason."""


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
