"""Zeros that are made before an optimizer's state is."""

from __future__ import annotations

import torch

from dlcompiler.training.ahead import ZerosAhead


def test_zeros_are_handed_out_once_each_and_lie_as_what_they_are_like():
    tensors = [
        torch.randn(3, 5),
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(7).to(torch.bfloat16),
    ]
    zeros = ZerosAhead()
    zeros.start((tensor, 2) for tensor in tensors)
    for tensor in tensors:
        made = [zeros.full_like(tensor, 0.0) for _ in range(3)]  # one more than is ready
        assert len({each.data_ptr() for each in made}) == 3
        for each in made:
            assert torch.equal(each, torch.zeros_like(tensor)) and each.dtype is tensor.dtype
            assert each.stride() == tensor.stride() and not each.requires_grad


def test_what_is_not_as_was_expected_is_made_anew():
    parameter = torch.nn.Parameter(torch.randn(4, 4))
    zeros = ZerosAhead()
    zeros.start([(parameter, 1)])
    assert torch.equal(zeros.full_like(parameter, 0.5), torch.full((4, 4), 0.5))
    parameter.data = torch.randn(6, 2)  # after the zeros were made
    assert torch.equal(zeros.full_like(parameter, 0.0), torch.zeros(6, 2))
    zeros.forget()
    assert torch.equal(zeros.full_like(parameter, 0.0), torch.zeros(6, 2))
