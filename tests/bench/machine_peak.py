"""What this machine can do, measured with loops of our own: multiply-adds a second, and bytes read or copied a second.

The loops are compiled by the compiler's own emitter and run on the thread pool that its kernels and torch use. Each figure is
the best of many short runs: a limit is what nothing exceeds, and a slow moment of a shared machine is no limit.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from dlcompiler.codegen.cpu.driver import compile_driver
from dlcompiler.codegen.cpu.emitter import Emitter, Value
from dlcompiler.codegen.cpu.jit import Module, compile_mlir
from dlcompiler.codegen.cpu.machine import host
from torch import Tensor

ELEMENTS = {torch.float32: "f32", torch.float64: "f64"}
SECONDS = 0.1  # spent on one figure
QUIET = 0.85  # of what undisturbed threads get or do: less has another cause than a lower clock
ROUNDS = 1 << 15  # of the register loop in one run, below a millisecond
STREAMS = 8  # vectors read or written in one iteration
IN_MEMORY = 1 << 28  # bytes that no cache holds
IN_ONE_RUN = 1 << 26  # bytes that one run moves at the least, so that starting threads does not count


def multiply_add_loop(e: Emitter, name: str, element: str, accumulators: int) -> None:
    """Independent multiply-adds on registers: as many sums as there are registers for, so that no result is waited for."""
    machine = host()
    lanes = machine.lanes(4 if element == "f32" else 8)
    with e.func(name, [("args", "ptr"), ("low", "i64"), ("high", "i64")]) as (args, low, high):
        source, target = e.buffers(args, 2)
        a, b = e.load(source, 0, element, lanes), e.load(source, lanes, element, lanes)
        starts = [e.load(source, 2 * lanes + number, element, lanes) for number in range(accumulators)]
        with e.for_loop(low, high, 1, starts) as loop:
            sums = loop.carried
            # without the instruction a multiplication and an addition are the peak
            loop.next(*(e.fma(a, b, s) if machine.has_fma else e.add(e.mul(a, b), s) for s in sums))
        store_sum(e, loop.results, target, low, e.load(args, 2, "i64"))


def read_loop(e: Emitter) -> None:
    """The sum of [low, high) of an array, `words[3]` times over."""
    lanes = host().lanes(4)
    with e.func("read", [("args", "ptr"), ("low", "i64"), ("high", "i64")]) as (args, low, high):
        source, target = e.buffers(args, 2)
        zeros = [e.constant(0.0, "f32", lanes)] * STREAMS
        with e.for_loop(0, e.load(args, 3, "i64"), 1, zeros) as again:
            with e.for_loop(low, high, STREAMS * lanes, again.carried) as loop:
                vectors = [e.load(source, e.add(loop.index, k * lanes), "f32", lanes) for k in range(STREAMS)]
                loop.next(*(e.add(s, v) for s, v in zip(loop.carried, vectors)))
            again.next(*loop.results)
        store_sum(e, again.results, target, low, e.load(args, 2, "i64"))


def copy_loop(e: Emitter, name: str, nontemporal: bool) -> None:
    """[low, high) of one array copied to another, `words[3]` times over; past the caches or through them."""
    lanes = host().lanes(4)
    with e.func(name, [("args", "ptr"), ("low", "i64"), ("high", "i64")]) as (args, low, high):
        source, target = e.buffers(args, 2)
        with e.for_loop(0, e.load(args, 3, "i64"), 1), e.for_loop(low, high, STREAMS * lanes) as loop:
            places = [e.add(loop.index, k * lanes) for k in range(STREAMS)]
            for place, vector in zip(places, [e.load(source, place, "f32", lanes) for place in places]):
                e.store(vector, target, place, nontemporal)


def store_sum(e: Emitter, sums: tuple[Value, ...], target: Value, low: Value, part: Value) -> None:
    """Writes what the loop computed, each thread to a place of its own, so that nobody may leave the loop out."""
    total = sums[0]
    for value in sums[1:]:
        total = e.add(total, value)
    e.store(total, target, e.mul(e.div(low, part), total.lanes))


@cache
def loops() -> Module:
    """The compiled loops, once a process."""
    machine = host()
    e = Emitter(machine=machine)
    # two registers hold the factors; a few are left to the compiler
    accumulators = machine.vector_registers * 3 // 4
    for element in ELEMENTS.values():
        multiply_add_loop(e, f"multiply_add_{element}", element, accumulators)
    read_loop(e)
    copy_loop(e, "copy", nontemporal=False)
    copy_loop(e, "copy_past_caches", nontemporal=True)
    return compile_mlir(e.text(), ["multiply_add_f32", "multiply_add_f64", "read", "copy", "copy_past_caches"])


def runner(name: str, buffers: tuple[Tensor, Tensor], part: int, repeats: int, threads: int) -> Callable[[], None]:
    """A call that gives each of `threads` threads `part` iterations of a loop, `repeats` times over."""
    words = torch.tensor([*(buffer.data_ptr() for buffer in buffers), part, repeats])
    step = torch.tensor([loops().address(name), words.data_ptr(), part * threads, part, 1])
    run = torch.tensor([step.data_ptr(), 1, 0, 0, 0, 1])
    driver: Any = compile_driver().function("driver", ctypes.c_void_p, ctypes.c_int64)

    def call(keep_alive: tuple[Tensor, ...] = (*buffers, words, step)) -> None:
        driver(run.data_ptr(), threads)

    return call


def quickest(call: Callable[[], None], seconds: float) -> float:
    """The least seconds of one call among those that fit into `seconds`, two at the least."""
    call()
    best = float("inf")
    end = time.perf_counter() + seconds
    for number in range(1 << 20):
        began = time.perf_counter()
        call()
        now = time.perf_counter()
        best = min(best, now - began)
        if now > end and number:
            break
    return best


def multiply_add_peak(threads: int, dtype: torch.dtype = torch.float32, seconds: float = SECONDS) -> float:
    """FLOP a second of multiply-adds on registers, two to each, by all threads together."""
    machine = host()
    lanes = machine.lanes(dtype.itemsize)
    buffers = torch.full((4 * lanes + machine.vector_registers,), 1e-3, dtype=dtype), torch.zeros(threads * lanes, dtype=dtype)
    call = runner(f"multiply_add_{ELEMENTS[dtype]}", buffers, ROUNDS, 1, threads)
    flops = 2 * lanes * (machine.vector_registers * 3 // 4) * ROUNDS * threads
    return flops / quickest(call, seconds)


def narrow_gains() -> dict[torch.dtype, int]:
    """How many products of a narrow type one instruction makes in the time of one float32 multiply-add, for each lane."""
    return {torch.bfloat16: 2 if host().has_bfloat_products else 1, torch.float16: 1}


def busy_warning(threads: int, peak: float) -> str:
    """A sentence if something else runs beside, else empty.

    Then threads that never wait get less than all of their processors' time, or do not reach together what one reaches alone.
    """
    began, used = time.perf_counter(), time.process_time()
    again = multiply_add_peak(threads)
    share = (time.process_time() - used) / (time.perf_counter() - began) / threads
    alone = multiply_add_peak(1)
    if share >= QUIET and max(peak, again) >= QUIET * threads * alone:
        return ""
    return (
        f"THE MACHINE IS BUSY, these figures are not worth quoting: {100 * share:.0f} % of {threads} processors were had, "
        f"one thread alone reaches {alone / 1e9:.1f} GFLOP/s."
    )


def part_elements(size: int, threads: int) -> int:
    """How many float32 elements each thread gets of `size` bytes: whole iterations, one at the least."""
    block = STREAMS * host().lanes(4)
    return max(1, size // (4 * threads * block)) * block


def read_bandwidth(threads: int, size: int = IN_MEMORY, seconds: float = SECONDS) -> float:
    """Bytes a second read, over and over, from an array of `size` bytes."""
    part = part_elements(size, threads)
    repeats = max(1, IN_ONE_RUN // size)
    buffers = torch.ones(part * threads), torch.zeros(threads * host().lanes(4))
    return 4 * part * threads * repeats / quickest(runner("read", buffers, part, repeats, threads), seconds)


def copy_bandwidth(threads: int, size: int = IN_MEMORY, seconds: float = SECONDS) -> float:
    """Bytes a second read and written by copies between two arrays of `size` bytes together; the better way of storing."""
    part = part_elements(size // 2, threads)
    repeats = max(1, IN_ONE_RUN // size)
    buffers = torch.ones(part * threads), torch.zeros(part * threads)
    moved = 2 * 4 * part * threads * repeats
    return max(
        moved / quickest(runner(name, buffers, part, repeats, threads), seconds / 2) for name in ("copy", "copy_past_caches")
    )
