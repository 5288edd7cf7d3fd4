"""How much of torch's operator database the FX frontend covers: `python -m tests.frontends.opinfo --only add,mul`.

Every operator's own samples go through AOTAutograd, the frontend and the graph interpreter (`--compiled`: the whole compiler),
and are compared with eager. Prints how many operators are right, how many need no call of ATen, and the names of those that
fail with the first reason. Needs the package expecttest, which torch's own tests import.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from dlcompiler.ir.errors import CompilerError, UnsupportedError
from dlcompiler.ir.graph import Graph
from torch import Tensor
from torch.utils import _pytree as pytree

from tests.frontends.interpreted import Interpreting

DTYPES = {"float32": torch.float32, "int64": torch.int64, "bool": torch.bool, "bfloat16": torch.bfloat16}
TOLERANCE = {torch.float32: (1e-4, 1e-5), torch.bfloat16: (2e-2, 1e-2), torch.float64: (1e-7, 1e-8)}


@dataclass
class Verdict:
    """What became of one operator: samples compared, and what went wrong."""

    name: str
    right: int = 0
    skipped: int = 0
    wrong: list[str] = field(default_factory=list)
    aten: Counter[str] = field(default_factory=Counter)
    strides: int = 0

    @property
    def native(self) -> bool:
        return not self.aten


def samples(op: Any, dtype: torch.dtype, count: int) -> Iterator[Any]:
    """At most `count` samples, spread over those that there are."""
    found = list(itertools.islice(op.sample_inputs("cpu", dtype, requires_grad=False), 200))
    step = max(1, len(found) // count)
    return iter(found[::step][:count])


class Compiling(Interpreting):
    """Graphs run as compiled programs, not by the interpreter."""

    def compile(self, graph: Graph) -> Callable[[Sequence[Any]], list[Tensor]]:
        from dlcompiler.codegen.target import parse_target

        from dlcompiler.compiler import compile_graph
        from dlcompiler.options import Options

        self.graphs.append(graph)
        return compile_graph(graph, parse_target("cpu"), Options.resolve({}))


def check_sample(op: Any, sample: Any, verdict: Verdict, make: Callable[[], Interpreting]) -> None:
    """One call, eager and through the frontend."""
    leaves, spec = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
    positions = [k for k, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    if not positions or any(not _is_plain(leaves[k]) for k in positions):
        verdict.skipped += 1
        return

    def call(*tensors: Tensor) -> Any:
        given = list(leaves)
        for position, tensor in zip(positions, tensors):
            given[position] = tensor
        first, args, kwargs = pytree.tree_unflatten(given, spec)
        result = op(first, *args, **kwargs)
        return [r for r in pytree.tree_leaves(result) if isinstance(r, Tensor)]

    inputs = [leaves[k] for k in positions]
    expected, again = call(*[x.clone() for x in inputs]), call(*[x.clone() for x in inputs])
    if not expected or any(not _same(a, b, exact=True) for a, b in zip(expected, again)):
        verdict.skipped += 1  # random
        return
    interpreting = make()
    found = interpreting.function(call)(*[x.clone() for x in inputs])
    if interpreting.graphs:
        calls = [n.attributes for n in interpreting.graph.nodes if n.op.name == "aten.call"]
        if any(c["impure"] and c["reason"] != "a check on data" for c in calls):
            verdict.skipped += 1  # random, from a seed of its own
            return
        verdict.aten.update(f"{c['target'].removeprefix('aten.')} ({c['reason']})" for c in calls)
    for ours, eager in zip(found, expected):
        if not _same(ours, eager):
            raise AssertionError(f"{_shown(ours)} is not {_shown(eager)}")
        verdict.strides += ours.stride() != eager.stride()
    verdict.right += 1


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_quantized and type(tensor) in (Tensor, torch.nn.Parameter)


def _same(ours: Tensor, eager: Tensor, exact: bool = False) -> bool:
    if ours.dtype is not eager.dtype or ours.shape != eager.shape:
        return False
    if ours.layout is not torch.strided:
        return True
    relative, absolute = (0.0, 0.0) if exact else TOLERANCE.get(eager.dtype, (1e-5, 1e-6) if eager.is_complex() else (0.0, 0.0))
    return torch.allclose(ours, eager, rtol=relative, atol=absolute, equal_nan=True)


def _shown(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)} {tensor.flatten()[:4].tolist()}"


def check_operator(op: Any, dtypes: list[torch.dtype], count: int, make: Callable[[], Interpreting] = Interpreting) -> Verdict:
    """All of an operator's samples of these dtypes."""
    verdict = Verdict(op.name + (f".{op.variant_test_name}" if op.variant_test_name else ""))
    for dtype in dtypes:
        if dtype not in op.supported_dtypes("cpu"):
            continue
        for sample in samples(op, dtype, count):
            try:
                check_sample(op, sample, verdict, make)
            except (UnsupportedError, torch._subclasses.fake_tensor.DataDependentOutputException) as refusal:
                verdict.aten[f"refused: {str(refusal)[:80]}"] += 1
            except torch._subclasses.fake_tensor.DynamicOutputShapeException as refusal:
                verdict.aten[f"refused: {str(refusal)[:80]}"] += 1
            except AssertionError as error:
                if "FakeTensor" in str(error):  # AOTAutograd itself cannot trace the call without Dynamo
                    verdict.skipped += 1
                else:
                    verdict.wrong.append(f"{dtype}: {str(error)[:300]}")
            except CompilerError as error:
                verdict.wrong.append(f"{dtype}: {type(error).__name__}: {str(error)[:300]}")
            except Exception as error:  # noqa: BLE001 - a survey: whatever breaks is one line of it
                where = traceback.extract_tb(error.__traceback__)[-1]
                verdict.wrong.append(f"{dtype}: {type(error).__name__} {where.name}:{where.lineno}: {str(error)[:200]}")
    return verdict


def main() -> int:
    """Run the survey."""
    from torch.testing._internal.common_methods_invocations import op_db

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="names of operators, separated by commas")
    parser.add_argument("--dtypes", default="float32,int64,bool")
    parser.add_argument("--samples", type=int, default=3, help="of each operator and dtype")
    parser.add_argument("--shard", default="0/1", help="k/n: every n-th operator, from the k-th")
    parser.add_argument("--compiled", action="store_true", help="run compiled programs, not the interpreter")
    parser.add_argument("--json", action="store_true", help="one document on stdout")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    only = set(arguments.only.split(",")) if arguments.only else None
    shard, shards = map(int, arguments.shard.split("/"))
    chosen = [op for op in op_db if only is None or op.name in only][shard::shards]
    dtypes = [DTYPES[name] for name in arguments.dtypes.split(",")]
    start = time.perf_counter()
    verdicts = []
    for op in chosen:
        torch.manual_seed(0)
        verdict = check_operator(op, dtypes, arguments.samples, Compiling if arguments.compiled else Interpreting)
        verdicts.append(verdict)
        if verdict.wrong and not arguments.json:
            print(f"WRONG {verdict.name} ({len(verdict.wrong)}): {verdict.wrong[0]}", flush=True)
    tried = [v for v in verdicts if v.right or v.wrong or v.aten]
    right = [v for v in tried if not v.wrong]
    native = [v for v in right if v.native]
    answer = {
        "operators": len(tried), "right": len(right), "native": len(native), "seconds": round(time.perf_counter() - start, 1),
        "strides_differ": [v.name for v in right if v.strides],
        "wrong": {v.name: v.wrong[0] for v in tried if v.wrong}, "aten": {v.name: dict(v.aten) for v in tried if v.aten},
    }  # fmt: skip
    if arguments.json:
        print(json.dumps(answer, indent=1))
    else:
        for v in right:
            if not v.native:
                print(f"aten  {v.name}: {', '.join(v.aten)}")
        print(f"strides differ: {', '.join(answer['strides_differ'])}")
        print(f"{len(tried)} operators: {len(right)} right, {len(native)} of them native; {answer['seconds']} s")
    return 1 if len(right) < len(tried) else 0


if __name__ == "__main__":
    sys.exit(main())
