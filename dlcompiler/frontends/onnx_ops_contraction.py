"""Sums of products: matrix products, convolutions, einsum."""

from __future__ import annotations

from collections.abc import Sequence

from dlcompiler.frontends.onnx_ops_view import crop_or_pad
from dlcompiler.frontends.onnx_registry import Call, operator
from dlcompiler.frontends.onnx_windows import windows
from dlcompiler.ir.expression import Dim, product
from dlcompiler.ir.graph import Node


def matrix_product(call: Call, a: Node, b: Node) -> Node:
    """As `numpy.matmul`: a vector counts as a row or a column, and that dimension leaves the result."""
    if a.tensor.rank == 0 or b.tensor.rank == 0:
        call.invalid(f"{a.type} and {b.type} are no matrices")
    row, column = a.tensor.rank == 1, b.tensor.rank == 1
    left = call.reshape(a, (1, *a.shape)) if row else a
    right = call.reshape(b, (*b.shape, 1)) if column else b
    result = call.b.matmul(left, right)
    shape = list(result.shape)
    if column:
        del shape[-1]
    if row:
        del shape[-1 if column else -2]
    return call.reshape(result, shape)


@operator("MatMul")
def matmul(call: Call) -> Node:
    return matrix_product(call, call[0], call[1])


@operator("Gemm")
def gemm(call: Call) -> Node:
    """alpha * a @ b + beta * c. A transposed weight with a bias vector is `linear`."""
    a, b, c = call.require_rank(0, 2, 2), call.require_rank(1, 2, 2), call.get(2)
    alpha, beta = call.attribute("alpha", 1.0), call.attribute("beta", 1.0)
    if a.dtype.is_integer and not (alpha.is_integer() and beta.is_integer()):
        call.unsupported("fractional alpha or beta of integers")
    if call.flag("transA"):
        a = call.permute(a, (1, 0))
    transposed = call.flag("transB")
    bias = beta == 1 and c is not None and c.shape == (b.shape[0 if transposed else 1],)
    if transposed and alpha == 1 and a.dtype.is_float and (c is None or beta == 0 or bias):
        return call.b.linear(a, b, c) if bias else call.b.linear(a, b)
    result = call.b.matmul(a, call.permute(b, (1, 0)) if transposed else b)
    if alpha != 1:
        result = call.b.mul(result, call.number(alpha, result))
    if c is None or beta == 0:
        return result
    return call.b.add(result, c if beta == 1 else call.b.mul(c, call.number(beta, c)))


# -- convolution -------------------------------------------------------------------------------------------------------------


def convolve(call: Call, x: Node, weight: Node, bias: Node | None) -> Node:
    """Padding that differs on the two sides, or is symbolic or negative, becomes a pad of its own."""
    spatial = x.tensor.rank - 2
    if spatial < 1 or weight.tensor.rank != x.tensor.rank:
        call.misfit(f"weight {weight.type} does not fit {x.type}")
    kernel = weight.shape[2:]
    declared = call.attribute("kernel_shape")
    if declared is not None and tuple(declared) != tuple(kernel):
        call.misfit(f"kernel_shape {tuple(declared)} is not that of weight {weight.type}")
    at = windows(call, x.shape[2:], kernel)
    groups = call.attribute("group", 1)
    if groups < 1 or (isinstance(weight.shape[0], int) and weight.shape[0] % groups):
        call.misfit(f"{groups} groups do not divide {weight.shape[0]} channels")
    padding = at.low
    if at.low != at.high or any(not isinstance(p, int) or p < 0 for p in at.low):
        x = crop_or_pad(call, x, (0, 0, *at.low), (0, 0, *at.high))
        padding = (0,) * spatial
    operands = (x, weight) if bias is None else (x, weight, bias)
    return call.b.convolution(
        *operands,
        strides=at.strides,
        padding=padding,
        dilations=at.dilations,
        output_padding=(0,) * spatial,
        groups=groups,
        transposed=False,
    )


@operator("Conv")
def conv(call: Call) -> Node:
    return convolve(call, call.require_rank(0, 3), call[1], call.get(2))


@operator("ConvTranspose")
def conv_transpose(call: Call) -> Node:
    """Padding crops the result. Where it is not the same on both sides, the whole result is made and then cropped."""
    x, weight, bias = call.require_rank(0, 3), call[1], call.get(2)
    spatial = x.tensor.rank - 2
    if weight.tensor.rank != x.tensor.rank:
        call.misfit(f"weight {weight.type} does not fit {x.type}")
    kernel, groups = weight.shape[2:], call.attribute("group", 1)
    strides, dilations = call.integers("strides", spatial, 1), call.integers("dilations", spatial, 1)
    extra = call.integers("output_padding", spatial, 0)
    if min((*strides, *dilations, groups)) < 1 or min(extra) < 0:
        call.invalid(f"strides {strides}, dilations {dilations} and {groups} groups must be positive")
    whole: list[Dim] = [(s - 1) * st + d * (k - 1) + 1 for s, st, d, k in zip(x.shape[2:], strides, dilations, kernel)]
    low, high = _transposed_pads(call, x, whole, strides, extra)
    fits = all(e < max(s, d) for e, s, d in zip(extra, strides, dilations))
    direct = low == high and fits and all(isinstance(p, int) and p >= 0 for p in low)
    settings = {"strides": strides, "dilations": dilations, "groups": groups, "transposed": True}
    if direct:
        operands = (x, weight) if bias is None else (x, weight, bias)
        return call.b.convolution(*operands, padding=tuple(low), output_padding=extra, **settings)
    zeros = (0,) * spatial
    result = call.b.convolution(x, weight, padding=zeros, output_padding=zeros, **settings)
    result = crop_or_pad(call, result, (0, 0, *(p * -1 for p in low)), (0, 0, *(e - p for e, p in zip(extra, high))))
    return result if bias is None else call.b.add(result, call.along(bias, 1, x.tensor.rank))


def _transposed_pads(call: Call, x: Node, whole: list[Dim], strides, extra) -> tuple[list[Dim], list[Dim]]:
    """What is cropped in front and behind, from `pads`, `auto_pad` or the wanted `output_shape`."""
    spatial = len(whole)
    mode = call.attribute("auto_pad", "NOTSET")
    shape = call.attribute("output_shape")
    if shape is None and mode in ("NOTSET", ""):
        pads = call.integers("pads", 2 * spatial, 0)
        return list(pads[:spatial]), list(pads[spatial:])
    if mode == "VALID":
        return [0] * spatial, [0] * spatial
    if mode not in ("NOTSET", "", "SAME_UPPER", "SAME_LOWER"):
        call.invalid(f"auto_pad is {mode!r}, not NOTSET, SAME_UPPER, SAME_LOWER or VALID")
    wanted: list[Dim] = [s * st for s, st in zip(x.shape[2:], strides)]
    if shape is not None:
        if len(shape) not in (spatial, spatial + 2):
            call.invalid(f"output_shape {shape} does not fit {spatial} spatial dimensions")
        wanted = list(shape[-spatial:])
    low, high = [], []
    for full, e, want in zip(whole, extra, wanted):
        total = full + e - want
        half = total // 2
        low.append(half if mode == "SAME_UPPER" else total - half)
        high.append(total - half if mode == "SAME_UPPER" else half)
    return low, high


# -- integer products --------------------------------------------------------------------------------------------------------


def sum_type(*factors: Node) -> str:
    """The type in which products of quantised numbers are summed: i32 of bytes, as ONNX asks; else f64, which is exact too."""
    return "i32" if all(x.dtype.is_integer and x.dtype.bits == 8 for x in factors) else "f64"


def shifted(call: Call, x: Node, zero: Node | None, wide: str, axis: int | None = None) -> Node:
    """`x` minus its zero point, in the wide type."""
    result = call.b.cast(x, dtype=wide)
    if zero is None:
        return result
    zero = call.b.cast(zero, dtype=wide)
    if zero.tensor.rank == 1 and zero.shape[0] != 1:
        zero = call.along(zero, (axis if axis is not None else -1) % x.tensor.rank, x.tensor.rank)
    elif zero.tensor.rank <= 1:
        zero = call.reshape(zero, ())
    return call.b.sub(result, zero)


def product_of_integers(call: Call, a: tuple[Node, Node | None], b: tuple[Node, Node | None]) -> Node:
    """The matrix product of two operands with their zero points, summed exactly."""
    wide = sum_type(a[0], b[0])
    left = shifted(call, *a, wide, axis=-2 if a[0].tensor.rank > 1 else 0)
    return matrix_product(call, left, shifted(call, *b, wide, axis=-1))


def convolution_of_integers(call: Call, x: tuple[Node, Node | None], weight: tuple[Node, Node | None], bias: Node | None) -> Node:
    """The convolution of two operands with their zero points, summed exactly."""
    wide = sum_type(x[0], weight[0])
    bias = None if bias is None else call.b.cast(bias, dtype=wide)
    return convolve(call, shifted(call, *x, wide), shifted(call, *weight, wide, axis=0), bias)


@operator("MatMulInteger")
def matmul_integer(call: Call) -> Node:
    return call.b.cast(product_of_integers(call, (call[0], call.get(2)), (call[1], call.get(3))), dtype="i32")


@operator("ConvInteger")
def conv_integer(call: Call) -> Node:
    total = convolution_of_integers(call, (call.require_rank(0, 3), call.get(2)), (call[1], call.get(3)), None)
    return call.b.cast(total, dtype="i32")


# -- einsum ------------------------------------------------------------------------------------------------------------------


@operator("Einsum")
def einsum(call: Call) -> Node:
    """Operands are multiplied pair by pair, each pair as one batched matrix product."""
    terms, output = _parse(call)
    operands = [_diagonal(call, node, term) for node, term in zip(call.all, terms)]
    node, letters = operands[0]
    for k in range(1, len(operands)):
        later = set(output).union(*(term for _, term in operands[k + 1 :]))
        node, letters = _multiply(call, (node, letters), operands[k], later)
    node, letters = _sum_out(call, node, letters, set(output))
    return call.permute(node, (letters.index(c) for c in output))


def _parse(call: Call) -> tuple[list[str], str]:
    """Letters of each operand and of the output; each dimension of an ellipsis gets a digit of its own, counted from behind."""
    equation = call.attribute("equation", "").replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if len(terms) != len(call.inputs):
        call.invalid(f"equation {equation!r} has {len(terms)} operands, the node {len(call.inputs)}")
    longest, parsed = "", []
    for term, node in zip(terms, call.all):
        front, dots, behind = term.partition("...")
        letters = front + behind
        spare = node.tensor.rank - len(letters)
        if not all(c.isalpha() and c.isascii() for c in letters) or spare < 0 or (spare and not dots) or spare > 10:
            call.invalid(f"equation {equation!r} does not fit operand {node.type}")
        hidden = "9876543210"[10 - spare :]
        longest = max(longest, hidden, key=len)
        parsed.append(front + hidden + behind)
    if arrow:
        output = right.replace("...", longest)
    else:
        joined = "".join(parsed)
        output = longest + "".join(c for c in sorted(set(joined)) if joined.count(c) == 1 and c.isalpha())
    if len(set(output)) != len(output) or not set(output) <= set("".join(parsed)):
        call.invalid(f"equation {equation!r} has a wrong output")
    return parsed, output


def _diagonal(call: Call, node: Node, letters: str) -> tuple[Node, str]:
    """A letter that occurs twice in one operand reads the diagonal: `ii -> i`."""
    while len(set(letters)) != len(letters):
        letter = next(c for c in letters if letters.count(c) > 1)
        first = letters.index(letter)
        second = letters.index(letter, first + 1)
        if node.shape[first] != node.shape[second]:
            call.misfit(f"dimensions {first} and {second} of {node.type} differ")
        rest = [d for d in range(len(letters)) if d not in (first, second)]
        place = call.b.iota(size=node.shape[first])
        node = call.b.index(call.permute(node, (first, second, *rest)), place, place, axes=(0, 1))
        letters = letter + "".join(letters[d] for d in rest)
    return node, letters


def _sum_out(call: Call, node: Node, letters: str, needed: set[str]) -> tuple[Node, str]:
    axes = tuple(d for d, c in enumerate(letters) if c not in needed)
    if not axes:
        return node, letters
    return call.b.reduce_sum(node, axes=axes, keepdims=False), "".join(c for c in letters if c in needed)


def _multiply(call: Call, left: tuple[Node, str], right: tuple[Node, str], later: set[str]) -> tuple[Node, str]:
    """One pair: shared letters that nobody needs later are summed over."""
    (a, a_letters), (b, b_letters) = left, right
    a, a_letters = _sum_out(call, a, a_letters, later | set(b_letters))
    b, b_letters = _sum_out(call, b, b_letters, later | set(a_letters))
    shared = [c for c in a_letters if c in b_letters]
    sizes = {**dict(zip(b_letters, b.shape)), **dict(zip(a_letters, a.shape))}
    for c in shared:  # broadcast
        if sizes[c] == 1:
            sizes[c] = b.shape[b_letters.index(c)]
    a = call.expand(a, (sizes[c] for c in a_letters))
    b = call.expand(b, (sizes[c] for c in b_letters))
    batch = "".join(c for c in shared if c in later)
    summed = "".join(c for c in shared if c not in later)
    a_own = "".join(c for c in a_letters if c not in shared)
    b_own = "".join(c for c in b_letters if c not in shared)

    def arranged(node: Node, letters: str, groups: Sequence[str]) -> Node:
        node = call.permute(node, (letters.index(c) for c in "".join(groups)))
        return call.reshape(node, (product(sizes[c] for c in group) for group in groups))

    result = call.b.matmul(arranged(a, a_letters, (batch, a_own, summed)), arranged(b, b_letters, (batch, summed, b_own)))
    letters = batch + a_own + b_own
    return call.reshape(result, (sizes[c] for c in letters)), letters
