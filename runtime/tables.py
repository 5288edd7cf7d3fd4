"""The driver's tables: what a run of launches is, in the words that compiled code reads (see `codegen.cpu.driver`)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

ALIGNMENT = 64  # of memory that is allocated for a program, in bytes
ARENA = -1  # the "base" of what lies in the arena
CONSTANT = -2  # and of what lies in a constant
# As codegen's driver reads them: function, words, work, grain, multiple; base, bytes, address; six words a run.
STEP_WORDS, PATCH_WORDS, RUN_WORDS = 5, 3, 6


class Word(NamedTuple):
    """One word that a kernel is given: `value` beyond `base`; base None: the value itself."""

    base: int | None
    value: int


class LaunchRecord(NamedTuple):
    """One launch with sizes known; `number` is its step."""

    number: int
    function: int
    words: tuple[Word, ...]
    work: int
    grain: int
    multiple: int


def driver_table(launches: Sequence[LaunchRecord], arena: int, bases: Any) -> np.ndarray:
    """The record of a run, for the driver: its first word's address is the table's.

    arena  address of the arena; bases: an array of c_int64 with the address of every base, read at each call
    """
    words = sum(len(r.words) for r in launches)
    patches = [
        (k, word.base, word.value)
        for k, word in enumerate(w for r in launches for w in r.words)
        if word.base is not None and word.base >= 0
    ]
    table = np.zeros(RUN_WORDS + STEP_WORDS * len(launches) + PATCH_WORDS * len(patches) + words, dtype=np.int64)
    start = table.ctypes.data
    steps = RUN_WORDS
    patch_list = steps + STEP_WORDS * len(launches)
    first_word = patch_list + PATCH_WORDS * len(patches)
    worth_threads = any(r.work > r.grain for r in launches)
    table[:steps] = (
        start + 8 * steps,
        len(launches),
        start + 8 * patch_list,
        len(patches),
        ctypes.addressof(bases),
        worth_threads,
    )
    at = first_word
    for k, record in enumerate(launches):
        table[steps + STEP_WORDS * k : steps + STEP_WORDS * (k + 1)] = (
            record.function,
            start + 8 * at,
            record.work,
            record.grain,
            record.multiple,
        )
        for word in record.words:
            table[at] = word.value + (arena if word.base == ARENA else 0)
            at += 1
    for k, (position, base, value) in enumerate(patches):
        table[patch_list + PATCH_WORDS * k : patch_list + PATCH_WORDS * (k + 1)] = (
            base,
            value,
            start + 8 * (first_word + position),
        )
    return table
