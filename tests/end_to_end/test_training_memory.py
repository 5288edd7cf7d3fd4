"""What passes of a training step hold: nothing that they can free, and nothing of others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from dlcompiler.ir.program import Program
from torch import Tensor, nn

from dlcompiler import torch_backend
from dlcompiler.settling import CALLS_UNCHANGED


class TwoResults(nn.Module):
    """Large enough that its values are freed one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(128, 512), nn.LayerNorm(512), nn.Linear(512, 512)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = nn.functional.gelu(self.first(x))
        return self.last(self.norm(hidden)), hidden


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Program]:
    """What is compiled, by the end of its name."""
    found: dict[str, Program] = {}
    compile_graph = torch_backend._compile_graph

    def compile_and_keep(graph: Any, *rest: Any) -> Any:
        executable: Any = compile_graph(graph, *rest)
        found[graph.name.rpartition("_")[2]] = executable.program
        return executable

    monkeypatch.setattr(torch_backend, "_compile_graph", compile_and_keep)
    return found


def gradients(module: nn.Module, loss: Callable[[], Tensor], **keywords: Any) -> list[Tensor]:
    module.zero_grad()
    loss().backward(**keywords)
    return [parameter.grad for parameter in module.parameters() if parameter.grad is not None]


def test_memory_is_taken_over_only_from_what_nobody_else_holds(programs: dict[str, Program]) -> None:
    torch.manual_seed(0)
    module, x = TwoResults(), torch.randn(256, 128)
    compiled = torch.compile(module, backend="dlcompiler")
    expected = gradients(module, lambda: module(x)[0].square().mean())
    results: list[Tensor] = []

    def loss() -> Tensor:
        results[:] = compiled(x)
        return results[0].square().mean()

    for _ in range(2):
        torch.testing.assert_close(gradients(module, loss), expected)
    backward = programs["backward"]
    assert backward.owned and any(slot.role == "block" for slot in backward.slots)
    assert any(source in backward.owned for source in backward.aliases.values())
    torch.testing.assert_close(results, list(module(x)))  # which its owner still has
    value = loss()
    torch.testing.assert_close(gradients(module, lambda: value, retain_graph=True), expected)
    torch.testing.assert_close(gradients(module, lambda: value), expected)


def test_nothing_is_kept_of_what_training_changes(programs: dict[str, Program]) -> None:
    module = nn.Sequential(nn.Conv2d(8, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1))
    x = torch.randn(4, 8, 24, 24)
    compiled = torch.compile(module, backend="dlcompiler")
    optimizer = torch.optim.AdamW(module.parameters(), lr=torch.tensor(1e-3))
    update = torch.compile(optimizer.step, backend="dlcompiler")
    for _ in range(2):
        optimizer.zero_grad()
        compiled(x).square().mean().backward()
        update()
    assert len(programs) == 3
    for program in programs.values():
        assert not any(slot.role == "prepared" for slot in program.slots)
        # every result is handed back as it was computed, and not a copy of it in another layout
        assert {s for s in program.slots if s.role == "output"} <= {view.slot for view in program.outputs}
    module.requires_grad_(False)
    with torch.no_grad():
        expected = module(x)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-4)
    assert any(slot.role == "prepared" for program in programs.values() for slot in program.slots)


def test_weights_stay_once_calls_go_by_without_a_backward_pass(programs: dict[str, Program]) -> None:
    torch.manual_seed(0)
    module, x = TwoResults(), torch.randn(256, 128)
    compiled = torch.compile(module, backend="dlcompiler")
    for _ in range(CALLS_UNCHANGED):
        torch.testing.assert_close(compiled(x), module(x))
    assert not any(slot.role == "prepared" for slot in programs["forward"].slots)
    torch.testing.assert_close(compiled(x), module(x))
    assert any(slot.role == "prepared" for slot in programs["forward"].slots)
    with torch.no_grad():
        module.last.weight.mul_(2)
    torch.testing.assert_close(compiled(x), module(x))
    expected = gradients(module, lambda: module(x)[0].square().mean())
    torch.testing.assert_close(gradients(module, lambda: compiled(x)[0].square().mean()), expected)

    torch._dynamo.reset()
    compiled(x)[0].square().mean().backward()
    for _ in range(CALLS_UNCHANGED + 1):
        compiled(x)
    assert not any(slot.role == "prepared" for slot in programs["forward"].slots)  # it is being trained
