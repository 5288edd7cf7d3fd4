"""Kernel -> Triton: a source file that a person can read, run and edit on its own.

What one program computes, and how wide, is in the schedule (`codegen.gpu.schedule`). A pointwise kernel is straight-line code
over a block; a kernel with reductions follows the phases (`codegen.phases`), with whole rows in registers or in a loop each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

import numpy as np
from dlcompiler.codegen.gpu import scalars
from dlcompiler.codegen.gpu.device import device_of
from dlcompiler.codegen.gpu.index_text import index_text
from dlcompiler.codegen.gpu.schedule import GpuSchedule, candidates
from dlcompiler.codegen.gpu.standalone import main_section
from dlcompiler.codegen.phases import Phases
from dlcompiler.ir import kernel as K
from dlcompiler.ir.expression import Dim, product, symbol, symbols
from dlcompiler.ir.types import contiguous_strides, f32, i64

DEFAULT_ARCH = "sm_90"
HEADER = """import triton
import triton.language as tl
"""
LIBDEVICE_HEADER = "from triton.language.extra import libdevice\n"


@dataclass(frozen=True, eq=False)
class TritonKernel:
    """One kernel as Triton source.

    grid       number of programs, a function of the sizes
    constants  the kernel's constexpr arguments
    signature  argument name -> Triton's word for its type, in order
    aligned    arguments whose addresses are multiples of 16
    warps, stages   for Triton's compiler; stages None: its own choice
    schedule   as text, for people
    repeats    how often it is started in a row, with the number of each start as last argument; None: once, without one
    """

    name: str
    kernel: K.Kernel
    source: str
    grid: Dim
    constants: dict[str, int]
    signature: dict[str, str]
    aligned: frozenset[str] = frozenset()
    warps: int = 4
    stages: int | None = None
    schedule: str = ""
    repeats: Dim | None = None


class TritonWriter:
    """Writes one kernel by one schedule; `program` is the text of the program's number."""

    def __init__(self, kernel: K.Kernel, schedule: GpuSchedule, program: str = "tl.program_id(0)") -> None:
        self.kernel = kernel
        self.program = program
        self.schedule = schedule
        self.phases = Phases(kernel, schedule)
        self.extents = {**kernel.extents, **schedule.axes}
        self.lines: list[str] = []
        self.names: dict[K.Value, str] = {}
        self.count = 0
        self.depth = 1
        self.row_mask, self.second_mask = self._masks()
        self.literals = _literals(kernel)

    def _masks(self) -> tuple[str, str]:
        """Names of the masks along either dimension of a block; empty where a block never reaches past the end."""
        schedule = self.schedule
        row_size, second_size = schedule.row_elements, schedule.second_elements
        row = "" if isinstance(row_size, int) and row_size and row_size % schedule.row_block == 0 else "row_inside"
        exact = isinstance(second_size, int) and second_size and second_size % schedule.second_block == 0
        return row, "" if exact or not schedule.second else "inner_inside" if schedule.inner else "column_inside"

    # -- text --------------------------------------------------------------------------------------------------------------

    def function(self, name: str, first: Sequence[str] = ()) -> str:
        """The kernel as a Triton function, its parameters after the `first` ones."""
        self._begin()
        if not self.schedule.inner:
            self._emit_all(s.value for s in self.kernel.stores)
            self._store_all(self.kernel.stores)
        else:
            self._reduce()
        parameters = ", ".join([*first, *self.arguments, *(f"{b}: tl.constexpr" for b in self.blocks)])
        body = "\n".join(self.lines) + "\n"
        return f'@triton.jit\ndef {name}({parameters}):\n    """{self._documentation()}"""\n{body}'

    @property
    def arguments(self) -> list[str]:
        """Names of addresses, then of sizes."""
        return [b.name for b in self.kernel.buffers] + list(self.kernel.size_symbols)

    @property
    def blocks(self) -> dict[str, int]:
        """Constexpr parameters and their values."""
        blocks = {"ROWS": self.schedule.row_block}
        if self.schedule.second:
            blocks["INNER" if self.schedule.inner else "COLUMNS"] = self.schedule.second_block
        return blocks

    def write(self, name: str, aligned: frozenset[str] = frozenset()) -> TritonKernel:
        """The source of the kernel as a function called `name`."""
        text, blocks = self.function(name), self.blocks
        source = with_imports(text)
        source += main_section(name, self.kernel, self.schedule.grid, blocks, self.schedule.warps)
        signature = {b.name: scalars.pointer_name(b.dtype) for b in self.kernel.buffers}
        signature |= dict.fromkeys(self.kernel.size_symbols, "i64") | dict.fromkeys(blocks, "constexpr")
        return TritonKernel(
            name,
            self.kernel,
            source,
            self.schedule.grid,
            blocks,
            signature,
            aligned,
            self.schedule.warps,
            schedule=str(self.schedule),
        )

    def _documentation(self) -> str:
        lines = [line.replace("\\", "/").replace('"""', "'''") for line in self.kernel.origin] or [self.kernel.name]
        return "".join(f"{line}\n    " for line in ["Computes", *(f"  {line}" for line in lines), f"by {self.schedule}"])

    def _line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    def _let(self, text: str, hint: str = "v") -> str:
        name = f"{hint}{self.count}"
        self.count += 1
        self._line(f"{name} = {text}")
        return name

    def _wide(self, text: str) -> str:
        return text if self.schedule.narrow else f"{text}.to(tl.int64)"

    def _begin(self) -> None:
        schedule = self.schedule
        program = self._wide(self.program)
        if schedule.columns:
            across = index_text((schedule.second_elements + (schedule.second_block - 1)) // schedule.second_block, {})
            self._line(f"program = {program}")
            self._line(f"row = program // ({across}) * ROWS + tl.arange(0, ROWS)[:, None]")
            self._line(f"column = program % ({across}) * COLUMNS + tl.arange(0, COLUMNS)[None, :]")
        else:
            self._line(f"row = {program} * ROWS + tl.arange(0, ROWS){'[:, None]' if schedule.second else ''}")
        if self.row_mask:
            self._line(f"row_inside = row < {index_text(schedule.row_elements, {})}")
        self._split("row", schedule.rows)
        if schedule.columns:
            if self.second_mask:
                self._line(f"column_inside = column < {index_text(schedule.second_elements, {})}")
            self._split("column", schedule.columns)

    def _split(self, flat: str, axes: Sequence[str]) -> None:
        """Indices of several axes from one flattened index."""
        sizes = [self.schedule.axes[a] for a in axes]
        for position, axis in enumerate(axes):
            below = product(sizes[position + 1 :])
            text = flat if below == 1 else f"{flat} // ({index_text(below, {})})"
            self._line(f"{axis} = {text}" if position == 0 else f"{axis} = {text} % ({index_text(sizes[position], {})})")

    # -- reductions ----------------------------------------------------------------------------------------------------------

    @property
    def _loops(self) -> bool:
        return self.schedule.form == "loop"

    def _reduce(self) -> None:
        if not self._loops:
            self._line("inner = tl.arange(0, INNER)[None, :]")
            self._begin_piece()
        for phase in range(self.phases.last + 1):
            self._emit_ready(self.phases.between(phase))
            reduces, stores = self.phases.targets(phase)
            if self._loops and (reduces or stores):
                self._loop(reduces, stores)
            elif reduces or stores:
                self._emit_all([*(r.operand for r in reduces), *(s.value for s in stores)])
                self._store_all(stores)
                for reduce in reduces:
                    self.names[reduce] = self._finish(reduce, self._masked(reduce))
        outer = [s for s in self.kernel.stores if not self.phases.is_inner_store(s)]
        self._emit_all(s.value for s in outer)
        self._store_all(outer)

    def _begin_piece(self) -> None:
        if self.second_mask:
            self._line(f"inner_inside = inner < {index_text(self.schedule.second_elements, {})}")
        self._split("inner", self.schedule.inner)

    def _loop(self, reduces: Sequence[K.Reduce], stores: Sequence[K.Store]) -> None:
        """One pass over a long row; values inside are computed again in each pass."""
        states = {r: [self._let(text, "a") for text in self._initial(r)] for r in reduces}
        outside = dict(self.names)
        self._line(f"for start in range(0, {index_text(self.schedule.second_elements, {})}, INNER):")
        self.depth += 1
        self._line(f"inner = start + {self._wide('tl.arange(0, INNER)')}[None, :]")
        self._begin_piece()
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
        """The operand over the whole block, with the identity where there is no element."""
        inside = " & ".join(m for m in (self.row_mask, self.second_mask) if m)

        def spread(text: str, instead: str) -> str:
            if not inside:
                return f"tl.broadcast_to({text}, [ROWS, INNER])"
            # `inside` may be a mask along one dimension alone
            whole = self.row_mask and self.second_mask
            where = f"tl.where({inside}, {text}, {instead})"
            return where if whole else f"tl.broadcast_to({where}, [ROWS, INNER])"

        parts = [spread(self.names[reduce.operand], self._identity(reduce))]
        if reduce.kind in ("argmax", "argmin"):
            place: Dim = 0
            for axis, stride in zip(reduce.over, contiguous_strides(tuple(self.kernel.extents[a] for a in reduce.over))):
                place = place + symbol(axis) * stride
            parts.append(spread(f"({self._number(place)})", str(np.iinfo(np.int64).max)))
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
                if value in self.literals:
                    return repr(float(value.value))
                return self._let(scalars.constant(value.value, value.dtype))
            case K.Index():
                index = f"({self._number(value.expression)}) + tl.full([], 0, tl.int64)"
                return self._let(index if value.dtype is i64 else scalars.cast(index, i64, value.dtype))
            case K.Within():
                return self._let(self._within(value.bounds))
            case K.Compute():
                return self._let(self._compute(value))
        raise KeyError(f"{value} is not ready in this phase")

    def _compute(self, value: K.Compute) -> str:
        operands = [self.names[o] for o in value.inputs]
        if value.op == "cast":
            return scalars.cast(operands[0], value.inputs[0].dtype, value.dtype)
        if value.op == "bitcast":
            return scalars.bitcast(operands[0], value.inputs[0].dtype, value.dtype)
        return scalars.compute(value.op, value.inputs[-1].dtype, *operands)

    def _index(self, expression: Dim, indirect: Sequence[str] = ()) -> str:
        """An index expression as text: symbols are variables of the function, `@k` stands for `indirect[k]`."""

        def name(text: str) -> str:
            if not text.startswith("@"):
                return text
            found = indirect[int(text[1:])]
            return f"{found}.to(tl.int32)" if self.schedule.narrow else found

        return index_text(expression, self.extents, name)

    def _number(self, expression: Dim) -> str:
        """An index expression that is used as a number: computed in 64 bits whatever it stays below."""
        if not self.schedule.narrow:
            return self._index(expression)
        return index_text(expression, self.extents, lambda text: f"{text}.to(tl.int64)")

    def _within(self, bounds: Sequence[K.Bound]) -> str:
        """The bounds that are not known to hold."""
        tests = []
        for bound in bounds:
            index = self._index(bound.expression)
            tests += [f"(({index}) >= 0)", f"(({index}) < {index_text(bound.extent, self.extents)})"]
        return " & ".join(tests)

    def _mask(self, axes: Set[str]) -> list[str]:
        """The masks along the dimensions of a block that an access to these axes has."""
        row = self.row_mask if axes & set(self.schedule.rows) else ""
        second = self.second_mask if axes & set(self.schedule.second) else ""
        return [m for m in (row, second) if m]

    def _load(self, load: K.Load) -> str:
        text = self._index(self.schedule.accesses[load].offset, [self.names[o] for o in load.indirect])
        axes = self.phases.axes_of[load]
        mask = self._mask(axes)
        if load.guard:
            mask.append(self._within(load.guard))
        if mask and not symbols(self.schedule.accesses[load].offset) - set(self.kernel.size_symbols):
            text = f"{text} + row * 0"  # one address, but a mask of a whole block
        arguments = [f"{load.buffer.name} + ({text})", *([" & ".join(mask)] if mask else [])]
        return self._let(f"tl.load({', '.join(arguments)})", f"{load.buffer.name}_")

    def _store_all(self, stores: Sequence[K.Store]) -> None:
        for store in stores:
            place = self.schedule.accesses[store].offset
            text, axes = self._index(place), symbols(place) & set(self.schedule.axes)
            mask = self._mask(axes)
            if not axes:
                text = f"{text} + row * 0"
                mask = [self.row_mask] if self.row_mask else []
            arguments = [f"{store.buffer.name} + ({text})", self.names[store.value], *([" & ".join(mask)] if mask else [])]
            self._line(f"tl.store({', '.join(arguments)})")


def with_imports(text: str) -> str:
    """Functions with all that they call before them: a module."""
    helpers = scalars.helpers_used(text)
    header = HEADER + (LIBDEVICE_HEADER if "libdevice." in text + helpers else "")
    return f"{header}{helpers}\n\n{text}"


def _literals(kernel: K.Kernel) -> frozenset[K.Value]:
    """Numbers that may stand in the text as they are: float32 beside something computed, whose type they then have."""
    users: dict[K.Value, list[K.Value]] = {}
    for value in kernel.values:
        for operand in value.operands:
            users.setdefault(operand, []).append(value)
    stored = {s.value for s in kernel.stores}

    def is_plain(user: K.Value) -> bool:
        return (
            isinstance(user, K.Compute)
            and user.op in ("add", "sub", "mul")
            and not all(isinstance(v, K.Constant) for v in user.inputs)
        )

    constants = [v for v in kernel.values if isinstance(v, K.Constant) and v.dtype is f32 and np.isfinite(v.value)]
    return frozenset(v for v in constants if v not in stored and all(map(is_plain, users.get(v, ()))))


def write_triton(
    kernel: K.Kernel, name: str = "kernel", schedule: GpuSchedule | None = None, aligned: frozenset[str] = frozenset()
) -> TritonKernel:
    """The kernel as Triton source, by the first of its schedules unless one is given.

    Raises UnsupportedError for what Triton cannot say.
    """
    return TritonWriter(kernel, schedule or next(iter(candidates(kernel, device_of(DEFAULT_ARCH))))).write(name, aligned)
