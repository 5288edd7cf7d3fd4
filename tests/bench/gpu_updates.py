"""Whole training steps counted without a GPU: launches and bytes of forward, backward and update, beside Inductor's.

    python -m tests.bench.gpu_updates [NAME ...] [--size real]

Ours is the one program of `dlcompiler.train_step`, with what it prepares of weights. Inductor's are the graphs of
`torch.compile` for loss and gradients and for the optimizer's step over lists of tensors, planned as for Triton; what it groups
(a foreach kernel) counts as as many launches as its limit on arguments makes of it. The optimizers alone are counted too:
ours compiled by `torch.compile`, and the least that eager's lists of tensors move (each operation reads and writes its arrays).
"""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import torch
from dlcompiler.ir.program import Program

import dlcompiler
from dlcompiler import compiler
from tests import training_zoo
from tests.bench.gpu_static import TARGET, Count, Inductor, Ours, count_ours

NAMES = ("bert", "gpt2", "resnet18", "dcgan", "lstm")


class _Planned(Exception):
    """A program is planned, and is to go no further."""


def whole_step(name: str, size: str) -> Count:
    """The program of `train_step`, planned and not assembled."""
    work = training_zoo.build(name, size)
    programs: list[Program] = []

    def emit(program: Program, *_: Any) -> Any:
        programs.append(program)
        raise _Planned

    original, compiler.emit = compiler.emit, emit
    optimizer = work.make_optimizer(work.model.parameters())
    try:
        dlcompiler.train_step(work.model, work.loss, optimizer, work.make_batch(0), target=TARGET)
    except _Planned:
        pass
    finally:
        compiler.emit = original
    return count_ours(programs[-1], trains=True)


def as_lists(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer as torch would make it for parameters on a GPU: over lists of tensors."""
    for group in optimizer.param_groups:
        group["foreach"] = True
    return optimizer


def of_inductor(name: str, size: str) -> tuple[list[Count], list[Count]]:
    """Inductor's graphs for loss and gradients, and for the update."""
    torch._dynamo.reset()
    work = training_zoo.build(name, size)
    loss, update = Inductor(), Inductor()
    torch.compile(lambda batch: work.loss(work.model, batch), backend=loss, dynamic=False)(work.make_batch(0)).backward()
    _step(as_lists(work.make_optimizer(work.model.parameters())), update)
    return loss.counts, update.counts[-1:]


def update_alone(name: str, size: str) -> Count:
    torch._dynamo.reset()
    work, ours = training_zoo.build(name, size), Ours()
    for parameter in work.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    _step(as_lists(work.make_optimizer(work.model.parameters())), ours)
    return count_ours(ours.programs[-1])


def _step(optimizer: torch.optim.Optimizer, backend: Any) -> None:
    """Two steps, the first of which makes the state."""
    for _ in range(2):
        torch.compile(lambda: optimizer.step(), backend=backend, dynamic=False)()


def _sum(counts: list[Count]) -> str:
    return f"{sum(c.steps for c in counts)} | {sum(c.bytes for c in counts) / 2**20:.1f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(NAMES))
    parser.add_argument("--size", default="real", choices=["real", "tiny"])
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch._dynamo.config.allow_rnn = True
    print("| step | launches | MiB | Inductor: launches | MiB | update alone: launches | MiB | Inductor: launches | MiB |")
    print("|" + " --- |" * 9)
    for name in chosen.names:
        ours, (graphs, update) = whole_step(name, chosen.size), of_inductor(name, chosen.size)
        row = (_sum([ours]), _sum([*graphs, *update]), _sum([update_alone(name, chosen.size)]), _sum(update))
        print(f"| {name} | {' | '.join(row)} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
