"""Fused kernels against Inductor and eager: microseconds, GB/s and the share of a measured copy bandwidth.

python -m tests.bench.kernels [--only 'softmax*'] [--rounds 9] [--json FILE] [--default-malloc]
"""

from __future__ import annotations

import math
import statistics
import sys
import time

from tests.bench import harness, kernel_cases
from tests.bench.harness import Bench, Entry
from tests.bench.systems import OURS, SYSTEMS, THREADS

DEFAULT_SYSTEMS = "eager,inductor,dlcompiler"
BURST_SECONDS = 0.1


def copy_bandwidth(elements: int = 2**24) -> float:
    """Bytes a second of torch's copy between two existing buffers of 64 MiB, reads and writes counted."""
    import torch

    torch.set_num_threads(THREADS)
    source, target = torch.ones(elements), torch.zeros(elements)
    samples = []
    for _ in range(15):
        began = time.perf_counter()
        target.copy_(source)
        samples.append(time.perf_counter() - began)
    return 2 * 4 * elements / statistics.median(samples)


def microseconds(seconds: float) -> str:
    """Microseconds with three significant digits, or a dash."""
    if math.isnan(seconds):
        return "–"
    return f"{seconds * 1e6:.0f}" if seconds >= 1e-4 else f"{seconds * 1e6:.3g}"


def row(name: str, entries: dict[str, Entry], ours: str | None, bytes_moved: int, bandwidth: float) -> list[str]:
    """Microseconds of every system, ratios to ours, and how near the memory's speed ours is."""
    cells = [name, harness.mebibytes(bytes_moved)]
    for entry in entries.values():
        cells.append("WRONG" if entry.wrong else "failed" if entry.reason else microseconds(entry.seconds))
    if ours is not None:
        seconds = entries[ours].seconds
        cells += [harness.ratio(entry.seconds / seconds) for system, entry in entries.items() if system not in OURS]
        rate = bytes_moved / seconds
        cells += ["–", "–"] if math.isnan(rate) else [f"{rate / 1e9:.1f}", f"{100 * rate / bandwidth:.0f} %"]
    return cells


def main() -> int:
    """Runs the cases and prints one table."""
    parser = harness.parser(__doc__.splitlines()[0], rounds=9)
    parser.add_argument("--systems", default=DEFAULT_SYSTEMS, help=f"comma-separated, of: {', '.join(SYSTEMS)}")
    parser.add_argument(
        "--default-malloc", action="store_true", help="let malloc return large blocks to the kernel (adds page faults)"
    )
    arguments = parser.parse_args()
    names = arguments.systems.split(",")
    if unknown := [name for name in names if name not in SYSTEMS]:
        parser.error(f"unknown systems: {', '.join(unknown)}")
    ours = next((name for name in names if name in OURS), None)
    peers = [name for name in names if name not in OURS]
    bandwidth = copy_bandwidth()
    results: dict[str, dict[str, Entry]] = {}
    rows = []
    with Bench(names, arguments.rounds, BURST_SECONDS, {} if arguments.default_malloc else harness.KEEP_MEMORY) as bench:
        for name in harness.chosen(kernel_cases.NAMES, arguments.only):
            results[name] = bench.compare("kernel", name)
            for entry in results[name].values():
                entry.facts["case"] = name
            rows.append(row(name, results[name], ours, kernel_cases.build(name).bytes_moved, bandwidth))
    harness.print_machine()
    print(f"Copy bandwidth {bandwidth / 1e9:.1f} GB/s (64 MiB, {THREADS} threads); every system ", end="")
    print("under the default malloc.\n" if arguments.default_malloc else "with malloc keeping its memory.\n")
    header = ["case, us", "MiB moved", *names]
    if ours is not None:
        header += [*(f"{peer} / ours" for peer in peers), "ours GB/s", "of copy"]
        means = [harness.geomean(entries[peer].seconds / entries[ours].seconds for entries in results.values()) for peer in peers]
        rows.append(["geomean", "", *[""] * len(names), *(harness.ratio(mean) for mean in means), "", ""])
    print(harness.table(header, rows))
    dump = {name: [entry.as_dict() for entry in entries.values()] for name, entries in results.items()}
    harness.write_json(arguments.json, {"copy_bandwidth": bandwidth, "cases": dump})
    return harness.finish(entry for entries in results.values() for entry in entries.values())


if __name__ == "__main__":
    sys.exit(main())
