"""Rows that nobody reads, or that are zero, are not multiplied.

slice(linear(%x, %w))         -->  linear(slice(%x), %w)                       a loss on `logits[:, :-1]`
linear(pad(%x), %w)           -->  pad(linear(%x, %w))                         and its gradients
linear(pad(%g)^T, %x^T)       -->  linear(%g^T, slice(%x)^T)
"""

from __future__ import annotations

from dlcompiler.ir.expression import known
from dlcompiler.ir.graph import Node
from dlcompiler.passes.node.contractions import is_transpose
from dlcompiler.passes.rewrite import GraphRewriter, reshaped, rule


@rule("slice-update-pad", "slice_update", exact=True)
def slice_update_pad(b: GraphRewriter, node: Node) -> Node | None:
    """slice_update(A, x) side by side, A one number everywhere --> pad(x) with that number"""
    target, source = node.inputs
    value = target.inputs[0] if target.op.name == "expand" else target
    if value.op.name != "constant" or value.attributes["value"].size != 1 or any(s != 1 for s in node.attributes["steps"]):
        return None
    low = tuple(node.attributes["starts"])
    high = tuple(size - start - count for size, start, count in zip(node.shape, low, source.shape))
    number = value.attributes["value"].item()
    if not all(isinstance(p, int) for p in (*low, *high)) or number != number:
        return None
    return b.pad(source, low=low, high=high, value=number)


@rule("slice-linear", "slice", exact=False)
def slice_linear(b: GraphRewriter, node: Node) -> Node | None:
    """slice(linear(x, w)) of whole rows, read here only --> linear(slice(x), w)"""
    (product,) = node.inputs
    if product.op.name != "linear" or not b.is_used_once(product) or node.shape[-1] != product.shape[-1]:
        return None
    x, *rest = product.inputs
    limits = (*node.attributes["limits"][:-1], x.shape[-1])
    rows = b.slice(x, starts=node.attributes["starts"], limits=limits, steps=node.attributes["steps"])
    return b.linear(rows, *rest)


@rule("linear-pad", "linear", exact=False)
def linear_pad(b: GraphRewriter, node: Node) -> Node | None:
    """linear(pad(x), w) with more rows of zeros, of finite w --> pad(linear(x, w))"""
    x, *rest = node.inputs
    if len(rest) != 1 or not _adds_zero_rows(x):
        return None
    return b.pad(b.linear(x.inputs[0], *rest), **x.attributes)


@rule("padded-sum", "linear", exact=False)
def padded_sum(b: GraphRewriter, node: Node) -> Node | None:
    """linear(permute(pad(g)), permute(x)) with more rows of zeros, of finite x --> linear(permute(g), permute(slice(x)))

    Rows may be flattened after the padding.
    """
    if len(node.inputs) != 2 or not all(is_transpose(i) for i in node.inputs):
        return None
    sides = [i.inputs[0] for i in node.inputs]
    for k, side in enumerate(sides):
        padded = side.inputs[0] if side.op.name == "reshape" else side
        if not _adds_zero_rows(padded) or padded.shape[-1] != side.shape[-1]:
            continue
        low, high = padded.attributes["low"], padded.attributes["high"]
        other = sides[1 - k]
        whole = reshaped(b, other, (*padded.shape[:-1], other.shape[-1]))
        limits = (*(size - after for size, after in zip(padded.shape[:-1], high)), other.shape[-1])
        kept = b.slice(whole, starts=low, limits=limits, steps=(1,) * len(low))
        rows = known(padded.inputs[0].tensor.numel) // known(padded.shape[-1])
        both = [_flat(b, padded.inputs[0], rows), _flat(b, kept, rows)]
        return b.linear(*(b.permute(each, dims=(1, 0)) for each in (both if k == 0 else both[::-1])))
    return None


def _adds_zero_rows(node: Node) -> bool:
    """Whether a value is another with rows of zeros around it."""
    if node.op.name != "pad" or node.attributes["value"] != 0 or not isinstance(node.tensor.numel, int) or not node.tensor.numel:
        return False
    return node.tensor.rank > 1 and node.attributes["low"][-1] == node.attributes["high"][-1] == 0


def _flat(b: GraphRewriter, x: Node, rows: int) -> Node:
    return x if x.tensor.rank == 2 else b.reshape(x, shape=(rows, x.shape[-1]))


RULES = (slice_update_pad, slice_linear, linear_pad, padded_sum)
