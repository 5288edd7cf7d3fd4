"""Contractions that real models are made of, each a module with inputs and the floating point operations it needs.

Names give sizes: linear layers rows x columns x inner, products batch x rows x columns x inner, convolutions
input channels - output channels, kernel, and the side of the input image. Convolutions but for the first one of a network
take channels innermost, as they do within a network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """A module in eval mode with its inputs.

    flops   of the contraction alone, two to a multiply-add, padding counted
    moved   bytes of inputs, weights and result, each once
    plain   an epilogue's case: the module without it, taking the first input only
    """

    name: str
    family: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    flops: int
    moved: int
    plain: nn.Module | None = None


class Product(nn.Module):
    """a @ b with either transposed before: attention's two products, and gradients of weights."""

    def __init__(self, transpose_a: bool = False, transpose_b: bool = False) -> None:
        super().__init__()
        self.transpose_a, self.transpose_b = transpose_a, transpose_b

    def sides(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """The matrices that are multiplied."""
        return a.mT if self.transpose_a else a, b.mT if self.transpose_b else b

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.matmul(*self.sides(a, b))


class Epilogue(nn.Module):
    """A linear layer and what follows it: relu, gelu, or the addition of a second input."""

    def __init__(self, linear: nn.Linear, kind: str) -> None:
        super().__init__()
        self.linear, self.kind = linear, kind

    def finish(self, x: Tensor, *residual: Tensor) -> Tensor:
        """What is done to the layer's result."""
        return x + residual[0] if self.kind == "add" else getattr(functional, self.kind)(x)

    def forward(self, x: Tensor, *residual: Tensor) -> Tensor:
        return self.finish(self.linear(x), *residual)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


def made(
    name: str, family: str, module: nn.Module, inputs: tuple[Tensor, ...], flops: int, plain: nn.Module | None = None
) -> Case:
    """The case, its bytes counted."""
    module.eval().requires_grad_(False)
    with torch.no_grad():
        out = module(*inputs)
    tensors = (*inputs, *module.parameters(), out)
    return Case(name, family, module, inputs, flops, sum(tensor.numel() * tensor.itemsize for tensor in tensors), plain)


def linear(name: str, family: str, rows: int, columns: int, inner: int, dtype: torch.dtype = torch.float32) -> Case:
    module = nn.Linear(inner, columns, dtype=dtype)
    return made(name, family, module, (normal(rows, inner, dtype=dtype),), 2 * rows * columns * inner)


def epilogue(name: str, rows: int, columns: int, inner: int, kind: str) -> Case:
    plain = nn.Linear(inner, columns)
    inputs = (normal(rows, inner), *([normal(rows, columns)] if kind == "add" else []))
    return made(name, "epilogue", Epilogue(plain, kind), inputs, 2 * rows * columns * inner, plain)


def product(
    name: str, family: str, batch: int, rows: int, columns: int, inner: int, a: bool = False, b: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Case:  # fmt: skip
    """`a`, `b`: whether that side lies transposed."""
    lead = (batch,) if batch else ()
    left = normal(*lead, *((inner, rows) if a else (rows, inner)), dtype=dtype)
    right = normal(*lead, *((columns, inner) if b else (inner, columns)), dtype=dtype)
    return made(name, family, Product(a, b), (left, right), 2 * max(batch, 1) * rows * columns * inner)


def convolution(name: str, family: str, module: nn.Module, sides: tuple[int, ...], batch: int = 1, plain: bool = False) -> Case:
    """`plain`: the channels are not the innermost dimension."""
    convolution: Any = module
    x = normal(batch, convolution.in_channels, *sides, dtype=convolution.weight.dtype)
    formats = {2: torch.channels_last, 3: torch.channels_last_3d}
    if not plain and len(sides) in formats:
        x = x.to(memory_format=formats[len(sides)])
    with torch.no_grad():
        points = prod((x if convolution.transposed else module(x)).shape[2:])
    return made(name, family, module, (x,), 2 * batch * points * convolution.weight.numel())


# rows, columns, inner
LINEARS: dict[str, list[tuple[int, int, int]]] = {
    "bert": [(128, 768, 768), (128, 3072, 768), (128, 768, 3072)],
    "bert-8": [(1024, 768, 768), (1024, 3072, 768), (1024, 768, 3072)],
    "vit": [(197, 768, 768), (197, 3072, 768), (197, 768, 3072), (198, 768, 768)],
    "gpt2": [(128, 2304, 768), (128, 50257, 768)],
    "t5": [(128, 512, 512), (128, 2048, 512), (128, 512, 2048)],
    "llama": [(128, 4096, 4096), (128, 1376, 512), (128, 512, 1376)],
    "mlp": [(256, 1024, 784), (64, 4096, 1024), (256, 10, 1024)],
    "odd": [(127, 515, 333), (33, 1001, 77), (7, 1000, 2049)],
}
TOKENS = [(1, 768, 768), (1, 3072, 768), (1, 50257, 768), (1, 4096, 4096), (1, 11008, 4096), (1, 4096, 11008)]
# heads (all of a batch together), length, width of a head
ATTENTION = {"bert": (12, 128, 64), "bert-8": (96, 128, 64), "vit": (12, 197, 64), "llama": (8, 512, 64)}
EPILOGUES = [
    (128, 3072, 768, "gelu"),
    (128, 768, 3072, "add"),
    (128, 768, 768, "relu"),
    (1024, 3072, 768, "gelu"),
    (197, 3072, 768, "gelu"),
]
# input channels, output channels, kernel, stride, side of the input: every distinct one of ResNet-50 but its first
RESNET50 = [
    (64, 64, 1, 1, 56), (64, 64, 3, 1, 56), (64, 256, 1, 1, 56), (256, 64, 1, 1, 56), (256, 128, 1, 1, 56), (128, 128, 3, 2, 56),
    (128, 512, 1, 1, 28), (256, 512, 1, 2, 56), (512, 128, 1, 1, 28), (128, 128, 3, 1, 28), (512, 256, 1, 1, 28),
    (256, 256, 3, 2, 28), (256, 1024, 1, 1, 14), (512, 1024, 1, 2, 28), (1024, 256, 1, 1, 14), (256, 256, 3, 1, 14),
    (1024, 512, 1, 1, 14), (512, 512, 3, 2, 14), (512, 2048, 1, 1, 7), (1024, 2048, 1, 2, 14), (2048, 512, 1, 1, 7),
    (512, 512, 3, 1, 7),
]  # fmt: skip
# channels, stride, side
DEPTHWISE = [(32, 1, 112), (96, 2, 112), (144, 1, 56), (384, 1, 14), (960, 1, 7)]
POINTWISE = [(32, 16, 112), (16, 96, 112), (24, 144, 56), (96, 576, 14), (320, 1280, 7)]

NARROW = {"bf16": torch.bfloat16, "f16": torch.float16}
NARROW_LINEARS = [(128, 768, 768), (128, 3072, 768), (128, 768, 3072), (197, 768, 768), (8, 4096, 4096), (127, 515, 333)]
NARROW_TOKENS = [(1, 768, 768), (1, 4096, 4096), (1, 11008, 4096), (1, 4096, 11008)]
# input channels, output channels, kernel, stride, side
NARROW_CONVOLUTIONS = [(64, 64, 3, 1, 56), (64, 256, 1, 1, 56), (256, 256, 3, 2, 28), (512, 512, 3, 1, 7)]

Builder = Callable[[str], Case]


def matrices() -> dict[str, Builder]:
    """Linear layers and products."""
    found: dict[str, Builder] = {}
    for family, sizes in LINEARS.items():
        for size in sizes:
            kind = "odd" if family == "odd" else "linear"
            found[f"{family}-{'x'.join(map(str, size))}"] = lambda name, kind=kind, size=size: linear(name, kind, *size)
    for size in TOKENS:
        found[f"token-{'x'.join(map(str, size))}"] = lambda name, size=size: linear(name, "token", *size)
    for size in ((128, 768, 768), (127, 515, 333)):
        found[f"f64-{'x'.join(map(str, size))}"] = lambda name, size=size: linear(name, "f64", *size, dtype=torch.float64)
    for model, (heads, length, width) in ATTENTION.items():
        scores, sums = (heads, length, length, width), (heads, length, width, length)
        found[f"{model}-scores-{'x'.join(map(str, scores))}"] = lambda name, s=scores: product(name, "batched", *s, b=True)
        found[f"{model}-values-{'x'.join(map(str, sums))}"] = lambda name, s=sums: product(name, "batched", *s)
    for size in ((768, 768, 1024), (768, 3072, 128), (512, 2048, 128), (515, 333, 127)):
        found[f"weight-gradient-{'x'.join(map(str, size))}"] = lambda name, s=size: product(name, "gradient", 0, *s, a=True)
    found["input-gradient-128x768x3072"] = lambda name: product(name, "gradient", 0, 128, 768, 3072)
    for *size, kind in EPILOGUES:
        found[f"{kind}-{'x'.join(map(str, size))}"] = lambda name, s=tuple(size), kind=kind: epilogue(name, *s, kind)
    return found


def narrow() -> dict[str, Builder]:
    """Linear layers, products and convolutions in bfloat16 and float16; float32's beside a few rows, to compare bytes read."""
    found: dict[str, Builder] = {}
    for label, dtype in NARROW.items():
        for size in NARROW_LINEARS:
            found[f"{label}-{'x'.join(map(str, size))}"] = lambda name, s=size, d=dtype, f=label: linear(name, f, *s, dtype=d)
        for size in NARROW_TOKENS:
            found[f"{label}-token-{'x'.join(map(str, size))}"] = lambda name, s=size, d=dtype, f=label: linear(
                name, f"{f} token", *s, dtype=d
            )
    for heads, length, width in (ATTENTION["bert"], ATTENTION["vit"]):
        for what, *size in (("scores", heads, length, length, width), ("values", heads, length, width, length)):
            found[f"bf16-{what}-{'x'.join(map(str, size))}"] = lambda name, s=tuple(size), b=what == "scores": product(
                name, "bf16 batched", *s, b=b, dtype=torch.bfloat16
            )
    for i, o, k, s, side in NARROW_CONVOLUTIONS:
        found[f"bf16-{i}-{o}-{k}x{k}s{s}@{side}"] = lambda name, i=i, o=o, k=k, s=s, side=side: convolution(
            name, "bf16 convolution", nn.Conv2d(i, o, k, s, k // 2, dtype=torch.bfloat16), (side, side)
        )
    return found


def convolutions() -> dict[str, Builder]:
    """Every convolution of ResNet-50, some of MobileNetV2, and the unusual ones."""
    found: dict[str, Builder] = {
        "resnet50-3-64-7x7s2@224": lambda name: convolution(
            name, "resnet50", nn.Conv2d(3, 64, 7, 2, 3, bias=False), (224, 224), plain=True
        )
    }
    for i, o, k, s, side in RESNET50:
        found[f"resnet50-{i}-{o}-{k}x{k}s{s}@{side}"] = lambda name, i=i, o=o, k=k, s=s, side=side: convolution(
            name, "resnet50", nn.Conv2d(i, o, k, s, k // 2), (side, side)
        )
    for c, s, side in DEPTHWISE:
        found[f"mobilenet-{c}-depthwise-3x3s{s}@{side}"] = lambda name, c=c, s=s, side=side: convolution(
            name, "depthwise", nn.Conv2d(c, c, 3, s, 1, groups=c), (side, side)
        )
    for i, o, side in POINTWISE:
        found[f"mobilenet-{i}-{o}-1x1@{side}"] = lambda name, i=i, o=o, side=side: convolution(
            name, "mobilenet 1x1", nn.Conv2d(i, o, 1), (side, side)
        )
    unusual: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
        "convnext-96-depthwise-7x7@56": (lambda: nn.Conv2d(96, 96, 7, padding=3, groups=96), (56, 56), 1),
        "vit-patches-3-768-16x16s16@224": (lambda: nn.Conv2d(3, 768, 16, 16), (224, 224), 1),
        "dilated-64-64-3x3d2@56": (lambda: nn.Conv2d(64, 64, 3, padding=2, dilation=2), (56, 56), 1),
        "grouped-128-128-3x3g32@56": (lambda: nn.Conv2d(128, 128, 3, padding=1, groups=32), (56, 56), 1),
        "transposed-512-256-4x4s2@4": (lambda: nn.ConvTranspose2d(512, 256, 4, 2, 1), (4, 4), 16),
        "transposed-128-64-4x4s2@16": (lambda: nn.ConvTranspose2d(128, 64, 4, 2, 1), (16, 16), 16),
        "volume-16-32-3x3x3@32": (lambda: nn.Conv3d(16, 32, 3, padding=1), (16, 32, 32), 1),
        "line-64-128-5@1024": (lambda: nn.Conv1d(64, 128, 5, padding=2), (1024,), 1),
        "odd-37-53-3x3@29": (lambda: nn.Conv2d(37, 53, 3, padding=1), (29, 31), 1),
    }
    for name, (module, sides, batch) in unusual.items():
        found[name] = lambda name, module=module, sides=sides, batch=batch: convolution(
            name, "unusual convolution", module(), sides, batch
        )
    return found


CASES: dict[str, Builder] = {**matrices(), **convolutions(), **narrow()}


def build(name: str) -> Case:
    """The case of that name, the same numbers every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CASES[name](name)
