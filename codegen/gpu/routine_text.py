"""What hand-written routines share: parameters out of a call's views, and text of addresses in strided memory."""

from __future__ import annotations

from collections.abc import Sequence

from dlcompiler.codegen.gpu.index_text import index_text
from dlcompiler.codegen.gpu.schedule import NARROW_LIMIT
from dlcompiler.codegen.gpu.standalone import STEP, main_section
from dlcompiler.codegen.gpu.triton_writer import HEADER, LIBDEVICE_HEADER, TritonKernel
from dlcompiler.ir import kernel as K
from dlcompiler.ir.expression import Dim, evaluate, product, symbols
from dlcompiler.ir.program import RoutineCall, View

Strides = Sequence[Dim]


def parameters(call: RoutineCall) -> K.Kernel:
    """The routine's parameters as launching asks for them: x0, x1, ... that it reads, then y0, ...; it has no statements."""
    ins = [K.Buffer(f"x{k}", v.dtype, v.shape, v.strides) for k, v in enumerate(call.reads)]
    outs = [K.Buffer(f"y{k}", v.dtype, v.shape, v.strides, "out") for k, v in enumerate(call.writes) if v is not None]
    return K.Kernel(call.op, (), (*ins, *outs), (), call.origin)


def is_narrow(buffers: Sequence[K.Buffer]) -> bool:
    """Whether every distance in elements fits 32 bits; sizes that are not known count as large."""
    for buffer in buffers:
        if any(symbols(d) for d in (*buffer.shape, *buffer.strides)):
            return False
        reach = (abs(evaluate(s, {})) * max(evaluate(n, {}) - 1, 0) for n, s in zip(buffer.shape, buffer.strides))
        if 1 + sum(reach) >= NARROW_LIMIT // 2:
            return False
    return True


def offset_text(flat: str, shape: Sequence[Dim], strides: Strides) -> str:
    """The distance of the `flat`-th element, counted row-major over `shape`, in memory of these strides."""
    terms = []
    for d, (size, stride) in enumerate(zip(shape, strides)):
        if size == 1 or stride == 0:
            continue
        below = product(shape[d + 1 :])
        index = flat if below == 1 else f"{flat} // ({index_text(below, {})})"
        index = index if d == 0 else f"{index} % ({index_text(size, {})})"
        terms.append(index if stride == 1 else f"({index}) * ({index_text(stride, {})})")
    return " + ".join(terms) or "0"


def broadcast_strides(view: View, shape: Sequence[Dim]) -> list[Dim]:
    """Strides of a view broadcast to a shape."""
    missing = len(shape) - len(view.shape)
    return [0] * missing + [0 if size == 1 else stride for size, stride in zip(view.shape, view.strides)]


def finished(
    call: RoutineCall,
    body: str,
    helpers: str,
    grid: Dim,
    blocks: dict[str, int],
    warps: int,
    schedule: str,
    aligned: frozenset[str],
    repeats: Dim | None = None,
) -> TritonKernel:
    """A routine's file around the body of its function, and all that starting it needs.

    With `repeats` it is started so often, and `step` is the number of the start.
    """
    from dlcompiler.codegen.gpu import scalars

    kernel = parameters(call)
    names = [b.name for b in kernel.buffers]
    sizes = list(call.size_symbols)
    step = [STEP] if repeats is not None else []
    text = ", ".join([*names, *sizes, *step, *(f"{b}: tl.constexpr" for b in blocks)])
    origin = "".join(f"  {line}\n    " for line in call.origin)
    head = f'@triton.jit\ndef kernel({text}):\n    """Computes {call.op}\n    {origin}by {schedule}\n    """\n'
    header = HEADER + (LIBDEVICE_HEADER if "libdevice." in body + helpers else "")
    source = f"{header}{helpers}\n\n{head}{body}" + main_section("kernel", kernel, grid, blocks, warps, repeats)
    signature = {b.name: scalars.pointer_name(b.dtype) for b in kernel.buffers}
    signature |= dict.fromkeys([*sizes, *step], "i64") | dict.fromkeys(blocks, "constexpr")
    return TritonKernel("kernel", kernel, source, grid, blocks, signature, aligned, warps, schedule=schedule, repeats=repeats)
