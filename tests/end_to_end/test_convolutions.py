"""Convolutions of every kind against eager: grouped, depthwise, dilated, strided, transposed, of lines, images and volumes."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import dlcompiler
from tests.end_to_end.support import check, compile_with

CASES = [
    (k, s, p, extra)
    for k, s, p, extra in itertools.product((1, 2, 3, 4, 5), (1, 2, 3), (0, 1, 2), (0, 1))
    if extra < max(s, 1) and p < k and (extra == 0 or s > 1)
]


@pytest.mark.parametrize("size", [1, 4, 7])
def test_sizes(size: int) -> None:
    """One program of all cases of an image size, so that they are compiled together."""
    torch.manual_seed(0)
    layers = nn.ModuleList(nn.ConvTranspose2d(5, 6, k, s, p, output_padding=extra) for k, s, p, extra in CASES).eval()
    x = torch.randn(2, 5, size, size + 1 if size > 1 else 1)
    fitting = [layer for layer in layers if _fits(layer, x)]

    def run(x):
        return [torch.relu(layer(x)) for layer in fitting]

    with torch.no_grad():
        compiled = dlcompiler.compile(run, (x,))
        for got, want, layer in zip(compiled(x), run(x), fitting, strict=True):
            torch.testing.assert_close(got, want, msg=lambda message, layer=layer: f"{layer}: {message}")


def _fits(layer: nn.Module, x: torch.Tensor) -> bool:
    k, s, p, extra = layer.kernel_size[0], layer.stride[0], layer.padding[0], layer.output_padding[0]
    return all((n - 1) * s - 2 * p + k + extra > 0 for n in x.shape[2:])


@pytest.mark.parametrize(
    "layer, shape",
    [
        (nn.ConvTranspose2d(8, 12, 4, 2, 1), (2, 8, 5, 6)),
        (nn.ConvTranspose2d(32, 48, 4, 2, 1, groups=2), (2, 32, 5, 6)),
        (nn.ConvTranspose1d(8, 12, 4, 2, 1), (2, 8, 7)),
        (nn.Conv1d(12, 20, 5, padding=2, stride=2), (2, 12, 31)),
        (nn.Conv3d(4, 20, 3, padding=1), (1, 4, 5, 6, 7)),
    ],
    ids=str,
)
def test_no_library_call_for_what_kernels_of_ours_compute(layer: nn.Module, shape: tuple[int, ...]) -> None:
    layer.eval()
    x = torch.randn(shape)
    with torch.no_grad():
        compiled = dlcompiler.compile(layer, (x,))
        torch.testing.assert_close(compiled(x), layer(x))
    assert not compiled.report().library


KINDS = {
    "plain": lambda: (nn.Conv2d(20, 40, 3, padding=1), (2, 20, 9, 11)),
    "one filter": lambda: (nn.Conv2d(20, 1, 3), (2, 20, 9, 11)),
    "few channels": lambda: (nn.Conv2d(3, 40, 7, stride=2, padding=3), (2, 3, 23, 25)),
    "even taps": lambda: (nn.Conv2d(8, 24, (2, 4), padding=(1, 2)), (1, 8, 10, 9)),
    "dilated": lambda: (nn.Conv2d(16, 33, 3, padding=2, dilation=2), (1, 16, 12, 13)),
    "points": lambda: (nn.Conv2d(31, 65, 1, bias=False), (3, 31, 5, 7)),
    "strided points": lambda: (nn.Conv2d(32, 48, 1, stride=2), (1, 32, 9, 9)),
    "more padding than image": lambda: (nn.Conv2d(4, 20, 5, padding=2), (1, 4, 1, 2)),
    "two groups": lambda: (nn.Conv2d(24, 48, 3, padding=1, groups=2), (2, 24, 8, 9)),
    "groups of four": lambda: (nn.Conv2d(32, 32, 3, padding=1, groups=8), (2, 32, 8, 9)),
    "depthwise": lambda: (nn.Conv2d(37, 37, 3, padding=1, groups=37), (2, 37, 9, 17)),
    "depthwise twice": lambda: (nn.Conv2d(10, 20, 5, stride=2, padding=2, groups=10), (2, 10, 9, 17)),
    "line": lambda: (nn.Conv1d(12, 20, 5, padding=2, stride=2), (2, 12, 31)),
    "volume": lambda: (nn.Conv3d(4, 6, 3, padding=1), (1, 4, 5, 6, 7)),
    "transposed groups": lambda: (nn.ConvTranspose2d(8, 12, 4, 2, 1, groups=2), (1, 8, 5, 6)),
    "line in groups of four": lambda: (nn.Conv1d(32, 32, 3, padding=1, groups=8), (2, 32, 31)),
    "volume in two groups": lambda: (nn.Conv3d(32, 48, 3, padding=1, groups=2), (1, 32, 4, 5, 6)),
    "transposed volume": lambda: (nn.ConvTranspose3d(16, 6, 2, 2), (1, 16, 3, 4, 5)),
    "transposed line": lambda: (nn.ConvTranspose1d(8, 12, 4, 2, 1), (1, 8, 5)),
}


class AllKinds(nn.Module):
    """One program of all kinds, so that they are compiled together."""

    def __init__(self) -> None:
        super().__init__()
        made = {kind: make() for kind, make in KINDS.items()}
        self.layers = nn.ModuleList(layer for layer, _ in made.values())
        self.shapes = [shape for _, shape in made.values()]

    def forward(self, *images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.relu(layer(x)) for layer, x in zip(self.layers, images))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_kinds(dtype: torch.dtype, entry: str) -> None:
    torch.manual_seed(0)
    module = AllKinds().eval().to(dtype)
    images = tuple(torch.randn(shape).to(dtype) for shape in module.shapes)
    with torch.no_grad():
        check(module, images, compiled=compile_with(entry, module, images))


def test_images_of_any_memory_format(entry: str) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(6, 18, 3, padding=1), nn.Hardswish(), nn.Conv2d(18, 7, 1)).eval()
    images = torch.randn(3, 6, 10, 12)
    with torch.no_grad():
        for x in (images, images.contiguous(memory_format=torch.channels_last), images.transpose(2, 3), images[:, :, ::2, 1:]):
            torch._dynamo.reset()
            check(module, (x,), compiled=compile_with(entry, module, (x,)))


LAYERS = [
    (nn.Conv2d(3, 20, 7, 2, 3), (2, 3, 18, 17)),
    (nn.Conv2d(24, 24, 3, padding=1, groups=24), (2, 24, 9, 8)),
    (nn.Conv2d(24, 24, 3, 2, 1, groups=24, bias=False), (2, 24, 9, 8)),
    (nn.Conv2d(16, 32, 3, padding=1, groups=8), (2, 16, 9, 8)),
    (nn.Conv2d(12, 20, 3, padding=2, dilation=2), (2, 12, 9, 8)),
    (nn.Conv1d(6, 20, 5, padding=2), (2, 6, 31)),
    (nn.Conv3d(4, 20, 3, padding=1), (1, 4, 5, 6, 7)),
    (nn.ConvTranspose2d(8, 3, 4, 2, 1), (2, 8, 5, 6)),
    (nn.Conv2d(64, 64, 3, padding=1), (8, 64, 8, 8)),
]


def test_gradients_without_aten() -> None:
    """One program for all, so that they are compiled together; gradients of weights, biases and images by kernels of ours.

    Those of depthwise weights alone are a library's, in planned memory.
    """
    torch._dynamo.reset()
    torch.manual_seed(0)
    layers = nn.ModuleList(layer for layer, _ in LAYERS)
    images = [torch.randn(shape, requires_grad=True) for _, shape in LAYERS]

    def gradients(run, layers, images):
        layers.zero_grad()
        loss = sum((y * y * y).mean() for y in run(layers, images))
        loss.backward()
        return [p.grad for p in layers.parameters()] + [x.grad for x in images]

    def run(layers, images):
        return [layer(x) for layer, x in zip(layers, images)]

    before = len(dlcompiler.reports())
    found = [g.clone() for g in gradients(torch.compile(run, backend="dlcompiler", options={"strict": True}), layers, images)]
    reports = dlcompiler.reports()[before:]
    assert not any(report.aten for report in reports)
    depthwise = [layer for layer, _ in LAYERS if layer.groups == layer.in_channels]
    assert sum(report.library.get("convolution_weight", 0) for report in reports) == len(depthwise)
    wide = [x.detach().double().requires_grad_() for x in images]
    for got, want in zip(found, gradients(run, layers.double(), wide), strict=True):
        assert (got - want).abs().max() < 1e-5 * want.abs().max() + 1e-9


@pytest.mark.parametrize("dynamic", [False, True])
def test_weights_made_of_positions_alone(dynamic: bool) -> None:
    """Panels of weights that read no tensor, since each of them is a function of where it lies."""

    def run(x: torch.Tensor, image: torch.Tensor) -> list[torch.Tensor]:
        columns = torch.cos(torch.arange(256.0 * 256)).view(256, 256).to(x.dtype)
        filters = torch.sin(torch.arange(64.0 * 32 * 9)).view(64, 32, 3, 3).to(x.dtype)
        return [x @ columns, torch.conv2d(image, filters)]

    compiled = torch.compile(run, backend="dlcompiler", dynamic=dynamic)
    for rows in (64, 65):
        inputs = torch.randn(rows, 256), torch.randn(2, 32, 20, 20)
        check(run, inputs, compiled=compiled)
