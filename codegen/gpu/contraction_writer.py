"""Matrix product + MatrixSchedule -> Triton: a source file that a person can read, run and edit on its own.

    sums = zeros                                       one tile of results a program
    for each block of the summed axes:
        left, right = two tiles, with whatever is done to each factor
        sums = tl.dot(left, right, sums)               float32 sums on tensor cores
    whatever the kernel does to each sum, and stores

A convolution is the same: rows are pixels, and the loop walks over taps and blocks of channels; a tap beside the image is masked.
"""

from __future__ import annotations

from collections.abc import Sequence

from dlcompiler.codegen.gpu import scalars
from dlcompiler.codegen.gpu.contraction_form import EIGHTH, Form
from dlcompiler.codegen.gpu.contraction_schedule import MatrixSchedule, takes_eighths, tiles_of
from dlcompiler.codegen.gpu.device import Device
from dlcompiler.codegen.gpu.schedule import ceiling, fits_in_32_bits
from dlcompiler.codegen.gpu.standalone import main_section
from dlcompiler.codegen.gpu.tile_values import TileValues
from dlcompiler.codegen.gpu.triton_writer import HEADER, LIBDEVICE_HEADER, TritonKernel
from dlcompiler.ir import kernel as K
from dlcompiler.ir.contraction import loads_under
from dlcompiler.ir.expression import Dim, minimum, product
from dlcompiler.ir.types import f32


class ProductWriter:
    """Writes one matrix product by one schedule."""

    def __init__(self, form: Form, schedule: MatrixSchedule, device: Device) -> None:
        self.form, self.schedule, self.device = form, schedule, device
        self.kernel = form.kernel
        self.narrow = fits_in_32_bits(self.kernel, form.axes, form.accesses)
        extents = {**self.kernel.extents, **form.axes}
        eighths = {dtype: scalars.EIGHT_BIT[dtype.name] for dtype in EIGHTH} if takes_eighths(device) else {}
        self.t = TileValues(self.kernel, form.accesses, extents, self.narrow, eighths)
        for side, axes in (("rows", form.rows), ("columns", form.columns), ("depth", form.summed)):
            self.t.sides.update(dict.fromkeys(axes, side))
        self.constants = {"ROWS": schedule.rows, "COLUMNS": schedule.columns, "DEPTH": schedule.depth}
        if schedule.group > 1:
            self.constants["GROUP"] = schedule.group
        self.t.taken |= self.constants.keys()
        self.row_tiles = ceiling(form.size(form.rows), schedule.rows)
        self.column_tiles = ceiling(form.size(form.columns), schedule.columns)

    # -- the file ------------------------------------------------------------------------------------------------------------

    def write(self, name: str, aligned: frozenset[str] = frozenset()) -> TritonKernel:
        """The source of the kernel as a function called `name`."""
        t = self.t
        tiles = tiles_of(self.form, self.schedule)
        grid = minimum(tiles, self.device.multiprocessors) if self.schedule.persistent else tiles
        program = t.fresh("program")
        for buffer in self.kernel.buffers:
            if buffer.role == "in" and buffer.dtype in t.eighths:
                t.line(f"{buffer.name} = {buffer.name}.to(tl.pointer_type({t.eighths[buffer.dtype]}), bitcast=True)")
        if self.schedule.persistent:
            # each program takes every so-many-th tile, so that none is started and ended in vain
            t.line(f"for {program} in range(tl.program_id(0), {t.index(tiles)}, tl.num_programs(0)):")
            t.indent += 1
        else:
            t.line(f"{program} = tl.program_id(0)")
        self._place(program)
        self._multiply()
        self._finish()
        body = "\n".join(t.lines) + "\n"
        arguments = [b.name for b in self.kernel.buffers] + list(self.kernel.size_symbols)
        parameters = ", ".join([*arguments, *(f"{c}: tl.constexpr" for c in self.constants)])
        head = f'@triton.jit\ndef {name}({parameters}):\n    """{self._documentation()}"""\n'
        helpers = scalars.helpers_used(body)
        header = HEADER + (LIBDEVICE_HEADER if "libdevice." in body + helpers else "")
        source = f"{header}{helpers}\n\n{head}{body}" + main_section(name, self.kernel, grid, self.constants, self.schedule.warps)
        signature = {b.name: scalars.pointer_name(b.dtype) for b in self.kernel.buffers}
        signature |= dict.fromkeys(self.kernel.size_symbols, "i64") | dict.fromkeys(self.constants, "constexpr")
        return TritonKernel(
            name, self.kernel, source, grid, self.constants, signature, aligned, self.schedule.warps, self.schedule.stages,
            str(self.schedule),
        )  # fmt: skip

    def _documentation(self) -> str:
        form = self.form
        lines = [line.replace("\\", "/").replace('"""', "'''") for line in self.kernel.origin] or [self.kernel.name]
        sides = (("batch", form.batch), ("rows", form.rows), ("columns", form.columns), ("summed", form.summed))
        shape = ", ".join(f"{what} {' x '.join(str(form.axes[a]) for a in axes)}" for what, axes in sides if axes)
        text = ["Computes", *(f"  {line}" for line in lines), f"as a product of {form.dtype}: {shape}; by {self.schedule}"]
        return "".join(f"{line}\n    " for line in text)

    # -- where a program is --------------------------------------------------------------------------------------------------

    def _place(self, program: str) -> None:
        """Lines that find batch, rows and columns of the program's tile."""
        t, form, schedule = self.t, self.form, self.schedule
        tile, row_tile, column_tile = program, t.fresh("row_tile"), t.fresh("column_tile")
        tiles = self.row_tiles * self.column_tiles
        if form.batch:
            batch = t.fresh("batch")
            t.line(f"{batch} = {self._wide(f'({program} // {self._factor_text(tiles)})')}")
            tile = t.fresh("tile")
            t.line(f"{tile} = {program} % {self._factor_text(tiles)}")
            self._split(batch, form.batch)
        if self.row_tiles == 1:
            t.line(f"{row_tile} = 0")
            t.line(f"{column_tile} = {tile}")
        elif self.column_tiles == 1 or schedule.group == 1:
            t.line(f"{row_tile} = {tile} % {self._factor_text(self.row_tiles)}")
            t.line(f"{column_tile} = {tile} // {self._factor_text(self.row_tiles)}")
        else:
            # GROUP rows of tiles go through all columns together, so that they find these in the second cache
            group, height, within = t.fresh("group"), t.fresh("height"), t.fresh("within")
            wide = self._factor_text(self.column_tiles)
            t.line(f"{group} = {tile} // (GROUP * {wide})")
            t.line(f"{height} = tl.minimum({t.index(self.row_tiles)} - {group} * GROUP, GROUP)")
            t.line(f"{within} = {tile} % (GROUP * {wide})")
            t.line(f"{row_tile} = {group} * GROUP + {within} % {height}")
            t.line(f"{column_tile} = {within} // {height}")
        self.row_start = f"{row_tile} * ROWS"
        self.column_start = f"{column_tile} * COLUMNS"
        self._flat("rows", self.row_start, "ROWS", "[:, None]", form.rows)
        self._flat("columns", self.column_start, "COLUMNS", "[None, :]", form.columns)

    def _flat(self, side: str, start: str, block: str, shape: str, axes: Sequence[str]) -> None:
        """The index along one dimension of the tile, and the axes in it."""
        t = self.t
        size, width = self.form.size(tuple(axes)), self.constants[block]
        name = axes[0] if len(axes) == 1 else t.fresh(side.removesuffix("s"))
        t.line(f"{name} = {self._wide(f'({start} + tl.arange(0, {block}))')}{shape}")
        if not (isinstance(size, int) and size % width == 0):
            t.masks[side] = t.fresh(f"{side.removesuffix('s')}_inside")
            t.line(f"{t.masks[side]} = {name} < {t.index(size)}")
        if len(axes) > 1:
            self._split(name, axes)

    def _split(self, flat: str, axes: Sequence[str]) -> None:
        """Indices of several axes from one flattened index."""
        sizes = [self.form.axes[a] for a in axes]
        for position, axis in enumerate(axes):
            below = product(sizes[position + 1 :])
            text = flat if below == 1 else f"{flat} // {self._factor_text(below)}"
            self.t.line(f"{axis} = {text}" if position == 0 else f"{axis} = {text} % {self._factor_text(sizes[position])}")

    def _factor_text(self, dim: Dim) -> str:
        """A size as text that may stand beside `*`, `//` or `%`."""
        text = self.t.index(dim)
        return text if text.isidentifier() or text.isdigit() else f"({text})"

    def _wide(self, text: str) -> str:
        return text if self.narrow else f"{text}.to(tl.int64)"

    # -- the loop ------------------------------------------------------------------------------------------------------------

    def _multiply(self) -> None:
        """The loop that makes the tile's sums."""
        t, form, schedule = self.t, self.form, self.schedule
        self.sums = t.fresh("sums")
        summed = frozenset(form.summed)
        if schedule.descriptors:
            self._describe()
        else:
            for factor, hint in ((form.left, "left"), (form.right, "right")):
                t.emit(v for v in _under(factor) if not t.axes_of(v) & summed and not isinstance(v, K.Constant))
                for load in loads_under(factor):
                    if load not in t.names and not load.indirect:
                        t.hoist(load, t.axes_of(load) - summed, hint)
        zero = "0.0" if form.reduce.dtype is f32 else "0"
        t.line(f"{self.sums} = tl.full([ROWS, COLUMNS], {zero}, {scalars.type_name(form.reduce.dtype)})")
        self._open_loop()
        outside = dict(t.names)
        left = self._descriptor_tile("left") if schedule.descriptors else self._factor(form.left, "[None, :]")
        right = self._descriptor_tile("right") if schedule.descriptors else self._factor(form.right, "[:, None]")
        precision = f', input_precision="{schedule.precision}"' if form.dtype is f32 else ""
        if form.reduce.dtype is not f32:
            precision = (
                f", out_dtype={scalars.type_name(form.reduce.dtype)}"  # some releases of Triton do not take that of `sums`
            )
        if form.dtype in EIGHTH and takes_eighths(self.device):
            # a tensor core of sm_90 adds up products of 8-bit floats in fewer bits than float32 has
            precision = ", max_num_imprecise_acc=DEPTH"
        t.line(f"{self.sums} = tl.dot({left}, {right}, {self.sums}{precision})")
        t.names = outside
        t.indent -= 1

    def _open_loop(self) -> None:
        """The head of the loop, and the summed axes in it, as blocks of one dimension or numbers."""
        t, form, schedule = self.t, self.form, self.schedule
        depth = t.fresh("depth") if schedule.flat and len(form.summed) > 1 else form.summed[-1]
        if schedule.flat:
            length = form.size(form.summed)
            self.start = t.fresh("start")
            t.line(f"for {self.start} in range(0, {t.index(length)}, DEPTH):")
            t.indent += 1
            block = f"{self.start} + tl.arange(0, DEPTH)"
            t.line(f"{depth} = {block if self.narrow else self._wide(f'({block})')}")
            if len(form.summed) > 1:
                self._split(depth, form.summed)
            self.blocks = form.summed
        else:
            *points, last = form.summed
            length = form.axes[last]
            count = ceiling(length, schedule.depth)
            step, self.start = t.fresh("step"), t.fresh("start")
            t.line(f"for {step} in range(0, {t.index(form.size(tuple(points)) * count)}):")
            t.indent += 1
            if count == 1:
                point = step
                t.line(f"{last} = {self._wide('tl.arange(0, DEPTH)')}")
            else:
                point = t.fresh("point")
                t.line(f"{point} = {step} // {self._factor_text(count)}")
                t.line(f"{last} = {self._wide(f'({step} % {self._factor_text(count)} * DEPTH + tl.arange(0, DEPTH))')}")
            self._split(point, points)
            t.sides.update(dict.fromkeys(points, ""))
            self.blocks = (last,)
        self.depth_mask = ""
        if not (isinstance(length, int) and length % schedule.depth == 0) and not schedule.descriptors:
            self.depth_mask = t.fresh("depth_inside")
            t.line(f"{self.depth_mask} = {depth} < {t.index(length)}")

    def _factor(self, factor: K.Value, shape: str) -> str:
        """Lines for a factor's tile; the summed axes lie along its second or its first dimension."""
        t = self.t
        t.variables.update({axis: f"{axis}{shape}" for axis in self.blocks})
        if self.depth_mask:
            t.masks["depth"] = f"{self.depth_mask}{shape}"
        t.emit([factor])
        t.masks.pop("depth", None)
        for axis in self.blocks:
            del t.variables[axis]
        name = t.names[factor]
        if self.depth_mask and not isinstance(factor, K.Load):
            # what is computed from masked loads need not be 0
            name = t.let(f"tl.where({self.depth_mask}{shape}, {name}, 0)")
        return t.let(scalars.half_of_eighth(name, factor.dtype)) if factor.dtype in EIGHTH and not t.eighths else name

    # -- descriptors ---------------------------------------------------------------------------------------------------------

    def _describe(self) -> None:
        """Descriptors of both factors' matrices, from which whole tiles are copied without addresses for each number."""
        t, form = self.t, self.form
        (summed,) = form.summed
        self.described: dict[str, tuple[str, bool]] = {}
        sides = (("left", form.left, form.rows, "ROWS", "DEPTH"), ("right", form.right, form.columns, "COLUMNS", "DEPTH"))
        for side, factor, (own,), block, depth in sides:
            assert isinstance(factor, K.Load)
            access = form.accesses[factor]
            base = t.index(t.part(access.offset, form.batch) + (access.coefficients or {}).get("", 0))
            is_deep = access.stride(summed) == 1
            outer, inner = (own, summed) if is_deep else (summed, own)
            shape = f"[{t.index(form.axes[outer])}, {t.index(form.axes[inner])}]"
            blocks = f"[{block}, {depth}]" if is_deep else f"[{depth}, {block}]"
            name = t.fresh(f"{side}_tiles")
            strides = f"[{t.index(access.stride(outer) or 0)}, 1]"
            t.line(f"{name} = tl.make_tensor_descriptor({factor.buffer.name} + ({base}), {shape}, {strides}, {blocks})")
            self.described[side] = name, is_deep

    def _descriptor_tile(self, side: str) -> str:
        name, is_deep = self.described[side]
        first = self.row_start if side == "left" else self.column_start
        place = f"[{first}, {self.start}]" if is_deep else f"[{self.start}, {first}]"
        turned = ".T" if is_deep != (side == "left") else ""
        return self.t.let(f"{name}.load({place}){turned}", side)

    # -- after the loop ------------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        t = self.t
        t.names[self.form.reduce] = self.sums
        t.emit(s.value for s in self.kernel.stores)
        for store in self.kernel.stores:
            t.store(store)


def _under(root: K.Value) -> list[K.Value]:
    """A value and all that it is computed from, operands first."""
    found: dict[K.Value, None] = {}

    def visit(value: K.Value) -> None:
        if value not in found:
            for operand in value.operands:
                visit(operand)
            found[value] = None

    visit(root)
    return list(found)


def write_product(
    form: Form, schedule: MatrixSchedule, device: Device, name: str = "kernel", aligned: frozenset[str] = frozenset()
) -> TritonKernel:
    """A matrix product as Triton source. Raises UnsupportedError for what Triton cannot say."""
    return ProductWriter(form, schedule, device).write(name, aligned)
