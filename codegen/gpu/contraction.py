"""Matrix products and convolutions on GPUs: which kernels are written for tensor cores, and what is done to them before.

x @ w with w in an awkward order          -->  w2 = w in order, once;  x @ w2
a product of few tiles and a long sum     -->  parts[s] = sums of a part of the summed axis;  sum of parts, and what follows
"""

from __future__ import annotations

from collections.abc import Iterator, Set

from dlcompiler.codegen.gpu.contraction_form import Form, find_form, is_sum_of_integers, operations_of
from dlcompiler.codegen.gpu.contraction_schedule import choose_parts, matrix_candidates
from dlcompiler.codegen.gpu.contraction_writer import write_product
from dlcompiler.codegen.gpu.device import Device
from dlcompiler.codegen.gpu.triton_writer import TritonKernel
from dlcompiler.codegen.schedule import size_estimate
from dlcompiler.ir import kernel as K
from dlcompiler.ir.contraction import loads_under, moved, replace_values
from dlcompiler.ir.expression import Dim, linear_coefficients, symbol
from dlcompiler.ir.types import contiguous_strides, f32

VECTOR = 16  # bytes that one copy to shared memory takes at a time
# A factor that is computed from other numbers is computed again for every tile of the other side; beyond so many, a kernel in
# front that stores it is cheaper.
MOST_REPEATS = 4
MOST_OPERATIONS = 4
TILE = 128


def contracts(kernel: K.Kernel) -> bool:
    """Whether a kernel is a sum of products that we compute at least as well as a library, with all that is around it.

    float64 is left to cuBLAS; integers are not, which no library multiplies. A matrix times a vector, and products of which each
    column has rows of its own (depthwise convolutions), are bound by memory: ordinary reductions, which every kernel computes
    well.
    """
    form = find_form(kernel)
    if form is None:
        return is_sum_of_integers(kernel)
    for factor, repeats in ((form.left, form.columns), (form.right, form.rows)):
        count = operations_of(factor)
        if count is None or (count and not _may_be_repeated(form, factor, count, repeats)):
            return False
    return True


def _may_be_repeated(form: Form, factor: K.Value, count: int, across: tuple[str, ...]) -> bool:
    """Whether computing a factor for each tile costs less than storing it first."""
    if count > MOST_OPERATIONS:
        return False
    axes = {load: len(form.kernel.axes_of[load]) for load in loads_under(factor)}
    whole = [load for load, number in axes.items() if number == max(axes.values())]
    repeats = -(-size_estimate(form.size(across)) // TILE)
    is_quantised = sum(load.dtype.bytes for load in whole) < form.dtype.bytes
    return is_quantised or repeats == 1 or (len(whole) == 1 and repeats <= MOST_REPEATS)


def product_writers(
    kernel: K.Kernel, device: Device, precision: str, aligned: frozenset[str], name: str = "kernel"
) -> Iterator[TritonKernel] | None:
    """A kernel for tensor cores by one schedule after another, the preferred first, each written when asked for; or None."""
    form = find_form(kernel)
    if form is None or not form.is_tiled or 0 in form.axes.values():
        return None
    schedules = matrix_candidates(form, device, precision)
    return (write_product(form, s, device, name, aligned) for s in schedules)


# -- columns in order ----------------------------------------------------------------------------------------------------------


def arrange(kernel: K.Kernel, fixed: Set[K.Buffer]) -> tuple[K.Kernel, K.Kernel] | None:
    """A kernel that stores the right factor as tiles are read, and the same product reading that; None if it lies well already.

        load w[o, c, y, x] over o, y, x, c  -->  w2[o, y, x, c] = w[o, c, y, x];  load w2[o, y, x, c]

    Only what keeps its contents between calls is put in order, which is then done once. The first kernel's out buffer is the
    last in-buffer of the second one.
    """
    form = find_form(kernel)
    if form is None or not form.is_tiled:
        return None
    original = form.factors[1]
    loads = loads_under(original)
    if not loads or any(load.buffer not in fixed for load in loads) or _lies_well(form):
        return None
    extents = kernel.extents
    own = kernel.axes_of[original]
    summed = _walk(kernel, form)
    others = [a.name for a in kernel.axes if a.name in own and a.name not in summed]
    bytes_of = form.dtype.bytes
    deep, wide = (size_estimate(_product(extents, names)) * bytes_of % VECTOR == 0 for names in (summed, others[-1:]))
    order = [*others, *summed] if deep or not wide else [*others[:-1], *summed, others[-1]]
    shape = tuple(extents[a] for a in order)
    buffer_name = _unused("w", [b.name for b in kernel.buffers])
    dtype = form.right.dtype
    read = K.Buffer(buffer_name, dtype, shape, contiguous_strides(shape), "in")
    written = K.Buffer(buffer_name, dtype, shape, read.strides, "out")
    index = tuple(symbol(a) for a in order)
    used = {load.buffer for load in loads}
    ins = tuple(b for b in kernel.buffers if b in used)
    value = original if form.dtype is f32 else form.right
    store = K.Store(written, index, value)
    arranging = K.Kernel(
        f"{kernel.name}_arrange", tuple(K.Axis(a, extents[a]) for a in order), (*ins, written), (store,), kernel.origin
    )
    load: K.Value = K.Load(read.dtype, read, index)
    if read.dtype.is_narrow:  # bytes stay bytes, and what converts them reads them there
        stores = replace_values(kernel.stores, {form.right: load})
        return arranging, _with_buffer(kernel, stores, read)
    if original.dtype is not form.dtype:
        load = K.Compute(original.dtype, "cast", (load,))
    stores = replace_values(kernel.stores, {original: load})
    return arranging, _with_buffer(kernel, stores, read)


def _product(extents: dict[str, Dim], names: list[str]) -> Dim:
    total: Dim = 1
    for name in names:
        total = total * extents[name]
    return total


def _walk(kernel: K.Kernel, form: Form) -> list[str]:
    """All summed axes, outermost first, in the order of the left factor's memory."""
    load = max(loads_under(form.left), key=lambda v: len(v.index))
    steps = linear_coefficients(load.buffer.offset(load.index), kernel.extents) or {}
    return sorted(form.reduce.over, key=lambda a: -size_estimate(steps[a]) if steps.get(a, 0) != 0 else 0)


def _lies_well(form: Form) -> bool:
    """Whether rows of a tile of the right factor can be copied as vectors: along columns or along the last summed axis."""
    load = max(loads_under(form.right), key=lambda v: len(v.index))
    bytes_of = load.dtype.bytes
    strides = {a: form.accesses[load].stride(a) for a in (*form.batch, *form.columns, *form.summed)}
    for axis in (form.columns[-1], form.summed[-1]):
        rest = [s for a, s in strides.items() if a != axis]
        if strides[axis] == 1 and all(s is not None and (not isinstance(s, int) or s * bytes_of % VECTOR == 0) for s in rest):
            return True
    return False


def _unused(name: str, taken: list[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _with_buffer(kernel: K.Kernel, stores: tuple[K.Store, ...], buffer: K.Buffer) -> K.Kernel:
    """The kernel with other stores, which read one more buffer and perhaps some no longer."""
    rest = kernel.replace(stores=stores)
    read = {v.buffer for v in rest.values if isinstance(v, K.Load)}
    ins = tuple(b for b in kernel.buffers if b.role == "in" and b in read)
    return rest.replace(buffers=(*ins, buffer, *(b for b in kernel.buffers if b.role == "out")))


# -- sums in parts -------------------------------------------------------------------------------------------------------------


def split(kernel: K.Kernel, device: Device, precision: str) -> tuple[K.Kernel, K.Kernel] | None:
    """A kernel of partial sums and one that adds them up and goes on, where that is quicker than few programs with long sums.

        y[m, n] = f(sum over k of a*b)  -->  parts[s, m, n] = sum over c of (a*b at k = s*128 + c);  y = f(parts[0] + parts[1])

    The sums of parts have an order of their own, the same in every call. The first kernel's out buffer is the last in-buffer of
    the second one.
    """
    form = find_form(kernel)
    if form is None or not form.is_tiled:
        return None
    count = choose_parts(form, device, precision)
    if count == 1:
        return None
    extents = dict(kernel.extents)
    axis = max(form.reduce.over, key=lambda a: size_estimate(extents[a]))
    chunk = size_estimate(extents[axis]) // count
    part, inner = "s", "c"
    part, inner = _unused(part, [*extents, "c"]), _unused(inner, [*extents])
    place = {axis: symbol(part) * chunk + symbol(inner)}
    done: dict[K.Value, K.Value] = {}
    product = moved(form.reduce.operand, place, (), {**extents, part: count, inner: chunk}, done)
    over = tuple(inner if a == axis else a for a in form.reduce.over)
    outer = [a for a in kernel.axes if a.name not in form.reduce.over]
    order = sorted(outer, key=lambda a: -_step(form, a.name))
    shape = (count, *(a.extent for a in order))
    name = _unused("parts", [b.name for b in kernel.buffers])
    dtype = form.reduce.dtype
    read = K.Buffer(name, dtype, shape, contiguous_strides(shape), "in")
    written = K.Buffer(name, dtype, shape, read.strides, "out")
    at = (symbol(part), *(symbol(a.name) for a in order))
    used = {v.buffer for v in loads_under(product)}
    ins = tuple(b for b in kernel.buffers if b in used)
    summed_axes = tuple(K.Axis(inner, chunk) if a.name == axis else a for a in kernel.axes if a.name in form.reduce.over)
    store = K.Store(written, at, K.Reduce(dtype, "add", product, over))
    first = K.Kernel(
        f"{kernel.name}_parts", (K.Axis(part, count), *order, *summed_axes), (*ins, written), (store,), kernel.origin
    )
    loads = [K.Load(dtype, read, (k, *at[1:])) for k in range(count)]
    total: K.Value = loads[0]
    for load in loads[1:]:
        total = K.Compute(dtype, "add", (total, load))
    stores = replace_values(kernel.stores, {form.reduce: total})
    return first, _with_buffer(kernel.replace(axes=tuple(outer)), stores, read)


def _step(form: Form, axis: str) -> int:
    """Elements between neighbours of the first result along an axis."""
    store = form.kernel.stores[0]
    steps = linear_coefficients(store.buffer.offset(store.index), form.kernel.extents) or {}
    return size_estimate(steps.get(axis, 0)) if steps.get(axis, 0) != 0 else 0
