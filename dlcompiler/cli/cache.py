"""`dlcompiler cache`."""

from __future__ import annotations

from typing import Any

import click

from dlcompiler.cli.commands import flags
from dlcompiler.cli.shared import Session, print_json

NOTHING_KEPT = "nothing is kept on disk yet: kernels are reused within one process, and each new process compiles its own"


@click.group(name="cache")
def command() -> None:
    """What is kept between runs: show, clear or check it.

    This version keeps nothing on disk yet; the commands say so and succeed.
    """


def _say(parameters: dict[str, Any], action: str) -> None:
    session = Session.start(parameters)
    if session.as_json:
        print_json({"action": action, "folder": session.options.cache_dir, "on_disk": False, "entries": 0, "bytes": 0})
    else:
        click.echo(f"folder   {session.options.cache_dir} (from {session.options.sources['cache_dir']})")
        click.echo(f"entries  0; {NOTHING_KEPT}")


@command.command()
@flags(compiles=False)
def info(**parameters: Any) -> None:
    """Show the folder and what is in it."""
    _say(parameters, "info")


@command.command()
@flags(compiles=False)
def clear(**parameters: Any) -> None:
    """Remove what is kept."""
    _say(parameters, "clear")


@command.command()
@flags(compiles=False)
def verify(**parameters: Any) -> None:
    """Check every entry."""
    _say(parameters, "verify")
