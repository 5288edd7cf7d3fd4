"""The systems that are compared: each turns a workload into a callable, the same way for every benchmark.

An adapter is ``prepare(workload, context) -> Prepared``. What it returns is checked against eager before anything is
timed: a fast wrong answer has no place in a table.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

THREADS = 2
TOLERANCE = 1e-4  # max|ours - eager| / max|eager|


class Workload(Protocol):
    """What is run: a module in eval mode and its inputs. ``tests.zoo.ZooModel`` and the kernel cases are such."""

    @property
    def name(self) -> str: ...

    @property
    def module(self) -> Any: ...

    @property
    def inputs(self) -> tuple[Any, ...]: ...


class WrongResultError(Exception):
    """A system answered something other than eager; its timing would be meaningless."""


@dataclass(frozen=True)
class Context:
    """What adapters need besides the workload: a folder of this run, where ONNX exports are shared."""

    folder: Path
    key: str

    @property
    def onnx_path(self) -> Path:
        """Where the workload's ONNX export lies, external data beside it."""
        return self.folder / self.key.replace("/", "_").replace(":", "_") / "model.onnx"


@dataclass
class Prepared:
    """A system ready to be timed."""

    call: Callable[[], Any]
    torch_outputs: bool = True
    notes: dict[str, Any] = field(default_factory=dict)


def load_workload(kind: str, name: str, size: str) -> Workload:
    """``model`` workloads come from the zoo, ``kernel`` workloads from the kernel cases."""
    if kind == "model":
        from tests import zoo

        return zoo.build(name, size)
    if kind == "kernel":
        from tests.bench import kernel_cases

        return kernel_cases.build(name)
    raise ValueError(f"workload kind is 'model' or 'kernel', not {kind!r}")


def eager(workload: Workload, context: Context) -> Prepared:
    """PyTorch as it is."""
    return Prepared(lambda: workload.module(*workload.inputs))


def capture(workload: Workload, context: Context) -> Prepared:
    """torch.compile with a backend that goes through AOTAutograd and returns the graph as it is: what capture costs."""
    import torch
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    def identity(graph_module: Any, example_inputs: Sequence[Any]) -> Any:
        return make_boxed_func(graph_module.forward)

    compiled = torch.compile(workload.module, backend=aot_autograd(fw_compiler=identity))
    return Prepared(lambda: compiled(*workload.inputs))


def inductor(workload: Workload, context: Context) -> Prepared:
    """torch.compile's own backend, default mode."""
    import torch

    compiled = torch.compile(workload.module)
    return Prepared(lambda: compiled(*workload.inputs))


def inductor_freezing(workload: Workload, context: Context) -> Prepared:
    """Inductor with parameters frozen into constants (needs no_grad, which every worker runs under)."""
    import torch
    import torch._inductor.config

    torch._inductor.config.freezing = True
    compiled = torch.compile(workload.module)
    return Prepared(lambda: compiled(*workload.inputs))


def dlcompiler(workload: Workload, context: Context) -> Prepared:
    """Ours through torch.compile; models that torch.compile does not trace (RNN modules) through the direct call."""
    if not getattr(workload, "traceable", True):
        return dlcompiler_direct(workload, context)
    import torch

    compiled = torch.compile(workload.module, backend="dlcompiler")
    return Prepared(lambda: compiled(*workload.inputs), notes={"entry": "torch.compile"})


def dlcompiler_direct(workload: Workload, context: Context) -> Prepared:
    """Ours through dlcompiler.compile(model, inputs)."""
    import dlcompiler as compiler

    compiled = compiler.compile(workload.module, workload.inputs)
    return Prepared(lambda: compiled(*workload.inputs), notes={"entry": "dlcompiler.compile"})


def dlcompiler_onnx(workload: Workload, context: Context) -> Prepared:
    """Ours from the ONNX file that the peers read too."""
    import dlcompiler as compiler

    arrays = [tensor.numpy() for tensor in workload.inputs]
    compiled = compiler.compile(str(context.onnx_path))
    return Prepared(lambda: compiled(*arrays), torch_outputs=False, notes={"entry": "onnx"})


def onnxruntime(workload: Workload, context: Context) -> Prepared:
    """ONNX Runtime's CPU provider on the exported file."""
    import onnxruntime as runtime

    options = runtime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.inter_op_num_threads = 1
    session = runtime.InferenceSession(str(context.onnx_path), options, providers=["CPUExecutionProvider"])
    feed = {node.name: tensor.numpy() for node, tensor in zip(session.get_inputs(), workload.inputs)}
    return Prepared(lambda: session.run(None, feed), torch_outputs=False)


def openvino(workload: Workload, context: Context) -> Prepared:
    """OpenVINO's CPU plug-in on the exported file, in float32 as everybody else."""
    import openvino as runtime

    core = runtime.Core()
    settings = {
        "INFERENCE_NUM_THREADS": THREADS,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = core.compile_model(core.read_model(str(context.onnx_path)), "CPU", settings)
    request = compiled.create_infer_request()
    arrays = [tensor.numpy() for tensor in workload.inputs]

    def call() -> list[Any]:
        results = request.infer(arrays, share_inputs=True, share_outputs=True)
        return [results[position] for position in range(len(results))]

    return Prepared(call, torch_outputs=False)


SYSTEMS: dict[str, Callable[[Workload, Context], Prepared]] = {
    "eager": eager,
    "capture": capture,
    "inductor": inductor,
    "inductor-freezing": inductor_freezing,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "dlcompiler": dlcompiler,
    "dlcompiler-direct": dlcompiler_direct,
    "dlcompiler-onnx": dlcompiler_onnx,
}
FROM_ONNX = ("onnxruntime", "openvino", "dlcompiler-onnx")
OURS = ("dlcompiler", "dlcompiler-direct", "dlcompiler-onnx")


def export_onnx(workload: Workload, path: Path) -> None:
    """Writes the workload as ONNX with torch's exporter, once for all systems that read it."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(workload.module, workload.inputs, str(path), dynamo=True, external_data=True, verbose=False, optimize=True)


def flatten(outputs: Any) -> list[Any]:
    """The tensors or arrays of a result, in order."""
    from torch.utils import _pytree

    return [leaf for leaf in _pytree.tree_leaves(outputs) if leaf is not None]


def relative_error(actual: Any, expected: Any) -> float:
    """max|actual - expected| / max|expected| in float64; NaN and infinity must sit at the same places."""
    import torch

    if tuple(actual.shape) != tuple(expected.shape):
        raise WrongResultError(f"shape {tuple(actual.shape)}, eager has {tuple(expected.shape)}")
    a, b = (torch.as_tensor(value).to(torch.float64) for value in (actual, expected))
    odd = ~torch.isfinite(b)
    if not torch.equal(a.isnan(), b.isnan()) or not torch.equal(a[odd & ~b.isnan()], b[odd & ~b.isnan()]):
        raise WrongResultError("NaN or infinity at other places than eager")
    a, b = a[~odd], b[~odd]
    if b.numel() == 0:
        return 0.0
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))


def check(prepared: Prepared, workload: Workload, tolerance: float = TOLERANCE) -> dict[str, Any]:
    """Runs the system once and compares with eager: the error and the first call's seconds, or WrongResultError."""
    import torch

    began = time.perf_counter()
    actual = flatten(prepared.call())
    first_call = time.perf_counter() - began
    expected = flatten(workload.module(*workload.inputs))
    if len(actual) != len(expected):
        raise WrongResultError(f"{len(actual)} outputs, eager has {len(expected)}")
    worst = 0.0
    for position, (ours, theirs) in enumerate(zip(actual, expected)):
        worst = max(worst, relative_error(ours, theirs))
        if prepared.torch_outputs:
            if ours.dtype != theirs.dtype:
                raise WrongResultError(f"output {position} is {ours.dtype}, eager has {theirs.dtype}")
            if ours.stride() != theirs.stride():
                raise WrongResultError(f"output {position} has strides {ours.stride()}, eager {theirs.stride()}")
    limit = tolerance if all(value.dtype != torch.bfloat16 for value in expected) else 2.0**-7
    if not worst <= limit:
        raise WrongResultError(f"relative error {worst:.2e}, allowed {limit:.2e}")
    return {"relative_error": worst, "first_call_seconds": first_call}
