"""What ATen makes in the middle of a program: views, memory that elements share, zeros without memory, numbers to conjugate."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor

import dlcompiler
from tests.end_to_end.support import compile_with

Call = Callable[..., Tensor]


def complex_tensor(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex64)


MASK = torch.tensor([True, True, False, True, True])
CASES: dict[str, tuple[Call, Callable[[], tuple[Tensor, ...]]]] = {
    "a repeated number": (lambda x: x.expand(4, 3) * 2, lambda: (complex_tensor(1, 3),)),
    "windows": (lambda x: x.unfold(0, 3, 1) * 2, lambda: (complex_tensor(6),)),
    "a sum's gradient": (lambda x: x.sum(), lambda: (complex_tensor(2, 3),)),
    "a conjugate": (lambda x: x.conj() * x, lambda: (complex_tensor(2, 3),)),
    # its parts are views with a stride of 2, the bias too, of which oneDNN takes no notice
    "a convolution in parts": (functional.conv1d, lambda: (complex_tensor(1, 2, 6), complex_tensor(3, 2, 3), complex_tensor(3))),
    "a constant among them": (lambda x: torch.where(x.real > 0, x, 0.5).cumsum(0), lambda: (complex_tensor(5),)),
    "a stored constant": (lambda x: torch.masked.cumprod(x, 0, mask=MASK), lambda: (complex_tensor(5),)),
    "zeros without memory": (torch.sgn, lambda: (torch.randn(2, 3),)),
    # torch describes results of these otherwise than it makes them
    "bags in half precision": (
        lambda w, s: functional.embedding_bag(torch.tensor([0, 2, 1]), w, torch.tensor([0, 2]), mode="sum", per_sample_weights=s),
        lambda: (torch.randn(3, 8, dtype=torch.bfloat16), torch.randn(3, dtype=torch.bfloat16)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_results_and_gradients_are_eager(name: str) -> None:
    torch.manual_seed(0)
    function, make = CASES[name]
    tensors = make()

    def run(call: Call) -> list[Tensor]:
        inputs = [tensor.clone().requires_grad_() for tensor in tensors]
        result = call(*inputs)
        weights = torch.linspace(-1, 2, result.numel()).to(result.dtype).view(result.shape)
        return [result.detach(), *torch.autograd.grad(result, inputs, weights)]

    torch.testing.assert_close(run(compile_with("torch.compile", function)), run(function))


def test_an_input_that_is_still_to_be_conjugated_is_read_as_its_conjugate() -> None:
    x = complex_tensor(3)
    compiled = dlcompiler.compile(lambda x: x * 2, (x,))
    for given in (x.conj(), x, x.conj()):  # before a call has fitted and after
        torch.testing.assert_close(compiled(given), given * 2)
