"""Contractions in Kernel IR: a sum of products whose factors share only the summed axes, found by its form.

    v2 = mul(v0, v1)                    rows     v0, over axes i, l
    v3 = reduce.add(v2) over l   -->    columns  v1, over axes k, l
    (v0 over i, l; v1 over k, l)        summed   l

Matrix products and convolutions are of this form however many axes they have, with any function of the sum and of other loads on
top. One factor is called the rows, the other the columns: the columns' axis that runs through the result without gaps fills
vector lanes. Axes that both factors have (and that are not summed) are batch axes. Where the columns have no axis of their own,
as in a depthwise convolution, a batch axis fills the lanes: then each lane multiplies numbers of its own.

Factors may be stored in a narrower type than the sum has (bfloat16 for float32, int8 for int32): then they are loads under casts.
Panels keep the stored type, so that they take half the memory or a quarter, and `depth` neighbouring summed positions of one
column lie side by side in them: together they are as wide as a sum, and one lane multiplies them all.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from dlcompiler.ir import kernel as K
from dlcompiler.ir.expression import (
    Dim,
    evaluate,
    floor_div,
    linear_coefficients,
    modulo,
    recombine,
    substitute,
    symbol,
    symbol_name,
    symbols,
    terms_of,
)
from dlcompiler.ir.types import DType, bf16, boolean, contiguous_strides, f16, f32, i8, i32, u8

# Types of which panels are made as they are.
STORED_NARROW = (bf16, f16, i8, u8)


@dataclass(frozen=True, eq=False)
class Contraction:
    """The parts of a kernel that is a contraction. Axis names are in the kernel's order.

    load      of the rows: they are this load, cast, and `outside` where one of its guards fails
    packed    the load of the columns, under a cast, if they lie in panels (see `pack_columns`)
    vector    the axis that fills lanes: of the columns' own axes, or else of the batch axes, the one with the smallest stride in
              the result
    deep      the summed axis of which panels have several neighbouring positions side by side, if there is one
    depth     how many
    """

    reduce: K.Reduce
    rows: K.Value
    columns: K.Value
    load: K.Load
    packed: K.Load | None
    batch_axes: tuple[str, ...]
    row_axes: tuple[str, ...]
    column_axes: tuple[str, ...]
    vector: str
    deep: str | None = None
    depth: int = 1
    outside: float = 0

    @property
    def columns_load(self) -> K.Load | None:
        """The load that the columns are, under a cast to a wider type; None if they are computed."""
        return stored_load(self.columns)

    @property
    def is_lanewise(self) -> bool:
        """Whether each lane has rows of its own, and a number of a row is not the same for all lanes."""
        return self.vector in self.batch_axes

    def is_row_major(self) -> bool:
        """Whether columns of one summed position lie next to each other, so that vectors can be loaded from them as they are."""
        load = self.columns_load
        return load is not None and _stride(load, self.vector) == 1


# What was found in kernels that are still in use: each is asked about several times on its way to code.
_found: WeakKeyDictionary[K.Kernel, dict[frozenset[K.Buffer], Contraction | None]] = WeakKeyDictionary()


def find_contraction(kernel: K.Kernel, fixed: Set[K.Buffer] = frozenset()) -> Contraction | None:
    """The contraction that a kernel is, with whatever it does to each sum; None if it is none.

    `fixed` buffers keep their contents between launches, as weights do: a factor of these alone is taken as the columns.
    """
    known = _found.setdefault(kernel, {})
    key = frozenset(fixed)
    if key not in known:
        known[key] = _look_for_contraction(kernel, key)
    return known[key]


def _look_for_contraction(kernel: K.Kernel, fixed: frozenset[K.Buffer]) -> Contraction | None:
    reduces = [value for value in kernel.values if isinstance(value, K.Reduce)]
    if len(reduces) != 1:
        return None
    (reduce,) = reduces
    product = reduce.operand
    if reduce.kind != "add" or not isinstance(product, K.Compute) or product.op != "mul":
        return None
    summed = frozenset(reduce.over)
    axes_of = kernel.axes_of
    outer = frozenset(kernel.extents) - summed
    if axes_of[reduce] != outer or any(not summed <= axes_of[factor] for factor in product.inputs):
        return None
    for store in kernel.stores:
        # what is done to a sum does not run over the summed axes again
        if summed & (axes_of[store.value].union(*map(symbols, store.index))):
            return None
    left, right = product.inputs
    for rows, columns in _orders(kernel, reduce, left, right, fixed):
        found = _as_contraction(kernel, reduce, rows, columns)
        if found is not None:
            return found
    return None


def _orders(
    kernel: K.Kernel, reduce: K.Reduce, left: K.Value, right: K.Value, fixed: frozenset[K.Buffer]
) -> list[tuple[K.Value, K.Value]]:
    """(rows, columns) to try: what is packed or fixed as columns, else what runs through the result without gaps."""

    def columns_first(factor: K.Value) -> tuple[bool, bool, bool]:
        loads = loads_under(factor)
        axes = kernel.axes_of[factor]
        return (
            find_panels(factor, reduce.over) is not None,
            bool(loads) and all(load.buffer in fixed for load in loads),
            _innermost(kernel, frozenset(axes)) is not None and _innermost(kernel, frozenset(kernel.extents)) in axes,
        )

    pairs = [(left, right), (right, left)]
    return sorted(pairs, key=lambda pair: columns_first(pair[1]), reverse=True)


def _as_contraction(kernel: K.Kernel, reduce: K.Reduce, rows: K.Value, columns: K.Value) -> Contraction | None:
    axes_of = kernel.axes_of
    guarded = _guarded_load(rows)
    if guarded is None or guarded[0].indirect or rows is columns:
        return None
    load, outside = guarded
    if any(value.indirect for value in loads_under(columns)):
        return None
    order = [a.name for a in kernel.axes]
    outer = frozenset(order) - frozenset(reduce.over)
    of_rows, of_columns = axes_of[rows] & outer, axes_of[columns] & outer
    both = of_rows & of_columns
    column_axes = of_columns - both
    panels = find_panels(columns, reduce.over)
    vector = panels.vector if panels is not None else _innermost(kernel, column_axes or both)
    if vector is None or vector not in (column_axes or both):
        return None
    if not column_axes and _stride(load, vector) != 1:
        return None

    def ordered(names: frozenset[str]) -> tuple[str, ...]:
        return tuple(name for name in order if name in names)

    packed, deep, depth = (None, None, 1) if panels is None else (panels.load, panels.deep, panels.depth)
    return Contraction(
        reduce, rows, columns, load, packed, ordered(both), ordered(of_rows - both), ordered(column_axes), vector, deep, depth,
        outside,
    )  # fmt: skip


def _guarded_load(rows: K.Value) -> tuple[K.Load, float] | None:
    """The load under casts and under one `where` that gives a constant outside its guard, and the constant; 0 without a guard."""
    value = rows
    while isinstance(value, K.Compute) and value.op in ("cast", "where"):
        if value.op == "cast":
            (value,) = value.inputs
            continue
        condition, inside, outside = value.inputs
        found = _guarded_load(inside)
        if found is None or not isinstance(outside, K.Constant) or not isinstance(condition, K.Within):
            return None
        load, constant = found
        if set(condition.bounds) != set(load.guard) or constant != 0:
            return None
        return load, outside.value
    return (value, 0) if isinstance(value, K.Load) else None


def group_size(dtype: DType, total: DType) -> int:
    """How many neighbouring summed positions of a column lie side by side in panels: as many as are as wide as a sum.

    One of what instructions for neighbouring lanes widen: float16, and bytes that are multiplied as floats.
    """
    if dtype is f16 or (dtype.bytes == 1 and total.is_float):
        return 1
    return total.bytes // dtype.bytes if dtype in STORED_NARROW else 1


def widens(source: DType, target: DType) -> bool:
    """Whether panels hold numbers of `source` that are read as `target`: then that is exact, and as wide as a group of them."""
    return source in STORED_NARROW and (target in (f32, i32) or (source.bytes == 1 and target in (bf16, f16)))


def stored(value: K.Value) -> K.Value:
    """What a factor is in memory: the value under casts from a type that panels are made of; the value itself if it is none."""
    found = value
    while isinstance(found, K.Compute) and found.op == "cast" and widens(found.inputs[0].dtype, found.dtype):
        (found,) = found.inputs
    return found if value.dtype.bytes == 4 else value


def stored_load(value: K.Value) -> K.Load | None:
    """The load that a factor is, under such a cast; None if it is computed."""
    found = stored(value)
    return found if isinstance(found, K.Load) else None


def loads_under(root: K.Value) -> list[K.Load]:
    """Every load that a value is computed from."""
    return [value for value in _values_under(root) if isinstance(value, K.Load)]


def _values_under(root: K.Value) -> list[K.Value]:
    found: dict[K.Value, None] = {}
    stack = [root]
    while stack:
        value = stack.pop()
        if value not in found:
            found[value] = None
            stack.extend(value.operands)
    return list(found)


def _innermost(kernel: K.Kernel, axes: frozenset[str]) -> str | None:
    """Of these axes the one along which the first store takes the smallest step."""
    store = kernel.stores[0]
    offset = store.buffer.offset(store.index)
    coefficients = linear_coefficients(offset, kernel.extents)
    if coefficients is None:
        return None
    steps = {axis: step for axis, step in coefficients.items() if axis in axes}
    return min(steps, key=lambda axis: (_size(steps[axis]), axis), default=None)


def _size(dim: Dim) -> int:
    """A stride to compare with others: symbolic sizes count as 256."""
    return abs(evaluate(dim, {name: 256 for name in symbols(dim)}))


def offset_of(load: K.Load) -> Dim:
    """Elements from the start of a load's buffer: what was split to index dimensions is put together again where it can be."""
    return recombine(load.buffer.offset(load.index))


def _stride(load: K.Load, axis: str) -> Dim | None:
    coefficients = linear_coefficients(offset_of(load), load._index_symbols())
    return None if coefficients is None else coefficients.get(axis, 0)


def row_strides(kernel: K.Kernel, contraction: Contraction) -> dict[str, Dim] | None:
    """Elements that the rows' load moves for one step of each axis; None where that is not linear."""
    coefficients = linear_coefficients(offset_of(contraction.load), kernel.extents)
    return None if coefficients is None else {a: s for a, s in coefficients.items() if a}


def summation_order(kernel: K.Kernel, contraction: Contraction) -> tuple[str, ...]:
    """The summed axes, outermost first: the rows are walked through in the order of their memory."""
    strides = row_strides(kernel, contraction) or {}
    return tuple(sorted(contraction.reduce.over, key=lambda axis: -_size(strides.get(axis, 0))))


# -- panels ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panels:
    """How a load reads panels: the axis in lanes, the summed axis in groups of `depth`, if there is one, and the load itself."""

    load: K.Load
    vector: str
    deep: str | None
    depth: int

    @property
    def width(self) -> int:
        """Columns of a panel."""
        width = self.load.buffer.shape[-1 if self.deep is None else -2]
        assert isinstance(width, int)
        return width

    def linear_offset(self) -> Dim:
        """Elements from the start of the buffer to the first lane of the first panel; right where `deep` is at a whole group.

        Within a panel it is linear in the summed axes; which panel it is, is counted apart.
        """
        load = self.load
        total: Dim = 0
        n, k = symbol(self.vector), symbol(self.deep) if self.deep is not None else None
        apart = {modulo(n, self.width), floor_div(n, self.width)}
        for index, stride in zip(load.index, load.buffer.strides):
            if index in apart or (k is not None and index == modulo(k, self.depth)):
                continue
            step = index * stride if k is None or index != floor_div(k, self.depth) else k * floor_div(stride, self.depth)
            total = total + step
        return total

    def panel_stride(self) -> Dim:
        """Elements from one panel to the next."""
        which = floor_div(symbol(self.vector), self.width)
        return next(stride for index, stride in zip(self.load.index, self.load.buffer.strides) if index == which)


def find_panels(columns: K.Value, summed: Collection[str]) -> Panels | None:
    """How the columns lie in panels: the last index of their load is n mod width, or the last two n mod width and k mod depth.

    n div width and k div depth are other indices, k is `summed` and n is not. None where they do not. A tensor of a model's own
    may be indexed like panels: it is some only if it lies as `pack_columns` would store it.
    """
    load = stored_load(columns)
    if load is None or len(load.index) < 3 or load.buffer.strides[-1] != 1:
        return None
    last, before = _digit(load, -1), _digit(load, -2)
    if last is not None and last not in summed:
        return Panels(load, last, None, 1) if _lies_in_panels(load, last, summed) else None
    if last is None or before is None or before in summed:
        return None
    depth = load.buffer.shape[-1]
    if depth != group_size(load.dtype, columns.dtype) or load.buffer.strides[-2] != depth:
        return None
    assert isinstance(depth, int)
    return Panels(load, before, last, depth)


def _lies_in_panels(load: K.Load, vector: str, summed: Collection[str]) -> bool:
    """Whether a panel is memory without gaps that has all summed positions; heads of a tensor, say, come once for each batch."""
    width = load.buffer.shape[-1]
    first = load.index.index(floor_div(symbol(vector), width))
    if load.buffer.strides[first:] != contiguous_strides(load.buffer.shape[first:]):
        return False
    return not any(symbols(index) & set(summed) for index in load.index[:first])


def _digit(load: K.Load, dimension: int) -> str | None:
    """The axis a if an index is a mod size, and a div size is an index further out.

    Right beside it would be two dimensions of an image, read as one: what is summed lies between them in panels.
    """
    size = load.buffer.shape[dimension]
    if not isinstance(size, int) or size < 2:
        return None
    for name in symbols(load.index[dimension]):
        a = symbol(name)
        if load.index[dimension] == modulo(a, size) and floor_div(a, size) in load.index[: dimension - 1]:
            return name
    return None


def pack_columns(kernel: K.Kernel, contraction: Contraction, width: int) -> tuple[K.Kernel, K.Kernel]:
    """A kernel that stores the columns in panels, and the same contraction reading them from there.

        load w[n, k]  -->  panels[p, k, q] = w[width*p + q, k];  load panels[n div width, k, n mod width]
        w: bf16       -->  panels[p, j, q, r] = w[width*p + q, 2*j + r];  load panels[n div width, k div 2, n mod width, k mod 2]

    A panel holds `width` neighbouring columns for all summed positions, in the order in which they are needed, and is filled
    up with zeros. Whatever is done to the columns (a scale, a cast of what is not stored narrow) is done once, while packing. The
    first kernel has one out buffer, `panels`, which is also the last in-buffer of the second one.
    """
    extents = kernel.extents
    n = contraction.vector
    columns = contraction.columns
    kept = columns if contraction.is_lanewise else stored(columns)
    dtype = kept.dtype
    depth = 1 if kept is columns else group_size(kept.dtype, columns.dtype)
    of_columns = kernel.axes_of[columns]
    lead = [axis for axis in (*contraction.batch_axes, *contraction.column_axes) if axis in of_columns and axis != n]
    lead = [a.name for a in kernel.axes if a.name in lead]
    *outer, k = summation_order(kernel, contraction)
    panels, groups = (floor_div(extents[axis] + (size - 1), size) for axis, size in ((n, width), (k, depth)))
    shape = (*(extents[a] for a in lead), panels, *(extents[a] for a in outer), groups, width, *([depth] if depth > 1 else []))
    packed = K.Buffer(_fresh("panels", [b.name for b in kernel.buffers]), dtype, shape, contiguous_strides(shape), "in")
    p, q, j, r = (_fresh(name, extents) for name in "pqjr")
    places: dict[str, Dim] = {n: symbol(p) * width + symbol(q) if panels != 1 else symbol(q)}
    if depth > 1:
        places[k] = symbol(j) * depth + symbol(r) if groups != 1 else symbol(r)
    sizes = {n: width, k: depth}
    bounds = tuple(K.Bound(place, extents[a]) for a, place in places.items() if modulo(extents[a], sizes[a]) != 0)
    value = moved(kept, places, bounds)
    if bounds:
        value = K.Compute(dtype, "where", (K.Within(boolean, bounds), value, K.Constant(dtype, 0.0 if dtype.is_float else 0)))
    out = K.Buffer(packed.name, dtype, shape, packed.strides, "out")
    used = {v.buffer for v in loads_under(value)}
    loops = [*((a, extents[a]) for a in lead), (p, panels), *((a, extents[a]) for a in outer)]
    loops += [(j, groups), (q, width), (r, depth)] if depth > 1 else [(k, groups), (q, width)]
    unit = {name for name, extent in ((p, panels), (j, groups)) if extent == 1}
    axes = tuple(K.Axis(name, extent) for name, extent in loops if name not in unit)
    at: tuple[Dim, ...] = tuple(0 if name in unit else symbol(name) for name, _ in loops)
    buffers = (*(b for b in kernel.buffers if b in used), out)
    pack = K.Kernel(f"{kernel.name}_pack", axes, buffers, (K.Store(out, at, value),), kernel.origin)
    deep = (floor_div(symbol(k), depth), modulo(symbol(n), width), modulo(symbol(k), depth))
    inner = deep if depth > 1 else (symbol(k), modulo(symbol(n), width))
    index = (*map(symbol, lead), floor_div(symbol(n), width), *map(symbol, outer), *inner)
    return pack, _with_columns(kernel, kept, K.Load(dtype, packed, index))


def _with_columns(kernel: K.Kernel, old: K.Value, load: K.Load) -> K.Kernel:
    stores = replace_values(kernel.stores, {old: load})
    rest = kernel.replace(stores=stores)
    read = {v.buffer for v in rest.values if isinstance(v, K.Load)}
    ins = tuple(b for b in kernel.buffers if b.role == "in" and b in read)
    return rest.replace(buffers=(*ins, load.buffer, *(b for b in kernel.buffers if b.role == "out")))


def replace_values(stores: tuple[K.Store, ...], replaced: Mapping[K.Value, K.Value]) -> tuple[K.Store, ...]:
    """The same stores of values in which some are exchanged for others."""
    done: dict[K.Value, K.Value] = dict(replaced)

    def rebuilt(value: K.Value) -> K.Value:
        if value not in done:
            operands = tuple(rebuilt(o) for o in value.operands)
            done[value] = value if operands == value.operands else with_operands(value, operands)
        return done[value]

    return tuple(K.Store(s.buffer, s.index, rebuilt(s.value)) for s in stores)


def with_operands(value: K.Value, operands: tuple[K.Value, ...]) -> K.Value:
    """The same statement of other values."""
    match value:
        case K.Compute():
            return K.Compute(value.dtype, value.op, operands)
        case K.Reduce():
            return K.Reduce(value.dtype, value.kind, operands[0], value.over)
        case K.Load():
            return K.Load(value.dtype, value.buffer, value.index, value.guard, operands)
    return value


def split_groups(kernel: K.Kernel) -> K.Kernel:
    """An axis of which parts belong to different groups, as two axes: x[div(i, 8)], w[i] over i < 32 --> x[g], w[8*g + o].

    So a grouped convolution is a contraction: the groups are a batch axis. The same kernel where there is no such axis.
    """
    extents = kernel.extents
    for load in (value for value in kernel.values if isinstance(value, K.Load)):
        for atom in (a for e in load.index for monomial in terms_of(e) for a in monomial if a.kind in ("div", "mod")):
            axis, size = symbol_name(atom.operands[0]), atom.operands[1]
            if axis in extents and isinstance(size, int) and isinstance(extents[axis], int) and extents[axis] % size == 0:
                return _split_axis(kernel, axis, size)
    return kernel


def _split_axis(kernel: K.Kernel, axis: str, size: int) -> K.Kernel:
    group = _fresh(f"{axis}g", kernel.extents)
    count = kernel.extents[axis]
    axes = []
    for each in kernel.axes:
        axes += [K.Axis(group, floor_div(count, size)), K.Axis(axis, size)] if each.name == axis else [each]
    extents = {a.name: a.extent for a in axes}
    place = {axis: symbol(group) * size + symbol(axis)}
    done: dict[K.Value, K.Value] = {}
    stores = tuple(
        K.Store(s.buffer, tuple(substitute(e, place, extents) for e in s.index), moved(s.value, place, (), extents, done))
        for s in kernel.stores
    )
    return kernel.replace(axes=tuple(axes), stores=stores)


def moved(
    root: K.Value,
    axes: Mapping[str, Dim],
    bounds: tuple[K.Bound, ...] = (),
    extents: Mapping[str, Dim] | None = None,
    done: dict[K.Value, K.Value] | None = None,
) -> K.Value:
    """A value with other expressions in place of axes; its loads are made under further bounds.

    `extents` of the axes in those expressions, which make them simpler; `done`: what was moved before, to share it.
    """
    done = {} if done is None else done
    extents = extents or {}

    def bound(each: K.Bound) -> K.Bound:
        return K.Bound(substitute(each.expression, axes, extents), substitute(each.extent, axes, extents))

    def rebuilt(value: K.Value) -> K.Value:
        if value in done:
            return done[value]
        operands = tuple(rebuilt(o) for o in value.operands)
        match value:
            case K.Load():
                guard = (*(bound(b) for b in value.guard), *bounds)
                result: K.Value = K.Load(
                    value.dtype, value.buffer, tuple(substitute(e, axes, extents) for e in value.index), guard, operands
                )
            case K.Index():
                result = K.Index(value.dtype, substitute(value.expression, axes, extents))
            case K.Within():
                result = K.Within(value.dtype, tuple(bound(b) for b in value.bounds))
            case _:
                result = with_operands(value, operands)
        done[value] = result
        return result

    return rebuilt(root)


def _fresh(name: str, taken) -> str:
    """`name`, with a number if it is taken."""
    number, found = 0, name
    while found in taken:
        number += 1
        found = f"{name}{number}"
    return found
