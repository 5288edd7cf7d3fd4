"""`dlcompiler run`."""

from __future__ import annotations

import time
from typing import Any

import click
import numpy as np

from dlcompiler.cli.commands import MODEL, flags, input_flags, manual
from dlcompiler.cli.shared import (
    Session,
    check_output,
    make_inputs,
    open_model,
    print_json,
    read_inputs,
    table,
    write_arrays,
)
from dlcompiler.compare import arrays_in
from dlcompiler.names import names_of_inputs

EXAMPLES = """
dlcompiler run model.onnx -i in.npz -o out.npz
dlcompiler run model.onnx --fill random --seed 1 --input-shape x:1x3x224x224
dlcompiler run gpu.dlc --fill ones --simulate                a GPU program without a GPU
"""


@click.command(name="run", epilog=manual(EXAMPLES))
@MODEL
@input_flags()
@click.option("--repeat", type=click.IntRange(min=1), default=1, show_default=True, help="Calls; the last one's time is shown.")
@click.option("--simulate", is_flag=True, help="Run a GPU program through Triton's interpreter on the CPU.")
@flags(output=True)
def command(
    model: str,
    output: str | None,
    inputs: str | None,
    fill: str | None,
    seed: int,
    repeat: int,
    simulate: bool,
    **parameters: Any,
) -> None:
    """Run MODEL (an .onnx, a .dlc, Graph text or FILE.py:NAME) and show its outputs; with -o write them to an .npz by name."""
    session = Session.start(parameters)
    check_output(output, model)
    with session.progress() as progress:
        graph, make = open_model(model, session, progress)
        given = read_inputs(inputs, names_of_inputs(graph)) if inputs else {}
        values = make_inputs(graph, given, session, fill, seed)
        compiled = make(values)
        call = compiled.simulate if simulate else compiled
        progress.say("running")
        for _ in range(repeat):
            start = time.perf_counter()
            result = call(*values)
            seconds = time.perf_counter() - start
    outputs = dict(arrays_in(compiled.output_names, result if isinstance(result, tuple) else (result,)))
    if output:
        write_arrays(output, outputs)
    rows = [_described(name, array) for name, array in outputs.items()]
    if session.as_json:
        print_json({"outputs": rows, "seconds": seconds, "output": output})
        return
    header = ("output", "dtype", "shape", "min", "max", "mean")
    click.echo(table([header, *([row[k] for k in header_keys()] for row in rows)], left=3))
    click.echo(f"{seconds * 1e3:.3f} ms" + (f"; saved {output}" if output else ""))


def header_keys() -> tuple[str, ...]:
    """Keys of a described output, in the order of the table's columns."""
    return ("name", "dtype", "shape", "min", "max", "mean")


def _described(name: str, array: np.ndarray) -> dict[str, Any]:
    """An output's type and range; a number that JSON cannot hold stands as text."""
    facts: dict[str, Any] = {
        "name": name,
        "dtype": "text" if array.dtype == object else array.dtype.name,
        "shape": list(array.shape),
    }
    if array.size and array.dtype.kind not in "OSUc":
        wide = array.astype(np.float64)
        with np.errstate(all="ignore"):
            numbers = {"min": wide.min(), "max": wide.max(), "mean": wide.mean()}
    else:
        numbers = dict.fromkeys(("min", "max", "mean"))
    for key, number in numbers.items():
        facts[key] = None if number is None else float(f"{number:.6g}") if np.isfinite(number) else str(number)
    return facts
