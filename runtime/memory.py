"""Memory from the system for what is large and stays."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from typing import cast

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


def ask_for_huge_pages(address: int, size: int) -> None:
    """Have memory that was allocated and not touched yet provided in huge pages, as far as they lie inside, where there are some.

    Touching 64 MiB for the first time takes 7 ms then and not 29.
    """
    if size < 2 * HUGE_PAGE or _madvise is None:
        return
    begin, end = -(-address // HUGE_PAGE) * HUGE_PAGE, (address + size) // HUGE_PAGE * HUGE_PAGE
    _madvise(begin, end - begin, mmap.MADV_HUGEPAGE)  # advice: that it was not taken is no error


def _find_madvise() -> Callable[[int, int, int], int] | None:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return cast("Callable[[int, int, int], int]", function)


_madvise = _find_madvise()


def address_of(memory: mmap.mmap) -> int:
    """Where it begins; valid as long as the object lives."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
