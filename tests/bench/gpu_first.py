"""The first minutes on a GPU: what everything else rests on, one thing after the other, the simplest first.

    python -m tests.bench.gpu_first

Each check compares with eager and prints one line; what fails is printed with its traceback, and the next one is tried. After an
error that breaks the device's context (an address that is not there), a fresh process goes on with the next.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch
from dlcompiler.ir.errors import UnsupportedError
from torch import Tensor, nn
from torch.nn import functional

import dlcompiler
from dlcompiler.torch_backend import backend
from tests.bench.gpu_device import be_dry, gpu
from tests.bench.gpu_rows import Output, reported

BROKEN = 64  # exit status of a process whose context is broken at check n: 64 + n


def same(ours: Any, expected: Any, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)


def ours(function: Callable[..., Any], *inputs: Any, **settings: Any) -> Any:
    """A function compiled by torch.compile, called."""
    torch._dynamo.reset()
    return torch.compile(function, backend=backend, dynamic=False, **settings)(*inputs)


def open_the_device() -> None:
    from dlcompiler.runtime.device import open_device

    if gpu().is_dry:
        print(f"    {gpu().title()}")
        return
    device = open_device()
    major, minor = device.capability
    print(f"    {gpu().title()}, sm_{major}{minor}, {device.free_bytes() >> 30} GiB free")


def one_pointwise_kernel() -> None:
    x = torch.randn(1000, device=gpu().name)
    same(ours(lambda x: x * 2 + 1, x), x * 2 + 1)


def order_of_arguments() -> None:
    a, b, c = (torch.randn(37, 53, device=gpu().name) for _ in range(3))
    first, second = ours(lambda a, b, c: (a - 2 * b, (b / (c.abs() + 1)).t().contiguous()), a, b, c)
    same(first, a - 2 * b)
    same(second, (b / (c.abs() + 1)).t().contiguous())


def sizes_known_when_called() -> None:
    torch._dynamo.reset()
    run = torch.compile(lambda x: torch.softmax(x, -1) + x.shape[0], backend=backend, dynamic=True)
    for rows in (5, gpu().size(300, 30), 17):
        x = torch.randn(rows, 129, device=gpu().name)
        same(run(x), torch.softmax(x, -1) + rows)


def rows_and_columns() -> None:
    x = torch.randn(gpu().size(300, 9), gpu().size(1000, 70), device=gpu().name)

    def all_of(x: Tensor) -> tuple[Tensor, ...]:
        return torch.softmax(x, -1), functional.layer_norm(x, x.shape[1:]), x.sum(0), x.argmax(1)

    same(ours(all_of, x), all_of(x), 1e-3)


def products() -> None:
    def layer(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return functional.gelu(functional.linear(x, w, b))

    for dtype, tolerance in ((torch.float32, 1e-3), (torch.float16, 2e-2), (torch.bfloat16, 5e-2)):
        given = [
            torch.randn(shape, device=gpu().name, dtype=dtype) * 0.2 for shape in ((gpu().size(200, 40), 256), (512, 256), (512,))
        ]
        same(ours(layer, *given), layer(*given), tolerance)
    torch.backends.cudnn.allow_tf32 = False
    given = [torch.randn(2, 16, 20, 20, device=gpu().name), torch.randn(32, 16, 3, 3, device=gpu().name) * 0.1]
    same(ours(functional.conv2d, *given), functional.conv2d(*given), 1e-3)


def scratch_memory() -> None:
    """A product whose kernel makes tensor descriptors, for which it needs memory of its own (architectures from sm_90 on)."""
    from dlcompiler.codegen.choices import Choices
    from dlcompiler.ir.graph import Builder
    from dlcompiler.ir.types import TensorType, f16

    from dlcompiler.compiler import compile_graph
    from dlcompiler.devices import target_here
    from dlcompiler.options import Options

    b = Builder("product")
    x, w = (b.input(name, TensorType(f16, (512, 512))) for name in "xw")
    graph, target, seen = b.finish([b.matmul(x, w)]), target_here("cuda"), Choices({})
    compile_graph(graph, target.with_choices(seen), Options())
    keys = [question.key for question in seen.asked.values() if question.kind == "schedule"]
    given = [torch.randn(512, 512, device=gpu().name, dtype=torch.float16) * 0.2 for _ in range(2)]
    for number in range(30, 20, -1):
        chosen = target.with_choices(Choices({key: {"candidate": number} for key in keys}))
        with contextlib.suppress(UnsupportedError):
            run = compile_graph(graph, chosen, Options())
            (kernel,) = (k for k in run.program.code.kernels if k is not None)
            if kernel.scratch_bytes:
                same(run(given)[0], given[0] @ given[1], 2e-2)
                print(f"    {kernel.schedule}: {kernel.scratch_bytes} bytes")
                return
    print("    no schedule here needs any")


def attention_forward_and_backward() -> None:
    q, k, v = (torch.randn(2, 4, 100, 64, device=gpu().name, dtype=torch.float16, requires_grad=True) for _ in range(3))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    results = []
    for run in (attend, torch.compile(attend, backend=backend, dynamic=False)):
        out = run(q, k, v)
        results.append((out.detach(), *torch.autograd.grad(out.float().square().sum(), (q, k, v))))
    same(*results[::-1], 3e-2)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.LayerNorm(128), nn.Linear(128, 64)).to(gpu().name)


def recorded_graphs() -> None:
    model = small()
    torch._dynamo.reset()
    run = torch.compile(model, backend=backend, mode="reduce-overhead")
    batches = [torch.randn(gpu().size(32, 4), 64, device=gpu().name) for _ in range(6)]
    with torch.no_grad():
        results = [run(batch) for batch in batches]
        for batch, result in zip(batches, results):
            same(result, model(batch), 1e-3)
        with gpu().other_stream():
            batch = torch.randn(gpu().size(32, 4), 64, device=gpu().name)
            same(run(batch), model(batch), 1e-3)


def gradients_in_another_thread() -> None:
    model, x = small(), torch.randn(gpu().size(32, 4), 64, device=gpu().name)
    torch._dynamo.reset()
    run = torch.compile(model, backend=backend)
    run(x).square().mean().backward()
    mine = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(x).square().mean().backward()
    same(mine, [p.grad for p in model.parameters()], 1e-3)
    found: list[Any] = []

    def other() -> None:  # a thread that has not called CUDA yet
        with torch.no_grad():
            found.append(dlcompiled(x))

    dlcompiled = dlcompiler.compile(model, (x,), target="cuda")
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    same(found[0], model(x).detach(), 1e-3)


def a_training_step() -> None:
    models = [small(), small()]
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2) for m in models]

    def loss_of(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(model(batch[0]), batch[1])

    batches = [tuple(torch.randn(gpu().size(32, 4), 64, device=gpu().name) for _ in range(2)) for _ in range(6)]
    step = dlcompiler.train_step(models[0], loss_of, optimizers[0], batches[0], target=gpu().target)
    places = [p.data_ptr() for p in models[0].parameters()]
    for k, batch in enumerate(batches):
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = 1e-2 / (k + 1)
        loss = loss_of(models[1], batch)
        optimizers[1].zero_grad()
        loss.backward()
        optimizers[1].step()
        same(step(batch), loss.detach(), 1e-3)
    same([p.detach() for p in models[0].parameters()], [p.detach() for p in models[1].parameters()], 1e-2)
    assert places == [p.data_ptr() for p in models[0].parameters()] and len(step.reports) == 1
    print(f"    graphs recorded: {step.reports[0].kernels} launches in one program")


def older_code() -> None:
    """PTX of an older architecture, which the driver compiles."""
    x = torch.randn(gpu().size(300, 9), 70, device=gpu().name)
    same(dlcompiler.compile(lambda x: torch.softmax(x, -1), (x,), target="cuda:sm_80")(x), torch.softmax(x, -1))


def weights_changed_in_place() -> None:
    model, x = small(), torch.randn(8, 64, device=gpu().name)
    run = dlcompiler.compile(model, (x,), target="cuda")
    same(run(x), model(x).detach(), 1e-3)
    with torch.no_grad():
        model[0].weight.mul_(0.5)
    same(run(x), model(x).detach(), 1e-3)


CHECKS = (
    open_the_device, one_pointwise_kernel, order_of_arguments, sizes_known_when_called, rows_and_columns, products,
    scratch_memory, attention_forward_and_backward, recorded_graphs, gradients_in_another_thread, a_training_step,
    weights_changed_in_place, older_code,
)  # fmt: skip


def run_checks(start: int, output: Output) -> int:
    """The checks from number `start` on; the exit status."""
    status = 0
    for number, check in enumerate(CHECKS[start:], start):
        found: list[str] = []
        with reported(output, check.__name__, found):
            check()
            gpu().synchronize()
        output.line(f"{'FAIL' if found else 'ok':4} {check.__name__.replace('_', ' ')} {found[0] if found else ''}")
        status |= bool(found)
        if found:
            broken: list[str] = []
            with reported(output, f"after {check.__name__}", broken):
                gpu().synchronize()
                torch.zeros(1, device=gpu().name).add_(1).item()
            if broken:
                return BROKEN + number
    return status


def run_all(output: Output) -> int:
    """Every check, going on in a fresh process where one broke the device's context."""
    start, failed = 0, 0
    while start < len(CHECKS):
        arguments = [sys.executable, "-m", "tests.bench.gpu_first", "--start", str(start)]
        arguments += ["--output", str(output.folder)] if output.folder else []
        arguments += ["--dry-run"] if gpu().is_dry else []
        status = subprocess.run(arguments).returncode
        failed |= status
        if status < BROKEN:
            break
        start = status - BROKEN + 1
    output.line()
    return int(bool(failed))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--start", type=int)
    parser.add_argument("--output")
    parser.add_argument("--dry-run", action="store_true", help="in Triton's interpreter, without a GPU")
    chosen = parser.parse_args()
    if chosen.dry_run:
        be_dry()
    elif not torch.cuda.is_available():
        print(f"no GPU here; the checks: {', '.join(c.__name__.replace('_', ' ') for c in CHECKS)}")
        return 0
    output = Output(chosen.output)
    return run_all(output) if chosen.start is None else run_checks(chosen.start, output)


if __name__ == "__main__":
    raise SystemExit(main())
