"""Program: the order of launches, and the memory each touches.

A program is a list of steps over slots. A slot is one piece of memory: an argument of the call, a result, a constant, or an
intermediate at an offset of the one arena that a call uses. Steps see slots through views (strides and an offset), so that a
transposed weight or a slice costs nothing. Sizes may be symbolic; offsets are numbers and belong to one binding of the symbols
(`Placement`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from dlcompiler.ir.expression import Dim, evaluate, symbols
from dlcompiler.ir.graph import Event, Graph
from dlcompiler.ir.kernel import Bundle, Kernel
from dlcompiler.ir.types import DType, contiguous_strides

# What is a smaller part of all that a program owns and gives is not freed and allocated one by one; nor fewer bytes.
LARGE_PART, LARGE_BYTES = 256, 1 << 17

Role = Literal["input", "output", "constant", "intermediate", "extern", "prepared", "block"]


@dataclass(frozen=True, eq=False)
class Slot:
    """One piece of memory, compared by identity.

    role      input: memory of argument `position`. output: memory allocated afresh by each call for result `position` of the
              outputs' own slots. constant: `Program.constants[position]`. intermediate: lives in the arena between its first
              and last use. extern: a tensor that an aten call allocates and that is dropped after its last use.
              block: as intermediate, but in memory of its own, allocated at its first use and freed after its last.
              prepared: kept between calls; made by `Program.preparation` from inputs and constants, and again when those change.
    strides   in elements
    """

    name: str
    dtype: DType
    shape: tuple[Dim, ...]
    strides: tuple[Dim, ...]
    role: Role
    position: int = -1

    @cached_property
    def elements(self) -> Dim:
        """Elements from the first to the last one touched, gaps included; 0 for an empty tensor."""
        if any(size == 0 for size in self.shape):
            return 0
        total: Dim = 1
        for size, stride in zip(self.shape, self.strides):
            total = total + (size - 1) * stride
        return total

    @cached_property
    def bytes(self) -> Dim:
        return self.elements * self.dtype.bytes

    def view(self) -> View:
        """The whole slot."""
        return View(self, self.shape, self.strides)

    def __repr__(self) -> str:
        return f"{self.role} {self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class View:
    """A strided window on a slot. Strides and offset are in elements."""

    slot: Slot
    shape: tuple[Dim, ...]
    strides: tuple[Dim, ...]
    offset: Dim = 0

    @property
    def dtype(self) -> DType:
        return self.slot.dtype

    @property
    def is_whole(self) -> bool:
        """Whether this is the slot itself, as its owner laid it out."""
        return self.shape == self.slot.shape and self.strides == self.slot.strides and self.offset == 0

    @property
    def is_contiguous(self) -> bool:
        return self.strides == contiguous_strides(self.shape)


@dataclass(frozen=True, eq=False)
class Launch:
    """Run a kernel of our own. `arguments` are in the order of `kernel.buffers`; the kernel may write those of role out."""

    kernel: Kernel
    arguments: tuple[View, ...]
    origin: tuple[str, ...] = ()

    @property
    def reads(self) -> tuple[View, ...]:
        return tuple(v for v, b in zip(self.arguments, self.kernel.buffers) if b.role == "in")

    @property
    def writes(self) -> tuple[View, ...]:
        return tuple(v for v, b in zip(self.arguments, self.kernel.buffers) if b.role == "out")

    @property
    def parts(self) -> tuple[tuple[Kernel, tuple[View, ...]], ...]:
        """Each loop nest that is run, and its arguments: of a bundle several."""
        if not isinstance(self.kernel, Bundle):
            return ((self.kernel, self.arguments),)
        return tuple(zip(self.kernel.parts, self.kernel.per_part(self.arguments)))


@dataclass(frozen=True, eq=False)
class LibraryCall:
    """Run a library's routine for one op, writing into planned memory. `attributes` are the graph node's."""

    op: str
    reads: tuple[View, ...]
    writes: tuple[View, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    origin: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class RoutineCall(LibraryCall):
    """Run a hand-written kernel of ours for one op: compiled code that is started like a Launch, in the same parallel region.

    Writes beyond the op's results are scratch memory of the kernel.

    in_place  (number of a result, of an operand) where the result may be written in the operand's memory, element by element
    """

    in_place: tuple[tuple[int, int], ...] = ()

    @property
    def arguments(self) -> tuple[View, ...]:
        """Every view the code is given, in order: reads, then writes that exist."""
        return (*self.reads, *(view for view in self.writes if view is not None))

    @cached_property
    def size_symbols(self) -> tuple[str, ...]:
        """Sizes that must be given at launch, sorted by name."""
        found: set[str] = set()
        for view in self.arguments:
            for dim in (*view.shape, *view.strides):
                found |= symbols(dim)
        return tuple(sorted(found))


@dataclass(frozen=True, eq=False)
class AtenCall:
    """Run an ATen operator that allocates its results (`writes` are extern slots; None for a result that is not a tensor).

    `arguments` is a template: `{"operand": k}` stands for `reads[k]`, `{"dim": expression}` for a size.
    """

    target: str
    arguments: Any
    reads: tuple[View, ...]
    writes: tuple[View | None, ...]
    origin: tuple[str, ...] = ()
    reason: str = ""


Step = Launch | LibraryCall | AtenCall


@dataclass(frozen=True, eq=False)
class CompiledKernel:
    """Machine code of one kernel: a C function `void kernel(void **words, int64_t low, int64_t high)`.

    It does the iterations [low, high) of the parallel range [0, work), and may be called for disjoint parts by several threads.
    `words` holds one 8-byte word for each of `kernel.buffers` (of a RoutineCall: of its `arguments`), its first element's address
    (with no alignment beyond the element's own), then one for each of its `size_symbols`, its value as an int64.

    address      of the function, valid while `keep_alive` lives
    work         iterations; may be symbolic, in the program's sizes
    grain        the fewest iterations worth a thread: work <= grain runs on the calling thread
    multiple     parts given to threads begin at multiples of this (a vector's width, say)
    text         what was compiled, for dumps
    """

    name: str
    address: int
    work: Dim
    grain: int = 1
    multiple: int = 1
    text: str = ""
    keep_alive: Any = None


@dataclass(frozen=True, eq=False)
class Code:
    """What codegen attaches to a program for a CPU.

    kernels   one for each step: a CompiledKernel for a Launch or RoutineCall (identical ones may share it), None for the others
    preparation  the same for each step of the program's preparation
    driver    address of the C function that starts a run of launches; see `codegen.cpu.driver`
    unchanged, touch  addresses of those that look after prepared memory; needed where there is a preparation
    """

    kernels: tuple[CompiledKernel | None, ...]
    driver: int
    keep_alive: Any = None
    preparation: tuple[CompiledKernel, ...] = ()
    unchanged: int = 0
    touch: int = 0


@dataclass(frozen=True, eq=False)
class DeviceKernel:
    """Machine code of one kernel for a GPU: an entry of a binary, and how it is started.

    The entry is given the address of each of `kernel.buffers` (of a RoutineCall: of its `arguments`), then each of its
    `size_symbols` as an int64, then, if it `repeats`, the number of the start, then `extra_words` words: the address of scratch
    memory, `scratch_bytes` for each block, and 0s.

    name      of the entry in `binary`, a cubin for `arch`; stages["ptx"] is the same for later architectures
    stages    name -> text, from what a person reads to what is assembled
    grid      number of blocks; may be symbolic, in the program's sizes
    threads   of a block; shared_bytes: its dynamic shared memory
    repeats   how often it is started in a row, each start after the one before; None: once, and it is given no number
    written   codegen's own record of it
    """

    name: str
    arch: str
    binary: bytes = field(repr=False)
    stages: Mapping[str, str] = field(repr=False)
    grid: Dim
    threads: int
    shared_bytes: int = 0
    extra_words: int = 0
    scratch_bytes: int = 0
    schedule: str = ""
    written: Any = field(repr=False, default=None)
    repeats: Dim | None = None

    @property
    def text(self) -> str:
        """The source that a person reads."""
        return next(iter(self.stages.values()), "")

    @property
    def known_starts(self) -> int:
        """How often a call starts it; 1 where only the call's sizes tell."""
        return self.repeats if isinstance(self.repeats, int) else 1


@dataclass(frozen=True, eq=False)
class DeviceCode:
    """What codegen attaches to a program for a GPU.

    kernels   one for each step: a DeviceKernel for a Launch or RoutineCall (identical ones may share it), None for the others
    preparation  the same for each step of the program's preparation
    float32   how products of float32 are multiplied: ieee, tf32x3 or tf32
    """

    kernels: tuple[DeviceKernel | None, ...]
    arch: str
    preparation: tuple[DeviceKernel, ...] = ()
    float32: str = "ieee"


@dataclass(frozen=True)
class Placement:
    """Where intermediates lie, for one binding of the symbols. All in bytes.

    lower_bound   the largest sum of intermediates alive at one step: no plan can be smaller
    eager_peak    the same sum if every op of the program's graph had kept its own result until its last use
    extern_bytes  the largest sum of extern slots and blocks alive at one step; they are not in the arena
    """

    offsets: Mapping[Slot, int]
    arena_bytes: int
    lower_bound: int
    eager_peak: int = 0
    extern_bytes: int = 0


@dataclass(frozen=True, eq=False)
class Program:
    """A whole compiled computation.

    inputs     slots of the tensor arguments, None for an integer argument that binds a symbol, in call order
    outputs    views to hand back, in order: on an output slot, an input, a constant or an extern slot
    constants  arrays (NumPy, or torch tensors) that constant slots hold
    aliases    an intermediate -> the one whose memory it takes over in place (its last reader writes it); the same of blocks,
               which also take over inputs that the program owns, where nobody else holds them, and are taken over by outputs
    placement  for a program without symbols; else made for each binding when first called
    preparation  launches that fill prepared slots from inputs and constants: before the first call, and when those have changed
    code       what codegen attached; None before
    """

    name: str
    graph: Graph
    slots: tuple[Slot, ...]
    steps: tuple[Step, ...]
    inputs: tuple[Slot | None, ...]
    outputs: tuple[View, ...]
    constants: tuple[Any, ...] = ()
    aliases: Mapping[Slot, Slot] = field(default_factory=dict)
    placement: Placement | None = None
    code: Code | DeviceCode | None = None
    refusals: tuple[str, ...] = ()
    history: tuple[Event, ...] = ()
    preparation: tuple[Launch, ...] = ()

    @cached_property
    def lifetimes(self) -> dict[Slot, tuple[int, int]]:
        """First and last step that touches each intermediate, block or extern slot."""
        found: dict[Slot, tuple[int, int]] = {}
        for number, step in enumerate(self.steps):
            for view in (*step.reads, *step.writes):
                if view is not None and view.slot.role in ("intermediate", "extern", "block"):
                    first, _ = found.get(view.slot, (number, number))
                    found[view.slot] = (first, number)
        for view in self.outputs:
            if view.slot in found:
                found[view.slot] = (found[view.slot][0], len(self.steps))
        return found

    @cached_property
    def owned(self) -> frozenset[Slot]:
        """Inputs that a call consumes: their memory is freed, or becomes a block's, once no step reads them any more."""
        marked = {s for s, n in zip(self.inputs, self.graph.inputs) if s is not None and n.attributes.get("owned")}
        written = {view.slot for step in self.steps for view in step.writes if view is not None}
        return frozenset(marked - written - {view.slot for view in self.outputs})

    @property
    def frees(self) -> bool:
        """Whether a call frees and allocates large values while it runs: a pass of a training step, which the memory of all
        passes together limits."""
        return bool(self.owned) or any(node.attributes.get("trained") for node in self.graph.inputs)

    def large_bytes(self, bindings: Mapping[str, int]) -> int:
        """From how many bytes on a value is large, see `frees`."""
        held = sum(evaluate(slot.bytes, bindings) for slot in self.slots if slot.role == "output" or slot in self.owned)
        return max(held // LARGE_PART, LARGE_BYTES)

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        """Sizes that a call must bind."""
        used: set[str] = set()
        for slot in self.slots:
            for dim in (*slot.shape, *slot.strides):
                used |= symbols(dim)
        return tuple(s for s in self.graph.symbols if s in used) or tuple(self.graph.symbols)

    def replace(self, **changes: Any) -> Program:
        return replace(self, **changes)

    def __str__(self) -> str:
        from dlcompiler.ir.text import print_program

        return print_program(self)
