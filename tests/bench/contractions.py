"""Contractions against the libraries and against the machine: GFLOP/s, share of the measured multiply-add peak, accuracy.

    python -m tests.bench.contractions [--only 'bert*'] [--threads 1,2] [--rounds 5] [--json FILE]

Ours is `dlcompiler.compile(module, inputs)`, weights constant. `library` is the quickest of ATen, oneDNN and MKL, the last two
with weights packed before (see contraction_libraries.py). Everything runs in one process, in turns: a burst of calls each, round
by round; a burst counts with its quickest call, and the median of the bursts is shown. A call is a whole one, checks and the
result's allocation included. `ours / library` is of speeds: above 1 ours is faster. The error is the largest difference over the
largest value, against float64 by ATen (so an ATen result in float64 shows none). Padding counts as work, so that a convolution
of a small image can be beyond the peak; so can one by Winograd's algorithm, which multiplies less often than is counted: `path`
says `winograd` and the results of a tile. The peak of bfloat16 is float32's, twice that where one instruction multiplies pairs;
that of float16 is float32's. `of read` compares a one-row layer's bytes with the reading speed measured over as many bytes, in
cache or out of it.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tests.bench import harness

BURST_SECONDS = 0.012
NEAR_PEAK = 0.9
# relative error from which a result is called wrong, by the bytes of an element
WRONG = {2: 2.0**-6, 4: 1e-4, 8: 1e-12}
HEADER = [
    "contraction", "path", "GFLOP/s", "of peak", "library GFLOP/s", "library", "ours / library", "error", "library's error",
    "GB/s", "of read",
]  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """One case with one number of threads. Speeds are FLOP and bytes a second, costs a share of the time without epilogue.

    reason   why ours has no figures; empty if it has
    """

    name: str
    family: str
    path: str
    seconds: float
    library: str
    library_seconds: float
    error: float
    library_error: float
    speed: float
    library_speed: float
    of_peak: float
    bytes_rate: float = math.nan
    of_read: float = math.nan
    epilogue_cost: float = math.nan
    library_epilogue_cost: float = math.nan
    reason: str = ""

    @property
    def ratio(self) -> float:
        """Our speed over the library's."""
        return self.library_seconds / self.seconds


def bursts(calls: Mapping[str, Callable[[], Any]], rounds: int, seconds: float = BURST_SECONDS) -> dict[str, float]:
    """Seconds of a call of each: bursts in turns, each with its quickest call, and the median of those."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()  # threads awake, its own data in the caches
            best = math.inf
            end = time.perf_counter() + seconds
            while True:
                began = time.perf_counter()
                call()
                now = time.perf_counter()
                best = min(best, now - began)
                if now > end:
                    break
            found[name].append(best)
    return {name: statistics.median(times) for name, times in found.items()}


def path_of(program: Any) -> str:
    """Who computes: kernels of our own, or which libraries' calls with how many kernels beside them.

    A convolution by Winograd's algorithm says the size of its tiles.
    """
    from dlcompiler.ir.program import AtenCall, Launch, LibraryCall

    kernels = [step.kernel for step in program.steps if isinstance(step, Launch)]
    launches = len(kernels)
    tiles = ["x".join(map(str, kernel.winograd.sizes)) for kernel in kernels if kernel.winograd is not None]
    own = f"own, winograd {' '.join(tiles)}" if tiles else "own"
    others = [f"library {step.op}" for step in program.steps if isinstance(step, LibraryCall)]
    others += [f"aten {step.target}" for step in program.steps if isinstance(step, AtenCall)]
    if not others:
        return own if launches == 1 else f"{own}, {launches} kernels"
    return " + ".join(others + ([f"{launches} kernel{'s' * (launches > 1)}"] if launches else []))


def measure(name: str, threads: int, rounds: int, peaks: Mapping[Any, float]) -> Measured:
    """Compiles, checks and times one case; raises SystemExit when a library's answer is wrong."""
    import torch
    from dlcompiler.ir.errors import CompilerError

    import dlcompiler
    from tests.bench import contraction_cases, contraction_libraries, machine_peak
    from tests.bench.systems import relative_error

    dlcompiler.reset()
    case = contraction_cases.build(name)
    dtype = case.inputs[0].dtype
    truth = copy.deepcopy(case.module).double()(*(x.double() for x in case.inputs))
    libraries = contraction_libraries.candidates(case)
    errors = {label: relative_error(call(), truth) for label, call in libraries.items()}
    if wrong := {label: error for label, error in errors.items() if not error < WRONG[dtype.itemsize]}:
        raise SystemExit(f"{name}: the library's own answer is wrong: {wrong}")
    calls: dict[str, Callable[[], Any]] = dict(libraries)
    path, error, reason = "", math.nan, ""
    try:
        ours = dlcompiler.compile(case.module, case.inputs)
        error = relative_error(ours(*case.inputs), truth)
        path = path_of(ours.program)
        calls["ours"] = lambda: ours(*case.inputs)
        if case.plain is not None:
            plain = dlcompiler.compile(case.plain, case.inputs[:1])
            calls["ours, plain"] = lambda: plain(case.inputs[0])
    except CompilerError as failure:
        reason = f"{type(failure).__name__}: {failure}".splitlines()[0]
    if case.plain is not None:
        layer = contraction_cases.Case("", "", case.plain, case.inputs[:1], case.flops, case.moved)
        calls |= {f"{label}, plain": call for label, call in contraction_libraries.candidates(layer).items()}
    torch.set_num_threads(threads)  # compiling must not have changed it
    seconds = bursts(calls, rounds)
    if torch.get_num_threads() != threads:
        raise SystemExit(f"{name}: timed with {torch.get_num_threads()} threads, not {threads}")
    best = min(libraries, key=lambda label: seconds[label])
    mine = seconds.get("ours", math.nan)
    if not reason and not error < WRONG[dtype.itemsize]:
        reason = f"WRONG: relative error {error:.1e}"
    one_row = case.family.endswith("token")
    plainest = min((seconds[f"{label}, plain"] for label in libraries if f"{label}, plain" in seconds), default=math.nan)
    return Measured(
        name=name,
        family=case.family,
        path=path,
        seconds=mine,
        library=best,
        library_seconds=seconds[best],
        error=error,
        library_error=errors[best],
        speed=case.flops / mine,
        library_speed=case.flops / seconds[best],
        of_peak=case.flops / mine / peaks[dtype],
        bytes_rate=case.moved / mine if one_row else math.nan,
        of_read=case.moved / mine / machine_peak.read_bandwidth(threads, case.moved) if one_row else math.nan,
        epilogue_cost=mine / seconds["ours, plain"] - 1 if "ours, plain" in seconds else math.nan,
        library_epilogue_cost=seconds[best] / plainest - 1,
        reason=reason,
    )


def measured_limits(threads: int) -> dict[Any, float]:
    """The machine's limits with so many threads, printed; and said if something else was running beside."""
    import torch

    from tests.bench import machine_peak

    peaks = {dtype: machine_peak.multiply_add_peak(threads, dtype) for dtype in machine_peak.ELEMENTS}
    peaks |= {dtype: peaks[torch.float32] * times for dtype, times in machine_peak.narrow_gains().items()}
    read, copied = machine_peak.read_bandwidth(threads), machine_peak.copy_bandwidth(threads)
    print(
        f"{threads} thread{'s' * (threads > 1)}: multiply-add peak {peaks[torch.float32] / 1e9:.1f} GFLOP/s in float32, "
        f"{peaks[torch.float64] / 1e9:.1f} in float64; memory read at {read / 1e9:.1f} GB/s, copied at {copied / 1e9:.1f} GB/s."
    )
    print(machine_peak.busy_warning(threads, peaks[torch.float32]), end="\n\n")
    return peaks


def percent(share: float) -> str:
    """A share as a whole per cent, or nothing."""
    return "" if math.isnan(share) else f"{100 * share:.0f} %"


def giga(value: float) -> str:
    """Billions with three digits or so, or nothing."""
    return "" if math.isnan(value) else f"{value / 1e9:.1f}"


def row(m: Measured) -> list[str]:
    """A line of the table."""
    errors = ["–" if math.isnan(m.error) else f"{m.error:.1e}", f"{m.library_error:.1e}"]
    speeds = [giga(m.speed), percent(m.of_peak), giga(m.library_speed), m.library, harness.ratio(m.ratio)]
    return [m.name, "failed" if m.reason else m.path, *speeds, *errors, giga(m.bytes_rate), percent(m.of_read)]


def print_summary(results: Sequence[Measured]) -> None:
    """Geometric means by family, how many cases are near the peak, and what epilogues cost."""
    rows = []
    for family in [*dict.fromkeys(m.family for m in results), "all"]:
        group = [m for m in results if family in (m.family, "all")]
        rows.append([
            family,
            str(len(group)),
            percent(harness.geomean(m.of_peak for m in group)),
            harness.ratio(harness.geomean(m.ratio for m in group)),
            harness.ratio(min((m.ratio for m in group if not math.isnan(m.ratio)), default=math.nan)),
            str(sum(m.path.startswith("own") for m in group)),
        ])  # fmt: skip
    print(harness.table(["family, geomean", "cases", "of peak", "ours / library", "least", "own kernels"], rows))
    near = sum(m.of_peak >= NEAR_PEAK for m in results)
    slower = [m.name for m in results if m.ratio < 1]
    print(f"\n{near} of {len(results)} reach {100 * NEAR_PEAK:.0f} % of the peak; {len(slower)} are slower than the library.")
    if costs := [m for m in results if not math.isnan(m.library_epilogue_cost)]:
        rows = [[m.name, percent(m.epilogue_cost), percent(m.library_epilogue_cost)] for m in costs]
        print("\n" + harness.table(["time an epilogue adds", "ours", "library"], rows))
    for m in results:
        if m.reason:
            print(f"\nFAILED {m.name}: {m.reason}")


def thread_counts(text: str) -> list[int]:
    """`1,2` as numbers. Raises ArgumentTypeError for what is no count."""
    try:
        counts = [int(word) for word in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of thread counts like 1,2")
    return counts


def main() -> int:
    """Prints a table and its summary for each number of threads; the status is 1 when ours failed or answered wrongly."""
    parser = harness.parser(__doc__.splitlines()[0], rounds=5)
    parser.add_argument("--threads", type=thread_counts, default=[1, 2], help="comma-separated (default 1,2)")
    arguments = parser.parse_args()
    import torch

    from tests.bench import machine_peak
    from tests.bench.contraction_cases import CASES

    names = harness.chosen(CASES, arguments.only)
    harness.print_machine("/".join(map(str, arguments.threads)))
    found: dict[str, list[dict[str, Any]]] = {}
    status = 0
    with torch.no_grad():
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            peaks = measured_limits(threads)
            results = []
            for name in names:
                results.append(measure(name, threads, arguments.rounds, peaks))
                harness.log(f"  {threads} {name}: {harness.ratio(results[-1].ratio)} {results[-1].reason}")
            print(harness.table(HEADER, map(row, results)) + "\n")
            print_summary(results)
            print("\n" + machine_peak.busy_warning(threads, peaks[torch.float32]), flush=True)
            found[str(threads)] = [{**asdict(m), "ratio": m.ratio} for m in results]
            status |= any(m.reason for m in results)
    harness.write_json(arguments.json, found)
    return int(status)


if __name__ == "__main__":
    harness.keep_memory()
    sys.exit(main())
