"""Memory of an optimizer's state, got ready by a thread of its own while a step is being compiled.

The first touch of memory takes as long as copying it several times: of a model's momentum and squares, a good part of the
compilation's time. Dynamo and our passes need one core meanwhile.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterable

import torch
from torch import Tensor


class ZerosAhead:
    """Tensors full of zeros, made before they are asked for."""

    def __init__(self) -> None:
        self._ready: dict[Tensor, list[Tensor]] = {}
        self._thread: threading.Thread | None = None

    def start(self, wanted: Iterable[tuple[Tensor, int]]) -> None:
        """Begin to make so many tensors like each of these, where it is in the memory of a CPU."""
        todo = [(tensor, count) for tensor, count in wanted if tensor.device.type == "cpu" and count]
        if todo and self._thread is None:
            self._thread = threading.Thread(target=self._make, args=(todo,), name="dlcompiler-zeros", daemon=True)
            self._thread.start()

    def full_like(self, tensor: Tensor, value: float) -> Tensor:
        """As `torch.full_like`; one that is ready if there is one."""
        if value == 0.0 and self._thread is not None and tensor.device.type == "cpu":
            self._thread.join()
            ready = self._ready.get(tensor, [])
            while ready:
                zeros = ready.pop()
                if (zeros.dtype, zeros.shape, zeros.device) == (tensor.dtype, tensor.shape, tensor.device):
                    return zeros
        return torch.full_like(tensor, value, memory_format=torch.preserve_format, requires_grad=False)

    def forget(self) -> None:
        """Free what nobody has asked for."""
        if self._thread is not None:
            self._thread.join()
        self._ready.clear()

    def _make(self, todo: list[tuple[Tensor, int]]) -> None:
        for tensor, count in todo:
            try:
                made = [torch.empty_like(tensor, memory_format=torch.preserve_format) for _ in range(count)]
            except RuntimeError:  # no memory; whoever needs it will say so
                return
            for each in made:
                # not by torch, whose threads would take the other cores from the compiler
                ctypes.memset(each.data_ptr(), 0, each.untyped_storage().nbytes())
            self._ready[tensor] = made
