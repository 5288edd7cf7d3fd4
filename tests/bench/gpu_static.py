"""GPU programs counted without a GPU, beside Inductor's for the same graphs: kernels, library calls, bytes moved, spills.

    python -m tests.bench.gpu_static [--models bert-base,gpt2] [--backward] [--assemble sm_80,sm_90,sm_100]

Inductor plans as for Triton (`cpu_backend="triton"`); its scheduler's nodes are counted instead of being compiled. A step is a
kernel or a call of a library. Inductor's own count of bytes takes the whole table for a read at an index that data gives.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from dlcompiler.codegen.gpu.compile import emit_program
from dlcompiler.codegen.gpu.evidence import program_evidence
from dlcompiler.codegen.target import parse_target
from dlcompiler.ir.contraction import find_contraction
from dlcompiler.ir.program import Launch, Program
from dlcompiler.passes.block.fuse import fuse
from dlcompiler.passes.dataflow.program import plan
from dlcompiler.passes.pipeline import optimize

from dlcompiler.options import Options
from tests import zoo

MODELS = ("bert-base", "gpt2", "llama-small", "vit-b16", "resnet50", "mobilenet-v2", "t5-small", "convnext-t", "lstm")
TRAINED = ("bert-base", "gpt2", "llama-small", "vit-b16")
TARGET = "cuda:sm_90"


@dataclass
class Count:
    """One graph as planned: steps in all; how many of them are products, convolutions, attention or another op run whole, by a
    kernel of the compiler's own or a library; bytes that all of them move."""

    steps: int
    whole: int
    bytes: int


def count_ours(program: Program) -> Count:
    whole = [s for s in program.steps if not isinstance(s, Launch) or find_contraction(s.kernel) is not None]
    return Count(len(program.steps), len(whole), sum(row.bytes for row in program_evidence(program)))


class Ours:
    """A torch.compile backend that plans each graph for a GPU, and runs it in eager mode."""

    def __init__(self) -> None:
        self.programs: list[Program] = []

    def __call__(self, module: torch.fx.GraphModule, inputs: Sequence[Any], **_: Any) -> Any:
        from dlcompiler.torch_backend import Backend

        def compile(graph: Any, target: Any, options: Any, timings: Any, key: Any) -> Any:
            chosen, options = parse_target(TARGET), Options.resolve({})
            self.programs.append(plan(fuse(optimize(graph, chosen, options), chosen, options), chosen, options))
            return lambda values: [_zeros(node.type, graph, values) for node in graph.outputs]

        return Backend(compile)(module, inputs)


def _zeros(type: Any, graph: Any, values: Sequence[Any]) -> torch.Tensor:
    from dlcompiler.ir.expression import evaluate
    from dlcompiler.runtime.tensors import torch_dtype

    bindings = graph.bind([v if isinstance(v, int) else tuple(v.shape) for v in values])
    return torch.zeros([evaluate(d, bindings) for d in type.shape], dtype=torch_dtype(type.dtype))


class _Counted(Exception):
    """Inductor has planned a graph, and is to go no further."""


class Inductor:
    """Inductor as a backend that stops after its scheduler has fused, and runs each graph in eager mode."""

    def __init__(self) -> None:
        self.counts: list[Count] = []

    def __call__(self, module: torch.fx.GraphModule, inputs: Sequence[Any], **_: Any) -> Any:
        from functorch.compile import make_boxed_func
        from torch._inductor import config
        from torch._inductor.compile_fx import compile_fx, compile_fx_inner
        from torch._inductor.exc import InductorError
        from torch._inductor.graph import GraphLowering

        def codegen(graph: Any) -> Any:
            graph.init_wrapper_code()
            graph._update_scheduler()
            self.counts.append(count_inductor(graph.scheduler))
            raise _Counted

        def inner(part: torch.fx.GraphModule, given: Sequence[Any], **keywords: Any) -> Any:
            kept, before = copy.deepcopy(part), len(self.counts)
            original, GraphLowering.codegen = GraphLowering.codegen, codegen
            try:
                compile_fx_inner(part, given, **keywords)
            except (InductorError, _Counted):  # Inductor wraps what its own stages raise
                if len(self.counts) == before:
                    raise
            finally:
                GraphLowering.codegen = original
            return make_boxed_func(kept.forward)

        with config.patch(cpu_backend="triton", fx_graph_cache=False, force_disable_caches=True):
            return compile_fx(module, inputs, inner_compile=inner)


def count_inductor(scheduler: Any) -> Count:
    from torch._inductor.scheduler import ExternKernelSchedulerNode, NopKernelSchedulerNode

    nodes = [n for n in scheduler.nodes if not isinstance(n, NopKernelSchedulerNode) and not _is_view(n)]
    whole = [n for n in nodes if isinstance(n, ExternKernelSchedulerNode)]
    return Count(len(nodes), len(whole), sum(n.get_read_write_buffers_sizes() for n in nodes))


def _is_view(node: Any) -> bool:
    """Whether a step only takes one of several results, and runs nothing."""
    from torch._inductor.ir import MultiOutput

    return isinstance(node.node, MultiOutput)


def run(name: str, backend: Any, size: str, backward: bool) -> None:
    """Compile a model of the zoo through a backend, forward alone or both."""
    torch._dynamo.reset()
    model = zoo.build(name, size)
    if not backward:
        with torch.no_grad():
            torch.compile(model.module, backend=backend, dynamic=False)(*model.inputs)
        return
    module = model.module.train(False)
    module.requires_grad_(True)
    result = torch.compile(module, backend=backend, dynamic=False)(*model.inputs)
    results = result if isinstance(result, tuple | list) else (result,)
    sum(r.float().sum() for r in results if r.dtype.is_floating_point and r.requires_grad).backward()


def assembled(programs: Sequence[Program], arch: str) -> str:
    """How many distinct kernels there are for an architecture, how many spill, registers at most, and the seconds it took."""
    start = time.perf_counter()
    rows = [r for p in programs for r in program_evidence(emit_program(p, parse_target(f"cuda:{arch}"))) if r.kind == "kernel"]
    seconds = time.perf_counter() - start
    spilled = sum(bool(r.spilled_bytes) for r in rows)
    registers = max((r.registers for r in rows), default=0)
    return f"{arch}: {len(rows)} kernels, {spilled} spill, at most {registers} registers, {seconds:.0f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--size", default="real", choices=["real", "tiny"])
    parser.add_argument("--backward", action="store_true")
    parser.add_argument("--assemble", default="")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    print("| model | steps | Inductor | of them whole | Inductor | MiB moved | Inductor |")
    print("|" + " --- |" * 7)
    for name in chosen.models.split(","):
        ours, theirs = Ours(), Inductor()
        if name == "lstm":
            torch._dynamo.config.allow_rnn = True
        run(name, ours, chosen.size, chosen.backward)
        run(name, theirs, chosen.size, chosen.backward)
        counts = [count_ours(p) for p in ours.programs]
        for k, (a, b) in enumerate(zip(counts, theirs.counts)):
            part = ("", "") if len(counts) == 1 else (" forward", " backward")
            print(
                f"| {name}{part[min(k, 1)]} | {a.steps} | {b.steps} | {a.whole} | {b.whole} "
                f"| {a.bytes / 2**20:.1f} | {b.bytes / 2**20:.1f} |",
                flush=True,
            )
        if len(counts) != len(theirs.counts):
            print(f"{name}: {len(counts)} graphs here, {len(theirs.counts)} in Inductor", file=sys.stderr)
        for arch in filter(None, chosen.assemble.split(",")):
            print(f"    {name} {assembled(ours.programs, arch)}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
