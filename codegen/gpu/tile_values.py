"""Values of Kernel IR over two-dimensional tiles, as lines of Triton: each has those dimensions of the tile that it depends on.

A value of the rows alone is a column of numbers `[ROWS, 1]`, one of the columns alone a row `[1, COLUMNS]`, one of neither a
number; Triton's broadcasting does the rest, so that a bias is loaded once for a whole tile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dlcompiler.codegen.gpu import scalars
from dlcompiler.codegen.gpu.index_text import index_text
from dlcompiler.codegen.schedule import Access
from dlcompiler.ir import kernel as K
from dlcompiler.ir.expression import Dim, linear_coefficients, symbol, symbols
from dlcompiler.ir.narrow_form import decoded
from dlcompiler.ir.types import DType, i64


class TileValues:
    """Emits values and stores of one kernel, a line each.

    accesses   of its loads and stores
    extents    of its axes
    narrow     whether indices are of 32 bits
    variables  axis -> the text that stands for it here; changes from one part of the kernel to the next
    sides      axis -> which dimension of the tile it belongs to: "rows", "columns", "depth", or "" for a number
    masks      side -> the variable that says which positions exist; absent where all do
    eighths    8-bit floats that the device converts and multiplies -> Triton's name; its pointers to them are of that type
    """

    def __init__(
        self,
        kernel: K.Kernel,
        accesses: Mapping[object, Access],
        extents: Mapping[str, Dim],
        narrow: bool,
        eighths: Mapping[DType, str] | None = None,
    ) -> None:
        self.kernel, self.accesses, self.extents, self.narrow = kernel, accesses, extents, narrow
        self.eighths = eighths or {}
        self.lines: list[str] = []
        self.indent = 1
        self.names: dict[K.Value, str] = {}
        self.variables: dict[str, str] = {}
        self.sides: dict[str, str] = {}
        self.masks: dict[str, str] = {}
        self.pointers: dict[K.Load, tuple[str, frozenset[str]]] = {}  # hoisted: variable, and the axes that are in it
        self.taken = {*kernel.size_symbols, *(b.name for b in kernel.buffers), *extents}
        self.count = 0

    # -- text ----------------------------------------------------------------------------------------------------------------

    def line(self, text: str) -> None:
        """One line at the current indentation."""
        self.lines.append("    " * self.indent + text)

    def let(self, text: str, hint: str = "v") -> str:
        """A new variable."""
        name = self.fresh(f"{hint}{self.count}")
        self.count += 1
        self.line(f"{name} = {text}")
        return name

    def fresh(self, name: str) -> str:
        """`name`, or something like it if a size or a buffer is called so."""
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name

    def index(self, expression: Dim, as_number: bool = False) -> str:
        """An index expression; `as_number` computes it in 64 bits whatever it stays below."""

        def name(text: str) -> str:
            found = self.variables.get(text, text)
            return f"{found}.to(tl.int64)" if as_number and self.narrow and text in self.extents else found

        return index_text(expression, self.extents, name)

    # -- values --------------------------------------------------------------------------------------------------------------

    def axes_of(self, value: K.Value) -> frozenset[str]:
        """Axes that a value depends on, also of values that are in no kernel."""
        own: frozenset[str] = value._index_symbols()
        if isinstance(value, K.Load):
            own = symbols(self.accesses[value].offset).union(*(symbols(b.expression) for b in value.guard))
        return (own & self.extents.keys()).union(*(self.axes_of(o) for o in value.operands)) - value._removed()

    def emit(self, roots: Iterable[K.Value]) -> None:
        """Lines for these values and for all that they need and that has no name yet."""
        stack = [(root, False) for root in reversed(list(roots))]
        while stack:
            value, is_ready = stack.pop()
            if value in self.names:
                continue
            if is_ready:
                self.names[value] = self._value(value)
                continue
            stack.append((value, True))
            eighth = self._eighth(value)
            operands = value.operands if eighth is None else (eighth,)
            stack.extend((o, False) for o in reversed(operands) if o not in self.names)

    def _eighth(self, value: K.Value) -> K.Load | None:
        """The load of an 8-bit float that a value is the conversion of, if that is written shorter than its arithmetic."""
        found = decoded(value)
        return found if found is not None and found.dtype.name in scalars.EIGHT_BIT else None

    def _value(self, value: K.Value) -> str:
        eighth = self._eighth(value)
        if eighth is not None:
            name = self.names[eighth]
            return self.let(f"{name if self.eighths else scalars.half_of_eighth(name, eighth.dtype)}.to(tl.float32)")
        match value:
            case K.Load():
                return self.let(self.load(value), f"{value.buffer.name}_")
            case K.Constant():
                return self.let(scalars.constant(value.value, value.dtype))
            case K.Index():
                text = f"({self.index(value.expression, as_number=True)}) + tl.full([], 0, tl.int64)"
                return self.let(text if value.dtype is i64 else scalars.cast(text, i64, value.dtype))
            case K.Within():
                return self.let(self.within(value.bounds))
            case K.Compute(op="cast"):
                return self.let(scalars.cast(self.names[value.inputs[0]], value.inputs[0].dtype, value.dtype))
            case K.Compute(op="bitcast"):
                return self.let(scalars.bitcast(self.names[value.inputs[0]], value.inputs[0].dtype, value.dtype))
            case K.Compute():
                return self.let(scalars.compute(value.op, value.inputs[-1].dtype, *(self.names[o] for o in value.inputs)))
        raise KeyError(f"{value} is not ready here")

    def within(self, bounds: Iterable[K.Bound]) -> str:
        """The condition that all bounds hold."""
        tests = []
        for bound in bounds:
            index = self.index(bound.expression)
            tests.append(f"(({index}) >= 0) & (({index}) < {self.index(bound.extent)})")
        return " & ".join(tests)

    def load(self, load: K.Load) -> str:
        """A load of the tile, 0 where nothing exists."""
        offset = self.accesses[load].offset
        indirect = [self.names[o] for o in load.indirect]
        axes = symbols(offset) & self.extents.keys()
        for value in load.indirect:
            axes |= self.axes_of(value)
        guarded = frozenset(s for b in load.guard for s in symbols(b.expression)) & self.extents.keys()
        mask = self.mask(axes | guarded)
        if load.guard:
            mask = [*mask, self.within(load.guard)]
        if load in self.pointers:
            pointer, done = self.pointers[load]
            rest = self.part(offset, self.extents.keys() - done)
            address = pointer if rest == 0 else f"{pointer} + ({self.index(rest)})"
        else:
            address = f"{load.buffer.name} + ({self._indirect_text(offset, indirect)})"
        missing = {self.sides.get(a, "") for a in guarded} - {self.sides.get(a, "") for a in axes} - {""}
        for side in sorted(missing):
            axis = next(a for a in guarded if self.sides.get(a) == side)
            address += f" + {self.variables[axis]} * 0"
        zero = "0.0" if load.dtype in self.eighths else "0"
        return f"tl.load({address}, {' & '.join(mask)}, {zero})" if mask else f"tl.load({address})"

    def _indirect_text(self, offset: Dim, indirect: list[str]) -> str:
        def name(text: str) -> str:
            if text.startswith("@"):
                found = indirect[int(text[1:])]
                return f"{found}.to(tl.int32)" if self.narrow else found
            return self.variables.get(text, text)

        return index_text(offset, self.extents, name)

    def mask(self, axes: Iterable[str]) -> list[str]:
        """What says which positions along these axes exist."""
        sides = {self.sides.get(a, "") for a in axes}
        return [self.masks[side] for side in ("rows", "columns", "depth") if side in sides and side in self.masks]

    def store(self, store: K.Store) -> None:
        """The line that stores a value, which has a name already."""
        offset = self.accesses[store].offset
        address = f"{store.buffer.name} + ({self.index(offset)})"
        name = self.names[store.value]
        if store.value.dtype in self.eighths:
            name = f"{name}.to(tl.uint8, bitcast=True)"
        arguments = [address, name, *([" & ".join(m)] if (m := self.mask(symbols(offset))) else [])]
        self.line(f"tl.store({', '.join(arguments)})")

    # -- addresses that do not change in a loop ------------------------------------------------------------------------------

    def hoist(self, load: K.Load, axes: frozenset[str], hint: str) -> None:
        """A pointer that holds the part of a load's address that these axes make, if it is a sum of parts."""
        access = self.accesses[load]
        if access.coefficients is None or load in self.pointers:
            return
        part = self.part(access.offset, axes) + access.coefficients.get("", 0)
        self.pointers[load] = (self.let(f"{load.buffer.name} + ({self.index(part)})", f"{hint}_at"), axes)

    def part(self, offset: Dim, axes: Iterable[str]) -> Dim:
        """The part of a linear offset that these axes make."""
        coefficients = linear_coefficients(offset, self.extents) or {}
        total: Dim = 0
        for axis in axes:
            total = total + coefficients.get(axis, 0) * symbol(axis)
        return total
