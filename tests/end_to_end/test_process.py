"""Threads, fork, spawn, leaks and reset."""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from tests.end_to_end.support import BACKEND, check, compile_with, compiled_graphs, leaves, ours_only, random_tensor

ROOT = Path(__file__).resolve().parents[2]
THREAD_COUNT = 8


def function(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    hidden = functional.softmax(x @ y, -1)
    return hidden, (hidden * x).sum(0)


def in_threads(work: Callable[[int], None]) -> None:
    """Runs ``work(number)`` in eight threads that start together; the first failure is raised here."""
    barrier = threading.Barrier(THREAD_COUNT)
    failures: list[BaseException] = []

    def run(number: int) -> None:
        barrier.wait()
        try:
            with torch.no_grad():
                work(number)
        except (AssertionError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError) as failure:
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREAD_COUNT)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if failures:
        raise failures[0]


def repeated_calls(compiled: Callable[..., Any], count: int) -> Callable[[int], None]:
    """Each thread calls with inputs of its own, again and again, and compares every answer."""

    def work(number: int) -> None:
        inputs = (random_tensor(33, 33, seed=number), random_tensor(33, 33, seed=number + 100))
        expected = function(*inputs)
        for _ in range(count):
            for ours, eager in zip(leaves(compiled(*inputs)), expected):
                torch.testing.assert_close(ours, eager)

    return work


def test_eight_threads_call_one_compiled_function(entry: str) -> None:
    inputs = (random_tensor(33, 33), random_tensor(33, 33, seed=100))
    with torch.no_grad():
        compiled = compile_with(entry, function, inputs)
        compiled(*inputs)
    in_threads(repeated_calls(compiled, 50))


def test_first_call_from_eight_threads(entry: str) -> None:
    inputs = (random_tensor(33, 33), random_tensor(33, 33, seed=100))
    in_threads(repeated_calls(compile_with(entry, function, inputs), 5))


EIGHT_COMPILATIONS = """
import threading, torch, dlcompiler
failures = []
def work(number):
    module = torch.nn.Sequential(torch.nn.Linear(8 + number, 5), torch.nn.GELU()).eval()
    x = torch.linspace(-1, 1, 4 * (8 + number)).view(4, -1)
    with torch.no_grad():
        torch.testing.assert_close(dlcompiler.compile(module, (x,))(x), module(x))
    failures.remove(number)
failures += range(8)
threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
assert not failures, f"threads {failures} failed"
"""


@ours_only
def test_eight_threads_compile_eight_models() -> None:
    """In a process of its own: threads that meet inside torch.export leave its tracing modes on for whatever comes next."""
    command = [sys.executable, "-c", EIGHT_COMPILATIONS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_call_with_another_number_of_threads_than_at_compilation(entry: str) -> None:
    inputs = (random_tensor(200, 200), random_tensor(200, 200, seed=1))
    compiled = compile_with(entry, function, inputs)
    for threads in (2, 1, 2):
        torch.set_num_threads(threads)
        check(function, inputs, compiled=compiled)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_call_in_a_forked_child(entry: str) -> None:
    inputs = (random_tensor(33, 33), random_tensor(33, 33, seed=1))
    compiled = compile_with(entry, function, inputs)
    expected = [value.clone() for value in leaves(compiled(*inputs))]
    context = multiprocessing.get_context("fork")
    answers = context.Queue()

    def child() -> None:
        torch.set_num_threads(1)  # as data-loader workers do; OpenMP's threads do not survive a fork
        answers.put([value.numpy().tobytes() for value in leaves(compiled(*inputs))])

    process = context.Process(target=child)
    process.start()
    try:
        found = answers.get(timeout=60)
    finally:
        process.kill()
        process.join()
    for ours, parent in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.frombuffer(bytearray(ours), dtype=parent.dtype).view(parent.shape), parent)


CHILD_PROGRAM = f"""
import torch
def function(x):
    return torch.softmax(x, -1) + torch.tanh(x)
x = torch.linspace(-3, 3, 40).view(4, 10)
ours = torch.compile(function, backend={BACKEND!r})(x)
torch.testing.assert_close(ours, function(x))
"""


def test_compile_in_a_spawned_process() -> None:
    process = multiprocessing.get_context("spawn").Process(target=exec, args=(CHILD_PROGRAM, {"__name__": "child"}))
    process.start()
    process.join(timeout=120)
    assert process.exitcode == 0


@ours_only
@pytest.mark.parametrize("first", ["dlcompiler", "triton"])
def test_import_orders(first: str) -> None:
    program = f"import {first}\nimport dlcompiler\n{CHILD_PROGRAM}"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@ours_only
def test_works_with_no_program_to_be_found(tmp_path: Path) -> None:
    environment = {"PATH": "", "HOME": str(tmp_path / "not there")}
    command = [sys.executable, "-c", CHILD_PROGRAM]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@ours_only
def test_import_is_quick_and_leaves_torch_alone() -> None:
    program = "import sys, dlcompiler; print(*sorted({'torch', 'triton', 'onnx', 'torch_mlir'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def open_files() -> int:
    """How many file descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


def make_module(seed: int) -> nn.Sequential:
    """A small model with weights of its own."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 4)).eval()


def test_dropped_models_are_freed(entry: str) -> None:
    x = random_tensor(3, 16)
    weights, files = [], []
    with torch.no_grad():
        for round_number in range(30):
            module = make_module(round_number)
            compiled = compile_with(entry, module, (x,))
            compiled(x)
            weights.append(weakref.ref(module[0].weight))
            del module, compiled
            torch._dynamo.reset()
            files.append(open_files())
    gc.collect()
    assert sum(weight() is not None for weight in weights) == 0
    assert files[-1] <= files[4]


@ours_only
def test_dropped_compiled_object_is_freed_without_any_reset() -> None:
    x = random_tensor(3, 16)
    gone: list[weakref.ref[Any]] = []
    for round_number in range(5):
        module = make_module(round_number)
        compiled = compile_with("dlcompiler.compile", module, (x,))
        compiled(x)
        gone += [weakref.ref(compiled), weakref.ref(module[0].weight)]
        del module, compiled
    gc.collect()
    assert sum(reference() is not None for reference in gone) == 0


def test_inputs_and_outputs_are_not_kept(entry: str) -> None:
    module = make_module(0)
    x = random_tensor(3, 16)
    with torch.no_grad():
        compiled = compile_with(entry, module, (x,))
        output = leaves(compiled(x))[0]
    dead = [weakref.ref(x), weakref.ref(output)]
    del x, output
    gc.collect()
    assert [reference() for reference in dead] == [None, None]


@ours_only
def test_memory_does_not_grow_with_calls() -> None:
    import resource

    x = random_tensor(256, 256)
    compiled = compile_with("torch.compile", function)
    for _ in range(50):
        compiled(x, x)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(3000):
        compiled(x, x)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 * 1024


@ours_only
def test_reset_forgets_and_later_calls_compile_again() -> None:
    x = random_tensor(8, 8)
    compiled = compile_with("torch.compile", function)
    compiled(x, x)
    assert compiled_graphs() == 1
    torch._dynamo.reset()
    assert compiled_graphs() == 0
    check(function, (x, x), compiled=compiled)
    assert compiled_graphs() == 1


@ours_only
def test_reset_leaves_a_direct_callable_working() -> None:
    import dlcompiler

    x = random_tensor(8, 8)
    compiled = compile_with("dlcompiler.compile", function, (x, x))
    dlcompiler.reset()
    check(function, (x, x), compiled=compiled)
