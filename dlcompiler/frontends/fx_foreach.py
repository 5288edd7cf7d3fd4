"""Operators over lists of tensors, which torch's optimizers call on a GPU, as the same operator on each tensor.

    _foreach_add.List([a, b], [c, d], alpha=2) --> [add(a, c, alpha=2), add(b, d, alpha=2)]

What belongs together comes together again as a launch of several kernels (`passes.dataflow.bundle`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_PREFIX = "_foreach_"
# The fourth argument of these, a number or one for each tensor, is `value` of the operator on one.
_WITH_VALUE = ("addcmul", "addcdiv")


def _maximum(x: Tensor, other: Any) -> Tensor:
    return torch.maximum(x, other) if isinstance(other, Tensor) else torch.clamp_min(x, other)


def _minimum(x: Tensor, other: Any) -> Tensor:
    return torch.minimum(x, other) if isinstance(other, Tensor) else torch.clamp_max(x, other)


def _norm(x: Tensor, order: Any = 2, dtype: torch.dtype | None = None) -> Tensor:
    return torch.linalg.vector_norm(x, order, dtype=dtype)


def _copy(x: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    return source.to(x.dtype).expand_as(x)


def _with_value(name: str) -> Callable[..., Tensor]:
    scale = torch.mul if name == "addcmul" else torch.div

    def run(x: Tensor, first: Tensor, second: Tensor, value: Any = 1) -> Tensor:
        if isinstance(value, Tensor):
            return x + value * scale(first, second)
        return getattr(torch, name)(x, first, second, value=value)

    return run


_OWN: dict[str, Callable[..., Tensor]] = {
    "maximum": _maximum, "clamp_min": _maximum, "minimum": _minimum, "clamp_max": _minimum, "norm": _norm, "copy": _copy,
    "max": torch.amax, "zero": torch.zeros_like, **{name: _with_value(name) for name in _WITH_VALUE},
}  # fmt: skip


def foreach_decompositions() -> dict[Any, Callable[..., Any]]:
    """Operator -> what it is on each tensor, for every operator over lists that changes none of them in place."""
    table = {}
    for name in torch._C._dispatch_get_all_op_names():
        packet_name, _, overload = name.removeprefix("aten::").partition(".")
        single = packet_name.removeprefix(_PREFIX)
        function = _OWN.get(single) or getattr(torch, single, None)
        if not packet_name.startswith(_PREFIX) or function is None or overload.endswith("out"):
            continue
        operator = getattr(getattr(torch.ops.aten, packet_name), overload or "default")
        if not operator._schema.is_mutable:
            table[operator] = _on_each(operator, function)
    return table


def _on_each(operator: Any, function: Callable[..., Tensor]) -> Callable[..., list[Tensor]]:
    arguments = operator._schema.arguments
    # a list of tensors or numbers, or one tensor of numbers: one of them for each tensor
    listed = {k for k, a in enumerate(arguments) if isinstance(a.type, torch.ListType) or (a.name == "scalars")}

    def run(*given: Any, **named: Any) -> list[Tensor]:
        count = next(len(given[k]) for k in sorted(listed))
        return [function(*(x[n] if k in listed else x for k, x in enumerate(given)), **named) for n in range(count)]

    return run
