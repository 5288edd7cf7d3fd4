"""Constant folding: what depends on constants alone is computed now.

    %c = constant() {2.0}; %1 = sqrt(%c); %2 = mul(%x, %1)  -->  %1 = constant() {1.41421}; %2 = mul(%x, %1)

Folding never makes a model noticeably larger: a result may be as large as the constants that nothing else needs any more, or
small (`SMALL_BYTES`, and all of those together `TOTAL_GROWTH`). So an `expand` to 10^12 elements stays an `expand`.
Transposes and slices of large constants stay too: read as views they cost nothing, and the constant keeps sharing the memory of
the parameter or file that it came from.
"""

from __future__ import annotations

import math

import numpy as np
from dlcompiler.ir.graph import Graph, Node
from dlcompiler.ir.ops import Trait
from dlcompiler.ir.types import TensorType
from dlcompiler.passes.context import Context
from dlcompiler.passes.rewrite import GraphRewriter

SMALL_BYTES = 1024
TOTAL_GROWTH = 64 * 1024
# Views of larger constants are left to the reader's index arithmetic.
VIEW_BYTES = 64 * 1024
# Multiplications, or elements visited, that one fold may cost.
MAXIMUM_WORK = 1 << 28


def fold_constants(graph: Graph, context: Context) -> Graph:
    """The graph with every foldable node replaced by a constant. Results keep memory of their own, so they are not folded."""
    if not any(_is_candidate(n) for n in graph.nodes):
        return graph
    rewriter = GraphRewriter(graph)
    growth = 0
    while (node := rewriter.next()) is not None:
        if not _is_candidate(node) or node in rewriter.escapes:
            rewriter.keep(node)
            continue
        more = _growth(rewriter, node)
        if more > 0 and (node.tensor.bytes > SMALL_BYTES or growth + more > TOTAL_GROWTH):
            rewriter.keep(node)
            continue
        if not context.spend("fold", node.name):
            rewriter.keep(node)
            continue
        growth += more
        rewriter.replace(node, rewriter.constant(_evaluate(node), name=node.name))
    return rewriter.finish()


def _is_candidate(node: Node) -> bool:
    if not isinstance(node.type, TensorType) or not node.type.is_static or node.op.evaluate is None:
        return False
    if node.op.name == "dim":
        return isinstance(node.attributes["value"], int)
    if not node.inputs or any(i.op.name != "constant" for i in node.inputs):
        return False
    if node.has(Trait.IMPURE) or node.has(Trait.EXTERN) or node.has(Trait.LIBRARY) or _work(node) > MAXIMUM_WORK:
        return False
    is_free = node.op.name == "reshape" and node.inputs[0].attributes["value"].flags.c_contiguous
    return is_free or not node.has(Trait.VIEW) or node.tensor.bytes <= VIEW_BYTES


def _work(node: Node) -> int:
    """Elements visited, or products summed."""
    elements = max(math.prod(node.shape), *(i.attributes["value"].size for i in node.inputs))
    if not node.has(Trait.CONTRACTION):
        return elements
    weight = node.inputs[1].attributes["value"]
    return math.prod(node.shape) * max(1, weight.size // max(1, min(weight.shape)))


def _growth(rewriter: GraphRewriter, node: Node) -> int:
    """Bytes that the model's constants grow by if `node` becomes one; operands that only it reads go."""
    freed = sum(i.attributes["value"].nbytes for i in set(node.inputs) if rewriter.uses[i] == node.inputs.count(i))
    return node.tensor.bytes - freed  # type: ignore[operator]


def _evaluate(node: Node) -> np.ndarray:
    assert node.op.evaluate is not None
    with np.errstate(all="ignore"):
        value = node.op.evaluate([i.attributes["value"] for i in node.inputs], node.attributes)
    value = np.asarray(value)
    # a view of a broadcast or transposed constant would keep the whole operand alive, and its layout
    return value if value.flags.c_contiguous and node.op.name == "reshape" else np.array(value, order="C")
