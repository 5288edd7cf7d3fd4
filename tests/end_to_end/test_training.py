"""Gradients through torch.compile: right, whoever computes them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from dlcompiler.ir.errors import UnsupportedError
from torch import Tensor, nn

import dlcompiler
from tests import zoo
from tests.end_to_end.support import assert_near, compile_with, random_tensor


def gradients(module: nn.Module, call: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The loss and every gradient after one backward pass."""
    module.zero_grad()
    outputs = call(*inputs)
    # weighted, because the sum of a layer norm's squares hardly depends on anything, and its gradient is rounding error
    weights = torch.linspace(-1, 2, outputs.numel(), dtype=outputs.dtype).view(outputs.shape)
    loss = (outputs.square() * weights).mean()
    loss.backward()
    return [loss.detach(), *(parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None)]


def check_training(module: nn.Module, inputs: tuple[Tensor, ...], steps: int = 3) -> None:
    """A few steps of gradient descent, eager and compiled from the same start; float64 judges each step's gradients."""
    ours, eager, judge = module, copy.deepcopy(module), copy.deepcopy(module).double()
    compiled = compile_with("torch.compile", ours)
    doubled = tuple(value.double() if value.is_floating_point() else value for value in inputs)
    for step in range(steps):
        found, expected = gradients(ours, compiled, inputs), gradients(eager, eager, inputs)
        exact = gradients(judge, judge, doubled)
        assert len(found) == len(expected)
        for position, (mine, theirs, truth) in enumerate(zip(found, expected, exact)):
            assert_near(mine.contiguous(), theirs.contiguous(), truth, f"step {step}, gradient {position}", floor=1e-4)
        for candidate in (ours, eager, judge):
            with torch.no_grad():
                for parameter in candidate.parameters():
                    if parameter.grad is not None:
                        parameter.sub_(parameter.grad, alpha=0.05)


class Block(nn.Module):
    """A transformer's feed-forward with a residual and layer-norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(12), nn.Linear(12, 24), nn.Linear(24, 12)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(functional.gelu(self.up(self.norm(x))))


MODULES: dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "linear": lambda: (nn.Linear(6, 4), (random_tensor(5, 6),)),
    "perceptron": lambda: (nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), (random_tensor(5, 6),)),
    "block": lambda: (Block(), (random_tensor(2, 5, 12),)),
    "convolution": lambda: (
        nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 3)),
        (random_tensor(3, 3, 10, 10),),
    ),
    "embedding": lambda: (nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 4)), (torch.randint(0, 11, (4, 5)),)),
    "softmax": lambda: (nn.Sequential(nn.Linear(6, 9), nn.LogSoftmax(-1)), (random_tensor(5, 6),)),
    "attention": lambda: (nn.TransformerEncoderLayer(12, 3, 24, dropout=0.0, batch_first=True), (random_tensor(2, 5, 12),)),
    "transposed_convolution": lambda: (nn.ConvTranspose2d(3, 4, 4, 2, 1), (random_tensor(2, 3, 5, 5),)),
}


@pytest.mark.parametrize("name", MODULES)
def test_training_steps(name: str) -> None:
    torch.manual_seed(0)
    check_training(*MODULES[name]())


@pytest.mark.parametrize("name", ["bert-base", "gpt2"])
def test_training_a_tiny_transformer(name: str) -> None:
    model = zoo.build(name, "tiny")
    wrapped = FirstOutput(model.module.requires_grad_(True))
    check_training(wrapped, model.make_inputs(2), steps=1)


class FirstOutput(nn.Module):
    """Only the first output, so that a loss can be made of it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Tensor:
        result = self.module(*inputs)
        return result[0] if isinstance(result, tuple) else result


def test_gradient_with_respect_to_inputs() -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        return (functional.softmax(x @ y, -1) * x.sigmoid()).sum()

    def input_gradients(candidate: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        inputs = [random_tensor(5, 5, seed=seed).to(dtype).requires_grad_() for seed in (1, 2)]
        candidate(*inputs).backward()
        return [value.grad for value in inputs if value.grad is not None]

    compiled = compile_with("torch.compile", function)
    judge = input_gradients(function, torch.float64)
    for mine, theirs, exact in zip(input_gradients(compiled, torch.float32), input_gradients(function, torch.float32), judge):
        assert_near(mine, theirs, exact)


@pytest.mark.parametrize("kind", ["causal", "bool", "added", "grouped", "float64"])
def test_gradients_of_attention_are_kernels(kind: str) -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        given = None if mask is None or mask.dtype is torch.bool else mask.to(q.dtype)
        return functional.scaled_dot_product_attention(
            q, k, v, mask if given is None else given, is_causal=kind == "causal", enable_gqa=kind == "grouped"
        )

    def input_gradients(candidate: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        heads = 2 if kind == "grouped" else 4
        q, k, v = (random_tensor(2, n, 19, 8, seed=n).to(dtype).requires_grad_() for n in (4, heads, heads))
        out = candidate(q, k, v, mask)
        (out * torch.linspace(-1, 1, out.numel(), dtype=dtype).view(out.shape)).sum().backward()
        return [out.detach(), *(x.grad for x in (q, k, v) if x.grad is not None)]

    mask = {"bool": random_tensor(2, 1, 19, 19) > -1, "added": random_tensor(19, 19)}.get(kind)
    compiled = compile_with("torch.compile", attend)
    judge = input_gradients(attend, torch.float64)
    dtype = torch.float64 if kind == "float64" else torch.float32
    for mine, theirs, exact in zip(input_gradients(compiled, dtype), input_gradients(attend, dtype), judge):
        assert_near(mine.contiguous(), theirs.contiguous(), exact)
    forward, backward = dlcompiler.reports()[-2:]
    assert not forward.aten and not backward.aten


def test_a_model_of_hugging_face_with_labels_and_dropout_is_two_graphs() -> None:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=3,
        problem_type="single_label_classification",
    )  # fmt: skip
    torch.manual_seed(0)
    ours = BertForSequenceClassification(config).train()
    eager = copy.deepcopy(ours)
    compiled = torch.compile(ours, backend="dlcompiler", options={"numerics": "eager"})  # draws what eager draws
    batch = {"input_ids": torch.randint(0, 40, (3, 7)), "labels": torch.tensor([0, 2, 1])}
    losses = []
    for step in range(2):
        found = []
        for model, call in ((ours, compiled), (eager, eager)):
            torch.manual_seed(step)
            model.zero_grad()
            loss = call(**batch).loss
            loss.backward()
            found.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
        torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)
        losses.append(found[0][0])
    assert losses[0] != losses[1]
    assert len(dlcompiler.reports()) == 2


def test_double_backward_is_right_or_refused() -> None:
    def function(x: Tensor) -> Tensor:
        return (x.tanh() * x).sum()

    def second_derivative(candidate: Callable[..., Tensor]) -> Tensor:
        x = random_tensor(4).requires_grad_()
        (first,) = torch.autograd.grad(candidate(x), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
        return second

    expected = second_derivative(function)
    try:
        found = second_derivative(compile_with("torch.compile", function))
    except RuntimeError as refusal:
        assert "double backward" in str(refusal)
    else:
        torch.testing.assert_close(found, expected)


def hooked(register: Callable[[nn.Module], Any]) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    register(module)
    return module


def halved(*arguments: Any) -> tuple[Tensor | None, ...]:
    """What a module's backward hook makes of the gradients that it is given last."""
    return tuple(None if gradient is None else gradient * 0.5 for gradient in arguments[-1])


def doubled(parameter: Tensor) -> None:
    assert parameter.grad is not None
    parameter.grad.mul_(2)


STRANGE: dict[str, Callable[[], nn.Module]] = {
    "a hook on a parameter": lambda: hooked(lambda m: m[0].weight.register_hook(lambda gradient: gradient * 2)),
    "a hook after a gradient": lambda: hooked(lambda m: m[0].weight.register_post_accumulate_grad_hook(doubled)),
    "a module's hook before its backward pass": lambda: hooked(lambda m: m[2].register_full_backward_pre_hook(halved)),
    "a module's hook after it": lambda: hooked(lambda m: m[2].register_full_backward_hook(lambda _, given, out: halved(given))),
    "complex parameters": lambda: hooked(lambda m: m.to(torch.complex64)),
    "sparse gradients": lambda: nn.Embedding(9, 4, sparse=True),
}


@pytest.mark.filterwarnings("ignore:Complex modules")
@pytest.mark.parametrize("kind", STRANGE)
def test_what_is_strange_is_as_in_eager(kind: str) -> None:
    """Hooks and gradients that a graph cannot hold are torch's: never another number."""
    torch._dynamo.reset()
    found = []
    for compiles in (False, True):
        torch.manual_seed(1)
        module = STRANGE[kind]()
        x = torch.tensor([1, 2, 2, 5]) if kind == "sparse gradients" else torch.randn(5, 6, dtype=next(module.parameters()).dtype)
        call = torch.compile(module, backend="dlcompiler") if compiles else module
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            call(x).abs().square().mean().backward()
            optimizer.step()
        found.append(module.state_dict())
    torch.testing.assert_close(found[1], found[0])


def test_what_is_saved_lies_as_the_forward_program_left_it_and_a_backward_pass_by_torch_is_given_eagers_order() -> None:
    from dlcompiler import torch_backend

    def run(refuses: bool) -> tuple[list[Tensor], list[tuple[int, ...]]]:
        """Gradients, and strides of the images saved."""
        torch._dynamo.reset()
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 2))
        saved: list[tuple[int, ...]] = []

        def pack(value: Tensor) -> Tensor:
            if value.dim() == 4 and value.shape[0] == 2:
                saved.append(value.stride())
            return value

        def import_fx(graph_module: Any, *, name: str, **rest: Any) -> Any:
            if refuses and name.endswith("backward"):
                raise UnsupportedError("a test")
            return imported(graph_module, name=name, **rest)

        imported = torch_backend.import_fx
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch_backend, "import_fx", import_fx)
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
                loss = torch.compile(module, backend="dlcompiler")(torch.ones(2, 3, 10, 10)).square().mean()
            loss.backward()
        return [p.grad for p in module.parameters() if p.grad is not None], saved

    ours, saved = run(False)
    assert (512, 1, 64, 8) in saved  # 8 channels of 8 x 8 pixels, innermost
    by_torch, again = run(True)
    assert again == saved
    for one, other in zip(ours, by_torch, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loss_keeps_logits_and_two_numbers_a_row_and_not_their_softmax(dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    head, x, target = nn.Linear(16, 96, bias=False, dtype=dtype), random_tensor(24, 16).to(dtype), torch.arange(24) % 7
    saved: dict[int, tuple[int, ...]] = {}

    def pack(value: Tensor) -> Tensor:
        saved[value.data_ptr()] = tuple(value.shape)
        return value

    def loss(x: Tensor, target: Tensor) -> Tensor:
        logits = head(x)
        return functional.cross_entropy(logits, target) + logits.sum() * 0.01

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        found = torch.compile(loss, backend="dlcompiler")(x, target)
    found.backward()
    assert sum(shape == (24, 96) for shape in saved.values()) == 1
    assert head.weight.grad is not None
    ours = head.weight.grad.clone()
    head.zero_grad()
    loss(x, target).backward()
    torch.testing.assert_close(ours, head.weight.grad, **({} if dtype is torch.float32 else {"atol": 2e-3, "rtol": 2e-2}))


@pytest.mark.parametrize("way", ["option", "config"])
def test_the_partitioner_keeps_to_the_memory_budget(way: str) -> None:
    module = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 4))
    x = random_tensor(16, 8)

    def held(budget: float) -> tuple[int, Tensor]:
        """Bytes that the forward graph hands to the backward graph, and a gradient."""
        torch._dynamo.reset()
        module.zero_grad()
        saved: dict[int, int] = {}
        options = {"activation_memory_budget": budget} if way == "option" else {}
        compiled = torch.compile(module, backend="dlcompiler", options=options)

        def pack(value: Tensor) -> Tensor:
            saved[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
            return value

        with torch._functorch.config.patch(activation_memory_budget=1.0 if way == "option" else budget):
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
                loss = compiled(x).square().mean()
            loss.backward()
        assert module[0].weight.grad is not None
        return sum(saved.values()), module[0].weight.grad.clone()

    most, least = held(1.0), held(0.0)
    assert least[0] < (0.7 if way == "option" else 0.8) * most[0]  # torch's 1.0 is its default, which computes a little again
    torch.testing.assert_close(least[1], most[1])


def test_learning_rate_as_a_tensor_does_not_recompile() -> None:
    def update(weight: Tensor, gradient: Tensor, momentum: Tensor, rate: Tensor) -> None:
        momentum.mul_(0.9).add_(gradient)
        weight.sub_(rate * momentum)

    compiled = compile_with("torch.compile", update)
    ours = [random_tensor(6, 3, seed=seed) for seed in range(3)]
    eager = [value.clone() for value in ours]
    for step in range(4):
        rate = torch.tensor(0.1 / (step + 1))
        compiled(*ours, rate)
        update(eager[0], eager[1], eager[2], rate)
        for mine, theirs in zip(ours, eager):
            torch.testing.assert_close(mine, theirs)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
