"""Schedules for CPUs: how a kernel's loops run. What a kernel means is in the kernel; this is only about speed.

`schedule_kernel` looks at how each load and store moves through memory along each axis and decides which axis fills vector
lanes, which are merged, in what order the rest run, what is unrolled, and what one thread takes at a time. A `Schedule` is plain
data and prints on one line.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from dlcompiler.codegen.choices import NOTHING, Answer
from dlcompiler.ir import kernel as K
from dlcompiler.ir.expression import Dim, evaluate, linear_coefficients, product, substitute, symbols

# Scalar operations that cost tens of instructions: worth keeping a row of their results rather than computing them twice.
EXPENSIVE = frozenset(
    "exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh erf erfc erfinv lgamma "
    "digamma sigmoid pow atan2 hypot floor_div trunc_div remainder fmod".split()
)
MAXIMUM_SCRATCH_BYTES = 1 << 19
# Elements of one work item: large enough to hide the cost of starting it, small enough to share out.
BLOCK_ELEMENTS = 8192
# Tiles turned in registers that one work item does next to each other, so that whole cache lines and pages are used at once.
TILES_SIDE_BY_SIDE = 4
# Elements below which a second thread costs more than it gives (a parallel region is about 2 microseconds).
GRAIN_ELEMENTS = 16384


@dataclass(frozen=True, eq=False)
class Access:
    """One load or store: its distance in elements from the buffer's start, and that distance's coefficient along each axis.

    `coefficients` is None where the distance is not linear in the axes (a division, or an index that data gives).
    """

    statement: K.Load | K.Store
    offset: Dim
    coefficients: dict[str, Dim] | None
    # axes that an index given by data depends on
    indirect_axes: frozenset[str] = frozenset()

    def lane_stride(self, axis: str | None) -> Dim | None:
        """As `stride`, where an index that data gives is the same for all lanes."""
        if axis is None or self.coefficients is not None or axis in self.indirect_axes:
            return None if self.coefficients is None else self.stride(axis)
        linear = linear_coefficients(self.offset, (axis,))
        return None if linear is None else linear.get(axis, 0)

    def stride(self, axis: str | None) -> Dim | None:
        """Elements moved for one step of the axis (0 for no axis); None if that is not a constant of the loop."""
        if axis is None:
            return 0
        if self.coefficients is not None:
            return self.coefficients.get(axis, 0)
        return 0 if axis not in symbols(self.offset) else None


@dataclass(frozen=True, eq=False)
class Schedule:
    """How a kernel runs.

    axes      axes after merging, with extents
    rows      axes that are not reduced and not vectorised, outermost first: one work item is one point of them (and a block)
    inner     reduced axes, outermost first
    vector    the axis that fills lanes, or None for a kernel of single elements
    lanes     elements of one vector; unroll: vectors computed side by side, along `unroll_axis`
    block     elements of the vector axis in one work item; None for all
    streams   stores go past the caches: the results are too large to be there when they are read
    """

    axes: dict[str, Dim]
    rows: tuple[str, ...]
    inner: tuple[str, ...]
    vector: str | None
    lanes: int
    unroll: int
    unroll_axis: str | None
    block: int | None
    grain: int
    streams: bool = False
    accesses: dict[object, Access] = field(repr=False, default_factory=dict)

    @property
    def vector_is_reduced(self) -> bool:
        return self.vector in self.inner

    @property
    def lane_axis(self) -> str:
        """The vector axis of a kernel that has one."""
        assert self.vector is not None
        return self.vector

    @property
    def turned_axis(self) -> str:
        """The unrolled axis of a kernel that turns tiles in registers."""
        assert self.unroll_axis is not None
        return self.unroll_axis

    @property
    def transposes(self) -> bool:
        """Whether tiles are turned in registers: some buffers run along the vector axis, others along the unrolled one."""
        return self.unroll_axis is not None and self.unroll_axis != self.vector

    @property
    def blocks(self) -> Dim:
        """Work items along the vector axis."""
        if self.vector is None or self.vector_is_reduced or self.block is None:
            return 1
        return (self.axes[self.vector] + (self.block - 1)) // self.block

    @property
    def row_extents(self) -> list[Dim]:
        """Work items along each of `rows`."""
        if not self.transposes:
            return [self.axes[a] for a in self.rows]
        return [(self.axes[a] + (self.tile - 1)) // self.tile if a == self.unroll_axis else self.axes[a] for a in self.rows]

    @property
    def tile(self) -> int:
        """Elements of the unrolled axis in one work item, where tiles are turned in registers."""
        return self.unroll * TILES_SIDE_BY_SIDE

    @property
    def work(self) -> Dim:
        """The number of work items."""
        return product(self.row_extents) * self.blocks

    def __str__(self) -> str:
        parts = [f"rows({', '.join(self.rows)})"]
        if self.inner:
            parts.append(f"reduce({', '.join(self.inner)})")
        if self.vector is not None:
            parts.append(f"vector({self.vector}, {self.lanes} lanes)")
        if self.unroll > 1:
            parts.append(f"unroll({self.unroll_axis}, {self.unroll}{', transposed in registers' if self.transposes else ''})")
        if self.block is not None:
            parts.append(f"block({self.block})")
        if self.streams:
            parts.append("streaming stores")
        return " ".join([*parts, f"grain({self.grain})"])


def _index_uses(kernel: K.Kernel) -> frozenset[str]:
    """Axes whose value is used as a number (not merely to address): they cannot be merged."""
    used: set[str] = set()
    for value in kernel.values:
        if isinstance(value, K.Index | K.Within):
            used |= value._index_symbols()
        elif isinstance(value, K.Load):
            used |= frozenset().union(*(symbols(b.expression) | symbols(b.extent) for b in value.guard))
        elif isinstance(value, K.Reduce) and value.kind in ("argmax", "argmin"):
            used |= set(value.over)
    return frozenset(used)


def _accesses(kernel: K.Kernel) -> list[Access]:
    statements: list[K.Load | K.Store] = [*(v for v in kernel.values if isinstance(v, K.Load)), *kernel.stores]
    found = []
    for statement in statements:
        offset = statement.buffer.offset(statement.index)
        indirect = any(s.startswith("@") for s in symbols(offset))
        values = statement.indirect if isinstance(statement, K.Load) else ()
        axes: frozenset[str] = frozenset().union(*(kernel.axes_of[v] for v in values))
        found.append(Access(statement, offset, None if indirect else linear_coefficients(offset, kernel.extents), axes))
    return found


def merge_axes(
    kernel: K.Kernel, known: Mapping[K.Load, Access] | None = None, keep: frozenset[str] = frozenset()
) -> tuple[dict[str, Dim], list[Access]]:
    """Merge an outer axis into the inner one it continues: x[i*8 + j] over i < 4, j < 8 --> x[j] over j < 32.

    `known` are accesses that are not what the load's index says; axes in `keep` are not merged.
    """
    known = known or {}
    axes = dict(kernel.extents)
    accesses = [known.get(a.statement, a) if isinstance(a.statement, K.Load) else a for a in _accesses(kernel)]
    fixed = _index_uses(kernel) | keep
    reduced = kernel.reduced_axes
    merged = True
    while merged:
        merged = False
        for outer in axes:
            for inner in axes:
                if outer == inner or {outer, inner} & fixed or (outer in reduced) != (inner in reduced):
                    continue
                if all(_continues(a, outer, inner, axes[inner]) for a in accesses):
                    accesses = [_without_axis(a, outer) for a in accesses]
                    axes[inner] = axes[outer] * axes[inner]
                    del axes[outer]
                    merged = True
                    break
            if merged:
                break
    return axes, accesses


def _continues(access: Access, outer: str, inner: str, extent: Dim) -> bool:
    if access.coefficients is None:
        return not {outer, inner} & symbols(access.offset)
    return access.coefficients.get(outer, 0) == access.coefficients.get(inner, 0) * extent


def _without_axis(access: Access, axis: str) -> Access:
    coefficients = access.coefficients
    if coefficients is not None:
        coefficients = {a: c for a, c in coefficients.items() if a != axis}
    return Access(access.statement, substitute(access.offset, {axis: 0}), coefficients, access.indirect_axes)


def size_estimate(extent: Dim) -> int:
    """An extent for the cost model, at least 1: symbolic sizes count as 256."""
    if isinstance(extent, int):
        return max(extent, 1)
    return max(evaluate(extent, {s: 256 for s in symbols(extent)}), 1)


def _vector_cost(axis: str, axes: Mapping[str, Dim], reduced: frozenset[str], accesses: Iterable[Access], lanes: int) -> float:
    """Estimated cost of an element if this axis fills the lanes: contiguous 1, the same for all lanes 0.2, scattered 6.

    What comes once for all elements of a reduction hardly counts.
    """
    once = 1 / math.prod(size_estimate(axes[a]) for a in reduced)
    total = 0.0
    for access in accesses:
        stride = access.lane_stride(axis)
        weight = 1.5 if isinstance(access.statement, K.Store) else 1.0
        if not access.indirect_axes & reduced and all(access.stride(a) == 0 for a in reduced):
            weight *= once
        total += weight * (0.2 if stride == 0 else 1.0 if stride == 1 else 2.0 if stride == -1 else 6.0)
    size = size_estimate(axes[axis])
    used = size / (-(-size // lanes) * lanes)
    return total / max(used, 1e-3)


def _choose_vector(
    axes: dict[str, Dim], reduced: frozenset[str], accesses: list[Access], lanes: int, preferred: list[str]
) -> str | None:
    if not axes:
        return None
    return min(axes, key=lambda a: (_vector_cost(a, axes, reduced, accesses, lanes), -preferred.index(a)))


def _lane_count(kernel: K.Kernel, vector_bytes: int) -> int:
    """Lanes for the widest float or small integer computed; 64-bit indices among narrower values take two registers each."""
    sizes = [v.dtype.bytes for v in kernel.values if not isinstance(v, K.Constant | K.Index)] or [4]
    widest = max(sizes)
    if widest == 8 and any(v.dtype.is_float and v.dtype.bytes <= 4 for v in kernel.values):
        widest = 4
    return vector_bytes // max(widest, 1)


def _memory_order(axes: Iterable[str], accesses: list[Access]) -> list[str]:
    """Axes from the largest stride of the stores to the smallest; axes that no store knows by their loads."""

    def key(axis: str) -> tuple[float, float]:
        store = max((_stride_size(a, axis) for a in accesses if isinstance(a.statement, K.Store)), default=0)
        load = max((_stride_size(a, axis) for a in accesses if isinstance(a.statement, K.Load)), default=0)
        return (-store, -load) if store else (-load, -load)

    return sorted(axes, key=key)


def _stride_size(access: Access, axis: str) -> int:
    stride = access.stride(axis)
    if stride is None:
        return 1
    return abs(stride) if isinstance(stride, int) else abs(evaluate(stride, {s: 256 for s in symbols(stride)}))


def _transposed_axis(
    vector: str, axes: dict[str, Dim], reduced: frozenset[str], accesses: list[Access], lanes: int
) -> str | None:
    """Another axis along which buffers that are scattered along the vector axis are contiguous, if a tile of both fits."""
    wanted: set[str] = set()
    for access in accesses:
        if access.coefficients is None:
            return None
        stride = access.stride(vector)
        if stride in (0, 1):
            continue
        along = [a for a in axes if a != vector and access.stride(a) == 1]
        if len(along) != 1 or along[0] in _guarding(access):
            return None
        wanted.add(along[0])
    if len(wanted) != 1:
        return None
    (axis,) = wanted
    return axis if axis not in reduced and size_estimate(axes[axis]) >= lanes // 2 else None


def _guarding(access: Access) -> frozenset[str]:
    """Axes that the condition of a load moves along."""
    guard = access.statement.guard if isinstance(access.statement, K.Load) else ()
    return frozenset().union(*(symbols(bound.expression) | symbols(bound.extent) for bound in guard))


def _unroll(values: Iterable[K.Value]) -> int:
    """Vectors side by side, of these values each: enough to hide latency, few enough to stay in registers."""
    weight = sum(6 if isinstance(v, K.Compute) and v.op in EXPENSIVE else 1 for v in values if not isinstance(v, K.Constant))
    return 4 if weight <= 12 else 2 if weight <= 40 else 1


def _streams(kernel: K.Kernel, accesses: Iterable[Access], vector: str | None, vector_bytes: int, cache_bytes: int) -> bool:
    """Whether stores should go past the caches: what the kernel touches does not fit, and every vector stored is aligned."""
    touched = 0
    for buffer in kernel.buffers:
        size = product(buffer.shape)
        if not isinstance(size, int):
            return False
        touched += size * buffer.dtype.bytes
    if touched <= cache_bytes or vector is None:
        return False
    for access in accesses:
        if isinstance(access.statement, K.Store):
            if access.coefficients is None or access.stride(vector) != 1:
                return False
            steps = (c for a, c in access.coefficients.items() if a != vector)
            if any(not isinstance(c, int) or c * access.statement.buffer.dtype.bytes % vector_bytes for c in steps):
                return False
    return True


def schedule_kernel(kernel: K.Kernel, vector_bytes: int, cache_bytes: int = 1 << 62, chosen: Answer = NOTHING) -> Schedule:
    """Choose how `kernel` runs on a CPU whose vector registers hold `vector_bytes` and whose last cache holds `cache_bytes`.

    `chosen` may say unroll, block, streams (0 or 1) and grain. Deterministic; never looks at data.
    """
    axes, accesses = merge_axes(kernel)
    reduced = kernel.reduced_axes & frozenset(axes)
    lanes = _lane_count(kernel, vector_bytes)
    order = _memory_order(axes, accesses)
    vector = _choose_vector(axes, reduced, accesses, lanes, order)
    # down columns only what is computed in each row counts
    counted = kernel.reduced_axes if reduced and vector not in reduced else None
    estimate = _unroll(v for v in kernel.values if counted is None or kernel.axes_of[v] & counted)
    unroll = max(1, int(chosen.get("unroll", estimate)))
    unroll_axis = vector
    if vector is not None and vector not in reduced and not reduced:
        turned = _transposed_axis(vector, axes, reduced, accesses, lanes)
        if turned is not None and lanes > 1:
            unroll, unroll_axis = lanes, turned
    rows = tuple(a for a in order if a not in reduced and a != vector)
    inner = tuple(a for a in order if a in reduced and a != vector)
    if vector is not None and vector in reduced:
        inner = (*inner, vector)
    if vector is not None and unroll_axis == vector:
        unroll = max(1, min(unroll, -(-size_estimate(axes[vector]) // lanes)))
    block = None
    row_elements = math.prod(size_estimate(axes[a]) for a in rows)
    if vector is not None and vector not in reduced:
        per_element = math.prod(size_estimate(axes[a]) for a in inner)
        step = lanes * (unroll if unroll_axis == vector else 1)
        target = max(BLOCK_ELEMENTS // max(per_element, 1), step)
        if reduced:
            target = step
        if size_estimate(axes[vector]) > target and (row_elements < 64 or reduced or not isinstance(axes[vector], int)):
            block = -(-target // step) * step
        if "block" in chosen:
            block = -(-max(int(chosen["block"]), 1) // step) * step
    if "streams" in chosen:
        cache_bytes = 0 if chosen["streams"] else 1 << 62
    tile = unroll * TILES_SIDE_BY_SIDE if unroll_axis != vector else 1
    return Schedule(
        axes,
        rows,
        inner,
        vector,
        lanes if vector else 0,
        unroll if vector else 1,
        unroll_axis,
        block,
        max(1, int(chosen["grain"])) if "grain" in chosen else _grain(kernel, axes, rows, vector, block, tile),
        unroll_axis == vector and _streams(kernel, accesses, vector, vector_bytes, cache_bytes),
        {a.statement: a for a in accesses},
    )


def _grain(
    kernel: K.Kernel, axes: dict[str, Dim], rows: tuple[str, ...], vector: str | None, block: int | None, tile: int
) -> int:
    """Work items below which one thread does them all."""
    elements = math.prod(size_estimate(e) for a, e in axes.items() if a not in rows) * tile
    if block is not None and vector is not None:
        elements = elements // max(size_estimate(axes[vector]), 1) * block
    weight = 1 + sum(8 if isinstance(v, K.Compute) and v.op in EXPENSIVE else 1 for v in kernel.values) / 8
    return max(1, int(GRAIN_ELEMENTS / weight / max(elements, 1)))
