"""What a kernel's PTX shows: vectors of 16 bytes, tensor cores, asynchronous copies, and nothing in local memory."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

import dlcompiler
from tests.bench.gpu_ptx import Facts, facts_of

pytest.importorskip("triton")
f32, bf16 = torch.float32, torch.bfloat16


def facts(function, *inputs: torch.Tensor, arch: str = "sm_90") -> Facts:
    """Of the one kernel that a function is."""
    made = dlcompiler.compile(function, inputs, target=f"cuda:{arch}")
    (kernel,) = (k for k in made.program.code.kernels if k is not None)
    found = facts_of(kernel.stages["ptx"])
    assert not found.local and not kernel.resources.local_bytes
    return found


@pytest.mark.parametrize("dtype", [f32, bf16], ids=str)
@pytest.mark.parametrize("name", ["pointwise", "softmax", "turned"])
def test_threads_move_sixteen_bytes_at_once(name: str, dtype: torch.dtype) -> None:
    functions = {"pointwise": lambda x: x * 2 + 1, "softmax": lambda x: x.softmax(-1), "turned": lambda x: x.t().contiguous() + 1}
    found = facts(functions[name], torch.zeros(512, 1024, dtype=dtype))
    assert set(found.loads) == set(found.stores) == {128}


def test_rows_of_odd_length_are_moved_number_by_number() -> None:
    """What the checks above would say of a kernel that cannot use vectors."""
    found = facts(lambda x: x[:, 1:] * 2, torch.zeros(512, 1023))
    assert max(found.loads) == 32


@pytest.mark.parametrize(("arch", "instruction"), [("sm_80", "mma.sync"), ("sm_90", "wgmma.mma_async")])
def test_products_use_tensor_cores_and_copies_in_flight(arch: str, instruction: str) -> None:
    found = facts(functional.linear, torch.zeros(2048, 256, dtype=bf16), torch.zeros(2048, 256, dtype=bf16), arch=arch)
    assert any(name.startswith(instruction) and "bf16" in name for name in found.tensor)
    assert found.copies and not found.multiplies
    assert set(found.stores) == {128}
