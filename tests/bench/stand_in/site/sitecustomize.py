"""Imported by every Python that a process on the stand-in starts: those that run a module of `tests` are on it, too."""

import os
import sys

_MODULE = sys.orig_argv[sys.orig_argv.index("-m") + 1] if "-m" in sys.orig_argv[:-1] else ""
if "STAND_IN_INTERPRETS" in os.environ and _MODULE.startswith("tests."):
    from tests.bench.stand_in.device import install

    install(os.environ["STAND_IN_INTERPRETS"] == "1")
