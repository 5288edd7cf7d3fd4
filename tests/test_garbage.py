"""Collections wait while a graph is compiled, and only then."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest

from dlcompiler.garbage import collecting_later


@pytest.fixture(autouse=True)
def collecting() -> Iterator[None]:
    gc.enable()
    yield
    gc.enable()


def test_off_inside_and_on_again() -> None:
    with collecting_later():
        assert not gc.isenabled()
        with collecting_later():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ValueError), collecting_later():
        raise ValueError
    assert gc.isenabled()


def test_who_collects_by_hand_keeps_doing_so() -> None:
    gc.disable()
    with collecting_later():
        pass
    assert not gc.isenabled()


def test_the_last_of_several_threads_turns_it_on() -> None:
    first, second = threading.Event(), threading.Event()

    def other() -> None:
        with collecting_later():
            first.set()
            second.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    first.wait(10)
    with collecting_later():
        second.set()
        thread.join()
        assert not gc.isenabled()
    assert gc.isenabled()
