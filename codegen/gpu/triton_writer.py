"""Kernel -> Triton: a source file that a person can read, run and edit on its own.

A pointwise kernel runs over blocks of its flattened axes. A kernel with reductions gives each program some rows, and runs over
the flattened reduced axes in tiles: in one tile, kept in registers, if a row fits, else in one loop a phase (see
`codegen.phases`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from dlcompiler.codegen.gpu import scalars
from dlcompiler.codegen.phases import Phases
from dlcompiler.codegen.schedule import Schedule, schedule_kernel
from dlcompiler.ir import kernel as K
from dlcompiler.ir.expression import Dim, product, symbol, symbols
from dlcompiler.ir.types import contiguous_strides, i64

POINTWISE_BLOCK = 1024
MAXIMUM_ROW = 4096  # elements of a row kept in registers
TILE_ELEMENTS = 2048  # elements of a tile of several rows
GPU_VECTOR_BYTES = 16

HEADER = """import triton
import triton.language as tl
from triton.language.extra import libdevice
"""


@dataclass(frozen=True, eq=False)
class TritonKernel:
    """One kernel as Triton source.

    grid       number of programs, a function of the sizes
    constants  the kernel's constexpr arguments
    signature  argument name -> Triton's word for its type, in order
    """

    name: str
    kernel: K.Kernel
    source: str
    grid: Dim
    constants: dict[str, int]
    signature: dict[str, str]


class TritonWriter:
    """Writes one kernel."""

    def __init__(self, kernel: K.Kernel) -> None:
        self.kernel = kernel
        self.schedule: Schedule = schedule_kernel(kernel, GPU_VECTOR_BYTES)
        self.phases = Phases(kernel, self.schedule)
        self.rows = [a for a in self.schedule.axes if a not in self.phases.inner]
        self.inner = list(self.schedule.inner)
        self.lines: list[str] = []
        self.names: dict[K.Value, str] = {}
        self.count = 0
        self.depth = 1
        self.row_elements = product(self.schedule.axes[a] for a in self.rows)
        self.inner_elements = product(self.schedule.axes[a] for a in self.inner)
        self.row_block, self.inner_block = self._blocks()

    def _blocks(self) -> tuple[int, int]:
        if not self.inner:
            return POINTWISE_BLOCK, 1
        size = self.inner_elements if isinstance(self.inner_elements, int) else MAXIMUM_ROW + 1
        inner = 1 << (max(size, 1) - 1).bit_length() if size <= MAXIMUM_ROW else TILE_ELEMENTS
        rows = 1 << (max(1, min(64, TILE_ELEMENTS // inner)).bit_length() - 1)
        return rows, inner

    @property
    def loops(self) -> bool:
        """Whether a row is too long for one tile."""
        return bool(self.inner) and not (isinstance(self.inner_elements, int) and self.inner_elements <= self.inner_block)

    # -- text --------------------------------------------------------------------------------------------------------------

    def write(self, name: str) -> TritonKernel:
        """The source of the kernel as a function called `name`."""
        self._begin()
        if not self.inner:
            self._emit_all(s.value for s in self.kernel.stores)
            self._store_all(self.kernel.stores)
        else:
            self._reduce()
        arguments = [b.name for b in self.kernel.buffers] + list(self.kernel.size_symbols)
        blocks = {"ROWS": self.row_block} | ({"INNER": self.inner_block} if self.inner else {})
        parameters = ", ".join([*arguments, *(f"{b}: tl.constexpr" for b in blocks)])
        documentation = "".join(f"\n    {line}" for line in self.kernel.origin) or f"\n    {self.kernel.name}"
        head = f'@triton.jit\ndef {name}({parameters}):\n    """Computes{documentation}\n    """\n'
        source = HEADER + scalars.HELPERS + "\n\n" + head + "\n".join(self.lines) + "\n"
        signature = {b.name: scalars.pointer_name(b.dtype) for b in self.kernel.buffers} | {
            s: "i64" for s in self.kernel.size_symbols
        }
        signature |= dict.fromkeys(blocks, "constexpr")
        grid = (self.row_elements + (self.row_block - 1)) // self.row_block
        return TritonKernel(name, self.kernel, source, grid, blocks, signature)

    def _line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    def _let(self, text: str, hint: str = "v") -> str:
        name = f"{hint}{self.count}"
        self.count += 1
        self._line(f"{name} = {text}")
        return name

    def _begin(self) -> None:
        shape = "[:, None]" if self.inner else ""
        self._line(f"row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS).to(tl.int64){shape}")
        self._line(f"row_inside = row < {self.row_elements}")
        self._split("row", self.rows)

    def _split(self, flat: str, axes: Sequence[str]) -> None:
        """Indices of several axes from one flattened index."""
        sizes = [self.schedule.axes[a] for a in axes]
        for position, axis in enumerate(axes):
            below = product(sizes[position + 1 :])
            text = flat if below == 1 else f"{flat} // ({below})"
            self._line(f"{axis} = {text}" if position == 0 else f"{axis} = {text} % ({sizes[position]})")

    # -- reductions ----------------------------------------------------------------------------------------------------------

    def _reduce(self) -> None:
        if not self.loops:
            self._line("inner = tl.arange(0, INNER).to(tl.int64)[None, :]")
            self._begin_tile()
        for phase in range(self.phases.last + 1):
            self._emit_ready(self.phases.between(phase))
            reduces, stores = self.phases.targets(phase)
            if self.loops and (reduces or stores):
                self._loop(reduces, stores)
            elif reduces or stores:
                self._emit_all([*(r.operand for r in reduces), *(s.value for s in stores)])
                self._store_all(stores)
                for reduce in reduces:
                    self.names[reduce] = self._finish(reduce, self._masked(reduce))
        outer = [s for s in self.kernel.stores if not self.phases.is_inner_store(s)]
        self._emit_all(s.value for s in outer)
        self._store_all(outer)

    def _begin_tile(self) -> None:
        self._line(f"inside = row_inside & (inner < {self.inner_elements})")
        self._split("inner", self.inner)

    def _loop(self, reduces: Sequence[K.Reduce], stores: Sequence[K.Store]) -> None:
        """One pass over a long row; values inside are computed again in each pass."""
        states = {r: [self._let(text, "a") for text in self._initial(r)] for r in reduces}
        outside = dict(self.names)
        self._line(f"for start in range(0, {self.inner_elements}, INNER):")
        self.depth += 1
        self._line("inner = start + tl.arange(0, INNER).to(tl.int64)[None, :]")
        self._begin_tile()
        self._emit_all([*(r.operand for r in reduces), *(s.value for s in stores)])
        self._store_all(stores)
        for reduce, state in states.items():
            parts = self._masked(reduce)
            self._line(f"{', '.join(state)} = {self._combine(reduce)}({', '.join([*state, *parts])})")
        self.depth -= 1
        self.names = outside
        for reduce, state in states.items():
            self.names[reduce] = self._finish(reduce, state)

    def _identity(self, reduce: K.Reduce, shape: str = "[]") -> str:
        dtype = reduce.operand.dtype
        match reduce.kind:
            case "add" | "or":
                value: object = 0
            case "mul" | "and":
                value = 1
            case kind:
                lowest = kind in ("max", "argmax")
                if dtype.is_float:
                    value = -np.inf if lowest else np.inf
                elif dtype.kind == "bool":
                    value = 0 if lowest else 1
                else:
                    info = np.iinfo(dtype.numpy)
                    value = int(info.min if lowest else info.max)
        return scalars.constant(value, dtype, shape)

    def _initial(self, reduce: K.Reduce) -> list[str]:
        first = [self._identity(reduce, "[ROWS, INNER]")]
        if reduce.kind in ("argmax", "argmin"):
            first.append(f"tl.full([ROWS, INNER], {np.iinfo(np.int64).max}, tl.int64)")
        return first

    def _masked(self, reduce: K.Reduce) -> list[str]:
        """The operand over the whole tile, with the identity where there is no element."""
        parts = [f"tl.where(inside, {self.names[reduce.operand]}, {self._identity(reduce)})"]
        if reduce.kind in ("argmax", "argmin"):
            place: Dim = 0
            for axis, stride in zip(reduce.over, contiguous_strides(tuple(self.kernel.extents[a] for a in reduce.over))):
                place = place + symbol(axis) * stride
            parts.append(f"tl.where(inside, {self._index(place)}, {np.iinfo(np.int64).max})")
        return parts

    def _combine(self, reduce: K.Reduce) -> str:
        names = {"max": "_maximum", "min": "_minimum"}
        bools = {"max": "_or", "min": "_and"}
        return (bools if reduce.operand.dtype.kind == "bool" else {}).get(reduce.kind) or names.get(
            reduce.kind, f"_{reduce.kind}"
        )

    def _finish(self, reduce: K.Reduce, state: Sequence[str]) -> str:
        if len(state) == 1:
            return self._let(f"tl.reduce({state[0]}, 1, {self._combine(reduce)})[:, None]")
        name = f"v{self.count}"
        self.count += 1
        self._line(f"_, {name} = tl.reduce(({', '.join(state)}), 1, {self._combine(reduce)})")
        return self._let(f"{name}[:, None]")

    # -- values --------------------------------------------------------------------------------------------------------------

    def _emit_ready(self, values: Iterable[K.Value]) -> None:
        for value in values:
            if value not in self.names and all(o in self.names for o in value.operands):
                self.names[value] = self._value(value)

    def _emit_all(self, values: Iterable[K.Value]) -> None:
        for value in self.phases.needed(values):
            if value not in self.names:
                self.names[value] = self._value(value)

    def _value(self, value: K.Value) -> str:
        match value:
            case K.Load():
                return self._load(value)
            case K.Constant():
                return self._let(scalars.constant(value.value, value.dtype))
            case K.Index():
                index = f"({self._index(value.expression)}) + tl.full([], 0, tl.int64)"
                return self._let(index if value.dtype is i64 else scalars.cast(index, i64, value.dtype))
            case K.Within():
                return self._let(self._within(value.bounds))
            case K.Compute():
                operands = [self.names[o] for o in value.inputs]
                if value.op == "cast":
                    return self._let(scalars.cast(operands[0], value.inputs[0].dtype, value.dtype))
                if value.op == "bitcast":
                    return self._let(scalars.bitcast(operands[0], value.inputs[0].dtype, value.dtype))
                return self._let(scalars.compute(value.op, value.inputs[-1].dtype, *operands))
        raise KeyError(f"{value} is not ready in this phase")

    def _index(self, expression: Dim, indirect: Sequence[str] = ()) -> str:
        """An index expression as text: symbols are variables of the function, `div` and `mod` round towards minus infinity."""
        text = _expression_text(expression)
        for number, name in enumerate(indirect):
            text = text.replace(f"@{number}", name)
        return text

    def _block(self, offset: Dim, text: str) -> str:
        """The offset as a block of addresses also where all rows have one."""
        return text if symbols(offset) & set(self.schedule.axes) else f"{text} + row * 0"

    def _within(self, bounds: Sequence[K.Bound]) -> str:
        return " & ".join(f"({self._index(b.expression)} >= 0) & ({self._index(b.expression)} < {b.extent})" for b in bounds)

    def _mask(self, inner: bool) -> str:
        return "inside" if inner else "row_inside"

    def _load(self, load: K.Load) -> str:
        access = self.schedule.accesses[load]
        offset = self._block(access.offset, self._index(access.offset, [self.names[o] for o in load.indirect]))
        mask = self._mask(self.phases.is_inner(load))
        if load.guard:
            mask = f"{mask} & {self._within(load.guard)}"
        return self._let(f"tl.load({load.buffer.name} + ({offset}), {mask}, 0)")

    def _store_all(self, stores: Sequence[K.Store]) -> None:
        for store in stores:
            place = self.schedule.accesses[store].offset
            offset = self._block(place, self._index(place))
            mask = self._mask(self.phases.is_inner_store(store))
            self._line(f"tl.store({store.buffer.name} + ({offset}), {self.names[store.value]}, {mask})")


def _expression_text(expression: Dim) -> str:
    if isinstance(expression, int):
        return str(expression)
    terms = []
    for monomial, coefficient in expression.terms.items():
        factors = [_atom_text(atom) for atom in monomial]
        if coefficient != 1 or not factors:
            factors.insert(0, str(coefficient) if coefficient >= 0 else f"({coefficient})")
        terms.append(" * ".join(factors))
    return " + ".join(terms)


def _atom_text(atom) -> str:
    if atom.kind == "symbol":
        return atom.operands[0]
    left, right = (_expression_text(o) for o in atom.operands)
    match atom.kind:
        case "div":
            return f"_floor_div({left}, {right})"
        case "mod":
            return f"_remainder({left}, {right})"
    return f"tl.{'maximum' if atom.kind == 'max' else 'minimum'}({left}, {right})"


def write_triton(kernel: K.Kernel, name: str = "kernel") -> TritonKernel:
    """The kernel as Triton source. Raises UnsupportedError for what Triton cannot say."""
    return TritonWriter(kernel).write(name)
