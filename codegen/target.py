"""What code is made for. The architecture is an argument, never asked of the live machine inside the compiler."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dlcompiler.ir.errors import OptionError
from dlcompiler.ir.scalar import SCALARS
from dlcompiler.ir.types import DType, TensorType, compute_dtype

if TYPE_CHECKING:
    from dlcompiler.ir.graph import Builder, Node
    from dlcompiler.ir.kernel import Buffer, Kernel

CPU_ARCHITECTURES = ("x86-64-v2", "x86-64-v3", "x86-64-v4", "aarch64")
GPU_ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")

# Ops that a library runs whole on each kind of target; everything else becomes kernels of our own.
LIBRARY_OPS = {
    "cpu": frozenset({"matmul", "linear", "convolution", "attention", "scan"}),
    "cuda": frozenset({"matmul", "linear", "convolution", "attention", "lstm", "gru", "rnn"}),
}


@dataclass(frozen=True)
class Target:
    """`kind` is cpu or cuda; `arch` the instruction set, as `x86-64-v3` or `sm_90`; `host` whether it is this very machine's."""

    kind: str
    arch: str
    host: bool = False

    @property
    def library_ops(self) -> frozenset[str]:
        """Ops kept whole for a library."""
        return LIBRARY_OPS[self.kind]

    @property
    def tiles_sums(self) -> bool:
        """Whether kernels of ours compute matrix products and convolutions as well as a library, or better."""
        return self.kind == "cpu"

    def contracts(self, kernel: Kernel, fixed: Set[Buffer]) -> bool:
        """Whether a kernel is a sum of products that our tiles compute, and at least as quickly as a library.

        `fixed`: buffers that keep their contents between calls, so that they are packed once.
        """
        if self.kind != "cpu":
            return False
        from dlcompiler.codegen.contraction import is_worth_it
        from dlcompiler.codegen.cpu.compile import machine_of

        return is_worth_it(kernel, fixed, machine_of(self).tiles)

    def panel_width(self, kernel: Kernel, fixed: Set[Buffer]) -> int | None:
        """How wide the panels should be in which such a kernel reads its columns; None to read them where they lie."""
        from dlcompiler.codegen.contraction import panel_width
        from dlcompiler.codegen.cpu.compile import machine_of

        return panel_width(kernel, fixed, machine_of(self).tiles)

    def winograd_sizes(self, convolution: Node) -> tuple[int, ...] | None:
        """The tiles by which Winograd's algorithm is expected to be quicker for a plain convolution; None if it is not."""
        from dlcompiler.codegen.cpu.compile import machine_of
        from dlcompiler.codegen.winograd import Convolution, choose_sizes

        if self.kind != "cpu":
            return None
        (columns, channels, *taps), (batch, _, *results) = convolution.inputs[1].shape, convolution.shape
        sizes = (*taps, *results, channels, columns)
        if not all(isinstance(size, int) for size in sizes):
            return None
        images = batch if isinstance(batch, int) else 1
        return choose_sizes(Convolution(images, tuple(results), tuple(taps), channels, columns), machine_of(self).tiles)

    def winograd_width(self, kernel: Kernel, fixed: Set[Buffer], sizes: tuple[int, ...]) -> int | None:
        """How wide panels should be for that; None where this target does not compute the kernel so."""
        from dlcompiler.codegen.cpu.compile import machine_of
        from dlcompiler.codegen.winograd import winograd_width

        return winograd_width(kernel, fixed, sizes, machine_of(self).tiles) if self.kind == "cpu" else None

    def scratch_of_routine(self, node: Node) -> Sequence[TensorType] | None:
        """The scratch memory of the hand-written kernel that computes a graph node; None if there is no such kernel."""
        if self.kind != "cpu":
            return None
        from dlcompiler.codegen.cpu.compile import machine_of
        from dlcompiler.codegen.cpu.routines import find_routine

        machine = machine_of(self)
        routine = find_routine(node, machine)
        return None if routine is None else routine.scratch(node, machine)

    def packing_of_routine(self, node: Node) -> Mapping[int, Callable[[Builder, Node], Node]]:
        """Operands that this kernel reads in an arrangement of its own, and how to write that with views."""
        from dlcompiler.codegen.cpu.compile import machine_of
        from dlcompiler.codegen.cpu.routines import Packs, find_routine

        machine = machine_of(self)
        routine = find_routine(node, machine)
        return routine.packing(node, machine) if isinstance(routine, Packs) else {}

    def spells(self, op: str, dtype: DType) -> bool:
        """Whether kernels for this target can compute the graph op on (or to) elements of `dtype`; a library has to otherwise."""
        if dtype.kind == "complex":
            return False
        if op not in SCALARS or not SCALARS[op].accepts(dtype):
            return True  # made of loads, casts and scalar operations that are asked one by one, or the other side of a comparison
        if self.kind == "cpu":
            from dlcompiler.codegen.cpu.scalars import spelled
        else:
            from dlcompiler.codegen.gpu.scalars import spelled
        return spelled(op, compute_dtype(dtype))

    def __str__(self) -> str:
        return f"{self.kind}:{self.arch}"


def parse_target(text: str) -> Target:
    """`cpu`, `cpu:x86-64-v3`, `cuda`, `cuda:sm_90`. Without an architecture: this machine's CPU, or sm_90.

    Raises OptionError naming the nearest target.
    """
    kind, _, arch = text.partition(":")
    if kind == "cpu":
        from dlcompiler.codegen.cpu.machine import host

        native = host().name
        if not arch or arch == native:
            return Target("cpu", native, host=True)
        if arch in CPU_ARCHITECTURES:
            return Target("cpu", arch)
    if kind == "cuda":
        if not arch:
            return Target("cuda", "sm_90")
        if arch in GPU_ARCHITECTURES:
            return Target("cuda", arch)
    known = known_targets()
    near = difflib.get_close_matches(text, known, 1)
    raise OptionError(f"unknown target {text!r}", hint=f"did you mean {near[0]!r}?" if near else f"one of {', '.join(known)}")


def known_targets() -> list[str]:
    """All that `parse_target` takes."""
    return ["cpu", "cuda", *(f"cpu:{a}" for a in CPU_ARCHITECTURES), *(f"cuda:{a}" for a in GPU_ARCHITECTURES)]
