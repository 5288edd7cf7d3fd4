"""The counter-based generator against the published answers of its authors' library (Random123)."""

from __future__ import annotations

import numpy as np
import pytest
from dlcompiler.ir.philox import philox, philox_words

ANSWERS = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


def _word(low: int, high: int) -> np.ndarray:
    return np.array(low | high << 32, dtype=np.uint64).view(np.int64)


@pytest.mark.parametrize("counter, key, expected", ANSWERS)
def test_known_answers(counter, key, expected):
    words = philox_words(*(tuple(np.array(w, dtype=np.uint64) for w in given) for given in (counter, key)))
    assert tuple(int(w) for w in words) == expected
    both = philox(_word(*counter[:2]), _word(*counter[2:]), _word(*key))
    assert int(both) & (2**64 - 1) == expected[0] | expected[1] << 32
