"""A forward program that is compiled again, for weights that stay, once it turns out that nothing is trained.

Before each call of a training step an optimizer has written the weights, so what is made of them (panels, transforms) is made in
each call and freed. Inference without `torch.no_grad()` comes the same way, and there nothing changes: after a few calls with no
backward pass and no change of a weight the graph is compiled once more, with what is made of weights kept between calls.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from dlcompiler.ir.expression import known
from dlcompiler.ir.graph import Graph, Rewriter
from dlcompiler.ir.program import Program
from dlcompiler.runtime.prepared import Versions, versions_of

logger = logging.getLogger("dlcompiler")

Run = Callable[[Sequence[Any]], list[Any]]

# Calls after which a model counts as one that is not trained: the first ones may be tried out before training begins.
CALLS_UNCHANGED = 4


class SettlingForward:
    """Runs a forward program, and watches until it is known whether its weights are trained.

    run, graph, program  what runs now, of which graph, as which program
    compile              makes what runs another graph
    """

    def __init__(self, run: Run, graph: Graph, program: Program, compile: Callable[[Graph], Run]) -> None:
        self._run = run
        self._trained = [k for k, node in enumerate(graph.inputs) if node.attributes.get("trained")]
        self._settle: Callable[[], Run] | None = lambda: compile(with_settled_weights(graph, program))
        self._versions: Versions = []
        self._unchanged = 0
        self._lock = threading.Lock()

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        """As the program's own call."""
        if self._settle is not None:
            self._watch(inputs)
        return self._run(inputs)

    def note_backward(self) -> None:
        """Say that gradients were asked for: this is training, whatever follows."""
        self._settle = None

    def _watch(self, inputs: Sequence[Any]) -> None:
        with self._lock:
            settle = self._settle
            versions = versions_of([inputs[position] for position in self._trained])
            self._unchanged = self._unchanged + 1 if versions == self._versions else 0
            self._versions = versions
            if self._unchanged < CALLS_UNCHANGED or settle is None:
                return
            self._settle = None
            logger.info("compiled again for inference: %d calls without a backward pass", self._unchanged + 1)
            self._run = settle()


def with_settled_weights(graph: Graph, program: Program) -> Graph:
    """The graph with its trained inputs as parameters that stay, and each output where `program` has left it."""
    rewriter = Rewriter(graph)
    for position, node in enumerate(graph.inputs):
        if node.attributes.get("trained"):
            attributes = {name: value for name, value in node.attributes.items() if name != "trained"}
            settled = replace(node, attributes={**attributes, "parameter": True})
            rewriter.inputs[position] = rewriter.replace(node, settled)
    for node in graph.nodes:
        rewriter.keep(node)
    if "any" not in graph.output_strides:
        return rewriter.finish_like()
    strides = tuple(
        tuple(map(known, view.strides)) if wanted == "any" else wanted
        for wanted, view in zip(graph.output_strides, program.outputs)
    )
    return rewriter.finish_like(output_strides=strides)
