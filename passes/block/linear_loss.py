"""A loss over a large vocabulary without the logits in memory.

    %logs = log_softmax(linear(%x, %w))            %sum = logsumexp(linear_logsumexp(%x, %w))
    %picked = gather(%logs, %target)          -->  %picked = sum(%x * %w[%target]) - %sum
    ... exp(%logs) ...                             ... exp(linear(%x, %w) - %sum) ...

Where only picked elements are read the product is never stored at all. Where a backward pass reads the rest, the product is made
again there, and what follows it is done tile by tile in the same kernel: only the gradient of the logits is stored, a part of the
rows at a time (`row_chunks`). That is a third more multiplications against logits written and read several times, so it is
done where the target multiplies so quickly that they cost less. Approximate: sums are made in another order, and logits of half
precision are not rounded. (After Wijmans et al., Cut Your Losses in Large-Vocabulary Language Models, 2024.)
"""

from __future__ import annotations

from dataclasses import dataclass

from dlcompiler.ir.expression import known
from dlcompiler.ir.graph import Graph, Node, Rewriter
from dlcompiler.ir.types import compute_dtype, f32
from dlcompiler.passes.block.row_chunks import LARGE_BYTES, WIDE
from dlcompiler.passes.context import Context

# Rows that one program takes, about, and the fewest columns of a part: see `codegen.gpu.linear_logsumexp`.
PROGRAM_ROWS = 128
FEWEST_COLUMNS = 1024


@dataclass(frozen=True)
class _Loss:
    """`logs` = log_softmax of casts and reshapes of `product`; `picks` are gathers of one element of each row of it."""

    product: Node
    logs: Node
    picks: tuple[Node, ...]
    is_read_otherwise: bool


def store_no_logits(graph: Graph, context: Context) -> Graph:
    """The graph with such losses rewritten; the same object if there are none."""
    if not context.allows_approximate or "linear_logsumexp" not in context.target.library_ops:
        return graph
    losses = {loss.logs: loss for node in graph.nodes if (loss := _loss(graph, node, context)) is not None}
    if not losses:
        return graph
    picks = {pick: loss for loss in losses.values() for pick in loss.picks}
    rewriter = Rewriter(graph)
    sums: dict[Node, Node] = {}
    for node in graph.nodes:
        rewriter.location = node.location
        loss = losses.get(node)
        if loss is not None and context.spend("logits", node.name):
            sums[node] = _sums(rewriter, loss, context)
            if loss.is_read_otherwise:
                rewriter.replace(node, _without_sums(rewriter, rewriter.new[node.inputs[0]], sums[node], node))
            else:
                rewriter.keep(node)  # read by nobody
        elif node in picks and picks[node].logs in sums:
            rewriter.replace(node, _picked(rewriter, node, picks[node], sums[picks[node].logs]))
        else:
            rewriter.keep(node)
    return rewriter.finish_like()


def _loss(graph: Graph, logs: Node, context: Context) -> _Loss | None:
    if logs.op.name != "log_softmax" or logs.attributes["axis"] not in (-1, logs.tensor.rank - 1) or logs in graph.results:
        return None
    product = logs.inputs[0]
    while _keeps_rows(product):
        if product in graph.results or len(graph.users[product]) != 1:
            return None
        product = product.inputs[0]
    is_alone = product not in graph.results and len(graph.users[product]) == 1
    if product.op.name != "linear" or not is_alone or not product.tensor.is_static:
        return None
    width, depth = product.tensor.known_shape[-1], known(product.inputs[0].shape[-1])
    if known(product.tensor.numel) * compute_dtype(product.dtype).bytes < LARGE_BYTES or width < WIDE * depth:
        return None
    users = graph.users[logs]
    picks = tuple(u for u in users if _picks_one(u, logs))
    is_read_otherwise = len(picks) < len(users)
    if is_read_otherwise and not context.target.multiplies_quickly(product.dtype):
        return None
    return _Loss(product, logs, picks, is_read_otherwise)


def _keeps_rows(node: Node) -> bool:
    """Whether a value is another's rows in another type or grouping."""
    if node.op.name == "reshape":
        return node.tensor.rank > 0 and node.shape[-1] == node.inputs[0].shape[-1]
    return node.op.name == "cast" and node.dtype is f32 and node.inputs[0].dtype.is_float and node.inputs[0].dtype.bits <= 32


def _picks_one(user: Node, logs: Node) -> bool:
    rank = logs.tensor.rank
    return (
        user.op.name == "gather" and user.inputs[0] is logs and user.attributes["axis"] in (-1, rank - 1)
        and user.shape == (*logs.shape[:-1], 1)
    )  # fmt: skip


def _rows(b: Rewriter, x: Node) -> Node:
    return x if x.tensor.rank == 2 else b.reshape(x, shape=(known(x.tensor.numel) // known(x.shape[-1]), x.shape[-1]))


def _sums(b: Rewriter, loss: _Loss, context: Context) -> Node:
    """The logarithm of the sum of exponentials of each row: [N]."""
    x, *rest = (b.new[i] for i in loss.product.inputs)
    x = _rows(b, x)
    count, columns = known(x.shape[0]), known(rest[0].shape[0])
    parts = 1
    while parts * -(-count // PROGRAM_ROWS) < context.target.parallel_rows and columns // (2 * parts) >= FEWEST_COLUMNS:
        parts *= 2
    found = b.linear_logsumexp(x, *rest, parts=parts)
    return b.reshape(found, shape=(count,)) if parts == 1 else b.logsumexp(found, axes=(0,), keepdims=False)


def _as(b: Rewriter, x: Node, like: Node) -> Node:
    return x if x.dtype is like.dtype else b.cast(x, dtype=like.dtype.name)


def _without_sums(b: Rewriter, logits: Node, sums: Node, logs: Node) -> Node:
    wide = logits if logits.dtype is sums.dtype else b.cast(logits, dtype=sums.dtype.name)
    return _as(b, b.sub(wide, b.reshape(sums, shape=(*logs.shape[:-1], 1))), logs)


def _picked(b: Rewriter, pick: Node, loss: _Loss, sums: Node) -> Node:
    """One logit of each row, less the row's sum."""
    x, w, *bias = (b.new[i] for i in loss.product.inputs)
    x, at = _rows(b, x), b.reshape(b.new[pick.inputs[1]], shape=(known(sums.shape[0]),))
    both = (v if v.dtype is sums.dtype else b.cast(v, dtype=sums.dtype.name) for v in (x, b.index(w, at, axes=(0,))))
    logit = b.reduce_sum(b.mul(*both), axes=(1,), keepdims=False)
    if bias:
        own = b.index(bias[0], at, axes=(0,))
        logit = b.add(logit, own if own.dtype is sums.dtype else b.cast(own, dtype=sums.dtype.name))
    return _as(b, b.reshape(b.sub(logit, sums), shape=pick.shape), pick)
