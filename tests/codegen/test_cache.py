"""The folder of compiled work: entries are whole or not there, and nothing that happens to it reaches the compilation."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from dlcompiler.codegen import cache
from dlcompiler.codegen.cache import HEADER, Store, Usage, entry_name, open_store

from dlcompiler.options import Options

NAME = entry_name("object", "an entry")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache", 1 << 20)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, "dlcompiler")
    monkeypatch.setattr(logging.getLogger("dlcompiler"), "propagate", True)
    monkeypatch.setattr(cache, "_said", set())
    return caplog


def test_what_was_put_is_there(store: Store) -> None:
    assert store.get(NAME) is None
    for payload in (b"", b"one", os.urandom(100_000)):
        store.put(NAME, payload)
        assert store.get(NAME) == payload
    assert store.usage() == Usage(1, 100_000 + HEADER.size)
    assert [path.name for path in store.folder.iterdir()] == [NAME]
    assert store.folder.stat().st_mode & 0o777 == 0o700 and (store.folder / NAME).stat().st_mode & 0o777 == 0o600


def test_names_depend_on_every_part_and_where_it_ends() -> None:
    names = [entry_name("object", *parts) for parts in (("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("abd",))]
    names.append(entry_name("function", "abc"))
    assert len(set(names)) == len(names)
    assert entry_name("object", "a", b"b") == entry_name("object", b"a", "b")


def damage(data: bytes) -> dict[str, bytes]:
    flipped = bytearray(data)
    flipped[-3] ^= 4
    return {
        "empty": b"",
        "cut in its header": data[:20],
        "cut": data[:-1],
        "longer": data + b"x",
        "flipped": bytes(flipped),
        "foreign": b"something else " * 20,
        "of another format": data[:8] + b"\x63" + data[9:],
    }


@pytest.mark.parametrize("kind", damage(b" " * 9))
def test_damage_is_a_miss_with_one_warning(store: Store, warnings: pytest.LogCaptureFixture, kind: str) -> None:
    store.put(NAME, b"some code")
    path = store.folder / NAME
    path.write_bytes(damage(path.read_bytes())[kind])
    assert list(store.damaged()) == [path]
    assert store.get(NAME) is None and store.get(NAME) is None
    (record,) = warnings.records
    assert str(path) in record.getMessage() and record.levelname == "WARNING"
    store.put(NAME, b"some code")
    assert store.get(NAME) == b"some code" and store.damaged() == {}


def test_an_entry_under_another_name_is_damaged(store: Store, warnings: pytest.LogCaptureFixture) -> None:
    store.put(NAME, b"some code")
    other = entry_name("object", "other")
    (store.folder / NAME).rename(store.folder / other)
    assert store.get(other) is None and len(warnings.records) == 1


def test_a_folder_that_takes_nothing_is_one_warning(tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "cache", 1 << 20)
    for _ in range(3):
        assert store.get(NAME) is None
        with store.lock(NAME):
            store.put(NAME, b"some code")
    assert len(warnings.records) == 1 and str(store.folder) in warnings.text
    assert store.usage() == Usage(0, 0)


def test_a_full_disk_is_one_warning_and_leaves_nothing(
    store: Store, warnings: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Any, target: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store.put(NAME, b"old")
    monkeypatch.setattr(os, "replace", full)
    for _ in range(3):
        store.put(NAME, b"new")
    (record,) = warnings.records
    assert "No space left" in record.getMessage()
    assert [path.name for path in store.folder.iterdir()] == [NAME] and store.get(NAME) == b"old"


def test_least_recently_used_go_first(tmp_path: Path) -> None:
    store = Store(tmp_path, 10_000)
    names = [entry_name("object", str(k)) for k in range(12)]
    for age, name in enumerate(names[:9]):
        store.put(name, bytes(1000))
        os.utime(tmp_path / name, times=(0, time.time() - 10_000 + age))
    assert store.get(names[0]) is not None  # used now
    (tmp_path / ".dead.partial").write_text("left by a process that died")
    os.utime(tmp_path / ".dead.partial", times=(0, 0))
    (tmp_path / "mine.txt").write_text("not an entry")
    store.put(names[9], bytes(1000))
    left = [name for name in names if (tmp_path / name).exists()]
    assert left == [names[0], *names[4:10]]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*left, "mine.txt"])
    assert store.clear() == Usage(7, 7 * (1000 + HEADER.size))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_one_holder_at_a_time(store: Store) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        for _ in range(5):
            with store.lock(NAME):
                inside.append(number)
                most.append(len(inside))
                time.sleep(0.001)
                inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 30 and max(most) == 1
    assert list(store.folder.iterdir()) == []


HOLDER = """
import sys, time
from pathlib import Path
from dlcompiler.codegen.cache import Store
with Store(Path(sys.argv[1]), 1 << 20).lock(sys.argv[2]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_lock_of_a_process_that_dies_is_free(store: Store) -> None:
    command = [sys.executable, "-c", HOLDER, str(store.folder), NAME]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        threading.Timer(0.2, process.kill).start()
        began = time.monotonic()
        with store.lock(NAME):
            assert 0.1 < time.monotonic() - began < 60
        assert process.wait(60) != 0


def test_a_holder_that_hangs_is_not_waited_for(
    store: Store, warnings: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "LOCK_SECONDS", 0.05)
    with store.lock(NAME), store.lock(NAME):
        assert len(warnings.records) == 1
    assert list(store.folder.iterdir()) == []


def test_what_the_options_ask_for(tmp_path: Path) -> None:
    def opened(**explicit: Any) -> Store | None:
        return open_store(Options.resolve({"cache_dir": str(tmp_path), **explicit}, {}))

    store = opened(cache_bytes=1 << 30)
    assert store is not None and (store.folder, store.limit) == (tmp_path, 1 << 30) and opened(cache_bytes=1 << 30) is store
    assert opened(cache_bytes=0) is None and opened(disable_cache=True) is None and opened(cache_dir=None) is None
