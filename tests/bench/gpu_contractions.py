"""Every kernel of real models for GPUs, assembled with no GPU: what each takes of a multiprocessor, and how long it could take.

    python -m tests.bench.gpu_contractions --arch sm_90 --dtype float16 bert-base resnet50

A row is a kernel with how often it runs, its schedule, registers of a thread, bytes spilled, shared memory of a program,
operations, bytes moved at least, and the roofline time on the chip that stands for the architecture: what multiplying takes at
the peak of the data sheet, or moving the bytes, whichever is longer. Nothing here is measured on a device.

    python -m tests.bench.gpu_contractions --simulate --dtype float16

runs small configurations of the models by Triton's interpreter, and says how far eager and the kernels are from float64.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from dlcompiler.codegen.gpu.attention import problem_of
from dlcompiler.codegen.gpu.contraction_form import find_form
from dlcompiler.codegen.gpu.contraction_schedule import minimal_bytes, operations, rate
from dlcompiler.codegen.gpu.device import device_of
from dlcompiler.ir.program import Launch, Program, RoutineCall

from dlcompiler import compile as compile_model
from tests.zoo import build

MODELS = ("bert-base", "gpt2", "llama-small", "vit-b16", "resnet50")


@dataclass(frozen=True)
class Row:
    """One kernel of a model."""

    what: str
    count: int
    schedule: str
    registers: int
    spilled: int
    shared: int
    operations: int
    bytes: int
    seconds: float


def rows_of(program: Program, arch: str, precision: str) -> list[Row]:
    """One row for each distinct kernel, in order of first launch."""
    device = device_of(arch)
    assert program.code is not None
    steps = [(s, k) for s, k in zip(program.steps, program.code.kernels) if k is not None]
    counts = Counter(id(k) for _, k in steps)
    found = []
    for step, kernel in {id(k): (s, k) for s, k in reversed(steps)}.values():
        what, work, moved, speed = _describe(step, device, precision)
        found.append(
            Row(
                what, counts[id(kernel)], kernel.schedule, kernel.resources.registers, kernel.resources.local_bytes,
                kernel.shared_bytes, work, moved, max(work / speed if work else 0.0, moved / device.copy_bandwidth),
            )
        )  # fmt: skip
    return found[::-1]


def _describe(step: Launch | RoutineCall, device: Any, precision: str) -> tuple[str, int, int, float]:
    """(what it is, operations of products, bytes, operations a second)."""
    if isinstance(step, RoutineCall):
        problem = problem_of(step)
        moved = minimal_bytes(problem.parameters)
        return (
            f"{step.op} {problem.lead}x{problem.length}x{problem.width}",
            problem.operations(),
            moved,
            rate(device, problem.dtype, precision),
        )
    form = find_form(step.kernel)
    moved = minimal_bytes(step.kernel)
    if form is None or not form.is_tiled:
        first = step.origin[-1].split(" at ")[0] if step.origin else step.kernel.name
        return f"{len(step.origin)} ops, last {first}", 0, moved, 1.0
    sides = "x".join(str(form.size(side)) for side in (form.batch, form.rows, form.columns, form.summed) if side)
    return f"product {sides} {form.dtype}, {len(step.origin)} ops", operations(form), moved, rate(device, form.dtype, precision)


def print_table(name: str, rows: list[Row], seconds: float) -> None:
    """The rows of a model, and their sums."""
    print(f"\n{name}: {sum(r.count for r in rows)} launches of {len(rows)} kernels, compiled in {seconds:.1f} s")
    print(f"{'kernel':52} {'runs':>4} {'regs':>4} {'spill':>5} {'shared':>7} {'GFLOP':>8} {'MB':>8} {'us':>8}  schedule")
    for r in rows:
        numbers = f"{r.operations / 1e9:8.3f} {r.bytes / 1e6:8.2f} {r.seconds * 1e6:8.2f}"
        print(f"{r.what[:52]:52} {r.count:4} {r.registers:4} {r.spilled:5} {r.shared:7} {numbers}  {r.schedule}")
    total = sum(r.count * r.seconds for r in rows)
    work, moved = sum(r.count * r.operations for r in rows), sum(r.count * r.bytes for r in rows)
    spilling = sum(1 for r in rows if r.spilled)
    print(f"total {work / 1e9:.1f} GFLOP, {moved / 1e6:.1f} MB, roofline {total * 1e6:.0f} us; kernels that spill: {spilling}")


def run(name: str, arch: str, dtype: torch.dtype, size: str) -> None:
    """Compile one model and print its table."""
    model = build(name, size)
    module = model.module.to(dtype)
    inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in model.inputs)
    start = time.perf_counter()
    compiled = compile_model(module, inputs, target=f"cuda:{arch}")
    seconds = time.perf_counter() - start
    rows = rows_of(compiled.program, arch, compiled.target.float32)
    print_table(f"{name} {str(dtype).removeprefix('torch.')} {arch}", rows, seconds)


def simulate(name: str, arch: str, dtype: torch.dtype) -> None:
    """Run a small configuration by Triton's interpreter; both errors are relative to the largest number of the result."""
    model = build(name, "tiny")

    def inputs(of: torch.dtype) -> tuple[torch.Tensor, ...]:
        return tuple(x.to(of) if x.is_floating_point() else x for x in model.inputs)

    module = model.module.to(dtype)
    with torch.no_grad():
        eager = module(*inputs(dtype))
        exact = module.double()(*(x.double() if x.is_floating_point() else x for x in inputs(dtype)))
    compiled = compile_model(module.to(dtype), inputs(dtype), target=f"cuda:{arch}")
    ours = compiled.simulate(*inputs(dtype))

    def error(results: Any) -> float:
        pairs = zip(*(r if isinstance(r, tuple | list) else (r,) for r in (results, exact)))
        return max(float((a.double() - b).abs().max() / b.abs().max()) for a, b in pairs)

    print(f"{name:12} {str(dtype).removeprefix('torch.'):8} eager {error(eager):.1e}  simulated {error(ours):.1e}", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--size", default="real")
    parser.add_argument("--simulate", action="store_true")
    given = parser.parse_args()
    for name in given.models or MODELS:
        if given.simulate:
            simulate(name, given.arch, getattr(torch, given.dtype))
        else:
            run(name, given.arch, getattr(torch, given.dtype), given.size)


if __name__ == "__main__":
    main()
