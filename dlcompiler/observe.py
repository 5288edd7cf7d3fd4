"""What `compile_graph` tells whoever watches: the graph after each stage, the groups, the program, its code, the report.

An observer is any object with these methods. `compile_graph` knows no other way to show its work: dumps, `inspect` and the
bisection of `verify` are observers.
"""

from __future__ import annotations

from typing import Any

from dlcompiler.codegen.target import Target
from dlcompiler.ir.graph import Graph
from dlcompiler.ir.program import Program
from dlcompiler.report import Report


class Observer:
    """Watches one compilation; every method may be overridden and does nothing here."""

    def graph(self, stage: str, graph: Graph) -> None:
        """The graph after `stage`: `captured`, then each pass by name, whether or not it changed anything."""

    def fusion(self, fusion: Any) -> None:
        """The groups of nodes that become steps (`passes.block.fuse.Fusion`)."""

    def tuning(self, text: str) -> None:
        """What the tuner is looking at."""

    def tuned(self, target: Target, tuning: Any) -> None:
        """The target with what the tuner has chosen, and what it did (`tuner.Tuning`; None if it did nothing)."""

    def program(self, program: Program) -> None:
        """The planned program, without code."""

    def code(self, program: Program) -> None:
        """The program with its code attached."""

    def finish(self, report: Report) -> None:
        """The last call of a compilation that succeeded."""


class Collector(Observer):
    """Keeps what it was told, for `inspect`.

    graphs   (stage, graph) in order, only the stages that changed the graph
    target   the one with what the tuner has chosen; None where it did nothing
    """

    def __init__(self) -> None:
        self.graphs: list[tuple[str, Graph]] = []
        self.groups: Any = None
        self.planned: Program | None = None
        self.report: Report | None = None
        self.target: Target | None = None

    def graph(self, stage: str, graph: Graph) -> None:
        if not self.graphs or graph is not self.graphs[-1][1]:
            self.graphs.append((stage, graph))

    def fusion(self, fusion: Any) -> None:
        self.groups = fusion

    def tuned(self, target: Target, tuning: Any) -> None:
        self.target = target

    def program(self, program: Program) -> None:
        self.planned = program

    def code(self, program: Program) -> None:
        self.planned = program

    def finish(self, report: Report) -> None:
        self.report = report


class Parts(Observer):
    """A Collector for each program that a model is compiled to: several where it has control flow or calls of the host."""

    def __init__(self) -> None:
        self.parts: list[Collector] = []

    def of(self, program: Program) -> Collector:
        """The one that saw this program; an empty one where none did."""
        return next((part for part in self.parts if part.planned is program), Collector())

    def graph(self, stage: str, graph: Graph) -> None:
        if stage == "captured":
            self.parts.append(Collector())
        self.parts[-1].graph(stage, graph)

    def tuned(self, target: Target, tuning: Any) -> None:
        self.parts[-1].tuned(target, tuning)

    def fusion(self, fusion: Any) -> None:
        self.parts[-1].fusion(fusion)

    def program(self, program: Program) -> None:
        self.parts[-1].program(program)

    def code(self, program: Program) -> None:
        self.parts[-1].code(program)

    def finish(self, report: Report) -> None:
        self.parts[-1].finish(report)


class Observers(Observer):
    """Tells several observers, in order."""

    def __init__(self, *observers: Observer) -> None:
        self.observers = observers

    def graph(self, stage: str, graph: Graph) -> None:
        for observer in self.observers:
            observer.graph(stage, graph)

    def fusion(self, fusion: Any) -> None:
        for observer in self.observers:
            observer.fusion(fusion)

    def tuning(self, text: str) -> None:
        for observer in self.observers:
            observer.tuning(text)

    def tuned(self, target: Target, tuning: Any) -> None:
        for observer in self.observers:
            observer.tuned(target, tuning)

    def program(self, program: Program) -> None:
        for observer in self.observers:
            observer.program(program)

    def code(self, program: Program) -> None:
        for observer in self.observers:
            observer.code(program)

    def finish(self, report: Report) -> None:
        for observer in self.observers:
            observer.finish(report)
