"""Constant folding: what depends on constants alone is computed now.

    %c = constant() {2.0}; %1 = sqrt(%c); %2 = mul(%x, %1)  -->  %1 = constant() {1.41421}; %2 = mul(%x, %1)

Folding never makes a model noticeably larger: a result may be as large as the constants that nothing else needs any more, or
small (`SMALL_BYTES`, and all of those together `TOTAL_GROWTH`). So an `expand` to 10^12 elements stays an `expand`.
Transposes and slices of large constants stay too: read as views they cost nothing, and the constant keeps sharing the memory of
the parameter or file that it came from. What index ranges make stays arithmetic, unless it is the same number everywhere:

    %1 = iota(){size=1024}; %2 = ge(%1, 0)  -->  %2.constant = constant() {true}; %2 = expand(%2.constant)
"""

from __future__ import annotations

import math

import numpy as np
from dlcompiler.ir.expression import known
from dlcompiler.ir.graph import Graph, Node
from dlcompiler.ir.ops import Trait
from dlcompiler.ir.types import TensorType
from dlcompiler.passes.context import Context
from dlcompiler.passes.known import KnownValues, is_same_everywhere
from dlcompiler.passes.rewrite import GraphRewriter

SMALL_BYTES = 1024
TOTAL_GROWTH = 64 * 1024
# Views of larger constants are left to the reader's index arithmetic.
VIEW_BYTES = 64 * 1024
# Multiplications, or elements visited, that one fold may cost.
MAXIMUM_WORK = 1 << 28


def fold_constants(graph: Graph, context: Context) -> Graph:
    """The graph with every foldable node replaced by a constant. Results keep memory of their own, so they are not folded."""
    if not any(_is_candidate(n) or n.op.name == "iota" for n in graph.nodes):
        return graph
    rewriter = GraphRewriter(graph)
    growth = 0
    while (node := rewriter.next()) is not None:
        value: Node | None = None
        if node not in rewriter.escapes:
            more = _growth(rewriter, node) if _is_candidate(node) else math.inf
            if more <= 0 or (more < math.inf and known(node.tensor.bytes) <= SMALL_BYTES and growth + more <= TOTAL_GROWTH):
                if context.spend("fold", node.name):
                    growth += int(more)
                    value = rewriter.constant(_evaluate(node), name=node.name)
            elif (array := _uniform(rewriter.known, node)) is not None and context.spend("fold-uniform", node.name):
                value = rewriter.constant(array.reshape(-1)[0], name=node.name)
                value = rewriter.expand(value, shape=node.shape) if node.shape else value
        if value is None:
            rewriter.keep(node)
        else:
            rewriter.replace(node, value)
    return rewriter.finish_like()


def _uniform(known: KnownValues, node: Node) -> np.ndarray | None:
    """The value of a computed node whose elements are all the same, which index ranges may have made."""
    if node.has(Trait.VIEW) or not node.inputs or not known.is_known(node):
        return None
    value = known.of(node)
    return value if value is not None and is_same_everywhere(value) else None


def _is_candidate(node: Node) -> bool:
    if not isinstance(node.type, TensorType) or not node.type.is_static or node.op.evaluate is None:
        return False
    if node.op.name == "dim":
        return isinstance(node.attributes["value"], int)
    if node.op.name == "iota":
        return node.attributes["size"] == 1
    if not node.inputs or any(i.op.name != "constant" for i in node.inputs):
        return False
    if node.has(Trait.IMPURE) or node.has(Trait.EXTERN) or node.has(Trait.LIBRARY) or _work(node) > MAXIMUM_WORK:
        return False
    is_free = node.op.name == "reshape" and node.inputs[0].attributes["value"].flags.c_contiguous
    moves = node.has(Trait.VIEW) or node.has(Trait.INDEXING)
    return is_free or not moves or known(node.tensor.bytes) <= VIEW_BYTES


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
    return known(node.tensor.bytes) - freed


def _evaluate(node: Node) -> np.ndarray:
    assert node.op.evaluate is not None
    with np.errstate(all="ignore"):
        value = node.op.evaluate([i.attributes["value"] for i in node.inputs], node.attributes)
    value = np.asarray(value)
    # a view of a broadcast or transposed constant would keep the whole operand alive, and its layout
    return value if value.flags.c_contiguous and node.op.name == "reshape" else np.array(value, order="C")
