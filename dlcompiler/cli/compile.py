"""`dlcompiler compile`."""

from __future__ import annotations

from collections.abc import Sequence
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
@flags(output=True, targets=True)
def command(model: str, output: str | None, targets: Sequence[str], **parameters: Any) -> None:
    """Compile MODEL, print what was done, and with -o save it as a .dlc that `run` loads.

    For several targets, the .dlc is good for each of them. For a GPU it holds every kernel as Triton, PTX and cubin; that needs
    no GPU.
    """
    sessions = [Session.start({**parameters, "target": target}) for target in dict.fromkeys(targets) or (None,)]
    session = sessions[0]
    check_output(output, model)
    with session.progress() as progress:
        source = read_source(model, session, progress)
        compiled, *others = (build(source, each, progress) for each in sessions)
        if output:
            progress.say(f"writing {output}")
            compiled.save(output, *others)
    reports = [each.report() for each in (compiled, *others)]
    if session.as_json:
        more = {"others": [report.as_dict() for report in reports[1:]]} if others else {}
        print_json({"report": reports[0].as_dict(), **more, "output": output})
    else:
        click.echo("\n\n".join(map(str, reports)))
        click.echo(f"saved {output}" if output else "not saved: give -o FILE.dlc to keep it")
