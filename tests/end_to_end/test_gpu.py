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
