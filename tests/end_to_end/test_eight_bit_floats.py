"""8-bit floats through torch's front ends: converted as torch converts them, moved, and multiplied with scales."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import dlcompiler
from tests.end_to_end.support import compile_with

DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)


def numbers() -> Tensor:
    """Floats of every size, beyond each format's range too."""
    torch.manual_seed(0)
    sizes = torch.cat([torch.randn(600) * scale for scale in (1e-6, 1e-3, 1, 100, 1e5)])
    special = [float("inf"), -float("inf"), float("nan"), 0.0, -0.0, 448, 464, 465, 240, 248, 57344, 61440, 1e30, -1e30]
    return torch.cat([sizes, torch.tensor(special)]).reshape(-1, 2)


def same(got: Tensor, expected: Tensor) -> bool:
    """Whether both hold the same numbers; one NaN is as good as another."""
    assert got.dtype == expected.dtype and got.shape == expected.shape
    a, b = got.double(), expected.double()
    return bool(((a == b) & (a.signbit() == b.signbit()) | (a.isnan() & b.isnan())).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_conversions_and_moves(dtype: torch.dtype, entry: str) -> None:
    def moves(x: Tensor, near: Tensor):
        small = x.to(dtype)
        wide = small.float(), small.to(torch.bfloat16), small[2:4].view(torch.uint8)
        again = x.half().to(dtype), x.double().to(dtype), near.int().to(dtype)
        return small, *wide, *again, torch.cat([small, small.flip(0)]).t().contiguous(), torch.where(x > 0, small, near.to(dtype))

    x, near = numbers(), torch.arange(-300, 300).repeat(11)[: numbers().numel()].reshape(-1, 2).float()
    compiled = compile_with(entry, moves, (x, near))
    for got, expected in zip(compiled(x, near), moves(x, near), strict=True):
        assert same(got, expected)
    assert list(dlcompiler.reports()[-1].as_dict()["aten"]) == []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("is_by_row", [False, True], ids=["one scale", "scales of rows"])
def test_scaled_products(dtype: torch.dtype, is_by_row: bool, entry: str) -> None:
    torch.manual_seed(1)
    x, w = torch.randn(19, 48).to(dtype), torch.randn(32, 48).to(dtype).t()
    scales = (torch.rand(19, 1), torch.rand(1, 32)) if is_by_row else (torch.tensor(0.5), torch.tensor(0.3))
    bias = torch.randn(32).bfloat16()

    def products(x, w, bias, *scales):
        plain = torch._scaled_mm(x, w, *scales, out_dtype=torch.float32)
        with_bias = torch._scaled_mm(x, w, *scales, bias=bias, out_dtype=torch.bfloat16, use_fast_accum=True)
        return plain, with_bias, torch._scaled_mm(x, w, *scales)

    compiled = compile_with(entry, products, (x, w, bias, *scales))
    exact = x.double() @ w.double() * scales[0] * scales[1]
    digits = 3 if "e4m3" in str(dtype) else 2
    # half of the last bit of what is stored beyond float32's own, and of the least number of 8 bits
    for got, expected, error, least in zip(
        compiled(x, w, bias, *scales),
        (exact, exact + bias, exact),
        (1e-6, 2**-8, 2 ** -(digits + 1)),
        (1e-5, 1e-5, 2**-10),
        strict=True,
    ):
        assert ((got.double() - expected).abs() <= 1.001 * error * expected.abs() + least).all()
    assert list(dlcompiler.reports()[-1].as_dict()["aten"]) == []


def test_what_is_computed_with_them_is_left_to_aten_and_reported() -> None:
    x = torch.tensor([1.0, float("nan"), -2.0])
    compiled = torch.compile(lambda x: (x.to(DTYPES[0]).isnan(), x.to(DTYPES[0]).abs()), backend="dlcompiler")
    is_nan, size = compiled(x)
    assert is_nan.tolist() == [False, True, False] and size.float().nan_to_num(7).tolist() == [1, 7, 2]
    assert all(call["reason"] == "nothing is computed with f8e4m3fn" for call in dlcompiler.reports()[-1].as_dict()["aten"])


def test_weights_stay_in_eight_bits_in_a_file(tmp_path) -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.randn(64, 128).to(DTYPES[0]))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.weight.to(x.dtype))

    module, x = Layer(), torch.randn(5, 128)
    compiled = dlcompiler.compile(module, (x,))
    compiled.save(tmp_path / "layer.dlc")
    assert (tmp_path / "layer.dlc").stat().st_size < 4 * 64 * 128
    for each in (compiled, dlcompiler.load(tmp_path / "layer.dlc")):
        torch.testing.assert_close(each(x), module(x))
