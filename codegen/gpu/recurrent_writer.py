"""The recurrence of a layer -> Triton: what forward and backward share, and the forward scans.

    for each step: gates of the step + h @ w_hidden.T -> the cell -> the next h (and c), and what gradients are made of

`recurrent_form` says how the work is cut up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from dlcompiler.codegen.gpu import scalars
from dlcompiler.codegen.gpu.index_text import index_text
from dlcompiler.codegen.gpu.recurrent_form import Scan, ScanSchedule
from dlcompiler.codegen.gpu.routine_text import finished, is_narrow, parameters
from dlcompiler.codegen.gpu.schedule import ceiling
from dlcompiler.codegen.gpu.triton_writer import TritonKernel
from dlcompiler.ir.expression import Dim, symbol
from dlcompiler.ir.ops.recurrent_training import kept_widths
from dlcompiler.ir.program import View
from dlcompiler.ir.types import f32


class ScanLines(ABC):
    """The lines of one kernel. Tiles are [ROWS, UNITS]: `row` and `unit` are their indices, `inside` says which exist."""

    def __init__(self, scan: Scan, schedule: ScanSchedule, aligned: frozenset[str]) -> None:
        self.scan, self.schedule, self.aligned = scan, schedule, aligned
        self.lines: list[str] = []
        self.indent = 1
        names = iter(b.name for b in parameters(scan.call).buffers)
        self.reads = [(next(names), view) for view in scan.call.reads]
        self.writes = [(next(names), view) for view in scan.call.writes if view is not None]
        self.wide = "" if is_narrow(parameters(scan.call).buffers) else ".to(tl.int64)"
        self.hidden = scan.hidden
        precise = f', input_precision="{schedule.precision}"' if schedule.precision else ""
        self.dot_end = f"{precise})"
        self.widened = ".to(tl.float32)" if scan.is_narrow else ""

    # -- text --------------------------------------------------------------------------------------------------------------------

    def line(self, text: str) -> None:
        self.lines.append("    " * self.indent + text)

    def begin(self, head: str) -> None:
        """A line that what follows is indented under, until `end`."""
        self.line(head)
        self.indent += 1

    def end(self) -> None:
        self.indent -= 1

    def at(self, place: tuple[str, View], *index: str) -> str:
        """The address of an element; an index "" is left out."""
        name, view = place
        pairs = [(i, stride) for i, stride in zip(index, view.strides, strict=True) if i not in ("", "0")]
        return " + ".join([name, *(_product(i, stride) for i, stride in pairs)])

    def tile(self, place: tuple[str, View], *index: str) -> str:
        """A tile [ROWS, UNITS] as float32."""
        text = f"tl.load({self.at(place, *index)}, inside, 0.0)"
        return text if place[1].dtype is f32 else f"{text}.to(tl.float32)"

    def put(self, place: tuple[str, View], value: str, *index: str) -> None:
        """Store a tile of float32."""
        stored = value if place[1].dtype is f32 else f"({value}).to({scalars.type_name(place[1].dtype)})"
        self.line(f"tl.store({self.at(place, *index)}, {stored}, inside)")

    def narrowed(self, value: str) -> str:
        """A tile of float32 as a factor."""
        return f"{value}.to({scalars.type_name(self.scan.dtype)})" if self.scan.is_narrow else value

    def beside(self, mask: str, k: str, count: int) -> str:
        """A mask, and that `k`, which goes in pieces, is one of `count`."""
        return mask if count % self.schedule.depth == 0 else f"{mask} & ({k} < {count})"

    def units_of(self, block: int, of: str = "unit[None, :]") -> str:
        """The index of the tile's units in a row of several blocks of H."""
        return f"({block * self.hidden} + {of})" if block else of

    # -- the frame of a kernel -------------------------------------------------------------------------------------------------

    def write(self) -> TritonKernel:
        """The file."""
        scan, schedule = self.scan, self.schedule
        row_blocks = ceiling(scan.batch, schedule.rows)
        unit_blocks = 1 if schedule.whole else -(-scan.hidden // schedule.units)
        each = row_blocks * unit_blocks
        self.line(f"program = tl.program_id(0){self.wide}")
        for direction in range(len(scan.reverse)):
            if len(scan.reverse) > 1:
                self.begin(f"if program < {index_text(each, {})}:" if direction == 0 else "else:")
                if direction:
                    self.line(f"program = program - {_factor(each)}")
            rows = "program" if unit_blocks == 1 else f"(program // {unit_blocks})"
            units = "" if unit_blocks == 1 else f"program % {unit_blocks} * UNITS + "
            self.line(f"row = {rows} * ROWS + tl.arange(0, ROWS){self.wide}")
            self.line(f"unit = {units}tl.arange(0, UNITS){self.wide}")
            self.line(f"row_inside = row < {index_text(scan.batch, {})}")
            self.line(f"unit_inside = unit < {scan.hidden}")
            self.line("inside = row_inside[:, None] & unit_inside[None, :]")
            if schedule.whole:
                self.whole(direction)
            else:
                self.step(direction)
            if len(scan.reverse) > 1:
                self.end()
        body = "\n".join(self.lines) + "\n"
        blocks = {"ROWS": schedule.rows, "UNITS": schedule.units} | ({} if schedule.whole else {"DEPTH": schedule.depth})
        return finished(
            scan.call, body, scalars.helpers_used(body), each * len(scan.reverse), blocks, schedule.warps, str(schedule),
            self.aligned, self.repeats,
        )  # fmt: skip

    @property
    def repeats(self) -> Dim | None:
        """How often the kernel is launched."""
        return None if self.schedule.whole else self.scan.steps

    def time(self, direction: int, backward: bool = False) -> None:
        """The place in the sequence that a step is at: `time`; `was`: of the step before."""
        goes_down = self.scan.reverse[direction] != backward
        last = index_text(self.scan.steps - 1, {})
        self.line(f"time = {last} - step" if goes_down else "time = step")
        if not self.schedule.whole:
            self.line("was = time + 1" if goes_down else "was = time - 1")

    @abstractmethod
    def whole(self, direction: int) -> None:
        """Lines that take some rows through all steps."""

    @abstractmethod
    def step(self, direction: int) -> None:
        """Lines of one step."""


def _product(index: str, stride: Dim) -> str:
    """An index, which may be a number, times a stride."""
    if index.isdigit() and isinstance(stride, int):
        return str(int(index) * stride)
    return index if stride == 1 else f"{index} * {_factor(stride)}"


def _factor(dim: Dim) -> str:
    text = index_text(dim, {})
    return text if isinstance(dim, int) and dim >= 0 else f"({text})"


class ForwardLines(ScanLines):
    """`scan(states..., then for each direction gates, w_hidden (, b_hidden)) -> y, states... (, kept (, more)) (, scratch)`"""

    def __init__(self, scan: Scan, schedule: ScanSchedule, aligned: frozenset[str]) -> None:
        super().__init__(scan, schedule, aligned)
        states = scan.cell.states
        self.initial = self.reads[:states]
        self.y, *rest = self.writes
        self.last = rest[:states]
        self.kept = rest[states : states + len(kept_widths(scan.cell))] if scan.keeps else []
        # c between steps: in memory of its own where that of the result is narrower
        self.running = self.writes[-1] if scan.is_narrow else self.last[-1]

    def operands(self, direction: int) -> list[tuple[str, View]]:
        """gates, w_hidden (, b_hidden) of one direction."""
        each = 3 if self.scan.cell.inner_bias else 2
        first = self.scan.cell.states + direction * each
        return self.reads[first : first + each]

    @property
    def names(self) -> Sequence[str]:
        return {"lstm": "ifgo", "gru": "rzn", "rnn": "a"}[self.scan.cell.name]

    def whole(self, direction: int) -> None:
        index = (str(direction), "row[:, None]", "unit[None, :]")
        self.line(f"h = {self.tile(self.initial[0], *index)}")
        if self.scan.cell.states > 1:
            self.line(f"c = {self.tile(self.initial[1], *index)}")
        self.begin(f"for step in range(0, {index_text(self.scan.steps, {})}):")
        self.time(direction)
        _, weight, *bias = self.operands(direction)
        self.line(f"factor = {self.narrowed('h')}")
        for k, name in enumerate(self.names):
            tile = self.at(weight, self.units_of(k), "unit[:, None]")
            self.line(f"weight = tl.load({tile}, unit_inside[:, None] & unit_inside[None, :], 0.0)")
            self.line(f"sum_{name} = tl.dot(factor, weight{self.dot_end}")
        self.line("old = h")
        self.cell(direction, bias)
        self.line("h = new" if not self.scan.is_narrow else f"h = {self.narrowed('new')}.to(tl.float32)")
        self.end()
        self.put(self.last[0], "h", *index)
        if self.scan.cell.states > 1:
            self.put(self.last[1], "c", *index)

    def step(self, direction: int) -> None:
        scan, hidden = self.scan, self.hidden
        state = (str(direction), "row[:, None]", "unit[None, :]")
        self.time(direction)
        before = self.state_before(direction)
        _, weight, *bias = self.operands(direction)
        for name in self.names:
            self.line(f"sum_{name} = tl.full([ROWS, UNITS], 0.0, tl.float32)")
        self.begin(f"for start in range(0, {hidden}, DEPTH):")
        self.line(f"k = start + tl.arange(0, DEPTH){self.wide}")
        factor = self.at(before, "", "row[:, None]", "k[None, :]")
        self.line(f"factor = tl.load({factor}, {self.beside('row_inside[:, None]', 'k[None, :]', hidden)}, 0.0)")
        mask = self.beside("unit_inside[None, :]", "k[:, None]", hidden)
        for k, name in enumerate(self.names):
            self.line(f"weight = tl.load({self.at(weight, self.units_of(k), 'k[:, None]')}, {mask}, 0.0)")
            self.line(f"sum_{name} = tl.dot(factor, weight, sum_{name}{self.dot_end}")
        self.end()
        if scan.cell.name == "gru":
            self.line(f"old = {self.tile(before, '', *state[1:])}")
        if scan.cell.states > 1:
            self.begin("if step == 0:")
            self.line(f"c = {self.tile(self.initial[1], *state)}")
            self.end()
            self.begin("else:")
            self.line(f"c = {self.tile(self.running, *state)}")
            self.end()
        self.cell(direction, bias)
        if scan.cell.states > 1:
            self.put(self.running, "c", *state)
        self.begin(f"if step == {index_text(scan.steps - 1, {})}:")
        self.put(self.last[0], "new", *state)
        if scan.cell.states > 1 and scan.is_narrow:
            self.put(self.last[1], "c", *state)
        self.end()

    def state_before(self, direction: int) -> tuple[str, View]:
        """h of the step before, as a [-, B, H]: a part of y, in the first step the initial state."""
        (first, initial), (_, y) = self.initial[0], self.y
        steps = {"row_step": (y.strides[1], initial.strides[1]), "unit_step": (y.strides[2], initial.strides[2])}
        chosen = {name: pair for name, pair in steps.items() if pair[0] != pair[1]}
        names = ", ".join(["before", *chosen])
        start = self.at(self.y, "was", "", str(direction * self.hidden))
        self.line(f"{names} = {', '.join([start, *(index_text(later, {}) for later, _ in chosen.values())])}")
        self.begin("if step == 0:")
        start = self.at((first, initial), str(direction), "", "")
        self.line(f"{names} = {', '.join([start, *(index_text(begin, {}) for _, begin in chosen.values())])}")
        self.end()
        strides = [symbol(name) if name in chosen else pair[0] for name, pair in steps.items()]
        return "before", replace(initial, strides=(0, *strides))

    def cell(self, direction: int, bias: Sequence[tuple[str, View]]) -> None:
        """From `sum_*` (products with the state), `old` h and c: `new` h and c; stores y and what is kept."""
        gates = self.operands(direction)[0]
        for k, name in enumerate(self.names):
            if bias:
                at = self.at(bias[0], self.units_of(k))
                self.line(f"sum_{name} += tl.load({at}, unit_inside[None, :], 0.0){self.widened}")
            self.line(f"gate_{name} = {self.tile(gates, 'time', 'row[:, None]', self.units_of(k))}")
        kept = CELLS[self.scan.cell.name](self)
        self.put(self.y, "new", "time", "row[:, None]", self.units_of(direction))
        values = iter(kept)
        for place, width in zip(self.kept, kept_widths(self.scan.cell)):
            for k, value in enumerate(islice(values, width)):
                self.put(place, value, str(direction), "time", "row[:, None]", self.units_of(k))


def _sigmoid(x: str) -> str:
    return scalars.compute("sigmoid", f32, x)


def _tanh(x: str) -> str:
    return scalars.compute("tanh", f32, x)


def _lstm(e: ForwardLines) -> list[str]:
    for name in "ifo":
        e.line(f"{name} = {_sigmoid(f'(gate_{name} + sum_{name})')}")
    e.line(f"g = {_tanh('gate_g + sum_g')}")
    e.line("old_c = c")
    e.line("c = f * c + i * g")
    e.line(f"grown = {_tanh('c')}")
    e.line("new = o * grown")
    return [
        "g * i * (1 - i)", "old_c * f * (1 - f)", "i * (1 - g * g)", "grown * o * (1 - o)", "o * (1 - grown * grown)", "f",
    ]  # fmt: skip


def _gru(e: ForwardLines) -> list[str]:
    e.line(f"r = {_sigmoid('(gate_r + sum_r)')}")
    e.line(f"z = {_sigmoid('(gate_z + sum_z)')}")
    e.line(f"n = {_tanh('gate_n + r * sum_n')}")
    e.line("new = (1 - z) * n + z * old")
    return ["r", "z", "(1 - z) * (1 - n * n)", "(old - n) * z * (1 - z)", "sum_n * r * (1 - r)"]


def _rnn(e: ForwardLines) -> list[str]:
    if e.scan.activation == "tanh":
        e.line(f"new = {_tanh('gate_a + sum_a')}")
        return ["1 - new * new"]
    e.line(f"new = {scalars.compute('maximum', f32, 'gate_a + sum_a', '0.0')}")
    return ["(new > 0).to(tl.float32)"]


# cell -> lines that compute a step of it, and what is kept of it, in the order of `ir.ops.recurrent_training`
CELLS = {"lstm": _lstm, "gru": _gru, "rnn": _rnn}
