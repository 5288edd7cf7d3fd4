"""What a call of a GPU program costs the host: medians of calls of recorded models, where launches cost nothing.

    LD_LIBRARY_PATH=/tmp/stand_in python -m tests.bench.stand_in tests.bench.gpu_calls [MODEL ...]

On a machine with a GPU the device's time is in it as soon as it is longer than the host's.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

import dlcompiler
from dlcompiler.torch_backend import backend
from tests import zoo

CALLS = 300


def main() -> None:
    for name in sys.argv[1:] or ["bert-base"]:
        model = zoo.build(name, "real")
        module = model.module.to("cuda", torch.float16)
        inputs = [x.to("cuda", torch.float16 if x.is_floating_point() else x.dtype) for x in model.inputs]
        for way in ("torch.compile", "dlcompiler.compile"):
            torch._dynamo.reset()
            with torch.no_grad():
                begin = time.perf_counter()
                if way == "torch.compile":
                    run = torch.compile(module, backend=backend, dynamic=False)
                else:
                    run = dlcompiler.compile(module, tuple(inputs), target="cuda")
                for _ in range(6):
                    run(*inputs)
                ready, spent = time.perf_counter() - begin, []
                for _ in range(CALLS):
                    began = time.perf_counter()
                    run(*inputs)
                    spent.append(time.perf_counter() - began)
            print(f"{name}, {way}: {statistics.median(spent) * 1e6:.0f} us a call, {ready:.1f} s until the sixth", flush=True)


if __name__ == "__main__":
    main()
