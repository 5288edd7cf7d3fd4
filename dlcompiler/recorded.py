"""One compilation with all that goes with it: the dump, the report, the check of the first call.

`compiler.compile_graph` is the straight line; this is what every way in (`dlcompiler.compile`, `torch.compile`, the command line)
calls, so that each graph compiled in this process has a report and, where asked for, a dump.
"""

from __future__ import annotations

import logging
import sys
from contextlib import nullcontext
from dataclasses import replace
from typing import TypeAlias

from dlcompiler.checked import CheckedExecutable
from dlcompiler.codegen.target import Target
from dlcompiler.compiler import compile_graph
from dlcompiler.dump import open_dump
from dlcompiler.garbage import collecting_later
from dlcompiler.ir.control import is_staged
from dlcompiler.ir.errors import UnsupportedError
from dlcompiler.ir.graph import Graph
from dlcompiler.observe import Observer, Observers
from dlcompiler.options import Options
from dlcompiler.report import Report, Timings, record, record_staged
from dlcompiler.runtime.executable import Executable
from dlcompiler.runtime.gpu import GpuExecutable
from dlcompiler.runtime.staged import StagedExecutable
from dlcompiler.staged import compile_stages, host_calls
from dlcompiler.tuner import Tuning

logger = logging.getLogger("dlcompiler")

GPU_COMPILE = "dlcompiler.codegen.gpu.compile"

AnyExecutable: TypeAlias = Executable | CheckedExecutable | GpuExecutable | StagedExecutable


class _Tuner(Observer):
    """Remembers what the tuner did, for the report."""

    done: Tuning | None = None

    def tuned(self, target: Target, tuning: Tuning | None) -> None:
        self.done = tuning


def compile_recorded(
    graph: Graph,
    target: Target,
    options: Options,
    *,
    timings: Timings | None = None,
    observe: Observer | None = None,
    code_key: str | None = None,
) -> tuple[AnyExecutable, Report]:
    """Compile a captured graph; the executable and the report, which `reports()` now lists too.

    timings   holds the seconds of what came before (capture, import); this compilation's stages are added
    code_key  names the user's code where it may be compiled again for other inputs; the report then says why it was
    Raises as `compile_graph`.
    """
    if options.strict:
        _refuse_aten_calls(graph)
    timings = timings or Timings()
    if is_staged(graph):
        return _compile_staged(graph, target, options, timings, observe)
    tuner = _Tuner()
    observers: list[Observer] = [tuner] if observe is None else [tuner, observe]
    dump = open_dump(options, graph.name, target)
    if dump is not None:
        observers.append(dump)
    observer = Observers(*observers)
    if options.disable_cache:
        forget_kernels()
    compiled_before, loaded_before = _kernels_compiled(), _kernels_loaded()
    with dump or nullcontext(), collecting_later():
        executable = compile_graph(graph, target, options, observer, timings)
        report = record(
            executable.program,
            graph,
            target,
            options,
            timings,
            kernels_compiled=_kernels_compiled() - compiled_before,
            kernels_loaded=_kernels_loaded() - loaded_before,
            code_key=code_key,
            dump=str(dump.path) if dump is not None else None,
            tuning=tuner.done,
        )
        observer.finish(report)
    logger.info("%s: %d kernels in %.2f s", graph.name, report.distinct, report.seconds["total"])
    for line in report.history:
        logger.debug("%s: %s", graph.name, line)
    if options.verify and isinstance(executable, Executable):
        return CheckedExecutable(executable, graph), report
    return executable, report


def _refuse_aten_calls(graph: Graph) -> None:
    """What `strict` asks for. Raises UnsupportedError listing every operator that would run in ATen, with the reason."""
    calls = [node for node in graph.nodes if node.op.name == "aten.call"]
    hosts = host_calls(graph)
    if hosts:
        names = tuple(dict.fromkeys(str(node.attributes["target"]) for node in hosts))
        raise UnsupportedError(
            f"{len(hosts)} calls of the host: {', '.join(names)}",
            items=names,
            location=hosts[0].location,
            hint="compile without strict",
        )
    if not calls:
        return
    why = {str(node.attributes["target"]): str(node.attributes.get("reason") or "no rule for it") for node in calls}
    raise UnsupportedError(
        f"{len(calls)} calls of ATen: {', '.join(f'{target} ({reason})' for target, reason in why.items())}",
        items=tuple(why),
        location=calls[0].location,
        hint="compile without strict",
    )


def _compile_staged(
    graph: Graph, target: Target, options: Options, timings: Timings, observe: Observer | None
) -> tuple[AnyExecutable, Report]:
    """A graph with barriers: its parts have reports of their own, and this one adds them up."""
    part_options = replace(options, strict=False)
    executable, parts = compile_stages(graph, lambda part: compile_recorded(part, target, part_options, observe=observe))
    return executable, record_staged(graph, target, options, timings, parts, host_calls(graph))


def _kernels_compiled() -> int:
    from dlcompiler.codegen.cpu.compile import compiled_count

    gpu = sys.modules.get(GPU_COMPILE)  # a process that compiles for CPUs only need not load it
    return compiled_count() + (gpu.assembled_count() if gpu is not None else 0)


def _kernels_loaded() -> int:
    from dlcompiler.codegen.cpu.compile import loaded_count

    return loaded_count()


def forget_kernels() -> None:
    """Drop the kernels that this process has compiled, but for those that live programs hold."""
    from dlcompiler.codegen.cpu import compile as cpu

    cpu.forget()
    gpu = sys.modules.get(GPU_COMPILE)
    if gpu is not None:
        gpu.forget()
