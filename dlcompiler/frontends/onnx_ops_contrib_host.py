"""Operators of `com.microsoft` that the host runs: texts, and what has no kernel."""

from __future__ import annotations

from onnx import helper

from dlcompiler.frontends.onnx_ops_contrib import MICROSOFT
from dlcompiler.frontends.onnx_registry import Call, operator
from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import HostType, TensorType, i64


def _by_host(call: Call, *types: TensorType | HostType) -> tuple[Node, ...]:
    node = helper.make_node(
        call.op_type, [f"x{k}" if x is not None else "" for k, x in enumerate(call.inputs)],
        [f"y{k}" for k in range(len(types))], domain=MICROSOFT, **call.attributes,
    )  # fmt: skip
    return call.host(node, 1, call.inputs, types, "")


@operator("Tokenizer", domain=MICROSOFT)
def tokenizer(call: Call) -> tuple[Node, ...]:
    """Texts [..., texts] --> [..., texts, most tokens of one]"""
    kind = call[0].type
    rank = kind.name.count(",") + 1 if isinstance(kind, HostType) and kind.name.startswith("tensor(string)[") else 0
    if not 1 <= rank <= 2:
        call.unsupported(f"an input {kind}")
    return _by_host(call, HostType(f"tensor(string)[{', '.join('_' * (rank + 1))}]"))


@operator("Inverse", domain=MICROSOFT)
def inverse(call: Call) -> tuple[Node, ...]:
    return _by_host(call, call.require_rank(0, 2).tensor)


@operator("Unique", domain=MICROSOFT)
def unique(call: Call) -> tuple[Node, ...]:
    """Distinct numbers in the order in which they come, which each is, and how many there are of each."""
    x = call.require_rank(0, 1, 1)
    found = (call.fresh("size"),)
    return _by_host(call, TensorType(x.dtype, found), TensorType(i64, x.shape), TensorType(i64, found))
