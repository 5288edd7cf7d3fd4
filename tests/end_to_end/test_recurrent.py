"""LSTM, GRU and RNN layers of torch and ONNX, compiled, against eager and onnxruntime."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper
from torch import nn

from dlcompiler.frontends.fx import keep_recurrent_layers_whole
from tests.end_to_end.support import assert_near, compile_with, compiled_graphs, leaves, ours_only
from tests.frontends.onnx_checks import by_onnxruntime, model_of

KINDS: dict[str, Callable[..., nn.RNNBase]] = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "rnn": nn.RNN,
    "rnn-relu": lambda *sizes, **settings: nn.RNN(*sizes, nonlinearity="relu", **settings),
}


def layer(kind: str, *sizes: int, **settings: Any) -> nn.RNNBase:
    torch.manual_seed(0)
    return KINDS[kind](*sizes, **settings).eval()


def check_near(compiled: Callable[..., Any], model: nn.Module, *inputs: torch.Tensor) -> None:
    """Compiled, eager and float64 agree, and strides are eager's."""
    judge = copy.deepcopy(model).double()
    with torch.no_grad():
        given = leaves(compiled(*inputs)), leaves(model(*inputs)), leaves(judge(*(x.double() for x in inputs)))
    for ours, eager, reference in zip(*given):
        assert_near(ours, eager, reference)


@pytest.fixture
def traced():
    with torch._dynamo.config.patch(allow_rnn=True):
        yield


@ours_only
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_layers(kind: str, entry: str, traced: None) -> None:
    import dlcompiler

    settings = {"num_layers": 2, "batch_first": True} if entry == "torch.compile" else {"bias": kind != "gru"}
    model = layer(kind, 7, 20, bidirectional=True, **settings)
    x = torch.randn(3, 5, 7)
    with torch.no_grad():
        compiled = compile_with(entry, model, (x,))
        check_near(compiled, model, x)
        # compiled code reads the weight where it is
        model.weight_hh_l0.mul_(-0.5)
        check_near(compiled, model, torch.randn(3, 5, 7))
    assert compiled_graphs() == 1
    assert not dlcompiler.reports()[-1].aten


@ours_only
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_initial_states_double_precision_and_a_batch_known_only_when_called(kind: str) -> None:
    import dlcompiler

    model = layer(kind, 7, 20)
    first = tuple(torch.randn(1, 4, 20) for _ in range(2))
    given = first if kind == "lstm" else first[0]
    compiled = dlcompiler.compile(model, (torch.randn(3, 4, 7), given))
    x = torch.randn(3, 4, 7)
    with torch.no_grad():
        for ours, eager in zip(leaves(compiled(x, given)), leaves(model(x, given))):
            torch.testing.assert_close(ours, eager, rtol=1e-5, atol=2e-6)
    double = copy.deepcopy(model).double()
    x = torch.randn(3, 4, 7, dtype=torch.float64)
    with torch.no_grad():
        for ours, eager in zip(leaves(dlcompiler.compile(double, (x,))(x)), leaves(double(x))):
            torch.testing.assert_close(ours, eager, rtol=1e-12, atol=1e-13)
    sizes = {"input": {1: torch.export.Dim("batch", min=2)}}
    general = dlcompiler.compile(model, (torch.randn(3, 4, 7),), dynamic_shapes=sizes)
    for batch in (4, 2, 19):
        check_near(general, model, torch.randn(3, batch, 7))


@ours_only
@pytest.mark.parametrize("batch, bidirectional", [(1, False), (16, True)])
def test_any_number_of_threads_gives_the_same_bits(batch: int, bidirectional: bool) -> None:
    """Also more than the code was made for, and than there are cores."""
    import dlcompiler

    model = layer("lstm", 16, 96, bidirectional=bidirectional).requires_grad_(False)
    x = torch.randn(20, batch, 16)
    compiled = dlcompiler.compile(model, (x,))
    results = []
    for threads in (1, 2, 5, 2):
        torch.set_num_threads(threads)
        results.append(compiled(x)[0])
    assert all(torch.equal(results[0], other) for other in results)
    check_near(compiled, model, x)


@ours_only
@pytest.mark.parametrize("kind", KINDS)
def test_program_means_what_the_graph_means(kind: str) -> None:
    """Also for the interpreter of programs, which is given the weights in panels."""
    from dlcompiler.ir.interpret import interpret_program

    import dlcompiler

    model = layer(kind, 4, 21, bidirectional=True).requires_grad_(False)
    x = torch.randn(3, 2, 4)
    program = dlcompiler.compile(model, (x,)).program
    for found, eager in zip(interpret_program(program, [x.numpy()]), leaves(model(x))):
        np.testing.assert_allclose(found, eager.numpy(), rtol=1e-5, atol=2e-6)


def all_gradients(call: Callable[..., Any], model: nn.RNNBase, x: torch.Tensor, states: list[torch.Tensor]) -> list[torch.Tensor]:
    """The output, and gradients of the input, the initial states and all weights; every result counts."""
    model.zero_grad()
    x, *states = (t.to(next(model.parameters()).dtype, copy=True).requires_grad_() for t in (x, *states))
    given = [] if not states else [tuple(states)] if isinstance(model, nn.LSTM) else states
    y, *lasts = leaves(call(x, *given))
    y = y.contiguous()
    loss = (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum() + sum(t.square().sum() for t in lasts)
    loss.backward()
    return [y.detach(), *(t.grad for t in (x, *states, *model.parameters()))]  # type: ignore[misc]


@ours_only
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "batch, given, dtype, settings",
    [
        (9, True, torch.float32, {"num_layers": 2, "bidirectional": True, "batch_first": True}),
        (1, False, torch.float64, {"num_layers": 2, "bias": False}),
    ],
    ids=["bidirectional", "float64"],
)
def test_gradients(kind: str, batch: int, given: bool, dtype: torch.dtype, settings: dict[str, Any], traced: None) -> None:
    import dlcompiler

    model = layer(kind, 4, 18, **settings).to(dtype)
    eager, judge = copy.deepcopy(model), copy.deepcopy(model).double()
    x = torch.randn(batch, 5, 4) if settings.get("batch_first") else torch.randn(5, batch, 4)
    count = settings.get("num_layers", 1) * (2 if settings.get("bidirectional") else 1)
    states = [torch.randn(count, batch, 18) for _ in range(2 if kind == "lstm" else 1)] if given else []
    compiled = compile_with("torch.compile", model)
    results = [all_gradients(*who, x, states) for who in ((compiled, model), (eager, eager), (judge, judge))]
    for ours, theirs, exact in zip(*results):
        assert_near(ours.contiguous(), theirs.contiguous(), exact)
    assert not any(report.aten for report in dlcompiler.reports()[-2:])


@ours_only
def test_gradients_of_layers_that_no_kernel_computes(traced: None) -> None:
    """Half precision, and projections: by torch."""
    model = layer("gru", 4, 6, batch_first=True).bfloat16()
    other = copy.deepcopy(model)
    x = torch.randn(2, 3, 4, dtype=torch.bfloat16)
    torch.compile(model, backend="dlcompiler")(x)[0].square().sum().backward()
    other(x)[0].square().sum().backward()
    for ours, eager in zip(model.parameters(), other.parameters()):
        torch.testing.assert_close(ours.grad, eager.grad, rtol=2e-2, atol=2e-2)


@ours_only
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_under_autocast_only_products_of_inputs_are_narrow_on_a_cpu(kind: str, traced: None) -> None:
    model, other = (layer(kind, 4, 6) for _ in range(2))
    x = torch.randn(3, 2, 4)
    for run, each in ((torch.compile(model, backend="dlcompiler"), model), (other, other)):
        with torch.autocast("cpu", torch.bfloat16, enabled=run is not other):
            result = run(x)[0]
        assert result.dtype is torch.float32
        result.square().sum().backward()
        assert all(p.grad.dtype is torch.float32 for p in each.parameters())
    for ours, eager in zip(model.parameters(), other.parameters()):
        torch.testing.assert_close(ours.grad, eager.grad, rtol=2e-2, atol=2e-2)


@ours_only
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_scans_mean_the_same_where_nothing_compiles_them(kind: str, traced: None) -> None:
    """As when a graph is left to torch."""
    model, other = (layer(kind, 4, 6, bidirectional=True) for _ in range(2))
    x = torch.randn(3, 2, 4)

    def run_by_torch(graph_module: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        keep_recurrent_layers_whole(graph_module, ("f32", "f64"))
        return graph_module.forward

    states: list[torch.Tensor] = []
    ours = all_gradients(torch.compile(model, backend=run_by_torch), model, x, states)
    for mine, theirs in zip(ours, all_gradients(other, other, x, states)):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@ours_only
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_layers_run_in_the_library(dtype: torch.dtype) -> None:
    import dlcompiler

    for kind in KINDS:
        model = layer(kind, 4, 6).to(dtype).requires_grad_(False)
        x = torch.randn(3, 2, 4, dtype=dtype)
        compiled = dlcompiler.compile(model, (x,))
        assert any(getattr(step, "op", "") == kind.partition("-")[0] for step in compiled.program.steps)
        for ours, eager in zip(leaves(compiled(x)), leaves(model(x))):
            torch.testing.assert_close(ours, eager, rtol=2e-2, atol=2e-2)


@ours_only
@pytest.mark.parametrize("op, gates", [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_onnx_layers(op: str, gates: int, direction: str) -> None:
    import dlcompiler

    random = np.random.default_rng(0)
    steps, batch, width, hidden, both = 6, 3, 5, 18, 2 if direction == "bidirectional" else 1

    def normal(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    constants = {"w": normal(both, gates * hidden, width) / 2, "r": normal(both, gates * hidden, hidden) / 4}
    constants["b"] = normal(both, 2 * gates * hidden)
    settings = {"linear_before_reset": 1} if op == "GRU" else {}
    results = ["y", "h", "c"][: 3 if op == "LSTM" else 2]
    node = helper.make_node(op, ["x", "w", "r", "b"], results, hidden_size=hidden, direction=direction, **settings)
    x = normal(steps, batch, width)
    model = model_of(node, {"x": ("float32", x.shape)}, results, constants)
    compiled = dlcompiler.compile(model)
    assert any(getattr(step, "op", "") == f"{op.lower()}_scan" for step in compiled.program.steps)
    for ours, expected in zip(compiled(x), by_onnxruntime(model, {"x": x})):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=2e-6)
