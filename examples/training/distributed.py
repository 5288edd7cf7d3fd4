"""DistributedDataParallel with two processes: each trains on half a batch, gradients are the mean and equal one process's.

python examples/training/distributed.py
"""

from __future__ import annotations

import torch
import torch.distributed as distributed
import torch.nn.functional as functional
from processes import run_in_two, start, step_of_one_process
from torch.nn.parallel import DistributedDataParallel

import dlcompiler


def work(rank: int) -> None:
    """One step of one process."""
    model, x, y = start()
    parallel = torch.compile(DistributedDataParallel(model), backend="dlcompiler")
    mine = slice(4 * rank, 4 * rank + 4)
    loss = functional.cross_entropy(parallel(x[mine]), y[mine])
    loss.backward()
    total = loss.detach().clone()
    distributed.all_reduce(total)
    expected, gradients = step_of_one_process()
    torch.testing.assert_close(total / 2, expected)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name])
    kernels = sum(report.kernels for report in dlcompiler.reports())
    assert kernels > 0
    print(f"process {rank}: loss {loss.item():.5f} of half a batch, {total.item() / 2:.5f} of all; {kernels} kernels")


def main() -> None:
    """Two processes."""
    run_in_two(work)


if __name__ == "__main__":
    main()
