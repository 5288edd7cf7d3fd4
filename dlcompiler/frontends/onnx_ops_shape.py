"""Operators that give the same elements another shape or order."""

from __future__ import annotations

from dlcompiler.frontends.onnx_registry import Call, operator
from dlcompiler.ir.expression import Dim, floor_div, product, symbol_name
from dlcompiler.ir.graph import Node


@operator("Reshape")
def reshape(call: Call) -> Node:
    """0 keeps the input's dimension (unless `allowzero`), -1 is what is left."""
    x = call[0]
    wanted = call.attribute("shape", ()) if call.version < 5 else call.dims(1, "the shape to reshape to")
    shape: list[Dim] = []
    for position, size in enumerate(wanted):
        if size == 0 and not call.flag("allowzero"):
            if position >= x.tensor.rank:
                call.invalid(f"dimension {position} to keep is not in {x.type}")
            size = x.shape[position]
        if isinstance(size, int) and size < -1:
            call.invalid(f"dimension {position} is {size}")
        shape.append(size)
    unknown = [p for p, size in enumerate(shape) if size == -1]
    if len(unknown) > 1:
        call.invalid(f"more than one -1 in {list(wanted)}")
    if unknown:
        shape[unknown[0]] = _left_over(call, x, product(s for s in shape if s != -1))
        _open_hidden_size(call, x, shape, unknown[0])
    elif product(shape) != x.tensor.numel and not x.tensor.is_static:
        _open_baked_size(call, x, shape)
    return call.reshape(x, shape)


def _open_baked_size(call: Call, x: Node, shape: list[Dim]) -> None:
    """A shape that holds the batch it was traced with, where `fix_batch` asks for it.

    [1, 12, 64] of x[N, 768] --> [N, 12, 64]        [8, 16] of x[N, 2, 4, 16] --> [N * 8, 16]

    Proved: with all other dimensions as they are, nothing but the open size gives as many elements as `x` has; and it comes after
    as many elements' worth of dimensions as in `x`, so that every sample stays together and is what the file makes of one.
    """
    for position, size in enumerate(shape):
        others = product(s for p, s in enumerate(shape) if p != position)
        if not isinstance(size, int) or size < 1 or others == 0:
            continue
        needed = floor_div(x.tensor.numel, others)
        batch = needed if symbol_name(needed) is not None else floor_div(needed, size)
        if symbol_name(batch) is None or needed * others != x.tensor.numel or needed not in (batch, batch * size):
            continue
        axis = next((d for d, of in enumerate(x.shape) if floor_div(of, batch) * batch == of), None)
        if axis is None or product(x.shape[:axis]) != product(shape[:position]):
            continue
        source = call[1].location if call.get(1) is not None and call[1].location else "its shape"
        found = f"{source!r} {shape} holds {size} in dimension {position}, where {x.type} needs {needed}"
        if not call.baked.rewrite:
            call.misfit(f"the constant {found}: --fix-batch (fix_batch=True) rewrites it")
        shape[position] = needed
        call.baked.found(f"{call.location}: {found}")
        return


def _open_hidden_size(call: Call, x: Node, shape: list[Dim], unknown: int) -> None:
    """A batch of one in front, with the open batch in what is left: [1, -1, 64] of x[N, 3, 128] --> [N, 6, 64].

    What the file says is the same for a batch of one, and then for each sample alone: the rewritten shape does to every sample
    what the file does to one.
    """
    batch = x.shape[0] if x.tensor.rank else 1
    if unknown == 0 or shape[0] != 1 or symbol_name(batch) is None:
        return
    left = floor_div(shape[unknown], batch)
    if left * batch != shape[unknown]:
        return
    fixed = [batch, *shape[1:]]
    fixed[unknown] = left
    shown = [*shape]
    shown[unknown] = -1
    if call.baked.found(
        f"{call.location}: the shape {shown} of {x.type} hides the batch {batch} in its -1, and {fixed} does not"
    ):
        shape[:] = fixed


def _left_over(call: Call, x: Node, known: Dim) -> Dim:
    total = x.tensor.numel
    if known == 0:
        if total == 0:
            return 0
        call.misfit(f"cannot reshape {x.type} to no elements")
    size = floor_div(total, known)
    if size * known != total:
        call.misfit(f"{x.type} does not divide into parts of {known}")
    return size


@operator("Flatten")
def flatten(call: Call) -> Node:
    x = call[0]
    axis = call.axis(1, x.tensor.rank, end=True)
    return call.reshape(x, (product(x.shape[:axis]), product(x.shape[axis:])))


@operator("Squeeze")
def squeeze(call: Call) -> Node:
    x = call[0]
    axes = call.attribute("axes")
    if call.get(1) is not None:
        axes = call.numbers(1, "axes")
    if axes is None:
        dropped = tuple(d for d, size in enumerate(x.shape) if size == 1)
    else:
        dropped = call.normalize_all(axes, x.tensor.rank)
    for axis in dropped:
        if isinstance(x.shape[axis], int) and x.shape[axis] != 1:
            call.invalid(f"dimension {axis} of {x.type} is not 1")
    return call.reshape(x, (size for d, size in enumerate(x.shape) if d not in dropped))


@operator("Unsqueeze")
def unsqueeze(call: Call) -> Node:
    x = call[0]
    axes = call.attribute("axes") if call.version < 13 else call.numbers(1, "axes")
    places = call.normalize_all(axes, x.tensor.rank + len(axes))
    sizes = iter(x.shape)
    return call.reshape(x, (1 if d in places else next(sizes) for d in range(x.tensor.rank + len(axes))))


@operator("Transpose")
def transpose(call: Call) -> Node:
    x = call[0]
    rank = x.tensor.rank
    dims = call.attribute("perm", tuple(reversed(range(rank))))
    if len(dims) != rank:
        call.invalid(f"perm {dims} does not permute {rank} dimensions")
    return call.permute(x, call.normalize_all(dims, rank))


@operator("Expand")
def expand(call: Call) -> Node:
    """To the shape that the input and the wanted shape broadcast to."""
    x = call[0]
    wanted = call.dims(1, "the shape to expand to")
    rank = max(len(wanted), x.tensor.rank)
    ours = (*(1,) * (rank - x.tensor.rank), *x.shape)
    theirs = (*(1,) * (rank - len(wanted)), *wanted)
    if any(isinstance(d, int) and d < 0 for d in theirs):
        call.invalid(f"a dimension of {list(wanted)} is negative")
    return call.expand(x, (b if a == 1 else a if b == 1 else b for a, b in zip(ours, theirs)))


@operator("Tile")
def tile(call: Call) -> Node:
    x = call[0]
    if call.version < 6:
        call.unsupported("its form before opset 6")
    repeats = call.dims(1, "repeats")
    if len(repeats) != x.tensor.rank or any(isinstance(r, int) and r < 0 for r in repeats):
        call.invalid(f"repeats {list(repeats)} do not fit {x.type}")
    return tiled(call, x, repeats)


def tiled(call: Call, x: Node, repeats: tuple[Dim, ...]) -> Node:
    if all(r == 1 for r in repeats):
        return x
    split = [d for size in x.shape for d in (1, size)]
    spread = [d for repeat, size in zip(repeats, x.shape) for d in (repeat, size)]
    return call.reshape(call.expand(call.reshape(x, split), spread), (r * s for r, s in zip(repeats, x.shape)))


def _blocks(call: Call) -> tuple[Node, int]:
    x, block = call.require_rank(0, 4, 4), call.attribute("blocksize")
    if block < 1:
        call.invalid(f"blocksize is {block}")
    return x, block


@operator("DepthToSpace")
def depth_to_space(call: Call) -> Node:
    x, block = _blocks(call)
    n, c, h, w = x.shape
    mode = call.attribute("mode", "DCR")
    if mode not in ("DCR", "CRD"):
        call.invalid(f"mode is {mode!r}, not DCR or CRD")
    depth = floor_div(c, block * block)
    if mode == "DCR":
        parts = call.permute(call.reshape(x, (n, block, block, depth, h, w)), (0, 3, 4, 1, 5, 2))
    else:
        parts = call.permute(call.reshape(x, (n, depth, block, block, h, w)), (0, 1, 4, 2, 5, 3))
    return call.reshape(parts, (n, depth, h * block, w * block))


@operator("SpaceToDepth")
def space_to_depth(call: Call) -> Node:
    x, block = _blocks(call)
    n, c, h, w = x.shape
    mode = call.attribute("mode", "DCR")
    if mode not in ("DCR", "CRD"):
        call.invalid(f"mode is {mode!r}, not DCR or CRD")
    high, wide = floor_div(h, block), floor_div(w, block)
    parts = call.reshape(x, (n, c, high, block, wide, block))
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    return call.reshape(call.permute(parts, order), (n, c * block * block, high, wide))
