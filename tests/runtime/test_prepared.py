"""Memory kept between calls: made once from a model's own tensors, and again exactly when one of them has changed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from dlcompiler.runtime.frame import Frame
from torch import nn

import dlcompiler


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 70), nn.GELU(), nn.Linear(70, 33), nn.BatchNorm1d(33)).eval()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(9, 40)


@pytest.fixture
def fills(monkeypatch) -> list[int]:
    """A list that grows by the number of launches whenever prepared memory is looked after and something is filled."""
    counts: list[int] = []
    prepare = Frame.prepare

    def counted(self, inputs, threads):
        driver, self.driver = self.driver, lambda table, count: (counts.append(1), driver(table, count))
        prepare(self, inputs, threads)
        self.driver = driver

    monkeypatch.setattr(Frame, "prepare", counted)
    return counts


def compiled_by(entry: str, model: nn.Module, x: torch.Tensor):
    if entry == "torch.compile":
        return torch.compile(model, backend="dlcompiler", options={"strict": True})
    return dlcompiler.compile(model, (x,))


@pytest.mark.parametrize("entry", ["torch.compile", "dlcompiler.compile"])
def test_filled_once_and_again_for_what_has_changed(entry, model, x, fills):
    with torch.no_grad():
        compiled = compiled_by(entry, model, x)
        for _ in range(3):
            torch.testing.assert_close(compiled(x), model(x))
        first = len(fills)
        assert first > 0
        model[0].weight.mul_(-2)
        torch.testing.assert_close(compiled(x), model(x))
        assert len(fills) == first + 1  # the panels of that weight, nothing else
        if entry == "dlcompiler.compile":
            return  # statistics were folded into the weights for good
        model[3].running_var.add_(1.5)
        torch.testing.assert_close(compiled(x), model(x))
        again = len(fills)
        assert again > first + 1
        torch.testing.assert_close(compiled(x), model(x))
        assert len(fills) == again


def test_steps_of_an_optimizer_are_seen(model, x):
    compiled = torch.compile(model, backend="dlcompiler")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), model(x))


def test_other_memory_behind_a_parameter_is_seen(model, x):
    compiled = torch.compile(model, backend="dlcompiler")
    with torch.no_grad():
        compiled(x)
        for _ in range(3):
            model[0].weight.data = torch.randn(70, 40) / 8
            torch.testing.assert_close(compiled(x), model(x))
        for _ in range(3):
            model[2].weight = nn.Parameter(torch.randn(33, 70) / 8)
            torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("entry", ["torch.compile", "dlcompiler.compile"])
def test_changes_behind_the_version_counter_are_noticed(entry, model, x):
    with torch.no_grad():
        compiled = compiled_by(entry, model, x)
        compiled(x)
        for parameter in model[0].parameters():
            parameter.data.mul_(1.25)
            torch.testing.assert_close(compiled(x), model(x))


def test_tensors_without_a_version_are_read_in_each_call(x):
    with torch.inference_mode():
        model = nn.Linear(40, 30).eval()
        compiled = torch.compile(model, backend="dlcompiler")
        compiled(x)
        model.weight.mul_(3)
        torch.testing.assert_close(compiled(x), model(x))


def test_the_number_of_threads_may_change_after_compiling(model, x):
    threads = torch.get_num_threads()
    try:
        with torch.no_grad():
            x = torch.randn(300, 40)
            compiled = dlcompiler.compile(model, (x,))
            results = []
            for count in (1, 2, 3, 1):
                torch.set_num_threads(count)
                results.append(compiled(x))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], result) for result in results)


def test_calls_at_once_share_what_was_prepared(model, x):
    with torch.no_grad():
        expected = model(x)
    compiled = dlcompiler.compile(model, (x,))

    def call(_):
        with torch.no_grad():
            return compiled(x)

    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(call, range(16)):
            torch.testing.assert_close(result, expected)


def test_calls_at_once_with_other_weights_do_not_mix():
    """One program called for several modules of one kind, as torch.compile does with equal layers, from several threads."""
    from dlcompiler.codegen.target import parse_target
    from dlcompiler.ir.graph import Builder
    from dlcompiler.ir.types import DTYPES, TensorType

    from dlcompiler.compiler import compile_graph
    from dlcompiler.options import Options

    b = Builder("shared")
    x = b.input("x", TensorType(DTYPES["f32"], (64, 300)))
    w = b.input("w", TensorType(DTYPES["f32"], (200, 300)), is_parameter=True)
    executable = compile_graph(b.finish([b.tanh(b.linear(x, w))]), parse_target("cpu"), Options.resolve({}))
    assert executable.program.preparation
    image = torch.randn(64, 300)
    weights = [torch.randn(200, 300) / 20 for _ in range(3)]
    expected = [torch.tanh(image @ weight.T) for weight in weights]

    def call(number: int) -> bool:
        return all(
            torch.allclose(executable([image, weights[number % 3]])[0], expected[number % 3], atol=1e-5) for _ in range(30)
        )

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(call, range(6)))
