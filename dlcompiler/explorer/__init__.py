"""A compilation as one HTML file to look around in: `explorer_page`."""

from __future__ import annotations

from dlcompiler.explorer.data import compilation_data
from dlcompiler.explorer.page import explorer_page

__all__ = ["compilation_data", "explorer_page"]
