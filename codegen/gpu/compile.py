"""Stages of a GPU kernel: Triton source -> ttir -> ttgir -> llir -> ptx -> cubin, for an architecture, on any machine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence

from dlcompiler.codegen.gpu.contraction import product_writers
from dlcompiler.codegen.gpu.cubin import Resources, resources_of
from dlcompiler.codegen.gpu.device import device_of
from dlcompiler.codegen.gpu.load import load_function
from dlcompiler.codegen.gpu.routines import parameter_names, routine_key, routine_writers
from dlcompiler.codegen.gpu.schedule import candidates
from dlcompiler.codegen.gpu.triton_writer import TritonKernel, write_triton
from dlcompiler.codegen.target import Target
from dlcompiler.ir import kernel as K
from dlcompiler.ir.program import DeviceCode, DeviceKernel, Launch, Program, RoutineCall, View

ALIGNMENT = 16  # bytes; of addresses that let a thread load a vector


class AssembledKernel(DeviceKernel):
    """A DeviceKernel made from Triton."""

    @property
    def triton(self) -> TritonKernel:
        assert isinstance(self.written, TritonKernel)
        return self.written

    @property
    def resources(self) -> Resources:
        """Registers and local memory of a thread."""
        return resources_of(self.binary, self.name)


_assembled: dict[tuple[str, str], AssembledKernel] = {}
_lock = threading.Lock()


def forget() -> None:
    """Drop every assembled kernel that no program holds."""
    with _lock:
        _assembled.clear()


def assembled_count() -> int:
    """Distinct kernels assembled and kept in this process."""
    return len(_assembled)


def assemble(kernel: TritonKernel, target: Target) -> AssembledKernel:
    """Run all of Triton's stages for the target's architecture; needs no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    capability = int(target.arch.removeprefix("sm_"))
    function = load_function(kernel.source, kernel.name, interpret=False)
    attributes = {
        (position,): [["tt.divisibility", ALIGNMENT]] for position, name in enumerate(kernel.signature) if name in kernel.aligned
    }
    source = ASTSource(function, dict(kernel.signature), dict(kernel.constants), attributes)
    options = {"num_warps": kernel.warps, "enable_fp_fusion": True}
    if kernel.stages is not None:
        options["num_stages"] = kernel.stages
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    stages = {stage: text for stage, text in compiled.asm.items() if stage not in ("source", "cubin")}
    metadata = compiled.metadata
    return AssembledKernel(
        kernel.name,
        target.arch,
        compiled.asm["cubin"],
        {"triton": kernel.source, **stages},
        kernel.grid,
        32 * metadata.num_warps,
        metadata.shared,
        # Triton gives every kernel two more addresses: memory that it may use for itself, and for its profiler
        extra_words=2,
        scratch_bytes=getattr(metadata, "global_scratch_size", 0) or 0,
        schedule=kernel.schedule or f"{kernel.warps} warps",
        written=kernel,
    )


def first_without_spills(kernels: Iterable[Callable[[], TritonKernel]], target: Target) -> AssembledKernel:
    """The first that keeps everything in registers, else the one that spills least. One that cannot be assembled is left out."""
    best: AssembledKernel | None = None
    failure: Exception | None = None
    for write in kernels:
        try:
            assembled = assemble(write(), target)
        except _too_large() as error:
            failure = error
            continue
        if not assembled.resources.local_bytes:
            return assembled
        if best is None or assembled.resources.local_bytes < best.resources.local_bytes:
            best = assembled
    if best is None:
        assert failure is not None
        raise failure
    return best


def _too_large() -> tuple[type[Exception], ...]:
    """What Triton raises for a block that the architecture has no room for."""
    from triton.runtime.errors import OutOfResources, PTXASError

    return (OutOfResources, PTXASError)


def assemble_kernel(kernel: K.Kernel | RoutineCall, target: Target, aligned: frozenset[str]) -> AssembledKernel:
    """One kernel by the first of its schedules that keeps everything in registers; `aligned` buffers begin at multiples of 16."""
    device = device_of(target.arch)
    if isinstance(kernel, RoutineCall):
        return first_without_spills(routine_writers(kernel, device, target.float32, aligned), target)
    products = product_writers(kernel, device, target.float32, aligned)
    if products is not None:
        return first_without_spills(products, target)
    schedules = candidates(kernel, device)
    return first_without_spills((lambda s=s: write_triton(kernel, "kernel", s, aligned) for s in schedules), target)


def assemble_kernels(
    kernels: Sequence[K.Kernel | RoutineCall], target: Target, aligned: Sequence[frozenset[str]] | None = None
) -> list[AssembledKernel]:
    """Each kernel assembled, in order; equal ones once. `aligned`: names of each one's buffers at multiples of 16; None: all."""
    results = []
    for kernel, names in zip(kernels, aligned or [frozenset(_parameters(k)) for k in kernels], strict=True):
        text = routine_key(kernel) if isinstance(kernel, RoutineCall) else str(kernel.replace(name="kernel", origin=()))
        key = (text, f"{target.arch} {target.float32} {sorted(names)}")
        with _lock:
            if key not in _assembled:
                _assembled[key] = assemble_kernel(kernel, target, names)
            results.append(_assembled[key])
    return results


def _parameters(kernel: K.Kernel | RoutineCall) -> list[str]:
    """Names of the parameters that are addresses."""
    return parameter_names(kernel) if isinstance(kernel, RoutineCall) else [b.name for b in kernel.buffers]


def aligned_buffers(step: Launch | RoutineCall) -> frozenset[str]:
    """Names of the buffers whose addresses are sure to be multiples of 16: memory of its own begins at one, and so do inputs."""
    names = _parameters(step if isinstance(step, RoutineCall) else step.kernel)
    return frozenset(name for name, view in zip(names, step.arguments) if _is_aligned(view))


def _is_aligned(view: View) -> bool:
    return isinstance(view.offset, int) and view.offset * view.dtype.bytes % ALIGNMENT == 0


def emit_program(program: Program, target: Target) -> Program:
    """Attach the Triton source of every launch and routine, and its assembled stages."""
    launches = [step for step in (*program.preparation, *program.steps) if isinstance(step, Launch | RoutineCall)]
    units = [step if isinstance(step, RoutineCall) else step.kernel for step in launches]
    assembled = assemble_kernels(units, target, [aligned_buffers(s) for s in launches])
    first = len(program.preparation)
    codes = iter(assembled[first:])
    kernels = tuple(next(codes) if isinstance(step, Launch | RoutineCall) else None for step in program.steps)
    return program.replace(code=DeviceCode(kernels, target.arch, tuple(assembled[:first])))
