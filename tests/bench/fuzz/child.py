"""Cases in a process forked from one that has everything imported: milliseconds instead of seconds."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import re
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.fuzz.cases import Case

SECONDS = 10  # of processor time
WALL_SECONDS = 400  # the machine may be busy with others, or stop everybody for a while
MOST_RESIDENT = 1 << 30  # bytes
MOST_MAPPED = 3 << 30  # bytes beyond what the libraries map
ALLOWED = (0, 3, 4)


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
    for name in ("dlcompiler", *(f"dlcompiler.{stage}" for stage in ("ir", "passes", "codegen", "runtime"))):
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)


def run(cases: Iterable[Case], folder: Path) -> Iterator[Outcome]:
    """Run the cases and judge each. They share a process until one ends it; a new one then goes on with the next."""
    waiting = list(cases)
    while waiting:
        reader, writer = os.pipe()
        start = time.perf_counter()
        process = os.fork()
        if process == 0:
            os.close(reader)
            _run_here(waiting, folder, writer)
        os.close(writer)
        done = 0
        with open(reader) as lines:
            for line in lines:
                done += 1
                start = time.perf_counter()
                yield Outcome(**json.loads(line))
        _, status, usage = os.wait4(process, 0)
        if done < len(waiting):
            code, resident = os.waitstatus_to_exitcode(status), usage.ru_maxrss << 10
            said = (folder / "stderr").read_text(errors="replace")
            yield Outcome(code, time.perf_counter() - start, resident, said, _problem(code, said, resident, folder))
            done += 1
        del waiting[:done]


def _run_here(cases: Sequence[Case], folder: Path, writer: int) -> None:
    """In the child: write a line for each case that comes back. Never returns."""
    code = 99
    try:
        said = folder / "stderr"
        tempfile.tempdir = None
        nothing = os.open(os.devnull, os.O_RDWR)
        out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MOST_MAPPED, mapped + MOST_MAPPED))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for case in cases:
            outcome = _run_one(case, folder)
            os.write(writer, (json.dumps(vars(outcome)) + "\n").encode())
        code = 0
    finally:
        os._exit(code)


def _run_one(case: Case, folder: Path) -> Outcome:
    from dlcompiler.cli.boundary import run as run_command

    path = folder / case.name
    path.write_bytes(case.data)
    for old in folder.glob("dlcompiler-error-*"):
        old.unlink()
    os.truncate(folder / "stderr", 0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    used = time.process_time()
    resource.setrlimit(resource.RLIMIT_CPU, (int(used) + SECONDS + 1, resource.RLIM_INFINITY))
    signal.alarm(WALL_SECONDS)
    start = time.perf_counter()
    code = run_command([str(path) if word == "MODEL" else word for word in case.command])
    seconds = time.perf_counter() - start
    signal.alarm(0)
    sys.stdout.flush()
    sys.stderr.flush()
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    resident = int(peak[1]) << 10 if peak else 0
    text = (folder / "stderr").read_text(errors="replace")
    return Outcome(code, seconds, resident, text[-4000:], _problem(code, text, resident, folder))


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
    if code not in ALLOWED:
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
