"""Prepared memory: what is computed once from tensors that stay the same between calls, a copy for each set of such tensors.

    copies = Copies(offsets, size, unchanged)
    copy = copies.acquire(tensors, addresses, fill)     # filled; nobody changes it until
    copy.release()

Equal layers share one program and are told apart by their weights' addresses, so each has a copy of its own. A copy is filled
again when one of its tensors has changed: an optimiser's steps do not make new ones. It goes with the first of its weights that
dies; at the most `MOST_COPIES` are kept.
"""

from __future__ import annotations

import ctypes
import mmap
import operator
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from dlcompiler.ir.program import Slot
from dlcompiler.runtime.memory import HUGE_PAGE, address_of, anonymous_memory
from torch import Tensor

MOST_COPIES = 256

Versions = list[int | None]
# Fills memory for the sources of these numbers; None: for all of them.
Fill = Callable[["frozenset[int] | None"], None]

_version = operator.attrgetter("_version")


def versions_of(tensors: Sequence[Tensor]) -> Versions:
    """The version counter of each, which every in-place operation moves; None for one made in inference mode, which has none."""
    try:
        return list(map(_version, tensors))
    except RuntimeError:
        return [None if tensor.is_inference() else tensor._version for tensor in tensors]


class Copies:
    """All copies of one program's prepared memory.

    offsets    of each prepared slot, in bytes
    size       of a copy
    unchanged, touch  addresses of C functions, see `codegen.cpu.driver`
    """

    def __init__(self, offsets: Mapping[Slot, int], size: int, unchanged: int, touch: int) -> None:
        self.offsets, self.size = offsets, size
        self.unchanged = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(unchanged)
        self._touch = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(touch)
        self._reserved: mmap.mmap | None = None
        self._latest: Copy | None = None
        self._all: dict[tuple[int, ...], Copy] = {}  # the most recently used last
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._all)

    def reserve(self) -> None:
        """Have the system provide memory for a copy, in the background, as a call follows soon.

        To touch a gigabyte for the first time takes a second on some machines.
        """
        if self.size < HUGE_PAGE or self._reserved is not None or self._all:
            return
        self._reserved = memory = anonymous_memory(self.size)
        touch, address, size = self._touch, address_of(memory), self.size

        def provide() -> None:
            touch(address, size)
            assert memory is not None  # held until here

        threading.Thread(target=provide, name="dlcompiler-memory", daemon=True).start()

    def take_memory(self) -> mmap.mmap:
        """Memory for a copy."""
        memory, self._reserved = self._reserved, None
        return anonymous_memory(self.size) if memory is None else memory

    def acquire(self, tensors: Sequence[Tensor], addresses: Sequence[int], enter: Callable[[Copy], Fill]) -> Copy:
        """The copy made of tensors that lie at these addresses, up to date, and kept so until `Copy.release`.

        `enter(copy)` is called before anything is filled, and gives what fills it.
        """
        copy, addresses = self._latest, tuple(addresses)
        if copy is None or copy.addresses != addresses:
            copy = self._find(tensors, addresses)
        copy.acquire(tensors, enter(copy))
        return copy

    def _find(self, tensors: Sequence[Tensor], addresses: tuple[int, ...]) -> Copy:
        with self._lock:
            copy = self._all.pop(addresses, None)
            if copy is None or copy.is_stale:
                copy = Copy(self, addresses)
                copy.watch(tensors, partial(_forget, weakref.ref(self), weakref.ref(copy)))
                while len(self._all) >= MOST_COPIES:
                    del self._all[next(iter(self._all))]
            self._all[addresses] = copy
            self._latest = copy
        return copy

    def forget(self, copy: Copy) -> None:
        """Let go of a copy whose tensors have died. Takes no lock: a collection of garbage may come here from anywhere."""
        copy.is_stale = True
        if self._latest is copy:
            self._latest = None
        if self._all.get(copy.addresses) is copy:
            self._all.pop(copy.addresses, None)


def _forget(copies: weakref.ref[Copies], copy: weakref.ref[Copy], _: object) -> None:
    owner, dead = copies(), copy()
    if owner is not None and dead is not None:
        owner.forget(dead)


class Copy:
    """Memory prepared from one set of tensors.

    address    where it begins
    addresses  of the tensors that it is made from
    is_stale   whether one of these has died, so that another may come to lie at its address
    """

    def __init__(self, owner: Copies, addresses: tuple[int, ...]) -> None:
        self._unchanged = owner.unchanged
        self._memory = owner.take_memory()
        self.address = address_of(self._memory)
        self.addresses = addresses
        self.is_stale = False
        self._storages: list[Any] = []
        self._versions: Versions | None = None
        self._probes: Probes | None = None
        self._users = 0
        self._turn = threading.Condition()

    def watch(self, tensors: Sequence[Tensor], died: Callable[[Any], None]) -> None:
        """Call `died` when the memory of one of the tensors is freed, which a tensor that gets other memory does too."""
        self._storages = [weakref.ref(tensor.untyped_storage(), died) for tensor in tensors]

    def acquire(self, tensors: Sequence[Tensor], fill: Fill) -> None:
        """Bring it up to date, while no call reads it, and keep it so until `release`."""
        versions = versions_of(tensors)
        with self._turn:
            if not self._is_current(versions):
                # calls in progress read what was prepared for them
                self._turn.wait_for(lambda: self._users == 0)
                if not self._is_current(versions):
                    self._update(tensors, versions, fill)
            self._users += 1

    def release(self) -> None:
        """Say that a call no longer reads it; once for each `acquire`."""
        with self._turn:
            self._users -= 1
            if self._users == 0:
                self._turn.notify_all()

    def _is_current(self, versions: Versions) -> bool:
        """Whether it was made from tensors of these versions, unchanged since as far as is looked."""
        probes = self._probes
        if versions != self._versions or probes is None or None in versions:
            return False
        return bool(self._unchanged(probes.addresses, probes.values, probes.count))

    def _update(self, tensors: Sequence[Tensor], versions: Versions, fill: Fill) -> None:
        before, probes = self._versions, self._probes
        if before is None or probes is None:
            fill(None)
        else:
            moved = (k for k, version in enumerate(versions) if version is None or version != before[k])
            fill(frozenset((*moved, *probes.changed())))
        self._versions, self._probes = versions, Probes(tensors)


class Probes:
    """A few bytes of each tensor, to notice what moves no version counter, as `tensor.data.mul_(2)` does.

    addresses, values  arrays of the bytes' addresses and of what they held; `count` of them
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._places = [probed_places(tensor) for tensor in tensors]
        self._held = self._read()
        flat = [at + k for places in self._places for at, size in places for k in range(size)]
        self.count = len(flat)
        self.addresses = (ctypes.c_void_p * max(len(flat), 1))(*flat)
        self.values = ctypes.create_string_buffer(b"".join(self._held), max(len(flat), 1))

    def _read(self) -> list[bytes]:
        return [b"".join(ctypes.string_at(at, size) for at, size in places) for places in self._places]

    def changed(self) -> list[int]:
        """Which tensors hold something else there now."""
        return [k for k, (held, now) in enumerate(zip(self._held, self._read())) if held != now]


def probed_places(tensor: Tensor) -> list[tuple[int, int]]:
    """(address, bytes) of the middle and the last element of a matrix, the middle one of a vector; with gaps, of the first.

    Four bytes of each at the most, the upper ones, which nearly every change of a number changes.
    """
    count, size = tensor.numel(), tensor.element_size()
    if count == 0:
        return []
    reach = 1 + sum((n - 1) * abs(step) for n, step in zip(tensor.shape, tensor.stride()))
    places = {0} if reach != count else {count // 2, count - 1} if tensor.ndim > 1 else {count // 2}
    width = min(size, 4)
    return [(tensor.data_ptr() + (k + 1) * size - width, width) for k in sorted(places)]
