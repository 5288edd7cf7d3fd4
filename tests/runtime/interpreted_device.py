"""A device without a GPU: tensors lie on the CPU, kernels run in Triton's interpreter, graphs are lists of launches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from dlcompiler.codegen.gpu.simulate import run_at
from dlcompiler.ir.program import DeviceKernel
from dlcompiler.runtime.cuda_driver import Words


class InterpretedDevice:
    """Counts what the runtime asks of it. `stream_now` is what the test says the current stream is."""

    torch_device = torch.device("cpu")

    def __init__(self, free: int = 1 << 40, cost: Callable[[DeviceKernel], float] = lambda kernel: 1e-6) -> None:
        self.free, self.cost = free, cost
        self._spent = 0.0  # seconds
        self._is_timing = False
        self._costs: dict[Callable[[], Any], float] = {}
        self.stream_now = 0
        self.started: list[tuple[str, int]] = []  # (kernel, stream)
        self.loads = self.waits = self.replays = self.recordings = 0
        self._record: list[tuple[DeviceKernel, int, list[int]]] | None = None

    def load(self, kernel: DeviceKernel) -> DeviceKernel:
        self.loads += 1
        return kernel

    def start(self, loaded: DeviceKernel, blocks: int, words: Words, stream: int) -> None:
        given = list(words.values)
        assert all(word == pointer for word, pointer in zip(given, self._read(words.pointers)))
        if self._record is not None:
            self._record.append((loaded, blocks, given))
            return
        self.started.append((loaded.name, stream))
        self._spent += self.cost(loaded)
        self._run(loaded, blocks, given)

    @staticmethod
    def _read(pointers: Sequence[Any]) -> list[int]:
        """What the driver would read: a word behind each pointer."""
        import ctypes

        return [ctypes.c_int64.from_address(pointer).value for pointer in pointers]

    @staticmethod
    def _run(kernel: DeviceKernel, blocks: int, words: Sequence[int]) -> None:
        run_at(kernel.written, words[: len(words) - kernel.extra_words], blocks)

    def stream(self) -> int:
        return self.stream_now

    def free_bytes(self) -> int:
        return self.free

    def active(self) -> nullcontext:
        return nullcontext()

    def share(self, tensors: Sequence[torch.Tensor]) -> None:
        pass

    def synchronize(self) -> None:
        self.waits += 1

    def seconds(self, runs: Sequence[Callable[[], Any]]) -> list[float]:
        """The same for the same run, which is done once: what `cost` says of each kernel that it starts. Graphs only count."""
        self._is_timing = True
        for run in runs:
            if run not in self._costs:
                self._spent = 0.0
                run()
                self._costs[run] = self._spent
        self._is_timing = False
        return [self._costs[run] for run in runs]

    def is_recording(self) -> bool:
        return False

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        self.recordings += 1
        self._record = launches = []
        try:
            run()
        finally:
            self._record = None

        def replay() -> None:
            self.replays += 1
            for kernel, blocks, words in launches:
                self._spent += self.cost(kernel)
                if not self._is_timing:
                    self._run(kernel, blocks, words)

        return replay
