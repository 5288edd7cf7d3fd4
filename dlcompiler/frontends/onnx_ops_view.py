"""Operators that take tensors apart and put them together: concat, split, slice, pad."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from dlcompiler.frontends.onnx_registry import Call, operator
from dlcompiler.ir.expression import Dim, is_non_negative, maximum, minimum, symbol_name
from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import i64

FAR = 2**31 - 1  # exporters write a limit at least this large for "to the end"


@operator("Concat")
def concat(call: Call) -> Node:
    default = 1 if call.version < 4 else None
    axis = call.axis(default, call.require_rank(0, 1).tensor.rank)
    return call.concat(_of_one_batch(call, call.all, axis), axis)


def _of_one_batch(call: Call, parts: Sequence[Node], axis: int) -> Sequence[Node]:
    """Parts of which some are made for a batch of one: [1, 1, 8] beside [N, 16, 8] --> [N, 1, 8], the same for every sample."""
    if not all(part.shape for part in parts):
        return parts
    batches = {part.shape[0] for part in parts} - {1}
    batch = next(iter(batches), 1)
    if axis == 0 or len(batches) != 1 or symbol_name(batch) is None or all(part.shape[0] == batch for part in parts):
        return parts
    if not call.baked.found(f"{call.location}: a part has the batch 1 and another {batch}"):
        return parts
    return [part if part.shape[0] == batch else call.expand(part, (batch, *part.shape[1:])) for part in parts]


@operator("Split")
def split(call: Call) -> tuple[Node, ...]:
    x = call.require_rank(0, 1)
    axis = call.axis(0, x.tensor.rank)
    size = x.shape[axis]
    sizes: Sequence[Dim] | None = call.attribute("split")
    if call.get(1) is not None:
        sizes = call.dims(1, "the sizes of a split")
    if sizes is None:
        count = call.attribute("num_outputs", len(call.outputs))
        if count != len(call.outputs):
            call.invalid(f"num_outputs is {count}, but there are {len(call.outputs)} outputs")
        sizes = _equal_parts(size, count)
    total: Dim = sum(sizes, 0)
    if len(sizes) != len(call.outputs) or total != size or any(isinstance(s, int) and s < 0 for s in sizes):
        call.misfit(f"sizes {list(sizes)} do not split a dimension of {size} into {len(call.outputs)} outputs")
    parts: list[Node] = []
    start: Dim = 0
    for part in sizes:
        parts.append(call.slice(x, axis, start, start + part))
        start = start + part
    return tuple(parts)


def _equal_parts(size: Dim, count: int) -> list[Dim]:
    """Sizes of which the last is what is left. Of a size known only when called, parts that begin behind its end are empty."""
    if isinstance(size, int):
        chunk = -(-size // count)
        return [*(chunk,) * (count - 1), size - chunk * (count - 1)]
    part: Dim = (size + (count - 1)) // count
    ends = [k * part if k < 2 else minimum(k * part, size) for k in range(count)] + [size]
    return [end - start for start, end in pairwise(ends)]


# -- slice -------------------------------------------------------------------------------------------------------------------


def _clamped(call: Call, index: Dim, size: Dim, low: Dim, high: Dim) -> Dim:
    """An index counted from the front and brought into `[low, high]`; negative ones count from the end."""
    if isinstance(index, int):
        if index >= FAR:
            return high
        if index <= -FAR:
            return low
        if index < 0:
            index = size + index
    elif not is_non_negative(index) and is_non_negative(index * -1 - 1):
        index = size + index
    # a size that reads a table of fixed length from the front is bounded by it
    if not call.b.at_most(index, high, bounded=isinstance(high, int)):
        index = minimum(index, high)
    return index if call.b.at_most(low, index) else maximum(index, low)


@operator("Slice")
def slice_(call: Call) -> Node:
    """A negative step reads backwards: the dimension is flipped first."""
    x = call[0]
    rank = x.tensor.rank
    if call.version < 10:
        starts, ends = call.attribute("starts"), call.attribute("ends")
        axes, steps = call.attribute("axes", tuple(range(len(starts)))), (1,) * len(starts)
    else:
        starts, ends = call.dims(1, "starts of a slice"), call.dims(2, "ends of a slice")
        axes = call.numbers(3, "axes of a slice") if call.get(3) is not None else tuple(range(len(starts)))
        steps = call.numbers(4, "steps of a slice") if call.get(4) is not None else (1,) * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps):
        call.invalid("starts, ends, axes and steps differ in length")
    if 0 in steps:
        call.invalid("a step is 0")
    axes = call.normalize_all(axes, rank)
    backwards = tuple(a for a, step in zip(axes, steps) if step < 0)
    if backwards:
        x = call.b.flip(x, axes=backwards)
    all_starts: list[Dim] = [0] * rank
    all_limits, all_steps = list(x.shape), [1] * rank
    for start, end, axis, step in zip(starts, ends, axes, steps):
        size = x.shape[axis]
        if step > 0:
            first, last = _clamped(call, start, size, 0, size), _clamped(call, end, size, 0, size)
        else:
            # position i is size - 1 - i once flipped
            first = size - 1 - _clamped(call, start, size, 0, size - 1)
            last = size - 1 - _clamped(call, end, size, -1, size - 1)
        if isinstance(size, int) and size == 0:
            first = last = 0
        last = last if call.b.at_most(first, last) else maximum(first, last)
        all_starts[axis], all_limits[axis], all_steps[axis] = first, last, abs(step)
    if all_starts == [0] * rank and all_limits == list(x.shape) and all_steps == [1] * rank:
        return x
    return call.b.slice(x, starts=tuple(all_starts), limits=tuple(all_limits), steps=tuple(all_steps))


# -- pad ---------------------------------------------------------------------------------------------------------------------


def crop_or_pad(call: Call, x: Node, low: Sequence[Dim], high: Sequence[Dim], value=0) -> Node:
    """`x` with that many elements added on each side, or removed where negative."""
    rank = x.tensor.rank
    cuts_low, cuts_high = ([maximum(p * -1, 0) if _negative(p) else 0 for p in side] for side in (low, high))
    if any(c != 0 for c in (*cuts_low, *cuts_high)):
        limits = tuple(size - c for size, c in zip(x.shape, cuts_high))
        x = call.b.slice(x, starts=tuple(cuts_low), limits=limits, steps=(1,) * rank)
    adds_low, adds_high = (tuple(0 if _negative(p) else p for p in side) for side in (low, high))
    if any(p != 0 for p in (*adds_low, *adds_high)):
        x = call.b.pad(x, low=adds_low, high=adds_high, value=value)
    return x


def _negative(amount: Dim) -> bool:
    return isinstance(amount, int) and amount < 0


@operator("Pad")
def pad(call: Call) -> Node:
    x = call[0]
    rank = x.tensor.rank
    mode = call.attribute("mode", "constant")
    if call.version < 11:
        amounts = call.attribute("pads", call.attribute("paddings"))
        value = call.attribute("value", 0.0)
        axes = tuple(range(rank))
    else:
        amounts = call.dims(1, "pads")
        value = call.scalar(2, "the value to pad with") if call.get(2) is not None else 0
        axes = call.numbers(3, "axes of a pad") if call.get(3) is not None else tuple(range(rank))
    axes = call.normalize_all(axes, rank)
    if len(amounts) != 2 * len(axes):
        call.invalid(f"{len(amounts)} pads do not fit {len(axes)} dimensions")
    low: list[Dim] = [0] * rank
    high: list[Dim] = [0] * rank
    for k, axis in enumerate(axes):
        low[axis], high[axis] = amounts[k], amounts[len(axes) + k]
    if mode == "constant":
        return crop_or_pad(call, x, low, high, value)
    if mode not in ("reflect", "edge", "wrap"):
        call.invalid(f"mode is {mode!r}, not constant, reflect, edge or wrap")
    x = crop_or_pad(call, x, [p if _negative(p) else 0 for p in low], [p if _negative(p) else 0 for p in high])
    for axis, (before, behind) in enumerate(zip(low, high)):
        before, behind = (0 if _negative(p) else p for p in (before, behind))
        if before != 0 or behind != 0:
            x = _pad_by_index(call, x, axis, before, behind, mode)
    return x


def _pad_by_index(call: Call, x: Node, axis: int, before: Dim, behind: Dim, mode: str) -> Node:
    """Padding read from `x` itself: each place along the axis as the place it repeats."""
    size = x.shape[axis]
    if size == 0:
        call.invalid(f"cannot pad an empty dimension by {mode}")
    last = call.size(size - 1, i64)
    place = call.b.sub(call.b.iota(size=size + before + behind), call.size(before, i64))
    if mode == "edge":
        place = call.b.minimum(call.b.maximum(place, 0), last)
    elif mode == "wrap":
        place = call.b.remainder(place, call.size(size, i64))
    else:
        # back and forth with period 2(size-1); a single element repeats
        period = call.b.maximum(call.b.mul(last, 2), 1)
        turn = call.b.remainder(place, period)
        place = call.b.minimum(call.b.minimum(turn, call.b.sub(period, turn)), last)
    return call.b.index(x, place, axes=(axis,))
