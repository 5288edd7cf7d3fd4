"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

CLOCK_TICK = 20_000_000  # nanoseconds: file systems' clocks are this coarse, with some to spare


@dataclass(frozen=True)
class FileState:
    """A file as it is now: whoever writes to it, or puts another in its place, changes one of these.

    path     made absolute, links not followed: what lies beside a link is not what lies beside its target
    facts    device, inode, bytes, and the times of the last change of contents and of the inode, in nanoseconds; None: not there
    settled  whether the last change lies so far back that another one now would show in the times
    """

    path: str
    facts: tuple[int, ...] | None
    settled: bool = False


def file_state(path: str | os.PathLike[str]) -> FileState:
    """How a file is now. Raises nothing."""
    where = os.path.abspath(path)
    try:
        found = os.stat(where)
    except (OSError, ValueError):
        return FileState(where, None)
    facts = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return FileState(where, facts, time.time_ns() - max(facts[3:]) > CLOCK_TICK)


def write_atomically(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a new file beside `path`, then rename it to `path`; on any error nothing is left. Raises OSError."""
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    temporary = path.with_name(f".{path.name[:100]}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    except OSError as error:
        error.filename = str(path)  # the name that the caller knows
        raise
    try:
        with os.fdopen(descriptor, "w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # there only if something went wrong
