"""What the examples with two processes share: starting them on this machine, a model with its batch, and a step."""

from __future__ import annotations

import atexit
import os
import socket
import sys
from collections.abc import Callable

import torch
import torch.distributed as distributed
import torch.nn.functional as functional
from torch import Tensor, nn

import dlcompiler


class Network(nn.Module):
    """A perceptron with a normalization in the middle. (batch, 12) --> (batch, 4)"""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(12, 24), nn.LayerNorm(24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.gelu(self.norm(self.up(x))))


def start() -> tuple[nn.Module, Tensor, Tensor]:
    """The same model and the same batch of 8 in each process."""
    torch.manual_seed(0)
    return Network(), torch.randn(8, 12), torch.randint(0, 4, (8,))


def check_step(rank: int, model: nn.Module, parallel: nn.Module, whole: Callable[[Tensor], Tensor] = Tensor.detach) -> None:
    """One step of this process, on its half of the batch: mean loss and every gradient must be those of one process on all.

    parallel  the model, distributed
    whole     all of a parameter's gradient, of which each process may have a part
    """
    _, x, y = start()
    compiled = torch.compile(parallel, backend="dlcompiler")
    mine = slice(4 * rank, 4 * rank + 4)
    loss = functional.cross_entropy(compiled(x[mine]), y[mine])
    loss.backward()
    total = loss.detach().clone()
    distributed.all_reduce(total)
    expected, gradients = step_of_one_process()
    torch.testing.assert_close(total / 2, expected)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(whole(parameter.grad), gradients[name])
    kernels = sum(report.kernels for report in dlcompiler.reports())
    assert kernels > 0
    print(f"process {rank}: loss {loss.item():.5f} of half a batch, {total.item() / 2:.5f} of all; {kernels} kernels")


def step_of_one_process() -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of the whole batch, by eager."""
    model, x, y = start()
    loss = functional.cross_entropy(model(x), y)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def run_in_two(work: Callable[[int], None]) -> None:
    """`work(rank)` in two processes, connected by gloo."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    torch.multiprocessing.spawn(_connected, (work, port), nprocs=2)


def _connected(rank: int, work: Callable[[int], None], port: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        work(rank)
    finally:
        distributed.destroy_process_group()
    # gloo's threads outlive the group; one that lets go of a tensor while Python shuts down aborts the process (pytorch#179291):
    # leave after the exit functions, without the shutdown.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(0)
