"""DeepSpeed: its engine compiles the model with our backend; ZeRO, clipping and the optimizer stay DeepSpeed's.

python examples/training/deepspeed_engine.py [STAGE]

Needs the package `deepspeed` (and g++ on a CPU, where DeepSpeed builds its communication); launched by itself it is one process.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import deepspeed
import torch
import torch.nn.functional as functional
from processes import start

import dlcompiler


def train(stage: int, compiled: bool) -> list[float]:
    """The losses of five steps."""
    model, x, y = start()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": len(x),
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": 1.0,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    if compiled:
        engine.compile(backend="dlcompiler")
    losses = []
    for _ in range(5):
        loss = functional.cross_entropy(engine(x), y)
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    """Train with and without, from the same start."""
    one_process = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    for name, value in one_process.items():
        os.environ.setdefault(name, value)
    stage = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    expected, losses = train(stage, compiled=False), train(stage, compiled=True)
    print("losses, eager:   ", [f"{loss:.5f}" for loss in expected])
    print("losses, compiled:", [f"{loss:.5f}" for loss in losses])
    assert all(abs(a - b) < 1e-4 for a, b in zip(losses, expected, strict=True))
    assert dlcompiler.reports()


if __name__ == "__main__":
    main()
