"""Every zoo model, tiny, through both ways in, judged by float64."""

from __future__ import annotations

import pytest
import torch

from tests import zoo
from tests.end_to_end.support import check, compile_with, compiled_graphs, leaves, ours_only


@pytest.mark.parametrize("name", zoo.NAMES)
def test_model_is_as_near_to_float64_as_eager(name: str, entry: str) -> None:
    model = zoo.build(name, "tiny")
    if entry == "torch.compile" and not model.traceable:
        pytest.skip("torch.compile runs RNN modules in eager by default")
    with torch.no_grad():
        compiled = compile_with(entry, model.module, model.inputs)
        check(model.module, model.inputs, compiled=compiled)
        check(model.module, model.make_inputs(model.inputs[0].shape[0], seed=3), compiled=compiled)


@ours_only
@pytest.mark.parametrize("name", zoo.NAMES)
def test_model_leaves_nothing_to_aten(name: str) -> None:
    import dlcompiler

    model = zoo.build(name, "tiny")
    with torch.no_grad():
        compile_with("dlcompiler.compile", model.module, model.inputs)(*model.inputs)
    report = dlcompiler.reports()[-1]
    assert [(node.name, node.count, node.reason) for node in report.aten] == []


@ours_only
@pytest.mark.parametrize("name", ["bert-base", "t5-small", "resnet50", "micro"])
def test_plan_is_near_its_lower_bound(name: str) -> None:
    import dlcompiler

    model = zoo.build(name, "tiny")
    with torch.no_grad():
        compile_with("dlcompiler.compile", model.module, model.inputs)(*model.inputs)
    report = dlcompiler.reports()[-1]
    assert report.planned_peak is not None and report.lower_bound is not None
    assert report.lower_bound <= report.planned_peak <= 1.10 * report.lower_bound + 4096


@ours_only
def test_lstm_through_torch_compile_is_right_although_not_compiled() -> None:
    model = zoo.build("lstm", "tiny")
    with torch.no_grad():
        check(model.module, model.inputs, "torch.compile")


@pytest.mark.parametrize("name", ["bert-base", "gpt2", "vit-b16", "llama-small"])
def test_batch_sweep_compiles_at_most_three_times(name: str) -> None:
    model = zoo.build(name, "tiny")
    with torch.no_grad():
        compiled = compile_with("torch.compile", model.module)
        for batch in (1, 2, 3, 5, 8, 13, 16):
            check(model.module, model.make_inputs(batch, seed=batch), compiled=compiled)
    assert graphs_compiled() <= 3


def test_dynamic_compiles_once() -> None:
    model = zoo.build("bert-base", "tiny")
    with torch.no_grad():
        compiled = compile_with("torch.compile", model.module, dynamic=True)
        for batch in (2, 3, 7, 16):
            check(model.module, model.make_inputs(batch, seed=batch), compiled=compiled)
    assert graphs_compiled() == 1


def graphs_compiled() -> int:
    """By the compiler's own count, or Dynamo's under a stand-in."""
    from tests.end_to_end.support import BACKEND

    if BACKEND == "dlcompiler":
        return compiled_graphs()
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def test_two_models_of_one_class_keep_their_own_weights(entry: str) -> None:
    first, second = (torch.nn.Linear(6, 5).eval() for _ in range(2))
    x = torch.randn(4, 6)
    with torch.no_grad():
        compiled_first, compiled_second = (compile_with(entry, module, (x,)) for module in (first, second))
        for _ in range(2):
            check(first, (x,), compiled=compiled_first)
            check(second, (x,), compiled=compiled_second)


def test_new_weights_are_seen_by_the_next_call(entry: str) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.GELU(), torch.nn.Linear(5, 3)).eval()
    x = torch.randn(4, 6)
    with torch.no_grad():
        compiled = compile_with(entry, module, (x,))
        before = leaves(compiled(x))[0].clone()
        next(module.parameters()).mul_(-2)
        check(module, (x,), compiled=compiled)
        assert not torch.allclose(before, leaves(compiled(x))[0])
