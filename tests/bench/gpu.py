"""What only a machine with a GPU can say, in under 8 minutes; on any other, what can be said without one.

    python -m tests.bench.gpu [--seconds 460] [--parts check,copy,matmul,attention,models,training] [--tiny]

Parts, each against eager and Inductor (default and max-autotune), medians of interleaved rounds:

    check      small programs run for real and compared with eager: streams, CUDA graphs, results kept apart, inputs written
    copy       memory-bound kernels, as a part of the bandwidth of a large copy
    matmul     8 shapes against cuBLAS
    attention  512 to 16k tokens against ATen's
    models     inference in float16, bfloat16 and float32, compile seconds, peak memory
    training   forward and backward

A part that there was no time or no GPU for is printed as "not measured".
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tests import zoo

NOT_MEASURED = "not measured"
PEERS = ("eager", "inductor", "inductor max-autotune", "dlcompiler")
MATMULS = ((512, 512, 512), (2048, 2048, 2048), (8192, 8192, 8192), (128, 768, 768), (4096, 768, 3072), (4096, 3072, 768),
           (16, 4096, 4096), (4096, 50257, 768))  # fmt: skip
TOKENS = (512, 1024, 2048, 4096, 8192, 16384)
MODELS = ("bert-base", "gpt2", "vit-b16", "resnet50")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
COPY_BYTES = 1 << 30
ROUNDS = 10


class Clock:
    """How much of the time allowed is left."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self.end - time.monotonic()


def compiled(function: Callable[..., Any], peer: str) -> Callable[..., Any]:
    """A function as a system runs it."""
    if peer == "eager":
        return function
    torch._dynamo.reset()
    if peer == "dlcompiler":
        return torch.compile(function, backend="dlcompiler", dynamic=False)
    mode = "max-autotune" if "max" in peer else None
    return torch.compile(function, mode=mode, dynamic=False)


def seconds_of(functions: Sequence[Callable[[], Any]]) -> list[float]:
    """Median seconds of each on the GPU, in turns, after warming up."""
    for function in functions:
        for _ in range(3):
            function()
    torch.cuda.synchronize()
    spent: list[list[float]] = [[] for _ in functions]
    for _ in range(ROUNDS):
        for k, function in enumerate(functions):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            function()
            end.record()
            end.synchronize()
            spent[k].append(begin.elapsed_time(end) / 1e3)
    return [statistics.median(each) for each in spent]


def timed_peers(
    function: Callable[..., Any], inputs: Sequence[Any], clock: Clock, peers: Sequence[str] = PEERS
) -> dict[str, Any]:
    """Peer -> (seconds, seconds until its first result); a sentence for one that failed or that there was no time for."""
    ready: dict[str, Any] = {}
    first: dict[str, float] = {}
    for peer in peers:
        if clock.left < 20:
            ready[peer] = f"{NOT_MEASURED} (time)"
            continue
        begin = time.monotonic()
        try:
            made = compiled(function, peer)
            made(*inputs)
            torch.cuda.synchronize()
        except (RuntimeError, NotImplementedError, TypeError, AssertionError) as error:  # becomes a line of the table
            ready[peer] = f"failed: {type(error).__name__}"
            continue
        first[peer] = time.monotonic() - begin
        ready[peer] = made
    running = [peer for peer in peers if callable(ready[peer])]
    medians = seconds_of([lambda f=ready[p]: f(*inputs) for p in running]) if running else []
    return {**ready, **{peer: (median, first[peer]) for peer, median in zip(running, medians)}}


def cell(value: Any, scale: float = 1e6) -> str:
    return value if isinstance(value, str) else f"{value[0] * scale:.1f}"


def table(head: Sequence[str], rows: Iterator[Sequence[Any]]) -> None:
    print("| " + " | ".join(head) + " |\n|" + " --- |" * len(head), flush=True)
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |", flush=True)
    print()


# -- parts -------------------------------------------------------------------------------------------------------------------


def gelu_sigmoid(x: Tensor) -> Tensor:
    return functional.gelu(x) * torch.sigmoid(x)


def softmax(x: Tensor) -> Tensor:
    return torch.softmax(x, -1)


def layer_norm(x: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:])


def column_sum(x: Tensor) -> Tensor:
    return (x * x).sum(0)


def transpose_add(x: Tensor) -> Tensor:
    return x.t().contiguous() + 1


# function, how many times its input's bytes it moves
COPY_BOUND = ((gelu_sigmoid, 2), (softmax, 2), (layer_norm, 2), (column_sum, 1), (transpose_add, 2))


def check(clock: Clock) -> None:
    """Small programs compared with eager. Raises AssertionError."""
    torch.manual_seed(0)
    x = torch.randn(300, 1000, device="cuda")
    for function, _ in COPY_BOUND:
        torch.testing.assert_close(compiled(function, "dlcompiler")(x), function(x), rtol=1e-4, atol=1e-4)
    model = torch.nn.Sequential(
        torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.LayerNorm(128), torch.nn.Linear(128, 64)
    ).cuda()
    for mode in (None, "reduce-overhead"):
        torch._dynamo.reset()
        run = torch.compile(model, backend="dlcompiler", mode=mode)
        batches = [torch.randn(32, 64, device="cuda") for _ in range(6)]
        with torch.no_grad():
            results = [run(batch) for batch in batches]
            for batch, result in zip(batches, results):
                torch.testing.assert_close(result, model(batch), rtol=1e-3, atol=1e-3)
    stream = torch.cuda.Stream()
    with torch.no_grad(), torch.cuda.stream(stream):
        batch = torch.randn(32, 64, device="cuda")
        torch.testing.assert_close(run(batch), model(batch), rtol=1e-3, atol=1e-3)
    run(batches[0]).square().mean().backward()
    ours = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(batches[0]).square().mean().backward()
    for mine, parameter in zip(ours, model.parameters()):
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-3, atol=1e-3)
    print("check: kernels, streams, CUDA graphs and gradients agree with eager\n", flush=True)


def copy_bound(clock: Clock) -> None:
    source = torch.empty(COPY_BYTES // 4, device="cuda")
    target = torch.empty_like(source)
    (seconds,) = seconds_of([lambda source=source, target=target: target.copy_(source)])
    bandwidth = 2 * COPY_BYTES / seconds
    del source, target
    print(f"copy bandwidth {bandwidth / 1e12:.2f} TB/s")
    x = torch.randn(16384, 4096, device="cuda")

    def rows() -> Iterator[Sequence[Any]]:
        for function, times in COPY_BOUND:
            found = timed_peers(function, (x,), clock)
            shares = [
                v if isinstance(v, str) else f"{times * x.numel() * 4 / v[0] / bandwidth:.0%}" for v in (found[p] for p in PEERS)
            ]
            yield (function.__name__, *shares)

    table(("kernel, float32 16384 x 4096; part of copy bandwidth", *PEERS), rows())


def matmul(clock: Clock) -> None:
    def rows() -> Iterator[Sequence[Any]]:
        for m, n, k in MATMULS:
            a = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
            b = torch.randn(n, k, device="cuda", dtype=torch.bfloat16)
            found = timed_peers(functional.linear, (a, b), clock, ("eager", "dlcompiler"))
            rates = [v if isinstance(v, str) else f"{2 * m * n * k / v[0] / 1e12:.0f}" for v in found.values()]
            yield (f"{m} x {n} x {k}", *rates)

    table(("linear, bfloat16, M x N x K; TFLOP/s", "cuBLAS", "dlcompiler"), rows())


def attention(clock: Clock) -> None:
    attend = functional.scaled_dot_product_attention

    def rows() -> Iterator[Sequence[Any]]:
        for tokens in TOKENS:
            q, k, v = (torch.randn(max(16384 // tokens, 1), 16, tokens, 128, device="cuda", dtype=torch.bfloat16) for _ in "qkv")
            found = timed_peers(lambda q, k, v: attend(q, k, v), (q, k, v), clock, ("eager", "dlcompiler"))
            flops = 4 * q.numel() * tokens
            yield (tokens, *(x if isinstance(x, str) else f"{flops / x[0] / 1e12:.0f}" for x in found.values()))

    table(("attention, bfloat16, 16 heads of 128, 16k tokens in all; TFLOP/s", "ATen", "dlcompiler"), rows())


def models(clock: Clock, size: str) -> None:
    def rows() -> Iterator[Sequence[Any]]:
        for dtype in DTYPES:
            for name in MODELS:
                if clock.left < 30:
                    yield (name, dtype, *(f"{NOT_MEASURED} (time)" for _ in (*PEERS, 1, 2)))
                    continue
                model = zoo.build(name, size)
                module = model.module.to("cuda", dtype)
                inputs = [x.to("cuda", dtype if x.is_floating_point() else x.dtype) for x in model.inputs]
                peers = PEERS if dtype is torch.float16 else tuple(p for p in PEERS if "max" not in p)
                with torch.no_grad():
                    found = timed_peers(module, inputs, clock, peers)
                    torch.cuda.reset_peak_memory_stats()
                    before = torch.cuda.memory_allocated()
                    ours = found["dlcompiler"]
                    if not isinstance(ours, str):
                        compiled(module, "dlcompiler")(*inputs)
                    peak = torch.cuda.max_memory_allocated() - before
                times = [cell(found[p]) if p in found else NOT_MEASURED for p in PEERS]
                until = "/".join(f"{v[1]:.0f}" for p in peers if not isinstance(v := found[p], str))
                yield (name, str(dtype).removeprefix("torch."), *times, until, f"{peak / 2**20:.0f}")

    table(("model, batch 1; us", "dtype", *PEERS, "first result, s", "peak of dlcompiler, MiB"), rows())


def training(clock: Clock, size: str) -> None:
    def rows() -> Iterator[Sequence[Any]]:
        for name in MODELS:
            if clock.left < 30:
                yield (name, *(f"{NOT_MEASURED} (time)" for _ in range(3)))
                continue
            model = zoo.build(name, size)
            module = model.module.to("cuda").requires_grad_(True)
            inputs = [x.to("cuda") for x in model.inputs]

            def step(run: Callable[..., Any], inputs: Sequence[Tensor] = inputs) -> None:
                result = run(*inputs)
                (result[0] if isinstance(result, tuple) else result).float().square().mean().backward()

            peers = ("eager", "inductor", "dlcompiler")
            made = {peer: compiled(module, peer) for peer in peers}
            times = seconds_of([lambda f=made[p]: step(f) for p in peers])
            yield (name, *(f"{t * 1e6:.0f}" for t in times))

    table(("forward and backward, float32; us", "eager", "inductor", "dlcompiler"), rows())


def without_gpu(size: str) -> None:
    """What can be said here: the same kernels assembled for an H200, and run by Triton's interpreter."""
    from dlcompiler.codegen.gpu.device import device_of
    from dlcompiler.codegen.gpu.evidence import evidence_table, program_evidence

    import dlcompiler

    x = torch.randn(4096, 1024)
    small = torch.randn(3, 70)
    rows = []
    for function, _ in COPY_BOUND:
        made = dlcompiler.compile(function, (x,), target="cuda:sm_90")
        rows += program_evidence(made.program)
        torch.testing.assert_close(
            dlcompiler.compile(function, (small,), target="cuda:sm_90").simulate(small), function(small), rtol=1e-4, atol=1e-5
        )
    print(evidence_table(rows, device_of("sm_90")))
    print("\nsimulated: the memory-bound kernels agree with eager")
    for part in ("check", "copy", "matmul", "attention", "models", "training"):
        print(f"{part}: {NOT_MEASURED} (no GPU)")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=460)
    parser.add_argument("--parts", default="check,copy,matmul,attention,models,training")
    parser.add_argument("--tiny", action="store_true", help="small models")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    size = "tiny" if chosen.tiny else "real"
    if not torch.cuda.is_available():
        print(f"no GPU on {platform.machine()}, torch {torch.__version__}: static evidence for an H200\n")
        without_gpu(size)
        return 0
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {platform.node()}\n")
    torch.set_float32_matmul_precision("highest")
    clock = Clock(chosen.seconds)
    parts: dict[str, Callable[[], None]] = {
        "check": lambda: check(clock), "copy": lambda: copy_bound(clock), "matmul": lambda: matmul(clock),
        "attention": lambda: attention(clock), "models": lambda: models(clock, size), "training": lambda: training(clock, size),
    }  # fmt: skip
    for name in chosen.parts.split(","):
        if clock.left < 20:
            print(f"{name}: {NOT_MEASURED} (time)")
            continue
        with contextlib.ExitStack() as stack:
            stack.callback(torch.cuda.empty_cache)
            parts[name]()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
