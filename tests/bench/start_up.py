"""What it costs to import the compiler, whether that drags torch in, and whether the demo runs with an empty PATH.

python -m tests.bench.start_up [--only import] [--rounds 7] [--demo examples/demo.py] [--json FILE]
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench import harness

HEAVY = ("torch", "triton", "onnx", "torch_mlir", "numpy", "networkx", "sympy")


def python(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs this interpreter in the repository's root; a failure ends the benchmark with what it said."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=harness.REPOSITORY, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return done


def import_seconds() -> float:
    """The cumulative time that ``-X importtime`` gives for dlcompiler itself."""
    for line in python("-X", "importtime", "-c", "import dlcompiler").stderr.splitlines():
        fields = line.removeprefix("import time:").split("|")
        if fields[-1].strip() == "dlcompiler":
            return int(fields[1]) / 1e6
    raise SystemExit("dlcompiler does not appear in the output of -X importtime")


def wall_seconds(code: str) -> float:
    """Seconds of a whole interpreter running the code."""
    began = time.perf_counter()
    python("-c", code)
    return time.perf_counter() - began


def imported_with_it() -> list[str]:
    """Which heavy packages are there after ``import dlcompiler``."""
    code = f"import dlcompiler, sys; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    return python("-c", code).stdout.split()


def demo_without_path(demo: str) -> dict[str, Any]:
    """Runs the demo where no program can be found, no compiler among them, with an empty cache."""
    with tempfile.TemporaryDirectory(prefix="dlcompiler-demo-") as folder:
        environment = {"PATH": "", "HOME": folder, "DLCOMPILER_CACHE_DIR": f"{folder}/cache"}
        kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "PYTHONPATH") if name in os.environ}
        began = time.perf_counter()
        done = python(demo, environment={**kept, **environment})
        return {"seconds": time.perf_counter() - began, "last line": (done.stdout.strip().splitlines() or [""])[-1]}


def main() -> int:
    """Prints the figures; the exit status is 1 when torch is imported."""
    parser = harness.parser(__doc__.splitlines()[0])
    parser.add_argument("--demo", default="examples/demo.py", help="script to run with an empty PATH")
    arguments = parser.parse_args()
    parts = harness.chosen(("import", "demo"), arguments.only)
    harness.print_machine()
    result: dict[str, Any] = {}
    if "import" in parts:
        import_seconds()  # the first import writes byte code
        samples = [(import_seconds(), wall_seconds("import dlcompiler") - wall_seconds("pass")) for _ in range(arguments.rounds)]
        result["importtime"] = statistics.median(sample[0] for sample in samples)
        result["wall"] = statistics.median(sample[1] for sample in samples)
        result["imported"] = imported_with_it()
        rows = [
            ["-X importtime, dlcompiler", f"{result['importtime']:.3f} s"],
            ["wall clock beyond an empty program", f"{result['wall']:.3f} s"],
            ["heavy packages imported", ", ".join(result["imported"]) or "none"],
        ]
        print(harness.table(["import dlcompiler", ""], rows) + "\n")
    if "demo" in parts:
        if not Path(harness.REPOSITORY, arguments.demo).exists():
            raise SystemExit(f"no demo at {arguments.demo}; name it with --demo")
        result["demo"] = demo_without_path(arguments.demo)
        print(f"{arguments.demo} with PATH='': {result['demo']['seconds']:.1f} s; it says: {result['demo']['last line']}")
    harness.write_json(arguments.json, result)
    return int("torch" in result.get("imported", ()))


if __name__ == "__main__":
    sys.exit(main())
