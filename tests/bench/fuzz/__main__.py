"""Run mutated files through the command line and count what comes out. Exits with 1 where anything but 0, 3 and 4 did.

python -m tests.bench.fuzz --count 20000 --keep found
python -m tests.bench.fuzz --seed 0 --start 137 --count 1 -v     # one case again
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.bench.fuzz import cases, child

BATCH = 50  # cases that share a process, as long as none ends it


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--start", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=cases.KINDS)
    parser.add_argument("--keep", type=Path, help="folder for the shortest file of each problem")
    parser.add_argument("--list", action="store_true", help="list the cases' exit codes, one a line")
    parser.add_argument("-v", action="store_true", help="show what is printed on stderr")
    arguments = parser.parse_args()

    codes: Counter[int] = Counter()
    problems: dict[str, tuple[int, list[int]]] = {}
    slowest = largest = 0.0
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        child.warm_up(folder)
        cases.make(arguments.seed, 3), cases.make(arguments.seed, 8)  # the corpora, once before all forks
        for index, case, outcome in _outcomes(arguments, folder):
            codes[outcome.code] += 1
            slowest, largest = max(slowest, outcome.seconds), max(largest, outcome.resident)
            if arguments.list or arguments.v:
                print(index, outcome.code, f"{outcome.seconds:.2f}", " ".join(case.command), case.said[:150])
            if arguments.v:
                print(outcome.said)
            if outcome.problem is not None:
                if outcome.problem not in problems:
                    print(f"case {index}: {outcome.problem}\n    {' '.join(case.command)}; {case.said[:300]}", flush=True)
                length, seen = problems.get(outcome.problem, (1 << 60, []))
                seen.append(index)
                if arguments.keep and len(case.data) < length:
                    _keep(arguments.keep, index, case)
                problems[outcome.problem] = (min(length, len(case.data)), seen)
            done = index - arguments.start + 1
            if done % 1000 == 0:
                rate = done / (time.perf_counter() - start)
                print(f"{done} cases, {rate:.0f} a second, codes {dict(sorted(codes.items()))}", flush=True)
    print(f"{arguments.count} cases: codes {dict(sorted(codes.items()))}")
    print(f"slowest {slowest:.1f} s, largest {largest / 2**20:.0f} MiB")
    for problem, (_, seen) in sorted(problems.items(), key=lambda item: -len(item[1][1])):
        print(f"  {len(seen)} x {problem}  (cases {', '.join(map(str, seen[:8]))})")
    return 1 if problems else 0


def _outcomes(arguments: argparse.Namespace, folder: Path) -> Iterator[tuple[int, cases.Case, child.Outcome]]:
    end = arguments.start + arguments.count
    for first in range(arguments.start, end, BATCH):
        indices = range(first, min(first + BATCH, end))
        batch = [cases.make(arguments.seed, index, arguments.kind) for index in indices]
        yield from zip(indices, batch, child.run(batch, folder))


def _keep(folder: Path, index: int, case: cases.Case) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stem, suffix = os.path.splitext(case.name)
    (folder / f"{stem}-{index}{suffix}").write_bytes(case.data)


if __name__ == "__main__":
    sys.exit(main())
