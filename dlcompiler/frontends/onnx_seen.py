"""The inventory of a file: what was looked at while it was imported."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SeenNode:
    """One node of the file: `version` of its operator set, `dtypes` of its inputs, and why it cannot be imported, if so.

    `inlined`: it calls a function of the model, whose nodes follow.
    """

    op: str
    domain: str
    version: int
    dtypes: tuple[str, ...]
    location: str
    problem: str | None = None
    inlined: bool = False
