"""Who says what a model gives: our interpreter of the graph, ONNX Runtime, or onnx's own evaluator."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from dlcompiler.ir.errors import InputError, InvalidModelError, UnsupportedError
from dlcompiler.ir.graph import Graph
from dlcompiler.names import names_of_inputs

if TYPE_CHECKING:
    from dlcompiler.import_culprit import Judge

JUDGES = ("reference", "onnxruntime", "onnx")


def judge(against: str, model: str, graph: Graph, values: Sequence[Any]) -> list[Any]:
    """The outputs of the model in a file, imported as `graph`, for a value of each input.

    Raises click.UsageError where the judge only reads .onnx files and this is none, UnsupportedError where it is missing or
    cannot run the model.
    """
    if against == "reference":
        from dlcompiler.reference import run_reference

        return run_reference(graph, values)[: len(graph.outputs)]
    feeds = dict(zip(names_of_inputs(graph), values))
    if against == "onnxruntime":
        return run_session(onnxruntime_session(model), feeds)
    require_onnx_file(model, "onnx's evaluator")
    from dlcompiler.frontends.onnx_parts import Parts, run_by_onnx

    parts = Parts(model)
    return run_by_onnx(parts.whole(), feeds)


def part_judge(against: str) -> Judge:
    """The same for ONNX messages that lie in memory."""
    if against == "onnx":
        from dlcompiler.frontends.onnx_parts import run_by_onnx

        return run_by_onnx
    return lambda model, feeds: run_session(_session(model.SerializeToString()), feeds)


def require_onnx_file(model: str, who: str) -> None:
    """Raises click.UsageError for a model that is no .onnx file."""
    if not model.endswith(".onnx"):
        raise click.UsageError(f"{who} runs .onnx files, and {os.path.basename(model)} is none")


def onnxruntime_session(model: str, threads: int | None = None) -> Any:
    """An ONNX Runtime session on the CPU. Raises UnsupportedError where it is missing or cannot run the model."""
    require_onnx_file(model, "ONNX Runtime")
    return _session(model, threads)


def run_session(session: Any, feeds: Mapping[str, Any]) -> list[Any]:
    """A session's outputs. Raises InputError where it does not take these values."""
    return _guarded(lambda: session.run(None, dict(feeds)), "does not take these values", InputError)


def _session(model: str | bytes, threads: int | None = None) -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise UnsupportedError("onnxruntime is not installed", items=("onnxruntime",), hint="pip install onnxruntime") from None
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    if threads is not None:
        settings.intra_op_num_threads = threads

    def make() -> Any:
        return onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])

    return _guarded(make, "refuses the model", InvalidModelError)


def _guarded(do: Callable[[], Any], otherwise: str, kind: type[InputError] | type[InvalidModelError]) -> Any:
    """What ONNX Runtime does, its own errors as ours."""
    import onnxruntime

    failures = onnxruntime.capi.onnxruntime_pybind11_state
    try:
        return do()
    except failures.NotImplemented as error:
        raise UnsupportedError(f"ONNX Runtime cannot run the model: {str(error).splitlines()[0]}") from None
    except (failures.Fail, failures.InvalidGraph, failures.InvalidProtobuf, failures.InvalidArgument, ValueError) as error:
        raise kind(f"ONNX Runtime {otherwise}: {str(error).splitlines()[0]}") from None
