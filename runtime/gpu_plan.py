"""A program for a GPU with every size known, and the memory that all calls share: constants and what is prepared from them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from dlcompiler.ir.errors import LaunchError
from dlcompiler.ir.expression import evaluate
from dlcompiler.ir.program import DeviceCode, DeviceKernel, Launch, Placement, Program, RoutineCall, Slot
from dlcompiler.runtime.constants import tensor_behind
from dlcompiler.runtime.device import Device
from dlcompiler.runtime.plan import Plan, Word
from dlcompiler.runtime.tensors import span, torch_dtype
from torch import Tensor

ALIGNMENT = 256  # bytes; of each constant and prepared slot in its memory
PREPARED = -3  # the "base" of what the preparation has made: there is one copy, which never moves


class GpuLaunch(NamedTuple):
    """One launch with sizes known; `number` is its step."""

    number: int
    kernel: DeviceKernel
    words: tuple[Word, ...]
    blocks: int


class GpuShared:
    """What all plans of one executable share. Constants are copied to the device, once, and again when their tensors change.

    constants   a tensor on the device for each constant slot
    prepared    the address of each prepared slot
    prepared_from  address and version of each tensor that memory was prepared from; None before
    """

    pack = False

    def __init__(self, program: Program, device: Device) -> None:
        code = program.code
        if not isinstance(code, DeviceCode):
            raise LaunchError(f"program {program.name} was not compiled for a GPU")
        self.program, self.code, self.device = program, code, device
        self.lock = threading.RLock()
        self.prepared_from: list[tuple[int, int | None]] | None = None
        # tensors of the user's model behind constants, and their versions when they were copied
        self._behind = {
            slot: tensor_behind(program.constants[slot.position]) for slot in program.slots if slot.role == "constant"
        }
        self._versions: dict[Slot, int | None] = {}
        with torch.inference_mode(False), torch.no_grad():
            self.constants = {slot: self._upload(slot) for slot in self._behind}
            self._memory, self.prepared = self._allocate_prepared()
        self._remember_versions()

    def _upload(self, slot: Slot) -> Tensor:
        """The constant on the device, laid out as its slot says."""
        value = program_constant(self.program, slot)
        shape, strides = tuple(evaluate(d, {}) for d in slot.shape), tuple(evaluate(d, {}) for d in slot.strides)
        on_device = torch.empty_strided(shape, strides, dtype=torch_dtype(slot.dtype), device=self.device.torch_device)
        return on_device.copy_(value)

    def _remember_versions(self) -> None:
        self._versions = {slot: _version(t) for slot, t in self._behind.items() if t is not None}

    def refresh_constants(self) -> None:
        """Copy constants again whose tensors have changed in place, into the memory they have. Nothing may be running."""
        changed = [slot for slot, version in self._versions.items() if version is None or version != _version(self._behind[slot])]
        if not changed:
            return
        self.device.synchronize()
        with torch.inference_mode(False), torch.no_grad():
            for slot in changed:
                self.constants[slot].copy_(program_constant(self.program, slot))
        self.device.synchronize()
        self._remember_versions()

    def _allocate_prepared(self) -> tuple[Tensor, dict[Slot, int]]:
        offsets, end = {}, 0
        for slot in self.program.slots:
            if slot.role == "prepared":
                assert isinstance(slot.bytes, int), slot
                offsets[slot] = end
                end += -(-slot.bytes // ALIGNMENT) * ALIGNMENT
        memory = torch.empty(end + ALIGNMENT, dtype=torch.uint8, device=self.device.torch_device)
        start = -(-memory.data_ptr() // ALIGNMENT) * ALIGNMENT
        return memory, {slot: start + offset for slot, offset in offsets.items()}

    def packed(self, key: tuple, make: Callable[[], Tensor]) -> Tensor | None:
        """`library.Views`: libraries for GPUs rearrange nothing."""
        return None


def program_constant(program: Program, slot: Slot) -> Tensor:
    """A constant as a tensor of the slot's dtype, wherever it lies."""
    value = program.constants[slot.position]
    if isinstance(value, Tensor):
        return value.detach()
    array = np.asarray(value)
    if slot.dtype.name == "bf16":
        return torch.from_numpy(np.ascontiguousarray(array).view(np.int16)).view(torch.bfloat16)
    if not array.flags.writeable or any(s < 0 for s in array.strides):
        array = array.copy()
    return torch.from_numpy(array)


def _version(tensor: Tensor | None) -> int | None:
    return None if tensor is None or tensor.is_inference() else tensor._version


class GpuPlan(Plan):
    """As `Plan`, for a device: launches are `GpuLaunch`es."""

    shared: GpuShared  # type: ignore[assignment]
    input_alignment = 16  # kernels read vectors of so many bytes

    def __init__(self, shared: GpuShared, bindings: Mapping[str, int], placement: Placement) -> None:
        self.device = shared.device.torch_device
        super().__init__(shared, bindings, placement)  # type: ignore[arg-type]

    def position(self, slot: Slot) -> tuple[int, int]:
        return (PREPARED, self.shared.prepared[slot]) if slot.role == "prepared" else super().position(slot)

    def _record(self, number: int, step: Launch | RoutineCall, kernel: Any) -> GpuLaunch:
        if not isinstance(kernel, DeviceKernel):
            raise LaunchError(f"step {number} has no code for a GPU")
        return GpuLaunch(number, kernel, tuple(self._words(step)), self.number(kernel.grid))

    @property
    def call_bytes(self) -> int:
        """Memory that one call needs besides its inputs: arena, results, and what ATen allocates."""
        outputs = sum(span(layout.shape, layout.strides) * layout.dtype.itemsize for layout in self.outputs)
        return self.placement.arena_bytes + self.placement.extern_bytes + outputs


def state_of(tensors: Sequence[Tensor]) -> list[tuple[int, int | None]]:
    """Address and version of each tensor; version None for one made in inference mode, which has none."""
    return [(t.data_ptr(), _version(t)) for t in tensors]
