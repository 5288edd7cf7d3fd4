"""One operator of torch's database, forward and backward, eager and compiled: the process behind `tests.bench.opinfo`.

JSON requests on stdin, one answer a line on stdout. A crash ends this process alone; the parent says which operator it was.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import dlcompiler

DTYPES = {
    "float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16,
    "complex64": torch.complex64,
}  # fmt: skip
WIDE = {torch.complex64: torch.complex128}  # of all others: float64
TOLERANCE = {
    torch.float64: (1e-8, 1e-9), torch.float32: (2e-5, 1e-5), torch.complex64: (2e-5, 1e-5),
    torch.bfloat16: (3e-2, 1e-2), torch.float16: (4e-3, 1e-3),
}  # fmt: skip
WORSE = 4.0  # how many times eager's error ours may be, both against float64, where the two differ
LIMIT = 200  # samples looked at


def _stable_sort(x: Tensor, dim: int = -1, descending: bool = False, stable: bool = True) -> Any:
    return torch.sort(x, dim=dim, descending=descending, stable=True)


# Eager leaves the order of equal numbers open where nobody asks for theirs: another answer that is right, which ours may be.
ALSO_RIGHT: dict[str, Callable[..., Any]] = {"sort": _stable_sort, "msort": lambda x: _stable_sort(x, 0)[0]}
TORCHS_OWN = "torch's own"  # complaint about a sample that AOTAutograd and torch's decompositions change without us


@dataclass
class Verdict:
    """What became of an operator's samples of one dtype.

    as_torch samples that are not eager's, but what torch.compile makes of them without a compiler
    skipped  nothing to compare: random, no tensors, not strided
    wrong    other numbers, shapes or dtypes than eager's; failed: an exception where eager raised none
    calls    what ATen ran, with reasons; empty when everything was native
    """

    name: str
    dtype: str
    right: int = 0
    as_torch: int = 0
    skipped: int = 0
    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """Results of a call, and gradients of its inputs; None for an input that the results do not depend on."""

    outputs: list[Tensor]
    gradients: list[Tensor | None]


def operator_name(op: Any) -> str:
    """As torch's tests name it."""
    return op.name + (f".{op.variant_test_name}" if op.variant_test_name else "")


def check_operator(op: Any, dtype_name: str, count: int) -> Verdict:
    """At most `count` of the operator's samples, spread over those that there are."""
    verdict, dtype = Verdict(operator_name(op), dtype_name), DTYPES[dtype_name]
    differentiable = op.supports_autograd and dtype in op.supported_backward_dtypes("cpu")
    calls: Counter[str] = Counter()
    for position, sample in _samples(op, dtype, differentiable, count):
        torch._dynamo.reset()
        try:
            complaint = check_sample(op, sample, dtype)
        except Exception as error:  # noqa: BLE001 - a survey: whatever breaks is one line of it
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{os.path.basename(where.filename)}:{where.lineno}"
            verdict.failed.append(f"sample {position}: {type(error).__name__} at {place}: {str(error)[:400]}")
            continue
        if complaint is None:
            verdict.skipped += 1
            continue
        for report in dlcompiler.reports():
            calls.update(f"{a.name} ({a.reason})" for a in report.aten)
        if complaint == TORCHS_OWN:
            verdict.as_torch += 1
        elif complaint:
            verdict.wrong.append(f"sample {position}: {complaint}")
        else:
            verdict.right += 1
    verdict.calls = dict(calls)
    return verdict


def _samples(op: Any, dtype: torch.dtype, differentiable: bool, count: int) -> Iterator[tuple[int, Any]]:
    torch.manual_seed(0)
    found = list(itertools.islice(op.sample_inputs("cpu", dtype, requires_grad=differentiable), LIMIT))
    step = max(1, len(found) // count)
    return itertools.islice(enumerate(found), 0, step * count, step)


def check_sample(op: Any, sample: Any, dtype: torch.dtype) -> str | None:
    """Why the compiled call is not eager's; empty if it is, None if there is nothing to compare (random, or no tensor)."""
    leaves, spec = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
    if not any(isinstance(leaf, Tensor) for leaf in leaves) or not all(_is_plain(leaf) for leaf in leaves):
        return None

    def run(function: Callable[..., Any], wide: bool = False) -> Outcome:
        return _outcome(function, sample, leaves, spec, WIDE.get(dtype, torch.float64) if wide else None)

    function = op.get_op()
    try:
        expected, again = run(function), run(function)
    except RuntimeError:  # the database itself has samples that eager does not differentiate
        return None
    if not expected.outputs or _difference(expected, again, None, exact=True):
        return None
    dlcompiler.reset()

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    found = run(torch.compile(call, backend="dlcompiler"))
    complaint = _difference(found, expected, None)
    if complaint and dtype is not torch.float64:
        try:
            judge = run(function, wide=True)
        except (RuntimeError, ValueError):  # takes no float64
            return complaint
        complaint = _difference(found, expected, judge)
    if complaint and operator_name(op) in ALSO_RIGHT:
        complaint = _difference(found, run(ALSO_RIGHT[operator_name(op)]), None)
    if complaint:  # what torch's own decompositions give through AOTAutograd is no fault of ours
        torch._dynamo.reset()
        control = run(torch.compile(call, backend="aot_eager_decomp_partition"))
        if not _difference(found, control, None):
            return TORCHS_OWN
    return complaint


def _is_plain(leaf: Any) -> bool:
    if not isinstance(leaf, Tensor):
        return True
    return leaf.layout is torch.strided and not leaf.is_quantized and type(leaf) in (Tensor, torch.nn.Parameter)


def _outcome(function: Callable[..., Any], sample: Any, leaves: Sequence[Any], spec: Any, wide: torch.dtype | None) -> Outcome:
    """Call with fresh copies of the sample's tensors, and go back with gradients that depend on shapes alone."""
    given, inputs = [], []
    for leaf in leaves:
        value = leaf
        if isinstance(leaf, Tensor):
            value = leaf.detach().clone()
            if wide is not None and (value.is_floating_point() or value.is_complex()):
                value = value.to(wide)
            if leaf.requires_grad:
                inputs.append(value.requires_grad_())
        elif wide is not None and isinstance(leaf, torch.dtype) and leaf in DTYPES.values():
            value = wide
        given.append(value)
    first, args, kwargs = pytree.tree_unflatten(given, spec)
    result = sample.output_process_fn_grad(function(first, *args, **kwargs))
    outputs = [r for r in pytree.tree_leaves(result) if isinstance(r, Tensor)]
    gradients: list[Tensor | None] = []
    differentiable = [r for r in outputs if r.requires_grad]
    if inputs and differentiable:
        weights = [_weights(r) for r in differentiable]
        gradients = list(torch.autograd.grad(differentiable, inputs, weights, allow_unused=True))
    return Outcome([r.detach() for r in outputs], gradients)


def _weights(tensor: Tensor) -> Tensor:
    """Gradients of results: in turn positive and negative, no two neighbours alike, exact in every dtype."""
    count = torch.arange(tensor.numel())
    signs = 1 - 2 * (count % 2)
    return (signs * (1 + count % 5) / 4).to(tensor.dtype).view(tensor.shape)


def _difference(found: Outcome, expected: Outcome, judge: Outcome | None, exact: bool = False) -> str:
    """What differs first, in words; empty if nothing does. With a judge, an error is one that is WORSE than eager's own."""
    if len(found.outputs) != len(expected.outputs):
        return f"{len(found.outputs)} results, not {len(expected.outputs)}"
    if bool(found.gradients) != bool(expected.gradients):
        return "results do not require gradients" if expected.gradients else "results require gradients"
    for kind in ("outputs", "gradients"):
        ours, theirs = getattr(found, kind), getattr(expected, kind)
        exacts = getattr(judge, kind) if judge is not None else [None] * len(theirs)
        for k, (mine, eager, truth) in enumerate(zip(ours, theirs, exacts, strict=True)):
            if mine is None and eager is None:
                continue
            if mine is None or eager is None:  # AOTAutograd gives zeros where eager gives nothing
                given = eager if mine is None else mine
                if given.count_nonzero():
                    return f"{kind[:-1]} {k} is {_shown(mine)}, not {_shown(eager)}"
                continue
            if mine.dtype is not eager.dtype or mine.shape != eager.shape:
                return f"{kind[:-1]} {k} is {_shown(mine)}, not {_shown(eager)}"
            if not _near(mine, eager, truth, exact):
                return f"{kind[:-1]} {k} is off by {_error(mine, eager):.2e}: {_shown(mine)}, not {_shown(eager)}"
    return ""


def _near(mine: Tensor, eager: Tensor, truth: Tensor | None, exact: bool) -> bool:
    if mine.layout is not torch.strided or exact:
        return mine.layout is eager.layout and (mine.layout is not torch.strided or torch.equal(_bits(mine), _bits(eager)))
    relative, absolute = TOLERANCE.get(eager.dtype, (0.0, 0.0))
    if eager.dtype is torch.complex32:
        return bool(
            torch.allclose(mine.to(torch.complex64), eager.to(torch.complex64), *TOLERANCE[torch.float16], equal_nan=True)
        )
    if torch.allclose(mine, eager, rtol=relative, atol=absolute, equal_nan=True):
        return True
    if truth is None or truth.shape != mine.shape or eager.dtype not in TOLERANCE:
        return False
    if _error(mine, truth) <= WORSE * _error(eager, truth) + absolute:
        return bool(
            torch.equal(mine.isfinite(), eager.isfinite()) or torch.equal(mine.isfinite(), truth.to(mine.dtype).isfinite())
        )
    return False


def _bits(tensor: Tensor) -> Tensor:
    if tensor.dtype is torch.complex32:  # torch compares none
        tensor = tensor.to(torch.complex64)
    return torch.nan_to_num(tensor) if tensor.is_floating_point() else tensor


def _error(mine: Tensor, other: Tensor) -> float:
    """The largest difference where both are numbers."""
    wide = torch.complex128 if mine.is_complex() or other.is_complex() else torch.float64
    difference = (mine.to(wide) - other.to(wide)).abs()
    difference = difference[difference.isfinite()]
    return float(difference.max()) if difference.numel() else 0.0


def _shown(tensor: Tensor | None) -> str:
    if tensor is None:
        return "None"
    values = tensor.flatten()[:4].tolist() if tensor.layout is torch.strided else tensor.layout
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)} {values}"


def main() -> int:
    """Answer requests until there are no more."""
    from torch.testing._internal.common_methods_invocations import op_db

    answers, sys.stdout = sys.stdout, sys.stderr  # operators print too
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    operators = {operator_name(op): op for op in op_db}
    for line in sys.stdin:
        request = json.loads(line)
        verdict = check_operator(operators[request["name"]], request["dtype"], request["samples"])
        answers.write(json.dumps(asdict(verdict)) + "\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
