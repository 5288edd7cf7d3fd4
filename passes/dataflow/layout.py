"""Layout: the strides of every value that has memory.

    conv -> relu -> conv, all row major  -->  all channels last, with one conversion in front of the first

Attention writes its heads next to each other for each position, so that joining them is no copy. Convolutions read and write
images with the channels innermost, where one vector load takes a pixel's neighbours in channel space and a library needs no
reordering. Kernels of our own compute in any layout, so each follows the largest value it reads. Inputs keep the strides they
came with, what replaces an input's contents gets the same, and outputs get the strides that eager gives them, unless any will do.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

from dlcompiler.ir.graph import Node, OutputStrides
from dlcompiler.ir.types import TensorType, contiguous_strides
from dlcompiler.passes.block.fuse import Fusion, Group
from dlcompiler.passes.strides import (
    Strides,
    channels_last_strides,
    heads_are_inside,
    heads_inside_strides,
    images_read,
    is_channels_last,
    wants_channels_last,
)


def assign_layouts(fusion: Fusion) -> dict[Node, Strides]:
    """Strides in elements of every stored node."""
    graph = fusion.graph
    layouts: dict[Node, Strides] = {}
    for node in fusion.stored:
        if isinstance(node.type, TensorType):
            layouts[node] = _given_strides(node)
    wanted = {value: layouts[target] for value, target in graph.writebacks}
    wanted |= {node: strides for node, strides in zip(graph.outputs, graph.output_strides) if isinstance(strides, tuple)}
    images = _images_of_convolutions(fusion)
    for node in layouts:  # of attention with several results each is told apart by a node of no group
        if node.op.name == "tuple.get" and heads_are_inside(node):
            layouts[node] = wanted.get(node) or heads_inside_strides(node.shape)
    for group in fusion.groups:
        for node in group.outputs:
            if not isinstance(node.type, TensorType):
                continue
            if node in wanted:
                layouts[node] = wanted[node]
            elif heads_are_inside(node):
                layouts[node] = heads_inside_strides(node.shape)
            elif node in images or (group.kind == "kernel" and _follows_channels_last(group, node, layouts, fusion)):
                layouts[node] = channels_last_strides(node.shape)
    return layouts


def strides_of_output(
    node: Node, base: Node, wanted: OutputStrides, layouts: Mapping[Node, Strides], images: Set[Node]
) -> Strides:
    """How memory of an output's own lies, which is computed from what `base` holds; `images`: what convolutions read."""
    if isinstance(wanted, tuple):
        return wanted
    of_image = node in images or (base in layouts and is_channels_last(base.shape, layouts[base]))
    return channels_last_strides(node.shape) if wanted == "any" and of_image else contiguous_strides(node.shape)


def _given_strides(node: Node) -> Strides:
    """How an input, a constant or ATen's result lies in memory; row major for what we compute."""
    if node.op.name == "constant":
        value = node.attributes["value"]
        return tuple(step // value.itemsize for step in value.strides)
    source, index = (node.inputs[0], node.attributes["index"]) if node.op.name == "tuple.get" else (node, 0)
    if source.op.name == "aten.call" and "strides" in source.attributes:
        return tuple(source.attributes["strides"][index] or contiguous_strides(node.shape))
    # other ops have strides too, of their windows
    given = node.attributes.get("strides") if node.op.name == "input" else None
    return tuple(given or contiguous_strides(node.shape))


def _images_of_convolutions(fusion: Fusion) -> set[Node]:
    """Values that convolutions write, or read directly."""
    found: set[Node] = set()
    for group in fusion.groups:
        for node in group.nodes:
            if not wants_channels_last(node):
                read = (node.inputs[k] for k in images_read(node))
                found.update(image for image in read if image in fusion.stored and image.op.name not in ("input", "constant"))
                continue
            # a kernel that ends with something else writes that as an image
            found.update(n for n in group.outputs if n.shape == node.shape)
            images = fusion.images_of(node) if fusion.inlined(node.inputs[0]) else node.inputs[:1]
            found.update(image for image in images if image in fusion.stored and image.op.name not in ("input", "constant"))
    return found


def _follows_channels_last(group: Group, node: Node, layouts: Mapping[Node, Strides], fusion: Fusion) -> bool:
    """Whether most of what a kernel reads to make an image lies channels last."""
    if node.tensor.rank not in (3, 4, 5):
        return False
    votes = 0
    for source in _sources(group, fusion):
        if (
            isinstance(source.type, TensorType)
            and source.tensor.rank == node.tensor.rank
            and source.shape[:2] == node.shape[:2]
            and source in layouts
        ):
            votes += 1 if is_channels_last(source.shape, layouts[source]) else -1 if set(source.shape[2:]) != {1} else 0
    return votes > 0


def _sources(group: Group, fusion: Fusion) -> list[Node]:
    """Stored nodes outside the group that it reads, through views."""
    members, seen, found = set(group.nodes), set(), []
    stack = [i for n in group.nodes for i in n.inputs]
    while stack:
        node = stack.pop()
        if node in members or node in seen:
            continue
        seen.add(node)
        if fusion.inlined(node):
            stack.extend(node.inputs)
        else:
            found.append(node)
    return found
