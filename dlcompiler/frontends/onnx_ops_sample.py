"""Reading images between their pixels, at places that data gives."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from dlcompiler.frontends.onnx_registry import Call, operator
from dlcompiler.ir.expression import Dim
from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import boolean, i64

CUBIC = -0.75  # of Keys' cubic convolution


def _clamped(call: Call, x: Node, size: Dim) -> Node:
    last = call.cast(call.size(size - 1, i64), x.dtype)
    return call.b.minimum(call.b.maximum(x, call.number(0, x)), last)


def _reflected(call: Call, x: Node, size: Dim, align: bool) -> Node:
    """`x` mirrored at the centres of the border pixels (`align`), or at their outer edges, as often as needed."""
    number = call.cast(call.size(size, i64), x.dtype)
    low = 0.0 if align else -0.5
    span = call.b.sub(number, 1.0) if align else number
    span = call.b.maximum(span, call.number(1.0, x))
    away = call.b.abs(call.b.sub(x, low))
    turns = call.b.floor(call.b.div(away, span))
    rest = call.b.sub(away, call.b.mul(turns, span))
    odd = call.b.ne(call.b.remainder(turns, call.number(2.0, x)), 0.0)
    mirrored = call.b.add(call.b.where(odd, call.b.sub(span, rest), rest), low)
    return _clamped(call, mirrored, size)


class Sampler:
    """Reads `x` [N, C, *sizes] at places of each image; `padding` says what lies outside: zeros, border or reflection."""

    def __init__(self, call: Call, x: Node, padding: str, align: bool) -> None:
        self.call, self.padding, self.align = call, padding, align
        self.sizes = x.shape[2:]
        rank = x.tensor.rank
        self.pixels = call.permute(x, (0, *range(2, rank), 1))
        self.batch = x.shape[0]

    def moved_inside(self, places: Sequence[Node]) -> list[Node]:
        """Places outside as the padding moves them in; zeros moves none."""
        if self.padding == "border":
            return [_clamped(self.call, p, size) for p, size in zip(places, self.sizes)]
        if self.padding == "reflection":
            return [_reflected(self.call, p, size, self.align) for p, size in zip(places, self.sizes)]
        return list(places)

    def pixel(self, places: Sequence[Node]) -> Node:
        """[N, *out, C] pixels at whole places [N, *out] (floats); zero outside."""
        b, call = self.call.b, self.call
        rank = places[0].tensor.rank
        inside: Node | None = None
        at = [call.along(b.iota(size=self.batch), 0, rank)]
        for place, size in zip(places, self.sizes):
            last = call.cast(call.size(size - 1, i64), place.dtype)
            here = b.bitwise_and(b.ge(place, 0.0), b.le(place, last))
            inside = here if inside is None else b.bitwise_and(inside, here)
            at.append(b.cast(_clamped(call, place, size), dtype="i64"))
        values = b.index(self.pixels, *at, axes=tuple(range(len(at))))
        assert inside is not None and inside.dtype is boolean
        if self.padding != "zeros":
            return values
        return b.where(call.reshape(inside, (*inside.shape, 1)), values, call.number(0, values))

    def nearest(self, places: Sequence[Node]) -> Node:
        return self.pixel(self.moved_inside([self.call.b.round(p) for p in places]))

    def linear(self, places: Sequence[Node]) -> Node:
        """Between the two neighbours along each dimension."""
        b, places = self.call.b, self.moved_inside(places)
        floors = [b.floor(p) for p in places]
        fractions = [b.sub(p, f) for p, f in zip(places, floors)]
        weights = [(b.sub(self.call.number(1.0, f), f), f) for f in fractions]
        return self._weighted(floors, weights, (0, 1), moved=False)

    def cubic(self, places: Sequence[Node]) -> Node:
        """Keys' cubic convolution of the four neighbours along each dimension; each is moved inside by itself."""
        b = self.call.b
        floors = [b.floor(p) for p in places]
        weights = [self._cubic_weights(b.sub(p, f)) for p, f in zip(places, floors)]
        return self._weighted(floors, weights, (-1, 0, 1, 2), moved=True)

    def _cubic_weights(self, t: Node) -> tuple[Node, ...]:
        b, one = self.call.b, self.call.number(1.0, t)

        def near(x: Node) -> Node:  # |x| <= 1: ((a + 2) x - (a + 3)) x**2 + 1
            inner = b.sub(b.mul(x, CUBIC + 2), CUBIC + 3)
            return b.add(b.mul(b.mul(inner, x), x), 1.0)

        def far(x: Node) -> Node:  # 1 < |x| < 2: ((a x - 5a) x + 8a) x - 4a
            inner = b.add(b.mul(b.sub(b.mul(x, CUBIC), 5 * CUBIC), x), 8 * CUBIC)
            return b.sub(b.mul(inner, x), 4 * CUBIC)

        other = b.sub(one, t)
        return far(b.add(t, 1.0)), near(t), near(other), far(b.add(other, 1.0))

    def _weighted(self, floors: Sequence[Node], weights: Sequence[Sequence[Node]], steps: Sequence[int], moved: bool) -> Node:
        b, total = self.call.b, None
        for corner in itertools.product(range(len(steps)), repeat=len(floors)):
            places = [b.add(f, float(steps[k])) for f, k in zip(floors, corner)]
            value = self.pixel(self.moved_inside(places) if moved else places)
            weight = weights[0][corner[0]]
            for d, k in enumerate(corner[1:], 1):
                weight = b.mul(weight, weights[d][k])
            part = b.mul(value, self.call.reshape(weight, (*weight.shape, 1)))
            total = part if total is None else b.add(total, part)
        assert total is not None
        return total


@operator("GridSample")
def grid_sample(call: Call) -> Node:
    """Places in [-1, 1], the last dimension first, each stretched over its dimension of the image."""
    x, grid = call.require_rank(0, 3), call.require_rank(1, 3)
    spatial = x.tensor.rank - 2
    if grid.tensor.rank != x.tensor.rank or grid.shape[-1] != spatial:
        call.misfit(f"a grid {grid.type} does not fit {x.type}")
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(name := call.attribute("mode", "linear"), name)
    padding = call.attribute("padding_mode", "zeros")
    if mode not in ("linear", "nearest", "cubic") or padding not in ("zeros", "border", "reflection"):
        call.invalid(f"mode is {mode!r} and padding_mode {padding!r}")
    if not x.dtype.is_float or any(size == 0 for size in x.shape[2:]):
        call.unsupported(f"images {x.type}")
    align = call.flag("align_corners")
    wide, places = call.wide(x), []
    for d, size in enumerate(x.shape[2:]):
        at = call.reshape(call.slice(grid, grid.tensor.rank - 1, spatial - 1 - d, spatial - d), grid.shape[:-1])
        at = call.b.add(call.cast(at, wide.dtype), 1.0)
        extent = call.cast(call.size(size - 1 if align else size, i64), wide.dtype)
        stretched = call.b.mul(call.b.mul(at, 0.5), extent)
        places.append(stretched if align else call.b.sub(stretched, 0.5))
    sampler = Sampler(call, wide, padding, align)
    result = getattr(sampler, mode)(places)
    last = result.tensor.rank - 1
    return call.cast(call.permute(result, (0, last, *range(1, last))), x.dtype)


@operator("Col2Im")
def col2im(call: Call) -> Node:
    """Columns [N, C * elements of a block, blocks] added back into the images they were taken from."""
    import numpy as np

    x = call.require_rank(0, 3, 3)
    image, block = call.numbers(1, "the image's shape"), call.numbers(2, "the block's shape")
    spatial = len(image)
    strides, dilations = call.integers("strides", spatial, 1), call.integers("dilations", spatial, 1)
    pads = call.integers("pads", 2 * spatial, 0)
    if len(block) != spatial or min((*strides, *dilations, *block, *image)) < 1:
        call.invalid(f"blocks {block} of an image {image} by strides {strides} and dilations {dilations}")
    counts = [
        (size + low + high - dilation * (width - 1) - 1) // stride + 1
        for size, low, high, dilation, width, stride in zip(image, pads, pads[spatial:], dilations, block, strides)
    ]
    elements, blocks, pixels = (int(np.prod(n)) for n in (block, counts, image))
    batch, rows, columns = x.shape
    if columns != blocks or not isinstance(rows, int) or rows % elements:
        call.misfit(f"{x.type} is no {blocks} blocks of {elements} elements")
    channels = rows // elements
    # the pixel of each element of each block; one outside the image is written nowhere
    place, inside = np.zeros((elements, blocks), np.int64), np.ones((elements, blocks), bool)
    within, of_block = np.indices(block).reshape(spatial, -1, 1), np.indices(counts).reshape(spatial, 1, -1)
    for d in range(spatial):
        at = within[d] * dilations[d] + of_block[d] * strides[d] - pads[d]
        inside &= (at >= 0) & (at < image[d])
        place = place * image[d] + at
    b = call.b
    place = np.where(inside, place, -1)
    pixel = call.reshape(b.constant(place), (1, elements, blocks))
    pictures = batch * channels
    first = call.reshape(b.mul(b.iota(size=pictures), b.constant(np.int64(pixels))), (pictures, 1, 1))
    at = b.where(b.lt(pixel, 0), b.constant(np.int64(-1)), b.add(pixel, first))
    total = pictures * elements * blocks
    updates, places = (call.reshape(n, (total,)) for n in (x, at))
    flat = b.index_update(call.number(0, x), updates, places, axes=(0,), kind="add", shape=(pictures * pixels,))
    return call.reshape(flat, (batch, channels, *image))
