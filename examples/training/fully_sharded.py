"""FSDP2 with two processes: parameters lie in halves, are gathered for each call, and gradients equal one process's.

python examples/training/fully_sharded.py
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as distributed
import torch.nn.functional as functional
from processes import run_in_two, start, step_of_one_process
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import dlcompiler


def work(rank: int) -> None:
    """One step of one process."""
    model, x, y = start()
    mesh = init_device_mesh("cpu", (2,))
    for part in (model.up, model.down):
        fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)
    compiled = torch.compile(model, backend="dlcompiler")
    mine = slice(4 * rank, 4 * rank + 4)
    loss = functional.cross_entropy(compiled(x[mine]), y[mine])
    loss.backward()
    total = loss.detach().clone()
    distributed.all_reduce(total)
    expected, gradients = step_of_one_process()
    torch.testing.assert_close(total / 2, expected)
    for name, parameter in model.named_parameters():
        sharded: Any = parameter.grad
        torch.testing.assert_close(sharded.full_tensor(), gradients[name])
    kernels = sum(report.kernels for report in dlcompiler.reports())
    assert kernels > 0
    print(f"process {rank}: loss {loss.item():.5f} of half a batch, {total.item() / 2:.5f} of all; {kernels} kernels")


def main() -> None:
    """Two processes."""
    run_in_two(work)


if __name__ == "__main__":
    main()
