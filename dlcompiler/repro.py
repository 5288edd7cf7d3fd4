"""A folder that shows one fault: a graph cut down to what is wrong, its inputs, and the command that fails."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dlcompiler.culprit import Finding, Repro
from dlcompiler.files import write_atomically
from dlcompiler.graph_file import write_graph_file
from dlcompiler.import_culprit import ImportFinding
from dlcompiler.names import names_of_inputs
from dlcompiler.version import __version__


def free_folder(path: Path) -> Path:
    """`path`, or `path-2` and so on where it exists already."""
    number, found = 1, path
    while found.exists():
        number += 1
        found = path.with_name(f"{path.name}-{number}")
    return found


def write_repro(folder: Path, finding: Finding, target: str, tolerances: Mapping[str, float | None]) -> list[str]:
    """Write the folder; the command that shows the fault in it. Raises OSError."""
    repro = finding.repro
    assert repro is not None
    folder.mkdir(parents=True)
    graph, values = repro.part.graph, repro.part.values
    write_graph_file(folder / "graph.txt", graph)
    arrays = dict(zip(names_of_inputs(graph), map(_plain, values)))
    write_atomically(folder / "inputs.npz", lambda file: np.savez(file, allow_pickle=False, **arrays))
    command = ["dlcompiler", "verify", "graph.txt", "-i", "inputs.npz", *_flags(repro, target, tolerances)]
    write_atomically(folder / "README.md", lambda file: file.write(_readme(finding, repro, command).encode()))
    return command


def write_import_repro(folder: Path, finding: ImportFinding, against: str, tolerances: Mapping[str, float | None]) -> list[str]:
    """Write a folder with the one node that is imported wrongly; the command that shows it there. Raises OSError."""
    assert finding.model is not None
    message = finding.model.SerializeToString()
    folder.mkdir(parents=True)
    write_atomically(folder / "node.onnx", lambda file: file.write(message))
    arrays = {name: _plain(value) for name, value in finding.values.items()}
    write_atomically(folder / "inputs.npz", lambda file: np.savez(file, allow_pickle=False, **arrays))
    command = ["dlcompiler", "verify", "node.onnx", "-i", "inputs.npz", "--against", against, *_limits(tolerances)]
    said = ["# A node that dlcompiler imports wrongly", "", *describe_import(finding, against), "", "In this folder,", ""]
    said += [f"    {shlex.join(command)}", "", f"exits with 5 (dlcompiler {__version__})."]
    write_atomically(folder / "README.md", lambda file: file.write(("\n".join(said) + "\n").encode()))
    return command


def describe_import(finding: ImportFinding, against: str) -> list[str]:
    """What was found, a line for each thing that is known."""
    lines = [f"the model as imported is compiled rightly: the import and {against} disagree"]
    return [*lines, f"{'import ' if finding.node else ''}{finding.text}"]


def _plain(value: Any) -> np.ndarray:
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _flags(repro: Repro, target: str, tolerances: Mapping[str, float | None]) -> list[str]:
    """What makes `verify` compile as it was compiled when the fault showed."""
    options = repro.options
    flags = [] if target == "cpu" else ["--target", target]
    flags.append(f"-O{options.optimization_level}")
    if options.fuel is not None:
        flags += ["--fuel", str(options.fuel)]
    if options.numerics != "fast":
        flags += ["--numerics", options.numerics]
    for name in sorted(options.disabled_passes):
        flags += ["--disable-pass", name]
    return flags + _limits(tolerances)


def _limits(tolerances: Mapping[str, float | None]) -> list[str]:
    return [word for name, value in tolerances.items() if value is not None for word in (f"--{name}", repr(value))]


def _readme(finding: Finding, repro: Repro, command: Sequence[str]) -> str:
    lines = [
        "# A wrong result of dlcompiler",
        "",
        *describe(finding),
        "",
        f"The graph is {'whole' if repro.whole else 'the smallest part around that place that is wrong by itself'}.",
        "In this folder,",
        "",
        f"    {shlex.join(command)}",
        "",
        f"exits with 5 (dlcompiler {__version__}).",
    ]
    return "\n".join(lines) + "\n"


def describe(finding: Finding) -> list[str]:
    """What was found, a line for each thing that is known."""
    lines = [finding.text]
    if finding.pass_name:
        lines.append(f"pass   {finding.pass_name}: {finding.without_pass}")
        lines.append(f"rule   {finding.rule}")
    if finding.node:
        lines.append(f"node   %{finding.node}{f' at {finding.location}' if finding.location else ''}")
    if finding.group:
        ops = ", ".join(finding.group[:8]) + (f" and {len(finding.group) - 8} more" if len(finding.group) > 8 else "")
        lines.append(f"group  one {finding.group_kind} of {len(finding.group)}: {ops}")
    return lines
