"""What is known of a GPU program without running it: registers, spills, bytes, arithmetic, occupancy, and the time of a roofline.

Bytes moved are what kernels ask of memory if everything that several programs read alike comes from the cache; the minimum is
each buffer's touched elements once. A roofline is a bound, not a prediction: nothing runs quicker, small launches run slower.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dlcompiler.codegen.gpu.cubin import resources_of
from dlcompiler.codegen.gpu.device import Device, device_of
from dlcompiler.codegen.gpu.recurrent_form import cell_of
from dlcompiler.codegen.phases import Phases
from dlcompiler.codegen.schedule import merge_axes, size_estimate
from dlcompiler.ir import kernel as K
from dlcompiler.ir.expression import Dim, symbols
from dlcompiler.ir.program import AtenCall, DeviceCode, DeviceKernel, Launch, LibraryCall, Program, RoutineCall, View

REGISTER_UNIT = 256  # of a warp's registers, in which they are given out
SHARED_UNIT = 1024  # bytes that the system takes of each block's shared memory


@dataclass(frozen=True)
class Evidence:
    """One step of a program. `kind`: kernel, library or aten; registers and the like are 0 for what is not a kernel of ours.

    launches               how often the kernel is started, as for each time step; 1 where only a call tells

    bytes, minimum_bytes   moved, and at least to be moved; flops: scalar operations, of library calls multiply-adds counted twice
    occupancy              threads that are there at once, as a part of the most there can be
    roofline_seconds       on the device, whichever takes longer: moving bytes or computing
    """

    number: int
    kind: str
    name: str
    schedule: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    occupancy: float
    bytes: int
    minimum_bytes: int
    flops: int
    roofline_seconds: float
    launches: int = 1

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return self.flops / self.bytes if self.bytes else 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def program_evidence(program: Program, device: Device | None = None) -> list[Evidence]:
    """A row for each step, in order. Sizes that are not known count as 256.

    Without a device: the one that the code is for, else an H200. Kernels that are not assembled have no registers.
    """
    code = program.code
    kernels: tuple[Any, ...] = code.kernels if isinstance(code, DeviceCode) else (None,) * len(program.steps)
    device = device or device_of(code.arch if isinstance(code, DeviceCode) else "sm_90")
    return [_step_evidence(number, step, kernel, device) for number, (step, kernel) in enumerate(zip(program.steps, kernels))]


def _step_evidence(number: int, step: Any, code: DeviceKernel | None, device: Device) -> Evidence:
    if isinstance(step, Launch):
        moved, minimum, flops = kernel_traffic(step.kernel, code is not None and "loop" in code.schedule)
        seconds = max(moved / device.copy_bandwidth, flops / device.float32)
        return _of_kernel(number, step.kernel.name, code, device, moved, minimum, flops, seconds)
    moved = sum(_view_bytes(v) for v in {*step.reads, *(w for w in step.writes if w is not None)})
    kind, name = ("aten", step.target) if isinstance(step, AtenCall) else ("library", step.op)
    flops = library_flops(step) if isinstance(step, LibraryCall) else 0
    rate = device.half if step.reads and step.reads[0].dtype.bits == 16 else device.float32
    seconds = max(moved / device.copy_bandwidth, flops / rate)
    if isinstance(step, RoutineCall):
        return _of_kernel(number, name, code, device, moved, moved, flops, seconds)
    return Evidence(number, kind, name, "", 0, 0, 0, 0.0, moved, moved, flops, seconds)


def _of_kernel(
    number: int, name: str, code: DeviceKernel | None, device: Device, moved: int, minimum: int, flops: int, seconds: float
) -> Evidence:
    if code is None:
        return Evidence(number, "kernel", name, "", 0, 0, 0, 0.0, moved, minimum, flops, seconds)
    resources = resources_of(code.binary, code.name)
    occupied = occupancy(device, code.threads, resources.registers, code.shared_bytes)
    return Evidence(
        number, "kernel", name, code.schedule, resources.registers, resources.local_bytes, code.shared_bytes, occupied, moved,
        minimum, flops, seconds, code.known_starts,
    )  # fmt: skip


def _view_bytes(view: View) -> int:
    return math.prod(map(size_estimate, view.shape)) * view.dtype.bytes


def library_flops(step: LibraryCall) -> int:
    """Multiply-adds, counted twice, of a product, a convolution, attention or a recurrence; 0 for another op."""
    shapes = [tuple(map(size_estimate, v.shape)) for v in step.reads]
    out = math.prod(map(size_estimate, step.writes[0].shape)) if step.writes and step.writes[0] is not None else 0
    match step.op:
        case "linear_logsumexp":
            return 2 * shapes[0][0] * math.prod(shapes[1])
        case "matmul" | "linear":
            return 2 * out * shapes[0][-1]
        case "convolution":
            return 2 * out * math.prod(shapes[1][1:])
        case "convolution_weight":
            return 2 * out * shapes[1][0] * math.prod(shapes[1][2:])
        case "attention":
            return 2 * (math.prod(shapes[0]) * shapes[1][-2] + out * shapes[1][-2])
    if cell_of(step.op) is not None:  # in each step each row of the batch times the weight, in each direction
        sequences = [shape for shape in shapes if len(shape) == 3]
        steps, batch = sequences[0 if step.op.endswith("_backward") else -1][:2]
        weight = next(shape for shape in shapes if len(shape) == 2)
        return 2 * len(step.attributes["reverse"]) * steps * batch * math.prod(weight)
    return 0


def kernel_traffic(kernel: K.Kernel, loops: bool) -> tuple[int, int, int]:
    """(bytes moved, bytes at least, scalar operations). A loop reads again in each phase what it needs there."""
    if isinstance(kernel, K.Bundle):
        moved, minimum, flops = (sum(each) for each in zip(*(kernel_traffic(part, loops) for part in kernel.parts)))
        return moved, minimum, flops
    touched: dict[K.Buffer, int] = {}
    moved = flops = 0
    phases_of = _phases_that_read(kernel) if loops else {}
    for value in kernel.values:
        points = _points(kernel, kernel.axes_of[value])
        if isinstance(value, K.Load):
            size = min(points, _elements(value.buffer)) * value.buffer.dtype.bytes
            touched[value.buffer] = min(touched.get(value.buffer, 0) + size, _elements(value.buffer) * value.buffer.dtype.bytes)
            moved += size * (max(phases_of.get(value, 1), 1) - 1)
        elif isinstance(value, K.Compute) and value.op != "cast":
            flops += points
        elif isinstance(value, K.Reduce):
            flops += _points(kernel, kernel.axes_of[value.operand] | set(value.over))
    for store in kernel.stores:
        axes = frozenset().union(*(symbols(e) for e in store.index)) & set(kernel.extents)
        touched[store.buffer] = touched.get(store.buffer, 0) + _points(kernel, axes) * store.buffer.dtype.bytes
    minimum = sum(touched.values())
    return minimum + moved, minimum, flops


def _phases_that_read(kernel: K.Kernel) -> Mapping[K.Value, int]:
    """In how many phases each load that lies along the reduced axes is needed."""
    axes, accesses = merge_axes(kernel)
    inner = tuple(a for a in axes if a in kernel.reduced_axes)
    phases = Phases(kernel, _Axes(axes, inner, {a.statement: a for a in accesses}))
    count: dict[K.Value, int] = {}
    for phase in range(phases.last + 1):
        reduces, stores = phases.targets(phase)
        roots = [*(r.operand for r in reduces), *(s.value for s in stores)]
        for value in phases.needed(roots, lambda v: not phases.is_inner(v)):
            if isinstance(value, K.Load) and phases.is_inner(value):
                count[value] = count.get(value, 0) + 1
    return count


@dataclass(frozen=True)
class _Axes:
    """What `Phases` asks of a schedule."""

    axes: dict[str, Dim]
    inner: tuple[str, ...]
    accesses: dict[object, Any]


def _points(kernel: K.Kernel, axes: Iterable[str]) -> int:
    return math.prod(size_estimate(kernel.extents[a]) for a in axes)


def _elements(buffer: K.Buffer) -> int:
    """Distinct elements of a buffer: dimensions of stride 0 hold the same."""
    return math.prod(size_estimate(n) for n, s in zip(buffer.shape, buffer.strides) if s != 0)


def occupancy(device: Device, threads: int, registers: int, shared: int) -> float:
    """Threads of a multiprocessor that this kernel can have there at once, as a part of the most there can be."""
    warps = -(-threads // 32)
    per_warp = -(-registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
    limits = [device.blocks, device.threads // threads]
    if per_warp:
        limits.append(device.registers // (per_warp * warps))
    limits.append(device.shared_bytes // (shared + SHARED_UNIT))
    return min(limits) * threads / device.threads


def evidence_table(rows: Iterable[Evidence], device: Device) -> str:
    """Equal kernels on one line, those that take longest first, and a line for the whole."""
    groups: dict[tuple, list[Evidence]] = {}
    for row in rows:
        own = row.name if row.kind != "kernel" else ""
        groups.setdefault((row.kind, own, row.schedule, row.registers, row.bytes, row.flops), []).append(row)
    head = (
        f"{'count':>5} {'us':>8} {'MiB':>8} {'of min':>6} {'op/byte':>7} {'regs':>4} {'spill':>5} {'shared':>6} {'occ':>4}  what"
    )
    lines = [f"roofline on a {device.product} ({device.copy_bandwidth / 1e12:.1f} TB/s)", head]
    for same in sorted(groups.values(), key=lambda g: -sum(r.roofline_seconds for r in g)):
        r = same[0]
        ratio = r.bytes / r.minimum_bytes if r.minimum_bytes else 1.0
        what = f"{r.name}  {r.schedule}" if r.kind == "kernel" else f"{r.kind} {r.name}"
        lines.append(
            f"{len(same):5d} {r.roofline_seconds * 1e6:8.2f} {r.bytes / 2**20:8.2f} {ratio:6.2f} {r.intensity:7.1f} "
            f"{r.registers:4d} {r.spilled_bytes:5d} {r.shared_bytes:6d} {r.occupancy:4.0%}  {what}"
        )
    every = [r for g in groups.values() for r in g]
    ours = [r for r in every if r.kind == "kernel"]
    lines.append(
        f"{len(every)} steps, {len(ours)} kernels of ours: {sum(r.bytes for r in ours) / 2**20:.1f} MiB moved, at least "
        f"{sum(r.minimum_bytes for r in ours) / 2**20:.1f}; {sum(bool(r.spilled_bytes) for r in ours)} spill; "
        f"roofline of all steps {sum(r.roofline_seconds for r in every) * 1e6:.0f} us"
    )
    return "\n".join(lines)
