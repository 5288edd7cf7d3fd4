"""What adds up the parts of a sum is done by the launch that reads the result first, which then stores it for all others.

    parts = launch product(x, w); y = launch add(parts, r); h = launch norm(y); z = launch last(y, h)
    -->  parts = launch product(x, w); y, h = launch norm(parts, r); z = launch last(y, h)

A product whose sums are made in parts (`PlanTarget.in_parts`) is known as such only when it is planned, after groups of ops have
been formed. The additions are a pointwise kernel, so whoever reads each element once can do without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

from dlcompiler.ir import kernel as K
from dlcompiler.ir.contraction import find_contraction, moved, replace_values
from dlcompiler.ir.expression import Dim, symbols
from dlcompiler.ir.program import Launch, Program, Slot, Step, View
from dlcompiler.passes.block.lower import MAXIMUM_BUFFERS, MAXIMUM_VALUES, covers_once


def take_over(program: Program, launches: Set[Launch]) -> Program:
    """The program with as many of these pointwise launches as may be done by the next one; the same object if there are none."""
    steps: list[Step] = list(program.steps)
    left = set(launches)
    at = 0
    while at < len(steps):
        launch = steps[at]
        found = _first_reader(steps, at) if isinstance(launch, Launch) and launch in left else None
        if found is None:
            at += 1
            continue
        reader = steps[found]
        assert isinstance(launch, Launch) and isinstance(reader, Launch)
        joined = _joined(launch, reader, _read_elsewhere(program, steps, launch, reader))
        left.discard(launch)
        if joined is None:
            continue
        if reader in left:  # itself a sum of parts, which the next may take over
            left.add(joined)
        steps[found] = joined
        del steps[at]
    if len(steps) == len(program.steps):
        return program
    touched = {view.slot for step in steps for view in (*step.reads, *step.writes) if view is not None}
    slots = tuple(s for s in program.slots if s.role != "intermediate" or s in touched)
    return program.replace(steps=tuple(steps), slots=slots)


def _first_reader(steps: Sequence[Step], at: int) -> int | None:
    """The position of the first step that reads a result of step `at`, if that may run there; None otherwise."""
    step = steps[at]
    made = {view.slot for view in step.writes if view is not None}
    read = {view.slot for view in step.reads}
    for number in range(at + 1, len(steps)):
        following = steps[number]
        if any(view is not None and view.slot in read | made for view in following.writes):
            return None
        if any(view.slot in made for view in following.reads):
            is_plain = isinstance(following, Launch) and find_contraction(following.kernel) is None
            return number if is_plain else None
    return None


def _read_elsewhere(program: Program, steps: Sequence[Step], launch: Launch, reader: Launch) -> set[Slot]:
    """Results of a launch that must be in memory though `reader` computes them."""
    made = {view.slot for view in launch.writes}
    others = {view.slot for step in steps if step is not reader for view in step.reads}
    return {s for s in made if s in others or s.role != "intermediate" or any(v.slot is s for v in program.outputs)}


def _joined(launch: Launch, reader: Launch, kept: Set[Slot]) -> Launch | None:
    """The reader with what the launch computes in place of its results; None where elements would be computed again."""
    kernel = reader.kernel
    taken = {b.name for b in kernel.buffers}
    buffers: dict[K.Buffer, K.Buffer] = {}  # of the launch -> of the joined kernel
    own = dict(zip(reader.arguments, kernel.buffers))
    for buffer, view in zip(launch.kernel.buffers, launch.arguments):
        same = own.get(view)
        if buffer.role == "in" and same is not None and same.role == "in":
            buffers[buffer] = same
        else:
            buffers[buffer] = replace(buffer, name=_unused(buffer.name, taken))
            taken.add(buffers[buffer].name)
    stores = {view: store for store in launch.kernel.stores for view in [_argument(launch, store.buffer)]}
    values: dict[K.Value, K.Value] = {}
    more: list[K.Store] = []
    for view, store in stores.items():
        at = [v for v in kernel.values if isinstance(v, K.Load) and _argument(reader, v.buffer).slot is view.slot]
        if not at:
            return None  # the reader would have to make what it has no use for, over axes that it may not have
        index = at[0].index
        if any(_argument(reader, v.buffer) != view or v.guard or v.indirect or v.index != index for v in at):
            return None
        if not _visits_once(kernel, index, store.buffer.shape):
            return None
        place = _place(store, index, launch.kernel.extents)
        if place is None:
            return None
        value = _renamed(moved(store.value, place, (), kernel.extents), buffers)
        values.update(dict.fromkeys(at, value))
        if view.slot in kept:
            more.append(K.Store(buffers[store.buffer], index, value))
    joined = kernel.replace(stores=(*replace_values(kernel.stores, values), *more))
    return _finished(launch, reader, joined, buffers)


def _finished(launch: Launch, reader: Launch, joined: K.Kernel, buffers: Mapping[K.Buffer, K.Buffer]) -> Launch | None:
    """The joined kernel's launch, with the buffers that are still used; None where it is too large."""
    used = {v.buffer for v in joined.values if isinstance(v, K.Load)} | {s.buffer for s in joined.stores}
    views = {b: v for b, v in zip(reader.kernel.buffers, reader.arguments) if b in used}
    for buffer, view in zip(launch.kernel.buffers, launch.arguments):
        if buffers[buffer] in used:
            views.setdefault(buffers[buffer], view)
    ordered = [b for role in ("in", "out") for b in views if b.role == role]
    if len(ordered) > MAXIMUM_BUFFERS or len(joined.values) > MAXIMUM_VALUES:
        return None
    origin = tuple(dict.fromkeys((*launch.origin, *reader.origin)))
    kernel = joined.replace(buffers=tuple(ordered), origin=tuple(dict.fromkeys((*launch.kernel.origin, *joined.origin))))
    return Launch(kernel, tuple(views[b] for b in ordered), origin)


def _argument(launch: Launch, buffer: K.Buffer) -> View:
    return launch.arguments[launch.kernel.buffers.index(buffer)]


def _visits_once(kernel: K.Kernel, index: Sequence[Dim], shape: Sequence[Dim]) -> bool:
    """Whether the kernel is at each element of the shape once, and may store there (see `lower`)."""
    axes = frozenset().union(*(symbols(e) for e in index)) & set(kernel.extents)
    every = frozenset(kernel.extents)
    return axes in (every, every - kernel.reduced_axes) and covers_once(index, shape, kernel.extents)


def _place(store: K.Store, index: Sequence[Dim], extents: Mapping[str, Dim]) -> dict[str, Dim] | None:
    """Where a kernel that makes the store is when another is at `index` of the buffer: an expression for each of its axes."""
    place: dict[str, Dim] = {}
    for mine, theirs in zip(store.index, index):
        names = symbols(mine) & set(extents)
        if mine == 0 and theirs == 0:
            continue
        if len(names) != 1 or str(mine) not in names or str(mine) in place:
            return None
        place[str(mine)] = theirs
    return place if set(place) == set(extents) else None


def _renamed(value: K.Value, buffers: Mapping[K.Buffer, K.Buffer]) -> K.Value:
    """A value that loads from other buffers."""
    done: dict[K.Value, K.Value] = {}

    def rebuilt(each: K.Value) -> K.Value:
        if each not in done:
            operands = tuple(rebuilt(o) for o in each.operands)
            if isinstance(each, K.Load):
                done[each] = K.Load(each.dtype, buffers[each.buffer], each.index, each.guard, operands)
            else:
                probe = K.Store(K.Buffer("", each.dtype, (), ()), (), each)
                done[each] = replace_values((probe,), dict(zip(each.operands, operands)))[0].value
        return done[each]

    return rebuilt(value)


def _unused(name: str, taken: Set[str]) -> str:
    while name in taken:
        name += "_"
    return name
