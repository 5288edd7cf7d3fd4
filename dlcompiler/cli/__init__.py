"""The command line: `dlcompiler` and `python -m dlcompiler`.

Each command is a module of its own name, imported when it runs. Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with the code that `boundary` says."""
    from dlcompiler.cli.boundary import run

    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))
