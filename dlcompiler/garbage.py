"""Python's garbage collector, out of the way while a graph is compiled."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_inside = 0


@contextmanager
def collecting_later() -> Iterator[None]:
    """Run the body without automatic collections; those that are due follow after it.

    A compilation makes many small objects and hardly a cycle, but each full collection walks through everything that torch holds:
    more time than compiling a model takes. Nothing changes where collecting was off already.
    """
    global _inside
    with _lock:
        if not _inside and not gc.isenabled():
            counted = False
        else:
            counted = True
            _inside += 1
            gc.disable()
    try:
        yield
    finally:
        if counted:
            with _lock:
                _inside -= 1
                if not _inside:
                    gc.enable()
