"""`dlcompiler opt`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any

import click

from dlcompiler.cli.commands import complete_model, complete_passes, flags, manual
from dlcompiler.cli.shared import Session, check_output, print_json, read_source
from dlcompiler.ir.errors import InvalidModelError
from dlcompiler.ir.graph import Graph
from dlcompiler.options import Options

logger = logging.getLogger("dlcompiler")


# shared flags that say something of what follows the passes
OF_COMPILING = {"dump_dir": "dump", "strict": "strict", "tune_budget": "tune-budget", "disable_cache": "no-cache"}


def _list(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    from dlcompiler.passes.pipeline import PASSES

    for name in PASSES:
        click.echo(name)
    context.exit()


EXAMPLES = """
dlcompiler opt simplify,dead-code graph.txt
dlcompiler opt all graph.txt -o optimized.txt
dlcompiler inspect model.onnx --stage captured | dlcompiler opt simplify -
dlcompiler opt simplify graph.txt --fuel 3                   the first three rewrites only
"""


@click.command(name="opt", epilog=manual(EXAMPLES))
@click.argument("passes", shell_complete=complete_passes)
@click.argument("file", shell_complete=complete_model)
@click.option("--list", is_flag=True, is_eager=True, expose_value=False, callback=_list, help="List the passes, and exit.")
@flags(output=True)
def command(passes: str, file: str, output: str | None, **parameters: Any) -> None:
    """Run PASSES (names with commas between, or `all` for the pipeline) on the Graph text in FILE ('-' for stdin).

    FILE may also be an .onnx file or a .dlc, whose graph as captured is taken. Prints the resulting text. Large constants that
    lie in no .safetensors beside FILE are taken for zeros, with a warning; with -o they are written beside the output.
    """
    from dlcompiler.codegen.target import parse_target
    from dlcompiler.graph_file import graph_from_text, missing_constants, read_graph_file, write_graph_file
    from dlcompiler.ir.text import print_graph

    session = Session.start(parameters)
    idle = [f"--{name}" for key, name in OF_COMPILING.items() if parameters[key]]
    if idle:
        logger.warning("passes are run and nothing is compiled: %s changes nothing here", ", ".join(idle))
    check_output(output, file)
    if file == "-":
        graph = graph_from_text(sys.stdin.read(), None, "stdin", allow_missing=True)
    elif _is_text(file):
        graph = read_graph_file(file, allow_missing=True)
    else:
        with session.progress() as progress:
            graph = read_source(file, session, progress).graph
    missing = missing_constants(graph)
    if missing:
        logger.warning("no data for %d constants (%s): taken for zeros", len(missing), ", ".join(missing[:3]))
    names = None if passes == "all" else [name.strip() for name in passes.split(",") if name.strip()]
    before = len(graph.nodes)
    graph = run_named(graph, names, parse_target(session.target or "cpu"), session.options)
    if output:
        write_graph_file(output, graph)
    text = print_graph(graph, digests=False)
    if session.as_json:
        history = [str(event) for event in graph.history]
        print_json({"nodes_before": before, "nodes_after": len(graph.nodes), "history": history, "graph": text})
    elif not output:
        click.echo(text, nl=False)


def _is_text(path: str) -> bool:
    """Whether a file is Graph text, or means to be by its name. Raises InvalidModelError."""
    from dlcompiler.sources import TEXT_SUFFIXES, is_graph_text

    if path.endswith(TEXT_SUFFIXES):
        return True
    try:
        with open(path, "rb") as file:
            return is_graph_text(file.read(512))
    except OSError as error:
        raise InvalidModelError(f"cannot read {path}: {error.strerror or error}") from None


def run_named(graph: Graph, names: Sequence[str] | None, target: Any, options: Options) -> Graph:
    """The graph after the named passes, in the order given; after the whole pipeline for None. Raises OptionError."""
    from dlcompiler.passes.context import Context, Fuel
    from dlcompiler.passes.pipeline import PASSES, check_pass_names, optimize, run_pass

    if names is None:
        return optimize(graph, target, options)
    check_pass_names({name for name in names if name not in PASSES})
    context = Context(target, options, Fuel(options.fuel))
    for name in names:
        graph = run_pass(PASSES[name], graph, context)
    return graph
