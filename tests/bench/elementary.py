"""Every f32 input of every elementary function against float64, and its speed beside torch's.

    python -m tests.bench.elementary [names...] [--machine x86-64-v4] [--processes 2] [--stride 1]

Functions of one argument are tried on all 2^32 bit patterns (every STRIDE-th with --stride), those of two on 2^26 pairs. An
error is |result - truth| in units of the last place of truth; a wrong infinity, NaN or sign of zero counts as infinite.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from dlcompiler.codegen.cpu.elementary import TABLE
from dlcompiler.codegen.cpu.emitter import Emitter
from dlcompiler.codegen.cpu.jit import compile_mlir
from dlcompiler.codegen.cpu.machine import host, machine

ARITY = {"pow": 2, "atan2": 2, "hypot": 2}
# the C library's own, through f64: nothing of ours to try
LIBRARY = ("cbrt", "lgamma")
CHUNK = 1 << 14
DTYPES = {"f32": np.float32, "f64": np.float64}
LARGEST = float(np.finfo(np.float32).max)
Array = np.ndarray[Any, Any]


def compile_function(name: str, element: str, lanes: int, machine_name: str | None = None) -> Callable[..., Array]:
    """`TABLE[name]` as a function of contiguous arrays whose size is a multiple of `lanes` (0: scalar code)."""
    arity = ARITY.get(name, 1)
    e = Emitter(machine=machine(machine_name) if machine_name else None)
    with e.func("kernel", [("args", "ptr"), ("low", "i64"), ("high", "i64")]) as (args, low, high):
        *sources, target = e.buffers(args, arity + 1)
        with e.for_loop(low, high, max(lanes, 1)) as loop:
            values = [e.load(source, loop.index, element, lanes) for source in sources]
            e.store(TABLE[name](e, *values), target, loop.index)
    kernel = compile_mlir(e.text(), ["kernel"]).function("kernel")

    def call(*inputs: Array, out: Array | None = None) -> Array:
        result = np.empty_like(inputs[0]) if out is None else out
        assert inputs[0].size % max(lanes, 1) == 0 and all(x.dtype == DTYPES[element] for x in inputs)
        pointers = (ctypes.c_void_p * (arity + 1))(*(x.ctypes.data for x in (*inputs, result)))
        kernel(ctypes.addressof(pointers), 0, inputs[0].size)
        return result

    return call


def truth(name: str, *inputs: Array) -> Array:
    """The function in float64 by torch or NumPy."""
    import torch

    with np.errstate(all="ignore"):
        doubles = [x.astype(np.float64) for x in inputs]
        if name in ("pow", "atan2", "hypot", "cbrt"):
            spelled = {"pow": np.power, "atan2": np.arctan2, "hypot": np.hypot, "cbrt": np.cbrt}
            return np.asarray(spelled[name](*doubles))
    if name == "sigmoid":
        positive = torch.from_numpy(doubles[0])
        small = torch.exp(-positive.abs())
        return np.asarray((torch.where(positive < 0, small, 1.0) / (1.0 + small)).numpy())
    function = getattr(torch.special, name) if name in ("erf", "erfc") else getattr(torch, name)
    return np.asarray(function(*(torch.from_numpy(x) for x in doubles)).numpy())


def ulp_errors(result: Array, true: Array) -> Array:
    """Of an f32 result, in units of the last place of the f64 truth; infinite where the kind of number is wrong."""
    with np.errstate(all="ignore"):
        power = (true.view(np.int64) & 0x7FF0000000000000).view(np.float64)
        unit = np.maximum(power * 2.0**-23, 2.0**-149)
        errors = np.abs(result.astype(np.float64) - true) / unit
        # the largest error also has the largest of these, and NaN is larger than all
        if errors.max() < np.inf and true.all():
            return errors
        rounded = true.astype(np.float32)
        if (rounded.view(np.int32) == result.view(np.int32)).all():
            return np.zeros_like(true)
        errors = np.where(np.isfinite(rounded) & np.isfinite(result), errors, 0.0)
        kinds = (np.isnan, np.isposinf, np.isneginf)
        wrong = np.logical_or.reduce([kind(result) != kind(rounded) for kind in kinds])
        # next to overflow either side of the border is within two units
        border = (np.abs(true) > LARGEST * (1 - 2.0**-23)) & (np.abs(true) < LARGEST * (1 + 2.0**-23))
        wrong &= ~(border & (np.sign(result) == np.sign(true)))
        wrong |= (true == 0.0) & (np.signbit(true) != np.signbit(result))
    return np.where(wrong, np.inf, errors)


@dataclass(frozen=True)
class Worst:
    """The largest error seen, where, and how many inputs were tried."""

    error: float
    inputs: tuple[float, ...]
    tried: int

    def joined(self, other: Worst) -> Worst:
        first = self if self.error >= other.error else other
        return Worst(first.error, first.inputs, self.tried + other.tried)


def chunks(arity: int, part: int, parts: int, stride: int) -> Iterator[list[Array]]:
    """The inputs of one of `parts` workers."""
    if arity == 1:
        offsets = np.arange(CHUNK, dtype=np.uint32) * np.uint32(stride)
        for start in range(part * CHUNK * stride, 1 << 32, parts * CHUNK * stride):
            count = min(CHUNK, ((1 << 32) - start) // stride // 16 * 16)
            yield [(offsets[:count] + np.uint32(start)).view(np.float32)]
        return
    random = np.random.default_rng(part)
    for number in range((1 << 26) // CHUNK // parts // stride):
        if number % 2:
            pair = random.integers(0, 1 << 32, (2, CHUNK), dtype=np.uint32).view(np.float32)
        else:
            pair = (random.normal(size=(2, CHUNK)) * [[5.0], [20.0]]).astype(np.float32)
        yield [np.ascontiguousarray(side) for side in pair]


def sweep(name: str, machine_name: str, part: int, parts: int, stride: int) -> Worst:
    """The worst error of one worker's share."""
    import torch

    torch.set_num_threads(1)
    function = compile_function(name, "f32", 16, machine_name)
    worst = Worst(-1.0, (), 0)
    for inputs in chunks(ARITY.get(name, 1), part, parts, stride):
        result, true = function(*inputs), truth(name, *inputs)
        if np.isnan(true).all() and np.isnan(result).all():
            worst = Worst(worst.error, worst.inputs, worst.tried + true.size)
            continue
        errors = ulp_errors(result, true)
        place = int(np.argmax(errors))
        found = Worst(float(errors[place]), tuple(float(x[place]) for x in inputs), true.size)
        worst = worst.joined(found)
    return worst


def speed(name: str, machine_name: str) -> tuple[float, float]:
    """Elements a nanosecond of ours and of torch's own op, one thread, 2^20 inputs, the best of interleaved runs."""
    import torch

    torch.set_num_threads(1)
    function = compile_function(name, "f32", 16, machine_name)
    inputs = [np.random.default_rng(i).normal(size=1 << 20).astype(np.float32) for i in range(ARITY.get(name, 1))]
    # inside the domain: libraries may take a slow way for what gives NaN
    if name in ("log", "log2", "log10", "log1p", "sqrt", "rsqrt", "pow", "acosh", "digamma"):
        inputs[0] = np.abs(inputs[0]) + np.float32(name == "acosh")
    if name in ("asin", "acos", "atanh", "erfinv"):
        inputs[0] = np.random.default_rng(0).uniform(-1, 1, 1 << 20).astype(np.float32)
    out = np.empty_like(inputs[0])
    torch_function = getattr(torch.special, name) if name in ("erf", "erfc") else getattr(torch, name, None)
    tensors, torch_out = [torch.from_numpy(x) for x in inputs], torch.empty(1 << 20)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(15):
        began = time.perf_counter()
        function(*inputs, out=out)
        times[0].append(time.perf_counter() - began)
        if torch_function is not None:
            began = time.perf_counter()
            torch_function(*tensors, out=torch_out)
            times[1].append(time.perf_counter() - began)
    ours, theirs = (out.size / min(side) * 1e-9 if side else float("nan") for side in times)
    return ours, theirs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="functions; all but the C library's own by default")
    parser.add_argument("--machine", default=host().name)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--stride", type=int, default=1)
    options = parser.parse_args()
    print("| function | max error (ulp) | at | inputs tried | elements/ns | torch | ratio |")
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: |")
    for name in options.names or [name for name in TABLE if name not in LIBRARY]:
        ours, theirs = speed(name, options.machine)
        with ProcessPoolExecutor(options.processes) as pool:
            shares = [
                pool.submit(sweep, name, options.machine, part, options.processes, options.stride)
                for part in range(options.processes)
            ]
            worst = shares[0].result()
            for share in shares[1:]:
                worst = worst.joined(share.result())
        place = ", ".join(f"{x:.9g}" for x in worst.inputs)
        tried = "all" if ARITY.get(name, 1) == 1 and options.stride == 1 else f"{worst.tried:,}"
        print(
            f"| {name} | {worst.error:.3f} | {place} | {tried} | {ours:.2f} | {theirs:.2f} | {ours / theirs:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
