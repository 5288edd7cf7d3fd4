"""Runs the node conformance cases of the installed onnx package: `python -m tests.frontends.onnx_cases [--only PATTERN]`.

Each case is a small model with inputs and expected outputs. It is imported and run by the graph interpreter, or with
`--compiled` by compiled code. Prints one line for each reason with the cases it stops, and how many pass. An input that a
shape hangs on is given to the import as a value, as `Backend.run_model` does.
"""

from __future__ import annotations

import argparse
import re
import traceback
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from dlcompiler.ir.errors import CompilerError
from dlcompiler.ir.graph import Graph
from onnx import TensorProto
from onnx.numpy_helper import to_array

from dlcompiler.frontends.onnx import NeedsValuesError, import_onnx
from dlcompiler.reference import run_reference

Run = Callable[[Graph, Sequence[np.ndarray]], list[np.ndarray]]


def cases() -> list[Any]:
    """Every node case of the installed package."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [c for c in collect_testcases(None) if c.model is not None]


def run_case(case: Any, run: Run) -> str | None:
    """None if every data set's outputs are right, else the reason."""
    names = [i.name for i in case.model.graph.input]
    for data_set in case.data_sets:
        inputs, expected = ([_array(x) for x in side] for side in data_set)
        feeds = {name: x if x is None or isinstance(x, list) else np.asarray(x) for name, x in zip(names, inputs)}
        try:
            graph = _imported(case.model, feeds)
            results = run(graph, [feeds[node.location or ""] for node in graph.inputs])
        except CompilerError as error:
            return f"{type(error).__name__}: {_reason(error)}"
        except Exception as error:  # noqa: BLE001 - a crash fails its case, and the other cases are still run
            place = traceback.extract_tb(error.__traceback__)[-1]
            return f"crash: {type(error).__name__} in {Path(place.filename).name}:{place.lineno}: {str(error)[:100]}"
        for name, want, got in zip(graph.output_names, expected, results):
            wrong = difference(want, got, case.rtol, case.atol)
            if wrong:
                return f"wrong {name}: {wrong}"
    return None


def _array(value: Any) -> Any:
    """Element types that NumPy lacks come as messages."""
    return to_array(value) if isinstance(value, TensorProto) else value


def _imported(model: Any, feeds: dict[str, np.ndarray]) -> Graph:
    shapes = {name: x.shape for name, x in feeds.items() if isinstance(x, np.ndarray) and x.dtype.kind not in "OUS"}
    values: dict[str, np.ndarray] = {}
    while True:
        try:
            return import_onnx(model, shapes, values)
        except NeedsValuesError as error:
            if set(error.inputs) <= set(values):
                raise
            values.update({name: feeds[name] for name in error.inputs})


def difference(want: Any, got: Any, rtol: float, atol: float) -> str | None:
    """What is different, or None within the tolerances. Sequences are compared element by element."""
    if want is None or isinstance(want, list):
        if want is None or got is None or len(want) != len(got):
            return None if want is got else f"{got}, not {want}"
        return next(filter(None, (difference(w, g, rtol, atol) for w, g in zip(want, got))), None)
    want, got = np.asarray(want), np.asarray(got)
    if want.dtype.kind in "OUS":
        same = want.shape == got.shape and want.astype(str).tolist() == got.astype(str).tolist()
        return None if same else f"{got}, not {want}"
    if want.dtype != got.dtype or want.shape != got.shape:
        return f"{got.dtype}{list(got.shape)}, not {want.dtype}{list(want.shape)}"
    if want.dtype.kind in "biu":
        count = int((want != got).sum())
        return f"{count} of {want.size} elements differ" if count else None
    precise = np.complex128 if want.dtype.kind == "c" else np.float64
    left, right = got.astype(precise), want.astype(precise)
    with np.errstate(invalid="ignore"):
        if np.allclose(left, right, rtol=rtol, atol=atol, equal_nan=True):
            return None
        return f"differs by {np.nanmax(np.abs(left - right)):.3g}"


def _reason(error: CompilerError) -> str:
    items = getattr(error, "items", ())
    if not items:
        return error.message
    return "; ".join(re.sub(r" \(first at .*?\)$| ×\d+", "", item) for item in items)


def interpreted(graph: Graph, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The graph by the interpreter."""
    return run_reference(graph, inputs)


def compiled(graph: Graph, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The graph by code compiled for this machine's CPU."""
    import dlcompiler

    results = dlcompiler.compile(graph)(*inputs)
    return list(results) if isinstance(results, tuple) else [results]


def by_backend(case: Any) -> tuple[str | None, Any]:
    """Why a case fails under `dlcompiler.onnx_backend.Backend`, or None; and the report of its program."""
    from dlcompiler.onnx_backend import Backend

    report = None
    for data_set in case.data_sets:
        inputs, expected = ([_array(x) for x in side] for side in data_set)
        try:
            model = Backend.prepare(case.model)
            results = model.run([x if x is None or isinstance(x, list) else np.asarray(x) for x in inputs])
            report = model.report()
        except CompilerError as error:
            return f"{type(error).__name__}: {_reason(error)}", None
        except Exception as error:  # noqa: BLE001 - a crash fails its case, and the other cases are still run
            place = traceback.extract_tb(error.__traceback__)[-1]
            return f"crash: {type(error).__name__} in {Path(place.filename).name}:{place.lineno}: {str(error)[:100]}", None
        for info, want, got in zip(case.model.graph.output, expected, results):
            wrong = difference(want, got, case.rtol, case.atol)
            if wrong:
                return f"wrong {info.name}: {wrong}", report
    return None, report


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.frontends.onnx_cases", description=__doc__)
    parser.add_argument("--only", metavar="PATTERN", default="", help="run cases whose name matches this regular expression")
    parser.add_argument("--compiled", action="store_true", help="run compiled code instead of the interpreter")
    parser.add_argument("--names", action="store_true", help="print the name of every failing case")
    options = parser.parse_args(arguments)
    chosen = [c for c in cases() if re.search(options.only, c.name)]
    failures: dict[str, list[str]] = defaultdict(list)
    for case in chosen:
        reason = run_case(case, compiled if options.compiled else interpreted)
        if reason is not None:
            failures[reason].append(case.name)
    for reason, names in sorted(failures.items(), key=lambda item: (-len(item[1]), item[0])):
        shown = names if options.names else names[:3]
        rest = f", and {len(names) - len(shown)} more" if len(shown) < len(names) else ""
        print(f"{len(names):4} {reason[:240]}\n       {', '.join(shown)}{rest}")
    passed = len(chosen) - sum(map(len, failures.values()))
    print(f"{passed} of {len(chosen)} cases pass")
    return 0 if passed == len(chosen) else 1


if __name__ == "__main__":
    raise SystemExit(main())
