"""One line on the terminal that says what a long compilation is doing."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Any, TextIO

from dlcompiler.ir.graph import Graph
from dlcompiler.ir.program import Program
from dlcompiler.observe import Observer

SILENT_SECONDS = 2.0
STEP_SECONDS = 0.5


class Progress(Observer):
    """An observer that writes to `stream`, in place, once SILENT_SECONDS have gone by. A context manager."""

    def __init__(self, stream: TextIO, *, enabled: bool) -> None:
        self._stream = stream
        self._enabled = enabled
        self._start = time.monotonic()
        self._text = "starting"
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._shown = 0

    def __enter__(self) -> Progress:
        if self._enabled:
            self._thread = threading.Thread(target=self._loop, name="dlcompiler-progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()
            self._write("")

    def say(self, text: str) -> None:
        """What is being done from now on."""
        self._text = text

    def graph(self, stage: str, graph: Graph) -> None:
        self.say(f"{stage}: {len(graph.nodes)} nodes")

    def fusion(self, fusion: Any) -> None:
        self.say(f"planning {len(fusion.groups)} steps")

    def tuning(self, text: str) -> None:
        self.say(text)

    def program(self, program: Program) -> None:
        self.say(f"writing code for {len(program.steps)} steps")

    def code(self, program: Program) -> None:
        self.say("running")

    def _loop(self) -> None:
        if self._done.wait(SILENT_SECONDS):
            return
        while True:
            self._write(f"dlcompiler: {self._text} ({time.monotonic() - self._start:.0f} s)")
            if self._done.wait(STEP_SECONDS):
                return

    def _write(self, text: str) -> None:
        if text or self._shown:
            self._stream.write(f"\r{text.ljust(self._shown)}" + ("" if text else "\r"))
            self._stream.flush()
            self._shown = len(text)
