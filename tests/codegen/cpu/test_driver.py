"""The driver: every part of every step is run once, steps wait for each other, addresses are patched."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import pytest
from dlcompiler.codegen.cpu.driver import PATCH_WORDS, RUN_WORDS, STEP_WORDS, compile_driver, driver_text
from dlcompiler.codegen.cpu.emitter import Emitter
from dlcompiler.codegen.cpu.jit import Module, compile_mlir
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def kernels() -> Module:
    """`count`: counter[i] += 1 and starts[i] = low for i in [low, high). `reverse`: target[i] = source[work - 1 - i] + 1."""
    e = Emitter()
    with e.func("count", [("words", "ptr"), ("low", "i64"), ("high", "i64")]) as (words, low, high):
        counter, starts = e.buffers(words, 2)
        with e.for_loop(low, high) as loop:
            e.store(e.add(e.load(counter, loop.index, "i64"), 1), counter, loop.index)
            e.store(low, starts, loop.index)
    with e.func("reverse", [("words", "ptr"), ("low", "i64"), ("high", "i64")]) as (words, low, high):
        source, target, work = e.load(words, 0, "ptr"), e.load(words, 1, "ptr"), e.load(words, 2, "i64")
        with e.for_loop(low, high) as loop:
            mirrored = e.sub(e.sub(work, 1), loop.index)
            e.store(e.add(e.load(source, mirrored, "i64"), 1), target, loop.index)
    return compile_mlir(e.text(), ["count", "reverse"])


Step = tuple[int, Sequence[int], int, int, int]  # function, words, work, grain, multiple


def run(
    steps: Sequence[Step], threads: int, patches: Sequence[tuple[int, int, int]] = (), bases: Sequence[int] = (), driver=None
):
    """Run steps through the driver. A patch is (base, bytes, position among all words)."""
    words = [word for step in steps for word in step[1]]
    table = np.zeros(RUN_WORDS + STEP_WORDS * len(steps) + PATCH_WORDS * len(patches) + len(words), dtype=np.int64)
    base_table = np.array([*bases, 0], dtype=np.int64)
    first_patch = RUN_WORDS + STEP_WORDS * len(steps)
    first_word = first_patch + PATCH_WORDS * len(patches)
    start = table.ctypes.data
    worth = any(step[2] > step[3] for step in steps)
    table[:RUN_WORDS] = start + 8 * RUN_WORDS, len(steps), start + 8 * first_patch, len(patches), base_table.ctypes.data, worth
    at = first_word
    for k, (function, own, *rest) in enumerate(steps):
        table[RUN_WORDS + STEP_WORDS * k : RUN_WORDS + STEP_WORDS * (k + 1)] = function, start + 8 * at, *rest
        table[at : at + len(own)] = own
        at += len(own)
    for k, (base, offset, position) in enumerate(patches):
        place = first_patch + PATCH_WORDS * k
        table[place : place + PATCH_WORDS] = base, offset, start + 8 * (first_word + position)
    module = driver or compile_driver()
    module.function("driver", ctypes.c_void_p, ctypes.c_int64)(start, threads)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.integers(0, 200), st.integers(1, 60), st.sampled_from([1, 2, 16]), st.integers(1, 5))
def test_every_iteration_runs_once_in_parts_that_begin_at_multiples(kernels, work: int, grain: int, multiple: int, threads: int):
    counter, starts = np.zeros(work + 1, dtype=np.int64), np.full(work + 1, -1, dtype=np.int64)
    words = [counter.ctypes.data, starts.ctypes.data]
    run([(kernels.address("count"), words, work, grain, multiple)], threads)
    assert counter[:work].tolist() == [1] * work and counter[work] == 0
    parts = sorted(set(starts[:work].tolist()))
    assert all(part % multiple == 0 for part in parts) and len(parts) <= threads
    if work <= grain:
        assert parts in ([], [0])
    elif threads > 1 and -(-work // multiple) >= 2:
        assert len(parts) > 1  # what is worth two threads, and can be cut, is cut


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_steps_wait_for_each_other(kernels, threads: int) -> None:
    # each step reads what another thread has written in the step before
    work, length = 3000, 12
    buffers = [np.zeros(work, dtype=np.int64) for _ in range(length + 1)]
    steps = [
        (kernels.address("reverse"), [a.ctypes.data, b.ctypes.data, work], work, work if k in (4, 5) else 1, 1)
        for k, (a, b) in enumerate(zip(buffers, buffers[1:]))
    ]
    for repetition in range(30):
        buffers[0][:] = np.arange(work) + repetition
        run(steps, threads)
        expected = np.arange(work) + repetition + length
        assert np.array_equal(buffers[-1], expected if length % 2 == 0 else expected[::-1])


def test_patches_write_base_plus_bytes(kernels) -> None:
    counters = np.zeros((2, 8), dtype=np.int64)
    starts = np.zeros(8, dtype=np.int64)
    patches = [(1, 16, 0), (0, 0, 1)]
    run([(kernels.address("count"), [0, 0], 4, 100, 1)], 1, patches, [starts.ctypes.data, counters[1].ctypes.data])
    assert counters.tolist() == [[0] * 8, [0, 0, 1, 1, 1, 1, 0, 0]]


def test_a_driver_without_threads(kernels) -> None:
    driver = compile_mlir(driver_text(threads=False), ["driver"])
    counter = np.zeros(100, dtype=np.int64)
    run([(kernels.address("count"), [counter.ctypes.data] * 2, 0, 1, 1)], 4, driver=driver)
    assert not counter.any()
    starts = np.zeros(100, dtype=np.int64)
    run([(kernels.address("count"), [counter.ctypes.data, starts.ctypes.data], 100, 1, 1)], 4, driver=driver)
    assert (counter == 1).all()


def test_an_empty_run_does_nothing() -> None:
    run([], 2)
