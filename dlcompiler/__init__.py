"""dlcompiler: a deep-learning graph compiler.

Importing this package is quick and imports neither torch nor MLIR: each public name loads its module when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from dlcompiler.version import __version__

_HOME = {
    "compile": "dlcompiler.api",
    "load": "dlcompiler.api",
    "reset": "dlcompiler.api",
    "Compiled": "dlcompiler.api",
    "train_step": "dlcompiler.training.step",
    "update_step": "dlcompiler.training.update",
    "reports": "dlcompiler.report",
    "Report": "dlcompiler.report",
    "Options": "dlcompiler.options",
}
_MODULES = ("extend",)

__all__ = ["__version__", *_HOME, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in _MODULES:
        return import_module(f"dlcompiler.{name}")
    raise AttributeError(f"module 'dlcompiler' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
