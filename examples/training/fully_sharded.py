"""FSDP2 with two processes: parameters lie in halves, are gathered for each call, and gradients equal one process's.

python examples/training/fully_sharded.py
"""

from __future__ import annotations

from typing import Any

from processes import check_step, run_in_two, start
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def gathered(gradient: Any) -> Tensor:
    """The parts of all processes together."""
    return gradient.full_tensor()


def work(rank: int) -> None:
    """One step of one process."""
    model, _, _ = start()
    mesh = init_device_mesh("cpu", (2,))
    for part in (model.up, model.down):
        fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)
    check_step(rank, model, model, gathered)


def main() -> None:
    """Two processes."""
    run_in_two(work)


if __name__ == "__main__":
    main()
