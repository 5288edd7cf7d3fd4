"""`dlcompiler cache`."""

from __future__ import annotations

from typing import Any

import click

from dlcompiler.cli.commands import flags
from dlcompiler.cli.shared import Session, print_json
from dlcompiler.codegen.cache import Store, open_store
from dlcompiler.report import format_bytes

NOTHING_KEPT = "nothing is kept on disk"
KINDS = {
    "function": "functions",
    "object": "objects of machine code",
    "tuned": "decisions of the tuner",
    "program": "programs of files",
    "constants": "sets of folded constants",
    "seen": "files read before",
}


@click.group(name="cache")
def command() -> None:
    """Compiled kernels and decisions of the tuner on disk, kept for later processes: show, clear or check them."""


def _start(parameters: dict[str, Any]) -> tuple[Session, Store | None]:
    session = Session.start(parameters)
    return session, open_store(session.options)


def _say(session: Session, store: Store | None, action: str, line: str = NOTHING_KEPT, **facts: Any) -> None:
    """Print what was found or done: one JSON document, or the folder and one line."""
    folder, source = session.options.cache_dir, session.options.sources["cache_dir"]
    if session.as_json:
        print_json({"action": action, "folder": folder, "on_disk": store is not None, "entries": 0, "bytes": 0, **facts})
    else:
        click.echo(f"folder   {folder} (from {source})")
        click.echo(f"entries  {line}")


@command.command()
@flags(compiles=False)
def info(**parameters: Any) -> None:
    """Show the folder and what is in it."""
    session, store = _start(parameters)
    if store is None:
        return _say(session, store, "info")
    usage, kinds = store.usage(), store.kinds()
    line = f"{usage.entries}, {format_bytes(usage.bytes)} of at most {format_bytes(store.limit)}"
    if kinds:
        line += f"\n         {', '.join(f'{count} {KINDS[kind]}' for kind, count in sorted(kinds.items()))}"
    return _say(session, store, "info", line, entries=usage.entries, bytes=usage.bytes, limit=store.limit, kinds=kinds)


@command.command()
@flags(compiles=False)
def clear(**parameters: Any) -> None:
    """Remove what is kept, and no other file in the folder."""
    session, store = _start(parameters)
    if store is None:
        return _say(session, store, "clear")
    removed = store.clear()
    return _say(
        session, store, "clear", f"{removed.entries} removed, {format_bytes(removed.bytes)}",
        removed=removed.entries, removed_bytes=removed.bytes,
    )  # fmt: skip


@command.command()
@flags(compiles=False)
def verify(**parameters: Any) -> None:
    """Check every entry. A damaged one is compiled again when it is next asked for."""
    session, store = _start(parameters)
    if store is None:
        return _say(session, store, "verify")
    usage, damaged = store.usage(), store.damaged()
    lines = [f"{usage.entries}, {len(damaged)} damaged", *(f"         {path}: {reason}" for path, reason in damaged.items())]
    found = {str(path): reason for path, reason in damaged.items()}
    return _say(session, store, "verify", "\n".join(lines), entries=usage.entries, bytes=usage.bytes, damaged=found)
