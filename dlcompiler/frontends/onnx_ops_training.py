"""One step of an optimiser (`ai.onnx.preview.training`), and small operators of `ai.onnx.ml`."""

from __future__ import annotations

from collections.abc import Callable

from dlcompiler.frontends.onnx_registry import Call, operator
from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import i64

TRAINING, LEARNING = "ai.onnx.preview.training", "ai.onnx.ml"


def _each(call: Call, states: int, update: Callable[..., tuple[Node, ...]]) -> tuple[Node, ...]:
    """`update(x, gradient, *states) -> (x, *states)` for every tensor; operands and results are grouped by kind."""
    given = call.all[2:]
    groups = 2 + states
    if len(given) % groups:
        call.invalid(f"{len(given)} tensors are no groups of {groups}")
    count = len(given) // groups
    results = [update(*given[k::count]) for k in range(count)]
    return tuple(result[kind] for kind in range(1 + states) for result in results)


def _regularised(call: Call, x: Node, gradient: Node) -> Node:
    factor = call.attribute("norm_coefficient", 0.0)
    return gradient if factor == 0 else call.b.add(call.b.mul(x, factor), gradient)


def _rate_and_step(call: Call) -> tuple[Node, Node]:
    """Both as numbers of the tensors' dtype."""
    dtype = call[2].dtype
    return tuple(call.cast(call.reshape(call[k], ()), dtype) for k in range(2))  # type: ignore[return-value]


@operator("Momentum", domain=TRAINING)
def momentum(call: Call) -> tuple[Node, ...]:
    b, (rate, step) = call.b, _rate_and_step(call)
    alpha, mode = call.attribute("alpha"), call.attribute("mode")
    if mode not in ("standard", "nesterov"):
        call.invalid(f"mode is {mode!r}, not standard or nesterov")
    one = call.number(1.0, rate)
    beta = b.where(b.gt(step, 0.0), call.number(call.attribute("beta"), rate), one)

    def update(x: Node, gradient: Node, speed: Node) -> tuple[Node, ...]:
        gradient = _regularised(call, x, gradient)
        speed = b.add(b.mul(speed, alpha), b.mul(gradient, beta))
        change = b.add(gradient, b.mul(speed, alpha)) if mode == "nesterov" else speed
        return b.sub(x, b.mul(change, rate)), speed

    return _each(call, 1, update)


@operator("Adagrad", domain=TRAINING)
def adagrad(call: Call) -> tuple[Node, ...]:
    b, (rate, step) = call.b, _rate_and_step(call)
    rate = b.div(rate, b.add(b.mul(step, call.attribute("decay_factor", 0.0)), 1.0))

    def update(x: Node, gradient: Node, squares: Node) -> tuple[Node, ...]:
        gradient = _regularised(call, x, gradient)
        squares = b.add(squares, b.mul(gradient, gradient))
        size = b.add(b.sqrt(squares), call.attribute("epsilon", 1e-6))
        return b.sub(x, b.div(b.mul(gradient, rate), size)), squares

    return _each(call, 1, update)


@operator("Adam", domain=TRAINING)
def adam(call: Call) -> tuple[Node, ...]:
    b, (rate, step) = call.b, _rate_and_step(call)
    alpha, beta, epsilon = call.attribute("alpha", 0.9), call.attribute("beta", 0.999), call.attribute("epsilon", 1e-6)
    one = call.number(1.0, rate)
    first, second = (b.sub(one, b.pow(call.number(factor, rate), step)) for factor in (alpha, beta))
    rate = b.where(b.gt(step, 0.0), b.div(b.mul(rate, b.sqrt(second)), first), rate)
    decay = 1 - call.attribute("norm_coefficient_post", 0.0)

    def update(x: Node, gradient: Node, mean: Node, squares: Node) -> tuple[Node, ...]:
        gradient = _regularised(call, x, gradient)
        mean = b.add(b.mul(mean, alpha), b.mul(gradient, 1 - alpha))
        squares = b.add(b.mul(squares, beta), b.mul(b.mul(gradient, gradient), 1 - beta))
        new = b.sub(x, b.div(b.mul(mean, rate), b.add(b.sqrt(squares), epsilon)))
        return (new if decay == 1 else b.mul(new, decay)), mean, squares

    return _each(call, 2, update)


@operator("Binarizer", domain=LEARNING)
def binarizer(call: Call) -> Node:
    x = call[0]
    return call.cast(call.b.gt(x, call.number(call.attribute("threshold", 0.0), x)), x.dtype)


@operator("ArrayFeatureExtractor", domain=LEARNING)
def array_feature_extractor(call: Call) -> Node:
    """The elements at these places of the last dimension."""
    x = call.require_rank(0, 1)
    places = call.cast(call.reshape(call[1], (call[1].tensor.numel,)), i64)
    x = call.reshape(x, (1, *x.shape)) if x.tensor.rank == 1 else x
    return call.b.index(x, places, axes=(x.tensor.rank - 1,))
