"""Steps of random graphs: each adds a few nodes to a maker and gives the last, or None where it does not apply."""

from __future__ import annotations

import math
from collections.abc import Callable

from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import boolean, compute_dtype, i32, i64

from tests.graph_maker import EPSILON, MAXIMUM_ELEMENTS, Fact, GraphMaker

Step = Callable[[GraphMaker], Node | None]
STEPS: dict[str, list[Step]] = {}


def step(family: str, weight: int = 1) -> Callable[[Step], Step]:
    def apply(function: Step) -> Step:
        STEPS.setdefault(family, []).extend([function] * weight)
        return function

    return apply


# name -> (shift that makes |x| + shift a safe operand, or None for x itself; bound of the result; how much it stretches errors)
UNARY: dict[str, tuple[float | None, Callable[[float], float], Callable[[float], float]]] = {
    "exp": (None, math.exp, math.exp),
    "exp2": (None, lambda b: 2**b, lambda b: 2**b),
    "expm1": (None, math.exp, math.exp),
    "tanh": (None, lambda b: 1.0, lambda b: 1.0),
    "sigmoid": (None, lambda b: 1.0, lambda b: 0.25),
    "erf": (None, lambda b: 1.0, lambda b: 1.2),
    "sin": (None, lambda b: 1.0, lambda b: 1.0),
    "cos": (None, lambda b: 1.0, lambda b: 1.0),
    "atan": (None, lambda b: 1.6, lambda b: 1.0),
    "asinh": (None, lambda b: b, lambda b: 1.0),
    "sqrt": (0.25, lambda b: math.sqrt(b) + 0.5, lambda b: 1.0),
    "rsqrt": (0.25, lambda b: 2.0, lambda b: 4.0),
    "log": (0.25, lambda b: math.log(b + 0.3) + 2, lambda b: 4.0),
    "log1p": (0.0, lambda b: b, lambda b: 1.0),
    "log2": (0.25, lambda b: 2 * math.log(b + 0.3) + 3, lambda b: 6.0),
    "reciprocal": (0.25, lambda b: 4.0, lambda b: 16.0),
}


@step("pointwise", 3)
def _unary(m: GraphMaker) -> Node | None:
    x = m.any(m.floats)
    if x is None:
        return None
    name = m.random.choice(list(UNARY))
    shift, bound, slope = UNARY[name]
    fact = m.facts[x]
    if fact.bound > 9:
        return None
    if shift is not None:
        magnitude = m.add("abs", x, fact=fact)
        x = m.add("add", magnitude, shift, fact=m.rounded(x.dtype, fact.bound + shift, fact.error)) if magnitude else None
        if x is None:
            return None
        fact = m.facts[x]
    return m.add(name, x, fact=m.rounded(x.dtype, bound(fact.bound), fact.error * slope(fact.bound), 4))


@step("pointwise")
def _exact_unary(m: GraphMaker) -> Node | None:
    x = m.any([d for d in m.dtypes if d is not boolean])
    if x is None:
        return None
    return m.add(m.random.choice(("neg", "abs", "copy")), x, fact=m.facts[x])


@step("pointwise", 4)
def _arithmetic(m: GraphMaker) -> Node | None:
    x = m.any([d for d in m.dtypes if d is not boolean])
    if x is None:
        return None
    y = m.partner(x)
    if m.random.random() < 0.5:
        x, y = y, x
    a, b = m.facts[x], m.facts[y]
    op = m.random.choice(("add", "sub", "mul", "maximum", "minimum"))
    if op == "mul":
        fact = m.rounded(x.dtype, a.bound * b.bound, a.error * b.bound + b.error * a.bound)
    elif op in ("add", "sub"):
        fact = m.rounded(x.dtype, a.bound + b.bound, a.error + b.error)
    else:
        fact = Fact(max(a.bound, b.bound), max(a.error, b.error), a.exact and b.exact)
    return m.add(op, x, y, fact=fact)


@step("pointwise")
def _division(m: GraphMaker) -> Node | None:
    x = m.any(m.floats)
    if x is None:
        return None
    y = m.partner(x)
    magnitude = m.add("abs", y, fact=m.facts[y])
    y = m.add("add", magnitude, 0.5, fact=m.rounded(x.dtype, m.facts[y].bound + 0.5, m.facts[y].error)) if magnitude else None
    if y is None:
        return None
    a, b = m.facts[x], m.facts[y]
    return m.add("div", x, y, fact=m.rounded(x.dtype, a.bound * 2, a.error * 2 + b.error * a.bound * 4))


@step("pointwise")
def _integer_arithmetic(m: GraphMaker) -> Node | None:
    x = m.any(m.integers)
    if x is None:
        return None
    ops = ("floor_div", "trunc_div", "remainder", "fmod", "bitwise_and", "bitwise_or", "bitwise_xor", "shift_left", "shift_right")
    return m.add(m.random.choice(ops), x, m.partner(x), fact=Fact(math.inf))


@step("pointwise")
def _jumps(m: GraphMaker) -> Node | None:
    x = m.pick(lambda n, f: f.exact, m.floats)
    if x is None:
        return None
    name = m.random.choice(("floor", "ceil", "round", "trunc", "sign", "isnan", "isinf", "isfinite"))
    return m.add(name, x, fact=Fact(m.facts[x].bound + 1))


@step("pointwise", 2)
def _compare(m: GraphMaker) -> Node | None:
    x = m.pick(lambda n, f: f.exact, m.dtypes)
    y = m.partner(x) if x is not None else None
    if x is None or y is None or not m.facts[y].exact or boolean not in m.dtypes:
        return None
    return m.add(m.random.choice(("eq", "ne", "lt", "le", "gt", "ge")), x, y, fact=Fact(1))


@step("pointwise", 2)
def _select(m: GraphMaker) -> Node | None:
    x = m.any()
    condition = m.any([boolean] if boolean in m.dtypes else [])
    if x is None or condition is None:
        return None
    y = m.partner(x)
    if not (m.broadcasts(condition.shape, x.shape) and m.broadcasts(condition.shape, y.shape)):
        return None
    a, b = m.facts[x], m.facts[y]
    fact = Fact(max(a.bound, b.bound), max(a.error, b.error), a.exact and b.exact)
    return m.add("where", condition, x, y, fact=fact)


@step("pointwise")
def _logic(m: GraphMaker) -> Node | None:
    x = m.any([boolean] if boolean in m.dtypes else [])
    if x is None:
        return None
    if m.random.random() < 0.3:
        return m.add("bitwise_not", x, fact=Fact(1))
    return m.add(m.random.choice(("bitwise_and", "bitwise_or", "bitwise_xor")), x, m.partner(x), fact=Fact(1))


# -- reductions ----------------------------------------------------------------------------------------------------------------


def _axes(m: GraphMaker, rank: int) -> tuple[int, ...]:
    if m.random.random() < 0.6:
        return (m.random.choice((rank - 1, rank - 1, m.random.randint(0, rank - 1))),)
    return tuple(sorted(m.random.sample(range(rank), m.random.randint(1, rank))))


@step("reduction", 3)
def _reduce(m: GraphMaker) -> Node | None:
    x = m.pick(lambda n, f: n.tensor.rank > 0, m.dtypes)
    if x is None:
        return None
    axes = _axes(m, x.tensor.rank)
    attributes = {"axes": axes, "keepdims": m.random.random() < 0.5}
    count = max(m.count(x.shape[a] for a in axes), 1)
    fact = m.facts[x]
    if x.dtype is boolean:
        return m.add(m.random.choice(("reduce_any", "reduce_all")), x, fact=Fact(1), **attributes)
    ops = ["reduce_sum", "reduce_sum", "reduce_max", "reduce_min"] + ["mean", "variance", "logsumexp"] * x.dtype.is_float
    op = m.random.choice(ops)
    if op in ("reduce_max", "reduce_min"):
        return m.add(op, x, fact=fact, **attributes)
    if op == "reduce_sum":
        return m.add(op, x, fact=m.rounded(x.dtype, fact.bound * count, fact.error * count, count), **attributes)
    if op == "mean":
        return m.add(op, x, fact=m.rounded(x.dtype, fact.bound, fact.error, count), **attributes)
    if op == "variance":
        bound = 4 * fact.bound**2
        return m.add(op, x, fact=m.rounded(x.dtype, bound, 8 * fact.bound * fact.error, count), **attributes)
    return m.add(op, x, fact=m.rounded(x.dtype, fact.bound + math.log(count), fact.error, count), **attributes)


@step("reduction")
def _position(m: GraphMaker) -> Node | None:
    x = m.pick(lambda n, f: f.exact and n.tensor.rank > 0, [d for d in m.dtypes if d is not boolean])
    if x is None or i64 not in m.dtypes:
        return None
    axis = m.random.randint(0, x.tensor.rank - 1)
    if x.shape[axis] == 0:
        return None
    op = m.random.choice(("argmax", "argmin"))
    return m.add(op, x, fact=Fact(m.number(x.shape[axis])), axes=(axis,), keepdims=m.random.random() < 0.5)


# -- views ---------------------------------------------------------------------------------------------------------------------


@step("view", 2)
def _reshape(m: GraphMaker) -> Node | None:
    x = m.any()
    if x is None:
        return None
    shape = list(x.shape)
    draw = m.random.random()
    if draw < 0.35 and len(shape) > 1:  # merge two neighbours
        k = m.random.randint(0, len(shape) - 2)
        shape[k : k + 2] = [shape[k] * shape[k + 1]]
    elif draw < 0.7 and shape:  # split one
        k = m.random.randint(0, len(shape) - 1)
        factors = [f for f in (2, 3, 4, 8) if isinstance(shape[k], int) and shape[k] and shape[k] % f == 0]
        if not factors:
            return None
        factor = m.random.choice(factors)
        shape[k : k + 1] = m.random.choice(([factor, shape[k] // factor], [shape[k] // factor, factor]))
    elif draw < 0.85:
        shape.insert(m.random.randint(0, len(shape)), 1)
    else:  # regroup everything
        total = x.tensor.numel
        shape = [total] if not isinstance(total, int) or total % 2 or not total else [total // 2, 2]
    return m.add("reshape", x, fact=m.facts[x], shape=tuple(shape)) if len(shape) < 6 else None


@step("view", 2)
def _permute(m: GraphMaker) -> Node | None:
    x = m.pick(lambda n, f: n.tensor.rank > 1, m.dtypes)
    if x is None:
        return None
    return m.add("permute", x, fact=m.facts[x], dims=tuple(m.random.sample(range(x.tensor.rank), x.tensor.rank)))


@step("view")
def _expand(m: GraphMaker) -> Node | None:
    x = m.any()
    if x is None or x.tensor.rank > 3:
        return None
    shape = tuple(m.size() if d == 1 and m.random.random() < 0.7 else d for d in x.shape)
    if m.random.random() < 0.4:
        shape = (m.size(), *shape)
    return m.add("expand", x, fact=m.facts[x], shape=shape) if m.count(shape) <= MAXIMUM_ELEMENTS else None


@step("view", 2)
def _slice(m: GraphMaker) -> Node | None:
    x = m.pick(lambda n, f: n.tensor.rank > 0, m.dtypes)
    if x is None:
        return None
    starts, limits, steps = [0] * x.tensor.rank, list(x.shape), [1] * x.tensor.rank
    for d, size in enumerate(x.shape):
        if isinstance(size, int) and m.random.random() < 0.6:
            starts[d] = m.random.randint(0, size)
            limits[d] = m.random.randint(starts[d], size)
            if limits[d] == starts[d] and not m.empty:
                starts[d], limits[d] = 0, size
            steps[d] = m.random.choice((1, 1, 2, 3))
    return m.add("slice", x, fact=m.facts[x], starts=tuple(starts), limits=tuple(limits), steps=tuple(steps))


@step("view")
def _flip(m: GraphMaker) -> Node | None:
    x = m.pick(lambda n, f: n.tensor.rank > 0, m.dtypes)
    return None if x is None else m.add("flip", x, fact=m.facts[x], axes=_axes(m, x.tensor.rank))


@step("view")
def _pad(m: GraphMaker) -> Node | None:
    x = m.pick(lambda n, f: n.tensor.rank > 0, m.dtypes)
    if x is None:
        return None
    low, high = (tuple(m.random.choice((0, 0, 1, 2)) for _ in x.shape) for _ in range(2))
    value = m.random.choice((0, 1)) if not x.dtype.is_float else m.random.choice((0.0, 1.5, -1.0))
    fact = m.facts[x]
    return m.add("pad", x, fact=Fact(max(fact.bound, 2), fact.error, fact.exact), low=low, high=high, value=value)


@step("view")
def _concat(m: GraphMaker) -> Node | None:
    x = m.pick(lambda n, f: n.tensor.rank > 0, m.dtypes)
    if x is None:
        return None
    axis = m.random.randint(0, x.tensor.rank - 1)

    def fits(node: Node) -> bool:
        shapes = zip(node.shape, x.shape)
        return node.tensor.rank == x.tensor.rank and all(d == axis or a == b for d, (a, b) in enumerate(shapes))

    fitting = [n for n in m.facts if n.dtype is x.dtype and fits(n)]
    parts = [x] + [m.random.choice(fitting) for _ in range(m.random.randint(1, 2))]
    if m.random.random() < 0.3 and len(m.arrays) < 8:
        parts[-1] = m.input(x.dtype, (*x.shape[:axis], m.size(), *x.shape[axis + 1 :]))
    facts = [m.facts[p] for p in parts]
    fact = Fact(max(f.bound for f in facts), max(f.error for f in facts), all(f.exact for f in facts))
    m.random.shuffle(parts)
    return m.add("concat", *parts, fact=fact, axis=axis)


@step("view")
def _slice_update(m: GraphMaker) -> Node | None:
    x = m.pick(lambda n, f: n.tensor.rank > 0 and 0 not in n.shape, m.dtypes)
    if x is None or len(m.arrays) >= 8:
        return None
    starts, steps, shape = [0] * x.tensor.rank, [1] * x.tensor.rank, list(x.shape)
    for d, size in enumerate(x.shape):
        if isinstance(size, int) and m.random.random() < 0.7:
            shape[d] = m.random.randint(1, size)
            steps[d] = m.random.choice((1, 1, 2)) if (shape[d] - 1) * 2 < size else 1
            starts[d] = m.random.randint(0, size - (shape[d] - 1) * steps[d] - 1)
    y = m.pick(lambda n, f: True, [x.dtype], tuple(shape))
    if y is None:
        return None
    a, b = m.facts[x], m.facts[y]
    fact = Fact(max(a.bound, b.bound), max(a.error, b.error), a.exact and b.exact)
    return m.add("slice_update", x, y, fact=fact, starts=tuple(starts), steps=tuple(steps))


@step("view")
def _window(m: GraphMaker) -> Node | None:
    x = m.pick(lambda n, f: 0 < n.tensor.rank < 4 and isinstance(n.shape[-1], int) and n.shape[-1] > 1, m.dtypes)
    if x is None:
        return None
    size = m.random.randint(1, min(x.shape[-1], 3))
    dilation = m.random.choice((1, 2)) if (size - 1) * 2 < x.shape[-1] else 1
    axis = x.tensor.rank - 1
    return m.add(
        "window", x, fact=m.facts[x], axes=(axis,), sizes=(size,), strides=(m.random.choice((1, 2)),), dilations=(dilation,)
    )


# -- indexing, casts -----------------------------------------------------------------------------------------------------------


@step("indexing", 2)
def _index(m: GraphMaker) -> Node | None:
    x = m.pick(lambda n, f: n.tensor.rank > 0, m.dtypes)
    dtypes = [d for d in (i64, i32) if d in m.dtypes]
    if x is None or not dtypes or len(m.arrays) >= 8:
        return None
    first = m.random.randint(0, x.tensor.rank - 1)
    axes = tuple(range(first, min(first + m.random.choice((1, 1, 2)), x.tensor.rank)))
    if any(m.number(x.shape[a]) == 0 for a in axes):
        return None
    shape = m.shape(m.random.randint(0, 2))
    indices = [m.input(m.random.choice(dtypes), shape, 0, m.number(x.shape[a]) - 1) for a in axes]
    return m.add("index", x, *indices, fact=m.facts[x], axes=axes)


@step("indexing")
def _gather(m: GraphMaker) -> Node | None:
    x = m.pick(lambda n, f: n.tensor.rank > 0 and all(m.number(d) > 0 for d in n.shape), m.dtypes)
    if x is None or i64 not in m.dtypes or len(m.arrays) >= 8:
        return None
    axis = m.random.randint(0, x.tensor.rank - 1)
    shape = tuple(m.random.randint(1, d) if isinstance(d, int) and m.random.random() < 0.5 else d for d in x.shape)
    indices = m.input(i64, (*shape[:axis], m.size(), *shape[axis + 1 :]), 0, m.number(x.shape[axis]) - 1)
    return m.add("gather", x, indices, fact=m.facts[x], axis=axis)


@step("indexing")
def _iota(m: GraphMaker) -> Node | None:
    if i64 not in m.dtypes:
        return None
    size = m.random.choice(m.sizes)
    node = m.builder.iota(size=size)
    m.facts[node] = Fact(m.number(size))
    return node


@step("cast", 2)
def _cast(m: GraphMaker) -> Node | None:
    x = m.any()
    if x is None:
        return None
    target = m.random.choice(m.dtypes)
    fact = m.facts[x]
    if target is x.dtype:
        return None
    if x.dtype.is_float and not target.is_float:
        if not fact.exact or fact.bound > 100 or (target is not boolean and (m.special or x.dtype is boolean)):
            return None
        if not target.is_signed and target is not boolean:  # a negative float has no unsigned value
            x = m.add("abs", x, fact=fact)
            if x is None:
                return None
        return m.add("cast", x, fact=Fact(fact.bound + 1), dtype=target.name)
    if target.is_float:
        bound = 1.0 if x.dtype is boolean else fact.bound
        if not bound <= 1000:
            return None
        return m.add("cast", x, fact=Fact(bound, fact.error + EPSILON[target] * bound, fact.exact), dtype=target.name)
    return m.add("cast", x, fact=Fact(math.inf), dtype=target.name)


# -- composites ----------------------------------------------------------------------------------------------------------------


@step("composite", 2)
def _activation(m: GraphMaker) -> Node | None:
    x = m.any(m.floats)
    if x is None:
        return None
    fact = m.facts[x]
    attributes = {
        "relu": {}, "clamp": {"low": -1.0, "high": 0.75}, "gelu": {"approximate": m.random.choice(("none", "tanh"))}, "silu": {},
        "hardsigmoid": {}, "hardswish": {}, "leaky_relu": {"slope": 0.1}, "elu": {"alpha": 1.5}, "softplus": {}, "mish": {},
    }  # fmt: skip
    name = m.random.choice(list(attributes))
    if name in ("relu", "clamp"):
        return m.add(name, x, fact=fact, **attributes[name])
    return m.add(name, x, fact=m.rounded(x.dtype, fact.bound + 2, fact.error * 2, 8), **attributes[name])


@step("composite", 2)
def _normalize(m: GraphMaker) -> Node | None:
    x = m.pick(lambda n, f: n.tensor.rank > 0 and f.bound < 50, m.floats)
    if x is None:
        return None
    fact, epsilon = m.facts[x], 0.01
    count = max(m.number(x.shape[-1]), 1)
    name = m.random.choice(("softmax", "log_softmax", "layer_norm", "rms_norm"))
    if name == "softmax":
        return m.add(
            name,
            x,
            fact=m.rounded(x.dtype, 1.0, 2 * fact.error + EPSILON[compute_dtype(x.dtype)] * fact.bound, 8),
            axis=_axes(m, x.tensor.rank)[0],
        )
    if name == "log_softmax":
        bound = 2 * fact.bound + math.log(m.count(x.shape) + 1)
        return m.add(name, x, fact=m.rounded(x.dtype, bound, 2 * fact.error, 8), axis=_axes(m, x.tensor.rank)[0])
    bound = math.sqrt(count) * 3
    error = (fact.error + EPSILON[compute_dtype(x.dtype)] * count * fact.bound) * 2 / math.sqrt(epsilon) * (1 + bound)
    weights = [
        m.input(x.dtype, (x.shape[-1],))
        for _ in range(m.random.randint(0, 2 if name == "layer_norm" else 1))
        if len(m.arrays) < 8
    ]
    bound, error = bound * 3 + 3, error * 3
    return m.add(name, x, *weights, fact=m.rounded(x.dtype, bound, error, 8), rank=1, epsilon=epsilon)


@step("composite")
def _channels(m: GraphMaker) -> Node | None:
    x = m.pick(lambda n, f: n.tensor.rank in (3, 4) and f.bound < 20, m.floats)
    if x is None:
        return None
    fact, spatial = m.facts[x], x.tensor.rank - 2
    if m.random.random() < 0.4 and len(m.arrays) < 5:
        parameters = [m.input(x.dtype, (x.shape[1],), -2, 2) for _ in range(3)]
        spread = m.input(x.dtype, (x.shape[1],), 0.25, 2)
        if m.special:
            return None
        bound = (fact.bound + 2) * 2 * 2 + 2
        return m.add("batch_norm", x, *parameters, spread, fact=m.rounded(x.dtype, bound, fact.error * 4, 16), epsilon=1e-3)
    if any(not isinstance(d, int) or d < 2 for d in x.shape[2:]):
        return None
    pool = {"kernel": (2,) * spatial, "strides": (m.random.choice((1, 2)),) * spatial, "dilations": (1,) * spatial}
    pool["padding"] = (m.random.choice((0, 1)),) * spatial
    if m.random.random() < 0.5:
        return m.add("max_pool", x, fact=fact, **pool)
    counting = m.random.random() < 0.5
    return m.add(
        "average_pool", x, fact=m.rounded(x.dtype, fact.bound, fact.error, 8), count_padding=counting, divisor=None, **pool
    )


# -- contractions --------------------------------------------------------------------------------------------------------------


@step("contraction", 2)
def _matmul(m: GraphMaker) -> Node | None:
    x = m.pick(lambda n, f: n.tensor.rank > 1 and f.bound < 20, m.floats)
    if x is None or len(m.arrays) >= 8:
        return None
    inner = x.shape[-1]
    count = max(m.number(inner), 1)
    linear = m.random.random() < 0.5 and isinstance(inner, int)
    if linear:
        width = m.random.choice((1, 3, 4, 8))
        operands = [m.input(x.dtype, (width, inner))] + ([m.input(x.dtype, (width,))] if m.random.random() < 0.5 else [])
    else:
        y = m.pick(lambda n, f: f.bound < 20, [x.dtype], (inner, m.random.choice(m.sizes)))
        operands = [y if y is not None else m.input(x.dtype, (inner, 3))]
    a, b = m.facts[x], m.facts[operands[0]]
    if m.count(x.shape[:-1]) * count * m.number(operands[0].shape[0 if linear else 1]) > MAXIMUM_ELEMENTS * 10:
        return None
    bound = count * a.bound * b.bound + 3
    error = count * (a.error * b.bound + b.error * a.bound)
    return m.add("linear" if linear else "matmul", x, *operands, fact=m.rounded(x.dtype, bound, error, count))
