"""Memory from the system for what is large and stays."""

from __future__ import annotations

import ctypes
import mmap

HUGE_PAGE = 2 << 20  # bytes; of most processors


def anonymous_memory(size: int) -> mmap.mmap:
    """`size` bytes of zeros (at least one page), which begin at a page; freed with the object.

    In huge pages where the system has them: fewer faults at the first touch, and fewer misses of the processor's table of pages
    when weights are streamed.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return mmap.mmap(-1, max(size, 1))
    whole = -(-max(size, 1) // HUGE_PAGE) * HUGE_PAGE if size >= HUGE_PAGE else max(size, 1)
    memory = mmap.mmap(-1, whole, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size >= HUGE_PAGE:
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def address_of(memory: mmap.mmap) -> int:
    """Where it begins; valid as long as the object lives."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
