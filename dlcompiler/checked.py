"""`DLCOMPILER_VERIFY`: the first call of a compiled graph is compared with the reference interpreter."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlcompiler.compare import compare
from dlcompiler.ir.errors import MismatchError
from dlcompiler.ir.graph import Graph
from dlcompiler.ir.ops import Trait
from dlcompiler.ir.program import Placement
from dlcompiler.runtime.executable import Executable


class CheckedExecutable:
    """An executable whose first call is checked. It is slow, once; later calls go straight through."""

    def __init__(self, executable: Executable, graph: Graph) -> None:
        self.program = executable.program
        self._executable, self._graph = executable, graph
        # two draws by ATen are never the same; a seed can be drawn twice, but from a GPU's generator only there
        elsewhere = not isinstance(executable, Executable)
        self._checked = any(node.attributes.get("impure") or (elsewhere and node.has(Trait.IMPURE)) for node in graph.nodes)
        self._lock = threading.Lock()

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        """As the executable. Raises MismatchError naming each output that differs."""
        if self._checked:
            return self._executable(inputs)
        with self._lock:
            return self._executable(inputs) if self._checked else self._check(inputs)

    def _check(self, inputs: Sequence[Any]) -> list[Any]:
        from dlcompiler.arrays import array_from_tensor
        from dlcompiler.reference import run_reference

        before = [value if isinstance(value, int) else array_from_tensor(value).copy() for value in inputs]
        expected = run_reference(self._graph, before)
        outputs = self._executable(tuple(inputs))  # which may not free any of them
        names = self._graph.output_names or [f"output_{k}" for k in range(len(outputs))]
        positions = {node: k for k, node in enumerate(self._graph.inputs)}
        written = [positions[node] for _, node in self._graph.writebacks]
        names = [*names, *(f"what is written to input {self._graph.inputs[k].name}" for k in written)]
        actual: list[np.ndarray] = [array_from_tensor(value) for value in (*outputs, *(inputs[k] for k in written))]
        found = [compare(name, judge, ours) for name, judge, ours in zip(names, expected, actual)]
        wrong = [difference for difference in found if not difference.same]
        if wrong:
            raise MismatchError(
                f"{self._graph.name} differs from the reference: {'; '.join(map(str, wrong[:3]))}",
                hint="`dlcompiler verify --bisect` finds the rewrite or node",
            )
        self._checked = True
        return outputs

    def placement(self, bindings: Mapping[str, int] | None = None) -> Placement:
        return self._executable.placement(bindings)

    def time_steps(self, inputs: Sequence[Any]) -> list[tuple[int, float]]:
        return self._executable.time_steps(inputs)

    def close(self) -> None:
        self._executable.close()
