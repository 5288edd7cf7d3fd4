"""Philox 4x32-10, a counter-based generator.

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

A number is a pure function of a counter and a key, with no state between two of them: an element's number does not depend on
which thread computes it, when, or how often, so it may be computed again where it is needed again.

    counter  the element's index (64 bits), the position of the draw in its program (64 bits)
    key      the seed of the call (64 bits)
    result   the first two of the generator's four words: the lower 32 bits, and the upper 32 bits
"""

from __future__ import annotations

import numpy as np

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
# what the two words of the key grow by from round to round
INCREMENTS = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF


def philox_words(counter: tuple[np.ndarray, ...], key: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """The generator itself: four words of counter and two of key to four words, all held in u64."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    mask, half = np.uint64(WORD), np.uint64(32)
    for _ in range(ROUNDS):
        first, second = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        c0, c1, c2, c3 = second >> half ^ c1 ^ k0, second & mask, first >> half ^ c3 ^ k1, first & mask
        k0, k1 = k0 + np.uint64(INCREMENTS[0]) & mask, k1 + np.uint64(INCREMENTS[1]) & mask
    return c0, c1, c2, c3


def philox(index: np.ndarray, position: np.ndarray, seed: np.ndarray) -> np.ndarray:
    """Two words of the generator as one i64, for i64 operands that broadcast together."""
    halves = [(bits & np.uint64(WORD), bits >> np.uint64(32)) for bits in (_unsigned(x) for x in (index, position, seed))]
    low, high, _, _ = philox_words((*halves[0], *halves[1]), halves[2])
    return (low | high << np.uint64(32)).astype(np.uint64).view(np.int64)


def _unsigned(x: np.ndarray) -> np.ndarray:
    return np.atleast_1d(np.ascontiguousarray(x)).view(np.uint64).reshape(np.shape(x))
