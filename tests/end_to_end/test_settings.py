"""Options and modes, autocast and gradient switches, scalars as inputs, ops left to ATen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from tests.end_to_end.support import (
    BACKEND,
    assert_identical,
    assert_near,
    check,
    compile_with,
    compiled_graphs,
    leaves,
    ours_only,
    random_tensor,
)


def function(x: Tensor) -> Tensor:
    return torch.tanh(x) * 2 + x.sum()


@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"])
def test_modes_of_torch_are_accepted(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLCOMPILER_TUNE_BUDGET", "0.5")
    if BACKEND == "eager":
        pytest.skip("the eager backend takes no mode")
    check(function, (random_tensor(5, 7),), compiled=compile_with("torch.compile", function, mode=mode))


@ours_only
def test_unknown_option_is_an_error_that_names_the_nearest(entry: str) -> None:
    from dlcompiler.ir.errors import OptionError

    x = random_tensor(3)
    with pytest.raises((OptionError, torch._dynamo.exc.BackendCompilerFailed), match="strict") as caught:
        compile_with(entry, function, (x,), options={"strct": True})(x)
    assert "strct" in str(caught.value)


@ours_only
def test_option_of_the_wrong_kind_is_an_error(entry: str) -> None:
    from dlcompiler.ir.errors import OptionError

    x = random_tensor(3)
    with pytest.raises((OptionError, torch._dynamo.exc.BackendCompilerFailed), match="strict"):
        compile_with(entry, function, (x,), options={"strict": "perhaps"})(x)


@ours_only
@pytest.mark.parametrize("level", range(4))
def test_every_optimization_level_is_right(level: int, entry: str) -> None:
    module = nn.Sequential(nn.Linear(6, 9), nn.LayerNorm(9), nn.GELU(), nn.Linear(9, 2), nn.Softmax(-1)).eval()
    x = random_tensor(4, 6)
    with torch.no_grad():
        check(module, (x,), compiled=compile_with(entry, module, (x,), options={"optimization_level": level}))


@ours_only
def test_numerics_eager_gives_eager_bits() -> None:
    def chain(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        z = x * y + 0.1
        return z * z - x, (z.abs() + 1) / 3  # no sqrt: eager's is not correctly rounded

    for dtype in (torch.float32, torch.float64):  # narrower ones stay in float32 inside a kernel, which the option says
        inputs = (random_tensor(50, 20, dtype=dtype), random_tensor(50, 20, dtype=dtype, seed=1))
        compiled = torch.compile(chain, backend=BACKEND, options={"numerics": "eager"})
        for ours, eager in zip(compiled(*inputs), chain(*inputs)):
            assert_identical(ours, eager)


@ours_only
def test_verify_option_accepts_a_right_program() -> None:
    compiled = torch.compile(function, backend=BACKEND, options={"verify": True})
    check(function, (random_tensor(5, 7),), compiled=compiled)


SWITCHES: dict[str, Any] = {
    "plain": nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "enable_grad": torch.enable_grad,
}


@pytest.mark.parametrize("second", SWITCHES)
@pytest.mark.parametrize("first", SWITCHES)
def test_switches_toggled_after_compilation(first: str, second: str) -> None:
    module = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = random_tensor(4, 8)
    compiled = compile_with("torch.compile", module)
    for name in (first, second, first):
        switch: AbstractContextManager[Any] = SWITCHES[name]()
        with switch:
            eager, ours = module(x), compiled(x)
        assert ours.requires_grad == eager.requires_grad
        assert ours.is_inference() == eager.is_inference()
        floor = 2.0**-6 if name == "autocast" else None
        assert_near(ours.detach().clone(), eager.detach().clone(), in_double(module, x), name, floor)


def in_double(module: nn.Module, x: Tensor) -> Tensor:
    """The module's answer in float64."""
    import copy

    with torch.no_grad():
        return copy.deepcopy(module).double()(x.double())


def test_train_and_eval_toggled_after_compilation() -> None:
    module = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.0)).eval()
    x = random_tensor(16, 8)
    compiled = compile_with("torch.compile", module)
    with torch.no_grad():
        before = compiled(x).clone()
        module.train()
        trained = compiled(x).clone()
        module.eval()
        after = compiled(x)
        assert_near(after, module(x), in_double(module, x))
    assert not torch.allclose(before, trained) and not torch.allclose(before, after)


def test_dropout_in_eval_mode_is_the_identity(entry: str) -> None:
    module = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.GELU(), nn.Dropout(0.9)).eval()
    with torch.no_grad():
        check(module, (random_tensor(4, 8),), entry)


def test_dropout_in_training_mode_draws_anew_and_keeps_the_mean() -> None:
    compiled = compile_with("torch.compile", lambda x: functional.dropout(x, 0.25, training=True))
    x = torch.ones(200, 200)
    first, second = compiled(x).clone(), compiled(x).clone()
    assert not torch.equal(first, second)
    for drawn in (first, second):
        assert drawn.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
        assert drawn.mean().item() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("dynamic", [None, True, False])
def test_python_numbers_as_inputs(dynamic: bool | None) -> None:
    def scaled(x: Tensor, factor: float, shift: int, flag: bool) -> Tensor:
        return x * factor + shift if flag else x - shift

    compiled = compile_with("torch.compile", scaled, dynamic=dynamic)
    x = random_tensor(4, 5)
    for arguments in [(2.5, 3, True), (0.5, 3, True), (-1.25, 7, True), (2.5, 3, False), (float("inf"), 0, True)]:
        assert_near(compiled(x, *arguments), scaled(x, *arguments), scaled(x.double(), *arguments))


def test_zero_dimensional_tensors_as_numbers() -> None:
    def stepped(weight: Tensor, gradient: Tensor, rate: Tensor) -> Tensor:
        return weight - rate * gradient

    compiled = compile_with("torch.compile", stepped)
    for rate in (0.1, 0.01, 1.0):
        check(stepped, (random_tensor(7), random_tensor(7, seed=1), torch.tensor(rate)), compiled=compiled)
    if BACKEND == "dlcompiler":
        assert compiled_graphs() == 1


def test_nested_inputs_and_outputs(entry: str) -> None:
    def nested(pair: tuple[Tensor, Tensor], table: dict[str, Tensor]) -> dict[str, Any]:
        return {"sum": pair[0] + table["x"], "list": [pair[1] * 2, (table["x"],)], "nothing": None, "number": 3}

    inputs = ((random_tensor(3), random_tensor(3, seed=1)), {"x": random_tensor(3, seed=2)})
    compiled = compile_with(entry, nested, inputs)
    ours, eager = compiled(*inputs), nested(*inputs)
    assert ours.keys() == eager.keys() and ours["nothing"] is None and ours["number"] == 3
    for mine, theirs in zip(leaves({**ours, "number": None}), leaves({**eager, "number": None}), strict=True):
        assert_identical(mine, theirs)


def test_a_graph_of_constants_only(entry: str) -> None:
    check(lambda x: torch.arange(6).view(2, 3) * 2 + torch.ones(3), (random_tensor(2),), entry)


def test_unused_inputs(entry: str) -> None:
    check(lambda x, y, z: y * 2, tuple(random_tensor(3, seed=seed) for seed in range(3)), entry)


@pytest.fixture(scope="module")
def twist() -> Iterator[Any]:
    """An operator that no compiler can know, registered for the time of this module."""
    library = torch.library.Library("dlcompiler_tests", "DEF")
    library.define("twist(Tensor x, float by) -> Tensor")
    library.impl("twist", lambda x, by: x.flip(0) * by, "CompositeExplicitAutograd")
    torch.library.register_fake("dlcompiler_tests::twist", lambda x, by: torch.empty_like(x), lib=library)
    yield torch.ops.dlcompiler_tests.twist.default
    library._destroy()


def test_unknown_operator_runs_in_aten_and_is_right(twist: Any) -> None:
    check(lambda x: torch.relu(twist(x * 2, 0.5)) + twist(x, 2.0).sum(0), (random_tensor(5, 6),))


@ours_only
def test_unknown_operator_is_counted_and_named(twist: Any) -> None:
    import dlcompiler

    compile_with("torch.compile", lambda x: twist(twist(x, 1.0) + 1, 2.0))(random_tensor(5))
    (node,) = dlcompiler.reports()[-1].aten
    assert "twist" in node.name and node.count == 2 and node.reason
    assert "twist" in str(dlcompiler.reports()[-1])


@ours_only
def test_unknown_operator_is_an_error_under_strict(twist: Any) -> None:
    from dlcompiler.ir.errors import UnsupportedError

    compiled = torch.compile(lambda x: twist(x, 1.0), backend=BACKEND, options={"strict": True})
    with pytest.raises((UnsupportedError, torch._dynamo.exc.BackendCompilerFailed), match="twist"):
        compiled(random_tensor(5))


RARE: dict[str, Any] = {
    "svd": lambda x: torch.linalg.svdvals(x) + 1,
    "fft": lambda x: torch.fft.rfft(x).abs() * 2,
    "complex": lambda x: torch.view_as_real(torch.complex(x, x * 2) * 2j),
    "sort": lambda x: (x * 2).sort(-1, descending=True)[0] + 1,
    "unique_free_median": lambda x: x.median(-1)[0] + 1,
    "bincount_like": lambda x: torch.histc(x, 4) + 1,
    "grid_sample": lambda x: functional.grid_sample(x[None, None], x[None, :3, :2].reshape(1, 3, 1, 2), align_corners=False),
    "interpolate": lambda x: functional.interpolate(x[None, None], scale_factor=2.0, mode="bilinear") + 1,
    "cdist": lambda x: torch.cdist(x, x + 1),
    "inverse": lambda x: torch.linalg.inv(x @ x.t() + 5 * torch.eye(6, dtype=x.dtype)),
    "nonzero_count": lambda x: (x > 0).nonzero().shape[0] * x,
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, x) + 1,
    "max_pool_indices": lambda x: functional.max_pool2d(x[None, None], 2, return_indices=True),
    "adaptive_pool": lambda x: functional.adaptive_avg_pool2d(x[None, None], (2, 4)) * 2,
    "quantile_free_kthvalue": lambda x: x.kthvalue(2, -1)[0],
}


@pytest.mark.parametrize("name", RARE)
def test_rare_operators_are_right(name: str) -> None:
    check(RARE[name], (random_tensor(6, 6),))
