"""How near gradients are to float64's after one step: eager's error and ours, the worst parameter of each model.

python -m tests.bench.training_gradients [--only bert] [--size real]

The error of a parameter's gradient is the largest difference as a share of the largest gradient of that parameter; parameters
whose exact gradient is zero, but for rounding (a key's bias), are counted apart, as a share of the largest gradient of all.
`train_step` shows its gradients where they are accumulated.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import dlcompiler
from tests import training_zoo
from tests.bench import harness

ZERO = 1e-9  # of the largest gradient of all: what is smaller in float64 is zero


def gradients(model: nn.Module, loss_of: Any, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and each parameter's gradient."""
    for parameter in model.parameters():
        parameter.grad = None
    loss = loss_of(model, batch)
    loss.backward()
    return loss.detach(), _found(model)


def step_gradients(model: nn.Module, loss_of: Any, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """As `gradients`, by a `train_step` that has half of its gradients' mean after the first of two calls."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = dlcompiler.train_step(model, loss_of, optimizer, batch, accumulate=2)(batch)
    return loss, {name: 2 * gradient for name, gradient in _found(model).items()}


def _found(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def widened(batch: Any) -> Any:
    """The batch in float64."""
    return torch.utils._pytree.tree_map_only(Tensor, lambda x: x.double() if x.is_floating_point() else x, batch)


def row(name: str, size: str) -> list[str]:
    """A row of the table."""
    workload = training_zoo.build(name, size)
    batch = workload.make_batch(0)
    exact_loss, exact = gradients(copy.deepcopy(workload.model).double(), workload.loss, widened(batch))
    with torch._dynamo.config.patch(allow_rnn=True):
        compiled = torch.compile(workload.loss, backend="dlcompiler")
        answers = [gradients(copy.deepcopy(workload.model), function, batch) for function in (workload.loss, compiled)]
    answers.append(step_gradients(copy.deepcopy(workload.model), workload.loss, batch))
    largest = max(float(g.abs().max()) for g in exact.values())
    zero = {p for p, g in exact.items() if float(g.abs().max()) <= ZERO * largest}
    cells = [name, str(len(exact) - len(zero))]
    for loss, found in answers:
        assert found.keys() == exact.keys()
        scales = {p: largest if p in zero else float(g.abs().max()) for p, g in exact.items()}
        errors = {p: float((found[p].double() - g).abs().max()) / scales[p] for p, g in exact.items()}
        worst = max((p for p in errors if p not in zero), key=lambda p: errors[p])
        loss_error = abs(float(loss) - float(exact_loss)) / abs(float(exact_loss))
        cells += [f"{loss_error:.1e}", f"{errors[worst]:.1e} ({worst})", f"{max((errors[p] for p in zero), default=0.0):.1e}"]
    harness.log(" | ".join(cells))
    return cells


def gradient_table(names: Sequence[str], size: str) -> str:
    """A row for each model."""
    header = ["first step against float64", "parameters", *(f"{who}: {what}" for who in ("eager", "torch.compile", "train_step")
              for what in ("loss", "worst gradient", "gradients that are zero"))]  # fmt: skip
    return harness.table(header, [row(name, size) for name in names])


def main() -> int:
    """Prints the table."""
    parser = harness.parser(__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("real", "tiny"), default="real")
    arguments = parser.parse_args()
    torch.set_num_threads(harness.THREADS)
    harness.print_machine()
    print(gradient_table(harness.chosen(training_zoo.BUILDERS, arguments.only), arguments.size))
    return 0


if __name__ == "__main__":
    sys.exit(main())
