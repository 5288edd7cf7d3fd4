"""A program with every size known: what a frame needs to be built and a call to be run, shared by all frames.

Memory is named in two ways. Constants, which never move, are addresses. What may be elsewhere in each call, inputs, outputs,
extern tensors, the copy of prepared memory and the arena, is a base, a number under which the frame keeps the current address.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from dlcompiler.ir.errors import LaunchError
from dlcompiler.ir.expression import Evaluator
from dlcompiler.ir.interpret import concrete
from dlcompiler.ir.program import AtenCall, Code, Launch, LibraryCall, Placement, Program, RoutineCall, Slot, View
from dlcompiler.runtime.aten import prepare_aten
from dlcompiler.runtime.constants import constant_tensors, tensor_behind
from dlcompiler.runtime.library import Call, Operand, Routine, prepare
from dlcompiler.runtime.prepared import Copies
from dlcompiler.runtime.tables import ALIGNMENT, CONSTANT, LaunchRecord, Word
from dlcompiler.runtime.tensors import Shape, torch_dtype
from torch import Tensor


class Layout(NamedTuple):
    """Element type, shape and strides (in elements) of a tensor."""

    dtype: torch.dtype
    shape: Shape
    strides: Shape


class Place(NamedTuple):
    """A tensor in a frame's list: its layout, the base it is on and how many bytes beyond it begins."""

    layout: Layout
    base: int
    offset: int
    constant: Tensor | None = None


class Preparation(NamedTuple):
    """A launch that fills prepared memory, and which of `Plan.sources` that is made from: none if it runs once for ever."""

    record: LaunchRecord
    sources: tuple[int, ...]


class Run(NamedTuple):
    """Launches that follow each other: one jump into the driver."""

    launches: tuple[LaunchRecord, ...]


class Library(NamedTuple):
    """A step that a library runs into planned memory."""

    number: int
    routine: Routine


class Aten(NamedTuple):
    """A step whose results ATen allocates: `results[k]` is the base of the k-th one; None if it is no tensor.

    `operands` are positions of the tensors it reads. `dropped` are bases whose tensors nobody needs after this step.
    """

    number: int
    routine: Callable[[Sequence[Tensor]], Any]
    results: tuple[int | None, ...]
    operands: tuple[int, ...]


class Change(NamedTuple):
    """Memory that a call frees and makes between two steps.

    freed    bases of blocks that no later step touches
    dropped  positions of inputs that no later step reads; they belong to the call
    blocks   (base, bytes, base of what it takes over: a block, or an input if nobody else holds it; -1: nothing)
    outputs  (number, base of a block that it takes over, or -1) of each that the next steps write first
    """

    freed: tuple[int, ...]
    dropped: tuple[int, ...]
    blocks: tuple[tuple[int, int, int], ...]
    outputs: tuple[tuple[int, int], ...]


Section = Run | Library | Aten | Change


class Result(NamedTuple):
    """One result of a call. `kind`: where it lies; `at` is the position of the output, input or constant, or an extern's base."""

    kind: str
    at: int
    whole: bool
    shape: Shape
    strides: Shape
    offset: int


@dataclass
class Shared:
    """What all plans of one executable share: constants by address, packed weights, compiled code, prepared memory."""

    program: Program
    code: Code
    pack: bool = True
    constants: dict[Slot, Tensor] = field(init=False)
    held: list[Any] = field(init=False)
    copies: Copies = field(init=False)
    _packed: dict[tuple, Tensor] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.constants, self.held = constant_tensors(self.program)
        self.copies = self._no_copies()

    def _no_copies(self) -> Copies:
        """Where each prepared slot lies in a copy; there is none yet."""
        offsets: dict[Slot, int] = {}
        end = 0
        for slot in self.program.slots:
            if slot.role == "prepared":
                assert isinstance(slot.bytes, int), slot
                offsets[slot] = end
                end += -(-slot.bytes // ALIGNMENT) * ALIGNMENT
        return Copies(offsets, end, self.code.unchanged, self.code.touch)

    def packed(self, key: tuple, make: Callable[[], Tensor]) -> Tensor | None:
        if not self.pack:
            return None
        with self._lock:
            if key not in self._packed:
                with torch.inference_mode(False), torch.no_grad():
                    self._packed[key] = make()
            return self._packed[key]


class Plan:
    """See the module. Built in one pass over the steps; immutable afterwards, so that threads may share it."""

    device = torch.device("cpu")
    input_alignment = 1  # bytes

    def __init__(self, shared: Shared, bindings: Mapping[str, int], placement: Placement) -> None:
        self.shared, self.bindings, self.placement = shared, dict(bindings), placement
        self.number = Evaluator(self.bindings)
        self.program = program = shared.program
        self.places: list[Place] = []
        self._known: dict[tuple, int] = {}
        self._bases: dict[Slot, int] = {}
        self.inputs = [None if slot is None else self._new_base(slot) for slot in program.inputs]
        outputs = sorted((s for s in program.slots if s.role == "output"), key=lambda s: s.position)
        self.first_output = len(self.inputs)
        self.outputs = [self._new_base(slot, self.first_output + k) for k, slot in enumerate(outputs)]
        self.first_extern = self.first_output + len(self.outputs)
        externs = sorted((s for s in program.slots if s.role in ("extern", "block")), key=lambda s: s.role == "block")
        self.externs = [self._new_base(slot, self.first_extern + k) for k, slot in enumerate(externs)]
        self.prepared = self.first_extern + len(self.externs)
        self.arena = self.prepared + 1
        self.bases = self.arena + 1
        self.tensor_inputs = tuple(k for k, layout in enumerate(self.inputs) if layout is not None)
        self.written_inputs = self._find_written_inputs()
        self.changes = self._changes() if program.frees else {}
        self.late = frozenset(number for change in self.changes.values() for number, _ in change.outputs)
        self.sections = self._sections()
        # what prepared memory is made from: positions of inputs, and tensors over memory that constants share with a model's own
        self.sources: tuple[int | Tensor, ...] = ()
        self.preparation = self._preparation()
        self.dropped = self._find_dropped()
        self.indices = program.graph.indices(self.bindings)
        self.results = tuple(self._result(view) for view in program.outputs)
        self.uses_torch = any(not isinstance(s, Run | Change) for s in self.sections)

    # -- sizes and places --------------------------------------------------------------------------------------------------

    def _new_base(self, slot: Slot, base: int | None = None) -> Layout:
        if base is None:
            base = self.shared.program.inputs.index(slot)
        self._bases[slot] = base
        return self.layout(slot.view())

    def numbers(self, dims: Sequence[Any]) -> Shape:
        return tuple(self.number(d) for d in dims)

    def layout(self, view: View) -> Layout:
        return Layout(torch_dtype(view.dtype), self.numbers(view.shape), self.numbers(view.strides))

    def position(self, slot: Slot) -> tuple[int, int]:
        """(base, bytes beyond it) of a slot's first element."""
        if slot.role == "intermediate":
            return self.arena, self.placement.offsets[slot]
        if slot.role == "constant":
            return CONSTANT, self.shared.constants[slot].data_ptr()
        if slot.role == "prepared":
            return self.prepared, self.shared.copies.offsets[slot]
        return self._bases[slot], 0

    def operand(self, view: View) -> Operand:
        """A view's place in the frame's list of tensors."""
        base, start = self.position(view.slot)
        layout = self.layout(view)
        offset = self.number(view.offset)
        constant = None
        if base == CONSTANT:
            constant = self.shared.constants[view.slot].as_strided(layout.shape, layout.strides, offset)
        return self._place(layout, base, start + offset * layout.dtype.itemsize, constant)

    def _place(self, layout: Layout, base: int, offset: int, constant: Tensor | None) -> Operand:
        key = (layout, base, offset)
        if key not in self._known:
            self._known[key] = len(self.places)
            self.places.append(Place(layout, base, offset, constant))
        return Operand(self._known[key], *layout, constant)

    def view(self, operand: Operand, shape: Shape, strides: Shape, offset: int = 0) -> Operand:
        """`library.Views`: the same memory seen with other sizes."""
        place = self.places[operand.position]
        layout = Layout(operand.dtype, tuple(shape), tuple(strides))
        constant = None
        if place.constant is not None:
            constant = place.constant.as_strided(layout.shape, layout.strides, place.constant.storage_offset() + offset)
        return self._place(layout, place.base, place.offset + offset * operand.dtype.itemsize, constant)

    def packed(self, key: tuple, make: Callable[[], Tensor]) -> Tensor | None:
        """`library.Views`: weights in a library's own layout."""
        return self.shared.packed(key, make)

    # -- steps ---------------------------------------------------------------------------------------------------------------

    def _sections(self) -> tuple[Section, ...]:
        sections: list[Section] = []
        launches: list[LaunchRecord] = []
        for number, step in enumerate(self.program.steps):
            if number in self.changes:
                if launches:
                    sections.append(Run(tuple(launches)))
                    launches = []
                sections.append(self.changes[number])
            if isinstance(step, Launch | RoutineCall):
                launches.append(self._launch(number, step))
                continue
            if launches:
                sections.append(Run(tuple(launches)))
                launches = []
            sections.append(self._library(number, step) if isinstance(step, LibraryCall) else self._aten(number, step))
        if launches:
            sections.append(Run(tuple(launches)))
        return tuple(sections)

    def _changes(self) -> dict[int, Change]:
        """Step -> what happens to memory before it. What is freed is freed before the next is made, not at once."""
        program = self.program
        limit = program.large_bytes(self.bindings)
        first: dict[Slot, int] = {}
        last: dict[Slot, int] = {}
        for number, step in enumerate(program.steps):
            for view in (*step.reads, *step.writes):
                is_own = view is not None and (view.slot.role == "block" or view.slot in program.aliases)
                if view is not None and (is_own or self.number(view.slot.bytes) >= limit):
                    first.setdefault(view.slot, number)
                    last[view.slot] = number
        made: dict[int, list[Slot]] = {}
        for slot, number in first.items():
            if slot.role in ("output", "block"):
                made.setdefault(number, []).append(slot)
        freed = {s for s in last if s.role == "block"} - set(program.aliases.values())
        ends = sorted((k, self._bases[s], s.role) for s, k in last.items() if s in program.owned or s in freed)
        changes: dict[int, Change] = {}
        for number in sorted(made):
            gone = [(base, role) for k, base, role in ends if k < number]
            ends = ends[len(gone) :]
            sources = {s: self._bases[program.aliases[s]] if s in program.aliases else -1 for s in made[number]}
            changes[number] = Change(
                tuple(base for base, role in gone if role == "block"),
                tuple(base for base, role in gone if role == "input"),
                tuple((self._bases[s], self.number(s.bytes), sources[s]) for s in made[number] if s.role == "block"),
                tuple((self._bases[s] - self.first_output, sources[s]) for s in made[number] if s.role == "output"),
            )
        return changes

    def _launch(self, number: int, step: Launch | RoutineCall) -> LaunchRecord:
        kernel = self.shared.code.kernels[number]
        if kernel is None:
            name = step.kernel.name if isinstance(step, Launch) else step.op
            raise LaunchError(f"step {number}, {name}, has no code")
        return self._record(number, step, kernel)

    def _words(self, step: Launch | RoutineCall) -> list[Word]:
        """What a kernel is given: addresses, then sizes."""
        words = []
        for view in step.arguments:
            base, start = self.position(view.slot)
            value = start + self.number(view.offset) * view.dtype.bytes
            words.append(Word(None if base == CONSTANT else base, value))
        sizes = step.kernel.size_symbols if isinstance(step, Launch) else step.size_symbols
        return [*words, *(Word(None, self.bindings[name]) for name in sizes)]

    def _record(self, number: int, step: Launch | RoutineCall, kernel: Any) -> Any:
        """A launch with sizes known."""
        work, words = self.number(kernel.work), tuple(self._words(step))
        return LaunchRecord(number, kernel.address, words, work, max(kernel.grain, 1), max(kernel.multiple, 1))

    def _preparation(self) -> tuple[Preparation, ...]:
        """The launches that fill prepared memory, and what each is made from, also through what others have prepared."""
        records: list[Preparation] = []
        sources: list[int | Tensor] = []
        made_from: dict[Slot, tuple[int, ...]] = {}

        def number_of(slot: Slot) -> tuple[int, ...]:
            if slot not in made_from:
                source: int | Tensor | None = slot.position
                if slot.role == "constant":
                    tensor = tensor_behind(self.program.constants[slot.position])
                    # with the model's version counter, over the memory that the program holds whatever the model's tensor gets
                    source = None if tensor is None else tensor.detach()
                made_from[slot] = () if source is None else (len(sources),)
                sources.extend(() if source is None else (source,))
            return made_from[slot]

        for step, kernel in zip(self.program.preparation, self.shared.code.preparation, strict=True):
            numbers = sorted({n for view in step.reads for n in number_of(view.slot)})
            made_from.update((view.slot, tuple(numbers)) for view in step.writes)
            records.append(Preparation(self._record(len(records), step, kernel), tuple(numbers)))
        self.sources = tuple(sources)
        return tuple(records)

    def _library(self, number: int, step: LibraryCall) -> Library:
        reads, writes = ([self.operand(view) for view in views] for views in (step.reads, step.writes))
        return Library(number, prepare(Call(step.op, reads, writes, concrete(step.attributes, self.bindings), self, self.device)))

    def _aten(self, number: int, step: AtenCall) -> Aten:
        reads = tuple(self.operand(view).position for view in step.reads)
        results = tuple(None if view is None else self._bases[view.slot] for view in step.writes)
        return Aten(number, prepare_aten(step.target, step.arguments, reads, self.bindings, self.device), results, reads)

    def _find_written_inputs(self) -> tuple[int, ...]:
        written = {view.slot for step in self.program.steps for view in step.writes if view is not None}
        return tuple(k for k, slot in enumerate(self.program.inputs) if slot is not None and slot in written)

    def _find_dropped(self) -> dict[int, tuple[int, ...]]:
        """Section -> bases of the extern tensors that nobody needs after it."""
        section_of: dict[int, int] = {}
        for k, section in enumerate(self.sections):
            if isinstance(section, Change):
                continue
            for number in [r.number for r in section.launches] if isinstance(section, Run) else [section.number]:
                section_of[number] = k
        dropped: dict[int, list[int]] = {}
        for slot, (_, last) in self.program.lifetimes.items():
            if slot.role == "extern" and last < len(self.program.steps):
                dropped.setdefault(section_of[last], []).append(self._bases[slot])
        return {k: tuple(bases) for k, bases in dropped.items()}

    def constant(self, result: Result) -> Tensor:
        """The constant that a result shows."""
        slot = next(s for s in self.program.slots if s.role == "constant" and s.position == result.at)
        return self.shared.constants[slot].as_strided(result.shape, result.strides, result.offset)

    def _result(self, view: View) -> Result:
        layout, slot = self.layout(view), view.slot
        if slot.role == "intermediate":
            raise LaunchError(f"{slot.name} lies in the arena and cannot be handed back")
        if slot.role == "constant":
            at = slot.position
        else:
            at = self._bases[slot] - (self.first_output if slot.role == "output" else 0)
        return Result(slot.role, at, view.is_whole, layout.shape, layout.strides, self.number(view.offset))
