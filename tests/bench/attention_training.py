"""Attention in training: the forward pass with log-sum-exp, and the gradients, ours beside ATen's on the CPU.

python -m tests.bench.attention_training [--rounds 9]

Both are given the same tensors, laid out as a model projects them, and take turns; GFLOP/s count the two products of the
forward pass and the five of the backward pass, half of each behind a causal mask.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

# name -> batch, heads, tokens, width of a head, causal, dtype
CASES: dict[str, tuple[int, int, int, int, bool, torch.dtype]] = {
    "1 head": (1, 1, 512, 64, False, torch.float32),
    "3 heads": (1, 3, 512, 64, False, torch.float32),
    "ViT": (4, 12, 197, 64, False, torch.float32),
    "BERT, 4 layers": (8, 8, 128, 64, False, torch.float32),
    "BERT-base": (4, 12, 512, 64, False, torch.float32),
    "GPT-2": (4, 12, 256, 64, True, torch.float32),
    "GPT-2, long": (1, 12, 1024, 64, True, torch.float32),
    "2k tokens": (1, 4, 2048, 64, False, torch.float32),
    "Llama-like": (1, 8, 512, 128, True, torch.float32),
    "BERT-base, bfloat16": (2, 12, 512, 64, False, torch.bfloat16),
}


def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Any:
    return tuple(aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal))


def backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, causal: bool) -> Any:
    return tuple(aten._scaled_dot_product_flash_attention_for_cpu_backward(grad, q, k, v, out, logsumexp, 0.0, causal))


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, backend="dlcompiler", options={"strict": True}, dynamic=False)


def measure(batch: int, heads: int, length: int, width: int, causal: bool, dtype: torch.dtype, rounds: int) -> list[float]:
    """Median ms: ATen and ours forward, ATen and ours backward."""
    torch._dynamo.reset()
    q, k, v, grad = (torch.randn(batch, length, heads, width, dtype=dtype).transpose(1, 2) for _ in range(4))
    out, logsumexp = forward(q, k, v, causal)
    ours_forward, ours_backward = compiled(forward), compiled(backward)
    systems: list[Callable[[], Any]] = [
        lambda: forward(q, k, v, causal),
        lambda: ours_forward(q, k, v, causal),
        lambda: backward(grad, q, k, v, out, logsumexp, causal),
        lambda: ours_backward(grad, q, k, v, out, logsumexp, causal),
    ]
    seconds: list[list[float]] = [[] for _ in systems]
    for number in range(rounds + 2):
        for system, times in zip(systems, seconds):
            start = time.perf_counter()
            system()
            if number > 1:
                times.append(time.perf_counter() - start)
    return [statistics.median(times) * 1e3 for times in seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    print("| attention | forward, ATen ms | ours | / ATen | GFLOP/s | backward, ATen ms | ours | / ATen | GFLOP/s |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, (batch, heads, length, width, causal, dtype) in CASES.items():
        with torch.no_grad():
            theirs, ours, theirs_back, ours_back = measure(batch, heads, length, width, causal, dtype, rounds)
        product = 2 * batch * heads * length * length * width / (2 if causal else 1) / 1e6
        cells = [theirs, ours, ours / theirs, 2 * product / ours, theirs_back, ours_back, ours_back / theirs_back]
        texts = [f"{x:.2f}" for x in (*cells[:3], *cells[4:])]
        texts.insert(3, f"{cells[3]:.0f}")
        shape = f"{name}: {batch} x {heads} x {length} x {width}{', causal' if causal else ''}"
        print(f"| {shape} | {' | '.join(texts)} | {5 * product / ours_back:.0f} |", flush=True)


if __name__ == "__main__":
    main()
