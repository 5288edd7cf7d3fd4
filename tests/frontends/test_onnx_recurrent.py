"""Recurrent layers that no op computes as a whole, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from dlcompiler.ir.errors import UnsupportedError
from onnx import helper

from dlcompiler.frontends.onnx import import_onnx
from tests.frontends.onnx_checks import model_of
from tests.frontends.onnx_contrib_checks import check, floats

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, BATCH, INPUTS, HIDDEN = 5, 2, 4, 3


def layer(kind: str, directions: int = 1) -> list[np.ndarray | None]:
    gates = GATES[kind] * HIDDEN
    return [
        floats(STEPS, BATCH, INPUTS), floats(directions, gates, INPUTS), floats(directions, gates, HIDDEN),
        floats(directions, 2 * gates),
    ]  # fmt: skip


def compare(kind: str, *more: np.ndarray | None, directions: int = 1, **attributes) -> None:
    outputs = 3 if kind == "LSTM" else 2
    direction = "bidirectional" if directions == 2 else attributes.pop("direction", "forward")
    inputs = [*layer(kind, directions), *more]
    check(kind, inputs, outputs, "", constants=[1, 2, 3], hidden_size=HIDDEN, direction=direction, **attributes)


@pytest.mark.parametrize("kind", sorted(GATES))
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_sequences_of_different_lengths(kind, direction):
    directions = 2 if direction == "bidirectional" else 1
    states = [floats(directions, BATCH, HIDDEN)] * (2 if kind == "LSTM" else 1)
    given = {} if directions == 2 else {"direction": direction}
    compare(kind, np.array([5, 3], np.int32), *states, directions=directions, **given)


@pytest.mark.parametrize("kind", sorted(GATES))
def test_clipped_sums_and_other_activations(kind):
    compare(kind, clip=0.5)
    names = {"LSTM": ["HardSigmoid", "Relu", "Softsign"], "GRU": ["HardSigmoid", "LeakyRelu"], "RNN": ["Affine"]}[kind]
    compare(kind, activations=names, activation_alpha=[0.3, 0.2][: 1 if kind != "GRU" else 2], activation_beta=[0.4])


def test_peepholes_and_coupled_gates():
    compare("LSTM", None, None, None, floats(1, 3 * HIDDEN))
    compare("LSTM", input_forget=1)


def test_a_reset_before_the_product():
    compare("GRU", linear_before_reset=0)
    compare("GRU", np.array([4, 5], np.int32), linear_before_reset=1)


def test_an_open_number_of_steps_is_refused():
    node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=HIDDEN, clip=0.5)
    _, w, r, _ = layer("LSTM")
    model = model_of(node, {"x": ("float32", ["steps", BATCH, INPUTS])}, ["y"], {"w": w, "r": r})
    with pytest.raises(UnsupportedError, match="steps; give their number with input shapes"):
        import_onnx(model)
