"""GPU programs from the ways in that users take, with no GPU: torch.compile on fake tensors, artefacts, the writers mixed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dlcompiler.ir.errors import LaunchError
from torch import nn
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import dlcompiler
from dlcompiler.torch_backend import Backend

pytest.importorskip("triton")


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.LayerNorm(32)).eval()


def test_tensors_on_a_gpu_that_is_not_there_are_compiled_for_one():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    model, mode = small(), FakeTensorMode()
    names = [name for name, _ in model.named_parameters()]

    def function(x, *parameters):
        return (torch.func.functional_call(model, dict(zip(names, parameters)), (x,)),)

    inputs = [torch.randn(4, 16), *(p.detach() for p in model.parameters())]
    module = make_fx(function, tracing_mode="fake")(*inputs)
    converter = mode.fake_tensor_converter
    on_gpu = [converter.from_meta_and_device(mode, x.to("meta"), torch.device("cuda", 0)) for x in inputs]
    dlcompiler.reset()
    with tracing(TracingContext(mode)), torch.no_grad():
        Backend()(module, on_gpu, options={"strict": True})
    (report,) = dlcompiler.reports()
    assert report.target == "cuda:sm_90" and report.kernels and report.evidence


def test_artefacts_for_several_targets_carry_kernels(tmp_path: Path):
    model, x = small(), torch.randn(4, 16)
    path = tmp_path / "m.dlc"
    first = dlcompiler.compile(model, (x,), target="cuda:sm_90")
    first.save(path, dlcompiler.compile(model, (x,)))
    dlcompiler.reset()
    torch.testing.assert_close(dlcompiler.load(path)(x), model(x))  # no GPU here: the CPU's
    loaded = dlcompiler.load(path, target="cuda:sm_90")
    assert loaded.report().seconds["emit"] < 0.5  # nothing was assembled
    assert [k.binary for k in loaded.program.code.kernels if k] == [k.binary for k in first.program.code.kernels if k]
    torch.testing.assert_close(loaded.simulate(x), model(x))
    if not torch.cuda.is_available():
        with pytest.raises(LaunchError):
            loaded(x)


def test_kernels_are_carried_to_where_triton_is_not(tmp_path: Path):
    path = tmp_path / "m.dlc"
    dlcompiler.compile(small(), (torch.randn(4, 16),), target="cuda:sm_90").save(path)
    program = f"""
import sys
sys.modules["triton"] = None
sys.modules["torch_mlir"] = None
import dlcompiler
compiled = dlcompiler.load({str(path)!r})
print(all(k.binary[:4] == b"\\x7fELF" for k in compiled.program.code.kernels if k))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr


def test_writers_are_mixed_kernel_by_kernel():
    from dlcompiler.codegen.gpu.cuda_assemble import is_available

    if not is_available():
        pytest.skip("needs NVRTC or nvcc")
    model, x = small(), torch.randn(4, 16)
    compiled = dlcompiler.compile(model, (x,), target="cuda:sm_90", options={"gpu_writer": "cuda"})
    stages = [next(iter(k.stages)) for k in compiled.program.code.kernels if k]
    assert "cuda" in stages
    torch.testing.assert_close(compiled.simulate(x), model(x))


def test_training_steps_on_a_device_of_interpreted_kernels():
    """torch.compile's forward and backward graphs through the whole runtime for GPUs, but for the driver."""
    from dlcompiler.codegen import emit
    from dlcompiler.codegen.target import parse_target
    from dlcompiler.passes.block.fuse import fuse
    from dlcompiler.passes.dataflow.memory import place
    from dlcompiler.passes.dataflow.program import plan
    from dlcompiler.passes.pipeline import optimize
    from dlcompiler.runtime.gpu import GpuExecutable

    from tests.runtime.interpreted_device import InterpretedDevice

    target, device, programs = parse_target("cuda:sm_90"), InterpretedDevice(), []

    def compile(graph, _, options, timings, key):
        program = plan(fuse(optimize(graph, target, options), target, options), target, options)
        programs.append(emit(program, target))
        return GpuExecutable(programs[-1], place, open_device=lambda _: device)

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(13, 16)
            self.layers = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.LayerNorm(24), nn.Linear(24, 5))

        def forward(self, tokens, labels):
            return nn.functional.cross_entropy(self.layers(self.words(tokens)).flatten(0, 1), labels.flatten())

    torch.manual_seed(0)
    model = Classifier()
    compiled = torch.compile(model, backend=Backend(compile), dynamic=False)
    for _ in range(2):
        tokens, labels = torch.randint(0, 13, (3, 7)), torch.randint(0, 5, (3, 7))
        gradients = []
        for run in (model, compiled):
            model.zero_grad()
            loss = run(tokens, labels)
            loss.backward()
            gradients.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
        for want, got in zip(*gradients):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert len(programs) == 2 and device.started
    assert not any(k.resources.local_bytes for p in programs for k in p.code.kernels if k is not None)
