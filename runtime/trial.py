"""Timing programs against each other on made-up inputs: what a tuner asks of the runtime.

inputs = example_inputs(program, seed=0)
times = in_turns([lambda: first(inputs), lambda: second(inputs)], rounds=8, seconds=0.001)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from dlcompiler.ir.expression import known
from dlcompiler.ir.program import Program
from dlcompiler.runtime.tensors import torch_dtype
from torch import Tensor

Call = Callable[[], Any]


def threads() -> int:
    """How many threads a call uses now."""
    return torch.get_num_threads()


def example_inputs(program: Program, seed: int) -> list[Tensor]:
    """Tensors for a program's inputs, laid out as it wants them: normal floats, integers of 0 and 1 (good as indices).

    Parameters are as small as a model's at the start, so that sums of products are of the size of one.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    made = []
    for slot, node in zip(program.inputs, program.graph.inputs, strict=True):
        assert slot is not None
        dtype = torch_dtype(slot.dtype)
        size = known(slot.elements)
        if dtype.is_floating_point or dtype.is_complex:
            fan_in = math.prod(node.tensor.known_shape[1:]) if node.attributes.get("parameter") else 1
            flat = torch.randn(size, generator=generator, dtype=torch.float32, device="cpu").div_(math.sqrt(max(fan_in, 1)))
            flat = flat.to(dtype)
        else:
            flat = torch.randint(0, 2, (size,), generator=generator, device="cpu").to(dtype)
        made.append(flat.as_strided([known(size) for size in slot.shape], [known(step) for step in slot.strides]))
    return made


def relative_difference(results: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference over the largest finite value; infinite where only one of both has a NaN or an infinity."""
    return max((_difference(mine, other) for mine, other in zip(results, expected, strict=True)), default=0.0)


def _difference(mine: Tensor, other: Tensor) -> float:
    if mine.shape != other.shape or mine.dtype is not other.dtype:
        return math.inf
    if not mine.dtype.is_floating_point:
        return 0.0 if torch.equal(mine, other) else math.inf
    if mine.numel() == 0:
        return 0.0
    difference, largest = float((mine - other).abs().max()), float(other.abs().max())
    if math.isfinite(difference) and math.isfinite(largest):
        return difference / max(largest, 1e-30)
    finite = torch.isfinite(other)
    if not torch.equal(finite, torch.isfinite(mine)) or not torch.equal(
        mine[~finite].nan_to_num(7), other[~finite].nan_to_num(7)
    ):
        return math.inf
    return _difference(mine[finite], other[finite])


def in_turns(calls: Sequence[Call], rounds: int, seconds: float, deadline: float = math.inf) -> list[list[float]]:
    """Seconds of a call of each, `rounds` times: each in turn is called for about so many seconds, every second round backwards.

    Ends early, with a round at the least, when `time.perf_counter()` passes the deadline.
    """
    found: list[list[float]] = [[] for _ in calls]
    counts = [max(1, round(seconds / max(_once(call), 1e-9))) for call in calls]
    for number in range(rounds):
        order = range(len(calls)) if number % 2 == 0 else reversed(range(len(calls)))
        for k in order:
            call, count = calls[k], counts[k]
            call()  # its code and data come back into the caches
            began = time.perf_counter()
            for _ in range(count):
                call()
            found[k].append((time.perf_counter() - began) / count)
        if time.perf_counter() > deadline:
            break
    return found


def _once(call: Call) -> float:
    call()
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
