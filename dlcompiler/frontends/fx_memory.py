"""Rules for operators that speak of memory, by strides said outright, and not of a value's elements."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from dlcompiler.frontends.fx_rules import moving
from dlcompiler.frontends.fx_scatter import index_update
from dlcompiler.frontends.fx_types import dim_from_torch
from dlcompiler.frontends.fx_view import expand, permute, reshape
from dlcompiler.ir.errors import UnsupportedError
from dlcompiler.ir.expression import Dim
from dlcompiler.ir.graph import Node

# number of a result of the graph, and shape, strides and offset in it; None: all of it
Place: TypeAlias = tuple[int, "tuple[Any, ...] | None"]


@dataclass(frozen=True)
class Memory:
    """The elements of a piece of memory of eager's, as a value: `owner` with its dimensions in the order in which they lie there.

    offset   where the view that was asked for begins
    """

    owner: Node
    order: tuple[int, ...]
    offset: Dim

    def elements(self, i: Any) -> Node:
        """[a, b, c] stored with strides of [c, a, b] --> [a*b*c], in the order of addresses."""
        return reshape(i, permute(i, self.owner, self.order), (self.owner.tensor.numel,))

    def value(self, i: Any, elements: Node) -> Node:
        """The inverse of `elements`."""
        stored = tuple(self.owner.shape[d] for d in self.order)
        return permute(i, reshape(i, elements, stored), [self.order.index(d) for d in range(len(self.order))])


def memory_of(i: Any, argument: torch.fx.Node) -> Memory:
    """The memory that an operand of the operator at hand is, or is a view of.

    Views are followed to what owns their memory, since other elements of it may be read. Raises UnsupportedError where an owner
    does not fill its memory: torch runs such a graph, as an operator alone would be given memory that lies otherwise.
    """
    view = argument.meta["val"]
    while (source := _viewed(argument)) is not None:
        argument = source
    example, owner = argument.meta.get("val"), i.values[argument]
    if isinstance(example, torch.Tensor) and isinstance(owner, Node):
        steps = [i.hint_of(stride) for stride in example.stride()]
        order = tuple(sorted(range(example.dim()), key=lambda d: (-steps[d], -i.hint_of(example.shape[d]))))
        count = example.numel() * example.element_size()
        if example.permute(order).is_contiguous() and i.hint_of(example.untyped_storage().nbytes()) == i.hint_of(count):
            if view.dtype is example.dtype:
                return Memory(owner, order, dim_from_torch(view.storage_offset()))
    raise UnsupportedError(
        f"{i.node.target} of memory that its owner does not fill", items=(str(i.node.target),), location=i.b.location
    )


def share_memory(module: torch.fx.GraphModule) -> list[Place] | None:
    """Let a graph give what several results are views of in eager, once; where each result lies in what it then gives.

        y = x + 1; return y[:2], y[1]  -->  return y,    [(0, ([2], [1], 0)), (0, ([], [], 1))]

    None, and nothing changed, where no results share memory, or sizes are known only when called. Results that are views of
    inputs are torch's business.
    """
    (output,) = (n for n in reversed(module.graph.nodes) if n.op == "output")
    results = list(output.args[0]) if isinstance(output.args[0], list | tuple) else [output.args[0]]
    examples = [n.meta.get("val") for n in module.graph.nodes if n.op in ("placeholder", "get_attr")]
    theirs = {e.untyped_storage()._cdata for e in examples if isinstance(e, torch.Tensor) and e.layout is torch.strided}
    groups: dict[torch.fx.Node, list[torch.fx.Node]] = {}
    for node in dict.fromkeys(r for r in results if isinstance(r, torch.fx.Node)):
        owner = _owner(node)
        if owner is not None and owner.meta["val"].untyped_storage()._cdata not in theirs:
            groups.setdefault(owner, []).append(node)
    shared = {node: owner for owner, nodes in groups.items() if len(nodes) > 1 for node in nodes}
    if not shared:
        return None
    given: list[Any] = []
    places: list[Place] = []
    for result in results:
        owner = shared.get(result) if isinstance(result, torch.fx.Node) else None
        value = result if owner is None else owner
        if owner is None or owner not in given:
            given.append(value)
        number = given.index(owner) if owner is not None else len(given) - 1
        example = None if owner is None or owner is result else result.meta["val"]
        places.append((number, None if example is None else (tuple(example.shape), example.stride(), example.storage_offset())))
    output.args = (tuple(given),)
    module.recompile()
    return places


@dataclass(frozen=True)
class View:
    """A result that shows an argument's memory: `numbers` are its shape, its strides and where it begins.

    None among them is known only when called: then the graph gives it in the result's place, in order.
    """

    argument: int
    numbers: tuple[int | None, ...]

    def of(self, tensor: torch.Tensor, given: Iterator[int]) -> torch.Tensor:
        """The view of an argument; takes the numbers that the graph gives."""
        *layout, offset = (next(given) if number is None else number for number in self.numbers)
        rank = len(layout) // 2
        return tensor.as_strided(layout[:rank], layout[rank:], offset)


def leave_out_views(module: torch.fx.GraphModule) -> list[View | None] | None:
    """Let a graph give, of results that show an input's memory from a place known only when called, the numbers that say where.

        return x[n]  -->  return n * x.stride(0),    [View of x]

    An item for each result; None, and nothing changed, where there are none such.
    """
    (output,) = (n for n in reversed(module.graph.nodes) if n.op == "output")
    results = list(output.args[0]) if isinstance(output.args[0], list | tuple) else [output.args[0]]
    inputs: dict[int, tuple[int, torch.Tensor]] = {}
    for position, node in enumerate(n for n in module.graph.nodes if n.op == "placeholder"):
        example = node.meta.get("val")
        if isinstance(example, torch.Tensor) and example.layout is torch.strided:
            inputs.setdefault(example.untyped_storage()._cdata, (position, example))
    views: list[View | None] = []
    given: list[Any] = []
    for result in results:
        view, numbers = _view_of_input(module, result, inputs, output)
        views.append(view)
        given += [result] if view is None else numbers
    if not any(views):
        return None
    output.args = (tuple(given),)
    module.recompile()
    return views


def _view_of_input(module: torch.fx.GraphModule, result: Any, inputs: Mapping[int, Any], output: Any) -> tuple[Any, list[Any]]:
    """(view, what the graph gives for it)."""
    example = result.meta.get("val") if isinstance(result, torch.fx.Node) and result.op == "call_function" else None
    if not isinstance(example, torch.Tensor) or example.layout is not torch.strided:
        return None, []
    position, source = inputs.get(example.untyped_storage()._cdata, (0, None))
    numbers = (*example.shape, *example.stride(), example.storage_offset())
    is_first = isinstance(numbers[-1], int) and numbers[-1] == 0
    if source is None or source.dtype is not example.dtype or is_first or all(isinstance(n, int) for n in numbers):
        return None, []
    rank, operators = example.dim(), torch.ops.aten
    asked = [
        *((operators.sym_size.int, (result, d)) for d in range(rank)),
        *((operators.sym_stride.int, (result, d)) for d in range(rank)),
        (operators.sym_storage_offset.default, (result,)),
    ]
    nodes = []
    with module.graph.inserting_before(output):
        for number, (operator_, arguments) in zip(numbers, asked):
            if not isinstance(number, int):
                node = module.graph.call_function(operator_, arguments)
                node.meta["val"] = number
                nodes.append(node)
    return View(position, tuple(n if isinstance(n, int) else None for n in numbers)), nodes


def _owner(node: torch.fx.Node) -> torch.fx.Node | None:
    """What owns the memory that a result shows, if it is computed, fills it, and all sizes are known."""
    example, dtype = node.meta.get("val"), None
    while isinstance(example, torch.Tensor) and example.layout is torch.strided and dtype in (None, example.dtype):
        numbers = (*example.shape, *example.stride(), example.storage_offset(), example.untyped_storage().nbytes())
        if not all(isinstance(n, int) for n in numbers) or not example.numel():
            return None
        source, dtype = _viewed(node), example.dtype
        if source is None:
            fills = example.untyped_storage().nbytes() == example.numel() * example.element_size()
            return node if node.op == "call_function" and fills and not example.storage_offset() else None
        node, example = source, source.meta.get("val")
    return None


def _viewed(node: torch.fx.Node) -> torch.fx.Node | None:
    """What a node is a view of; None if it has memory of its own."""
    if node.op != "call_function":
        return None
    if node.target is operator.getitem or (isinstance(node.target, torch._ops.OpOverload) and node.target.is_view):
        source = node.args[0]
        if isinstance(source, torch.fx.Node) and (node.target is not operator.getitem or _viewed(source) is not None):
            return source
    return None


def _places(i: Any, shape: Any, stride: Any, offset: Any) -> Node:
    """offset + i0*stride0 + i1*stride1 + ..., for each element of the shape."""
    at = i.size(offset)
    for axis, (extent, step) in enumerate(zip(shape, stride)):
        line = i.b.mul(i.b.iota(size=extent), i.size(step))
        at = i.b.add(at, reshape(i, line, (extent, *(1,) * (len(shape) - axis - 1))))
    return expand(i, at, shape)


@moving("as_strided.default", "as_strided_copy.default")
def _as_strided(i, x, size, stride, storage_offset=None):
    """as_strided(view of x, size, stride, offset) --> index(elements of x, offset + i0*stride0 + i1*stride1 + ...)"""
    memory = memory_of(i, i.node.args[0])
    offset = memory.offset if storage_offset is None else storage_offset
    return i.b.index(memory.elements(i), _places(i, i.shape, stride, offset), axes=(0,))


@moving("as_strided_scatter.default")
def _as_strided_scatter(i, x, source, size, stride, storage_offset=None):
    """The value with a window of its memory replaced; what the window reaches outside of the value itself is not seen."""
    memory = memory_of(i, i.node.args[0])
    if memory.owner is not x:
        raise UnsupportedError(f"{i.node.target} of a view", items=(str(i.node.target),), location=i.b.location)
    offset = memory.offset if storage_offset is None else storage_offset
    places = _places(i, source.shape, stride, offset)
    return memory.value(i, index_update(i, memory.elements(i), [0], [places], source, "set"))
