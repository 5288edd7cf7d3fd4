"""GPU programs counted without a GPU, beside Inductor's for the same graphs: kernels, library calls, bytes moved, spills.

    python -m tests.bench.gpu_static [--models bert-base,gpt2] [--backward]
    python -m tests.bench.gpu_static --assemble sm_80,sm_90,sm_100 [--backward] [--seconds 300]
    python -m tests.bench.gpu_static --simulate --size tiny [--backward]
    python -m tests.bench.gpu_static --optimizer AdamW --models bert-base

With `--assemble` each distinct kernel is made for each architecture, pointwise kernels and reductions before products, until
`--seconds` a model and architecture have passed; what is left out is counted. With `--simulate` every kernel runs from its text
in Triton's interpreter, and results (with `--backward` gradients) are compared with eager's. With `--optimizer` an optimizer's
step over the model's parameters is counted.

Inductor plans as for Triton (`cpu_backend="triton"`); its scheduler's nodes are counted instead of being compiled. A step is a
kernel or a call of a library. Inductor's own count of bytes takes the whole table for a read at an index that data gives.
With `--backward` what ours prepares of weights (their order for products) is in its forward graph, since an optimizer changes
them; and both backward graphs are given what is saved as their own forward graphs leave it.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from dlcompiler.codegen.gpu.bundle import bundle_writers
from dlcompiler.codegen.gpu.compile import aligned_buffers, assemble_kernel, unit_key
from dlcompiler.codegen.gpu.contraction import product_writers
from dlcompiler.codegen.gpu.device import device_of
from dlcompiler.codegen.gpu.evidence import program_evidence
from dlcompiler.codegen.gpu.routines import routine_writers
from dlcompiler.codegen.gpu.simulate import run_interpreted
from dlcompiler.codegen.gpu.triton_writer import TritonKernel, write_triton
from dlcompiler.codegen.target import parse_target
from dlcompiler.ir.contraction import find_contraction
from dlcompiler.ir.interpret import interpret_program
from dlcompiler.ir.kernel import Bundle
from dlcompiler.ir.program import Launch, Program, RoutineCall
from dlcompiler.passes.block.fuse import fuse
from dlcompiler.passes.dataflow.program import plan
from dlcompiler.passes.pipeline import optimize
from dlcompiler.runtime.aten import prepare_aten

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


def count_ours(program: Program, trains: bool = False) -> Count:
    """`trains`: weights are others in each call, so that what is prepared of them is made in each, too."""
    if trains:
        program = program.replace(steps=(*program.preparation, *program.steps), preparation=())
    whole = [s for s in program.steps if not isinstance(s, Launch) or find_contraction(s.kernel) is not None]
    return Count(len(program.steps), len(whole), sum(row.bytes for row in program_evidence(program)))


@dataclass(frozen=True)
class Runs:
    """What stands for an executable: the program says how saved results lie, the function runs."""

    program: Program
    function: Callable[[Sequence[Any]], list[torch.Tensor]]

    def __call__(self, values: Sequence[Any]) -> list[torch.Tensor]:
        return self.function(values)


class Ours:
    """A torch.compile backend that plans each graph for a GPU, and runs it in eager mode."""

    def __init__(self, target: str = TARGET) -> None:
        self.target = target
        self.programs: list[Program] = []

    def __call__(self, module: torch.fx.GraphModule, inputs: Sequence[Any], **_: Any) -> Any:
        from dlcompiler.torch_backend import Backend

        def compile(graph: Any, target: Any, options: Any, timings: Any, key: Any) -> Any:
            chosen, options = parse_target(self.target), Options.resolve({})
            self.programs.append(plan(fuse(optimize(graph, chosen, options), chosen, options), chosen, options))
            return Runs(self.programs[-1], lambda values: zeros_like_outputs(graph, values))

        return Backend(compile)(module, inputs)


def zeros_like_outputs(graph: Any, values: Sequence[Any]) -> list[torch.Tensor]:
    """What stands for a graph's results where nothing is computed."""
    from dlcompiler.ir.expression import evaluate
    from dlcompiler.runtime.tensors import torch_dtype

    bindings = graph.bind([v if isinstance(v, int) else tuple(v.shape) for v in values])
    types = [node.type for node in graph.outputs]
    return [torch.zeros([evaluate(d, bindings) for d in t.shape], dtype=torch_dtype(t.dtype)) for t in types]


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
            _report_strides(graph.graph_outputs)
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


def _report_strides(results: Sequence[Any]) -> None:
    """Tell AOTAutograd how a graph's results lie, as Inductor does once it is done: the backward graph begins with them."""
    context = torch._guards.TracingContext.try_get()
    if context is not None and context.output_strides is not None and not context.output_strides:
        layouts = (r.get_layout() if r.has_tensor_output() else None for r in results)
        context.output_strides.extend(None if layout is None else tuple(map(int, layout.stride)) for layout in layouts)


def count_inductor(scheduler: Any) -> Count:
    from torch._inductor.scheduler import ExternKernelSchedulerNode, NopKernelSchedulerNode

    nodes = [n for n in scheduler.nodes if not isinstance(n, NopKernelSchedulerNode) and not _is_view(n)]
    whole = [n for n in nodes if isinstance(n, ExternKernelSchedulerNode)]
    return Count(sum(map(_launches, nodes)), len(whole), sum(n.get_read_write_buffers_sizes() for n in nodes))


def _launches(node: Any) -> int:
    """1, but for a group over lists of tensors, whose kernels take so many arguments at the most (`ComboKernel`)."""
    from torch._inductor import config
    from torch._inductor.scheduler import ForeachKernelSchedulerNode

    if not isinstance(node, ForeachKernelSchedulerNode):
        return 1
    launches, arguments = 1, 0
    for part in node.snodes:
        own = len(part.read_writes.reads) + len(part.read_writes.writes)
        if arguments and arguments + own > config.combo_kernel_max_num_args:
            launches, arguments = launches + 1, 0
        arguments += own
    return launches


def _is_view(node: Any) -> bool:
    """Whether a step only takes one of several results, and runs nothing."""
    from torch._inductor.ir import MultiOutput

    return isinstance(node.node, MultiOutput)


def run(name: str, backend: Any, size: str, backward: bool) -> None:
    """Compile a model of the zoo through a backend, forward alone or both."""
    model = zoo.build(name, size)
    run_module(model.module, model.inputs, backend, backward)


def run_module(module: torch.nn.Module, inputs: Sequence[Any], backend: Any, backward: bool) -> None:
    """Compile a module through a backend, forward alone or both."""
    torch._dynamo.reset()
    module = module.train(False)
    if not backward:
        with torch.no_grad():
            torch.compile(module, backend=backend, dynamic=False)(*inputs)
        return
    module.requires_grad_(True)
    result = torch.compile(module, backend=backend, dynamic=False)(*inputs)
    results = result if isinstance(result, tuple | list) else (result,)
    sum(r.float().sum() for r in results if r.dtype.is_floating_point and r.requires_grad).backward()


def assembled(programs: Sequence[Program], arch: str, seconds: float) -> str:
    """How many distinct kernels there are for an architecture, how many spill, registers at most, and the seconds it took."""
    start, target = time.perf_counter(), parse_target(f"cuda:{arch}")
    units: dict[str, tuple[Any, frozenset[str]]] = {}
    for program in programs:
        for step in (*program.preparation, *program.steps):
            if isinstance(step, Launch | RoutineCall):
                unit = step if isinstance(step, RoutineCall) else step.kernel
                aligned = aligned_buffers(step)
                units.setdefault(unit_key(unit, target, aligned, "triton"), (unit, aligned))
    whole = {k for k, (u, _) in units.items() if isinstance(u, RoutineCall) or find_contraction(u) is not None}
    found: dict[str, Any] = {}
    for key in sorted(units, key=lambda k: k in whole):
        if time.perf_counter() - start > seconds:
            break
        unit, aligned = units[key]
        found[key] = assemble_kernel(unit, target, aligned).resources
    texts = []
    for what, keys in (("pointwise and reductions", units.keys() - whole), ("products, attention, routines", whole)):
        rows = [found[k] for k in keys if k in found]
        most, spills = max((r.registers for r in rows), default=0), sum(bool(r.local_bytes) for r in rows)
        texts.append(f"{what} {len(rows)} of {len(keys)}, {spills} spill, at most {most} registers")
    return f"{arch}: {'; '.join(texts)}; {time.perf_counter() - start:.0f} s"


class Simulated:
    """A torch.compile backend that runs each graph from the Triton texts of its kernels, in Triton's interpreter."""

    def __init__(self) -> None:
        self.programs: list[Program] = []

    def __call__(self, module: torch.fx.GraphModule, inputs: Sequence[Any], **_: Any) -> Any:
        from dlcompiler.torch_backend import Backend

        def compile(graph: Any, target: Any, options: Any, timings: Any, key: Any) -> Any:
            chosen, options = parse_target(TARGET), Options.resolve({})
            program = plan(fuse(optimize(graph, chosen, options), chosen, options), chosen, options)
            self.programs.append(program)
            return Runs(program, lambda values: _simulated(program, values))

        return Backend(compile)(module, inputs)


def _simulated(program: Program, values: Sequence[Any]) -> list[torch.Tensor]:
    """The outputs of a program: kernels by the first of their schedules, ATen calls by ATen."""
    device = device_of("sm_90")
    arrays = [v if isinstance(v, int) else v.detach().numpy() for v in values]

    def launch(number: int, given: Any, sizes: Any) -> None:
        step = program.steps[number]
        assert isinstance(step, Launch | RoutineCall)
        kernel = first_written(step, device)
        run_interpreted(kernel, dict(zip((b.name for b in kernel.kernel.buffers), given.values())), sizes)

    def call(name: str, arguments: Any, operands: Any) -> Any:
        return run_aten(name, arguments, [torch.from_numpy(np.ascontiguousarray(o)) for o in operands])

    found = interpret_program(program, arrays, launch=launch, call=call)[: len(program.outputs)]
    return [torch.from_numpy(np.ascontiguousarray(a)).reshape(a.shape) for a in found]


def first_written(step: Launch | RoutineCall, device: Any) -> TritonKernel:
    """A step's text by the first of its schedules, which nothing assembles."""
    if isinstance(step, RoutineCall):
        return next(routine_writers(step, device, "ieee", frozenset()))
    if isinstance(step.kernel, Bundle):
        return next(bundle_writers(step.kernel, device, frozenset()))
    products = product_writers(step.kernel, device, "ieee", frozenset())
    return next(products) if products is not None else write_triton(step.kernel)


def run_aten(name: str, arguments: Any, operands: list[torch.Tensor]) -> Any:
    results = prepare_aten(name, arguments, range(len(operands)), {})(operands)
    several = isinstance(results, tuple | list)
    return [r.detach().numpy() if isinstance(r, torch.Tensor) else r for r in results] if several else results.detach().numpy()


def simulated_error(name: str, size: str, backward: bool, backend: Any) -> float:
    """The largest difference of results (or gradients) from eager's, as a part of the largest value of each."""
    torch._dynamo.reset()
    model = zoo.build(name, size)
    module = model.module.train(False)
    module.requires_grad_(backward)

    def results(function: Any) -> list[torch.Tensor]:
        module.zero_grad()
        with torch.set_grad_enabled(backward):
            given = function(*model.inputs)
        given = given if isinstance(given, tuple | list) else (given,)
        if backward:
            # squares, so that no gradient is a sum of the same numbers whatever the model computes
            sum((r.float() ** 2).mean() for r in given if r.dtype.is_floating_point and r.requires_grad).backward()
        return [*given, *(p.grad for p in module.parameters() if p.grad is not None)]

    want = [r.detach().clone() for r in results(module)]
    got = results(torch.compile(module, backend=backend, dynamic=False))
    assert len(got) == len(want)
    # a gradient that is rounding alone (that of a key's bias, which shifts all scores of a row alike) says nothing
    least = 1e-6 * max(float(b.abs().max()) for b in want if b.numel())
    pairs = [(a, b) for a, b in zip(got, want) if b.numel() and float(b.abs().max()) > least]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def count_optimizer(name: str, optimizer: str, size: str) -> str:
    """Launches of an optimizer's step over all parameters of a model, and the bytes that it moves."""
    torch._dynamo.reset()
    parameters = list(zoo.build(name, size).module.requires_grad_(True).parameters())
    for p in parameters:
        p.grad = torch.zeros_like(p)
    rate = {} if optimizer == "SGD" else {"lr": torch.tensor(1e-3)}
    step = getattr(torch.optim, optimizer)(parameters, **({"momentum": 0.9, "lr": 1e-3} if optimizer == "SGD" else rate)).step
    ours = Ours()
    for _ in range(2):  # state is made in the first step
        torch.compile(lambda: step(), backend=ours, dynamic=False)()
    count = count_ours(ours.programs[-1])
    return f"{optimizer}, {name}: {len(parameters)} parameters, {count.steps} launches, {count.bytes / 2**20:.1f} MiB moved"


def prove(name: str, chosen: argparse.Namespace) -> None:
    """Print what was asked for of one model, besides counts."""
    if name == "lstm":
        torch._dynamo.config.allow_rnn = True
    way = f"{name}{' forward and backward' if chosen.backward else ''}"
    if chosen.optimizer:
        print(count_optimizer(name, chosen.optimizer, chosen.size), flush=True)
    if chosen.simulate:
        start, backend = time.perf_counter(), Simulated()
        error = simulated_error(name, chosen.size, chosen.backward, backend)
        steps = sum(len(p.steps) for p in backend.programs)
        print(f"{way}: simulated, {steps} steps, error {error:.1e}, {time.perf_counter() - start:.0f} s", flush=True)
    for arch in filter(None, chosen.assemble.split(",")):
        ours = Ours(f"cuda:{arch}")
        run(name, ours, chosen.size, chosen.backward)
        print(f"{way}, {assembled(ours.programs, arch, chosen.seconds)}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--size", default="real", choices=["real", "tiny"])
    parser.add_argument("--backward", action="store_true")
    parser.add_argument("--assemble", default="")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--optimizer", default="")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    if chosen.assemble or chosen.simulate or chosen.optimizer:
        for name in chosen.models.split(","):
            prove(name, chosen)
        return 0
    print("| model | steps | Inductor | of them whole | Inductor | MiB moved | Inductor |")
    print("|" + " --- |" * 7)
    for name in chosen.models.split(","):
        ours, theirs = Ours(), Inductor()
        if name == "lstm":
            torch._dynamo.config.allow_rnn = True
        run(name, ours, chosen.size, chosen.backward)
        run(name, theirs, chosen.size, chosen.backward)
        counts = [count_ours(p, chosen.backward) for p in ours.programs]
        for k, (a, b) in enumerate(zip(counts, theirs.counts)):
            part = ("", "") if len(counts) == 1 else (" forward", " backward")
            print(
                f"| {name}{part[min(k, 1)]} | {a.steps} | {b.steps} | {a.whole} | {b.whole} "
                f"| {a.bytes / 2**20:.1f} | {b.bytes / 2**20:.1f} |",
                flush=True,
            )
        if len(counts) != len(theirs.counts):
            print(f"{name}: {len(counts)} graphs here, {len(theirs.counts)} in Inductor", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
