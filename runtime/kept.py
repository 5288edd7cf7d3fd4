"""A program as data, with every size known, and what runs it with NumPy alone: no torch, no compiler, no IR.

    kept = freeze(program, placement)       # `runtime.freeze`: None for a program that needs a library
    text = kept.as_text()                   # goes to disk; `KeptProgram.from_text` is the inverse
    run = KeptExecutable(kept, functions, driver, constants)
    outputs = run(arrays)

It says where each kernel's operands lie, as `runtime.plan` does; functions and constants are numbers here, which whoever loads it
turns into addresses.
"""

from __future__ import annotations

import ctypes
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from dlcompiler.ir.types import DTYPES
from dlcompiler.runtime.memory import address_of, anonymous_memory
from dlcompiler.runtime.tables import ALIGNMENT, ARENA, CONSTANT, LaunchRecord, Word, driver_table

Shape = tuple[int, ...]
IDLE_FRAMES = 8  # wait for the next call; more exist only while more calls are in progress


class KeptTensor(NamedTuple):
    """An input or output: element type by name, shape, strides in elements."""

    dtype: str
    shape: Shape
    strides: Shape


class KeptResult(NamedTuple):
    """What a call hands back: a window on output (or constant) number `at`; `offset` and `strides` in elements."""

    kind: str
    at: int
    shape: Shape
    strides: Shape
    offset: int
    dtype: str


class KeptLaunch(NamedTuple):
    """One launch. `words` are (base, value); a base counts inputs, then outputs, then prepared memory; ARENA; `value` bytes
    beyond it; CONSTANT - k is constant k; None is a plain number.
    """

    function: int
    work: int
    grain: int
    multiple: int
    words: tuple[tuple[int | None, int], ...]


@dataclass(frozen=True)
class KeptProgram:
    """See the module. `functions` by name, as the store of machine code knows them; sizes in bytes."""

    inputs: tuple[KeptTensor, ...]
    outputs: tuple[KeptTensor, ...]
    results: tuple[KeptResult, ...]
    functions: tuple[str, ...]
    steps: tuple[KeptLaunch, ...]
    preparation: tuple[KeptLaunch, ...]
    arena_bytes: int
    prepared_bytes: int
    constants: int
    indices: tuple[tuple[int, int, int, int | None], ...] = ()  # see `Graph.indices`

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> KeptProgram:
        """The inverse of `as_dict`, also after a way through JSON, which makes tuples lists."""

        def tensors(key: str) -> tuple[KeptTensor, ...]:
            return tuple(KeptTensor(dtype, tuple(shape), tuple(strides)) for dtype, shape, strides in found[key])

        def launches(key: str) -> tuple[KeptLaunch, ...]:
            return tuple(
                KeptLaunch(function, work, grain, multiple, tuple((base, value) for base, value in words))
                for function, work, grain, multiple, words in found[key]
            )

        results = tuple(KeptResult(k, at, tuple(sh), tuple(st), offset, d) for k, at, sh, st, offset, d in found["results"])
        arena, prepared, constants = (found[key] for key in ("arena_bytes", "prepared_bytes", "constants"))
        functions, indices = tuple(found["functions"]), tuple(map(tuple, found["indices"]))
        steps, preparation = launches("steps"), launches("preparation")
        inputs, outputs = tensors("inputs"), tensors("outputs")
        return cls(inputs, outputs, results, functions, steps, preparation, arena, prepared, constants, indices)

    def as_text(self) -> str:
        return json.dumps(self.as_dict())

    @classmethod
    def from_text(cls, text: str) -> KeptProgram:
        return cls.from_dict(json.loads(text))


class KeptExecutable:
    """Runs a kept program. Safe to call from several threads: each call in progress has a frame of its own.

    functions  address of each of `program.functions`; driver: of the C function `driver`
    constants  the memory of each constant, as bytes; nobody may change it
    keep_alive  what the addresses live by
    """

    def __init__(
        self, program: KeptProgram, functions: Sequence[int], driver: int, constants: Sequence[np.ndarray], keep_alive: Any
    ) -> None:
        self.program = program
        self._constants, self._keep_alive = constants, keep_alive
        self._addresses = [address(constant) for constant in constants]
        self._functions = functions
        self.driver: Callable[[int, int], None] = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(driver)
        self.prepared = len(program.inputs) + len(program.outputs)
        self._dtypes = [DTYPES[tensor.dtype].numpy for tensor in program.inputs]
        self._frames: list[_Frame] = []
        self._lock = threading.Lock()
        self._memory: Any = None

    def fits(self, arrays: Sequence[np.ndarray]) -> bool:
        """Whether these are what the program takes, whatever their strides; positions in a dimension lie within it."""
        inputs = self.program.inputs
        if len(arrays) != len(inputs) or not all(
            array.dtype == dtype and array.shape == tensor.shape for array, tensor, dtype in zip(arrays, inputs, self._dtypes)
        ):
            return False
        return all(
            bool(np.all(((arrays[k] >= lowest) & (arrays[k] <= highest)) | (arrays[k] == allowed)))
            for k, lowest, highest, allowed in self.program.indices
        )

    def __call__(self, arrays: Sequence[np.ndarray], threads: int) -> list[np.ndarray]:
        """Arrays that fit, to fresh arrays, on at most so many threads."""
        held = [_laid_out(array, tensor.strides) for array, tensor in zip(arrays, self.program.inputs)]
        outputs = [empty_array(*tensor) for tensor in self.program.outputs]
        try:
            frame = self._frames.pop()
        except IndexError:  # not asked before: another thread may take the last one in between
            frame = _Frame(self, threads)
        try:
            frame.run([address(array) for array in (*held, *outputs)], threads)
        finally:
            if len(self._frames) < IDLE_FRAMES:
                self._frames.append(frame)
        return [self._result(result, outputs) for result in self.program.results]

    def prepared_memory(self, threads: int) -> int:
        """Address of what is computed from constants alone; made by the first call."""
        with self._lock:
            if self._memory is None:
                memory = anonymous_memory(self.program.prepared_bytes)
                bases = (ctypes.c_int64 * (self.prepared + 1))()
                bases[self.prepared] = address_of(memory)
                table = driver_table(self.records(self.program.preparation), 0, bases)
                self.driver(table.ctypes.data, threads)
                self._memory = memory
            return address_of(self._memory)

    def records(self, launches: Sequence[KeptLaunch]) -> list[LaunchRecord]:
        """Launches with addresses in place of numbers."""
        return [
            LaunchRecord(
                number, self._functions[function], tuple(self._word(base, value) for base, value in words), work, grain, multiple
            )
            for number, (function, work, grain, multiple, words) in enumerate(launches)
        ]

    def _word(self, base: int | None, value: int) -> Word:
        if base is not None and base <= CONSTANT:
            return Word(None, self._addresses[CONSTANT - base] + value)
        return Word(base, value)

    def _result(self, result: KeptResult, outputs: Sequence[np.ndarray]) -> np.ndarray:
        dtype = DTYPES[result.dtype].numpy
        strides = tuple(step * dtype.itemsize for step in result.strides)
        if result.kind == "output":
            whole = outputs[result.at]
            if result.offset == 0 and whole.shape == result.shape and whole.strides == strides:
                return whole
            memory = whole.base  # all of its bytes
            assert memory is not None
            start = address(whole) - address(memory)
            return np.ndarray(result.shape, dtype, memory, start + result.offset * dtype.itemsize, strides)
        constant = np.ndarray(result.shape, dtype, self._constants[result.at], result.offset * dtype.itemsize, strides)
        return constant.copy()  # the caller may write to it


class _Frame:
    """Everything one call in progress owns: the arena and a table with all addresses that never change already in it."""

    def __init__(self, owner: KeptExecutable, threads: int) -> None:
        program = owner.program
        self.driver = owner.driver
        self.memory = anonymous_memory(program.arena_bytes + ALIGNMENT)  # begins at a page
        self.bases: Any = (ctypes.c_int64 * (owner.prepared + 1))()
        if program.preparation:
            self.bases[owner.prepared] = owner.prepared_memory(threads)
        self.table = driver_table(owner.records(program.steps), address_of(self.memory), self.bases)
        self.start = self.table.ctypes.data

    def run(self, addresses: list[int], threads: int) -> None:
        self.bases[: len(addresses)] = addresses
        self.driver(self.start, threads)


def address(array: np.ndarray) -> int:
    """Of an array's first element."""
    return int(array.__array_interface__["data"][0])


def empty_array(dtype: str, shape: Shape, strides: Shape) -> np.ndarray:
    """Fresh memory that begins at a cache line. `strides` in elements, none of them negative."""
    kind = DTYPES[dtype].numpy
    elements = 0 if 0 in shape else 1 + sum((size - 1) * step for size, step in zip(shape, strides))
    memory = np.empty(elements * kind.itemsize + ALIGNMENT, np.uint8)
    return np.ndarray(shape, kind, memory, -address(memory) % ALIGNMENT, tuple(step * kind.itemsize for step in strides))


def _laid_out(array: np.ndarray, strides: Shape) -> np.ndarray:
    """The array if its elements lie as the program expects them, else a copy where they do."""
    item = array.itemsize
    if 0 in array.shape or all(size == 1 or a == b * item for size, a, b in zip(array.shape, array.strides, strides)):
        return array
    span = 1 + sum((size - 1) * step for size, step in zip(array.shape, strides))
    copy = np.ndarray(array.shape, array.dtype, np.empty(span * item, np.uint8), 0, tuple(step * item for step in strides))
    copy[...] = array
    return copy


__all__ = ["ARENA", "CONSTANT", "KeptExecutable", "KeptLaunch", "KeptProgram", "KeptResult", "KeptTensor"]
