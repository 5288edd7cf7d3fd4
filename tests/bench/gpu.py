"""What only a machine with a GPU can say, in under 8 minutes; on any other, what can be said without one.

    python -m tests.bench.gpu [--seconds 460] [--quick] [--parts first,copy,...] [--tiny] [--output FOLDER]
    python -m tests.bench.gpu --dry-run [--parts ...]      # no GPU: every line of the script at tiny sizes, Inductor left out

Parts, each in a process of its own with a share of the time, so that one that crashes or hangs takes no other along:

    first      does it work at all? (`tests.bench.gpu_first`: launches, argument order, scratch memory, graphs, threads)
    models     inference in float16; seconds until the first result; peak memory
    copy       memory-bound kernels, as a part of the bandwidth of a large copy
    matmul     8 shapes against cuBLAS
    attention  512 to 16k tokens against ATen's
    training   whole steps: eager, Inductor, ours by torch.compile, `dlcompiler.train_step`
    autotune   Inductor's max-autotune against ours
    dtypes     the models in bfloat16 and float32, last, as long as there is time

While `first` runs, whose times do not count, all models are compiled by all systems, a process each on other cores; what they
leave in their caches is taken by the rows, and `compiling` lines say how long it took. With --no-warm-up rows compile themselves.

Peers run in turns, medians of 10 rounds; results are compared with eager's before anything is timed. Rows are written as they
come, also into FOLDER (`gpu.md`, `gpu.jsonl`, and `gpu.log` with the traceback of every failure). What there was no time or no
GPU for is printed as "not measured".
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tests import zoo
from tests.bench.gpu_device import be_dry, gpu
from tests.bench.gpu_rows import NOT_MEASURED, PEERS, Clock, Output, Row, compiled, reported, seconds_of

MATMULS = ((4096, 768, 3072), (8192, 8192, 8192), (128, 768, 768), (512, 512, 512), (2048, 2048, 2048), (4096, 3072, 768),
           (16, 4096, 4096), (4096, 50257, 768))  # fmt: skip
TOKENS = (2048, 16384, 512, 1024, 4096, 8192)
TRAINED = ("bert", "gpt2", "resnet18", "dcgan", "lstm")
MODELS = ("bert-base", "resnet50", "gpt2", "vit-b16")
DTYPES = (torch.float16, torch.float32, torch.bfloat16)
COPY_BYTES = 1 << 30
# part -> its share of the time, in seconds of 460; the last takes what is left
PARTS = {
    "first": 75, "models": 70, "copy": 40, "matmul": 45, "attention": 30, "training": 75, "autotune": 60, "dtypes": 400,
}  # fmt: skip
WARM_UP = 110  # seconds, those of `first` among them
WARMERS = 12  # processes at once
KILL_AFTER = 15  # seconds beyond its share
DRY_TIMES = 10  # how much longer an interpreter may take


class Setting:
    """What a part is given."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self.clock, self.output = Clock(chosen.seconds), Output(chosen.output)
        self.quick, self.size = chosen.quick, "tiny" if chosen.tiny else "real"

    def of(self, cases: Sequence[Any], few: int) -> Sequence[Any]:
        """All cases, the first few with --quick."""
        return cases[:few] if self.quick else cases

    def scaled(self, *sizes: int) -> tuple[int, ...]:
        """Sizes of tensors: a hundredth for an interpreter, but for what is small anyway."""
        return tuple(max(min(size, 16), size // 128) for size in sizes) if gpu().is_interpreted else sizes

    def row(self, name: str, function: Callable[..., Any], inputs: Sequence[Any], peers: Sequence[str]) -> Row:
        return Row(self.output, name, function, inputs, self.clock).run(peers)


def microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:.1f}"


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


def first(setting: Setting) -> None:
    from tests.bench.gpu_first import run_all

    run_all(setting.output)


def copy(setting: Setting) -> None:
    (count,) = setting.scaled(COPY_BYTES // 4)
    source = torch.empty(count, device=gpu().name)
    target = torch.empty_like(source)
    (seconds,) = seconds_of([lambda: target.copy_(source)])
    bandwidth = 8 * count / seconds
    source = target = torch.empty(0)
    setting.output.line(f"copy bandwidth {bandwidth / 1e12:.2f} TB/s\n")
    x = torch.randn(setting.scaled(16384, 4096), device=gpu().name)

    def rows() -> Iterator[Sequence[Any]]:
        for function, times in setting.of(COPY_BOUND, 3):
            row = setting.row(function.__name__, function, (x,), PEERS)
            moved = times * x.numel() * 4
            yield (function.__name__, *row.shown(PEERS, lambda s, moved=moved: f"{moved / s / bandwidth:.0%}"), row.difference)

    setting.output.table(("float32 16384 x 4096; part of copy bandwidth", *PEERS, "difference"), rows())


def matmul(setting: Setting) -> None:
    peers = ("eager", "inductor", "dlcompiler")

    def rows() -> Iterator[Sequence[Any]]:
        for sizes in setting.of(MATMULS, 3):
            m, n, k = setting.scaled(*sizes)
            a = torch.randn(m, k, device=gpu().name, dtype=torch.bfloat16)
            b = torch.randn(n, k, device=gpu().name, dtype=torch.bfloat16)
            row = setting.row(f"{m} x {n} x {k}", functional.linear, (a, b), peers)
            work = 2 * m * n * k
            yield (row.name, *row.shown(peers, lambda s, work=work: f"{work / s / 1e12:.0f}"), row.difference)

    setting.output.table(("linear, bfloat16, M x N x K; TFLOP/s", "cuBLAS", "inductor", "dlcompiler", "difference"), rows())


def attention(setting: Setting) -> None:
    peers = ("eager", "dlcompiler")

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(q, k, v)

    def rows() -> Iterator[Sequence[Any]]:
        for case in setting.of(TOKENS, 2):
            (tokens,) = setting.scaled(case)
            batch = 1 if gpu().is_interpreted else max(16384 // tokens, 1)
            q, k, v = (torch.randn(batch, 16, tokens, 128, device=gpu().name, dtype=torch.bfloat16) for _ in "qkv")
            row = setting.row(f"{tokens} tokens", attend, (q, k, v), peers)
            work = 4 * q.numel() * tokens
            yield (tokens, *row.shown(peers, lambda s, work=work: f"{work / s / 1e12:.0f}"), row.difference)

    head = ("attention, bfloat16, 16 heads of 128, 16k tokens in all; TFLOP/s", "ATen", "dlcompiler", "difference")
    setting.output.table(head, rows())


def model_row(setting: Setting, name: str, dtype: torch.dtype, peers: Sequence[str]) -> Row:
    model = zoo.build(name, setting.size)
    module = model.module.to(gpu().name, dtype)
    inputs = [x.to(gpu().name, dtype if x.is_floating_point() else x.dtype) for x in model.inputs]
    with torch.no_grad():
        return setting.row(f"{name} {str(dtype).removeprefix('torch.')}", module, inputs, peers)


def models(setting: Setting, dtypes: Sequence[torch.dtype] = DTYPES[:1]) -> None:
    def rows() -> Iterator[Sequence[Any]]:
        for dtype in dtypes:
            for name in setting.of(MODELS, 2):
                row = model_row(setting, name, dtype, PEERS)
                until = "/".join(f"{row.first[p]:.0f}" if p in row.first else "-" for p in PEERS[1:])
                with torch.no_grad():
                    peaks = [row.peak(p) for p in ("eager", "dlcompiler")]
                shown = "/".join(NOT_MEASURED if peak is None else f"{peak / 2**20:.0f}" for peak in peaks)
                yield (row.name, *row.shown(PEERS, microseconds), row.difference, until, shown)
                del row
                gpu().empty_cache()

    head = (
        "model, batch 1; us",
        *PEERS,
        "difference",
        f"first result, caches filled, s ({'/'.join(PEERS[1:])})",
        "peak MiB, eager/ours",
    )
    setting.output.table(head, rows())


def dtypes(setting: Setting) -> None:
    models(setting, DTYPES[1:])


def training(setting: Setting) -> None:
    from tests.bench.gpu_training import training_rows

    training_rows(setting)


def autotune(setting: Setting) -> None:
    peers = ("eager", "dlcompiler", "inductor max-autotune")

    def rows() -> Iterator[Sequence[Any]]:
        for name in setting.of(MODELS, 1):
            row = model_row(setting, name, torch.float16, peers)
            yield (row.name, *row.shown(peers, microseconds), f"{row.first.get(peers[2], 0):.0f}")

    setting.output.table(("model, batch 1; us", *peers, "max-autotune's first result, s"), rows())


RUNS: dict[str, Callable[[Setting], None]] = {
    "first": first, "models": models, "copy": copy, "matmul": matmul, "attention": attention, "training": training,
    "autotune": autotune, "dtypes": dtypes,
}  # fmt: skip


# -- compiling beforehand ----------------------------------------------------------------------------------------------------


def warm_ups() -> list[str]:
    """What is compiled beforehand, what is measured first at the front: `model MODEL DTYPE` or `training NAME`."""
    found = [f"model {name} {str(dtype).removeprefix('torch.')}" for dtype in DTYPES[:1] for name in MODELS]
    found += [f"training {name}" for name in TRAINED]
    return found + [f"model {name} {str(dtype).removeprefix('torch.')}" for dtype in DTYPES[1:] for name in MODELS]


def warm(what: str, setting: Setting) -> None:
    """Compile one of them by every system; nothing is timed but that."""
    kind, name, *rest = what.split()
    if kind == "training":
        from tests.bench.gpu_training import SYSTEMS, Trained

        for system in SYSTEMS[1:]:
            with compiling(setting, f"training {name}, {system}"):
                Trained(name, setting.size, system)
        return
    model = zoo.build(name, setting.size)
    dtype = getattr(torch, rest[0])
    module = model.module.to(gpu().name, dtype)
    inputs = [x.to(gpu().name, dtype if x.is_floating_point() else x.dtype) for x in model.inputs]
    for peer in ("dlcompiler", "inductor", "inductor graphs"):
        with compiling(setting, f"{name} {rest[0]}, {peer}"), torch.no_grad():
            run = compiled(module, peer)
            for _ in range(3):
                run(*inputs)


@contextmanager
def compiling(setting: Setting, what: str) -> Iterator[None]:
    """Says how long it takes until there is a result; what fails is left for the row that meets it again."""
    begin, found = time.monotonic(), []
    with reported(setting.output, f"compiling {what}", found):
        yield
        gpu().synchronize()
    setting.output.line(f"compiling {what}: {found[0] if found else f'{time.monotonic() - begin:.0f} s'}")


class WarmUp:
    """All of `warm_ups`, some processes at once, until `finish`."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self._deadline = time.monotonic() + WARM_UP * (0.6 if chosen.quick else 1.0)
        self._chosen = chosen
        self._running: set[subprocess.Popen[bytes]] = set()
        self._left = warm_ups()[: 4 if chosen.quick else None]
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(min(WARMERS, os.cpu_count() or 1))]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while time.monotonic() < self._deadline:
            try:
                what = self._left.pop(0)
            except IndexError:
                return
            process = start([*child_command("warm", 1000, self._chosen), "--what", what])
            self._running.add(process)
            process.wait()
            self._running.discard(process)

    def finish(self) -> None:
        """Wait until everything is compiled or the time for it is over."""
        for thread in self._threads:
            thread.join(max(self._deadline - time.monotonic(), 0))
        self._left.clear()
        for process in list(self._running):
            end(process)


# -- without a GPU, and the whole --------------------------------------------------------------------------------------------


def without_gpu() -> None:
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
    for part in PARTS:
        print(f"{part}: {NOT_MEASURED} (no GPU)")


def run_parts(names: Sequence[str], chosen: argparse.Namespace) -> int:
    """Each part in a process of its own. The number of those that did not end well."""
    clock, output, failed = Clock(chosen.seconds), Output(chosen.output), 0
    models_follow = {"models", "training", "dtypes"} & set(names)
    warm_up = WarmUp(chosen) if models_follow and not (gpu().is_interpreted or chosen.no_warm_up) else None
    if warm_up is not None and "first" not in names:
        warm_up.finish()
    for name in names:
        share = PARTS[name] * (DRY_TIMES if gpu().is_interpreted else 0.4 if chosen.quick and name != "first" else 1.0)
        share = min(share, clock.left - KILL_AFTER)
        if share < 20:
            output.line(f"{name}: {NOT_MEASURED} (time)\n")
            continue
        process = start(child_command(name, share, chosen))
        status: int | str
        try:
            status = process.wait(share + KILL_AFTER)
        except subprocess.TimeoutExpired:
            status = "it took too long"
        finally:
            end(process)
        if status:
            failed += 1
            output.line(f"\n{name} did not end well: {status}\n")
        if warm_up is not None and name == "first":
            warm_up.finish()
    if warm_up is not None:
        warm_up.finish()
    return failed


def start(arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """A process in a group of its own, with all that it starts."""
    return subprocess.Popen(arguments, start_new_session=True)


def end(process: subprocess.Popen[bytes]) -> None:
    """End all of a process's group, so that nothing of it is left on the GPU."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def child_command(name: str, seconds: float, chosen: argparse.Namespace) -> list[str]:
    """What runs one part in a process of its own."""
    arguments = [sys.executable, "-m", "tests.bench.gpu", "--child", name, "--seconds", f"{seconds:.0f}"]
    arguments += [f"--{flag}" for flag in ("quick", "tiny", "dry-run") if getattr(chosen, flag.replace("-", "_"))]
    return arguments + (["--output", chosen.output] if chosen.output else [])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=460)
    parser.add_argument("--parts", default=",".join(PARTS), help="in this order")
    parser.add_argument("--quick", action="store_true", help="the most telling rows of each part: about 3 minutes")
    parser.add_argument("--tiny", action="store_true", help="small models")
    parser.add_argument("--dry-run", action="store_true", help="on a device of interpreted kernels, at tiny sizes")
    parser.add_argument("--output", help="a folder that everything is written into, too")
    parser.add_argument("--no-warm-up", action="store_true", help="compile nothing beforehand")
    parser.add_argument("--child", choices=(*PARTS, "warm"), help=argparse.SUPPRESS)
    parser.add_argument("--what", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    unknown = set(chosen.parts.split(",")) - set(PARTS)
    if unknown:
        parser.error(f"no parts: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    warnings.filterwarnings("ignore")
    if chosen.dry_run:
        be_dry()
    if gpu().is_interpreted:
        chosen.tiny, chosen.seconds = True, chosen.seconds if chosen.child else DRY_TIMES * chosen.seconds
    elif not torch.cuda.is_available():
        print(f"no GPU on {platform.machine()}, torch {torch.__version__}: static evidence for an H200\n")
        without_gpu()
        return 0
    if chosen.child:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        if chosen.child == "warm":
            warm(chosen.what, Setting(chosen))
        else:
            RUNS[chosen.child](Setting(chosen))
        return 0
    import triton

    versions = f"torch {torch.__version__}, triton {triton.__version__}, Python {platform.python_version()}"
    Output(chosen.output).line(f"{gpu().title()}, {versions}, {platform.node()}\n")
    return run_parts(chosen.parts.split(","), chosen)


if __name__ == "__main__":
    raise SystemExit(main())
