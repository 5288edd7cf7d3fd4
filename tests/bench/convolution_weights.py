"""Gradients of convolutions' weights on the CPU, ours beside ATen's.

python -m tests.bench.convolution_weights [--only '*depthwise*'] [--rounds 9]

Both are given the same tensors, images with their channels innermost, and take turns.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import dlcompiler
from tests.bench import harness


@dataclass(frozen=True)
class Case:
    """Batch, channels and filters; sizes, taps and steps along each dimension."""

    batch: int
    channels: int
    filters: int
    size: tuple[int, ...]
    taps: tuple[int, ...]
    stride: int = 1
    groups: int = 1


CASES: dict[str, Case] = {
    "3 to 64, 7x7, stride 2, 112": Case(8, 3, 64, (112, 112), (7, 7), 2),
    "64, 3x3, 28": Case(8, 64, 64, (28, 28), (3, 3)),
    "128, 3x3, 14": Case(8, 128, 128, (14, 14), (3, 3)),
    "256, 3x3, 7": Case(8, 256, 256, (7, 7), (3, 3)),
    "512, 3x3, 4": Case(8, 512, 512, (4, 4), (3, 3)),
    "64 to 128, 3x3, stride 2, 28": Case(8, 64, 128, (28, 28), (3, 3), 2),
    "depthwise 32, 3x3, 112": Case(8, 32, 32, (112, 112), (3, 3), 1, 32),
    "depthwise 144, 3x3, 56": Case(8, 144, 144, (56, 56), (3, 3), 1, 144),
    "depthwise 384, 3x3, 14": Case(8, 384, 384, (14, 14), (3, 3), 1, 384),
    "depthwise 960, 3x3, 7": Case(8, 960, 960, (7, 7), (3, 3), 1, 960),
    "128 in 32 groups, 3x3, 56": Case(8, 128, 128, (56, 56), (3, 3), 1, 32),
    "line 16 to 64, 5, 1024": Case(8, 16, 64, (1024,), (5,)),
    "volume 8 to 32, 3x3x3, 16": Case(4, 8, 32, (16, 16, 16), (3, 3, 3)),
}


def systems(case: Case) -> dict[str, Callable[[], Any]]:
    """ATen and ours on one case."""
    torch.manual_seed(0)
    rank = len(case.size)
    settings = [[case.stride] * rank, [taps // 2 for taps in case.taps], [1] * rank, False, [0] * rank, case.groups]
    weight = torch.randn(case.filters, case.channels // case.groups, *case.taps)

    def inside(x: Tensor) -> Tensor:
        return x.to(memory_format=torch.channels_last) if rank == 2 else x

    x = inside(torch.randn(case.batch, case.channels, *case.size))
    slopes = inside(torch.randn_like(torch.convolution(x, weight, None, *settings)))

    def gradient(slopes: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return torch.ops.aten.convolution_backward(slopes, x, weight, None, *settings, [False, True, False])[1]

    ours = dlcompiler.compile(gradient, (slopes, x, weight))
    return {"aten": lambda: gradient(slopes, x, weight), "ours": lambda: ours(slopes, x, weight)}


def main() -> int:
    """Prints the table."""
    parser = harness.parser(__doc__.splitlines()[0], rounds=9)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    harness.print_machine(2)
    rows = []
    for name in harness.chosen(CASES, arguments.only):
        seconds: dict[str, list[float]] = {"aten": [], "ours": []}
        calls = systems(CASES[name])
        for turn in range(arguments.rounds + 2):
            for system, call in calls.items():
                began = time.perf_counter()
                call()
                if turn > 1:
                    seconds[system].append(time.perf_counter() - began)
        aten, ours = (statistics.median(seconds[system]) for system in ("aten", "ours"))
        rows.append([name, harness.milliseconds(aten), harness.milliseconds(ours), harness.ratio(aten / ours)])
    print(harness.table(["batch 8, channels, taps, size", "ATen ms", "ours", "ATen / ours"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
