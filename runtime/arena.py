"""Arenas: memory for the intermediates of calls, which the programs of a process take in turns.

    arena = arenas.take(size)      # at least so many bytes that no other call in progress has
    arenas.give(arena)             # for the next call, of whatever program

Programs that run one after another, as the forward, the backward and the optimizer's do, use the same memory; calls in progress
at the same time, of threads or one inside another, each have some of their own. What waits for the next call is as large as the
largest that a living program asks for, so that sizes that alternate do not make memory anew; what was never touched takes none.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from typing import Any

from dlcompiler.runtime.memory import address_of, anonymous_memory

# Arenas that wait for the next call; more exist only while more calls are in progress.
IDLE_ARENAS = 8


class Arena:
    """Memory that begins at a page. `address`: where; `size`: its bytes."""

    __slots__ = ("_memory", "address", "size")

    def __init__(self, size: int) -> None:
        self._memory = anonymous_memory(size)
        self.address, self.size = address_of(self._memory), size


class Arenas:
    """All arenas of a device. Calls from several threads are safe."""

    def __init__(self) -> None:
        self._idle: list[Arena] = []  # the most recently used last
        self._sizes: Counter[int] = Counter()  # of the programs that live
        self._largest = 0
        # a program may die, and come here, in any allocation, also under the lock
        self._lock = threading.RLock()

    def announce(self, user: Any, size: int) -> None:
        """Say that `user` will take `size` bytes now and then for as long as it lives."""
        with self._lock:
            self._sizes[size] += 1
            self._largest = max(self._largest, size)
        weakref.finalize(user, self._retire, size).atexit = False

    def take(self, size: int) -> Arena:
        """An arena of at least `size` bytes for one call, which gives it back. Nothing is known of what is in it."""
        with self._lock:
            if self._idle and self._idle[-1].size >= size:
                return self._idle.pop()
            if self._idle:
                del self._idle[-1]  # too small for what is about to come as well
        return Arena(max(size, self._largest))

    def give(self, arena: Arena) -> None:
        """Let other calls have what `take` gave."""
        with self._lock:
            if arena.size <= self._largest and len(self._idle) < IDLE_ARENAS:
                self._idle.append(arena)

    def trim(self) -> None:
        """Free what no call in progress uses."""
        with self._lock:
            self._idle.clear()

    @property
    def idle_bytes(self) -> int:
        """Bytes, touched or not, that wait for the next call."""
        return sum(arena.size for arena in self._idle)

    def _retire(self, size: int) -> None:
        with self._lock:
            self._sizes[size] -= 1
            if not self._sizes[size]:
                del self._sizes[size]
            if size == self._largest:
                self._largest = max(self._sizes, default=0)
                self._idle = [arena for arena in self._idle if arena.size <= self._largest]


ARENAS = Arenas()  # of the CPU
