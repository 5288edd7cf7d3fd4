"""What the benchmarks read out of ``dlcompiler.reports()[-1].as_dict()``, in one place."""

from __future__ import annotations

from typing import Any


def fallbacks(report: dict[str, Any] | None) -> dict[str, int]:
    """Names and counts of the operators that ATen runs outside compiled code and planned library calls."""
    counts: dict[str, int] = {}
    for node in (report or {}).get("aten", ()):
        counts[node["name"]] = counts.get(node["name"], 0) + node["count"]
    return counts


def memory_facts(report: dict[str, Any] | None) -> dict[str, int | None]:
    """Planned peak, lower bound and eager peak in bytes; None where the report does not know."""
    return {key: (report or {}).get(key) for key in ("planned_peak", "lower_bound", "eager_peak")}
