"""Run a module or a file on a torch that is built for CUDA, where there is no GPU.

    python -m tests.bench.stand_in.build /tmp/stand_in
    LD_LIBRARY_PATH=/tmp/stand_in python -m tests.bench.stand_in [--interpret] MODULE_OR_FILE [ARGUMENTS]

torch's allocator, streams, graphs and autograd for CUDA run as they are; the driver is that of `tests/runtime/stand_in_driver`,
which refuses a wrong launch, and here also addresses that are no memory of the device. With --interpret our kernels compute, in
Triton's interpreter, and torch's own operators on the CPU (`operators.py`); without, nothing does. Inductor's kernels never do.
Processes that the module starts with `python -m tests...` have the same device (`site/sitecustomize.py`).
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

from tests.bench.stand_in.device import install


def main() -> None:
    interprets = sys.argv[1:2] == ["--interpret"]
    sys.argv = sys.argv[1 + interprets :]
    os.environ["STAND_IN_INTERPRETS"] = str(int(interprets))
    others = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).with_name("site")), others)))
    install(interprets)
    if sys.argv[0].endswith(".py"):
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
