"""Every kernel of real models assembled for several architectures, with no GPU: how many there are, and how many spill.

    python -m tests.bench.gpu_assemble [--models bert-base,gpt2] [--backward] [--arches sm_80,sm_90,sm_100] [--processes 2]

A model's graphs are captured once and planned for each architecture. Kernels are handed to as many processes as there are
cores; one that is equal to another of any model is assembled once, and Triton keeps on disk what it assembled, so that a run
that was stopped goes on. `small` kernels are pointwise kernels, reductions and bundles of them; `whole` ones are products,
attention and other routines. Besides models: `loss-bf16`, `loss-f32`, and layers `lstm-layers`, `gru-layers`, `rnn-layers`.
Seconds are those of all kernels of a row added up, as processes beside others took them. With `--spills` those that spill are
listed, with what they compute.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as functional
from dlcompiler.codegen.gpu.compile import aligned_buffers, assemble_kernel, unit_key
from dlcompiler.codegen.target import parse_target
from dlcompiler.ir.contraction import find_contraction
from dlcompiler.ir.errors import CompilerError
from dlcompiler.ir.program import Launch, Program, RoutineCall
from dlcompiler.passes.block.fuse import fuse
from dlcompiler.passes.dataflow.program import plan
from dlcompiler.passes.pipeline import optimize
from torch import nn

from dlcompiler.options import Options
from tests import zoo
from tests.bench.gpu_static import MODELS, TRAINED, Runs, run_module, zeros_like_outputs

DEEP = 20_000  # a kernel's values hang on each other; pickle follows them by recursion


class Loss(nn.Module):
    """Cross-entropy of a linear layer over a large vocabulary."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.head = nn.Linear(768, 50257, bias=False, dtype=dtype)

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(self.head(x), target)


class Recurrent(nn.Module):
    """A narrow and a wide layer, the first in both directions."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.narrow, self.wide = getattr(nn, kind)(64, 96, bidirectional=True), getattr(nn, kind)(192, 320)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.wide(self.narrow(x)[0])[0]


def _loss(dtype: torch.dtype, rows: int) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return Loss(dtype), (torch.zeros(rows, 768, dtype=dtype), torch.zeros(rows, dtype=torch.int64))


def _layers(kind: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return Recurrent(kind), (torch.zeros(32, 16, 64),)


# besides the models of `tests.zoo`: name -> module and inputs
MORE: dict[str, Callable[[], tuple[nn.Module, tuple[torch.Tensor, ...]]]] = {
    "loss-bf16": lambda: _loss(torch.bfloat16, 4096),
    "loss-f32": lambda: _loss(torch.float32, 1024),
    **{f"{kind.lower()}-layers": partial(_layers, kind) for kind in ("LSTM", "GRU", "RNN")},
}


def build(name: str, size: str) -> tuple[nn.Module, Sequence[Any]]:
    if name in MORE:
        return MORE[name]()
    model = zoo.build(name, size)
    return model.module, model.inputs


@dataclass(frozen=True)
class Assembled:
    """What is known of one kernel: registers and bytes of local memory of a thread, and seconds; or why there is none."""

    registers: int = 0
    local_bytes: int = 0
    seconds: float = 0.0
    failure: str = ""


@dataclass(frozen=True)
class Row:
    """The distinct kernels of one model for one architecture: key -> (whether it is a whole op, what it computes)."""

    name: str
    arch: str
    kernels: dict[str, tuple[bool, str]]


class Planned:
    """A torch.compile backend that plans each graph for several GPUs, and answers with zeros."""

    def __init__(self, arches: Sequence[str]) -> None:
        self.programs: dict[str, list[Program]] = {arch: [] for arch in arches}

    def __call__(self, module: torch.fx.GraphModule, inputs: Sequence[Any], **_: Any) -> Any:
        from dlcompiler.torch_backend import Backend

        def compile(graph: Any, target: Any, options: Any, timings: Any, key: Any) -> Any:
            options = Options.resolve({})
            for arch, programs in self.programs.items():
                chosen = parse_target(f"cuda:{arch}")
                programs.append(plan(fuse(optimize(graph, chosen, options), chosen, options), chosen, options))
            return Runs(programs[-1], lambda values: zeros_like_outputs(graph, values))

        return Backend(compile)(module, inputs)


def units_of(program: Program) -> Iterator[tuple[Any, frozenset[str]]]:
    """Every kernel of a program, and which of its buffers are aligned."""
    for step in (*program.preparation, *program.steps):
        if isinstance(step, Launch | RoutineCall):
            yield step if isinstance(step, RoutineCall) else step.kernel, aligned_buffers(step)


def assembled(unit: Any, aligned: frozenset[str], arch: str) -> Assembled:
    """Assemble one kernel as the compiler would, in whatever process this is."""
    start = time.perf_counter()
    try:
        found = assemble_kernel(unit, parse_target(f"cuda:{arch}"), aligned).resources
    except (CompilerError, RuntimeError) as error:
        return Assembled(failure=f"{type(error).__name__}: {error}".splitlines()[0], seconds=time.perf_counter() - start)
    return Assembled(found.registers, found.local_bytes, time.perf_counter() - start)


def _start() -> None:
    sys.setrecursionlimit(DEEP)
    torch.set_num_threads(1)


class Assembler:
    """Processes that assemble kernels, each distinct one once."""

    def __init__(self, processes: int) -> None:
        sys.setrecursionlimit(DEEP)
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(processes, context, _start)
        self.found: dict[str, Future[Assembled]] = {}

    def take(self, name: str, arch: str, programs: Sequence[Program]) -> Row:
        """Begin with the kernels of some programs."""
        target = parse_target(f"cuda:{arch}")
        kernels = {}
        for program in programs:
            for unit, aligned in units_of(program):
                key = unit_key(unit, target, aligned, "triton")
                is_whole = isinstance(unit, RoutineCall) or find_contraction(unit) is not None
                kernels[key] = is_whole, unit.op if isinstance(unit, RoutineCall) else "; ".join(unit.origin)
                if key not in self.found:
                    self.found[key] = self.pool.submit(assembled, unit, aligned, arch)
        return Row(name, arch, kernels)

    def line(self, row: Row) -> str:
        """A row of the table, once all of its kernels are there."""
        results = {key: self.found[key].result() for key in row.kernels}
        cells = [row.name, row.arch]
        for is_whole in (False, True):
            own = [results[key] for key, (whole, _) in row.kernels.items() if whole is is_whole]
            good = [r for r in own if not r.failure]
            most = max((r.registers for r in good), default=0)
            cells += [f"{len(good)} of {len(own)}", str(sum(bool(r.local_bytes) for r in good)), str(most)]
        return f"| {' | '.join([*cells, f'{sum(r.seconds for r in results.values()):.0f}'])} |"

    def faults(self, row: Row) -> Iterator[str]:
        """What spills or cannot be assembled, a line each."""
        for key, (_, what) in row.kernels.items():
            result = self.found[key].result()
            if result.failure or result.local_bytes:
                yield f"{row.name} {row.arch}: {result.failure or f'{result.local_bytes} bytes spilled'}: {what[:300]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="")
    parser.add_argument("--size", default="real", choices=["real", "tiny"])
    parser.add_argument("--backward", action="store_true")
    parser.add_argument("--arches", default="sm_80,sm_90,sm_100")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--spills", action="store_true")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch._dynamo.config.allow_rnn = True
    arches = chosen.arches.split(",")
    assembler = Assembler(chosen.processes)
    models = chosen.models.split(",") if chosen.models else TRAINED if chosen.backward else MODELS
    print("| graphs | for | small | spill | registers | whole | spill | registers | seconds |")
    print("| --- | --- |" + " ---: |" * 7, flush=True)
    for name in models:
        planned = Planned(arches)
        run_module(*build(name, chosen.size), planned, chosen.backward)
        label = f"{name}, forward and backward" if chosen.backward else name
        rows = [assembler.take(label, arch, planned.programs[arch]) for arch in arches]
        del planned
        for row in rows:
            print(assembler.line(row), flush=True)
            if chosen.spills:
                for text in assembler.faults(row):
                    print(text, file=sys.stderr, flush=True)
    assembler.pool.shutdown()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
