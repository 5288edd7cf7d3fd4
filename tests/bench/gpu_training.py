"""Training steps on a GPU: eager, Inductor, ours by torch.compile, ours as one program; and, on any machine, the same simulated.

python -m tests.bench.gpu --parts training
python -m tests.bench.gpu_training [NAME ...]       # without a GPU: assembled for sm_90, three steps simulated at small sizes
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils import _pytree

import dlcompiler
from tests import training_zoo
from tests.bench.gpu_device import gpu
from tests.bench.gpu_rows import NOT_MEASURED, compiled, reported, seconds_of

SYSTEMS = ("eager", "inductor", "dlcompiler", "train_step")
NAMES = ("bert", "gpt2", "resnet18", "dcgan", "lstm")
CHECKED_STEPS = 3


class Trained:
    """One workload trained by one system on the GPU."""

    def __init__(self, name: str, size: str, system: str) -> None:
        work = training_zoo.build(name, size)
        model = work.model.to(gpu().name)
        optimizer = work.make_optimizer(model.parameters())
        self.batches = [_pytree.tree_map(lambda x: x.to(gpu().name), work.make_batch(k)) for k in range(4)]
        self.calls = 0
        began = time.monotonic()
        if system == "train_step":
            self.step = dlcompiler.train_step(model, work.loss, optimizer, self.batches[0], target=gpu().target)
        else:
            loss_of = compiled(lambda batch: work.loss(model, batch), system)
            update = compiled(lambda: optimizer.step(), system) if system != "eager" else optimizer.step

            def step(batch: Any) -> torch.Tensor:
                loss = loss_of(batch)
                loss.backward()
                update()
                optimizer.zero_grad()
                return loss.detach()

            self.step = step
        with torch._dynamo.config.patch(allow_rnn=True):
            self.losses = [float(self()) for _ in range(gpu().size(CHECKED_STEPS, 2))]
        gpu().synchronize()
        self.ready = time.monotonic() - began
        self.peak = gpu().peak_bytes(self)

    def __call__(self) -> torch.Tensor:
        self.calls += 1
        return self.step(self.batches[self.calls % len(self.batches)])


def training_rows(setting: Any) -> None:
    """The table of training steps; `setting` is `tests.bench.gpu.Setting`."""

    def rows() -> Iterator[Sequence[Any]]:
        for name in setting.of(NAMES, 2):
            found: dict[str, Trained] = {}
            cells: dict[str, str] = {}
            torch._dynamo.reset()  # not between systems: it forgets them all
            for system in SYSTEMS:
                if setting.clock.left < 20:
                    cells[system] = f"{NOT_MEASURED} (time)"
                    continue
                failed: list[str] = []
                with reported(setting.output, f"training {name}, {system}", failed):
                    found[system] = Trained(name, setting.size, system)
                if failed:
                    cells[system] = failed[0]
            yield (name, *_measured(setting, name, found, cells))
            found.clear()
            gpu().empty_cache()

    head = ("step, float32; us", *SYSTEMS, "losses differ by", "third step done, s", "peak MiB")
    setting.output.table(head, rows())


def _measured(setting: Any, name: str, found: dict[str, Trained], cells: dict[str, str]) -> Iterator[str]:
    failed: list[str] = []
    with reported(setting.output, f"training {name}, timing", failed), torch._dynamo.config.patch(allow_rnn=True):
        for system, seconds in zip(found, seconds_of(list(found.values()))):
            cells[system] = f"{seconds * 1e6:.0f}"
    yield from (cells.get(system, failed[0] if failed else NOT_MEASURED) for system in SYSTEMS)
    reference = found.get("eager")
    worst = {
        system: max(abs(a - b) / max(abs(b), 1e-30) for a, b in zip(each.losses, reference.losses))
        for system, each in found.items()
        if reference is not None and system != "eager"
    }
    yield " ".join(f"{system} {value:.0e}{' WRONG' if value > 1e-2 else ''}" for system, value in worst.items())
    yield "/".join(f"{found[s].ready:.0f}" if s in found else "-" for s in SYSTEMS)
    yield "/".join(f"{found[s].peak / 2**20:.0f}" if s in found else "-" for s in SYSTEMS)


def simulate(name: str) -> None:
    """One workload at its small size: what its program holds, and how far three simulated steps are from the CPU's."""
    ours, other = (training_zoo.build(name, "tiny") for _ in range(2))
    optimizers = [each.make_optimizer(each.model.parameters()) for each in (ours, other)]
    step = dlcompiler.train_step(ours.model, ours.loss, optimizers[0], ours.make_batch(0), target="cuda:sm_90")
    on_cpu = dlcompiler.train_step(other.model, other.loss, optimizers[1], other.make_batch(0))
    losses = [(float(step.simulate(ours.make_batch(k))), float(on_cpu(other.make_batch(k)))) for k in range(CHECKED_STEPS)]
    pairs = zip(ours.model.state_dict().values(), other.model.state_dict().values())
    worst = max(float((a.double() - b.double()).abs().max()) for a, b in pairs)
    report = step.reports[-1]
    calls = ", ".join(f"{call.name} x{call.count}" for call in report.aten) or "none"
    spilled = sum(bool(row["spilled_bytes"]) for row in report.evidence)
    print(
        f"{name:9} {report.kernels:4} launches of {report.distinct:3}, {spilled} spill, calls of ATen: {calls}; losses differ by "
        f"{max(abs(a - b) / max(abs(b), 1e-30) for a, b in losses):.0e}, parameters by {worst:.0e}",
        flush=True,
    )


def main(names: Sequence[str], run: Callable[[str], None] = simulate) -> None:
    for name in names or NAMES:
        run(name)


if __name__ == "__main__":
    main(sys.argv[1:])
