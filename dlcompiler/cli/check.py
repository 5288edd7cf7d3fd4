"""`dlcompiler inspect --check`: which operators of a model are supported, all at once."""

from __future__ import annotations

from typing import Any

import click

from dlcompiler import support
from dlcompiler.cli.progress import Progress
from dlcompiler.cli.shared import Session, build, print_json, read_source, table, write_text
from dlcompiler.ir.errors import UnsupportedError
from dlcompiler.observe import Parts

OK, UNSUPPORTED = 0, 4
LONGEST = 60  # characters of a name in the table


def check(model: str, session: Session, progress: Progress, output: str | None = None) -> int:
    """Print the table, or write it to `output`; 4 if something is not supported, else 0.

    Raises what reading an invalid model does.
    """
    inventory: list[Any] = []
    source = None
    error: UnsupportedError | None = None
    parts: support.Parts | None = None
    try:
        source = read_source(model, session, progress, inventory)
        watched = Parts()
        build(source, session, progress, watched)
        parts = [(part.graphs[0][1], part.planned) for part in watched.parts if part.planned is not None]
    except UnsupportedError as problem:
        error = problem
    if inventory:
        rows = support.of_onnx(inventory, source.graph if source else None, parts)
    elif source is not None:
        rows = support.of_graph(source.graph, parts, error.items if error is not None else ())
    else:
        assert error is not None
        raise error
    # an element type of the interface, or what the target lacks, belongs to no operator of the table
    listed = any(not row.supported for row in rows)
    others = list(error.items) if error is not None and not listed else []
    text = _text(rows, others)
    if output:
        write_text(output, text + "\n")
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
    elif not output:
        click.echo(text)
    if error is not None:
        wrong = [row for row in rows if not row.supported]
        what = f"{len(wrong)} of {len(rows)} rows, {sum(row.count for row in wrong)} nodes," if wrong else f"{len(others)} things"
        click.echo(f"dlcompiler: error: {what} cannot be compiled{'' if output else '; see above'}", err=True)
    return OK if error is None else UNSUPPORTED


def _text(rows: list[support.Row], others: list[str]) -> str:
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
    lines = [table([header, *cells], left=5), ""]
    for kind, count in support.totals(rows).items():
        meaning = support.MEANING.get(kind, "")
        lines.append(f"{count:>6} {kind}{f': {meaning}' if meaning else ''}")
    lines += [f"not supported: {item}" for item in others]
    return "\n".join(lines)


def _runs_as(row: support.Row) -> str:
    if len(row.runs_as) == 1:
        return next(iter(row.runs_as)).replace("unsupported", "UNSUPPORTED")
    return ", ".join(f"{count} {kind}" for kind, count in row.runs_as.items())


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}...{text[-LONGEST // 2 :]}"
