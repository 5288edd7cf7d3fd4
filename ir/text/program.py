"""Programs as text: the program, then its graph, then each kernel once.

program mlp {
  slot x : f32[8, 16] input 0
  slot w : f32[16, 16] strides [1, 16] constant 0
  slot h : f32[8, 16] intermediate at 0
  slot g : f32[8, 16] intermediate in h
  slot y : f32[8, 4] output 0
  inputs (x, none)
  constants 1
  library matmul(x, w) -> (h) from "%3 at mlp.py:4"
  prepare launch pack(w, p)
  routine attention(h, h, h) -> (g) {causal = true, scale = 0.125}
  routine rnn_scan_keeping(s, h, p) -> (y, t, h2) {reverse = (false,)} in_place ((2, 1),)
  launch gelu(h, g)
  launch head(g[8, 4] strides [16, 1] offset 4, y)
  aten aten.sort.default(y) -> (s, none) with [{operand = 0}] because "no entry in the op table"
  output y
  placement arena 512 lower_bound 512 eager_peak 1152 extern 64
  refused "..."
}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dlcompiler.ir.kernel import Kernel
from dlcompiler.ir.program import AtenCall, Launch, LibraryCall, Placement, Program, Role, RoutineCall, Slot, Step, View
from dlcompiler.ir.text.graph import print_graph, read_graph
from dlcompiler.ir.text.kernel import print_kernel, read_kernel
from dlcompiler.ir.text.scanner import Scanner
from dlcompiler.ir.text.values import quote, show_attribute, show_attributes, show_dims, show_labels, show_name
from dlcompiler.ir.types import contiguous_strides

ROLES: tuple[Role, ...] = ("input", "output", "constant", "intermediate", "extern", "prepared", "block")


def print_program(program: Program, *, digests: bool = True) -> str:
    """The text of a program. The data of constants and attached code are not part of it."""
    steps = (*program.preparation, *program.steps)
    kernels = list(dict.fromkeys(step.kernel for step in steps if isinstance(step, Launch)))
    labels = show_labels(kernels)
    slots = show_labels(program.slots)
    lines = [f"program {show_name(program.name)} {{"]
    lines += [f"  # {' '.join(str(event).splitlines())}" for event in program.history]
    lines += [f"  {_show_slot(slot, program, slots)}" for slot in program.slots]
    lines.append(f"  inputs ({', '.join('none' if s is None else slots[s] for s in program.inputs)})")
    if program.constants:
        lines.append(f"  constants {len(program.constants)}")
    lines += [f"  prepare {show_step(step, slots, labels)}" for step in program.preparation]
    lines += [f"  {show_step(step, slots, labels)}" for step in program.steps]
    lines += [f"  output {_show_view(view, slots)}" for view in program.outputs]
    if program.placement is not None:
        place = program.placement
        sizes = f"arena {place.arena_bytes} lower_bound {place.lower_bound} eager_peak {place.eager_peak}"
        lines.append(f"  placement {sizes} extern {place.extern_bytes}")
    lines += [f"  refused {quote(sentence)}" for sentence in program.refusals]
    parts = ["\n".join((*lines, "}")) + "\n", print_graph(program.graph, digests=digests)]
    parts += [print_kernel(kernel, label=labels[kernel]) for kernel in kernels]
    return "\n".join(parts)


def _show_slot(slot: Slot, program: Program, names: Mapping[Slot, str]) -> str:
    strides = "" if slot.strides == contiguous_strides(slot.shape) else f" strides {show_dims(slot.strides)}"
    text = f"slot {names[slot]} : {slot.dtype}{show_dims(slot.shape)}{strides} {slot.role}"
    text += f" {slot.position}" if slot.position >= 0 else ""
    if program.placement is not None and slot in program.placement.offsets:
        text += f" at {program.placement.offsets[slot]}"
    return text + (f" in {names[program.aliases[slot]]}" if slot in program.aliases else "")


def _show_view(view: View | None, names: Mapping[Slot, str]) -> str:
    if view is None:
        return "none"
    name = names.get(view.slot) or show_name(view.slot.name)
    if view.is_whole:
        return name
    strides = "" if view.is_contiguous else f" strides {show_dims(view.strides)}"
    return f"{name}{show_dims(view.shape)}{strides}" + ("" if view.offset == 0 else f" offset {view.offset}")


def show_step(step: Step, slots: Mapping[Slot, str], kernels: Mapping[Kernel, str]) -> str:
    """One step as a line; `slots` and `kernels` say what they are called."""

    def views(them: Sequence[View | None]) -> str:
        return f"({', '.join(_show_view(v, slots) for v in them)})"

    match step:
        case Launch():
            text = f"launch {kernels.get(step.kernel) or show_name(step.kernel.name)}{views(step.arguments)}"
        case LibraryCall():
            word = "routine" if isinstance(step, RoutineCall) else "library"
            text = f"{word} {show_name(step.op)}{views(step.reads)} -> {views(step.writes)}"
            text += f" {show_attributes(step.attributes)}" if step.attributes else ""
            text += f" in_place {show_attribute(step.in_place)}" if isinstance(step, RoutineCall) and step.in_place else ""
        case AtenCall():
            text = f"aten {show_name(step.target)}{views(step.reads)} -> {views(step.writes)}"
            text += f" with {show_attribute(step.arguments)}"
            text += f" because {quote(step.reason)}" if step.reason else ""
    return text + (f" from {', '.join(map(quote, step.origin))}" if step.origin else "")


def parse_program(
    text: str,
    constants: Sequence[Any] | None = None,
    graph_constants: Mapping[str, Any] | None = None,
    *,
    allow_missing: bool = False,
) -> Program:
    """The program that `text` describes; `constants` are `Program.constants`, `graph_constants` those of its graph.

    Raises ParseError with line and column, also for missing constants; with `allow_missing` they are None (in the graph: zeros).
    """
    scanner = Scanner(text)
    reader = _Reader(scanner)
    reader.read()
    graph = read_graph(scanner, graph_constants, allow_missing=allow_missing)
    kernels: dict[tuple[str, int], Kernel] = {}
    while scanner.peek() == "kernel":
        at = scanner.at + 1
        kernel, label = read_kernel(scanner)
        if label in kernels:
            scanner.error(f"kernel {label[0]!r} is defined twice", at)
        kernels[label] = kernel
    scanner.end()
    if constants is None:
        if reader.constants and not allow_missing:
            scanner.error(f"the data of {reader.constants} constants is missing: pass it in `constants`", reader.constants_at)
        constants = (None,) * reader.constants
    if len(constants) != reader.constants:
        scanner.error(f"the program has {reader.constants} constants, not {len(constants)}", reader.constants_at)
    return reader.finish(graph, kernels, tuple(constants))


class _Reader:
    def __init__(self, scanner: Scanner) -> None:
        self.scanner = scanner
        self.name = ""
        self.slots: dict[tuple[str, int], Slot] = {}
        self.offsets: dict[Slot, int] = {}
        self.aliases: dict[Slot, Slot] = {}
        self.inputs: tuple[Slot | None, ...] = ()
        self.steps: list[Callable[[Mapping[tuple[str, int], Kernel]], Step]] = []
        self.preparation: list[Callable[[Mapping[tuple[str, int], Kernel]], Launch]] = []
        self.outputs: list[View] = []
        self.constants, self.constants_at = 0, 0
        self.placement: tuple[int, ...] | None = None
        self.refusals: list[str] = []

    def finish(self, graph: Any, kernels: Mapping[tuple[str, int], Kernel], constants: tuple[Any, ...]) -> Program:
        placement = None if self.placement is None else Placement(self.offsets, *self.placement)
        return Program(
            self.name, graph, tuple(self.slots.values()), tuple(make(kernels) for make in self.steps), self.inputs,
            tuple(self.outputs), constants, self.aliases, placement, refusals=tuple(self.refusals),
            preparation=tuple(make(kernels) for make in self.preparation),
        )  # fmt: skip

    def read(self) -> None:
        scanner = self.scanner
        scanner.expect("program")
        self.name = scanner.name("the program's name")
        scanner.expect("{")
        lines: dict[str, Callable[[], None]] = {
            "slot": self.slot, "inputs": self.read_inputs, "constants": self.read_constants, "prepare": self.prepare,
            "launch": self.launch, "library": self.library, "routine": self.routine, "aten": self.aten, "output": self.output,
            "placement": self.read_placement, "refused": lambda: self.refusals.append(scanner.string()),
        }  # fmt: skip
        while not scanner.accept("}"):
            if scanner.peek() not in lines:
                scanner.unexpected(f"{', '.join(lines)} or '}}'")
            scanner.at += 1
            lines[scanner.tokens[scanner.at - 1]]()

    def slot(self) -> None:
        scanner, at = self.scanner, self.scanner.at
        label = scanner.label("a slot's name")
        if label in self.slots:
            scanner.error(f"slot {label[0]!r} is defined twice", at)
        scanner.expect(":")
        type = scanner.tensor_type()
        strides = scanner.dims() if scanner.accept("strides") else contiguous_strides(type.shape)
        role = next((r for r in ROLES if scanner.accept(r)), None)
        if role is None:
            scanner.unexpected(" or ".join(ROLES))
        position = scanner.integer() if scanner.kinds[scanner.at] == "number" else -1
        slot = self.slots[label] = Slot(label[0], type.dtype, type.shape, strides, role, position)
        if scanner.accept("at"):
            self.offsets[slot] = scanner.integer()
        if scanner.accept("in"):
            self.aliases[slot] = self.known_slot()

    def known_slot(self) -> Slot:
        scanner, at = self.scanner, self.scanner.at
        label = scanner.label("a slot")
        if label not in self.slots:
            scanner.error(f"there is no slot {label[0]!r} above", at)
        return self.slots[label]

    def listed(self, read: Callable[[], Any]) -> list[Any]:
        found = [read()]
        while self.scanner.accept(","):
            found.append(read())
        return found

    def read_inputs(self) -> None:
        scanner = self.scanner
        scanner.expect("(")
        found: list[Slot | None] = []
        while not scanner.accept(")"):
            found.append(None if scanner.accept("none") else self.known_slot())
            if scanner.peek() != ")":
                scanner.expect(",")
        self.inputs = tuple(found)

    def read_constants(self) -> None:
        self.constants_at = self.scanner.at
        self.constants = self.scanner.integer()

    def view(self) -> View:
        scanner = self.scanner
        slot = self.known_slot()
        if scanner.peek() != "[":
            return slot.view()
        shape = scanner.dims()
        strides = scanner.dims() if scanner.accept("strides") else contiguous_strides(shape)
        return View(slot, shape, strides, scanner.dim() if scanner.accept("offset") else 0)

    def views(self) -> tuple[Any, ...]:
        scanner = self.scanner
        scanner.expect("(")
        found: list[View | None] = []
        while not scanner.accept(")"):
            found.append(None if scanner.accept("none") else self.view())
            if scanner.peek() != ")":
                scanner.expect(",")
        return tuple(found)

    def origin(self) -> tuple[str, ...]:
        return tuple(self.listed(self.scanner.string)) if self.scanner.accept("from") else ()

    def launch(self) -> None:
        self.steps.append(self.read_launch())

    def prepare(self) -> None:
        self.scanner.expect("launch")
        self.preparation.append(self.read_launch())

    def read_launch(self) -> Callable[[Mapping[tuple[str, int], Kernel]], Launch]:
        scanner, at = self.scanner, self.scanner.at
        label = scanner.label("a kernel")
        arguments, origin = self.views(), self.origin()

        def make(kernels: Mapping[tuple[str, int], Kernel]) -> Launch:
            if label not in kernels:
                scanner.error(f"there is no kernel {label[0]!r}", at)
            return Launch(kernels[label], arguments, origin)

        return make

    def library(self) -> None:
        op, reads, writes, attributes = self.call()
        step = LibraryCall(op, reads, writes, attributes, self.origin())
        self.steps.append(lambda kernels: step)

    def routine(self) -> None:
        op, reads, writes, attributes = self.call()
        in_place = self.scanner.attribute() if self.scanner.accept("in_place") else ()
        step = RoutineCall(op, reads, writes, attributes, self.origin(), in_place)
        self.steps.append(lambda kernels: step)

    def call(self) -> tuple[str, tuple[View, ...], tuple[View, ...], dict[str, Any]]:
        """op, reads, writes and attributes."""
        op, reads = self.scanner.name("an op"), self.views()
        self.scanner.expect("->")
        return op, reads, self.views(), self.scanner.attributes()

    def aten(self) -> None:
        scanner = self.scanner
        target, reads = scanner.name("an operator"), self.views()
        scanner.expect("->")
        writes = self.views()
        scanner.expect("with")
        arguments = scanner.attribute()
        reason = scanner.string() if scanner.accept("because") else ""
        step = AtenCall(target, arguments, reads, writes, self.origin(), reason)
        self.steps.append(lambda kernels: step)

    def output(self) -> None:
        self.outputs.append(self.view())

    def read_placement(self) -> None:
        numbers = []
        for word in ("arena", "lower_bound", "eager_peak", "extern"):
            self.scanner.expect(word)
            numbers.append(self.scanner.integer())
        self.placement = tuple(numbers)
