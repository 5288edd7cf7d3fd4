"""The torch.compile backend around the graph interpreter: sizes, training, fallbacks, options, threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from dlcompiler.ir.errors import OptionError, UnsupportedError
from torch import Tensor, nn

import dlcompiler
from dlcompiler import torch_backend
from tests.frontends.interpreted import Interpreting


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    """Each test compiles anew."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


SYMBOLIC: dict[str, Callable[[Tensor], Any]] = {
    "views": lambda x: x.reshape(-1, x.shape[0]).t().flip(0)[1:, ::2] + x.numel(),
    "float of sizes": lambda x: x / x.shape[1] ** 0.5 * (x.shape[0] / 3) + x.shape[0] // 2,
    "slices": lambda x: torch.cat([x[:, :-1], x[:, 1:]], 0)[-3:, x.shape[1] // 2 :],
    "padding": lambda x: functional.pad(x, (1, x.shape[0] % 3)).softmax(-1),
    "attention": lambda x: functional.scaled_dot_product_attention(*[x[None, :, :4]] * 3, is_causal=True),
    "masks": lambda x: x.masked_fill(torch.ones(x.shape[1], x.shape[1]).triu(1).bool()[: x.shape[0] % 4 + 1].any(0), 0.5),
    "reductions": lambda x: (x.mean(0), x.var(1), x.sum() / x.shape[0], x.argmax(1)),
    "pooling": lambda x: functional.max_pool2d(functional.conv2d(x[None, None], torch.ones(1, 1, 3, 2), padding=1), 2),
    "numbers": lambda x: (x.shape[0] * 2, x + 1, x.shape[1] + x.shape[0]),
    "repeats": lambda x: x.repeat(2, 3).unflatten(1, (3, -1)).transpose(0, 1).expand(3, -1, -1) * torch.arange(x.shape[1]),
}


@pytest.mark.parametrize("name", SYMBOLIC)
def test_one_graph_serves_all_sizes(name: str) -> None:
    function, interpreting = SYMBOLIC[name], Interpreting()
    compiled = torch.compile(function, backend=interpreting.backend, dynamic=True)
    for shape in ((6, 8), (9, 8), (6, 13), (17, 11)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(shape[0]))
        torch.testing.assert_close(compiled(x), function(x), rtol=1e-5, atol=1e-6)
    assert len(interpreting.graphs) == 1
    assert len(interpreting.graph.symbols) == 2
    assert not [op for op in interpreting.ops() if op.startswith("aten.")]


def test_training_has_a_forward_and_a_backward_graph() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3))
    eager = nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3))
    eager.load_state_dict(model.state_dict())
    interpreting = Interpreting()
    compiled = torch.compile(model, backend=interpreting.backend)
    x, target = torch.randn(4, 5), torch.tensor([0, 2, 1, 1])
    for candidate in (compiled, eager):
        functional.cross_entropy(candidate(x), target).backward()
    for ours, theirs in zip(model.parameters(), eager.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    assert [g.name.rpartition("_")[2] for g in interpreting.graphs] == ["forward", "backward"]
    assert not [op for op in interpreting.ops() if op.startswith("aten.")]


def test_a_padded_image_is_not_saved_beside_the_image() -> None:
    """Where our CPU runtime does not run both passes: there reading beside an image costs more than here."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 3, stride=2)
    interpreting, x = Interpreting(), torch.randn(2, 3, 8, 8)

    def function(x: Tensor) -> Tensor:
        return second(functional.pad(functional.relu6(first(x)), (0, 1, 0, 1)))

    def gradients(run: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(run(x).square().sum(), [*first.parameters(), *second.parameters()])

    for ours, theirs in zip(gradients(torch.compile(function, backend=interpreting.backend)), gradients(function)):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    forward, backward = interpreting.graphs
    assert not [n for n in forward.outputs if n.shape[-2:] == (9, 9)]
    assert "pad" in [n.op.name for n in backward.nodes]


def test_gradients_that_nobody_wants_and_sizes_that_are_saved() -> None:
    def loss(x: Tensor, w: Tensor, frozen: Tensor) -> Tensor:
        return ((x @ w) * frozen).sum() / x.shape[0]

    interpreting = Interpreting()
    compiled = torch.compile(loss, backend=interpreting.backend, dynamic=True)
    w, frozen = torch.randn(4, 3, requires_grad=True), torch.randn(3)
    for rows in (5, 7):
        x = torch.randn(rows, 4)
        ours, eager = (torch.autograd.grad(f(x, w, frozen), w)[0] for f in (compiled, loss))
        torch.testing.assert_close(ours, eager, rtol=1e-5, atol=1e-6)
    assert len(interpreting.graphs) == 2


def test_a_graph_that_cannot_be_held_runs_in_torch_and_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    def function(x: Tensor) -> Tensor:
        return x.view(torch.float4_e2m1fn_x2).view(torch.uint8).float() * 2

    x = torch.arange(6, dtype=torch.uint8)
    torch.testing.assert_close(torch.compile(function, backend="dlcompiler")(x), function(x))
    report = dlcompiler.reports()[-1]
    assert report.target == "torch" and sum(node.count for node in report.aten) == report.nodes_captured > 0
    assert all("float4" in node.reason for node in report.aten)
    assert "runs in torch, not compiled" in caplog.text
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="float4"):
        torch.compile(function, backend="dlcompiler", options={"strict": True})(x)


def test_only_what_is_unsupported_falls_back() -> None:
    def broken(*given: Any) -> Any:
        raise AssertionError("a bug of ours")

    backend = torch_backend.Backend(broken)
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="a bug of ours"):
        torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2))

    def unsupported(*given: Any) -> Any:
        raise UnsupportedError("not today", items=("today",))

    backend = torch_backend.Backend(unsupported)
    assert torch.compile(lambda x: x + 2, backend=backend)(torch.ones(2)).tolist() == [3.0, 3.0]


def test_unknown_settings_are_refused() -> None:
    module, inputs = torch.fx.symbolic_trace(lambda x: x + 1), [torch.ones(2)]
    with pytest.raises(OptionError, match="strct.*did you mean 'strict'"):
        torch_backend.backend(module, inputs, options={"strct": True})
    with pytest.raises(OptionError, match="max-autotune"):
        torch_backend.backend(module, inputs, mode="max-autotone")
    with pytest.raises(OptionError, match="level"):
        torch_backend.backend(module, inputs, level=3)


def test_the_entry_point_is_found_and_reset_reaches_us(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "dlcompiler" in torch._dynamo.list_backends()
    seen: list[bool] = []
    monkeypatch.setattr("dlcompiler.api.reset", lambda: seen.append(True))
    compiled = torch.compile(lambda x: x * 3, backend="dlcompiler")
    assert compiled(torch.ones(2)).tolist() == [3.0, 3.0]
    torch._dynamo.reset()
    assert seen


def test_compiling_in_several_threads() -> None:
    interpreting = Interpreting()
    results: dict[int, Tensor] = {}

    def work(number: int) -> None:
        compiled = torch.compile(lambda x: (x * number).relu().sum(-1), backend=interpreting.backend)
        results[number] = compiled(torch.ones(3, number + 1))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {number: result.tolist() for number, result in results.items()} == {n: [n * (n + 1.0)] * 3 for n in range(1, 7)}


def test_the_graph_is_named_after_the_module_and_recompilations_share_a_key() -> None:
    keys: list[str | None] = []
    interpreting = Interpreting()

    def compile_graph(graph: Any, target: Any, options: Any, timings: Any, key: str | None) -> Any:
        keys.append(key)
        return interpreting.compile(graph)

    compiled = torch.compile(nn.Linear(3, 3), backend=torch_backend.Backend(compile_graph), dynamic=False)
    with torch.no_grad():
        for rows in (2, 4):
            compiled(torch.ones(rows, 3))
    first, second = (graph.name for graph in interpreting.graphs)
    assert first.startswith("Linear_") and second == f"{first}_1"
    assert keys[0] == keys[1] is not None
