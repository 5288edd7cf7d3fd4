"""Lowering: a group of graph nodes becomes one kernel, or a sentence why not.

    %1 = reduce_max(%x); %2 = sub(%x, %1); %3 = exp(%2)  -->  one Kernel over axes i, j with a load, a reduce and a store

The kernel is built by pulling each output's elements through the group (see `ir.kernel_builder`), so it computes the right
thing whatever the group is. What may be wrong is its cost; `Refusal` says when fusing would compute an element more than once,
leave an output half written, or mix reductions that cannot share a loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from dlcompiler.ir import kernel as K
from dlcompiler.ir.expression import Dim, is_non_negative, linear_coefficients, product, symbols
from dlcompiler.ir.graph import Node
from dlcompiler.ir.kernel_builder import KernelBuilder, Refusal
from dlcompiler.ir.ops import Trait
from dlcompiler.ir.ops.view import reshape_index
from dlcompiler.ir.types import contiguous_strides

MAXIMUM_VALUES = 400
MAXIMUM_BUFFERS = 40


def lower_group(
    name: str,
    nodes: Sequence[Node],
    outputs: Sequence[Node],
    inlined: Callable[[Node], bool],
    strides_of: Callable[[Node], tuple[Dim, ...]] | None = None,
    cost_matters: bool = True,
    counts_masked: bool = True,
) -> tuple[K.Kernel, tuple[Node, ...], tuple[Node, ...]]:
    """The kernel that computes `outputs`, with the graph nodes that its in and out buffers stand for, in buffer order.

    nodes     members, in topological order: computed here
    inlined   whether a node outside the group has no memory of its own and is computed by each reader (views, small constants)
    strides_of memory layout of nodes that have memory, row major if not given
    Raises Refusal: where the kernel would be wrong, and if `cost_matters` also where it would do work again and again. If not
    `counts_masked`, work whose result is not taken (beside a padded image, in the other half of a concatenation) is none, as far
    as it is no more than what is taken.
    """
    strides_of = strides_of or (lambda node: contiguous_strides(node.shape))
    members = frozenset(nodes)
    buffers: dict[Node, K.Buffer] = {}

    def buffer_of(node: Node) -> K.Buffer | None:
        if node in members or inlined(node):
            return None
        if node not in buffers:
            buffers[node] = K.Buffer(f"x{len(buffers)}", node.dtype, node.shape, strides_of(node))
        return buffers[node]

    builder = KernelBuilder(buffer_of)
    values, indices = _pull_outputs(builder, nodes, outputs)
    stores: list[K.Store] = []
    for number, node in enumerate(outputs):
        buffer = K.Buffer(f"y{number}", node.dtype, node.shape, strides_of(node), "out")
        stores.append(K.Store(buffer, indices[node], builder.store_value(values[node], node.dtype)))
    loaded = tuple(buffers)
    in_order = (*buffers.values(), *(s.buffer for s in stores))
    kernel = K.Kernel(name, tuple(builder.axes.values()), in_order, tuple(stores), origin_of(nodes))
    kernel = _without_unused(kernel)
    _check(kernel, nodes, outputs)
    if cost_matters:
        _check_cost(kernel, builder, nodes, counts_masked)
    kept = {b for b in kernel.buffers}
    return kernel, tuple(n for n in loaded if buffers[n] in kept), tuple(outputs)


def origin_of(nodes: Sequence[Node]) -> tuple[str, ...]:
    """The nodes' names and source lines, for a kernel that computes them."""
    return tuple(f"{n.op.name} %{n.name}" + (f" at {n.location}" if n.location else "") for n in nodes)


def _pull_outputs(builder: KernelBuilder, nodes: Sequence[Node], outputs: Sequence[Node]):
    """Values and store indices of all outputs over one set of axes: the widest output chooses them, the others follow."""
    root = root_of(outputs)
    values: dict[Node, K.Value] = {}
    indices: dict[Node, tuple[Dim, ...]] = {}
    index = tuple(builder.new_axis(size) for size in root.shape)
    indices[root] = index
    values[root] = builder.element(root, index)
    wanted = [n for n in outputs if n is not root]
    if wanted:
        places: dict[Node, tuple[Dim, ...]] = dict(builder.visited)
        for node in nodes:
            if node not in places:
                place = _forward_index(node, places, builder)
                if place is not None:
                    places[node] = place
        for node in wanted:
            at = places.get(node)
            if at is None:
                taken: frozenset[str] = frozenset()
                fresh: list[Dim] = []
                for size in node.shape:
                    axis = builder.axis(size, taken)
                    taken |= symbols(axis)
                    fresh.append(axis)
                at = tuple(fresh)
            indices[node] = tuple(0 if size == 1 else i for i, size in zip(at, node.shape))
            values[node] = builder.element(node, at)
    return values, indices


def root_of(outputs: Sequence[Node]) -> Node:
    """The output that chooses a kernel's axes: of the widest the last."""
    return max(enumerate(outputs), key=lambda item: (size_key(item[1]), item[0]))[1]


def size_key(node: Node) -> tuple[int, int]:
    """Orders outputs by how many elements they have; among symbolic sizes by how many axes."""
    numel = node.tensor.numel
    return (sum(1 for size in node.shape if size != 1), 1 << 62) if not isinstance(numel, int) else (0, numel)


def _forward_index(node: Node, places: dict[Node, tuple[Dim, ...]], builder: KernelBuilder) -> tuple[Dim, ...] | None:
    """Where `node` would naturally be computed, given where one of its operands is."""
    for operand in node.inputs:
        at = places.get(operand)
        if at is None and operand.has(Trait.VIEW):
            at = _forward_index(operand, places, builder)
        if at is None:
            continue
        if node.has(Trait.POINTWISE) and operand.shape == node.shape:
            return at
        if node.has(Trait.REDUCTION):
            axes, keepdims = node.attributes["axes"], node.attributes.get("keepdims", False)
            return tuple(0 if d in axes else i for d, i in enumerate(at) if keepdims or d not in axes)
        if node.op.name == "permute":
            return tuple(at[d] for d in node.attributes["dims"])
        if node.op.name == "reshape":
            return reshape_index(operand.shape, node.shape, at, builder.div, builder.mod)
    return None


def _without_unused(kernel: K.Kernel) -> K.Kernel:
    """Drop buffers and axes that no value uses (an operand whose every element simplified away)."""
    used = {v.buffer for v in kernel.values if isinstance(v, K.Load)}
    buffers = tuple(b for b in kernel.buffers if b.role == "out" or b in used)
    needed: set[str] = set().union(*kernel.axes_of.values(), kernel.reduced_axes)
    for store in kernel.stores:
        needed |= set().union(*(symbols(e) for e in store.index))
    axes = tuple(a for a in kernel.axes if a.name in needed)
    if len(buffers) == len(kernel.buffers) and len(axes) == len(kernel.axes):
        return kernel  # with what it knows of its values already
    return kernel.replace(buffers=buffers, axes=axes)


def covers_once(index: Sequence[Dim], shape: Sequence[Dim], extents: dict[str, Dim]) -> bool:
    """Whether running over the axes visits every element of a tensor of `shape` exactly once."""
    if any(name.startswith("@") for position in index for name in symbols(position)):
        return False  # data decides where that is
    if 0 in shape:
        return True
    flat: Dim = 0
    for position, stride in zip(index, contiguous_strides(tuple(shape))):
        flat = flat + position * stride
    coefficients = linear_coefficients(flat, extents)
    if coefficients is None or coefficients.pop("", 0) != 0:
        return False
    expected: Dim = 1
    while coefficients:
        axis = next((a for a, c in coefficients.items() if c == expected), None)
        if axis is None:
            return False
        expected = expected * extents[axis]
        del coefficients[axis]
    return expected == product(shape)


def _check(kernel: K.Kernel, nodes: Sequence[Node], outputs: Sequence[Node]) -> None:
    """Refuse what no loop nest of ours computes: one nest, whose reductions share their axes, visiting each output once."""
    extents = kernel.extents
    reduced = kernel.reduced_axes
    outer = frozenset(extents) - reduced
    for store, node in zip(kernel.stores, outputs):
        if not covers_once(store.index, node.shape, extents):
            raise Refusal(f"%{node.name} would be stored at {_show(store.index)}, which does not visit each element once")
        used = frozenset().union(*(symbols(e) for e in store.index)) & frozenset(extents)
        if not kernel.axes_of[store.value] <= used:
            raise Refusal(f"%{node.name} would be computed once for each of several axes it does not have")
        if used != outer and used != frozenset(extents):
            raise Refusal(f"%{node.name} runs over other axes than the rest of the kernel")
    for value in kernel.values:
        if isinstance(value, K.Reduce) and frozenset(value.over) != reduced:
            others = reduced - frozenset(value.over)
            raise Refusal(f"it reduces over {_names(value.over)} and over {_names(others)}: two loop nests")


def _check_cost(kernel: K.Kernel, builder: KernelBuilder, nodes: Sequence[Node], counts_masked: bool) -> None:
    """Refuse kernels too large to compile quickly, and those that do work again and again."""
    if len(kernel.values) > MAXIMUM_VALUES:
        raise Refusal(f"one kernel would compute {len(kernel.values)} values, more than {MAXIMUM_VALUES}")
    if len(kernel.buffers) > MAXIMUM_BUFFERS:
        raise Refusal(f"one kernel would touch {len(kernel.buffers)} buffers, more than {MAXIMUM_BUFFERS}")
    outer = frozenset(kernel.extents) - kernel.reduced_axes
    for value in kernel.values:
        if isinstance(value, K.Reduce) and kernel.axes_of[value] != outer:
            again = outer - kernel.axes_of[value]
            raise Refusal(f"a reduction over {_names(value.over)} would be repeated for each step of {_names(again)}")
    _check_repeated_work(kernel, builder, nodes, counts_masked)


def _check_repeated_work(kernel: K.Kernel, builder: KernelBuilder, nodes: Sequence[Node], counts_masked: bool) -> None:
    """Refuse to compute elements of a member more often than it has elements (a pooling window over an activation)."""
    for node in nodes:
        index = builder.asked.get(node)
        if index is None or node.has(Trait.SOURCE):
            continue
        axes = [a for a in frozenset().union(*(symbols(e) for e in index), frozenset()) if a in kernel.extents]
        points = product(kernel.extents[a] for a in axes)
        if not counts_masked and is_non_negative(2 * node.tensor.numel - points):
            within = _extents_within(builder.asked_within[node])
            points = product(_smaller(kernel.extents[a], within.get(a)) for a in axes)
        if not is_non_negative(node.tensor.numel - points):
            raise Refusal(f"elements of %{node.name} would be computed more than once")


def _extents_within(bounds: Iterable[K.Bound]) -> dict[str, Dim]:
    """How many values bounds leave to the axes that are bounded alone: 0 <= i - 3 < 8 leaves 8 of i."""
    found: dict[str, Dim] = {}
    for bound in bounds:
        names = symbols(bound.expression)
        coefficients = linear_coefficients(bound.expression, names)
        if coefficients is not None and len(names) == 1 and coefficients.get(*names) in (1, -1):
            (name,) = names
            found[name] = _smaller(bound.extent, found.get(name))
    return found


def _smaller(size: Dim, other: Dim | None) -> Dim:
    """The smaller of two sizes where that is known, else the first."""
    return other if other is not None and is_non_negative(size - other) else size


def _names(axes: Iterable[str]) -> str:
    return "{" + ", ".join(sorted(axes)) + "}"


def _show(index: Sequence[Dim]) -> str:
    return f"[{', '.join(map(str, index))}]"
