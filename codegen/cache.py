"""Compiled work kept on disk, for every process that compiles the same: a folder of small files named by what they hold.

    store = open_store(options)
    data = store.get(name)                  # None: not there, or damaged
    with store.lock(name):                  # of several processes, one at a time
        store.put(name, data)

An entry appears whole or not at all, and carries a checksum. Nothing that happens to the folder breaks a compilation: what cannot
be read is compiled again, what cannot be written is not kept, each with one warning. Entries hold machine code that is run as it
is, so the folder is made for its owner alone; whoever else may write into it may run code as the one who reads it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import struct
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

logger = logging.getLogger("dlcompiler")

MAGIC, FORMAT = b"dlccache", 1
HEADER = struct.Struct("<8sIQ32s")  # magic, format, bytes of the payload, SHA-256 of name and payload
KINDS = ("function", "object", "tuned", "program", "constants", "seen")
ENTRY = re.compile(rf"[0-9a-f]{{64}}\.({'|'.join(KINDS)})")
LEFTOVER = re.compile(r"\.[^.]*\.partial|[0-9a-f]{64}\.lock")
LEFTOVER_SECONDS = 3600.0
TOUCH_SECONDS = 600.0  # an entry's time of last use is this exact
LOCK_SECONDS = 120.0  # a holder that takes longer is not waited for: compiling twice does no harm
POLL_SECONDS = 0.005
KEPT_AFTER_TRIM = 0.75  # of the limit


class CacheOptions(Protocol):
    """What a store is told by the options."""

    @property
    def cache_dir(self) -> str | None: ...
    @property
    def cache_bytes(self) -> int: ...
    @property
    def disable_cache(self) -> bool: ...


@dataclass(frozen=True)
class Usage:
    """How many entries there are, and their bytes together."""

    entries: int
    bytes: int


def open_store(options: CacheOptions) -> Store | None:
    """The store that the options ask for, the same one for the same folder; None where nothing is to be kept on disk."""
    if options.disable_cache or options.cache_dir is None or options.cache_bytes == 0:
        return None
    return _store(os.path.abspath(options.cache_dir), options.cache_bytes)


@cache
def _store(folder: str, limit: int) -> Store:
    return Store(Path(folder), limit)


def entry_name(kind: str, *parts: str | bytes) -> str:
    """The name of an entry of that kind (one of KINDS): the digest of everything that it depends on."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(struct.pack("<Q", len(data)) + data)
    return f"{digest.hexdigest()}.{kind}"


class Store:
    """The folder. `limit` is in bytes: beyond it the entries that were used least recently go."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._takes_files = True
        self._bytes: int | None = None  # as far as this process knows
        self._lock = threading.Lock()

    # -- reading -----------------------------------------------------------------------------------------------------------

    def get(self, name: str) -> bytes | None:
        """What was put under that name; None where there is nothing, or, after a warning, where it is damaged."""
        path = self.folder / name
        try:
            with open(path, "rb") as file:
                data = file.read()
                used = os.fstat(file.fileno()).st_mtime
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self._give_up("read", error)
            return None
        reason = _damage(name, data)
        if reason is not None:
            self.discard(name, reason)
            return None
        if time.time() - used > TOUCH_SECONDS:
            with suppress(OSError):  # a folder that is only read
                os.utime(path)
        return data[HEADER.size :]

    def discard(self, name: str, reason: str) -> None:
        """Remove an entry that is of no use, with a warning that says why."""
        logger.warning("cache entry %s is damaged (%s); compiling again", self.folder / name, reason)
        with suppress(OSError):
            os.unlink(self.folder / name)

    # -- writing -----------------------------------------------------------------------------------------------------------

    def put(self, name: str, payload: bytes) -> None:
        """Keep `payload`, in place of what was there. A folder that cannot be written is one warning."""
        if not self._takes_files:
            return
        header = HEADER.pack(MAGIC, FORMAT, len(payload), _digest(name, payload))
        temporary = None
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=".", suffix=".partial", dir=self.folder)
            with os.fdopen(handle, "wb") as file:
                file.write(header + payload)
            os.replace(temporary, self.folder / name)
            temporary = None
        except OSError as error:
            self._takes_files = False
            self._give_up("write", error)
        finally:
            if temporary is not None:
                with suppress(OSError):
                    os.unlink(temporary)
        self._count(HEADER.size + len(payload))

    def _give_up(self, what: str, error: OSError) -> None:
        _warn_once(f"cannot {what} the cache folder {self.folder} ({error.strerror or error}); going on without it")

    def _count(self, added: int) -> None:
        with self._lock:
            if self._bytes is None:
                self._bytes = self.usage().bytes
            else:
                self._bytes += added
            if self._bytes > self.limit:
                self._bytes = self._trim()

    def _trim(self) -> int:
        """Remove what was used least recently, and what dead processes left; gives the bytes that stay."""
        entries = sorted((status.st_mtime, status.st_size, path) for path, status in self._entries())
        total = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if total <= self.limit * KEPT_AFTER_TRIM:
                break
            with suppress(OSError):
                os.unlink(path)
            total -= size
        now = time.time()
        for path, status in self._entries(LEFTOVER):
            if now - status.st_mtime > LEFTOVER_SECONDS:
                with suppress(OSError):
                    os.unlink(path)
        return total

    # -- one at a time -----------------------------------------------------------------------------------------------------

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold the lock of that name among all processes; it falls with the process that holds it.

        Where the folder takes no locks, or the holder is not done after LOCK_SECONDS, the body runs without it.
        """
        path = self.folder / f"{Path(name).stem}.lock"
        handle = self._acquire(path) if self._takes_files else None
        try:
            yield
        finally:
            if handle is not None:
                with suppress(OSError):
                    os.unlink(path)  # by its holder alone; who waits for it sees that the file is gone, and makes another
                os.close(handle)

    def _acquire(self, path: Path) -> int | None:
        try:
            import fcntl
        except ImportError:  # not a Unix
            return None
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            except OSError as error:
                self._takes_files = False
                self._give_up("write", error)
                return None
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(handle).st_nlink:
                    return handle
            except BlockingIOError:
                time.sleep(POLL_SECONDS)
            except OSError:  # a file system without locks
                os.close(handle)
                return None
            os.close(handle)
            if time.monotonic() > deadline:
                logger.warning("another process has held %s for %d s; compiling without it", path, LOCK_SECONDS)
                return None

    # -- the folder as a whole ---------------------------------------------------------------------------------------------

    def _entries(self, pattern: re.Pattern[str] = ENTRY) -> Iterator[tuple[Path, os.stat_result]]:
        try:
            with os.scandir(self.folder) as found:
                for item in found:
                    if pattern.fullmatch(item.name):
                        with suppress(OSError):  # removed by another process
                            yield Path(item.path), item.stat(follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return

    def usage(self) -> Usage:
        """What is there now."""
        sizes = [status.st_size for _, status in self._entries()]
        return Usage(len(sizes), sum(sizes))

    def kinds(self) -> dict[str, int]:
        """How many entries there are of each kind."""
        return dict(Counter(path.suffix[1:] for path, _ in self._entries()))

    def clear(self) -> Usage:
        """Remove every entry, and no other file; gives what was removed. Raises OSError where one cannot be."""
        removed = []
        for path, status in self._entries():
            os.unlink(path)
            removed.append(status.st_size)
        with self._lock:
            self._bytes = None
        return Usage(len(removed), sum(removed))

    def damaged(self) -> dict[Path, str]:
        """Every entry that fails its check, with the reason. Raises OSError where one cannot be read."""
        found = {}
        for path, _ in self._entries():
            reason = _damage(path.name, path.read_bytes())
            if reason is not None:
                found[path] = reason
        return found


def _digest(name: str, payload: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\0" + payload).digest()


def _damage(name: str, data: bytes) -> str | None:
    """Why a file's bytes are no entry of that name; None if they are one."""
    if len(data) < HEADER.size:
        return f"{len(data)} bytes are too few"
    magic, version, length, digest = HEADER.unpack_from(data)
    if magic != MAGIC or version != FORMAT:
        return "another kind of file"
    if length != len(data) - HEADER.size:
        return f"{len(data) - HEADER.size} bytes instead of {length}"
    return None if digest == _digest(name, data[HEADER.size :]) else "its checksum is wrong"


_said: set[str] = set()


def _warn_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        logger.warning("%s", text)
