"""What calls on one stream of a GPU own: the arena, every kernel's arguments with all addresses that never change already in
them, and tensors over memory for library calls.

Work on a stream runs in order, so calls on the same stream use one frame, one after another, while earlier ones still run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any, NamedTuple

import torch
from dlcompiler.ir.errors import LaunchError
from dlcompiler.runtime.cuda_driver import Words
from dlcompiler.runtime.gpu_plan import ALIGNMENT, PREPARED, GpuLaunch, GpuPlan
from dlcompiler.runtime.plan import Aten, Place, Run
from dlcompiler.runtime.tables import ARENA
from dlcompiler.runtime.tensors import same_layout, tensor_over
from torch import Tensor


class Given(NamedTuple):
    """A call's inputs that are tensors, in order, as the kernels read them.

    replaced  copies among them, by the position of the input that each is a copy of
    """

    tensors: Sequence[Tensor]
    addresses: list[int]
    replaced: Mapping[int, Tensor]


class _Start:
    """One launch that is ready: the loaded kernel, its words, and which of them change from call to call."""

    __slots__ = ("blocks", "loaded", "number", "patches", "repeats", "words")

    def __init__(
        self,
        number: int,
        loaded: Any,
        blocks: int,
        words: Words,
        patches: tuple[tuple[int, int, int], ...],
        repeats: tuple[int, int] | None = None,
    ) -> None:
        self.number, self.loaded, self.blocks, self.words = number, loaded, blocks, words
        self.patches = patches  # (word, base, bytes beyond it)
        self.repeats = repeats  # (word that is the number of the start, how many starts); None: one, without a number


class GpuFrame:
    """See the module. One thread at a time."""

    def __init__(self, plan: GpuPlan) -> None:
        self.plan, self.device = plan, plan.shared.device
        # not an inference tensor, even if this first call is in inference mode: later calls write to it outside
        with torch.inference_mode(False):
            self._arena = torch.empty(plan.placement.arena_bytes + ALIGNMENT, dtype=torch.uint8, device=plan.device)
        self.arena = -(-self._arena.data_ptr() // ALIGNMENT) * ALIGNMENT
        self._scratch: list[Tensor] = []
        self.bases = [0] * plan.bases
        self.externs: dict[int, Tensor] = {}
        self._known = [-1] * plan.bases
        self.tensors: list[Any] = [self._fixed_tensor(place) for place in plan.places]
        self._watched: dict[int, list[int]] = {}
        for k, place in enumerate(plan.places):
            if place.base >= 0:
                self._watched.setdefault(place.base, []).append(k)
        self._sections = [self._section(k, section) for k, section in enumerate(plan.sections)]
        self._preparation = [self._start(p.record) for p in plan.preparation]  # type: ignore[arg-type]

    # -- building --------------------------------------------------------------------------------------------------------------

    def _fixed_tensor(self, place: Place) -> Tensor | None:
        if place.base in (ARENA, PREPARED):
            return tensor_over(place.offset + (self.arena if place.base == ARENA else 0), self.plan.device, *place.layout)
        return place.constant

    def _section(self, number: int, section: Any) -> tuple[list[_Start] | None, Any, tuple[int, ...]]:
        starts = [self._start(launch) for launch in section.launches] if isinstance(section, Run) else None  # type: ignore[arg-type]
        return starts, section, self.plan.dropped.get(number, ())

    def _start(self, launch: GpuLaunch) -> _Start:
        kernel = launch.kernel
        values = [w.value + (self.arena if w.base == ARENA else 0) for w in launch.words]
        patches = tuple((k, w.base, w.value) for k, w in enumerate(launch.words) if w.base is not None and w.base >= 0)
        extra = [0] * kernel.extra_words
        if kernel.scratch_bytes and launch.blocks:
            memory = torch.empty(kernel.scratch_bytes * launch.blocks + ALIGNMENT, dtype=torch.uint8, device=self.plan.device)
            self._scratch.append(memory)
            extra[0] = -(-memory.data_ptr() // ALIGNMENT) * ALIGNMENT
        repeats = None
        if launch.repeats is not None:
            repeats = (len(values), launch.repeats)
            values.append(0)
        return _Start(launch.number, self.device.load(kernel), launch.blocks, Words([*values, *extra]), patches, repeats)

    # -- a call ----------------------------------------------------------------------------------------------------------------

    def set_base(self, base: int, address: int) -> None:
        """Say where an input, an output or an extern tensor lies in this call; it must live until the steps are started."""
        self.bases[base] = address
        if address != self._known[base]:
            self._known[base] = address
            for k in self._watched.get(base, ()):
                place = self.plan.places[k]
                self.tensors[k] = tensor_over(address + place.offset, self.plan.device, *place.layout)

    def set_inputs(self, addresses: Sequence[int]) -> None:
        """Say where the inputs that are tensors lie."""
        for base, address in zip(self.plan.tensor_inputs, addresses):
            self.set_base(base, address)

    def allocate_outputs(self) -> list[Tensor]:
        """Fresh memory for a call's outputs, whose places are set."""
        device = self.plan.device
        outputs = [torch.empty_strided(shape, strides, dtype=dtype, device=device) for dtype, shape, strides in self.plan.outputs]
        for base, output in enumerate(outputs, self.plan.first_output):
            self.set_base(base, output.data_ptr())
        return outputs

    def prepare(self) -> None:
        """Fill prepared memory; inputs are set."""
        for start in self._preparation:
            self._launch(start, self.device.stream())

    def run_steps(self) -> None:
        """Start every step on the current stream."""
        stream = self.device.stream()
        for starts, section, dropped in self._sections:
            if starts is not None:
                for start in starts:
                    self._launch(start, stream)
            else:
                self._run_torch(section)
            for base in dropped:
                del self.externs[base]

    def time_steps(self, synchronize: Callable[[], None]) -> list[tuple[int, float]]:
        """As `run_steps`, waiting for each step: (step, seconds) for each."""
        times = []
        for starts, section, dropped in self._sections:
            parts: Sequence[Any] = starts if starts is not None else [section]
            for part in parts:
                synchronize()
                begin = perf_counter()
                if starts is not None:
                    self._launch(part, self.device.stream())
                else:
                    self._run_torch(part)
                synchronize()
                times.append((part.number, perf_counter() - begin))
            for base in dropped:
                del self.externs[base]
        return times

    def _launch(self, start: _Start, stream: int) -> None:
        if not start.blocks:
            return
        values = start.words.values
        for word, base, offset in start.patches:
            values[word] = self.bases[base] + offset
        if start.repeats is None:
            self.device.start(start.loaded, start.blocks, start.words, stream)
            return
        # the driver copies the arguments of a start before it returns
        word, count = start.repeats
        for number in range(count):
            values[word] = number
            self.device.start(start.loaded, start.blocks, start.words, stream)

    def _run_torch(self, section: Any) -> None:
        results = section.routine(self.tensors)
        if not isinstance(section, Aten):
            return
        for base, result in zip(section.results, results if isinstance(results, tuple | list) else (results,)):
            if base is not None:
                self.externs[base] = tensor = self._adopted(base, result, section)
                self.set_base(base, tensor.data_ptr())

    def _adopted(self, base: int, result: Any, section: Aten) -> Tensor:
        """A tensor that ATen made, as an extern slot; a copy if it is laid out otherwise, or is a view of an operand."""
        plan = self.plan
        dtype, shape, strides = plan.externs[base - plan.first_extern]
        if not isinstance(result, Tensor) or result.shape != shape or result.dtype is not dtype:
            target = plan.program.steps[section.number].target  # type: ignore[union-attr]
            given = f"{result.dtype}{list(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
            raise LaunchError(f"{target} gave {given} where {dtype}{list(shape)} was expected")
        storage = result.untyped_storage().data_ptr()
        is_view = any(self.tensors[k].untyped_storage().data_ptr() == storage for k in section.operands)
        fits = same_layout(shape, result.stride(), strides) and result.device == plan.device and not result.data_ptr() % 16
        if is_view or not fits or result.is_neg() or result.is_conj():
            return torch.empty_strided(shape, strides, dtype=dtype, device=plan.device).copy_(result)
        return result
