"""Rows of tables measured on a GPU: systems compiled side by side, checked against eager, timed in turns, written as they come.

A row that fails says what was raised and goes on with the next; the whole traceback goes to the log.
"""

from __future__ import annotations

import json
import statistics
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from dlcompiler.ir.errors import CompilerError
from torch import Tensor
from torch.utils import _pytree

from dlcompiler.torch_backend import backend
from tests.bench.gpu_device import gpu

NOT_MEASURED = "not measured"
ROUNDS = 10
PEERS = ("eager", "inductor", "inductor graphs", "dlcompiler")
LARGEST_DIFFERENCE = {torch.float16: 3e-2, torch.bfloat16: 2e-1, torch.float32: 2e-3}


def failures() -> tuple[type[Exception], ...]:
    """What a system that cannot do something raises."""
    from triton.errors import TritonError

    own = (
        RuntimeError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        AssertionError,
        NotImplementedError,
        OSError,
        ImportError,
    )
    return (*own, ArithmeticError, CompilerError, TritonError)


class Clock:
    """How much of the time allowed is left."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self.end - time.monotonic()


class Output:
    """Where tables go: to the terminal line by line and, where a folder is given, into `gpu.md`, `gpu.jsonl` and `gpu.log`."""

    def __init__(self, folder: str | None) -> None:
        self.folder = Path(folder) if folder else None
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)

    def line(self, text: str = "") -> None:
        print(text, flush=True)
        self._append("gpu.md", text)

    def table(self, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """A table whose rows are made, and written, one after another."""
        self.line("| " + " | ".join(head) + " |\n|" + " --- |" * len(head))
        for row in rows:
            self.line("| " + " | ".join(map(str, row)) + " |")
            self._append("gpu.jsonl", json.dumps(dict(zip(head, map(str, row)))))
        self.line()

    def log(self, what: str) -> None:
        """The exception being handled, with its traceback."""
        text = f"== {what}\n{traceback.format_exc()}"
        if self.folder is None:
            print(text, flush=True)
        self._append("gpu.log", text)

    def _append(self, name: str, text: str) -> None:
        if self.folder is not None:
            with (self.folder / name).open("a") as file:
                file.write(text + "\n")


def short(error: Exception) -> str:
    """One cell's worth of what was raised."""
    first = str(error).strip().partition("\n")[0].replace("|", "/")
    return f"failed: {type(error).__name__}: {first[:80]}"


@contextmanager
def reported(output: Output, what: str, found: list[Any]):
    """What fails inside is written down, and its short form appended to `found`."""
    try:
        yield
    except failures() as error:
        output.log(what)
        found.append(short(error))


def compiled(function: Callable[..., Any], peer: str) -> Callable[..., Any]:
    """A function as a system runs it. Call `torch._dynamo.reset()` between rows, not between systems: it forgets them all."""
    if peer == "eager" or (gpu().is_interpreted and peer != "dlcompiler"):
        return function
    if peer == "dlcompiler":
        return torch.compile(function, backend=backend, dynamic=False)
    mode = {"inductor": None, "inductor graphs": "reduce-overhead", "inductor max-autotune": "max-autotune"}[peer]
    return torch.compile(function, mode=mode, dynamic=False)


def seconds_of(functions: Sequence[Callable[[], Any]], rounds: int = ROUNDS) -> list[float]:
    """Median seconds of each on the GPU, in turns, after warming up (a CUDA graph is recorded in the second call)."""
    for function in functions:
        for _ in range(1 if gpu().is_interpreted else 4):
            function()
    gpu().synchronize()
    spent: list[list[float]] = [[] for _ in functions]
    for _ in range(1 if gpu().is_interpreted else rounds):
        for k, function in enumerate(functions):
            spent[k].append(gpu().seconds(function))
    return [statistics.median(each) for each in spent]


def difference(ours: Any, other: Any) -> float:
    """The largest difference of floats over the largest number, of two results of one shape."""
    pairs = zip(_pytree.tree_leaves(ours), _pytree.tree_leaves(other))
    floats = [(a.double(), b.double()) for a, b in pairs if isinstance(a, Tensor) and a.is_floating_point() and a.numel()]
    return max((float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in floats), default=0.0)


class Row:
    """One function run by several systems. `cells[peer]` is seconds, or a sentence; `ready` what runs it."""

    def __init__(self, output: Output, name: str, function: Callable[..., Any], inputs: Sequence[Any], clock: Clock) -> None:
        self.output, self.name, self.function, self.inputs, self.clock = output, name, function, inputs, clock
        self.cells: dict[str, float | str] = {}
        self.first: dict[str, float] = {}  # seconds until the first result
        self.ready: dict[str, Callable[..., Any]] = {}
        self.difference = ""

    def run(self, peers: Sequence[str]) -> Row:
        """Compile, check and time."""
        torch._dynamo.reset()
        expected: Any = None
        for peer in peers:
            if self.clock.left < 15:
                self.cells[peer] = f"{NOT_MEASURED} (time)"
                continue
            found: list[Any] = []
            with reported(self.output, f"{self.name}, {peer}", found):
                begin = time.monotonic()
                made = compiled(self.function, peer)
                result = made(*self.inputs)
                gpu().synchronize()
                self.first[peer] = time.monotonic() - begin
                if peer == "eager":
                    expected = result
                elif peer == "dlcompiler" and expected is not None:
                    self._check(result, expected)
                self.ready[peer] = made
            if found:
                self.cells[peer] = found[0]
        self._time()
        return self

    def _check(self, result: Any, expected: Any) -> None:
        found = difference(result, expected)
        dtype = next((x.dtype for x in _pytree.tree_leaves(expected) if isinstance(x, Tensor)), torch.float32)
        self.difference = f"{found:.0e}"
        if not found <= LARGEST_DIFFERENCE.get(dtype, 2e-3):
            self.difference += " WRONG"

    def _time(self) -> None:
        """All in turns; should that fail, each alone, so that the others keep their numbers."""
        found: list[Any] = []
        running = list(self.ready)
        with reported(self.output, f"{self.name}, timing", found):
            medians = seconds_of([lambda f=self.ready[peer]: f(*self.inputs) for peer in running])
            self.cells |= dict(zip(running, medians))
        for peer in running if found else []:
            mine: list[Any] = []
            with reported(self.output, f"{self.name}, timing {peer}", mine):
                (self.cells[peer],) = seconds_of([lambda f=self.ready[peer]: f(*self.inputs)])
            if mine:
                self.cells[peer] = mine[0]

    def shown(self, peers: Sequence[str], show: Callable[[float], str]) -> list[str]:
        """A cell for each."""
        cells = [self.cells.get(peer, NOT_MEASURED) for peer in peers]
        return [cell if isinstance(cell, str) else show(cell) for cell in cells]

    def peak(self, peer: str) -> int | None:
        """Bytes that one call allocates beyond what was there, at the most; None where the system does not run."""
        if not isinstance(self.cells.get(peer), float):
            return None
        return gpu().peak_bytes(lambda: self.ready[peer](*self.inputs))
