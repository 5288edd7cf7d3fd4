"""A slot for kernels written by hand: each says what it computes better than the writers, and on which GPUs.

    register(Handwritten("fast_softmax", priority=10, applies=is_softmax, write=write_it))

Whoever assembles a kernel asks `find` first. Of several that apply the one of the highest priority is taken, of equal ones the
one registered first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dlcompiler.codegen.gpu.cuda_writer import CudaKernel
from dlcompiler.codegen.gpu.device import Device, device_of
from dlcompiler.codegen.gpu.triton_writer import TritonKernel
from dlcompiler.ir.kernel import Kernel


@dataclass(frozen=True)
class Handwritten:
    """One kernel written by hand.

    applies   whether it computes this very Kernel on this device, and better than what the writers make
    write     the kernel as Triton or CUDA C++; `aligned` buffers begin at multiples of 16 bytes
    """

    name: str
    priority: int
    applies: Callable[[Kernel, Device], bool]
    write: Callable[[Kernel, Device, frozenset[str]], TritonKernel | CudaKernel]


_registered: list[Handwritten] = []


def register(kernel: Handwritten) -> None:
    """Offer a kernel. Programs compiled before do not change."""
    _registered.append(kernel)
    _registered.sort(key=lambda each: -each.priority)


def unregister(kernel: Handwritten) -> None:
    """Take an offer back."""
    _registered.remove(kernel)


def find(kernel: Kernel, arch: str) -> Handwritten | None:
    """The hand-written kernel that computes `kernel` for an architecture, if there is one."""
    device = device_of(arch)
    return next((each for each in _registered if each.applies(kernel, device)), None)
