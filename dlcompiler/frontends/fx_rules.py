"""The table of rules: ATen operator -> a function `(importer, *args, **kwargs) -> result`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Rule = Callable[..., Any]

RULES: dict[str, Rule] = {}


class NoRule(Exception):
    """Raised by a rule that does not cover these arguments; ATen runs the operator, and the message is the reason."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function for these operators: `rule("add.Tensor")` is for `aten.add.Tensor`; a name may say its namespace."""

    def apply(function: Rule) -> Rule:
        for name in names:
            full = name if name.count(".") == 2 else f"aten.{name}"
            assert full not in RULES, full
            RULES[full] = function
        return function

    return apply


# of tables of other subjects, the rules that only move elements, make them or convert them
_MOVING = frozenset(f"aten.{name}" for name in (
    "clone.default", "detach.default", "alias.default", "lift_fresh_copy.default", "lift_fresh.default", "contiguous.default",
    "_to_copy.default", "to.dtype", "copy.default", "copy_.default", "where.self", "full.default", "full_like.default",
    "zeros.default", "zeros_like.default", "ones.default", "ones_like.default", "new_zeros.default", "new_full.default",
    "scalar_tensor.default", "_scaled_mm.default",
)) | {"prims.convert_element_type.default", "prims.device_put.default"}  # fmt: skip


def computes(target: str) -> bool:
    """Whether an operator's rule computes with elements, which must be numbers that kernels compute with."""
    subject = RULES[target].__module__.rpartition(".")[2]
    return target not in _MOVING and subject not in ("fx_view", "fx_index")


def _fill_table() -> None:
    # each module registers its rules when imported
    from dlcompiler.frontends import (  # noqa: F401
        fx_attention,
        fx_convolution,
        fx_create,
        fx_index,
        fx_layer,
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
