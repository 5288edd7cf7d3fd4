"""What the examples with two processes share: starting them on this machine, and a model with its batch."""

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


def step_of_one_process(compiled: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of the whole batch: what the processes together must have."""
    model, x, y = start()
    loss = functional.cross_entropy((torch.compile(model, backend="dlcompiler") if compiled else model)(x), y)
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
