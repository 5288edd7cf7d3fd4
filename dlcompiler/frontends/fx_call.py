"""`aten.call`: an operator that nobody mapped, as a node. `runtime/aten.py` runs one.

The node's attribute `arguments` is a template `{"args": (...), "kwargs": {...}}` of plain data. Numbers, strings, None and tuples
stand for themselves; everything else is a dictionary of one entry:

    {"operand": k}     operand k                          {"number": k}     the Python number in 0-d operand k
    {"dim": e}         a size                             {"dtype": "f32"}  torch.float32
    {"memory_format": "channels_last"}                    {"layout": "strided"}
    {"device": "cpu"}                                     {"complex": (re, im)}
    {"written": k}     a copy of operand k, which the operator writes to; it is a result of the call, behind the operator's own
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from dlcompiler.frontends.fx_types import WeakNumber, dtype_from_torch
from dlcompiler.ir.errors import UnsupportedError
from dlcompiler.ir.expression import Expression
from dlcompiler.ir.graph import Node

# Operators whose results torch describes, for half precision, with other sizes or dtypes than it then makes, and those of
# backward passes that read them.
MISDESCRIBED_IN_HALF = (
    "aten._embedding_bag.default", "aten._embedding_bag_forward_only.default", "aten._embedding_bag_backward.default",
    "aten._embedding_bag_dense_backward.default", "aten._embedding_bag_per_sample_weights_backward.default",
    "aten._batch_norm_with_update_functional.default", "aten.batch_norm_backward.default",
)  # fmt: skip


def refuse_misdescribed(target: str, args: Sequence[Any]) -> None:
    """Raises UnsupportedError for a call that cannot be planned, since torch does not say what is made."""
    if target in MISDESCRIBED_IN_HALF and any(isinstance(a, Node) and a.dtype.name in ("f16", "bf16") for a in args):
        raise UnsupportedError(f"{target} in half precision, whose results torch misdescribes", items=(target,))


def sees_strides(operator: Any) -> bool:
    """Whether what an operator gives may depend on how its operands lie in memory, so that they must lie as in eager.

    ATen's own operators compute with values, but for views, which need memory that they can show; those of others may do
    anything, unless their author has said otherwise by a tag.
    """
    if not isinstance(operator, torch._ops.OpOverload) or torch.Tag.flexible_layout in operator.tags:
        return False
    return operator.is_view or operator.namespace not in ("aten", "prims")


def make_template(
    args: Sequence[Any], kwargs: Mapping[str, Any], written: Collection[str] = ()
) -> tuple[tuple[Node, ...], dict[str, Any]]:
    """(operands, template) of a call, which writes to the named arguments.

    Raises UnsupportedError for an argument that is not data (a module, a function).
    """
    operands: list[Node] = []

    def entry(node: Node, kind: str) -> dict[str, int]:
        if node not in operands:
            operands.append(node)
        return {kind: operands.index(node)}

    def encode(value: Any, kind: str = "operand") -> Any:
        match value:
            case Node():
                return entry(value, kind)
            case WeakNumber():
                return entry(value.node, "number")
            case Expression():
                return {"dim": value}
            case None | bool() | int() | float() | str():
                return value
            case complex():
                return {"complex": (value.real, value.imag)}
            case list() | tuple():
                return tuple(encode(v, kind) for v in value)
            case torch.dtype():
                return {"dtype": dtype_from_torch(value).name}
            case torch.device():
                return {"device": str(value)}
            case torch.memory_format():
                return {"memory_format": str(value).removeprefix("torch.")}
            case torch.layout():
                return {"layout": str(value).removeprefix("torch.")}
        raise UnsupportedError(f"an argument of type {type(value).__name__}", items=(type(value).__name__,))

    named = {name: encode(v, "written" if name in written else "operand") for name, v in kwargs.items()}
    template = {"args": encode(args), "kwargs": named}
    return tuple(operands), template
