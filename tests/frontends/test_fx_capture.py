"""Whole models through torch.export: constants, state, conventions of calls, layers kept whole."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from dlcompiler.ir.errors import InputError, InvalidModelError
from dlcompiler.ir.verify import verify_graph
from torch import Tensor, nn

from dlcompiler.frontends.fx import Captured, capture
from tests import zoo
from tests.frontends.interpreted import run_graph


def call(captured: Captured, *arguments: Any, **keywords: Any) -> Any:
    """The captured model called as the model itself."""
    verify_graph(captured.graph)
    values = captured.flatten(arguments, keywords)
    return captured.unflatten(run_graph(captured.graph, values))


class Pair(NamedTuple):
    first: Tensor
    rest: list[Any]


class Tree(nn.Module):
    """Nested arguments and results, among them numbers, strings and None."""

    def forward(self, pair: tuple[Tensor, dict[str, Tensor]], scale: float, *, mode: str, shift: Tensor | None = None) -> Any:
        x, table = pair
        y = x * scale + (table["b"] if mode == "add" else 0)
        return {"out": Pair(y, [None, 3, x]), "sum": y.sum() if shift is None else y.sum() + shift}


def test_trees_of_arguments_and_results() -> None:
    model, x, b = Tree(), torch.randn(2, 3), torch.randn(3)
    captured = capture(model, ((x, {"b": b}), 2.0), example_keywords={"mode": "add", "shift": torch.tensor(1.0)})
    given = ((x + 1, {"b": b * 2}), 2.0)
    found = call(captured, *given, shift=torch.tensor(5.0), mode="add")
    expected = model(*given, mode="add", shift=torch.tensor(5.0))
    assert found.keys() == expected.keys() and type(found["out"]) is Pair and found["out"].rest[:2] == [None, 3]
    torch.testing.assert_close(found["out"].first, expected["out"].first)
    assert found["out"].rest[2] is given[0][0]
    torch.testing.assert_close(found["sum"], expected["sum"])


def test_arguments_that_differ_from_the_captured_ones_are_refused() -> None:
    captured = capture(Tree(), ((torch.ones(2), {"b": torch.ones(2)}), 2.0), example_keywords={"mode": "add"})
    pair = (torch.ones(2), {"b": torch.ones(2)})
    with pytest.raises(InputError, match=r"2\.0 at capture, not 3\.0"):
        captured.flatten((pair, 3.0), {"mode": "add"})
    with pytest.raises(InputError, match="captured with arguments"):
        captured.flatten((pair,), {"mode": "add"})
    with pytest.raises(InputError, match="captured with arguments"):
        captured.flatten(((torch.ones(2), {}), 2.0), {"mode": "add"})


def test_parameters_are_constants_that_share_memory() -> None:
    model = nn.Linear(3, 4).to(torch.bfloat16)
    graph = capture(model, (torch.ones(2, 3, dtype=torch.bfloat16),)).graph
    held = {n.name: n.attributes["value"] for n in graph.nodes if n.op.name == "constant"}
    addresses = {value.__array_interface__["data"][0] for value in held.values()}
    assert addresses == {p.data_ptr() for p in model.parameters()}
    assert len(graph.inputs) == 1


def test_buffers_that_a_call_changes_are_state() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).train()
    eager = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).train()
    eager.load_state_dict(model.state_dict())
    captured = capture(model, (torch.randn(2, 2, 5, 5),))
    assert len(captured.state) == len(captured.graph.writebacks) == 3
    for seed in range(2):
        x = torch.randn(2, 2, 5, 5, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(call(captured, x), eager(x), rtol=1e-4, atol=1e-5)
        for ours, theirs in zip(model.buffers(), eager.buffers()):
            torch.testing.assert_close(ours, theirs)


def test_lstm_stays_whole_and_gru_is_right() -> None:
    for kind, bidirectional, names in ((nn.LSTM, False, {"lstm"}), (nn.LSTM, True, {"lstm"}), (nn.GRU, True, set())):
        model = kind(3, 4, num_layers=2, bidirectional=bidirectional, batch_first=True).eval()
        x = torch.randn(2, 4, 3)
        captured = capture(model, (x,))
        assert names <= {n.op.name for n in captured.graph.nodes}
        (found, state), (expected, expected_state) = call(captured, x), model(x)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(state, expected_state, rtol=1e-5, atol=1e-6)


def test_sizes_that_are_known_only_when_called() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, int]:
            weights = torch.softmax(x @ x.transpose(-1, -2) / x.shape[1] ** 0.5, -1)
            return (weights @ x).reshape(x.shape[0], -1)[:, 1:], x.shape[1] * 2

    model = Model()
    dynamic = {"x": {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", min=2)}}
    captured = capture(model, (torch.randn(3, 5, 4),), dynamic)
    assert len(captured.graph.symbols) == 2
    for shape in ((3, 5, 4), (2, 9, 4), (7, 2, 4)):
        x = torch.randn(shape)
        (found, number), (expected, expected_number) = call(captured, x), model(x)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert number == expected_number


@pytest.mark.parametrize(
    "branch",
    [
        lambda x, y: x.shape[0] % 2 == 0,
        lambda x, y: x.shape[0] <= 4,
        lambda x, y: y.shape[0] != 7,
        lambda x, y: y.shape[0] > x.shape[0] + 1,
        lambda x, y: x.shape[0] * 2 == y.shape[0],
    ],
)
def test_a_call_that_would_take_another_branch_is_refused(branch: Any) -> None:
    """What torch.export relied on while it traced is asked of each call: numbers are never those of the other branch."""

    def model(x: Tensor, y: Tensor) -> Tensor:
        return x * 2 + y[0] if branch(x, y) else x - y[0]

    free = torch.export.Dim.AUTO
    captured = capture(model, (torch.zeros(4), torch.zeros(8)), ({0: free}, {0: free}))
    refused = 0
    for x, y in ((torch.ones(n), torch.ones(m)) for n in range(2, 9) for m in (6, 7, 8, 12)):
        if branch(x, y):
            torch.testing.assert_close(call(captured, x, y), model(x, y))
        else:
            refused += 1
            with pytest.raises(InputError):
                call(captured, x, y)
    assert refused


def test_functions_and_exported_programs_are_taken() -> None:
    def scaled(x: Tensor, y: Tensor) -> Tensor:
        return x * y.sum() + torch.arange(3)

    x, y = torch.randn(2, 3), torch.randn(4)
    program = torch.export.export(nn.Linear(3, 2), (x,))
    torch.testing.assert_close(call(capture(scaled, (x, y)), x, y), scaled(x, y))
    torch.testing.assert_close(call(capture(program), x), program.module()(x))


def test_a_model_that_cannot_be_traced_is_one_clear_line() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.sum() > 0 else x

    with pytest.raises(InvalidModelError, match="torch.export cannot trace the model") as caught:
        capture(Branches(), (torch.ones(3),))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="example_inputs"):
        capture(nn.Linear(2, 2))


def test_every_value_says_where_it_came_from() -> None:
    model = zoo.build("micro", "tiny")
    graph = capture(model.module, model.inputs).graph
    computed = [n for n in graph.nodes if n.op.name != "constant"]
    assert all(n.location and "zoo.py:" in n.location for n in computed)
    assert [n.location.split(":")[0] for n in computed if n.op.name == "layer_norm"] == ["norm"]


@pytest.mark.parametrize("name", ["bert-base", "lstm", "dcgan", "micro"])
def test_zoo_models_are_native_and_right(name: str) -> None:
    model = zoo.build(name, "tiny")
    captured = capture(model.module, model.inputs)
    assert not [n for n in captured.graph.nodes if n.op.name == "aten.call"]
    found, expected = call(captured, *model.inputs), model.module(*model.inputs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_constant_made_in_the_model_is_not_an_input() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.tensor([1.0, 2.0, 3.0]) + torch.from_numpy(np.arange(3, dtype=np.float32))

    captured = capture(Model(), (torch.zeros(3),))
    assert len(captured.graph.inputs) == 1
    torch.testing.assert_close(call(captured, torch.zeros(3)), torch.tensor([1.0, 3.0, 5.0]))
