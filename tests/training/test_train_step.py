"""`dlcompiler.train_step`: equal to the eager loop, in the user's own objects; and what it refuses."""

from __future__ import annotations

import copy
import gc
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from dlcompiler.codegen.target import Target
from dlcompiler.ir.errors import InputError, UnsupportedError
from dlcompiler.passes.block import row_chunks
from torch import Tensor, nn

import dlcompiler
from tests import training_zoo

logger = logging.getLogger(__name__)


def tokens() -> dict[str, Tensor]:
    ids = torch.randint(0, 61, (2, 7))
    return {"input_ids": ids, "labels": ids}


def labelled_gpt2() -> tuple[nn.Module, dict[str, Tensor]]:
    from transformers import GPT2Config, GPT2LMHeadModel

    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=61, n_positions=8, **rates)), tokens()


def labelled_t5() -> tuple[nn.Module, dict[str, Tensor]]:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "vocab_size": 61}
    return T5ForConditionalGeneration(T5Config(dropout_rate=0.0, decoder_start_token_id=0, **sizes)), tokens()


LABELLED = {"gpt2": labelled_gpt2, "t5": labelled_t5}

Optimizers = dict[str, Callable[[Any], torch.optim.Optimizer]]

OPTIMIZERS: Optimizers = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd-momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.3, weight_decay=0.01),
    "sgd-nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, maximize=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "adam-amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.5, 0.9), amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01), weight_decay=0.1, maximize=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, lr_decay=0.5, initial_accumulator_value=0.1, weight_decay=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "rmsprop-centered": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True, momentum=0.5, weight_decay=0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0, weight_decay=0.1),
}


def perceptron(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def squares(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.mse_loss(model(batch[0]), batch[1])


def batch_of(step: int, size: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(size, 5, generator=generator), torch.randn(size, 3, generator=generator)


def eager_step(model: Any, loss_fn: Any, optimizer: torch.optim.Optimizer, *batches: Any, clip: Any = None) -> Tensor:
    """The mean loss of the batches, and one update with the mean of their gradients."""
    optimizer.zero_grad()
    losses = [loss_fn(model, batch) for batch in batches]
    (sum(losses) / len(batches)).backward()
    if clip is not None:
        clip([p for group in optimizer.param_groups for p in group["params"]])
    optimizer.step()
    return losses[-1].detach()


def assert_same_state(ours: Any, eager: Any, tolerance: float = 2e-6) -> None:
    """Two state_dicts, of modules or optimizers: the same keys, and tensors that are near."""
    torch.testing.assert_close(ours.state_dict(), eager.state_dict(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_updates_parameters_and_state_as_eager_does(name: str) -> None:
    ours, make = perceptron(), OPTIMIZERS[name]
    eager = copy.deepcopy(ours)
    optimizer, reference = make(ours.parameters()), make(eager.parameters())
    step = dlcompiler.train_step(ours, squares, optimizer, batch_of(0))
    for k in range(4):
        for group in (*optimizer.param_groups, *reference.param_groups):  # a schedule
            group["lr"] = group["lr"] * 0.9
        torch.testing.assert_close(step(batch_of(k)), eager_step(eager, squares, reference, batch_of(k)))
        assert_same_state(ours, eager)
        assert_same_state(optimizer, reference)
    # the first step of a new momentum takes other numbers, but no program of its own
    assert len(step.reports) == 1


@pytest.mark.parametrize("name", ["bert", "resnet18", "lstm"])
def test_losses_of_a_tiny_model_follow_eager(name: str) -> None:
    ours, eager = training_zoo.build(name, "tiny"), training_zoo.build(name, "tiny")
    optimizer, reference = ours.make_optimizer(ours.model.parameters()), eager.make_optimizer(eager.model.parameters())
    step = dlcompiler.train_step(ours.model, ours.loss, optimizer, ours.make_batch(0))
    for k in range(4):
        loss = step(ours.make_batch(k))
        torch.testing.assert_close(
            loss, eager_step(eager.model, eager.loss, reference, eager.make_batch(k)), rtol=1e-4, atol=1e-5
        )


def test_a_gan_is_two_steps_that_share_modules() -> None:
    ours, eager = training_zoo.build("dcgan", "tiny"), training_zoo.build("dcgan", "tiny")

    def optimizers(gan: Any) -> list[torch.optim.Optimizer]:
        return [ours.make_optimizer(part.parameters()) for part in (gan.discriminator, gan.generator)]

    losses = training_zoo.discriminator_loss, training_zoo.generator_loss
    steps = [
        dlcompiler.train_step(ours.model, loss, optimizer, ours.make_batch(0))
        for loss, optimizer in zip(losses, optimizers(ours.model))
    ]
    references = optimizers(eager.model)
    for k in range(3):
        for step, loss, reference in zip(steps, losses, references):
            found, expected = step(ours.make_batch(k)), eager_step(eager.model, loss, reference, ours.make_batch(k))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert_same_state(ours.model, eager.model, 1e-4)  # statistics of the norms too


def test_compiling_trains_nothing() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    before = copy.deepcopy(model.state_dict())
    step = dlcompiler.train_step(model, squares, torch.optim.Adam(model.parameters()), batch_of(0))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    step(batch_of(0))
    assert not torch.equal(model.state_dict()["0.weight"], before["0.weight"])
    assert model[1].num_batches_tracked == 1


def test_training_goes_on_from_a_checkpoint() -> None:
    straight, make = perceptron(), OPTIMIZERS["adam"]
    optimizer = make(straight.parameters())
    step = dlcompiler.train_step(straight, squares, optimizer, batch_of(0))
    for k in range(2):
        step(batch_of(k))
    saved = copy.deepcopy((straight.state_dict(), optimizer.state_dict()))
    expected = [step(batch_of(k)) for k in (2, 3)]
    resumed = perceptron(seed=1)
    other = make(resumed.parameters())
    again = dlcompiler.train_step(resumed, squares, other, batch_of(0))
    again(batch_of(9))
    resumed.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    torch.testing.assert_close([again(batch_of(k)) for k in (2, 3)], expected, rtol=0, atol=0)
    # eager goes on from it too
    eager_step(resumed, squares, other, batch_of(4))
    step(batch_of(4))
    assert_same_state(other, optimizer)


def test_limited_gradients() -> None:
    clips: list[tuple[dict[str, float], Any]] = [
        ({"clip_norm": 0.1}, lambda p: nn.utils.clip_grad_norm_(p, 0.1)),
        ({"clip_value": 0.01}, lambda p: nn.utils.clip_grad_value_(p, 0.01)),
    ]
    for settings, clip in clips:
        ours = perceptron()
        eager = copy.deepcopy(ours)
        optimizer, reference = (torch.optim.SGD(m.parameters(), lr=0.5) for m in (ours, eager))
        step = dlcompiler.train_step(ours, squares, optimizer, batch_of(0), **settings)
        for k in range(3):
            step(batch_of(k))
            eager_step(eager, squares, reference, batch_of(k), clip=clip)
        assert_same_state(ours, eager)
    assert step.gradient_norm is None


def test_the_norm_of_the_gradients_is_told() -> None:
    model = perceptron()
    eager = copy.deepcopy(model)
    step = dlcompiler.train_step(model, squares, torch.optim.SGD(model.parameters(), lr=0.1), batch_of(0), clip_norm=1.0)
    step(batch_of(0))
    squares(eager, batch_of(0)).backward()
    assert step.gradient_norm is not None
    torch.testing.assert_close(step.gradient_norm, nn.utils.get_total_norm([p.grad for p in eager.parameters()]))


def test_gradients_are_accumulated_over_calls() -> None:
    ours = perceptron()
    eager = copy.deepcopy(ours)
    optimizer, reference = (torch.optim.AdamW(m.parameters(), lr=0.1) for m in (ours, eager))
    step = dlcompiler.train_step(ours, squares, optimizer, batch_of(0), accumulate=3)
    for k in range(2):
        batches = [batch_of(3 * k + j) for j in range(3)]
        before = copy.deepcopy(ours.state_dict())
        for batch in batches[:2]:
            step(batch)
        torch.testing.assert_close(ours.state_dict(), before, rtol=0, atol=0)
        assert all(p.grad is not None for p in ours.parameters())
        last = step(batches[2])
        torch.testing.assert_close(last, eager_step(eager, squares, reference, *batches))
        assert all(p.grad is None for p in ours.parameters())
    assert_same_state(ours, eager)


def test_evaluation_and_other_shapes_in_between() -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))

    ours, eager = make(), make()
    optimizer, reference = (torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (ours, eager))
    step = dlcompiler.train_step(ours, squares, optimizer, batch_of(0))
    for k, size in enumerate((4, 6, 4, 9, 6)):
        torch.testing.assert_close(step(batch_of(k, size)), eager_step(eager, squares, reference, batch_of(k, size)))
        for model in (ours, eager):
            model.eval()
        with torch.no_grad():
            torch.testing.assert_close(ours(batch_of(9)[0]), eager(batch_of(9)[0]))
        for model in (ours, eager):
            model.train()
    assert_same_state(ours, eager)
    assert len(step.reports) <= 3  # the first shape, then one program for all


def test_parameters_of_several_groups_and_ages() -> None:
    """A parameter that joins later has made fewer steps: other numbers in the same program."""
    ours = perceptron()
    eager = copy.deepcopy(ours)

    def groups(model: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(
            [{"params": model[0].parameters(), "lr": 0.1}, {"params": [model[2].weight], "weight_decay": 0.1}]
        )

    optimizer, reference = groups(ours), groups(eager)
    eager_step(ours, squares, optimizer, batch_of(0))
    eager_step(eager, squares, reference, batch_of(0))
    for model, each in ((ours, optimizer), (eager, reference)):
        each.add_param_group({"params": [model[2].bias]})
    step = dlcompiler.train_step(ours, squares, optimizer, batch_of(0))
    for k in range(1, 4):
        step(batch_of(k))
        eager_step(eager, squares, reference, batch_of(k))
    assert_same_state(ours, eager)
    assert_same_state(optimizer, reference)


def test_autocast_is_captured_as_the_loss_function_has_it() -> None:
    def loss(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            predicted = model(batch[0])
        return functional.mse_loss(predicted.float(), batch[1])

    ours = perceptron()
    eager = copy.deepcopy(ours)
    optimizer, reference = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (ours, eager))
    step = dlcompiler.train_step(ours, loss, optimizer, batch_of(0))
    for k in range(3):
        torch.testing.assert_close(step(batch_of(k)), eager_step(eager, loss, reference, batch_of(k)), rtol=2e-2, atol=2e-2)
    assert_same_state(ours, eager, 2e-2)


def test_a_scaler_leaves_out_updates_that_are_not_finite() -> None:
    def loss(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            predicted = model(batch[0])
        return functional.mse_loss(predicted.float(), batch[1])

    ours = perceptron()
    eager = copy.deepcopy(ours)
    optimizer, reference = (torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, dampening=0.5) for m in (ours, eager))
    # the first scale is too large for float16, by more than one halving
    scaler, expected = (torch.amp.GradScaler("cpu", init_scale=2.0**18, growth_interval=3) for _ in range(2))
    step = dlcompiler.train_step(ours, loss, optimizer, batch_of(0), scaler=scaler, clip_norm=0.5)
    scales = []
    for k in range(5):
        reference.zero_grad()
        scaled = loss(eager, batch_of(k))
        expected.scale(scaled).backward()
        expected.unscale_(reference)
        nn.utils.clip_grad_norm_(eager.parameters(), 0.5)
        expected.step(reference)
        expected.update()
        torch.testing.assert_close(step(batch_of(k)), scaled.detach(), rtol=2e-3, atol=2e-3)
        assert scaler.get_scale() == expected.get_scale()
        scales.append(scaler.get_scale())
        assert_same_state(optimizer, reference, 2e-3)
    assert_same_state(ours, eager, 2e-3)
    assert min(scales) < 2.0**17 and any(after > before for before, after in zip(scales, scales[1:]))
    narrow = nn.Linear(2, 2).half()
    with pytest.raises(UnsupportedError, match="torch.float16"):
        dlcompiler.train_step(narrow, squares, torch.optim.SGD(narrow.parameters()), batch_of(0), scaler=scaler)


def test_what_a_loss_function_logs_is_left_out() -> None:
    def loss(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        logger.warning("said while %s", "captured")
        return squares(model, batch)

    model = perceptron()
    step = dlcompiler.train_step(model, loss, torch.optim.SGD(model.parameters(), lr=0.1), batch_of(0))
    torch.testing.assert_close(step(batch_of(0)), squares(perceptron(), batch_of(0)).detach())


@pytest.mark.parametrize("name", LABELLED)
def test_losses_that_transformers_computes_from_labels(name: str) -> None:
    def loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
        return model(**batch).loss

    torch.manual_seed(0)
    ours, batch = LABELLED[name]()
    eager = copy.deepcopy(ours.train())
    optimizer, reference = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (ours, eager))
    step = dlcompiler.train_step(ours, loss, optimizer, batch)
    for _ in range(2):
        torch.testing.assert_close(step(batch), eager_step(eager, loss, reference, batch), rtol=1e-4, atol=1e-5)
    assert_same_state(ours, eager, 1e-4)


@pytest.mark.parametrize("form", ["bfloat16", "sum of smoothed", "shifted"])
def test_a_layer_of_a_large_vocabulary_in_parts(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(model: Any, tokens: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=form == "bfloat16"):
            logits = model(tokens).float()
        if form == "shifted":
            return functional.cross_entropy(logits[:, :-1].reshape(-1, 90), tokens[:, 1:].reshape(-1))
        targets = torch.where(tokens < 9, -100, tokens).flatten()
        if form == "bfloat16":
            return functional.cross_entropy(logits.flatten(0, 1), targets)
        return functional.cross_entropy(logits.flatten(0, 1), targets, reduction="sum", label_smoothing=0.1)

    monkeypatch.setattr(row_chunks, "LARGE_BYTES", 1)
    monkeypatch.setattr(Target, "rows_at_a_time", 16)
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Embedding(90, 12), nn.Tanh(), nn.Linear(12, 90, bias=form != "shifted"))
    eager, tokens = copy.deepcopy(ours), torch.randint(0, 90, (5, 21))
    optimizer, reference = (torch.optim.SGD(m.parameters(), lr=0.01) for m in (ours, eager))
    step = dlcompiler.train_step(ours, loss, optimizer, tokens)
    assert any("rows in parts" in line for line in step.reports[-1].history)
    tolerance = 2e-2 if form == "bfloat16" else 1e-5
    for _ in range(2):
        expected = eager_step(eager, loss, reference, tokens)
        torch.testing.assert_close(step(tokens), expected, rtol=tolerance, atol=tolerance)
    assert_same_state(ours, eager, tolerance)


def test_dropout_follows_the_seed_and_differs_from_call_to_call() -> None:
    def losses(seed: int) -> list[float]:
        model = nn.Sequential(nn.Linear(5, 64), nn.Dropout(0.5), nn.Linear(64, 3))
        model.load_state_dict(start)
        step = dlcompiler.train_step(model, squares, torch.optim.SGD(model.parameters(), lr=0.0), batch_of(0))
        torch.manual_seed(seed)
        return [step(batch_of(0)).item() for _ in range(3)]

    start = nn.Sequential(nn.Linear(5, 64), nn.Dropout(0.5), nn.Linear(64, 3)).state_dict()
    first = losses(1)
    assert first == losses(1)
    assert len(set(first)) == 3 and not set(first) & set(losses(2))


def test_many_steps_keep_no_memory() -> None:
    def alive() -> int:
        gc.collect()
        return sum(type(each) in (Tensor, nn.Parameter) for each in gc.get_objects())

    model = perceptron()
    step = dlcompiler.train_step(model, squares, torch.optim.Adam(model.parameters()), batch_of(0))
    batch = batch_of(0)
    for _ in range(3):
        step(batch)
    before = alive()
    for _ in range(500):
        step(batch)
    assert alive() == before


def branches_on_data(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    return squares(model, batch) if batch[0].sum() > 0 else model(batch[0]).sum()


class Unknown(torch.optim.SGD):
    """An optimizer that is none of torch's own."""


def follows_eager(loss: Any) -> None:
    """Two steps of a perceptron have eager's losses and leave eager's parameters."""
    ours = perceptron()
    eager = copy.deepcopy(ours)
    optimizer, reference = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (ours, eager))
    step = dlcompiler.train_step(ours, loss, optimizer, batch_of(0))
    for k in range(2):
        torch.testing.assert_close(step(batch_of(k)), eager_step(eager, loss, reference, batch_of(k)))
    torch.testing.assert_close(ours.state_dict(), eager.state_dict())


class Attention(nn.Module):
    """Queries, keys and values by one layer or by three, then attention and the projection after it."""

    def __init__(self, is_joined: bool) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.Linear(64, 192)] if is_joined else [nn.Linear(64, 64) for _ in range(3)])
        self.after = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        whole = torch.cat([part(x) for part in self.parts], -1) if len(self.parts) > 1 else self.parts[0](x)
        q, k, v = (part.reshape(2, 48, 4, 16).transpose(1, 2) for part in whole.split(64, -1))
        return self.after(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 48, 64))


@pytest.mark.parametrize("is_joined", [True, False])
def test_projections_of_attention_read_heads_where_they_lie(is_joined: bool) -> None:
    """So products of ours make all gradients, which updates join, and no library does."""
    model = Attention(is_joined)
    optimizer = torch.optim.AdamW(model.parameters())

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return model(x).square().mean()

    step = dlcompiler.train_step(model, loss, optimizer, torch.randn(2, 48, 64))
    (report,) = step.reports
    assert not report.library and not report.aten


def test_a_number_read_out_of_a_tensor_is_part_of_the_program() -> None:
    def loss(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        return squares(model, batch) * (1.0 + batch[1].abs().max().item())

    follows_eager(loss)


def test_what_cannot_be_one_program_is_refused_before_anything_runs() -> None:
    def refused(model: Any, match: str, optimizer: Any = None, loss: Any = squares, batch: Any = None) -> None:
        optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
        before = copy.deepcopy(model.state_dict())
        with pytest.raises((UnsupportedError, InputError), match=match):
            dlcompiler.train_step(model, loss, optimizer, batch or batch_of(0))
        torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)

    refused(perceptron(), "Unknown is none of", Unknown(perceptron().parameters(), lr=0.1))
    refused(perceptron().to(torch.complex64), "complex parameters")
    refused(nn.Sequential(nn.Embedding(4, 3, sparse=True)), "sparse gradients of Embedding")
    hooked = perceptron()
    hooked[0].weight.register_hook(lambda gradient: gradient * 2)
    refused(hooked, "hooks on parameters")
    optimizer = torch.optim.SGD((model := perceptron()).parameters(), lr=0.1)
    optimizer.register_step_post_hook(lambda *_: None)
    refused(model, "hooks around the optimizer", optimizer)
    refused(perceptron(), "one tensor of one element", loss=lambda model, batch: model(batch[0]))
    refused(perceptron(), "no parameter of the optimizer", loss=lambda model, batch: batch[0].sum())
    refused(perceptron(), "captured whole", loss=branches_on_data)
    refused(perceptron(), "captured whole", loss=penalizes_slopes)
    refused(perceptron(), "captured whole", loss=lambda model, batch: squares(lambda x: ByHost.apply(model(x)), batch))
    refused(SparseTable(), "gradient of .* is sparse")
    for kind in ("register_full_backward_hook", "register_full_backward_pre_hook"):
        getattr((model := perceptron())[0], kind)(lambda *_: None)
        refused(model, "backward hooks of Linear")
    for make in (torch.optim.LBFGS, torch.optim.SparseAdam, lambda p: torch.optim.Adam(p, differentiable=True)):
        model = perceptron()
        refused(model, "LBFGS is none of|SparseAdam is none of|differentiable=True", make(list(model.parameters())))


def penalizes_slopes(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    """A gradient of a gradient is wanted."""
    x = batch[0].detach().requires_grad_()
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return squares(model, batch) + slope.square().mean()


class ByHost(torch.autograd.Function):
    """Its backward pass decides on numbers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * (3 if gradients[0].sum().item() > 0 else 5)


class SparseTable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(4, 5))

    def forward(self, x: Tensor) -> Tensor:
        return functional.embedding(x.gt(0).long().sum(1) % 4, self.table, sparse=True)[:, :3]


class Clamped(nn.Module):
    """A model that limits its own weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.weight.clamp_(-0.5, 0.5)
        return x @ self.weight


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_parameter_that_the_loss_function_changes(accumulate: int) -> None:
    ours = Clamped()
    eager = copy.deepcopy(ours)
    optimizer, reference = (torch.optim.SGD(m.parameters(), lr=0.5) for m in (ours, eager))
    step = dlcompiler.train_step(ours, squares, optimizer, batch_of(0), accumulate=accumulate)
    for k in range(3):
        batches = [batch_of(k + j) for j in range(accumulate)]
        losses = [step(batch) for batch in batches]
        torch.testing.assert_close(losses[-1], eager_step(eager, squares, reference, *batches))
        torch.testing.assert_close(ours.weight, eager.weight)


def test_a_hook_on_an_intermediate_value_is_part_of_the_program() -> None:
    def loss(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        h = model[0](batch[0])
        h.register_hook(lambda gradient: gradient * 2)
        return functional.mse_loss(model[2](h.tanh()), batch[1])

    follows_eager(loss)


@pytest.mark.parametrize("budget", [None, 0.5, 0.0])
def test_less_is_held_on_a_budget_and_no_number_changes(budget: float | None) -> None:
    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        layers = [nn.Linear(24, 24), nn.LayerNorm(24), nn.GELU(), nn.Dropout(0.2)]
        model = nn.Sequential(*layers, *copy.deepcopy(layers), nn.Linear(24, 3))
        return model, torch.optim.SGD(model.parameters(), lr=0.1)

    batch = torch.randn(64, 24), torch.randn(64, 3)
    steps, models = [], []
    for options in ({"activation_memory_budget": 1.0}, {"activation_memory_budget": budget}):
        model, optimizer = make()
        models.append(model)
        steps.append(dlcompiler.train_step(model, squares, optimizer, batch, options=options))
    for k in range(2):
        losses = []
        for step in steps:
            torch.manual_seed(k)
            losses.append(step(batch))
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=0)
    torch.testing.assert_close(models[0].state_dict(), models[1].state_dict(), rtol=1e-5, atol=1e-7)
    everything, less = (step.reports[-1].planned_peak for step in steps)
    assert less < everything
    assert any("recompute" in event for event in steps[1].reports[-1].history)


def test_another_step_of_the_same_process_keeps_its_sizes_known() -> None:
    for size in (4, 6):
        model = perceptron()
        step = dlcompiler.train_step(model, squares, torch.optim.SGD(model.parameters()), batch_of(0, size))
        assert f"f32[{size}, 5]" in " ".join(step.reports[-1].inputs)
