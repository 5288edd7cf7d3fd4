"""Views, made fewer: a view of a view becomes one view, and one that changes nothing goes.

%1 = permute(%x){dims=(1, 0)}; %2 = permute(%1){dims=(1, 0)}; %3 = exp(%2)  -->  %3 = exp(%x)
"""

from __future__ import annotations

from dlcompiler.ir.expression import Dim
from dlcompiler.ir.graph import Graph, Node
from dlcompiler.ir.ops import Trait
from dlcompiler.ir.ops.view import is_identity_view
from dlcompiler.ir.types import DType, boolean
from dlcompiler.passes.context import Context
from dlcompiler.passes.rewrite import GraphRewriter, RuleTable, apply_rules, rule

# A concat of concats is only flattened up to this many operands, so that a chain of them stays linear.
MAXIMUM_CONCAT = 64


@rule("identity-view", Trait.VIEW, exact=True)
def identity_view(b: GraphRewriter, node: Node) -> Node | None:
    """reshape(x), permute(x), expand(x), slice(x), pad(x) or concat(x) that changes nothing --> x"""
    return node.inputs[0] if is_identity_view(node) else None


@rule("reshape-reshape", "reshape", exact=True)
def reshape_reshape(b: GraphRewriter, node: Node) -> Node | None:
    """reshape(reshape(x)) --> reshape(x)"""
    (inner,) = node.inputs
    return b.reshape(inner.inputs[0], shape=node.shape) if inner.op.name == "reshape" else None


@rule("permute-permute", "permute", exact=True)
def permute_permute(b: GraphRewriter, node: Node) -> Node | None:
    """permute(permute(x)) --> permute(x)"""
    (inner,) = node.inputs
    if inner.op.name != "permute":
        return None
    return b.permute(inner.inputs[0], dims=tuple(inner.attributes["dims"][d] for d in node.attributes["dims"]))


@rule("permute-ones", "permute", exact=True)
def permute_ones(b: GraphRewriter, node: Node) -> Node | None:
    """permute(x) that only moves dimensions of size 1 --> reshape(x)"""
    (x,) = node.inputs
    moved = [d for d in node.attributes["dims"] if x.shape[d] != 1]
    return b.reshape(x, shape=node.shape) if moved == sorted(moved) else None


@rule("expand-expand", "expand", exact=True)
def expand_expand(b: GraphRewriter, node: Node) -> Node | None:
    """expand(expand(x)) --> expand(x)"""
    (inner,) = node.inputs
    return b.expand(inner.inputs[0], shape=node.shape) if inner.op.name == "expand" else None


@rule("flip-flip", "flip", exact=True)
def flip_flip(b: GraphRewriter, node: Node) -> Node | None:
    """flip(flip(x)) --> flip(x) over the axes that only one of them has, or x"""
    (inner,) = node.inputs
    if inner.op.name != "flip":
        return None
    axes = tuple(sorted(set(node.attributes["axes"]) ^ set(inner.attributes["axes"])))
    return b.flip(inner.inputs[0], axes=axes) if axes else inner.inputs[0]


@rule("slice-slice", "slice", exact=True)
def slice_slice(b: GraphRewriter, node: Node) -> Node | None:
    """slice(slice(x)) --> slice(x)"""
    (inner,) = node.inputs
    if inner.op.name != "slice":
        return None
    starts, limits, steps = [], [], []
    for size, outer, own in zip(node.shape, _slice_ranges(node), _slice_ranges(inner)):
        if not isinstance(size, int) and (outer[2], own[2]) != (1, 1):
            return None  # where the last element lies depends on a size
        step = outer[2] * own[2]
        start = own[0] + outer[0] * own[2]
        if size == 0:
            start = 0  # where nothing is taken may lie beyond the end of the dimension
        starts.append(start)
        steps.append(step)
        limits.append(start + (size if step == 1 else (size - 1) * step + 1 if size else 0))
    value = b.slice(inner.inputs[0], starts=tuple(starts), limits=tuple(limits), steps=tuple(steps))
    return value if value.type == node.type else None


def _slice_ranges(node: Node) -> list[tuple[Dim, Dim, int]]:
    return list(zip(*(node.attributes[k] for k in ("starts", "limits", "steps"))))


@rule("slice-concat", "slice", exact=True)
def slice_concat(b: GraphRewriter, node: Node) -> Node | None:
    """slice(concat(x, y, z)) that lies within y --> slice(y)"""
    (inner,) = node.inputs
    if inner.op.name != "concat":
        return None
    axis = inner.attributes["axis"]
    start, limit = node.attributes["starts"][axis], node.attributes["limits"][axis]
    offset: Dim = 0
    for operand in inner.inputs:
        end = offset + operand.shape[axis]
        if _is_at_most(offset, start) and _is_at_most(limit, end) and start != end:
            starts, limits = list(node.attributes["starts"]), list(node.attributes["limits"])
            starts[axis], limits[axis] = start - offset, limit - offset
            return b.slice(operand, starts=tuple(starts), limits=tuple(limits), steps=node.attributes["steps"])
        offset = end
    return None


def _is_at_most(left: Dim, right: Dim) -> bool:
    """Whether provably `left <= right`."""
    return left == right or (isinstance(left, int) and isinstance(right, int) and left < right)


@rule("concat-empty", "concat", exact=True)
def concat_empty(b: GraphRewriter, node: Node) -> Node | None:
    """concat(x, empty, y) --> concat(x, y)"""
    axis = node.attributes["axis"]
    filled = [i for i in node.inputs if i.shape[axis] != 0]
    return b.concat(*filled, axis=axis) if 0 < len(filled) < len(node.inputs) else None


@rule("concat-concat", "concat", exact=True)
def concat_concat(b: GraphRewriter, node: Node) -> Node | None:
    """concat(concat(x, y), z) along one axis, the inner one read here only --> concat(x, y, z)"""
    axis = node.attributes["axis"]
    inside = [i.op.name == "concat" and i.attributes["axis"] == axis and b.is_used_once(i) for i in node.inputs]
    if not any(inside):
        return None
    operands = [x for i, is_concat in zip(node.inputs, inside) for x in (i.inputs if is_concat else (i,))]
    return b.concat(*operands, axis=axis) if len(operands) <= MAXIMUM_CONCAT else None


@rule("concat-slices", "concat", exact=True)
def concat_slices(b: GraphRewriter, node: Node) -> Node | None:
    """concat(slice(x){a:b}, slice(x){b:c}) --> slice(x){a:c}"""
    axis = node.attributes["axis"]
    first = node.inputs[0]
    if len(node.inputs) < 2 or any(i.op.name != "slice" or i.inputs != first.inputs for i in node.inputs):
        return None
    ranges = [_slice_ranges(i) for i in node.inputs]
    elsewhere = [r[:axis] + r[axis + 1 :] for r in ranges]
    meets = all(left[axis][1] == right[axis][0] for left, right in zip(ranges, ranges[1:]))
    if not meets or any(r[axis][2] != 1 for r in ranges) or any(e != elsewhere[0] for e in elsewhere):
        return None
    limits = list(first.attributes["limits"])
    limits[axis] = ranges[-1][axis][1]
    return b.slice(first.inputs[0], starts=first.attributes["starts"], limits=tuple(limits), steps=first.attributes["steps"])


@rule("expand-operand", Trait.POINTWISE, exact=True)
def expand_operand(b: GraphRewriter, node: Node) -> Node | None:
    """add(expand(x), y) --> add(x, y), expanded afterwards if the result is then smaller"""
    if not any(i.op.name == "expand" for i in node.inputs):
        return None
    value = b(node.op.name, *(i.inputs[0] if i.op.name == "expand" else i for i in node.inputs), **node.attributes)
    # a result has memory of its own, where an expanded value is stored in full anyway
    return value if value.type == node.type or node not in b.escapes else None


@rule("view-around-pointwise", "permute", "reshape", exact=True)
def view_around_pointwise(b: GraphRewriter, node: Node) -> Node | None:
    """permute(add(permute(x), permute(y))) that ends in the order of x --> add(x, y); with reshape, too; numbers stay"""
    (inner,) = node.inputs
    if not inner.has(Trait.POINTWISE) or not b.is_used_once(inner):
        return None
    operands = []
    for operand in inner.inputs:
        if operand.tensor.numel == 1 and operand.op.name == "constant":
            operands.append(b.constant(operand.attributes["value"].reshape(())))
        elif operand.op.name == node.op.name and operand.shape == inner.shape and _undoes(node, operand):
            operands.append(operand.inputs[0])
        else:
            return None
    value = b(inner.op.name, *operands, **inner.attributes)
    return value if value.type == node.type else None


def _undoes(outer: Node, inner: Node) -> bool:
    if outer.op.name == "reshape":
        return outer.shape == inner.inputs[0].shape
    return [inner.attributes["dims"][d] for d in outer.attributes["dims"]] == list(range(len(outer.shape)))


@rule("cast-same", "cast", exact=True)
def cast_same(b: GraphRewriter, node: Node) -> Node | None:
    """cast(x) to the dtype that x has --> x"""
    return node.inputs[0] if node.inputs[0].dtype is node.dtype else None


@rule("cast-cast", "cast", exact=True)
def cast_cast(b: GraphRewriter, node: Node) -> Node | None:
    """cast(cast(x)) whose inner cast loses nothing --> cast(x)"""
    (inner,) = node.inputs
    if inner.op.name != "cast" or not holds_all_of(inner.dtype, inner.inputs[0].dtype):
        return None
    x = inner.inputs[0]
    return x if x.dtype is node.dtype else b.cast(x, dtype=node.dtype.name)


def holds_all_of(wide: DType, narrow: DType) -> bool:
    """Whether every value of `narrow` is one of `wide`."""
    if wide is narrow or narrow is boolean:
        return True
    if wide.is_float and narrow.is_float:
        return wide.bits > narrow.bits
    if wide.is_float and narrow.is_integer:
        return narrow.bits <= {"f64": 53, "f32": 24, "f16": 11, "bf16": 8}[wide.name]
    if wide.is_integer and narrow.is_integer:
        return wide.bits > narrow.bits and (wide.kind == narrow.kind or narrow.kind == "uint")
    return False


RULES = RuleTable(
    (
        identity_view, reshape_reshape, permute_permute, permute_ones, expand_expand, flip_flip, slice_slice, slice_concat,
        concat_empty, concat_concat, concat_slices, expand_operand, view_around_pointwise, cast_same, cast_cast,
    )
)  # fmt: skip


def canonicalize_views(graph: Graph, context: Context) -> Graph:
    """Apply the rules about views and casts until none fires."""
    return apply_rules(graph, RULES, context)
