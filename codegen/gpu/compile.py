"""Stages of a GPU kernel: Triton source -> ttir -> ttgir -> llir -> ptx -> cubin, for an architecture, on any machine."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from dlcompiler.codegen.gpu.bundle import bundle_writers
from dlcompiler.codegen.gpu.contraction import product_writers
from dlcompiler.codegen.gpu.contraction_form import find_form
from dlcompiler.codegen.gpu.contraction_schedule import tuning_candidates
from dlcompiler.codegen.gpu.contraction_writer import write_product
from dlcompiler.codegen.gpu.cubin import Resources, resources_of
from dlcompiler.codegen.gpu.cuda_assemble import assemble_cuda
from dlcompiler.codegen.gpu.cuda_writer import CudaKernel, write_cuda
from dlcompiler.codegen.gpu.device import device_of
from dlcompiler.codegen.gpu.handwritten import find as find_handwritten
from dlcompiler.codegen.gpu.kept import SUFFIXES, KeptKernel, kernel_key, to_files
from dlcompiler.codegen.gpu.load import load_function
from dlcompiler.codegen.gpu.routines import routine_key, routine_parameters, routine_writers
from dlcompiler.codegen.gpu.schedule import candidates
from dlcompiler.codegen.gpu.triton_writer import TritonKernel, write_triton
from dlcompiler.codegen.target import Target
from dlcompiler.ir import kernel as K
from dlcompiler.ir.errors import UnsupportedError
from dlcompiler.ir.expression import parse_dim
from dlcompiler.ir.program import DeviceCode, DeviceKernel, Launch, Program, RoutineCall, View

logger = logging.getLogger("dlcompiler")

ALIGNMENT = 16  # bytes; of addresses that let a thread load a vector


@dataclass(frozen=True, eq=False)
class AssembledKernel(DeviceKernel):
    """A DeviceKernel made from Triton or CUDA C++, which `written` is; `key` is that of `kept.kernel_key`."""

    key: str = ""

    @property
    def resources(self) -> Resources:
        """Registers and local memory of a thread."""
        return resources_of(self.binary, self.name)


_assembled: dict[str, AssembledKernel] = {}
_offered: dict[str, KeptKernel] = {}
_lock = threading.Lock()


def offer(kernels: Mapping[str, KeptKernel]) -> None:
    """Kernels assembled elsewhere, by `kernel_key`: taken when one of them is wanted, instead of assembling it."""
    with _lock:
        _offered.update(kernels)


def forget() -> None:
    """Drop every assembled kernel that no program holds."""
    with _lock:
        _assembled.clear()
        _offered.clear()


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
        # Triton gives every kernel more addresses: memory that it may use for itself, and for its profiler
        extra_words=_parameter_count(compiled.asm["ptx"]) - len(kernel.signature) + len(kernel.constants),
        scratch_bytes=getattr(metadata, "global_scratch_size", 0) or 0,
        schedule=kernel.schedule or f"{kernel.warps} warps",
        written=kernel,
        repeats=kernel.repeats,
    )


def _parameter_count(ptx: str) -> int:
    """How many parameters the entry of a PTX text has."""
    entry = ptx[ptx.index(".entry") :]
    return entry[: entry.index(")")].count(".param")


def first_without_spills(kernels: Iterable[TritonKernel], target: Target) -> AssembledKernel:
    """The first that keeps everything in registers, else the one that spills least. One that cannot be assembled is left out."""
    best: AssembledKernel | None = None
    failure: Exception | None = None
    for kernel in kernels:
        try:
            assembled = assemble(kernel, target)
        except _too_large() as error:
            failure = error
            continue
        if assembled.shared_bytes > device_of(target.arch).block_shared_bytes:
            failure = UnsupportedError(f"{kernel.schedule} takes {assembled.shared_bytes} bytes of shared memory")
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


def assemble_cuda_kernel(kernel: CudaKernel, target: Target) -> AssembledKernel:
    """Assemble CUDA C++. Raises UnsupportedError if this machine has no compiler for it."""
    ptx, cubin = assemble_cuda(kernel.source, target.arch)
    stages = {"cuda": kernel.source, "ptx": ptx}
    return AssembledKernel(
        kernel.name, target.arch, cubin, stages, kernel.grid, kernel.threads, schedule=kernel.schedule, written=kernel
    )


def assemble_kernel(
    kernel: K.Kernel | RoutineCall, target: Target, aligned: frozenset[str], writer: str = "triton"
) -> AssembledKernel:
    """One kernel: one written by hand if there is one, else by the writer asked for, else by Triton's.

    Of the schedules the first that keeps everything in registers is taken; `aligned` buffers begin at multiples of 16 bytes.
    """
    device = device_of(target.arch)
    if isinstance(kernel, K.Bundle):
        return first_without_spills(bundle_writers(kernel, device, aligned), target)
    number = candidate_of(kernel, target)
    if number is not None:
        return assemble_candidate(kernel, target, aligned, number)
    if isinstance(kernel, RoutineCall):
        return first_without_spills(routine_writers(kernel, device, target.float32, aligned), target)
    own = find_handwritten(kernel, target.arch)
    if own is not None:
        made = own.write(kernel, device, aligned)
        return assemble_cuda_kernel(made, target) if isinstance(made, CudaKernel) else assemble(made, target)
    products = product_writers(kernel, device, target.float32, aligned)
    if products is not None:
        return first_without_spills(products, target)
    if writer == "cuda":
        try:
            schedule = next(iter(candidates(kernel, device)))
            return assemble_cuda_kernel(write_cuda(kernel, schedule, "kernel", aligned), target)
        except UnsupportedError as error:
            logger.debug("%s is written in Triton: %s", kernel.name, error)
    schedules = candidates(kernel, device)
    return first_without_spills((write_triton(kernel, "kernel", s, aligned) for s in schedules), target)


def candidate_of(kernel: K.Kernel | RoutineCall, target: Target) -> int | None:
    """Which of its candidates a tuner has chosen; None where it is left to the cost model."""
    if target.choices is None or isinstance(kernel, K.Bundle):  # a bundle's parts are as they would be alone
        return None
    found = target.choices.ask("schedule", kernel).get("candidate")
    return None if found is None else int(found)


def assemble_candidate(kernel: K.Kernel | RoutineCall, target: Target, aligned: frozenset[str], number: int) -> AssembledKernel:
    """A kernel as one of `written_candidates`.

    Raises UnsupportedError for one that the architecture has no room for, or that spills: a tuner goes on to the next.
    """
    written = written_candidates(kernel, target, aligned)
    try:
        assembled = assemble(written[number](), target)
    except _too_large() as error:
        raise UnsupportedError(f"candidate {number} of {_name(kernel)} has no room: {error}") from error
    except IndexError:
        raise UnsupportedError(f"there are {len(written)} candidates for {_name(kernel)}, not {number}") from None
    if assembled.shared_bytes > device_of(target.arch).block_shared_bytes:
        raise UnsupportedError(f"candidate {number} of {_name(kernel)} takes {assembled.shared_bytes} bytes of shared memory")
    if assembled.resources.local_bytes:
        raise UnsupportedError(f"candidate {number} of {_name(kernel)} spills {assembled.resources.local_bytes} bytes")
    return assembled


def written_candidates(
    kernel: K.Kernel | RoutineCall, target: Target, aligned: frozenset[str]
) -> list[Callable[[], TritonKernel]]:
    """What writes a kernel in each of the ways that a tuner may try, the cost model's first."""
    device = device_of(target.arch)
    if isinstance(kernel, RoutineCall):
        routines = list(routine_writers(kernel, device, target.float32, aligned))
        return [partial(_same, each) for each in routines]
    form = find_form(kernel)
    if form is not None and product_writers(kernel, device, target.float32, aligned) is not None:
        tiles = tuning_candidates(form, device, target.float32)
        return [partial(write_product, form, each, device, "kernel", aligned) for each in tiles]
    return [partial(write_triton, kernel, "kernel", each, aligned) for each in candidates(kernel, device)]


def _name(kernel: K.Kernel | RoutineCall) -> str:
    return kernel.op if isinstance(kernel, RoutineCall) else kernel.name


def _same(kernel: TritonKernel) -> TritonKernel:
    return kernel


def assemble_kernels(
    kernels: Sequence[K.Kernel | RoutineCall],
    target: Target,
    aligned: Sequence[frozenset[str]] | None = None,
    writer: str = "triton",
) -> list[AssembledKernel]:
    """Each kernel assembled, in order; equal ones once. `aligned`: names of each one's buffers at multiples of 16; None: all."""
    results = []
    for kernel, names in zip(kernels, aligned or [frozenset(parameter_names(k)) for k in kernels], strict=True):
        number = candidate_of(kernel, target)
        key = unit_key(kernel, target, names, writer) + ("" if number is None else f" {number}")
        with _lock:
            if key not in _assembled:
                kept = _offered.get(key)
                made = assemble_kernel(kernel, target, names, writer) if kept is None else _restored(kept, kernel)
                _assembled[key] = replace(made, key=key)
            results.append(_assembled[key])
    return results


def unit_key(kernel: K.Kernel | RoutineCall, target: Target, aligned: frozenset[str], writer: str) -> str:
    """By what an assembled kernel is known."""
    if isinstance(kernel, RoutineCall):
        return kernel_key(routine_parameters(kernel), target.arch, aligned, f"{target.float32} {routine_key(kernel)}")
    if isinstance(kernel, K.Bundle):
        return kernel_key(kernel, target.arch, aligned, writer)
    own = find_handwritten(kernel, target.arch)
    variant = writer if own is None else f"by hand: {own.name}"
    return kernel_key(kernel, target.arch, aligned, target.float32 if find_form(kernel) is not None and own is None else variant)


def _restored(kept: KeptKernel, kernel: K.Kernel | RoutineCall) -> AssembledKernel:
    """A kernel out of files; needs no Triton."""
    if isinstance(kernel, RoutineCall):
        kernel = routine_parameters(kernel)
    entry, files = kept.entry, kept.entry["files"]
    stages = {stage: kept.read(files[stage]).decode() for stage in SUFFIXES if stage in files}
    grid = parse_dim(entry["grid"])
    repeats = parse_dim(entry["repeats"]) if entry.get("repeats") is not None else None
    source = stages.get("triton", "")
    written: TritonKernel | CudaKernel
    if "cuda" in stages:
        written = CudaKernel(entry["name"], kernel, stages["cuda"], grid, entry["threads"], entry["schedule"])
    else:
        constants = dict(entry["constants"])
        written = TritonKernel(entry["name"], kernel, source, grid, constants, {}, warps=entry["threads"] // 32, repeats=repeats)
    return AssembledKernel(
        entry["name"],
        kept.arch,
        kept.read(files["cubin"]),
        stages,
        grid,
        entry["threads"],
        entry["shared_bytes"],
        entry["extra_words"],
        entry["scratch_bytes"],
        entry["schedule"],
        written,
        repeats,
    )


def program_files(programs: Iterable[Program]) -> dict[str, bytes]:
    """The kernels of a model's programs as files (`kept`), each distinct one once."""
    codes = [program.code for program in programs if isinstance(program.code, DeviceCode)]
    kernels = [k for code in codes for k in (*code.preparation, *code.kernels)]
    return to_files((k.key, k) for k in kernels if isinstance(k, AssembledKernel))


def parameter_names(kernel: K.Kernel | RoutineCall) -> list[str]:
    """Names of the parameters that are addresses."""
    return [b.name for b in (routine_parameters(kernel) if isinstance(kernel, RoutineCall) else kernel).buffers]


def aligned_buffers(step: Launch | RoutineCall) -> frozenset[str]:
    """Names of the buffers whose addresses are sure to be multiples of 16: memory of its own begins at one, and so do inputs."""
    names = parameter_names(step if isinstance(step, RoutineCall) else step.kernel)
    return frozenset(name for name, view in zip(names, step.arguments) if _is_aligned(view))


def _is_aligned(view: View) -> bool:
    return isinstance(view.offset, int) and view.offset * view.dtype.bytes % ALIGNMENT == 0


def emit_program(program: Program, target: Target, writer: str = "triton") -> Program:
    """Attach the source of every launch and routine, and its assembled stages; `writer`: triton, or cuda where that can."""
    launches = [step for step in (*program.preparation, *program.steps) if isinstance(step, Launch | RoutineCall)]
    units = [step if isinstance(step, RoutineCall) else step.kernel for step in launches]
    assembled = assemble_kernels(units, target, [aligned_buffers(s) for s in launches], writer)
    first = len(program.preparation)
    codes = iter(assembled[first:])
    kernels = tuple(next(codes) if isinstance(step, Launch | RoutineCall) else None for step in program.steps)
    return program.replace(code=DeviceCode(kernels, target.arch, tuple(assembled[:first]), target.float32))
