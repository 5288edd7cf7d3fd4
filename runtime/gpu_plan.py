"""A program for a GPU with every size known, and the memory that all calls share: constants and what is prepared from them."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from dlcompiler.ir.errors import LaunchError
from dlcompiler.ir.expression import evaluate
from dlcompiler.ir.program import DeviceCode, DeviceKernel, Launch, Placement, Program, RoutineCall, Slot
from dlcompiler.runtime.constants import source_of, tensor_on_device, update_copy
from dlcompiler.runtime.cuda_driver import MOST_BLOCKS
from dlcompiler.runtime.device import Device
from dlcompiler.runtime.plan import Plan, Word
from dlcompiler.runtime.prepared import Versions, probed_places, versions_of
from dlcompiler.runtime.tables import ARENA
from dlcompiler.runtime.tensors import span, torch_dtype
from torch import Tensor

ALIGNMENT = 256  # bytes; of each constant and prepared slot in its memory
VECTOR = 16  # bytes that kernels may read at once, so that a tensor of a model that begins elsewhere is copied
PREPARED = -3  # the "base" of what the preparation has made: there is one copy, which never moves


class GpuLaunch(NamedTuple):
    """One launch with sizes known; `number` is its step. `repeats`: how often it is started, None: once, with no number."""

    number: int
    kernel: DeviceKernel
    words: tuple[Word, ...]
    blocks: int
    repeats: int | None = None


class Prepared(NamedTuple):
    """What memory was prepared from: how often constants had been copied, and addresses and versions of the inputs."""

    generation: int
    addresses: list[int]
    versions: Versions


class GpuShared:
    """What all plans of one executable share. Constants are copied to the device, once, and again when their tensors change.

    A tensor of a model that is on the device, and lies as its slot says, is read where it is: there is no second one.

    constants   a tensor on the device for each constant slot
    own         those of them that are copies
    prepared    the address of each prepared slot
    prepared_from  what memory was prepared from; None before
    generation  how often constants have been copied again
    streams     those on which calls have read any of it
    """

    pack = False

    def __init__(self, program: Program, device: Device) -> None:
        code = program.code
        if not isinstance(code, DeviceCode):
            raise LaunchError(f"program {program.name} was not compiled for a GPU")
        self.program, self.code, self.device = program, code, device
        self.lock = threading.RLock()
        self.prepared_from: Prepared | None = None
        self.generation = 0
        self.streams = {device.stream()}
        # tensors of the user's model behind constants, as they were when they were copied
        sources = {slot: source_of(program.constants[slot.position]) for slot in program.slots if slot.role == "constant"}
        self._watched = Watched({slot: tensor for slot, tensor in sources.items() if tensor is not None})
        with torch.inference_mode(False), torch.no_grad():
            self.constants, self.own = {}, set()
            for slot in sources:
                there = _own_tensor(program, slot, device)
                self.constants[slot] = self._upload(slot) if there is None else there
                if there is None:
                    self.own.add(slot)
            self._memory, self.prepared = self._allocate_prepared()

    def join(self, stream: int) -> None:
        """Let calls on a stream read what is shared. One after the other on one stream need not wait for anything.

        Who records a stream has waited for all others before, as `torch.cuda.graph` does, and may not wait meanwhile.
        """
        if stream in self.streams:
            return
        if not self.device.is_recording():
            self.device.synchronize()
        self.device.share([self._memory, *(self.constants[slot] for slot in self.own)])
        self.streams.add(stream)

    def settle(self) -> None:
        """Before what is shared is written, and after: wait for calls on other streams, if there are any."""
        if len(self.streams) > 1:
            self.device.synchronize()

    def _upload(self, slot: Slot) -> Tensor:
        """The constant on the device, laid out as its slot says."""
        value = program_constant(self.program, slot)
        shape, strides = tuple(evaluate(d, {}) for d in slot.shape), tuple(evaluate(d, {}) for d in slot.strides)
        on_device = torch.empty_strided(shape, strides, dtype=torch_dtype(slot.dtype), device=self.device.torch_device)
        return on_device.copy_(value)

    def refresh_constants(self) -> None:
        """Copy constants again whose tensors have changed, into the memory they have."""
        changed = self._watched.changed()
        if not changed:
            return
        if self.device.is_recording():
            raise LaunchError(
                "weights have changed since the last call", hint="call it once more before you record it in a graph"
            )
        self.settle()
        self._watched.remember()
        with torch.inference_mode(False), torch.no_grad():
            for slot in changed:
                if slot in self.own:
                    update_copy(self.program.constants[slot.position])
                    self.constants[slot].copy_(program_constant(self.program, slot))
        self.settle()
        self.generation += 1

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


def _own_tensor(program: Program, slot: Slot, device: Device) -> Tensor | None:
    return tensor_on_device(program.constants[slot.position], slot, device.torch_device, VECTOR)


def kept_bytes(program: Program, device: Device) -> int:
    """Memory that `GpuShared` takes on the device."""
    slots = [
        s for s in program.slots if s.role == "prepared" or (s.role == "constant" and _own_tensor(program, s, device) is None)
    ]
    return sum(slot.bytes for slot in slots if isinstance(slot.bytes, int))


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


class Watched:
    """Tensors of the user's, to notice changes: by their version counters, and on the CPU by a few of their bytes too.

    `tensor.data.mul_(2)` moves no counter. To look at bytes on a device every call would have to wait for it, so there a change
    through `.data` is not noticed.
    """

    def __init__(self, tensors: Mapping[Slot, Tensor]) -> None:
        self._slots, self._tensors = list(tensors), list(tensors.values())
        places = [probed_places(tensor) if tensor.device.type == "cpu" else [] for tensor in self._tensors]
        self._cells = [_CELLS[width].from_address(address) for each in places for address, width in each]
        self._counts = [len(each) for each in places]
        self.remember()

    def remember(self) -> None:
        """What they are now counts as unchanged."""
        self._versions, self._held = self._read()

    def _read(self) -> tuple[Versions, list[int]]:
        return versions_of(self._tensors), [cell.value for cell in self._cells]

    def changed(self) -> list[Slot]:
        """Those that are other than was remembered; also those of which that cannot be told."""
        versions, held = self._read()
        if versions == self._versions and held == self._held and None not in versions:
            return []
        found, at = [], 0
        for slot, old, new, count in zip(self._slots, self._versions, versions, self._counts):
            if new is None or old != new or self._held[at : at + count] != held[at : at + count]:
                found.append(slot)
            at += count
        return found


_CELLS: dict[int, Any] = {1: ctypes.c_uint8, 2: ctypes.c_uint16, 4: ctypes.c_uint32}


class GpuPlan(Plan):
    """As `Plan`, for a device: launches are `GpuLaunch`es."""

    shared: GpuShared  # type: ignore[assignment]
    input_alignment = VECTOR

    def __init__(self, shared: GpuShared, bindings: Mapping[str, int], placement: Placement) -> None:
        self.device = shared.device.torch_device
        super().__init__(shared, bindings, placement)  # type: ignore[arg-type]

    def position(self, slot: Slot) -> tuple[int, int]:
        if slot.role == "intermediate":
            return ARENA, self.placement.offsets[slot]  # a frame has one of its own, which never moves
        return (PREPARED, self.shared.prepared[slot]) if slot.role == "prepared" else super().position(slot)

    def _record(self, number: int, step: Launch | RoutineCall, kernel: Any) -> GpuLaunch:
        if not isinstance(kernel, DeviceKernel):
            raise LaunchError(f"step {number} has no code for a GPU")
        repeats = None if kernel.repeats is None else self.number(kernel.repeats)
        blocks = self.number(kernel.grid)
        if blocks > MOST_BLOCKS:
            raise LaunchError(
                f"step {number} has {blocks:,} blocks, and a launch {MOST_BLOCKS:,} at most", hint="use smaller sizes"
            )
        return GpuLaunch(number, kernel, tuple(self._words(step)), blocks, repeats)

    @property
    def call_bytes(self) -> int:
        """Memory that one call needs besides its inputs: arena, results, and what ATen allocates."""
        outputs = sum(span(layout.shape, layout.strides) * layout.dtype.itemsize for layout in self.outputs)
        return self.placement.arena_bytes + self.placement.extern_bytes + outputs
