"""The straight line from a captured graph to something that runs."""

from __future__ import annotations

from dlcompiler.codegen import emit
from dlcompiler.codegen.target import Target
from dlcompiler.ir.graph import Graph
from dlcompiler.observe import Observer
from dlcompiler.options import Options
from dlcompiler.passes.block.fuse import Trials, fuse
from dlcompiler.passes.dataflow.memory import place
from dlcompiler.passes.dataflow.program import plan
from dlcompiler.passes.pipeline import optimize
from dlcompiler.report import Timings
from dlcompiler.runtime.executable import Executable
from dlcompiler.runtime.gpu import GpuExecutable
from dlcompiler.tuner import tune


def compile_graph(
    graph: Graph, target: Target, options: Options, observer: Observer | None = None, timings: Timings | None = None
) -> Executable | GpuExecutable:
    """Compile a captured graph. `observer` is told of every stage, `timings` how long each took.

    Raises UnsupportedError for what the target cannot do, and VerifyError where a stage broke the IR's rules: a bug of ours.
    """
    observer, timings = observer or Observer(), timings or Timings()
    observer.graph("captured", graph)
    with timings.stage("optimize"):
        trials = Trials()
        graph = optimize(graph, target, options, observe=observer.graph, trials=trials)
    with timings.stage("fuse"):
        fusion = fuse(graph, target, options, trials)
    observer.fusion(fusion)
    if options.tune_budget:
        with timings.stage("tune"):
            target, tuning = tune(fusion, target, options, observer.tuning)
            # what is left to a library after all is grouped otherwise
            fusion = fuse(graph, target, options)
            trials = Trials()
        observer.tuned(target, tuning)
    with timings.stage("plan"):
        program = plan(fusion, target, options, trials)
    observer.program(program)
    with timings.stage("emit"):
        program = emit(program, target, options)
    observer.code(program)
    return Executable(program, place) if target.kind == "cpu" else GpuExecutable(program, place, graphs=options.cuda_graphs)
