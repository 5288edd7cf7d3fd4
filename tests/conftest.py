"""No test reads or fills the cache of whoever runs the tests: the cache on disk is off, also in processes that tests start."""

from __future__ import annotations

import os

os.environ["DLCOMPILER_CACHE_BYTES"] = "0"
