"""Which node of an ONNX file the front end takes for something else: searched for with a judge that reads the file itself.

The graph as imported, run by our interpreter, is compared with the judge value by value, in the order of the file. The first
value that differs makes its node a suspect; that node alone, on the judge's own values, is the proof, for rounding adds up along
a model. What is proved is left as a model of one node.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dlcompiler.compare import Difference, compare_all
from dlcompiler.names import names_of_inputs
from dlcompiler.reference import run_reference

if TYPE_CHECKING:
    from dlcompiler.frontends.onnx_parts import FileNode, ModelProto, Parts

# (model, values by input name) -> its outputs
Judge = Callable[["ModelProto", Mapping[str, Any]], list[Any]]
AT_ONCE = 256  # nodes whose values are held at the same time


@dataclass(frozen=True)
class ImportFinding:
    """The first node that is imported wrongly. `proved`: it is wrong alone; else differences of many nodes add up at it.

    operator   with its domain, as `ai.onnx.Softmax`; `version` of the operator set
    output     the value of the file that differs
    model      the node alone, and `values` for its inputs, where it is proved
    """

    text: str
    node: str | None = None
    operator: str | None = None
    version: int | None = None
    output: str | None = None
    proved: bool = False
    model: ModelProto | None = field(default=None, repr=False)
    values: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, without the model."""
        told = ("text", "node", "operator", "version", "output", "proved")
        return {"kind": "import", **{name: getattr(self, name) for name in told}}


class ImportSearch:
    """`shapes` and `fix_batch` as the model was imported with; `tolerances` of `compare`."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        judge: Judge,
        shapes: Mapping[str, Sequence[int | str]],
        fix_batch: bool,
        tolerances: Mapping[str, float | None],
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        from dlcompiler.frontends.onnx_parts import Parts

        self.parts: Parts = Parts(path)
        self.judge, self.shapes, self.fix_batch, self.tolerances, self.say = judge, dict(shapes), fix_batch, tolerances, say

    def find(self, feeds: Mapping[str, Any]) -> ImportFinding:
        """`feeds`: a value for each input of the model, by name. Raises what the judge raises."""
        added_up: ImportFinding | None = None
        total = len(self.parts.nodes)
        for first in range(0, total, AT_ONCE):
            last = min(first + AT_ONCE, total)
            self.say(f"comparing what {total} nodes of the file give, from node {first}")
            nodes = self.parts.nodes[first:last]
            asked = [name for node in nodes for name in node.made]
            if not asked:
                continue
            model = self.parts.up_to(last, asked)
            expected = dict(zip(asked, self.judge(model, feeds)))
            actual = dict(zip(asked, self._ours(model, feeds, self.shapes)))
            for node in nodes:
                wrong = self._first_wrong(node.made, expected, actual)
                if wrong is None:
                    continue
                finding = self._prove(node, wrong, feeds, expected)
                if finding.proved:
                    return finding
                added_up = added_up or finding
        if added_up is not None:
            return added_up
        return ImportFinding("no value between differs where all are asked for: what differs is how the judge fuses nodes")

    def _first_wrong(self, names: Sequence[str], expected: Mapping[str, Any], actual: Mapping[str, Any]) -> Difference | None:
        found = compare_all(names, [expected[n] for n in names], [actual[n] for n in names], **self.tolerances)
        return next((difference for difference in found if not difference.same), None)

    def _prove(self, node: FileNode, suspect: Difference, feeds: Mapping[str, Any], expected: Mapping[str, Any]) -> ImportFinding:
        """Compare the node alone, on the values that the judge gives it."""
        from dlcompiler.frontends.onnx_parts import describe_outputs

        operator = f"{node.domain}.{node.proto.op_type}"
        found = ImportFinding("", node.name, operator, node.version, suspect.name)
        values = self._values(node, feeds, expected)
        if not all(isinstance(value, np.ndarray) for value in values.values()):  # no file holds them
            return replace(found, text=f"{node.name!r}, {node.described}, is the first that differs: {suspect}", proved=True)
        model, ours = self._imported_alone(node, values)
        given = {name: value for name, value in values.items() if name in {info.name for info in model.graph.input}}
        theirs = dict(zip(node.made, self.judge(model, given)))
        describe_outputs(model, theirs)
        alone = self._first_wrong(node.made, theirs, ours)
        if alone is None:
            text = f"{node.name!r}, {node.described}, is the first that differs, but is right by itself: differences add up"
            return replace(found, text=f"{text} ({suspect})")
        text = f"{node.name!r}, {node.described}, is imported as something else: {alone}"
        return replace(found, text=text, output=alone.name, proved=True, model=model, values=given)

    def _values(self, node: FileNode, feeds: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, Any]:
        """What the node reads, but for the file's constants."""
        made = {name for each in self.parts.nodes for name in each.made}
        missing = [name for name in node.read if name in made and name not in expected]
        known = {**feeds, **expected}
        if missing:
            known |= zip(missing, self.judge(self.parts.up_to(self.parts.nodes.index(node), missing), feeds))
        values = {name: known[name] for name in node.read if name in known}
        return {name: np.asarray(value) if isinstance(value, np.generic) else value for name, value in values.items()}

    def _imported_alone(self, node: FileNode, values: Mapping[str, Any]) -> tuple[ModelProto, dict[str, Any]]:
        """The node as a model, and what our interpreter gives. What must be known while importing is a constant of it."""
        from dlcompiler.frontends.onnx import NeedsValuesError

        fixed: set[str] = set()
        while True:
            model = self.parts.alone(node, values, fixed)
            try:
                return model, dict(zip(node.made, self._ours(model, values, {})))
            except NeedsValuesError as error:
                if not set(error.inputs) - fixed:
                    raise
                fixed |= set(error.inputs)

    def _ours(self, model: ModelProto, feeds: Mapping[str, Any], shapes: Mapping[str, Sequence[int | str]]) -> list[Any]:
        from dlcompiler.frontends.onnx import import_onnx

        graph = import_onnx(model, shapes or None, fix_batch=self.fix_batch)
        return run_reference(graph, [feeds[name] for name in names_of_inputs(graph)])[: len(graph.outputs)]
