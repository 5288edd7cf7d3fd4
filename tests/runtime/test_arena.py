"""Arenas: programs take turns, calls in progress do not share, and what nobody needs is freed."""

from __future__ import annotations

import torch
from dlcompiler.runtime.arena import Arena, Arenas


class User:
    """A program."""


def test_programs_take_turns() -> None:
    arenas, small, large = Arenas(), User(), User()
    arenas.announce(small, 1 << 12)
    arenas.announce(large, 1 << 16)
    first = arenas.take(1 << 12)
    arenas.give(first)
    assert arenas.take(1 << 16) is first and first.size == 1 << 16
    nested = arenas.take(1 << 12)  # a call inside a call, or beside it
    assert nested.address + nested.size <= first.address or first.address + first.size <= nested.address
    arenas.give(nested)
    arenas.give(first)
    assert arenas.idle_bytes == 2 << 16


def test_what_no_living_program_asks_for_is_freed() -> None:
    arenas, small, large = Arenas(), User(), User()
    arenas.announce(small, 1 << 12)
    arenas.announce(large, 1 << 16)
    held = arenas.take(1 << 16)
    arenas.give(arenas.take(1 << 12))
    del large
    assert arenas.idle_bytes == 0
    arenas.give(held)
    assert arenas.idle_bytes == 0
    arenas.give(arenas.take(1 << 12))
    assert arenas.idle_bytes == 1 << 12
    arenas.trim()
    assert arenas.idle_bytes == 0


def test_an_arena_that_is_too_small_makes_way() -> None:
    arenas, user, later = Arenas(), User(), User()
    arenas.announce(user, 1 << 12)
    arenas.give(arenas.take(1 << 12))
    arenas.announce(later, 1 << 14)
    arena = arenas.take(1 << 14)
    assert isinstance(arena, Arena) and arena.size == 1 << 14 and arenas.idle_bytes == 0
    assert torch.frombuffer(arena._memory, dtype=torch.uint8).sum() == 0
