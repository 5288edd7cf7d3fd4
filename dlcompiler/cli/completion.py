"""`dlcompiler completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from dlcompiler.cli.commands import cli, manual

PROGRAM, VARIABLE = "dlcompiler", "_DLCOMPILER_COMPLETE"

EXAMPLES = """
source <(dlcompiler completion bash)                          this shell; in ~/.bashrc: every shell
dlcompiler completion zsh > ~/.zfunc/_dlcompiler              a folder in $fpath, before compinit
dlcompiler completion fish > ~/.config/fish/completions/dlcompiler.fish
"""


@click.command(name="completion", epilog=manual(EXAMPLES))
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print a script for SHELL that completes commands, flags, passes, stages, targets and files."""
    kind = get_completion_class(shell)
    assert kind is not None
    made = kind(cli, {}, PROGRAM, VARIABLE)
    click.echo(made.source_template % made.source_vars())
