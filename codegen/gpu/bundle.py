"""Several kernels in one launch: programs are given out to them in turn, and what kernels have in common is written once.

    relu of x0, of x1, of x2; sums of rows of x3   -->   programs 0 ... 11: relu, of x0, x1 or x2; 12 ... 140: sums

Kernels that walk over memory in order differ in addresses and in how many elements there are, and in nothing else: the *form*
that they share has that number as a parameter. So an optimizer's update of all parameters is one function, called with the
addresses and the size of the parameter to which a program belongs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from dlcompiler.codegen.gpu import scalars
from dlcompiler.codegen.gpu.contraction_form import find_form
from dlcompiler.codegen.gpu.contraction_schedule import minimal_bytes
from dlcompiler.codegen.gpu.device import Device
from dlcompiler.codegen.gpu.handwritten import find as find_handwritten
from dlcompiler.codegen.gpu.schedule import NARROW_LIMIT, GpuSchedule, candidates
from dlcompiler.codegen.gpu.standalone import main_section
from dlcompiler.codegen.gpu.triton_writer import TritonKernel, TritonWriter, with_imports
from dlcompiler.codegen.schedule import merge_axes
from dlcompiler.ir import kernel as K
from dlcompiler.ir.contraction import replace_values
from dlcompiler.ir.expression import evaluate, substitute, symbol
from dlcompiler.ir.types import contiguous_strides

# What moves more bytes keeps a GPU busy by itself for longer than a launch takes.
MOST_BYTES = 64 << 20
# Choices of schedules that are tried until one spills nothing.
MOST_TRIES = 4
COUNT = "n"  # how many elements there are, in a form


@dataclass(eq=False)
class Form:
    """Kernels that share a text, and what each gives it.

    kernel    with buffers p0, p1, ... and perhaps the size COUNT
    users     for each of them, the names of its buffers and its number of elements (None where the form has no such size)
    """

    kernel: K.Kernel
    users: list[tuple[tuple[str, ...], int | None]] = field(default_factory=list)

    @property
    def counts(self) -> list[int]:
        """How many elements each has; empty where that is the form's own."""
        return [count for _, count in self.users if count is not None]


def form_to_share(kernel: K.Kernel, arch: str) -> str | None:
    """The text of the form that a kernel has; None for one that runs alone.

    Products do: their tiles need another number of threads and all of shared memory. Sizes must be known.
    """
    product_form = find_form(kernel)
    if kernel.size_symbols or (product_form is not None and product_form.is_tiled) or find_handwritten(kernel, arch) is not None:
        return None
    if minimal_bytes(kernel) > MOST_BYTES or any(a.extent == 0 for a in kernel.axes):
        return None
    return str(general(kernel)[0])


def general(kernel: K.Kernel) -> tuple[K.Kernel, int | None]:
    """The form of a kernel, and how many elements it has if that is a size of the form."""
    names = {b: replace(b, name=f"p{k}") for k, b in enumerate(kernel.buffers)}
    flat = _flattened(kernel, names)
    if flat is not None:
        return flat
    loads: dict[K.Value, K.Value] = {}
    for value in kernel.values:  # operands first
        if isinstance(value, K.Load):
            indirect = tuple(loads.get(o) or _rebuilt(o, loads) for o in value.indirect)
            loads[value] = K.Load(value.dtype, names[value.buffer], value.index, value.guard, indirect)
    stores = tuple(replace(s, buffer=names[s.buffer]) for s in replace_values(kernel.stores, loads))
    return kernel.replace(name="form", buffers=tuple(names.values()), stores=stores, origin=()), None


def _rebuilt(value: K.Value, replaced: Mapping[K.Value, K.Value]) -> K.Value:
    probe = K.Store(K.Buffer("", value.dtype, (), ()), (), value)
    return replace_values((probe,), replaced)[0].value


def _flattened(kernel: K.Kernel, names: Mapping[K.Buffer, K.Buffer]) -> tuple[K.Kernel, int] | None:
    """A pointwise kernel over memory in order, or over single numbers, with its size as a symbol."""
    axes, accesses = merge_axes(kernel)
    if len(axes) != 1 or kernel.reduced_axes or any(isinstance(v, K.Index | K.Within) for v in kernel.values):
        return None
    ((axis, extent),) = axes.items()
    if not isinstance(extent, int):
        return None
    at: dict[K.Buffer, tuple] = {}
    for access in accesses:
        statement = access.statement
        is_plain = not (isinstance(statement, K.Load) and (statement.guard or statement.indirect))
        index = {symbol(axis): (symbol("i"),), 0: ()}.get(access.offset)
        if not is_plain or index is None or at.setdefault(statement.buffer, index) != index:
            return None
    if set(at) != set(kernel.buffers):
        return None
    shape = (symbol(COUNT),)
    buffers = {
        b: replace(names[b], shape=shape[: len(at[b])], strides=contiguous_strides(shape[: len(at[b])])) for b in kernel.buffers
    }
    loads: dict[K.Value, K.Value] = {
        v: K.Load(v.dtype, buffers[v.buffer], at[v.buffer]) for v in kernel.values if isinstance(v, K.Load)
    }
    stores = tuple(K.Store(buffers[s.buffer], at[s.buffer], s.value) for s in replace_values(kernel.stores, loads))
    return K.Kernel("form", (K.Axis("i", shape[0]),), tuple(buffers.values()), stores), extent


def forms_of(bundle: K.Bundle, aligned: frozenset[str]) -> list[Form]:
    """The forms that a bundle's parts have. Addresses that are multiples of 16 and others are different parameters."""
    found: dict[tuple, Form] = {}
    names = iter([b.name for b in bundle.buffers])
    for part in bundle.parts:
        own = tuple(next(names) for _ in part.buffers)
        kernel, count = general(part)
        key = (str(kernel), tuple(name in aligned for name in own))
        # what one of them computes, all do
        found.setdefault(key, Form(kernel.replace(origin=part.origin))).users.append((own, count))
    return list(found.values())


def bundle_writers(bundle: K.Bundle, device: Device, aligned: frozenset[str]) -> Iterator[TritonKernel]:
    """The bundle by one choice of schedules after another, the preferred one first."""
    forms = forms_of(bundle, aligned)
    choices = [list(islice(form_schedules(form, device), MOST_TRIES)) for form in forms]
    for k in range(max(map(len, choices))):
        yield _write(bundle, forms, [each[min(k, len(each) - 1)] for each in choices], aligned)


def form_schedules(form: Form, device: Device) -> Iterator[GpuSchedule]:
    """Schedules for a form: as for one kernel that has as much to do as all its users together."""
    if not form.counts:
        yield from candidates(form.kernel, device)
        return
    together = _with_count(form.kernel, sum(form.counts))
    narrow = max(form.counts) < NARROW_LIMIT // 2
    own = next(iter(candidates(form.kernel, device)))
    for schedule in candidates(together, device):
        yield replace(own, row_block=schedule.row_block, warps=schedule.warps, narrow=narrow)


def _with_count(kernel: K.Kernel, count: int) -> K.Kernel:
    """A form for one number of elements."""
    buffers = {b: replace(b, shape=tuple(substitute(d, {COUNT: count}) for d in b.shape)) for b in kernel.buffers}
    loads: dict[K.Value, K.Value] = {
        v: K.Load(v.dtype, buffers[v.buffer], v.index) for v in kernel.values if isinstance(v, K.Load)
    }
    stores = tuple(replace(s, buffer=buffers[s.buffer]) for s in replace_values(kernel.stores, loads))
    return K.Kernel(kernel.name, (K.Axis("i", count),), tuple(buffers.values()), stores)


def _write(bundle: K.Bundle, forms: Sequence[Form], schedules: Sequence[GpuSchedule], aligned: frozenset[str]) -> TritonKernel:
    functions, calls, first = [], [], 0
    for number, (form, schedule) in enumerate(zip(forms, schedules)):
        writer = TritonWriter(form.kernel, schedule, "program")
        functions.append(writer.function(f"form_{number}", ["program"]))
        begins, programs = [], 0
        for _, count in form.users:
            begins.append(first + programs)
            programs += evaluate(schedule.grid, {COUNT: count} if count is not None else {})
        blocks = "".join(f", {name}={value}" for name, value in writer.blocks.items())
        calls.append(_call(number, form, begins, blocks, first + programs, number == len(forms) - 1))
        first += programs
    warps = max(schedule.warps for schedule in schedules)
    names = [b.name for b in bundle.buffers]
    described = "; ".join(dict.fromkeys(f"{len(f.users)} x {s}" for f, s in zip(forms, schedules)))
    lines = ["Computes, side by side,", *(f"  {line}" for line in bundle.origin), f"by {described}"]
    documentation = "".join(f"{line}\n    " for line in lines).replace("\\", "/").replace('"""', "'''")
    head = f'@triton.jit\ndef kernel({", ".join(names)}):\n    """{documentation}"""\n'
    text = "\n\n".join([*functions, head + "    program = tl.program_id(0)\n" + "".join(calls)])
    source = with_imports(text) + main_section("kernel", bundle, first, {}, warps)
    signature = {b.name: scalars.pointer_name(b.dtype) for b in bundle.buffers}
    return TritonKernel("kernel", bundle, source, first, {}, signature, aligned, warps, schedule=described)


def _call(number: int, form: Form, begins: Sequence[int], blocks: str, end: int, is_last: bool) -> str:
    """What the programs of one form do: those before `end` that no form before it has."""
    word = "if" if number == 0 else "else" if is_last else "elif"
    lines = [f"    {word}:" if word == "else" else f"    {word} program < {end}:"]
    if number == 0 and is_last:
        lines = ["    if True:"]
    parameters = [f"p{k}" for k in range(len(form.kernel.buffers))]
    has_count = bool(form.counts)
    if len(form.users) == 1:
        ((names, count),) = form.users
        given = ", ".join([*names, *([str(count)] if has_count else [])])
        program = f"program - {begins[0]}" if begins[0] else "program"
        return "\n".join([*lines, f"        form_{number}({program}, {given}{blocks})", ""])
    chosen = ", ".join(["first", *parameters, *([COUNT] if has_count else [])])
    for begin, (names, count) in zip(begins, form.users):
        values = ", ".join([str(begin), *names, *([str(count)] if has_count else [])])
        if begin == begins[0]:
            lines.append(f"        {chosen} = {values}")
        else:
            lines += [f"        if program >= {begin}:", f"            {chosen} = {values}"]
    given = ", ".join([*parameters, *([COUNT] if has_count else [])])
    return "\n".join([*lines, f"        form_{number}(program - first, {given}{blocks})", ""])
