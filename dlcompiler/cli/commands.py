"""The list of commands, each imported when it is asked for, and the flags that several share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import click
from click.shell_completion import CompletionItem

from dlcompiler.version import __version__

COMMANDS = {
    "compile": "compile a model, print what was done, and save it as a .dlc",
    "run": "run a model on inputs from a file or made up",
    "inspect": "show a model: operators, graphs, kernels, code, memory; as text or a page",
    "verify": "compare results with the reference or ONNX Runtime; find what is wrong",
    "bench": "time a model, beside other systems",
    "opt": "run named passes on a graph: text to text",
    "cache": "what is kept between runs: show, clear, check",
    "doctor": "versions, targets, what is missing and how to get it, options",
    "completion": "print a script that completes commands and flags in a shell",
}

EXIT_CODES = """Exit codes: 0 ok, 1 internal error, 2 usage, 3 invalid model or input file, 4 unsupported op, dtype or size, 5
verify mismatch, 6 device or resource, 130 interrupted (nothing is half-written)."""


def manual(examples: str, codes: str = EXIT_CODES) -> str:
    """The end of a command's help: examples as they are typed, then the exit codes."""
    lines = "\n".join(f"  {line}" for line in examples.strip().splitlines())
    return f"\b\nExamples:\n{lines}\n\n{codes}"


class _Commands(click.Group):
    """A group whose commands are modules of `dlcompiler.cli` that define `command`."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        return import_module(f"dlcompiler.cli.{name}").command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(self, context: click.Context, arguments: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        import difflib

        name = arguments[0]
        if name not in COMMANDS and not name.startswith("-"):
            near = difflib.get_close_matches(name, COMMANDS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(COMMANDS)}"
            raise click.UsageError(f"no command {name!r}; {hint}", context)
        return super().resolve_command(context, arguments)


_START = """
dlcompiler inspect model.onnx --check            what is supported, and what runs it
dlcompiler compile model.onnx -o model.dlc       compile and keep
dlcompiler run model.dlc -i in.npz -o out.npz    run
dlcompiler verify model.onnx --bisect            is it right, and if not, why
dlcompiler COMMAND --help                        all about one command
"""


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, epilog=manual(_START)
)
@click.version_option(__version__, message="dlcompiler %(version)s")
def cli() -> None:
    """A deep-learning graph compiler: ONNX and PyTorch models to native code.

    MODEL is an .onnx file, a saved .dlc, a file of printed Graph text (with its constants in a .safetensors beside it), or
    FILE.py:NAME, a function without arguments that gives an nn.Module and a tuple of example inputs.

    Results go to stdout, all else to stderr; --json makes stdout one JSON document, also where something went wrong.
    """


# -- what a shell completes --------------------------------------------------------------------------------------------------


def complete_model(context: click.Context, parameter: click.Parameter, start: str) -> list[CompletionItem]:
    """Any file: models have several endings."""
    return [CompletionItem(start, type="file")]


def complete_targets(context: click.Context, parameter: click.Parameter, start: str) -> list[CompletionItem]:
    from dlcompiler.codegen.target import known_targets

    return [CompletionItem(name) for name in known_targets() if name.startswith(start)]


def complete_passes(context: click.Context, parameter: click.Parameter, start: str) -> list[CompletionItem]:
    """Names of passes; after a comma one more, for `opt`."""
    from dlcompiler.passes.pipeline import PASSES

    before, comma, last = start.rpartition(",")
    return [CompletionItem(before + comma + name) for name in PASSES if name.startswith(last)]


def complete_systems(context: click.Context, parameter: click.Parameter, start: str) -> list[CompletionItem]:
    from dlcompiler.cli.bench import SYSTEMS

    before, comma, last = start.rpartition(",")
    return [CompletionItem(before + comma + name) for name in SYSTEMS if name.startswith(last) and name not in before.split(",")]


def complete_stages(context: click.Context, parameter: click.Parameter, start: str) -> list[CompletionItem]:
    from dlcompiler.cli.inspect import stage_names

    return [CompletionItem(name) for name in stage_names() if name.startswith(start)]


Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

MODEL = click.argument("model", shell_complete=complete_model)
_OUTPUT = click.option("-o", "--output", type=click.Path(dir_okay=False), help="Write the result to this file.")
_TARGET = click.option(
    "--target",
    metavar="TARGET",
    shell_complete=complete_targets,
    help="cpu, cpu:x86-64-v3, cuda, cuda:sm_90 and the like.  [default: what a .dlc says, else cpu]",
)
_TARGETS = click.option(
    "--target", "targets", multiple=True, metavar="TARGET", shell_complete=complete_targets,
    help="cpu, cpu:x86-64-v3, cuda, cuda:sm_90 and the like. Repeatable.  [default: what a .dlc says, else cpu]",
)  # fmt: skip
_INPUT_SHAPE = click.option(
    "--input-shape", "input_shapes", multiple=True, metavar="NAME:SHAPE",
    help="Shape of an input: x:1x3x224x224, x:[1,3,224,224] or x=1,3,224,224. A letter is a size known when called. Repeatable.",
)  # fmt: skip
_LEVEL = click.option(
    "-O", "optimization_level", type=click.IntRange(0, 3), metavar="0..3",
    help="0: only what is needed to run; 1: cheap and bit for bit; 2: normal; 3: also what costs memory.  [default: 2]",
)  # fmt: skip
_COMPILE_FLAGS = (
    _TARGET,
    _INPUT_SHAPE,
    _LEVEL,
    click.option(
        "--disable-pass",
        "disabled_passes",
        multiple=True,
        metavar="NAME",
        shell_complete=complete_passes,
        help="Leave a pass out; `dlcompiler opt --list` lists them. Repeatable.",
    ),  # fmt: skip
    click.option("--fuel", type=click.IntRange(min=0), help="Apply only this many rewrites."),
    click.option("--numerics", type=click.Choice(["fast", "eager"]), help="eager: exact rewrites only.  [default: fast]"),
    click.option("--dump", "dump_dir", type=click.Path(file_okay=False), help="Write a folder of readable IR here."),
    click.option("--strict", is_flag=True, default=None, help="An op that would fall back is an error."),
    click.option(
        "--tune-budget",
        type=click.FloatRange(min=0),
        metavar="SECONDS",
        help="Try other schedules than the cost model's for so long; decisions are kept.  [default: 0]",
    ),
    click.option(
        "--fix-batch",
        is_flag=True,
        default=None,
        help="Rewrite shape constants of an .onnx that hold a size which the inputs leave open, where that is proved.",
    ),
    click.option(
        "--extension",
        "extensions",
        multiple=True,
        metavar="FILE.py|MODULE",
        help="Run this Python first: it defines operators or rewrites with dlcompiler.extend. Repeatable.",
    ),
    click.option("--no-cache", "disable_cache", is_flag=True, default=None, help="Compile every kernel anew, and keep none."),
)
_GENERAL_FLAGS = (
    click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout."),
    click.option("-v", "--verbose", count=True, help="Say more on stderr; twice: tracebacks."),
    click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors on stderr."),
)


def flags(*, compiles: bool = True, output: bool = False, targets: bool = False) -> Decorator:
    """The shared flags: the general ones, those of every command that compiles, and -o; with `targets`, several of these."""
    compiling = (_TARGETS, *_COMPILE_FLAGS[1:]) if targets else _COMPILE_FLAGS
    return _applied((*((_OUTPUT,) if output else ()), *(compiling if compiles else ()), *_GENERAL_FLAGS))


def _applied(options: Sequence[Decorator]) -> Decorator:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def input_flags(fill: str | None = None) -> Decorator:
    """-i, --fill and --seed; `fill` is what inputs that -i does not give are made of by default, None to ask for them."""
    chosen = (
        click.option("-i", "--input", "inputs", metavar="FILE", help="Inputs by name in an .npz; an .npy for a model with one."),
        click.option(
            "--fill", type=click.Choice(["zeros", "ones", "random"]), default=fill, show_default=fill is not None,
            help="Make up the inputs that -i does not give.",
        ),
        click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of --fill random."),
    )  # fmt: skip
    return _applied(chosen)
