"""Whether compiled training goes where eager's goes: loss curves, gradients after the first step, and dropout.

python -m tests.bench.training_curves [--only bert] [--parts curves,gradients,losses,masks] [--size tiny]
                                      [--steps 200] [--rows 2] [--threads 2] [--dropout-steps 20] [--seeds 8]

curves     losses of every step beside eager's, same start, same batches, no dropout; and beside them how far eager is from itself
           with another number of threads, which may round sums otherwise, and from float64: how much the model makes of what
           float32 rounds (a number near 0 before a ReLU counts or not). Of a DCGAN both halves learn in turns, and both losses
           are compared. `--rows` leaves that many of each batch, for a machine that has no time.
gradients  of every parameter after the first step, against float64 (`tests.bench.training_gradients`)
losses     with dropout of 0.1: the mean loss of a run of BERT and GPT-2, over several seeds, eager's and ours
masks      what dropout drops: how much, where, whether backward drops the same, and whether calls and seeds differ as they should
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor
from torch.utils import _pytree

import dlcompiler
from tests import training_zoo
from tests.bench import harness, training_gradients
from tests.bench.training_systems import OURS, Setting, make

PARTS = ("curves", "gradients", "losses", "masks")
DROPOUT = 0.1


@dataclass(frozen=True)
class Run:
    """How curves are made: so many steps, with the first rows of each batch, or all."""

    setting: Setting
    steps: int
    rows: int | None
    threads: int


def curve(system: str, name: str, run: Run, threads: int) -> list[float]:
    """The losses of every step, from the same start each time."""
    torch._dynamo.reset()
    dlcompiler.reset()
    torch.set_num_threads(threads)
    began = time.perf_counter()
    trained = make("eager" if system == "float64" else system, name, run.setting, both=True)
    batches = [_pytree.tree_map(lambda x: x[: run.rows], trained.workload.make_batch(k)) for k in range(4)]
    if system == "float64":
        trained.workload.model.double()
        batches = [training_gradients.widened(batch) for batch in batches]
    losses = [float(loss) for k in range(run.steps) for loss in trained(batches[k % 4])]
    harness.log(f"  {name}: {run.steps} steps by {system}, {threads} threads: {time.perf_counter() - began:.0f} s")
    return losses


@dataclass(frozen=True)
class Distance:
    """How far a curve is from another, relative to that."""

    worst: float
    at: int  # the step of it
    beyond: int | None  # the first step with more than 1e-3

    def __str__(self) -> str:
        return f"{self.worst:.1e} ({self.at})" + ("" if self.beyond is None else f", 1e-3 from {self.beyond}")


def distance(found: Sequence[float], expected: Sequence[float], steps: int) -> Distance:
    """Of two curves of so many steps, each with one loss or more."""
    each = len(expected) // steps
    apart = [abs(a - b) / max(abs(b), 1e-12) for a, b in zip(found, expected, strict=True)]
    apart = [math.inf if math.isnan(x) else x for x in apart]
    worst = max(apart)
    beyond = next((k // each for k, x in enumerate(apart) if x > 1e-3), None)
    return Distance(worst, apart.index(worst) // each, beyond)


def curve_table(names: Sequence[str], run: Run) -> tuple[str, bool]:
    """A row for each model; and whether ours are within 1e-3, or twice what eager is from itself or float64."""
    rows, good, steps = [], True, run.steps
    others = 3 - run.threads if run.threads < 3 else 1
    for name in names:
        eager = curve("eager", name, run, run.threads)
        itself = distance(curve("eager", name, run, others), eager, steps)
        wide = distance(curve("float64", name, run, run.threads), eager, steps)
        ours = [distance(curve(system, name, run, run.threads), eager, steps) for system in OURS]
        good &= all(each.worst <= max(1e-3, 2 * itself.worst, 2 * wide.worst) for each in ours)
        each = len(eager) // steps
        ends = ["/".join(f"{x:.4f}" for x in part) for part in (eager[:each], eager[-each:])]
        rows.append([name, str(steps), str(run.rows or "all"), *ends, str(itself), str(wide), *(str(x) for x in ours)])
        harness.log(" | ".join(rows[-1]))
    torch.set_num_threads(harness.THREADS)
    columns = ("steps", "rows", "first loss", "last", f"eager, {others} threads", "eager, float64", *OURS)
    header = [f"loss curve, {run.threads} threads", *columns]
    return harness.table(header, rows), good


def loss_table(names: Sequence[str], setting: Setting, steps: int, seeds: int) -> tuple[str, bool]:
    """Mean losses under dropout: over seeds, with standard errors; and whether ours are within three of them."""
    rows, good = [], True
    for name in names:
        means: dict[str, list[float]] = {}
        for system in ("eager", *OURS):
            torch._dynamo.reset()
            dlcompiler.reset()
            trained = make(system, name, setting)
            start = _snapshot(trained.workload.model, trained.optimizers[0])
            means[system] = []
            for seed in range(seeds):
                _restore(trained.workload.model, trained.optimizers[0], start)
                torch.manual_seed(seed)
                losses = [float(trained(trained.workload.make_batch(k))[0]) for k in range(steps)]
                means[system].append(statistics.fmean(losses))
            harness.log(f"  {name}, {system}: {means[system]}")
        cells = []
        errors = {system: statistics.stdev(values) / math.sqrt(seeds) for system, values in means.items()}
        for system, values in means.items():
            cells.append(f"{statistics.fmean(values):.4f} ± {errors[system]:.4f}")
            if system in OURS:
                apart = statistics.fmean(values) - statistics.fmean(means["eager"])
                score = apart / math.hypot(errors[system], errors["eager"])
                good &= abs(score) < 3
                cells.append(f"{score:+.1f}")
        rows.append([name, str(steps), str(seeds), *cells])
    header = [f"dropout {setting.dropout}: mean loss", "steps", "seeds", "eager"]
    for system in OURS:
        header += [system, "apart, in standard errors"]
    return harness.table(header, rows), good


def _snapshot(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _restore(model: torch.nn.Module, optimizer: torch.optim.Optimizer, start: dict[str, Tensor]) -> None:
    """As before the first step: the state becomes that of an optimizer that has done nothing."""
    model.load_state_dict(start)
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor):
                value.zero_()


def mask_row(share: float) -> tuple[list[str], bool]:
    """Dropout of a million ones, forward and backward."""
    shape = (1024, 1024)

    def dropped(x: Tensor) -> Tensor:
        return functional.dropout(x, share)

    compiled = torch.compile(dropped, backend="dlcompiler")

    def draw() -> tuple[Tensor, Tensor]:
        x = torch.ones(shape, requires_grad=True)
        y = compiled(x)
        y.sum().backward()
        assert x.grad is not None
        return y.detach(), x.grad

    torch.manual_seed(1)
    (first, gradient), (second, _) = draw(), draw()
    torch.manual_seed(1)
    again, _ = draw()
    torch.manual_seed(2)
    other, _ = draw()
    kept, count = first != 0, first.numel()
    keep = 1 - share
    scores = {"kept": _score(int(kept.sum()), count, keep)}
    # neighbours in a row and in a column, another call, another seed: kept together as often as by chance
    pairs = {
        "right neighbour": (kept[:, 1:], kept[:, :-1]), "lower neighbour": (kept[1:], kept[:-1]),
        "next call": (kept, second != 0), "next seed": (kept, other != 0),
    }  # fmt: skip
    for name, (a, b) in pairs.items():
        scores[name] = _together(a, b)
    for name, axis in (("rows", 1), ("columns", 0)):
        counts = kept.sum(axis).double()
        chi = float(((counts - shape[axis] * keep) ** 2 / (shape[axis] * keep * share)).sum())
        scores[name] = (chi - shape[1 - axis]) / math.sqrt(2 * shape[1 - axis])
    scale = float((first[kept] * keep - 1).abs().max())
    wrong = int((gradient != first).sum())
    same = torch.equal(first, again)
    good = all(abs(score) < 4 for score in scores.values()) and scale < 1e-6 and wrong == 0 and same
    cells = [f"{kept.double().mean():.5f}", *(f"{score:+.1f}" for score in scores.values()), f"{scale:.0e}", str(wrong)]
    return [str(share), *cells, "yes" if same else "NO"], good


def _score(found: int, count: int, chance: float) -> float:
    """Standard deviations of a binomial count from its mean."""
    return (found - count * chance) / math.sqrt(count * chance * (1 - chance))


def _together(a: Tensor, b: Tensor) -> float:
    """Standard deviations by which two masks keep the same elements more often than if they knew nothing of each other."""
    first, second, both = (float(x.double().mean()) for x in (a, b, a & b))
    return (both - first * second) * math.sqrt(a.numel() / (first * (1 - first) * second * (1 - second)))


def mask_table() -> tuple[str, bool]:
    """A row for each share that is dropped; deviations are in standard deviations of what chance gives."""
    found = [mask_row(share) for share in (0.1, 0.5, 0.9)]
    header = [
        "dropped", "kept", "kept, sd", "right neighbour, sd", "lower neighbour, sd", "next call, sd", "next seed, sd", "rows, sd",
        "columns, sd", "scale off by", "backward differs", "same seed, same mask",
    ]  # fmt: skip
    return harness.table(header, [row for row, _ in found]), all(good for _, good in found)


def main() -> int:
    """Prints the parts asked for; the exit status is 1 where one is not as it should be."""
    parser = harness.parser(__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated")
    parser.add_argument("--size", choices=("real", "tiny"), default="real")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rows", type=int, help="of each batch; without it all")
    parser.add_argument("--threads", type=int, default=harness.THREADS, help="of the curves")
    parser.add_argument("--dropout-steps", type=int, default=20, help="of each run under dropout")
    parser.add_argument("--seeds", type=int, default=8, help="of the mean losses under dropout")
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    torch.set_num_threads(harness.THREADS)
    harness.print_machine()
    names = harness.chosen(training_zoo.BUILDERS, arguments.only)
    tables = []
    if "curves" in parts:
        tables.append(curve_table(names, Run(Setting(arguments.size), arguments.steps, arguments.rows, arguments.threads)))
    if "gradients" in parts:
        tables.append((training_gradients.gradient_table(names, arguments.size), True))
    if "losses" in parts:
        with_dropout = [name for name in names if name in ("bert", "gpt2")]
        tables.append(loss_table(with_dropout, Setting(arguments.size, DROPOUT), arguments.dropout_steps, arguments.seeds))
    if "masks" in parts:
        tables.append(mask_table())
    print("\n\n".join(text for text, _ in tables))
    return 0 if all(good for _, good in tables) else 1


if __name__ == "__main__":
    sys.exit(main())
