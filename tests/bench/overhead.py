"""What a call costs: a graph of one op on 8 elements, compiled against eager, in microseconds.

    python -m tests.bench.overhead [--only add] [--rounds 15] [--json FILE]

`dynamo` is torch.compile with a backend that adds nothing: guards and frame evaluation, which every backend pays.
"""

from __future__ import annotations

import functools
import statistics
import sys
import timeit
from collections.abc import Callable
from typing import Any

from tests.bench import harness
from tests.bench.systems import THREADS

CALLS = 2000


def cases() -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """One-op graphs, one to three inputs."""
    import torch

    x, y, z = (torch.randn(8) for _ in range(3))
    return {
        "relu": (lambda a: torch.relu(a), (x,)),
        "add": (lambda a, b: a + b, (x, y)),
        "addcmul": (lambda a, b, c: torch.addcmul(a, b, c), (x, y, z)),
    }


def systems(function: Callable[..., Any], inputs: tuple[Any, ...], names: list[str]) -> dict[str, Callable[[], Any]]:
    """The function under each system, ready to be called."""
    import torch

    made: dict[str, Callable[[], Any]] = {}
    for name in names:
        torch._dynamo.reset()
        if name == "eager":
            made[name] = functools.partial(function, *inputs)
        elif name == "dlcompiler-direct":
            import dlcompiler

            direct = dlcompiler.compile(function, inputs)
            made[name] = functools.partial(direct, *inputs)
        else:
            backend = {"dynamo": "eager", "inductor": "inductor", "dlcompiler": "dlcompiler"}[name]
            compiled = compiled_copy(function, backend)
            made[name] = functools.partial(compiled, *inputs)
        expected = function(*inputs)
        torch.testing.assert_close(made[name](), expected)
    return made


def compiled_copy(function: Callable[..., Any], backend: str) -> Callable[..., Any]:
    """torch.compile of a copy with its own code object, so that two backends do not share one cache entry list."""
    import types

    import torch

    code = function.__code__.replace(co_name=f"{function.__name__}_{backend}")
    copy = types.FunctionType(code, function.__globals__, closure=function.__closure__)
    return torch.compile(copy, backend=backend)


def main() -> int:
    """Times each system round by round and prints microseconds a call, and the cost above eager."""
    parser = harness.parser(__doc__.splitlines()[0], rounds=15)
    parser.add_argument("--systems", default="eager,dynamo,inductor,dlcompiler,dlcompiler-direct", help="comma-separated")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(THREADS)
    names = arguments.systems.split(",")
    rows, result = [], {}
    with torch.no_grad():
        for case in harness.chosen(cases(), arguments.only):
            function, inputs = cases()[case]
            made = systems(function, inputs, names)
            samples: dict[str, list[float]] = {name: [] for name in names}
            for _ in range(arguments.rounds):
                for name, call in made.items():
                    timeit.timeit(call, number=100)
                    samples[name].append(1e6 * timeit.timeit(call, number=CALLS) / CALLS)
            medians = {name: statistics.median(values) for name, values in samples.items()}
            rows.append([case, *(f"{value:.2f}" for value in medians.values())])
            result[case] = medians
    harness.print_machine()
    print(harness.table(["one op on 8 elements, us a call", *names], rows))
    harness.write_json(arguments.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
