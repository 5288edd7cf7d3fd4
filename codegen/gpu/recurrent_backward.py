"""The gradients of a layer's recurrence -> Triton.

    for each step, the other way: dh = dy of the step + the product's derivative of the step after @ w_hidden -> the cell

`scan_backward(dy, dh (, dc), kept (, more), w_hidden of each direction) -> dgates (, dproduct), dh0 (, dc0) (, scratch)`.
With a launch for each step there is one more in the end, which multiplies what the first step of the sequence left, for dh0.
"""

from __future__ import annotations

from itertools import islice

from dlcompiler.codegen.gpu.index_text import index_text
from dlcompiler.codegen.gpu.recurrent_form import Scan, ScanSchedule
from dlcompiler.codegen.gpu.recurrent_writer import ScanLines
from dlcompiler.ir.expression import Dim
from dlcompiler.ir.ops.recurrent_training import kept_widths
from dlcompiler.ir.program import View


class BackwardLines(ScanLines):
    """See the module."""

    def __init__(self, scan: Scan, schedule: ScanSchedule, aligned: frozenset[str]) -> None:
        super().__init__(scan, schedule, aligned)
        states = scan.cell.states
        parts = len(kept_widths(scan.cell))
        self.dy, self.last, self.kept = self.reads[0], self.reads[1 : 1 + states], self.reads[1 + states : 1 + states + parts]
        self.weights = self.reads[1 + states + parts :]
        products = 2 if scan.cell.inner_bias else 1
        # derivatives of the gates, of the product with the state, and of the initial states
        self.gates, self.products = self.writes[0], self.writes[products - 1]
        self.first = self.writes[products : products + states]
        # what goes to the step before not by a product: dc of an lstm, a part of dh of a gru
        self.carried = {"lstm": "dc", "gru": "through", "rnn": ""}[scan.cell.name]
        self.running: tuple[str, View] = self.writes[-1] if scan.is_narrow else self.first[-1]

    @property
    def repeats(self) -> Dim | None:
        return None if self.schedule.whole else self.scan.steps + 1

    def whole(self, direction: int) -> None:
        scan, state = self.scan, (str(direction), "row[:, None]", "unit[None, :]")
        self.line(f"dh = {self.tile(self.last[0], *state)}")
        if scan.cell.states > 1:
            self.line(f"dc = {self.tile(self.last[1], *state)}")
        self.begin(f"for step in range(0, {index_text(scan.steps, {})}):")
        self.time(direction, backward=True)
        self.line(f"dh += {self.tile(self.dy, 'time', 'row[:, None]', self.units_of(direction))}")
        products = self.cell(direction)
        self.line("dh = through" if self.carried == "through" else "dh = tl.full([ROWS, UNITS], 0.0, tl.float32)")
        for k, product in enumerate(products):
            tile = self.at(self.weights[direction], self.units_of(k, "unit[:, None]"), "unit[None, :]")
            self.line(f"weight = tl.load({tile}, unit_inside[:, None] & unit_inside[None, :], 0.0)")
            self.line(f"dh = tl.dot({self.narrowed(product)}, weight, dh{self.dot_end}")
        self.end()
        self.put(self.first[0], "dh", *state)
        if scan.cell.states > 1:
            self.put(self.first[1], "dc", *state)

    def step(self, direction: int) -> None:
        scan, state = self.scan, (str(direction), "row[:, None]", "unit[None, :]")
        self.time(direction, backward=True)
        self.line("dh = tl.full([ROWS, UNITS], 0.0, tl.float32)")
        self.begin("if step > 0:")
        count = scan.rows_of_weight
        self.begin(f"for start in range(0, {count}, DEPTH):")
        self.line(f"k = start + tl.arange(0, DEPTH){self.wide}")
        factor = self.at(self.products, str(direction), "was", "row[:, None]", "k[None, :]")
        self.line(f"factor = tl.load({factor}, {self.beside('row_inside[:, None]', 'k[None, :]', count)}, 0.0)")
        mask = self.beside("unit_inside[None, :]", "k[:, None]", count)
        self.line(f"weight = tl.load({self.at(self.weights[direction], 'k[:, None]', 'unit[None, :]')}, {mask}, 0.0)")
        self.line(f"dh = tl.dot(factor, weight, dh{self.dot_end}")
        self.end()
        if self.carried == "through":
            self.line(f"dh += {self.tile(self.running, *state)}")
        self.end()
        self.begin("else:")
        self.line(f"dh += {self.tile(self.last[0], *state)}")
        self.end()
        self.begin(f"if step < {index_text(scan.steps, {})}:")
        self.line(f"dh += {self.tile(self.dy, 'time', 'row[:, None]', self.units_of(direction))}")
        if scan.cell.states > 1:
            self.begin("if step == 0:")
            self.line(f"dc = {self.tile(self.last[1], *state)}")
            self.end()
            self.begin("else:")
            self.line(f"dc = {self.tile(self.running, *state)}")
            self.end()
        self.cell(direction)
        if self.carried:
            self.put(self.running, self.carried, *state)
        if scan.cell.states > 1 and scan.is_narrow:
            self.begin(f"if step == {index_text(scan.steps - 1, {})}:")
            self.put(self.first[1], "dc", *state)
            self.end()
        self.end()
        self.begin("else:")
        self.put(self.first[0], "dh", *state)
        self.end()

    def cell(self, direction: int) -> list[str]:
        """From dh and dc of a step: the derivatives of its gates, which are stored, and those of the product, which are named."""
        place = str(direction), "time", "row[:, None]"
        names = iter(_KEPT[self.scan.cell.name])
        for kept, width in zip(self.kept, kept_widths(self.scan.cell)):
            for k, name in enumerate(islice(names, width)):
                self.line(f"{name} = {self.tile(kept, *place, self.units_of(k))}")
        lines, gates, products = _BACK[self.scan.cell.name]
        for line in lines:
            self.line(line)
        for k, (gate, product) in enumerate(zip(gates, products)):
            self.put(self.gates, gate, *place, self.units_of(k))
            if self.scan.cell.inner_bias:
                self.put(self.products, product, *place, self.units_of(k))
        return products


# what a forward scan has kept, in the order of `ir.ops.recurrent_training`
_KEPT = {"lstm": ("of_i", "of_f", "of_g", "of_o", "of_c", "f"), "gru": ("r", "z", "of_n", "of_z", "of_r"), "rnn": ("slope",)}
# cell -> (lines of a step, derivatives of the gates, those of the product with the state)
_BACK: dict[str, tuple[list[str], list[str], list[str]]] = {
    "lstm": (
        ["dc += dh * of_c", "di = dc * of_i", "df = dc * of_f", "dg = dc * of_g", "do = dh * of_o", "dc = dc * f"],
        ["di", "df", "dg", "do"],
        ["di", "df", "dg", "do"],
    ),
    "gru": (
        ["dn = dh * of_n", "dr = dn * of_r", "dz = dh * of_z", "inner = dn * r", "through = dh * z"],
        ["dr", "dz", "dn"],
        ["dr", "dz", "inner"],
    ),
    "rnn": (["da = dh * slope"], ["da"], ["da"]),
}
