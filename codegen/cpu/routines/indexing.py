"""The routines of ops that order, scan, or write where data says, by op."""

from __future__ import annotations

from collections.abc import Mapping

from dlcompiler.codegen.cpu.routines import Routine
from dlcompiler.codegen.cpu.routines.order import SortRoutine, TopRoutine
from dlcompiler.codegen.cpu.routines.places import PlacesRoutine
from dlcompiler.codegen.cpu.routines.scan import ScanRoutine
from dlcompiler.codegen.cpu.routines.scatter import UpdateRoutine

INDEXING: Mapping[str, Routine] = {
    "scan": ScanRoutine(),
    "running_extreme": ScanRoutine(),
    "sort": SortRoutine(),
    "topk": TopRoutine(),
    "places": PlacesRoutine(),
    "scatter": UpdateRoutine(),
    "index_update": UpdateRoutine(),
}
