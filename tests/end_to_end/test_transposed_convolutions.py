"""Transposed convolutions, as plain ones where that is less work, against eager."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import dlcompiler

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


def test_no_library_call_for_what_is_left_of_them() -> None:
    layer = nn.ConvTranspose2d(8, 12, 4, 2, 1).eval()
    x = torch.randn(2, 8, 5, 6)
    with torch.no_grad():
        compiled = dlcompiler.compile(layer, (x,))
        torch.testing.assert_close(compiled(x), layer(x))
    assert not compiled.report().library
