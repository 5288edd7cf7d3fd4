"""DistributedDataParallel with two processes: each trains on half a batch, gradients are the mean and equal one process's.

python examples/training/distributed.py
"""

from __future__ import annotations

from processes import check_step, run_in_two, start
from torch.nn.parallel import DistributedDataParallel


def work(rank: int) -> None:
    """One step of one process."""
    model, _, _ = start()
    check_step(rank, model, DistributedDataParallel(model))


def main() -> None:
    """Two processes."""
    run_in_two(work)


if __name__ == "__main__":
    main()
