"""`dlcompiler compile`."""

from __future__ import annotations

from typing import Any

import click

from dlcompiler.cli.commands import MODEL, flags, manual
from dlcompiler.cli.shared import Session, build, check_output, print_json, read_source

EXAMPLES = """
dlcompiler compile model.onnx -o model.dlc
dlcompiler compile model.onnx --input-shape x:Nx3x224x224    N is known when called
dlcompiler compile model.onnx --target cuda:sm_90            needs no GPU
dlcompiler compile net.py:build --dump dump --strict         a torch model, and all of its IR
"""


@click.command(name="compile", epilog=manual(EXAMPLES))
@MODEL
@flags(output=True)
def command(model: str, output: str | None, **parameters: Any) -> None:
    """Compile MODEL, print what was done, and with -o save it as a .dlc that `run` loads."""
    session = Session.start(parameters)
    check_output(output, model)
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
