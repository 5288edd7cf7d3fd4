"""A large product that is made and used row by row is made a few rows at a time, and never held whole.

    %logits = linear(%x, %w)                          for each part of the rows of %x:
    %loss = ... log_softmax(%logits) ...                  %logits.k = linear(%x.k, %w); %loss.k = ...; %g.k = ...
    %g = ... exp(...) ...                      -->        %dx.k = linear(%g.k, %w^T); %dw = add(%dw, linear(%g.k^T, %x.k^T))
    %dx = linear(%g, %w^T)                            %loss = concat(%loss.k ...); %dx = concat(%dx.k ...)
    %dw = linear(%g^T, %x^T)

This is the layer of a language model that chooses among a whole vocabulary, with its loss; if both passes are in the graph, the
gradient of a part follows while its logits are at hand, so that nothing is computed twice. Which ops lie in between does not
matter: they must treat each row by itself, or add rows up (`rows`); so a bias, ignored targets, smoothed labels, a weight for
each row and any other loss are taken. Logits that something else reads as a whole are left whole. (After Hsu et al., Liger
Kernel, 2024.)

The parts are ops like any others: fusion, planning and every target treat them as such. It pays where rows are many: what sums
over all rows (`%dw`) cost to keep and to read again for each part must be less than what is saved. Approximate: sums are made
in another order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dlcompiler.ir.control import has_effect, needed
from dlcompiler.ir.expression import known
from dlcompiler.ir.graph import Graph, Node, Rewriter
from dlcompiler.ir.types import TensorType, compute_dtype
from dlcompiler.passes.block.rows import Rows, rows_of, rows_of_made
from dlcompiler.passes.context import Context
from dlcompiler.passes.rewrite import reshaped

# Smaller products stay in the last cache, or nearly.
LARGE_BYTES = 32 << 20
# How many times wider than what it is made of a product must be.
WIDE = 4
# Bounds compile time.
MOST_PARTS = 16
# Rows of a part are a multiple of this, so that tiles fill up.
ROUND_ROWS = 16


@dataclass(frozen=True)
class _Region:
    """`product`, and all that works on its rows. `nodes`: in order, with where rows lie."""

    product: Node
    nodes: dict[Node, Rows]


def make_rows_in_parts(graph: Graph, context: Context) -> Graph:
    """The graph with large row-wise products in parts; the same object if there are none."""
    if not context.allows_approximate:
        return graph
    current = _flattened(graph)
    changed = False
    while True:
        found = next((r for node in current.nodes if (r := _region(current, node, context)) is not None), None)
        if found is None or not context.spend("rows in parts", found.product.name):
            return current if changed else graph
        current, changed = _Parts(current, found, context.target.rows_at_a_time).run(), True


def _bytes(node: Node) -> int:
    return known(node.tensor.numel) * compute_dtype(node.dtype).bits // 8 if node.tensor.is_static else 0


def _flattened(graph: Graph) -> Graph:
    """The graph with large linear layers, or their gradients, of [..., K] over rows: linear(x) --> reshape(linear(reshape(x)))"""
    rewriter = Rewriter(graph)
    for node in graph.nodes:
        rewriter.location = node.location
        is_large = node.op.name == "linear" and max(_bytes(node), _bytes(node.inputs[0])) >= LARGE_BYTES
        if is_large and node.tensor.rank > 2:
            x, *rest = (rewriter.new[i] for i in node.inputs)
            rows = rewriter.linear(reshaped(rewriter, x, (known(x.tensor.numel) // x.shape[-1], x.shape[-1])), *rest)
            rewriter.replace(node, rewriter.reshape(rows, shape=node.shape, name=f"{node.name}.rows"))
        elif node.op.name == "reshape" and rewriter.new[node.inputs[0]] is not node.inputs[0]:
            rewriter.replace(node, reshaped(rewriter, rewriter.new[node.inputs[0]], node.shape))
        else:
            rewriter.keep(node)
    flat = rewriter.finish_like()
    # a reshape that nobody reads any more would look like a reader of whole rows
    alive = needed((*flat.results, *(n for n in flat.nodes if has_effect(n))), flat.nodes)
    return flat if flat is graph else flat.replace(nodes=tuple(n for n in flat.nodes if n in alive))


def _region(graph: Graph, product: Node, context: Context) -> _Region | None:
    """What can be made in parts with this product, if that is possible and pays."""
    if product.op.name != "linear" or product.tensor.rank != 2 or _bytes(product) < LARGE_BYTES:
        return None
    count, width = product.tensor.known_shape
    depth, step = product.inputs[0].shape[1], context.target.rows_at_a_time
    if count < 2 * step or width < WIDE * known(depth):
        return None
    nodes = _work_on_rows(graph, product)
    if nodes is None:
        return None
    nodes = _with_large_operands(graph, nodes, product)
    # Sums over all rows are as large as the weight. Until the last part is done two of them are there, and two copies of the
    # weight in panels: 4 * depth rows' worth, against two values (the logits and their gradient) for all rows but a part's.
    has_sums = any(rows.axis is None and known(node.tensor.numel) >= width * known(depth) for node, rows in nodes.items())
    return None if has_sums and count < step + 3 * known(depth) else _Region(product, nodes)


def _is_large(node: Node, product: Node) -> bool:
    """Whether a value has an element for each element of the product, or nearly."""
    return node.tensor.is_static and 2 * known(node.tensor.numel) >= known(product.tensor.numel)


def _work_on_rows(graph: Graph, product: Node) -> dict[Node, Rows] | None:
    """Every node that reads large values of the product's rows, and what lies between them; None if one needs all rows."""
    count = known(product.shape[0])
    at = {product: 0}
    found = {product: Rows(0, (0, *(None for _ in product.inputs[1:])))}
    outside: set[Node] = set()  # what depends on the product, and is not of the region
    results = graph.results
    for node in graph.nodes:
        if not any(i in found or i in outside for i in node.inputs):
            continue
        reads_large = any(i in at and _is_large(i, product) for i in node.inputs)
        late = any(i in outside or (i in found and found[i].axis is None) for i in node.inputs)
        rows = None if late else rows_of(node, at, count)
        if rows is None:
            if reads_large:
                return None
            outside.add(node)
            continue
        found[node] = rows
        if rows.axis is not None:
            at[node] = rows.axis
    if any(node in results and _is_large(node, product) for node in at):
        return None
    return _pruned(graph, found, product)


def _pruned(graph: Graph, found: dict[Node, Rows], product: Node) -> dict[Node, Rows]:
    """Without what only small values come to."""
    kept: set[Node] = set()
    for node in reversed(found):
        is_needed = _is_large(node, product) or any(i in found and _is_large(i, product) for i in node.inputs)
        if is_needed or any(user in kept for user in graph.users[node]):
            kept.add(node)
    return {node: rows for node, rows in found.items() if node in kept}


def _with_large_operands(graph: Graph, found: dict[Node, Rows], product: Node) -> dict[Node, Rows]:
    """With large values that only the region reads, and what is computed of each of their rows: one-hot targets, their sums."""
    count = known(product.shape[0])
    whole = dict(found)
    for node in reversed(graph.nodes):
        users = graph.users[node]
        if node in found or node in graph.results or not users or any(u not in whole for u in users):
            continue
        if not any(isinstance(n.type, TensorType) and _is_large(n, product) for n in (node, *node.inputs)):
            continue
        axes = {whole[u].operands[k] for u in users for k, i in enumerate(u.inputs) if i is node}
        axis = axes.pop()
        rows = None if axes or axis is None else rows_of_made(node, axis, count)
        if rows is not None:
            whole[node] = rows
    return {node: whole[node] for node in graph.nodes if node in whole}


class _Parts(Rewriter):
    """Writes the graph anew, with a region in parts."""

    def __init__(self, graph: Graph, region: _Region, step: int) -> None:
        super().__init__(graph)
        self.region = region
        self.count = known(region.product.shape[0])
        parts = min(MOST_PARTS, self.count // step)
        self.step = -(-self.count // (parts * ROUND_ROWS)) * ROUND_ROWS

    def run(self) -> Graph:
        """What does not depend on the region, the region, the rest."""
        nodes = self.region.nodes
        late: set[Node] = set()
        for node in self.graph.nodes:
            if node in nodes or any(i in nodes or i in late for i in node.inputs):
                late.add(node)
            else:
                self.keep(node)
        self._write_parts()
        for node in self.graph.nodes:
            if node in late and node not in nodes:
                self.keep(node)
        self.changed = True
        return self.finish_like()

    def _write_parts(self) -> None:
        nodes = self.region.nodes
        results = self.graph.results
        shown = [n for n in nodes if n in results or any(user not in nodes for user in self.graph.users[n])]
        pieces: dict[Node, list[Node]] = {n: [] for n in shown}
        for low in range(0, self.count, self.step):
            made = self._part(low, min(low + self.step, self.count))
            for node in shown:
                self._add(pieces[node], made[node], nodes[node])
        for node in shown:
            self.location = node.location
            self.replace(node, self._joined(node, pieces[node]))

    def _add(self, pieces: list[Node], made: Node, rows: Rows) -> None:
        """One more piece: behind the others, or added to their sum, which is kept in a wide type."""
        if rows.axis is not None:
            pieces.append(made)
            return
        wide = compute_dtype(made.dtype)
        value = made if made.dtype is wide else self.cast(made, dtype=wide.name)
        pieces[:] = [self.add(pieces[0], value) if pieces else value]

    def _joined(self, node: Node, pieces: Sequence[Node]) -> Node:
        rows = self.region.nodes[node]
        if rows.axis is None:
            (total,) = pieces
            return total if total.dtype is node.dtype else self.cast(total, dtype=node.dtype.name)
        # in memory of their own: each reader would choose between the pieces otherwise
        return self.copy(self.concat(*pieces, axis=rows.axis), name=f"{node.name}.whole")

    def _part(self, low: int, high: int) -> dict[Node, Node]:
        """The region for rows [low, high)."""
        made: dict[Node, Node] = {}
        cuts: dict[tuple[Node, int], Node] = {}
        for node, rows in self.region.nodes.items():
            self.location = node.location
            operands = []
            for operand, axis in zip(node.inputs, rows.operands):
                if operand in made:
                    operands.append(made[operand])
                elif axis is None:
                    operands.append(self.new[operand])
                else:
                    if (operand, axis) not in cuts:
                        cuts[operand, axis] = self._cut(self.new[operand], axis, low, high)
                    operands.append(cuts[operand, axis])
            attributes = dict(node.attributes)
            if "shape" in attributes and rows.axis is not None:
                shape = attributes["shape"]
                attributes["shape"] = (*shape[: rows.axis], high - low, *shape[rows.axis + 1 :])
            made[node] = self(node.op.name, *operands, name=f"{node.name}.rows{low}", **attributes)
        return made

    def _cut(self, node: Node, axis: int, low: int, high: int) -> Node:
        starts, limits = [0] * node.tensor.rank, list(node.shape)
        starts[axis], limits[axis] = low, high
        return self.slice(node, starts=tuple(starts), limits=tuple(limits), steps=(1,) * node.tensor.rank)
