"""Kernel -> CUDA C++, for pointwise kernels and reductions: what a person would write, with no header and no library.

`LANES` threads share a row; each has `ITEMS` groups of `WIDTH` elements side by side, which it reads and writes as one vector
where memory lies so. Elements of a row are combined in each thread first, then across a warp by shuffles, then across a block in
shared memory, always in the same order. A row too long for registers is walked once for each phase. A reduction
along an axis that is not memory's innermost has one thread a row, so that threads side by side read side by side.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from dlcompiler.codegen.gpu import cuda_scalars as scalars
from dlcompiler.codegen.gpu.index_text import CUDA, index_text
from dlcompiler.codegen.gpu.schedule import GpuSchedule, ceiling, power_of_two
from dlcompiler.codegen.phases import Phases
from dlcompiler.ir import kernel as K
from dlcompiler.ir.errors import UnsupportedError
from dlcompiler.ir.expression import Dim, product, symbols
from dlcompiler.ir.types import i64

THREADS = 256
MOST_LANES = 512
MOST_ELEMENTS = 16  # of a row that one thread keeps in registers
VECTOR_BYTES = 16
COMBINE = {
    "add": "{a} + {b}", "mul": "{a} * {b}", "max": "maximum({a}, {b})", "min": "minimum({a}, {b})",
    "and": "{a} && {b}", "or": "{a} || {b}",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class CudaKernel:
    """One kernel as CUDA C++: an `extern "C"` function `name`, started with `threads` threads in each of `grid` blocks."""

    name: str
    kernel: K.Kernel
    source: str
    grid: Dim
    threads: int
    schedule: str


class CudaWriter:
    """Writes one kernel. Raises UnsupportedError for what it has no form for; Triton has."""

    def __init__(self, kernel: K.Kernel, schedule: GpuSchedule, aligned: frozenset[str]) -> None:
        if schedule.columns:
            raise UnsupportedError("the CUDA writer has no form that turns tiles", items=(kernel.name,))
        self.kernel, self.schedule, self.aligned = kernel, schedule, aligned
        self.phases = Phases(kernel, schedule)
        self.extents = {**kernel.extents, **schedule.axes}
        self.integer = "int" if schedule.narrow else "long long"
        self.lines: list[str] = []
        self.depth = 1
        self.names: dict[K.Value, str] = {}
        self.count = 0
        self.reduces = bool(schedule.inner)
        # half precision that is only stored is rounded there
        self.computed_with = {o for v in kernel.values for o in v.operands}
        # the axes along which one thread's elements lie
        self.along = schedule.inner if self.reduces else schedule.rows
        self.width = self._width()
        self.lanes, self.items, self.loops = self._shape()
        self.threads = max(self.lanes, THREADS if self.reduces else 128)

    # -- how wide ----------------------------------------------------------------------------------------------------------

    def _width(self) -> int:
        """Elements side by side that one thread takes: as many as fill 16 bytes, if the last axis has whole groups of them."""
        if not self.along:
            return 1
        last = self.schedule.axes[self.along[-1]]
        sizes = [b.dtype.bytes for b in self.kernel.buffers]
        width = VECTOR_BYTES // max(sizes, default=4)
        while width > 1 and not (isinstance(last, int) and last and last % width == 0):
            width //= 2
        vectors = [s for s in self.schedule.accesses if self._is_vector(s, width)]
        return width if vectors else 1

    def _is_vector(self, statement: object, width: int) -> bool:
        """Whether a group's elements lie side by side in memory, at a multiple of the group's size."""
        access = self.schedule.accesses[statement]
        buffer = access.statement.buffer
        if (
            width == 1
            or access.coefficients is None
            or buffer.name not in self.aligned
            or bool(getattr(statement, "guard", None))
        ):
            return False
        if access.stride(self.along[-1]) != 1:
            return False
        rest = [c for a, c in access.coefficients.items() if a != self.along[-1]]
        start = index_text_constant(access.offset, set(self.schedule.axes))
        return start is not None and all(isinstance(c, int) and c % width == 0 for c in rest) and start % width == 0

    def _shape(self) -> tuple[int, int, bool]:
        """(threads of a row, groups of a thread, whether rows are walked in loops)."""
        if not self.reduces:
            return 1, 1, False
        length = self.schedule.second_elements
        if self.schedule.row_block > 32 and self.schedule.second_block <= 64:  # rows lie side by side
            return 1, 1, True
        if not isinstance(length, int):
            return THREADS, 1, True
        groups = max(-(-length // self.width), 1)
        lanes = min(MOST_LANES, max(32, power_of_two(groups * self.width // 8)))
        items = -(-groups // lanes)
        if items * self.width > MOST_ELEMENTS:
            return min(lanes, THREADS), 1, True
        return lanes, items, False

    @property
    def per_thread(self) -> int:
        """Elements that a thread has at once."""
        return self.items * self.width

    # -- text --------------------------------------------------------------------------------------------------------------

    def write(self, name: str) -> CudaKernel:
        self._begin()
        if self.reduces:
            self._reduce()
        else:
            self._emit_all(s.value for s in self.kernel.stores)
            for store in self.kernel.stores:
                self._store(store)
        body = "\n".join(self.lines)
        parameters = [
            f"{'const ' if b.role == 'in' else ''}{scalars.stored_type(b.dtype)} *{b.name}" for b in self.kernel.buffers
        ]
        parameters += [f"long long {s}" for s in self.kernel.size_symbols]
        origin = "".join(f"//   {line}\n" for line in self.kernel.origin)
        used = "".join(text for helper, text in scalars.HELPERS.items() if re.search(rf"\b{helper}\(", body))
        vectors = "".join(
            f"struct alignas({b * n}) Vector_{b}_{n} {{ {t} at[{n}]; }};\n" for b, n, t in sorted(self._vector_types())
        )
        source = (
            f"// Computes\n{origin}// with {self._summary()}\n{vectors}{used}\n"
            f'extern "C" __global__ void __launch_bounds__({self.threads}) {name}(\n    {", ".join(parameters)}) {{\n{body}\n}}\n'
        )
        rows = self.schedule.row_elements
        per_block = self.threads // self.lanes if self.reduces else self.threads * self.width
        return CudaKernel(name, self.kernel, source, ceiling(rows, per_block), self.threads, f"CUDA {self._summary()}")

    def _summary(self) -> str:
        if not self.reduces:
            return f"{self.threads} threads of {self.width} elements"
        how = "in loops" if self.loops else f"{self.per_thread} elements each"
        return f"{self.lanes} threads a row, {self.threads} in a block, {how}, vectors of {self.width}"

    def _vector_types(self) -> set[tuple[int, int, str]]:
        kinds = {2: "unsigned short", 1: "unsigned char", 4: "unsigned", 8: "unsigned long long"}
        found = set()
        for statement in self.schedule.accesses:
            if self._is_vector(statement, self.width):
                dtype = statement.buffer.dtype  # type: ignore[attr-defined]
                found.add((dtype.bytes, self.width, kinds[dtype.bytes]))
        return found

    def _line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    def _fresh(self, hint: str = "v") -> str:
        self.count += 1
        return f"{hint}{self.count - 1}"

    def _begin(self) -> None:
        if self.reduces:
            rows_a_block = self.threads // self.lanes
            self._line(f"const int lane = threadIdx.x % {self.lanes};")
            self._line(f"const {self.integer} row = ({self.integer})blockIdx.x * {rows_a_block} + threadIdx.x / {self.lanes};")
            self._line(f"const bool row_inside = row < {index_text(self.schedule.row_elements, {}, words=CUDA)};")
            self._split("row", self.schedule.rows)
        else:
            start = f"(({self.integer})blockIdx.x * {self.threads} + threadIdx.x) * {self.width}"
            self._line(f"const {self.integer} row = {start};")
            self._line(f"if (row >= {index_text(self.schedule.row_elements, {}, words=CUDA)}) return;")

    def _split(self, flat: str, axes: Sequence[str]) -> None:
        """Indices of several axes from one flattened index."""
        sizes = [self.schedule.axes[a] for a in axes]
        for position, axis in enumerate(axes):
            below = product(sizes[position + 1 :])
            text = flat if below == 1 else f"{flat} / ({index_text(below, {}, words=CUDA)})"
            whole = text if position == 0 else f"{text} % ({index_text(sizes[position], {}, words=CUDA)})"
            self._line(f"const {self.integer} {axis} = {whole};")

    # -- each element of a thread ----------------------------------------------------------------------------------------------

    def _for_each(self, statements: Sequence[str], indices: bool = True) -> None:
        """Statements for each element e of the thread, with the indices of the axes along which they lie."""
        self._line("#pragma unroll")
        self._line(f"for (int e = 0; e < {self.per_thread}; ++e) {{")
        self.depth += 1
        if indices:
            self._indices("e")
        for statement in statements:
            self._line(statement)
        self.depth -= 1
        self._line("}")

    def _indices(self, element: str) -> None:
        if self.reduces:
            inside = f"{element} / {self.width} * {self.lanes * self.width} + lane * {self.width} + {element} % {self.width}"
            self._line(f"const {self.integer} inner = {'start + ' if self.loops else ''}{inside};")
            self._split("inner", self.schedule.inner)
        else:
            self._line(f"const {self.integer} at = row + {element};")
            self._split("at", self.schedule.rows)

    @property
    def _inside(self) -> str:
        """Whether element e exists."""
        if not self.reduces:
            return ""
        size = self.schedule.second_elements
        step = self.lanes * self.per_thread
        exact = isinstance(size, int) and size % step == 0
        return "row_inside" if exact else f"row_inside && inner < {index_text(size, {}, words=CUDA)}"

    def _spreads(self, value: K.Value) -> bool:
        """Whether a thread has several of a value."""
        axes = self.phases.axes_of[value]
        return bool(axes & set(self.along))

    def _at(self, value: K.Value) -> str:
        return f"{self.names[value]}[e]" if self._spreads(value) else self.names[value]

    # -- reductions ----------------------------------------------------------------------------------------------------------

    def _reduce(self) -> None:
        for phase in range(self.phases.last + 1):
            for value in self.phases.between(phase):
                if value not in self.names and all(o in self.names for o in value.operands):
                    self._emit(value)
            reduces, stores = self.phases.targets(phase)
            if not reduces and not stores:
                continue
            totals = {r: self._fresh("sum") for r in reduces}
            for reduce, name in totals.items():
                self._line(f"{scalars.computed_type(reduce.dtype)} {name} = {self._identity(reduce)};")
            outside = dict(self.names)
            if self.loops:
                size = index_text(self.schedule.second_elements, {}, words=CUDA)
                self._line(f"for ({self.integer} start = 0; start < {size}; start += {self.lanes * self.per_thread}) {{")
                self.depth += 1
            self._emit_all([*(r.operand for r in reduces), *(s.value for s in stores)])
            for store in stores:
                self._store(store)
            if reduces:
                self._for_each([self._accumulate(r, name) for r, name in totals.items()])
            if self.loops:
                self.depth -= 1
                self._line("}")
                self.names = outside
            for reduce, name in totals.items():
                self._combine_lanes(reduce, name)
                self.names[reduce] = name
        outer = [s for s in self.kernel.stores if not self.phases.is_inner_store(s)]
        self._emit_all(s.value for s in outer)
        for store in outer:
            self._store(store)

    def _accumulate(self, reduce: K.Reduce, name: str) -> str:
        if reduce.kind not in COMBINE:
            raise UnsupportedError(f"the CUDA writer does not reduce by {reduce.kind}", items=(reduce.kind,))
        kind = "or" if reduce.dtype.kind == "bool" and reduce.kind == "max" else reduce.kind
        kind = "and" if reduce.dtype.kind == "bool" and kind == "min" else kind
        return f"if ({self._inside}) {name} = {COMBINE[kind].format(a=name, b=self._at(reduce.operand))};"

    def _identity(self, reduce: K.Reduce) -> str:
        dtype = reduce.operand.dtype
        if reduce.kind in ("add", "or", "mul", "and"):
            return scalars.constant(int(reduce.kind in ("mul", "and")), dtype)
        lowest = reduce.kind == "max"
        if dtype.is_float:
            return scalars.constant(-np.inf if lowest else np.inf, dtype)
        if dtype.kind == "bool":
            return scalars.constant(not lowest, dtype)
        info = np.iinfo(dtype.numpy)
        return scalars.constant(int(info.min if lowest else info.max), dtype)

    def _combine_lanes(self, reduce: K.Reduce, name: str) -> None:
        """Every thread of the row gets the whole result."""
        if self.lanes == 1:
            return
        kind = reduce.kind
        if reduce.dtype.kind == "bool":
            kind = {"max": "or", "min": "and"}.get(kind, kind)
        combine = COMBINE[kind].format(a=name, b="other")
        c_type = scalars.computed_type(reduce.dtype)
        shuffled = f"__shfl_xor_sync(0xffffffffu, {name}, step)"
        self._line("#pragma unroll")
        self._line(f"for (int step = {min(self.lanes, 32) // 2}; step; step /= 2) {{")
        self._line(f"    const {c_type} other = {shuffled};")
        self._line(f"    {name} = {combine};")
        self._line("}")
        warps = self.lanes // 32
        if warps <= 1:
            return
        memory = self._fresh("shared")
        self._line(f"__shared__ {c_type} {memory}[{self.threads // 32}];")
        self._line(f"if (threadIdx.x % 32 == 0) {memory}[threadIdx.x / 32] = {name};")
        self._line("__syncthreads();")
        self._line(f"{name} = {memory}[threadIdx.x / {self.lanes} * {warps}];")
        self._line("#pragma unroll")
        self._line(f"for (int warp = 1; warp < {warps}; ++warp) {{")
        self._line(f"    const {c_type} other = {memory}[threadIdx.x / {self.lanes} * {warps} + warp];")
        self._line(f"    {name} = {combine};")
        self._line("}")

    # -- values --------------------------------------------------------------------------------------------------------------

    def _emit_all(self, values: Iterable[K.Value]) -> None:
        for value in self.phases.needed(values):
            if value not in self.names:
                self._emit(value)

    def _emit(self, value: K.Value) -> None:
        if isinstance(value, K.Constant):
            self.names[value] = scalars.constant(value.value, value.dtype)
            return
        name = self._fresh(f"{value.buffer.name}_" if isinstance(value, K.Load) else "v")
        c_type = scalars.computed_type(value.dtype)
        if not self._spreads(value):
            self._line(f"const {c_type} {name} = {self._text(value, spread=False)};")
        elif isinstance(value, K.Load) and self._is_vector(value, self.width):
            self._line(f"{c_type} {name}[{self.per_thread}];")
            self._vector_load(value, name)
        else:
            self._line(f"{c_type} {name}[{self.per_thread}];")
            needs_indices = not isinstance(value, K.Compute)
            self._for_each([f"{name}[e] = {self._text(value, spread=True)};"], needs_indices)
        self.names[value] = name

    def _text(self, value: K.Value, spread: bool) -> str:
        match value:
            case K.Index():
                text = index_text(value.expression, self.extents, lambda s: f"(long long){s}", CUDA)
                return f"({text})" if value.dtype is i64 else scalars.cast(f"({text})", i64, value.dtype)
            case K.Within():
                return self._within(value.bounds)
            case K.Load():
                return self._load_text(value, spread)
            case K.Compute():
                operands = [self._at(o) for o in value.inputs]
                if value.op == "cast":
                    text = scalars.cast(operands[0], value.inputs[0].dtype, value.dtype)
                    return scalars.rounded(text, value.dtype) if value in self.computed_with else text
                return scalars.compute(value.op, value.inputs[-1].dtype, *operands)
        raise KeyError(f"{value} is not ready in this phase")

    def _index(self, expression: Dim, indirect: Sequence[K.Value] = ()) -> str:
        def name(text: str) -> str:
            return f"({self.integer}){self._at(indirect[int(text[1:])])}" if text.startswith("@") else text

        return index_text(expression, self.extents, name, CUDA)

    def _within(self, bounds: Sequence[K.Bound]) -> str:
        tests = []
        for bound in bounds:
            index, extent = self._index(bound.expression), index_text(bound.extent, self.extents, words=CUDA)
            tests.append(f"({index}) >= 0 && ({index}) < {extent}")
        return " && ".join(tests)

    def _load_text(self, load: K.Load, spread: bool) -> str:
        element = f"{load.buffer.name}[{self._index(self.schedule.accesses[load].offset, load.indirect)}]"
        tests = [self._inside] if spread and self.reduces else ["row_inside"] if self.reduces else []
        if load.guard:
            tests.append(self._within(load.guard))
        text = scalars.loaded(element, load.buffer.dtype)
        zero = scalars.constant(0, load.dtype)
        return f"({' && '.join(tests)}) ? {text} : {zero}" if tests else text

    def _vector_load(self, load: K.Load, name: str) -> None:
        buffer = load.buffer
        vector = f"Vector_{buffer.dtype.bytes}_{self.width}"
        read = f"({self._inside}) ? *from : {vector}()" if self.reduces else "*from"
        self._for_each_group(
            [
                f"const {vector} *from = reinterpret_cast<const {vector} *>({buffer.name} + "
                f"({self._index(self.schedule.accesses[load].offset)}));",
                f"const {vector} group = {read};",
                "#pragma unroll",
                f"for (int k = 0; k < {self.width}; ++k) {name}[e + k] = "
                f"{scalars.loaded(self._bits_to('group.at[k]', buffer), buffer.dtype)};",
            ]
        )

    def _for_each_group(self, statements: Sequence[str]) -> None:
        """Statements for the first element e of each group of the thread."""
        self._line("#pragma unroll")
        self._line(f"for (int e = 0; e < {self.per_thread}; e += {self.width}) {{")
        self.depth += 1
        self._indices("e")
        for statement in statements:
            self._line(statement)
        self.depth -= 1
        self._line("}")

    @staticmethod
    def _bits_to(text: str, buffer: K.Buffer) -> str:
        """Bits of a vector's element as what is stored."""
        match buffer.dtype.name:
            case "f32":
                return f"__int_as_float((int){text})"
            case "f64":
                return f"__longlong_as_double((long long){text})"
        return f"({scalars.stored_type(buffer.dtype)}){text}"

    @staticmethod
    def _to_bits(text: str, buffer: K.Buffer) -> str:
        match buffer.dtype.name:
            case "f32":
                return f"(unsigned)__float_as_int({text})"
            case "f64":
                return f"(unsigned long long)__double_as_longlong({text})"
        return text

    def _store(self, store: K.Store) -> None:
        buffer, place = store.buffer, self.schedule.accesses[store].offset
        spreads = bool(symbols(place) & set(self.along))
        value = self._at(store.value)
        element = scalars.stored(value, buffer.dtype)
        if not spreads:
            first = "row_inside && lane == 0" if self.reduces else "true"
            self._line(f"if ({first}) {buffer.name}[{self._index(place)}] = {element};")
        elif self._is_vector(store, self.width):
            vector = f"Vector_{buffer.dtype.bytes}_{self.width}"
            inside = f"if ({self._inside}) " if self.reduces else ""
            at_k = scalars.stored(value.replace("[e]", "[e + k]"), buffer.dtype)
            self._for_each_group(
                [
                    f"{vector} group;",
                    "#pragma unroll",
                    f"for (int k = 0; k < {self.width}; ++k) group.at[k] = {self._to_bits(at_k, buffer)};",
                    f"{inside}*reinterpret_cast<{vector} *>({buffer.name} + ({self._index(place)})) = group;",
                ]
            )
        else:
            inside = f"if ({self._inside}) " if self.reduces else ""
            self._for_each([f"{inside}{buffer.name}[{self._index(place)}] = {element};"])


def index_text_constant(offset: Dim, axes: set[str]) -> int | None:
    """What an offset is where all axes are 0; None if that depends on sizes."""
    from dlcompiler.ir.expression import substitute

    start = substitute(offset, dict.fromkeys(axes, 0))
    return start if isinstance(start, int) else None


def write_cuda(
    kernel: K.Kernel, schedule: GpuSchedule, name: str = "kernel", aligned: frozenset[str] = frozenset()
) -> CudaKernel:
    """The kernel as CUDA C++. Raises UnsupportedError for what has no form here: argmax, turned tiles, rare operations."""
    return CudaWriter(kernel, schedule, aligned).write(name)
