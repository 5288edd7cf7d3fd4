"""What the benchmarks read out of ``dlcompiler.reports()[-1].as_dict()``, in one place."""

from __future__ import annotations

from typing import Any


def fallbacks(report: dict[str, Any] | None) -> dict[str, int]:
    """Names and counts of the aten ops that ran outside compiled code and library calls."""
    raise NotImplementedError


def memory_facts(report: dict[str, Any] | None) -> dict[str, int]:
    """Planned peak, lower bound and eager peak in bytes."""
    raise NotImplementedError
