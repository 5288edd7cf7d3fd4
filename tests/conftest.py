"""No test reads or fills the cache of whoever runs the tests: the cache on disk is off, also in processes that tests start."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

os.environ["DLCOMPILER_CACHE_BYTES"] = "0"


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """What a test does to our logger, as the command line in this process does, no other test sees."""
    logger = logging.getLogger("dlcompiler")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before
