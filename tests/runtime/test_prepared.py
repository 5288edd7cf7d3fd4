"""Memory kept between calls: made once from a model's own tensors, and again exactly when one of them has changed."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from dlcompiler.runtime import prepared
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

    def counted(self, *arguments):
        driver, self.driver = self.driver, lambda table, count: (counts.append(1), driver(table, count))
        prepare(self, *arguments)
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


def shared_program():
    """tanh(linear(x, w)) of [64, 300] and a module's own [200, 300]: what torch.compile makes once for equal layers."""
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
    return executable


def is_right(executable, x: torch.Tensor, w: torch.Tensor) -> bool:
    return torch.allclose(executable([x, w])[0], torch.tanh(x @ w.T), atol=1e-5)


def test_equal_layers_of_one_program_keep_their_own_copies(fills):
    executable, x = shared_program(), torch.randn(64, 300)
    weights = [torch.randn(200, 300) / 20 for _ in range(5)]
    for _ in range(3):
        assert all(is_right(executable, x, w) for w in weights)
        assert len(fills) == 5
    weights[2].mul_(-1)
    assert all(is_right(executable, x, w) for w in weights)
    assert len(fills) == 6


def test_a_copy_is_freed_with_its_weights_and_changes_make_no_new_one(monkeypatch):
    executable, x = shared_program(), torch.randn(64, 300)
    copies = executable._shared.copies
    weights = [torch.randn(200, 300) / 20 for _ in range(5)]
    for _ in range(4):  # as an optimiser does
        for w in weights:
            w.mul_(1.5)
            assert is_right(executable, x, w)
    assert len(copies) == 5
    weights[1].data = torch.randn(200, 300) / 20
    del weights[2:], w
    gc.collect()
    assert len(copies) == 1
    monkeypatch.setattr(prepared, "MOST_COPIES", 3)
    weights += [torch.randn(200, 300) / 20 for _ in range(5)]
    assert all(is_right(executable, x, w) for w in weights) and len(copies) == 3


def test_other_weights_at_the_same_address_are_seen():
    executable, x = shared_program(), torch.randn(64, 300)
    w = torch.randn(200, 300) / 20
    seen = set()
    for _ in range(40):  # freed and allocated again, each time with version 0
        w.data = torch.zeros(200, 300).uniform_(-0.1, 0.1).data
        w.data[100, 0] = w.data[199, 299] = 0.0  # where changes are looked for
        seen.add(w.data_ptr())
        assert is_right(executable, x, w)
    assert len(seen) < 40
    for _ in range(40):
        w = torch.empty(200, 300)
        w.data.uniform_(-0.1, 0.1)
        assert is_right(executable, x, w)


def test_calls_at_once_with_other_weights_do_not_mix():
    """One program called for several modules of one kind from several threads."""
    executable = shared_program()
    image = torch.randn(64, 300)
    weights = [torch.randn(200, 300) / 20 for _ in range(3)]
    expected = [torch.tanh(image @ weight.T) for weight in weights]

    def call(number: int) -> bool:
        return all(
            torch.allclose(executable([image, weights[number % 3]])[0], expected[number % 3], atol=1e-5) for _ in range(30)
        )

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(call, range(6)))
