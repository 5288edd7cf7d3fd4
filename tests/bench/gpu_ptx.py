"""What the code of the main kernels does with memory and tensor cores, read out of their PTX; needs no GPU.

    python -m tests.bench.gpu_ptx [--arch sm_90] [--only NAME,...] [--ptx]

For each kernel: bits of its widest loads and stores of global memory and how many are narrower than 16 bytes, asynchronous copies
(`cp.async`; `bulk` by the tensor memory accelerator), instructions of tensor cores, barriers, loads and stores of local memory,
registers, shared memory and the threads that one multiprocessor holds of those it has room for.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from dlcompiler.codegen.gpu.device import device_of
from dlcompiler.codegen.gpu.evidence import occupancy
from dlcompiler.ir.program import DeviceKernel
from torch import Tensor
from torch.nn import functional

import dlcompiler

_GLOBAL = re.compile(r"\b(ld|st)\.global((?:\.\w+(?:::\w+)*)*)")
_VECTOR = re.compile(r"\.v(\d)")
_BITS = re.compile(r"\.[busf](\d+)$")
_TENSOR = re.compile(r"\b(wgmma\.mma_async|tcgen05\.mma|mma)\.[\w.:]*?\.(f32|s32|f16|kind::\w+)[\w.:]*")


@dataclass(frozen=True)
class Facts:
    """What one PTX text holds: counts of instructions as written, not as run.

    loads, stores   of global memory: bits that one thread moves -> how many instructions
    tensor          names of instructions of tensor cores
    """

    loads: dict[int, int] = field(default_factory=dict)
    stores: dict[int, int] = field(default_factory=dict)
    copies: int = 0
    bulk: int = 0
    tensor: frozenset[str] = frozenset()
    barriers: int = 0
    local: int = 0
    multiplies: int = 0


def facts_of(ptx: str) -> Facts:
    """The facts of a kernel's PTX."""
    moved: dict[str, dict[int, int]] = {"ld": {}, "st": {}}
    for kind, suffix in _GLOBAL.findall(ptx):
        vector, bits = _VECTOR.search(suffix), _BITS.search(suffix)
        if bits is not None:
            width = int(bits[1]) * (int(vector[1]) if vector else 1)
            moved[kind][width] = moved[kind].get(width, 0) + 1
    instructions = re.findall(r"^\s*(?:@!?%p\d+\s+)?([a-z][\w.:]*)", ptx, re.MULTILINE)
    tensor = {name for name in instructions if name.startswith(("wgmma.mma_async", "tcgen05.mma", "mma.sync"))}
    return Facts(
        moved["ld"],
        moved["st"],
        copies=sum(name.startswith("cp.async.c") for name in instructions),
        bulk=sum(name.startswith("cp.async.bulk.tensor") for name in instructions),
        tensor=frozenset(tensor),
        barriers=sum(name.startswith(("bar.sync", "barrier.sync")) for name in instructions),
        local=sum(name.startswith(("ld.local", "st.local")) for name in instructions),
        multiplies=sum(name.startswith("fma.") for name in instructions),
    )


# -- the kernels -------------------------------------------------------------------------------------------------------------


def _random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def _layer(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return functional.gelu(functional.linear(x, w, b))


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def _convolve(x: Tensor, w: Tensor) -> Tensor:
    return functional.relu(functional.conv2d(x, w, padding=1))


def _linear(dtype: torch.dtype) -> tuple[Tensor, ...]:
    return _random(4096, 1024, dtype=dtype), _random(4096, 1024, dtype=dtype), _random(4096, dtype=dtype)


f32, bf16 = torch.float32, torch.bfloat16
# name -> function, inputs, options
CASES: dict[str, tuple[Callable[..., Any], Callable[[], Sequence[Tensor]], dict[str, str]]] = {
    "gelu float32": (lambda x: functional.gelu(x), lambda: [_random(4096, 4096, dtype=f32)], {}),
    "add bfloat16": (lambda x, y: x + y, lambda: [_random(4096, 4096), _random(4096, 4096)], {}),
    "turned add": (lambda x: x.t().contiguous() + 1, lambda: [_random(4096, 4096, dtype=f32)], {}),
    "softmax float32": (lambda x: x.softmax(-1), lambda: [_random(4096, 4096, dtype=f32)], {}),
    "softmax bfloat16": (lambda x: x.softmax(-1), lambda: [_random(4096, 4096)], {}),
    "layer norm bfloat16": (
        lambda x, w, b: functional.layer_norm(x, (1024,), w, b), lambda: [_random(8192, 1024), _random(1024), _random(1024)], {},
    ),
    "column sum": (lambda x: (x * x).sum(0), lambda: [_random(4096, 4096, dtype=f32)], {}),
    "embedding": (lambda i, w: w[i] * 2, lambda: [torch.zeros(8192, dtype=torch.int64), _random(50257, 768, dtype=f32)], {}),
    "cross-entropy": (
        lambda x, t: functional.cross_entropy(x, t), lambda: [_random(4096, 50257), torch.zeros(4096, dtype=torch.int64)], {},
    ),
    "linear bfloat16": (_layer, lambda: _linear(bf16), {}),
    "linear tf32": (_layer, lambda: _linear(f32), {"float32": "tf32"}),
    "linear ieee": (_layer, lambda: _linear(f32), {"float32": "ieee"}),
    "one token": (lambda x, w: functional.linear(x, w), lambda: [_random(1, 4096), _random(4096, 4096)], {}),
    "16 tokens": (lambda x, w: functional.linear(x, w), lambda: [_random(16, 4096), _random(4096, 4096)], {}),
    "attention bfloat16": (_attend, lambda: [_random(1, 16, 4096, 128) for _ in "qkv"], {}),
    "convolution bfloat16": (_convolve, lambda: [_random(8, 256, 56, 56), _random(256, 256, 3, 3)], {}),
}  # fmt: skip


def kernels_of(name: str, arch: str) -> list[DeviceKernel]:
    """The kernels of one case as assembled, in order."""
    function, inputs, options = CASES[name]
    made = dlcompiler.compile(function, tuple(inputs()), target=f"cuda:{arch}", options=options)
    return [kernel for kernel in made.program.code.kernels if kernel is not None]


def row(name: str, kernel: DeviceKernel, arch: str) -> str:
    facts, resources = facts_of(kernel.stages["ptx"]), kernel.resources
    share = occupancy(device_of(arch), kernel.threads, resources.registers, kernel.shared_bytes)
    tensor = ", ".join(sorted(facts.tensor)) or f"{facts.multiplies} fma"
    cells = (name, kernel.schedule, _moved(facts.loads), _moved(facts.stores), f"{facts.copies}/{facts.bulk}", tensor,
             facts.barriers, facts.local, resources.registers, kernel.shared_bytes, f"{share:.0%}")  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def _moved(counts: dict[int, int]) -> str:
    return ", ".join(f"{count} x {width}" for width, count in sorted(counts.items(), reverse=True)) or "-"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--only", default=",".join(CASES))
    parser.add_argument("--ptx", action="store_true", help="print the texts, too")
    chosen = parser.parse_args()
    head = ("kernel", "schedule", "loads, bits", "stores, bits", "copies/bulk", "products", "barriers", "local", "registers",
            "shared", "occupancy")  # fmt: skip
    print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    for name in chosen.only.split(","):
        for kernel in kernels_of(name, chosen.arch):
            print(row(name, kernel, chosen.arch), flush=True)
            if chosen.ptx:
                print(kernel.stages["triton"], kernel.stages["ptx"], sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
