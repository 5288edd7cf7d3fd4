"""Graph text in a file, with its large constants in a .safetensors file of the same name beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dlcompiler.files import write_atomically
from dlcompiler.ir.errors import CompilerError, InvalidModelError, ParseError
from dlcompiler.ir.graph import Graph
from dlcompiler.ir.text import graph_constants, parse_graph, print_graph
from dlcompiler.ir.verify import verify_graph
from dlcompiler.weights import map_file, read_safetensors, write_safetensors

SUFFIX = ".safetensors"


def graph_from_text(text: str, constants: Mapping[str, np.ndarray] | None, where: str, *, allow_missing: bool = False) -> Graph:
    """The graph that `text` describes, verified. Raises ParseError with line and column, or InvalidModelError."""
    try:
        graph = parse_graph(text, constants, allow_missing=allow_missing)
    except ParseError as error:
        error.args = (f"{where}: {error}",)
        raise
    try:
        verify_graph(graph)
    except CompilerError as error:
        # the text is the user's, so what breaks the IR's rules is not our bug
        raise InvalidModelError(f"{where}: {error.message}", location=error.location, hint=error.hint) from None
    return graph


def read_graph_file(path: str | os.PathLike[str], *, allow_missing: bool = False) -> Graph:
    """The graph in a text file; constants too large for the text come from the .safetensors file beside it.

    `allow_missing` lets absent constants be zeros, for looking and rewriting. Raises InvalidModelError or ParseError.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InvalidModelError(f"{path} is not Graph text: it is not UTF-8") from None
    except OSError as error:
        raise InvalidModelError(f"cannot read {path}: {error.strerror or error}") from None
    beside = path.with_suffix(SUFFIX)
    constants: Mapping[str, np.ndarray] | None = None
    if beside.exists():
        try:
            data = map_file(beside)
        except OSError as error:
            raise InvalidModelError(f"cannot read {beside}: {error.strerror or error}") from None
        constants = read_safetensors(data, str(beside))
    graph = graph_from_text(text, constants, str(path), allow_missing=True)
    missing = missing_constants(graph)
    if missing and not allow_missing:
        raise InvalidModelError(
            f"{path}: no data for {len(missing)} constants ({', '.join(missing[:3])})", hint=f"it belongs into {beside}"
        )
    return graph


def write_graph_file(path: str | os.PathLike[str], graph: Graph) -> None:
    """Write the text, and the large constants beside it. Raises OSError."""
    path = Path(path)
    constants = graph_constants(graph)
    if constants:
        write_atomically(path.with_suffix(SUFFIX), lambda file: write_safetensors(file, constants))
    write_atomically(path, lambda file: file.write(print_graph(graph).encode()))


def missing_constants(graph: Graph) -> list[str]:
    """Names of large constants that were read without their data: zeros that take no memory."""
    return [name for name, array in graph_constants(graph).items() if not any(array.strides)]
