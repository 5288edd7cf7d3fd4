"""`dlcompiler compile`."""

from __future__ import annotations

from typing import Any

import click

from dlcompiler.cli.commands import flags
from dlcompiler.cli.shared import Session, build, check_output, print_json, read_source


@click.command(name="compile")
@click.argument("model")
@flags(output=True)
def command(model: str, output: str | None, **parameters: Any) -> None:
    """Compile MODEL, print what was done, and with -o save it as a .dlc that `run` loads."""
    session = Session.start(parameters)
    check_output(output)
    with session.progress() as progress:
        compiled = build(read_source(model, session, progress), session, progress)
        if output:
            progress.say(f"writing {output}")
            compiled.save(output)
    if session.as_json:
        print_json({"report": compiled.report().as_dict(), "output": output})
    else:
        click.echo(str(compiled.report()))
        click.echo(f"saved {output}" if output else "not saved: give -o FILE.dlc to keep it")
