"""Orders in which a tensor's dimensions may lie in memory, as strides in elements."""

from __future__ import annotations

from dlcompiler.ir.contraction import widens
from dlcompiler.ir.expression import Dim
from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import contiguous_strides

Strides = tuple[Dim, ...]


def strides_in_order(shape: tuple[Dim, ...], order: tuple[int, ...]) -> Strides:
    """Strides in elements of a tensor stored with its dimensions in `order`, the last one innermost."""
    stored = contiguous_strides(tuple(shape[d] for d in order))
    return tuple(stored[order.index(d)] for d in range(len(shape)))


def channels_last_strides(shape: tuple[Dim, ...]) -> Strides:
    """[N, C, ...] stored as [N, ..., C]."""
    return strides_in_order(shape, (0, *range(2, len(shape)), 1)) if len(shape) >= 3 else contiguous_strides(shape)


def heads_inside_strides(shape: tuple[Dim, ...]) -> Strides:
    """[N, heads..., length, width] stored as [N, length, heads..., width]: what attention hands to the projection after it."""
    rank = len(shape)
    return strides_in_order(shape, (0, rank - 2, *range(1, rank - 2), rank - 1))


def is_channels_last(shape: tuple[Dim, ...], strides: Strides) -> bool:
    return len(shape) >= 3 and strides == channels_last_strides(shape) and strides != contiguous_strides(shape)


def heads_are_inside(node: Node) -> bool:
    """Whether a node writes its heads next to each other for each position, so that joining them is no copy."""
    if node.tensor.rank < 4:
        return False
    if node.op.name == "tuple.get":
        source, index = node.inputs[0].op.name, node.attributes["index"]
        return source == "attention_backward" or (source == "attention_with_logsumexp" and index == 0)
    return node.op.name == "attention"


def wants_channels_last(node: Node) -> bool:
    """Whether a node reads and writes images with the channels innermost: convolutions of images, and of lines and volumes that
    kernels of our own may compute.
    """
    if node.op.name != "convolution":
        return False
    return node.tensor.rank == 4 or (node.dtype.bytes >= 4 and not node.attributes["transposed"])


def images_read(node: Node) -> tuple[int, ...]:
    """Positions of the operands that a library or a routine reads with the channels innermost."""
    if node.op.name == "convolution_weight":
        return (0, 1)
    return (0,) if wants_channels_last(node) else ()


def images_of(node: Node, through_pads: bool = False) -> tuple[Node, ...]:
    """What a kernel of ours that computes a sum of products reads with the channels innermost.

    through_pads   whether it pads images while it reads them
    """
    found = (image_of(node),) if wants_channels_last(node) else tuple(node.inputs[k] for k in images_read(node))
    return tuple(map(_unpadded, found)) if through_pads else found


def stored_source(node: Node) -> Node | None:
    """What a widening cast reads, if panels of sums of products hold its type as it is; None for any other node."""
    return node.inputs[0] if node.op.name == "cast" and widens(node.inputs[0].dtype, node.dtype) else None


def image_of(convolution: Node) -> Node:
    """The image that a convolution of ours reads: of bytes that are widened and padded while they are read, those."""
    image = convolution.inputs[0]
    source = stored_source(image)
    return image if source is None else _unpadded(source)


def _unpadded(image: Node) -> Node:
    """What an image is made of that has zeros beside it."""
    if image.op.name != "pad" or any(image.attributes["low"][:2]) or any(image.attributes["high"][:2]):
        return image
    return image.inputs[0] if image.attributes["value"] == 0 else image
