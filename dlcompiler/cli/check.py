"""`dlcompiler inspect --check`: which operators of a model are supported, all at once."""

from __future__ import annotations

from typing import Any

import click

from dlcompiler import support
from dlcompiler.cli.progress import Progress
from dlcompiler.cli.shared import Session, build, print_json, read_source, table
from dlcompiler.ir.errors import UnsupportedError

UNSUPPORTED = 4
LONGEST = 60  # characters of a name in the table


def check(model: str, session: Session, progress: Progress) -> int:
    """Print the table; 4 if something is not supported, else 0. Raises what reading an invalid model does."""
    inventory: list[Any] = []
    source = None
    error: UnsupportedError | None = None
    program = None
    try:
        source = read_source(model, session, progress, inventory)
        program = build(source, session, progress).program
    except UnsupportedError as problem:
        error = problem
    if inventory:
        rows = support.of_onnx(inventory, source.graph if source else None, program)
    elif source is not None:
        rows = support.of_graph(source.graph, program, error.items if error is not None else ())
    else:
        assert error is not None
        raise error
    # an element type of the interface, or what the target lacks, belongs to no operator of the table
    listed = any(not row.supported for row in rows)
    others = list(error.items) if error is not None and not listed else []
    if session.as_json:
        print_json(
            {
                "supported": error is None,
                "nodes": sum(row.count for row in rows),
                "runs_as": support.totals(rows),
                "operators": [row.as_dict() for row in rows],
                "other_problems": others,
            }
        )
    else:
        _print(rows, others, error)
    return OK if error is None else UNSUPPORTED


OK = 0


def _print(rows: list[support.Row], others: list[str], error: UnsupportedError | None) -> None:
    header = ("op", "domain", "inputs", "runs as", "first node", "opset", "count")
    cells = [
        (
            row.op,
            row.domain,
            " ".join(kind or "-" for kind in row.inputs),
            _runs_as(row) + (f": {row.reason}" if row.reason else ""),
            _cut(row.first),
            "" if row.version is None else row.version,
            row.count,
        )
        for row in rows
    ]
    click.echo(table([header, *cells], left=5))
    totals = support.totals(rows)
    click.echo()
    for kind, count in totals.items():
        meaning = support.MEANING.get(kind, "")
        click.echo(f"{count:>6} {kind}{f': {meaning}' if meaning else ''}")
    for item in others:
        click.echo(f"not supported: {item}")
    if error is not None:
        wrong = [row for row in rows if not row.supported]
        what = f"{len(wrong)} of {len(rows)} rows, {sum(row.count for row in wrong)} nodes," if wrong else f"{len(others)} things"
        click.echo(f"dlcompiler: error: {what} cannot be compiled; see above", err=True)


def _runs_as(row: support.Row) -> str:
    if len(row.runs_as) == 1:
        return next(iter(row.runs_as)).replace("unsupported", "UNSUPPORTED")
    return ", ".join(f"{count} {kind}" for kind, count in row.runs_as.items())


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}...{text[-LONGEST // 2 :]}"
