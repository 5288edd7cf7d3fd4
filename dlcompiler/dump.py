"""One folder a compilation: everything there is to see of it, as files a person can read.

    0001-bert/
      index.md                what it is, the stages, the steps, the kernels, links to all else
      explorer.html           the same to look around in with a browser: one file, no network
      00-captured.txt         the graph as captured; NN-<pass>.txt after every pass that changed it
      ops.md, sources.md      each op with its step and source line; each source line with its ops and kernels
      kernels/NNN-name/       index.md, kernel.txt (Kernel IR), and what was emitted for it
      program.txt             the steps, memory.txt and memory.json the plan, refusals.txt why ops are not fused
      report.json

The folder is written under a name that starts with a dot and renamed when the compilation ends, so a folder without the dot is
whole. Where the compilation fails it is whole too and `error.txt` holds the traceback; where it is interrupted it is removed.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import traceback
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any

from dlcompiler.codegen.target import Target
from dlcompiler.dump_pages import KernelPage, StageRow, index_page, kernel_page, kernel_pages, ops_page, sources_page
from dlcompiler.explorer import compilation_data, explorer_page
from dlcompiler.ir.graph import Graph
from dlcompiler.ir.program import Program
from dlcompiler.ir.text import print_graph
from dlcompiler.memory_table import memory_plan, memory_table
from dlcompiler.observe import Observer
from dlcompiler.options import Options, writable_folder
from dlcompiler.report import Report

logger = logging.getLogger("dlcompiler")


def safe_name(text: str) -> str:
    """`text` as a file name on any system: letters, digits, dot, dash and underscore, at most 60 of them."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-")[:60] or "graph"


def open_dump(options: Options, name: str, target: Target) -> Dump | None:
    """A dump in a fresh folder of `options.dump_dir`; None where dumps are off or the folder cannot be written (one warning)."""
    if options.dump_dir is None:
        return None
    parent = writable_folder(options.dump_dir, "dump")
    if parent is None:
        return None
    stem = safe_name(name)
    number = 1 + max((int(m[1]) for p in parent.iterdir() if (m := re.match(r"\.?(\d{4,})-", p.name))), default=0)
    while True:
        final = parent / f"{number:04d}-{stem}"
        partial = parent / f".{final.name}.partial"
        try:
            partial.mkdir()  # the reservation: two processes cannot both make it
        except FileExistsError:
            number += 1
            continue
        except OSError as error:
            logger.warning("cannot write a dump to %s (%s); going on without it", parent, error.strerror)
            return None
        if not final.exists():
            return Dump(partial, final, target)
        partial.rmdir()
        number += 1


class Dump(Observer):
    """Writes one folder as the compilation goes. A context manager: leaving it puts the folder in its place.

    path   where the folder lies once the compilation ended
    """

    def __init__(self, partial: Path, path: Path, target: Target) -> None:
        self.path = path
        self._target = target
        self._partial = partial
        self._broken = False
        self._stages: list[StageRow] = []
        self._graphs: list[tuple[str, Graph]] = []
        self._last: Graph | None = None
        self._last_lines: Counter[str] = Counter()
        self._program: Program | None = None
        self._pages: list[KernelPage] = []

    def __enter__(self) -> Dump:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._broken or (kind is not None and not issubclass(kind, Exception)):
            shutil.rmtree(self._partial, ignore_errors=True)
            return
        if error is not None:
            self._write("error.txt", "".join(traceback.format_exception(kind, error, trace)))
        try:
            self._partial.rename(self.path)
        except OSError as problem:
            self._give_up(problem)

    def graph(self, stage: str, graph: Graph) -> None:
        if graph is self._last:
            return
        # checksums of constants read all of their memory: once is enough
        text = print_graph(graph, digests=self._last is None)
        lines = Counter(line.strip() for line in text.splitlines())
        added, removed = (lines - self._last_lines).total(), (self._last_lines - lines).total()
        file = f"{len(self._stages):02d}-{safe_name(stage)}.txt"
        event = str(graph.history[-1]) if graph.history else ""
        first = self._last is None
        self._stages.append(StageRow(stage, file, len(graph.nodes), 0 if first else added, 0 if first else removed, event))
        self._last, self._last_lines = graph, lines
        self._graphs.append((stage, graph))
        self._write(file, text)

    def fusion(self, fusion: Any) -> None:
        self._write("refusals.txt", "".join(f"{sentence}\n" for sentence in fusion.refusals) or "nothing was refused\n")

    def tuned(self, target: Target, tuning: Any) -> None:
        self._target = target

    def program(self, program: Program) -> None:
        self._program = program
        self._write("program.txt", str(program))
        plan = memory_plan(program)
        self._write("memory.txt", memory_table(plan))
        self._write("memory.json", json.dumps(plan, indent=1))

    def code(self, program: Program) -> None:
        self._program = program

    def finish(self, report: Report) -> None:
        self._write("report.json", json.dumps(report.as_dict(), indent=1))
        if self._program is not None:
            self._pages = kernel_pages(self._program, self._target, safe_name)
            for page in self._pages:
                for name, text in page.files.items():
                    self._write(f"{page.folder}/{name}", text)
                self._write(f"{page.folder}/index.md", kernel_page(page))
            self._write("ops.md", ops_page(self._program, self._pages))
            self._write("sources.md", sources_page(self._program, self._pages))
            self._write("explorer.html", explorer_page(compilation_data(self._graphs, self._program, self._target, report)))
        self._write("index.md", index_page(report, self._stages, self._program, self._pages))

    def _write(self, name: str, text: str) -> None:
        if self._broken:
            return
        path = self._partial / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")
        except OSError as problem:
            self._give_up(problem)

    def _give_up(self, problem: OSError) -> None:
        """A dump that cannot be written (a full disk) must not stop the compilation."""
        logger.warning("cannot write the dump %s (%s); going on without it", self.path, problem.strerror)
        self._broken = True
        shutil.rmtree(self._partial, ignore_errors=True)
