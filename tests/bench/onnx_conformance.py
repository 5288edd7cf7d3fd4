"""The conformance cases packaged in `onnx`, by `dlcompiler.onnx_backend.Backend`: passed, failed and why, who computed it.

    python -m tests.bench.onnx_conformance [--only PATTERN] [--processes 2] [--names] [--write docs/onnx.md]

The node cases are those of `onnx.backend.test`; with them run the packaged models of `data/{simple,pytorch-*,light}` (those of
`data/real` are only addresses). A case is *native* if no part of it ran on the host (control flow and sizes told by data are the
runtime's own). `--write` stores the tables.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

TEXT = 8  # TensorProto.STRING


@dataclass(frozen=True)
class Outcome:
    """One case: why it fails, or None; operators that the host, ATen and libraries ran; whether all its inputs are numbers."""

    name: str
    kind: str
    reason: str | None
    host: tuple[str, ...] = ()
    aten: tuple[str, ...] = ()
    library: tuple[str, ...] = ()
    numeric: bool = True


def all_cases(pattern: str) -> list[Any]:
    """Node cases and packaged models whose name matches."""
    from onnx.backend.test.loader import load_model_tests

    from tests.frontends.onnx_cases import cases

    found = [("node", case) for case in cases()]
    for kind in ("simple", "pytorch-converted", "pytorch-operator"):
        found += [(kind, case) for case in load_model_tests(kind=kind)]
    return [(kind, case) for kind, case in found if re.search(pattern, case.name)]


def _loaded(case: Any) -> Any:
    """A packaged model's case with its model and data read, as a node case has them."""
    import onnx
    from onnx import numpy_helper

    if case.model is not None:
        return case
    folder = Path(case.model_dir)
    model = onnx.load(folder / "model.onnx")
    constants = {t.name for t in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in constants]
    sets = []
    for data in sorted(folder.glob("test_data_set_*")):
        sides = []
        for side, infos in (("input", inputs), ("output", model.graph.output)):
            files = sorted(data.glob(f"{side}_*.pb"), key=lambda p: int(p.stem.partition("_")[2]))
            values = []
            for info, file in zip(infos, files):
                kind = info.type.WhichOneof("value")
                message = {"sequence_type": onnx.SequenceProto, "optional_type": onnx.OptionalProto}.get(kind, onnx.TensorProto)()
                message.ParseFromString(file.read_bytes())
                read = {
                    onnx.SequenceProto: numpy_helper.to_list,
                    onnx.OptionalProto: numpy_helper.to_optional,
                }.get(type(message), numpy_helper.to_array)
                values.append(read(message))
            sides.append(values)
        sets.append(tuple(sides))
    return replace(case, model=model, data_sets=sets)


def _run(share: tuple[str, int, int]) -> list[Outcome]:
    """Every `count`-th case from `first` on."""
    from tests.frontends.onnx_cases import by_backend

    pattern, first, count = share
    outcomes = []
    for kind, case in all_cases(pattern)[first::count]:
        case = _loaded(case)
        reason, report = by_backend(case)
        numeric = all(
            i.type.WhichOneof("value") == "tensor_type" and i.type.tensor_type.elem_type != 8 for i in case.model.graph.input
        )
        names = [tuple(a.name for a in getattr(report, part, ())) for part in ("host", "aten")] if report else [(), ()]
        library = tuple(report.library) if report else ()
        outcomes.append(Outcome(case.name, kind, reason, *names, library, numeric))
    return outcomes


def run_all(pattern: str, processes: int) -> list[Outcome]:
    """Every case that matches, by name."""
    shares = [(pattern, first, processes) for first in range(processes)]
    if processes == 1:
        parts = [_run(shares[0])]
    else:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            parts = pool.map(_run, shares)
    return sorted((o for part in parts for o in part), key=lambda o: o.name)


def summary(outcomes: Sequence[Outcome], names: bool) -> list[str]:
    """The tables as lines of markdown."""
    lines = ["| cases | passed | of | native of passing numeric ones |", "| --- | ---: | ---: | ---: |"]
    for kind in dict.fromkeys(o.kind for o in outcomes):
        of_kind = [o for o in outcomes if o.kind == kind]
        passed = [o for o in of_kind if o.reason is None]
        numeric = [o for o in passed if o.numeric]
        native = [o for o in numeric if not o.host and not o.aten]
        share = f"{len(native):,} of {len(numeric):,} ({100 * len(native) / max(len(numeric), 1):.1f} %)"
        lines.append(f"| {kind} | {len(passed):,} | {len(of_kind):,} | {share} |")
    failures: dict[str, list[str]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.reason is not None:
            failures[outcome.reason].append(outcome.name)
    lines += ["", "Not passed:", ""]
    for reason, failed in sorted(failures.items(), key=lambda item: (-len(item[1]), item[0])):
        shown = failed if names else failed[:4]
        rest = f" and {len(failed) - len(shown)} more" if len(shown) < len(failed) else ""
        lines.append(f"- {len(failed)} × {reason[:300]}: {', '.join(f'`{n}`' for n in shown)}{rest}")
    by_host = Counter(name for o in outcomes if o.reason is None and o.numeric for name in dict.fromkeys((*o.host, *o.aten)))
    by_library = Counter(name for o in outcomes if o.reason is None for name in dict.fromkeys(o.library))
    lines += ["", f"Run by the host in passing numeric cases: {_counts(by_host)}."]
    lines += ["", f"Run by a library (oneDNN, MKL, ATen into planned memory): {_counts(by_library)}."]
    return lines


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{name} ×{count}" for name, count in counts.most_common()) or "nothing"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.onnx_conformance", description=__doc__)
    parser.add_argument("--only", metavar="PATTERN", default="", help="run cases whose name matches this regular expression")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--names", action="store_true", help="print the name of every failing case")
    parser.add_argument("--write", metavar="FILE", help="store the page: operators, then these tables")
    options = parser.parse_args(arguments)
    outcomes = run_all(options.only, options.processes)
    print("\n".join(summary(outcomes, options.names)))
    if options.write:
        from tests.bench.onnx_operators import page

        Path(options.write).write_text(page(summary(outcomes, names=True)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
