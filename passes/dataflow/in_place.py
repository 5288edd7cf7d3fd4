"""In-place reuse: a result takes over the memory of an operand that dies where the result is made.

    t1 = launch f(t0)   (t0 is not used again, f reads t0[i] and writes t1[i])   -->   t1 aliases t0

A block may also take over an input that the program owns. What this asks of code generation: at one point of a kernel's parallel
range all loads come before the stores, and a reduction is complete, and not computed a second time, before anything that depends
on it is stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dlcompiler.ir.expression import Dim, symbols
from dlcompiler.ir.kernel import Kernel, Load, Reduce, Store, Value
from dlcompiler.ir.program import Launch, Program, Role, RoutineCall, Slot, Step, View

# Of which role a slot is that one of another role may take over.
TAKEN: dict[Role, Role] = {"intermediate": "intermediate", "block": "block", "output": "block"}
NEVER = (-1, -1)


def find_aliases(program: Program) -> dict[Slot, Slot]:
    """A result's slot -> the slot of the operand whose memory it takes over: like from like, of equal size.

    An output may take over a block; a block an input that the program owns.
    """
    lifetimes = {**program.lifetimes, **_lifetimes_outside(program)}
    aliases: dict[Slot, Slot] = {}
    safe: dict[Kernel, dict[int, tuple[int, ...]]] = {}  # identical kernels are looked at once
    for number, step in enumerate(program.steps):
        taken: set[Slot] = set()
        for target, sources in _candidates(step, safe):
            role = target.slot.role
            if role not in TAKEN or lifetimes.get(target.slot, NEVER)[0] != number:
                continue
            for source in sources:
                is_like = source.slot.role == TAKEN[role] or (role == "block" and source.slot in program.owned)
                if is_like and lifetimes[source.slot][1] == number and source.slot not in taken and _fits(step, source, target):
                    aliases[target.slot] = source.slot
                    taken.add(source.slot)
                    break
    return aliases


def _candidates(step: Step, safe: dict[Kernel, dict[int, tuple[int, ...]]]) -> Iterator[tuple[View, list[View]]]:
    """What a step writes, and what it reads that may lie in the same memory as far as its code is concerned."""
    if isinstance(step, RoutineCall):
        for result, operand in step.in_place:
            target, source = step.writes[result], step.reads[operand]
            if _place(target) == _place(source):
                yield target, [source]
    elif isinstance(step, Launch):
        for kernel, arguments in step.parts:
            if kernel not in safe:
                safe[kernel] = safe_pairs(kernel)
            # elsewhere than the kernel says an argument may lie otherwise than it was written for
            as_written = [view.strides == buffer.strides for view, buffer in zip(arguments, kernel.buffers)]
            for out, operands in safe[kernel].items():
                if as_written[out]:
                    yield arguments[out], [arguments[k] for k in operands if as_written[k]]


def _place(view: View) -> list[tuple[Dim, Dim]]:
    """Sizes and strides of the dimensions that matter."""
    return [(size, stride) for size, stride in zip(view.shape, view.strides) if size != 1]


def _lifetimes_outside(program: Program) -> dict[Slot, tuple[int, int]]:
    """First and last step that touches each output, and each input that the program owns."""
    found: dict[Slot, tuple[int, int]] = {}
    for number, step in enumerate(program.steps if program.frees else ()):
        for view in (*step.reads, *step.writes):
            if view is not None and (view.slot.role == "output" or view.slot in program.owned):
                found[view.slot] = (found.get(view.slot, (number, number))[0], number)
    return found


def _fits(step: Step, source: View, target: View) -> bool:
    """Whether the two slots are alike, and are seen by these two arguments only."""
    seen = [view.slot for view in (*step.reads, *step.writes) if view is not None]
    return (
        source.offset == target.offset
        and source.slot.bytes == target.slot.bytes
        and seen.count(source.slot) == 1
        and seen.count(target.slot) == 1
    )


def safe_pairs(kernel: Kernel) -> dict[int, tuple[int, ...]]:
    """For each written buffer's position, the positions of read buffers that may share its memory."""
    loads: dict[str, list[Load]] = {}
    for value in kernel.values:
        if isinstance(value, Load):
            loads.setdefault(value.buffer.name, []).append(value)
    at_the_end = _stores_where_rows_end(kernel)
    summed = _read_by_reductions(kernel) if at_the_end else frozenset()
    pairs: dict[int, tuple[int, ...]] = {}
    for out, buffer in enumerate(kernel.buffers):
        stores = [store for store in kernel.stores if store.buffer.name == buffer.name]
        if buffer.role != "out" or len(stores) != 1 or buffer.name in loads:
            continue
        if not at_the_end and not _writes_last(kernel, stores[0]):
            continue
        address = stores[0].buffer.offset(stores[0].index)
        pairs[out] = tuple(
            k
            for k, operand in enumerate(kernel.buffers)
            if operand.role == "in"
            and operand.dtype.bytes == buffer.dtype.bytes
            and operand.name not in summed
            and _only_at(address, loads.get(operand.name, ()), len(kernel.stores) > 1)
        )
    return pairs


def _only_at(address: Dim, loads: Sequence[Load], several_stores: bool) -> bool:
    """Whether every load is at that address. Beside other stores there may be one only: a second could come after the store."""
    if not loads or (several_stores and len(loads) > 1):
        return False
    return all(load.buffer.offset(load.index) == address for load in loads)


def _writes_last(kernel: Kernel, store: Store) -> bool:
    """Whether the kernel is one loop nest in which the store comes after everything that is read again.

    Without reductions: all stores walk over all axes. With reductions: one store, and rows; every reduction leaves the same
    axes, and the store walks over these and the reduced ones, so that a row is read for the last time where it is written.
    """
    axes = frozenset(a.name for a in kernel.axes)
    reductions = [value for value in kernel.values if isinstance(value, Reduce)]
    if not reductions:
        return all(_axes_of_index(s, axes) == axes for s in kernel.stores)
    rows = {kernel.axes_of[value] for value in reductions}
    if len(kernel.stores) > 1 or len(rows) > 1:
        return False
    (row,) = rows
    return _axes_of_index(store, axes) == axes and row < axes


def _stores_where_rows_end(kernel: Kernel) -> bool:
    """Whether every store walks over just the axes that all reductions leave: g = sum(x * y), p - rate * g."""
    axes = frozenset(a.name for a in kernel.axes)
    rows = {kernel.axes_of[value] for value in kernel.values if isinstance(value, Reduce)}
    if len(rows) != 1:
        return False
    (row,) = rows
    return row | kernel.reduced_axes == axes and all(_axes_of_index(s, axes) == row for s in kernel.stores)


def _read_by_reductions(kernel: Kernel) -> frozenset[str]:
    """Names of the buffers that are read while something is summed, for this element or another."""
    stack = [value.operand for value in kernel.values if isinstance(value, Reduce)]
    seen: set[Value] = set()
    while stack:
        value = stack.pop()
        if value not in seen:
            seen.add(value)
            stack.extend(value.operands)
    return frozenset(value.buffer.name for value in seen if isinstance(value, Load))


def _axes_of_index(store: Store, axes: frozenset[str]) -> frozenset[str]:
    return frozenset().union(*(symbols(e) for e in store.index)) & axes
