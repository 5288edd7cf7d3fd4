"""Graphs whose sizes only data tells, with other sizes in each call: microseconds of ours, Inductor's and eager's.

    python -m tests.bench.told [--only mask] [--rounds 7] [--systems eager,inductor,dlcompiler] [--json FILE]

Every case is one graph (`fullgraph`). Calls go round a list of inputs whose numbers of chosen elements differ, so that a system
which plans for each size pays for it; the cases `... again` repeat one input.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from tests.bench import harness
from tests.bench.overhead import compiled_copy
from tests.bench.systems import THREADS

SECONDS = 0.05  # of calls that are timed together


def experts(x: Any, gate: Any, up: Any, down: Any) -> Any:
    """Each row goes through two of the experts; rows of one expert are multiplied together."""
    import torch

    share, chosen = (x @ gate).softmax(-1).topk(2)
    out = torch.zeros_like(x)
    for e in range(up.shape[0]):
        row, place = torch.where(chosen == e)
        hidden = torch.nn.functional.silu(x[row] @ up[e])
        out.index_add_(0, row, (hidden @ down[e]) * share[row, place, None])
    return out


def masked_loss(logits: Any, labels: Any) -> Any:
    import torch

    kept = labels >= 0
    return torch.nn.functional.cross_entropy(logits[kept], labels[kept])


def boxes(corners: Any, scores: Any) -> Any:
    """One round of what a detector does after its network: those above a threshold, in order, their overlaps."""
    import torch

    kept = scores > 0.7
    corners, scores = corners[kept], scores[kept]
    corners = corners[scores.argsort(descending=True)]
    low = torch.maximum(corners[:, None, :2], corners[None, :, :2])
    inner = (torch.minimum(corners[:, None, 2:], corners[None, :, 2:]) - low).clamp(min=0).prod(-1)
    area = (corners[:, 2:] - corners[:, :2]).prod(-1)
    overlap = inner / (area[:, None] + area[None] - inner)
    return corners[(overlap.triu(diagonal=1) < 0.5).all(0)]


def cases() -> dict[str, tuple[Callable[..., Any], list[tuple[Any, ...]]]]:
    """Function, and inputs of calls."""
    import torch

    def drawn(*shape: int) -> Any:
        return torch.randn(shape)

    def prefix(x: Any, n: Any) -> Any:
        k = (n + 0).item()
        torch._check(k >= 0)
        torch._check(k <= x.shape[0])
        return x[:k].exp() * 2

    weights = drawn(256, 8), drawn(8, 256, 512) / 16, drawn(8, 512, 256) / 16
    corners = torch.rand(2000, 2)
    both = torch.cat([corners, corners + torch.rand(2000, 2) * 0.1], 1)
    labels = [torch.randint(-2, 32000, (256,)) * (torch.rand(256) > 0.3) - 1 for _ in range(8)]
    logits = drawn(256, 8000)
    found: dict[str, tuple[Callable[..., Any], list[tuple[Any, ...]]]] = {
        "prefix of 1000": (prefix, [(drawn(1000), torch.tensor(k)) for k in range(500, 900)]),
        "mask of 1000": (lambda x: x[x > 0] * 2, [(drawn(1000),) for _ in range(100)]),
        "mask of 1M": (lambda x: x[x > 0] * 2, [(drawn(1 << 20),) for _ in range(8)]),
        "sparse mask of 1M": (lambda x: x[x > 3] * 2, [(drawn(1 << 20),) for _ in range(8)]),
        "nonzero of 1024 x 1024": (lambda x: torch.nonzero(x > 0), [(drawn(1024, 1024),) for _ in range(8)]),
        "mean of a mask of 1M": (lambda x: x[x > 0].square().mean(), [(drawn(1 << 20),) for _ in range(8)]),
        "rows of 4096 x 256": (lambda x, m: torch.tanh(x[m]), [(drawn(4096, 256), drawn(4096) > 0) for _ in range(8)]),
        "loss of kept rows, 256 x 8000": (masked_loss, [(logits, each.clamp(max=7999)) for each in labels]),
        "8 experts, 512 rows of 256": (experts, [(drawn(512, 256), *weights) for _ in range(8)]),
        "overlaps of boxes, 2000": (boxes, [(both, torch.rand(2000)) for _ in range(8)]),
        "unique of 100000": (lambda x: torch.unique(x), [((drawn(100000) * 1000).long(),) for _ in range(8)]),
    }
    return found | {f"{name} again": (function, inputs[:1]) for name, (function, inputs) in found.items() if "1000" in name}


def calls_of(function: Callable[..., Any], inputs: list[tuple[Any, ...]]) -> Callable[[], float]:
    """Makes some calls, and gives the seconds of one."""
    turn = itertools.cycle(inputs)

    def run() -> float:
        start, count = time.perf_counter(), 0
        while (spent := time.perf_counter() - start) < SECONDS or count < 2:
            function(*next(turn))
            count += 1
        return spent / count

    return run


def main() -> int:
    """Times the systems in turns and prints a row a case."""
    parser = harness.parser(__doc__.splitlines()[0], rounds=7)
    parser.add_argument("--systems", default="eager,inductor,dlcompiler", help="comma-separated")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    names = arguments.systems.split(",")
    rows, result = [], {}
    known = cases()
    settings = {"capture_scalar_outputs": True, "capture_dynamic_output_shape_ops": True}
    with torch.no_grad(), torch._dynamo.config.patch(settings):
        for case in harness.chosen(known, arguments.only):
            function, inputs = known[case]
            runs = {}
            for name in names:
                torch._dynamo.reset()
                system = function if name == "eager" else compiled_copy(function, name)
                for given in inputs[:4]:
                    torch.testing.assert_close(system(*given), function(*given), rtol=1e-4, atol=1e-4)
                runs[name] = calls_of(system, inputs)
                runs[name]()
            times = {name: statistics.median(t) for name, t in _in_turns(runs, arguments.rounds).items()}
            result[case] = times
            best = min(times[name] for name in names if name != "dlcompiler")
            rows.append([case, *(f"{times[name] * 1e6:.0f}" for name in names), harness.ratio(times["dlcompiler"] / best)])
            harness.log(case)
    harness.print_machine()
    print(harness.table(["case, us a call", *names, "dlcompiler / best other"], rows))
    harness.write_json(arguments.json, result)
    return 0


def _in_turns(runs: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(run())
    return times


if __name__ == "__main__":
    sys.exit(main())
