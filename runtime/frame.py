"""A frame: everything one call in progress owns. Two calls at once use two frames.

It holds the driver's tables with all addresses that never change already in them, the current addresses of the arena, of inputs,
outputs and extern tensors, and tensors over all of these for library calls.
"""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import numpy as np
import torch
from dlcompiler.ir.errors import LaunchError
from dlcompiler.ir.program import AtenCall
from dlcompiler.runtime.memory import HUGE_PAGE, ask_for_huge_pages
from dlcompiler.runtime.plan import Aten, Change, Library, Plan, Run
from dlcompiler.runtime.prepared import Copy, Fill
from dlcompiler.runtime.tables import LaunchRecord, driver_table
from dlcompiler.runtime.tensors import copy_strided, empty_strided, is_held_once, same_layout, span, tensor_at, tensor_in
from torch import Tensor

Driver = Callable[[int, int], None]
# (inputs, addresses of those that are tensors) -> what prepared memory is made from, and its addresses
Sources = Callable[[Sequence[Any], Sequence[int]], tuple[Sequence[Tensor], Sequence[int]]]


class Frame:
    """See the module. `run` may be called by one thread at a time."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        # an Array[c_int64]; typed so, it would take no list[int] for a slice
        self.bases: Any = (ctypes.c_int64 * max(plan.bases, 1))()
        self._tables: list[np.ndarray] = []
        self.tensors: list[Any] = [place.constant for place in plan.places]
        self._known: list[int] = [-1] * plan.bases
        sizes = [span(shape, strides) * dtype.itemsize for dtype, shape, strides in plan.outputs]
        self._large_outputs = {k: size for k, size in enumerate(sizes) if size >= 2 * HUGE_PAGE}
        self._watched_inputs = self._watch(0, plan.first_output)
        self._watched_outputs = self._watch(plan.first_output, plan.first_extern)
        self._watched_externs = self._watch(plan.first_extern, plan.prepared)
        self._watched_prepared = self._watch(plan.prepared, plan.arena).get(plan.prepared, [])
        self._watched_arena = self._watch(plan.arena, plan.bases).get(plan.arena, [])
        self._addresses: list[int] = []  # of the inputs that are tensors
        self._sources = _sources(plan)
        self._copy: Copy | None = None
        self.driver: Driver = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(plan.shared.code.driver)
        # for each section: a run's record in the driver's tables (else 0), a library's routine, a step of ATen; externs to drop
        self._steps = [
            (
                self._table(section) if isinstance(section, Run) else 0,
                section.routine if isinstance(section, Library) else None,
                section if isinstance(section, Aten | Change) else None,
                plan.dropped.get(k, ()),
            )
            for k, section in enumerate(plan.sections)
        ]
        # what fills prepared memory: its record in the driver's tables, its number, the inputs it is made from
        self._preparation = [(self._table(Run((p.record,))), p) for p in plan.preparation]
        self._singles: dict[int, int] = {}
        self.externs: dict[int, Tensor] = {}  # and blocks
        self._outputs: list[Any] = []
        self._given: list[Any] = []  # inputs that belong to the call, if it is given any

    # -- building --------------------------------------------------------------------------------------------------------------

    def _watch(self, first: int, end: int) -> dict[int, list[int]]:
        """For each base in [first, end) with tensors over it: their positions."""
        watched: dict[int, list[int]] = {}
        for k, place in enumerate(self.plan.places):
            if first <= place.base < end:
                watched.setdefault(place.base, []).append(k)
        return watched

    def _table(self, run: Run) -> int:
        """Address of the run's record, for the driver."""
        table = driver_table(run.launches, 0, self.bases)
        self._tables.append(table)
        return table.ctypes.data

    # -- a call ----------------------------------------------------------------------------------------------------------------

    def use_arena(self, address: int) -> None:
        """Say where the arena begins that this call has."""
        base = self.plan.arena
        if address != self._known[base]:
            self.bases[base] = self._known[base] = address
            self._set_tensors(self._watched_arena, address)

    def set_inputs(self, addresses: list[int]) -> None:
        """Say where the inputs lie that are tensors."""
        if addresses != self._addresses:
            self._addresses = addresses
            if len(addresses) == self.plan.first_output:
                self.bases[: len(addresses)] = addresses
            else:
                for position, address in zip(self.plan.tensor_inputs, addresses):
                    self.bases[position] = address

    def set_input_tensors(self) -> None:
        """Make the tensors over inputs that have moved since the last call."""
        for base, positions in self._watched_inputs.items():
            address = self.bases[base]
            if address != self._known[base]:
                self._set_tensors(positions, address)
                self._known[base] = address

    def _set_tensors(self, positions: Sequence[int], address: int) -> None:
        places = self.plan.places
        with torch.inference_mode(False):
            for k in positions:
                self.tensors[k] = tensor_at(address + places[k].offset, *places[k].layout)

    def prepare(self, inputs: Sequence[Any], are_replaced: bool, threads: int) -> None:
        """See that prepared memory is made from these inputs as they are now; until `release` it stays so.

        `are_replaced`: some of them are not where `set_inputs` said, but copies of them are.
        """
        tensors, addresses = self._sources(inputs, self._addresses)
        if are_replaced:
            addresses = [tensor.data_ptr() for tensor in tensors]
        self._copy = self.plan.shared.copies.acquire(tensors, addresses, lambda copy: self._enter(copy, threads))

    def _enter(self, copy: Copy, threads: int) -> Fill:
        """Read and write that copy from now on; gives what fills it."""
        base = self.plan.prepared
        self.bases[base] = copy.address
        if copy.address != self._known[base] and self._watched_prepared:
            self._set_tensors(self._watched_prepared, copy.address)
            self._known[base] = copy.address

        def fill(sources: frozenset[int] | None) -> None:
            for table, preparation in self._preparation:
                if sources is None or not sources.isdisjoint(preparation.sources):
                    self.driver(table, threads)

        return fill

    def release(self) -> None:
        """Say that this call no longer reads prepared memory; once for each `prepare`."""
        if self._copy is not None:
            self._copy.release()
            self._copy = None

    def allocate_outputs(self) -> list[Tensor]:
        """Fresh memory for the outputs; library calls see the tensors themselves."""
        plan = self.plan
        if plan.changes:
            return self._allocate_some_outputs()
        outputs = [empty_strided(shape, strides, dtype) for dtype, shape, strides in plan.outputs]
        for base, tensor in enumerate(outputs, plan.first_output):
            self.bases[base] = tensor.data_ptr()
        for k, size in self._large_outputs.items():
            ask_for_huge_pages(outputs[k].data_ptr(), size)
        for base in self._watched_outputs:
            self._show_output(base, outputs[base - plan.first_output])
        return outputs

    def _allocate_some_outputs(self) -> list[Any]:
        """As `allocate_outputs`, without those that are made later, by a `Change`."""
        self._outputs = [None] * len(self.plan.outputs)
        for number in range(len(self._outputs)):
            if number not in self.plan.late:
                self._allocate_output(number)
        return self._outputs

    def _allocate_output(self, number: int, source: int = -1) -> None:
        """`source`: base of the block whose memory it takes over."""
        dtype, shape, strides = self.plan.outputs[number]
        tensor = tensor_in(self.externs[source], dtype, shape, strides) if source >= 0 else None
        if tensor is not None:
            del self.externs[source]
        else:  # a block that is read by the next step stays until the end of the call
            tensor = empty_strided(shape, strides, dtype)
            if number in self._large_outputs:
                ask_for_huge_pages(tensor.data_ptr(), self._large_outputs[number])
        self._outputs[number] = tensor
        base = self.plan.first_output + number
        self.bases[base] = tensor.data_ptr()
        if base in self._watched_outputs:
            self._show_output(base, tensor)

    def _show_output(self, base: int, tensor: Tensor) -> None:
        """Make the tensors that library calls see of an output."""
        plan = self.plan
        for k in self._watched_outputs[base]:
            layout, _, offset, _ = plan.places[k]
            whole = offset == 0 and layout == plan.outputs[base - plan.first_output]
            item = layout.dtype.itemsize
            self.tensors[k] = tensor if whole else tensor.as_strided(layout.shape, layout.strides, offset // item)

    def give(self, inputs: Sequence[Any]) -> None:
        """Let this call free inputs that the program owns: the list's entries become None."""
        if type(inputs) is list:
            self._given = inputs

    def _change(self, change: Change) -> None:
        """Free and make memory."""
        externs, given = self.externs, self._given
        for base in change.freed:
            del externs[base]
        if given:
            for position in change.dropped:
                given[position] = None
        for base, size, source in change.blocks:
            tensor = self._taken_over(source) if source >= 0 else None
            if tensor is None:
                tensor = empty_strided((size,), (1,), torch.uint8)
                ask_for_huge_pages(tensor.data_ptr(), size)
            externs[base] = tensor
            self._move_extern(base, tensor.data_ptr())
        for number, source in change.outputs:
            self._allocate_output(number, source)

    def _taken_over(self, source: int) -> Tensor | None:
        """The tensor that holds a block's memory, or an input's if nobody else holds that."""
        if source >= self.plan.first_extern:
            return self.externs.pop(source)
        tensor = self._given[source] if self._given else None
        if tensor is None or tensor.data_ptr() != self.bases[source] or not is_held_once(tensor):
            return None
        self._given[source] = None
        return tensor

    def _move_extern(self, base: int, address: int) -> None:
        self.bases[base] = address
        if base in self._watched_externs and address != self._known[base]:
            self._set_tensors(self._watched_externs[base], address)
            self._known[base] = address

    def forget(self) -> None:
        """Let go of the tensors that were handed back."""
        for positions in self._watched_outputs.values():
            for k in positions:
                self.tensors[k] = None
        if self.externs:
            self.externs.clear()
        if self._outputs:
            self._outputs = []
        if self._given:
            self._given = []

    def run_steps(self, threads: int) -> None:
        """Run every step on at most so many threads; the addresses of inputs and outputs are set."""
        driver, tensors = self.driver, self.tensors
        for address, routine, section, dropped in self._steps:
            if address:
                driver(address, threads)
            elif routine is not None:
                routine(tensors)
            elif section is not None:
                if isinstance(section, Aten):
                    self._run_aten(section)
                else:
                    self._change(section)
            for base in dropped:
                del self.externs[base]

    def time_steps(self, threads: int) -> list[tuple[int, float]]:
        """As `run_steps`, one launch at a time: (step, seconds) for each."""
        times = []
        for k, section in enumerate(self.plan.sections):
            match section:
                case Run():
                    for record in section.launches:
                        times.append((record.number, _seconds(self.driver, self._single(record), threads)))
                case Library():
                    times.append((section.number, _seconds(section.routine, self.tensors)))
                case Change():
                    self._change(section)
                case Aten():
                    times.append((section.number, _seconds(self._run_aten, section)))
            for base in self.plan.dropped.get(k, ()):
                del self.externs[base]
        return times

    def _single(self, record: LaunchRecord) -> int:
        """Address of the record of a run of one launch; made once."""
        if record.number not in self._singles:
            self._singles[record.number] = self._table(Run((record,)))
        return self._singles[record.number]

    def _run_aten(self, section: Aten) -> None:
        results = section.routine(self.tensors)
        if not isinstance(results, tuple | list):
            results = (results,)
        for base, result in zip(section.results, results):
            if base is not None:
                self._adopt(base, result, section)

    def _adopt(self, base: int, result: Tensor, section: Aten) -> None:
        """Keep a tensor that ATen made as an extern slot; copy it if it is laid out otherwise, or is a view of an operand."""
        plan = self.plan
        dtype, shape, strides = plan.externs[base - plan.first_extern]
        if not isinstance(result, Tensor) or result.shape != shape or result.dtype is not dtype:
            step = plan.program.steps[section.number]
            assert isinstance(step, AtenCall)
            raise LaunchError(f"{step.target} gave {_describe(result)} where {dtype}{list(shape)} was expected")
        if not _is_plain(result) or not same_layout(shape, result.stride(), strides) or self._is_view(result, section):
            result = copy_strided(result, strides)
        self.externs[base] = result
        self._move_extern(base, result.data_ptr())

    def _is_view(self, result: Tensor, section: Aten) -> bool:
        storage = result.untyped_storage().data_ptr()
        return any(self.tensors[k].untyped_storage().data_ptr() == storage for k in section.operands)


def _is_plain(tensor: Tensor) -> bool:
    """Whether what is in a tensor's memory is its numbers: not to be negated or conjugated, nor zeros that have no memory."""
    return not (tensor.is_neg() or tensor.is_conj() or tensor._is_zerotensor())


def _sources(plan: Plan) -> Sources:
    """How to read what a plan's prepared memory is made from, in the order of `plan.sources`."""
    fixed = [source for source in plan.sources if isinstance(source, Tensor)]
    if len(fixed) == len(plan.sources):
        held = fixed, tuple(tensor.data_ptr() for tensor in fixed)
        return lambda inputs, addresses: held
    positions = [source for source in plan.sources if not isinstance(source, Tensor)]
    numbers = {position: number for number, position in enumerate(plan.tensor_inputs)}
    if not fixed and len(plan.sources) > 1:
        tensors_of = operator.itemgetter(*positions)
        addresses_of = operator.itemgetter(*(numbers[p] for p in positions))
        return lambda inputs, addresses: (tensors_of(inputs), addresses_of(addresses))

    def read(inputs: Sequence[Any], addresses: Sequence[int]) -> tuple[Sequence[Tensor], Sequence[int]]:
        tensors = [source if isinstance(source, Tensor) else inputs[source] for source in plan.sources]
        return tensors, [
            source.data_ptr() if isinstance(source, Tensor) else addresses[numbers[source]] for source in plan.sources
        ]

    return read


def _seconds(run: Callable[..., Any], *arguments: Any) -> float:
    start = perf_counter()
    run(*arguments)
    return perf_counter() - start


def _describe(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
