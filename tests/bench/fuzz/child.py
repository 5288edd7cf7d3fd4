"""One case in a process of its own, forked from one that has everything imported: milliseconds instead of seconds."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import resource
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from tests.bench.fuzz.cases import Case

SECONDS = 10  # of processor time
WALL_SECONDS = 60  # the machine may be busy with others
MOST_RESIDENT = 1 << 30  # bytes
# a command that makes up inputs may need to be told a size, or ask for more memory than there is
ALLOWED = {0: "", 3: "", 4: "", 2: r"is not known; give|error: --input-shape", 6: "out of memory"}


@dataclass(frozen=True)
class Outcome:
    """`problem` is None where all is as it should be, else a line that is equal for equal causes."""

    code: int
    seconds: float
    resident: int
    said: str
    problem: str | None


def warm_up(folder: Path) -> None:
    """Import all that a case may need. No thread may be started, since none lives on in a fork."""
    os.environ["DLCOMPILER_CACHE_DIR"] = str(folder / "cache")
    os.environ["TMPDIR"] = str(folder)
    os.environ["OMP_NUM_THREADS"] = "1"
    import dlcompiler

    for module in pkgutil.walk_packages(dlcompiler.__path__, "dlcompiler."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def run(case: Case, folder: Path) -> Outcome:
    """Run the case and judge it."""
    path, said = folder / case.name, folder / "stderr"
    path.write_bytes(case.data)
    for old in folder.glob("dlcompiler-error-*"):
        old.unlink()
    start = time.perf_counter()
    process = os.fork()
    if process == 0:
        _run_here([str(path) if word == "MODEL" else word for word in case.command], said)
    _, status, usage = os.wait4(process, 0)
    seconds = time.perf_counter() - start
    code = os.waitstatus_to_exitcode(status)
    resident = usage.ru_maxrss << 10
    text = said.read_text(errors="replace")
    return Outcome(code, seconds, resident, text, _problem(code, text, resident, folder))


def _run_here(arguments: list[str], said: Path) -> None:
    """In the child: never returns."""
    code = 99
    try:
        import sys
        import tempfile

        tempfile.tempdir = None
        nothing = os.open(os.devnull, os.O_RDWR)
        out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        signal.alarm(WALL_SECONDS)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = mapped + (3 << 30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        from dlcompiler.cli.boundary import run

        code = run(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _problem(code: int, text: str, resident: int, folder: Path) -> str | None:
    if code in (-signal.SIGXCPU, -signal.SIGALRM):
        return f"more than {SECONDS if code == -signal.SIGXCPU else WALL_SECONDS} s"
    if code < 0:
        return f"signal {signal.Signals(-code).name}"
    if resident > MOST_RESIDENT:
        return f"{resident >> 20} MiB resident"
    if code == 1:
        return _last_place(folder)
    if "Traceback" in text:
        return "a traceback on stderr"
    if code not in ALLOWED or not re.search(ALLOWED[code], text):
        return f"exit code {code}: {text.strip().splitlines()[-1][:200] if text.strip() else 'nothing said'}"
    return "nothing said on stderr" if code and not text.strip() else None


def _last_place(folder: Path) -> str:
    """Of an internal error: its class and the innermost line of ours in its traceback."""
    for file in folder.glob("dlcompiler-error-*"):
        lines = file.read_text(errors="replace").splitlines()
        places = re.findall(r'File "[^"]*?([^/"]+/[^/"]+\.py)", line (\d+), in (\S+)', "\n".join(lines))
        kind = next(
            (line for line in reversed(lines) if re.match(r"^[A-Za-z_.]+(Error|Exception|Interrupt|Exit|Warning)?\b", line)), "?"
        )
        return f"internal error: {kind.split(':')[0]} in {' '.join(places[-1]) if places else '?'}: {kind[:160]}"
    return "internal error, and no file that says more"
