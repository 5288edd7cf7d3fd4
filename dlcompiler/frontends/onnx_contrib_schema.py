"""What operators of `com.microsoft` take, which the onnx package has no schemas for: checked before an entry relies on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from onnx import AttributeProto, NodeProto

from dlcompiler.ir.errors import InvalidModelError
from dlcompiler.ir.graph import Node
from dlcompiler.ir.types import TensorType

FLOAT, INT, INTS = AttributeProto.FLOAT, AttributeProto.INT, AttributeProto.INTS
# required, and at least 1: what sizes are divided by
COUNT = -1


class Formal(NamedTuple):
    """How many inputs there must be at the least and may be at the most, the type of each attribute, and what the first inputs
    are: `f` for floats, `i` for integers, `*` for either, then the ranks that they may have, none for all.
    """

    least: int
    most: int
    attributes: Mapping[str, int]
    inputs: tuple[str, ...] = ()


_HEADS = {"num_heads": COUNT, "scale": FLOAT, "unidirectional": INT, "mask_filter_value": FLOAT}
_PRODUCT = {"alpha": FLOAT, "transA": INT, "transB": INT, "transBatchA": INT, "transBatchB": INT}
_NORM = {"epsilon": FLOAT, "axis": INT, "stash_type": INT}

FORMALS: Mapping[str, Formal] = {
    "FastGelu": Formal(1, 2, {}, ("f", "f")),
    "BiasGelu": Formal(2, 2, {}, ("f", "f")),
    "Gelu": Formal(1, 1, {}, ("f",)),
    "QuickGelu": Formal(1, 1, {"alpha": FLOAT}, ("f",)),
    "FusedMatMul": Formal(2, 2, _PRODUCT, ("f", "f")),
    "TransposeMatMul": Formal(2, 2, _PRODUCT, ("f", "f")),
    "SimplifiedLayerNormalization": Formal(2, 2, _NORM, ("f", "f")),
    "SkipLayerNormalization": Formal(3, 5, {"epsilon": FLOAT}, ("f23", "f23", "f1", "f1", "f1")),
    "SkipSimplifiedLayerNormalization": Formal(3, 4, {"epsilon": FLOAT}, ("f23", "f23", "f1", "f1")),
    "EmbedLayerNormalization": Formal(
        7, 9, {"epsilon": FLOAT, "mask_index_type": INT}, ("i2", "i2", "f2", "f2", "f2", "f1", "f1", "i2", "i2")
    ),
    "RotaryEmbedding": Formal(
        4, 4,
        {"interleaved": INT, "is_packed_batching": INT, "num_heads": INT, "rotary_embedding_dim": INT, "scale": FLOAT},
        ("f34", "i12", "f2", "f2"),
    ),
    "MatMulNBits": Formal(
        3, 6,
        {"K": COUNT, "N": COUNT, "bits": INT, "block_size": COUNT, "accuracy_level": INT, "weight_prepacked": INT},
        ("f", "i", "f", "*", "i", "f"),
    ),
    "Attention": Formal(
        2, 7,
        {**_HEADS, "do_rotary": INT, "past_present_share_buffer": INT, "qkv_hidden_sizes": INTS, "rotary_embedding_dim": INT},
        ("f3", "f2", "f1", "*1234", "f5", "f4"),
    ),
    "MultiHeadAttention": Formal(1, 10, _HEADS, ("f35", "f345", "f34", "f1", "*123", "f4", "f4", "f4")),
    "GroupQueryAttention": Formal(
        7, 14,
        {
            "num_heads": COUNT, "kv_num_heads": COUNT, "do_rotary": INT, "rotary_interleaved": INT, "scale": FLOAT,
            "softcap": FLOAT, "smooth_softmax": INT, "local_window_size": INT, "k_quant_type": AttributeProto.STRING,
            "v_quant_type": AttributeProto.STRING, "kv_cache_bit_width": INT, "qk_output": INT,
        },
        ("f3", "f3", "f3", "f4", "f4", "i12", "i01", "f2", "f2"),
    ),
}  # fmt: skip


def check_contrib(node: NodeProto, inputs: Sequence[Any], location: str) -> None:
    """Numbers of inputs and their ranks, and attributes, of an operator that has no schema. Raises InvalidModelError."""
    formal = FORMALS.get(node.op_type)
    if formal is None:
        return
    if not formal.least <= len(node.input) <= formal.most:
        many = formal.least if formal.least == formal.most else f"{formal.least} to {formal.most}"
        raise InvalidModelError(f"{node.op_type} takes {many} inputs, not {len(node.input)}", location=location)
    given = {attribute.name: attribute for attribute in node.attribute}
    for name, code in formal.attributes.items():
        attribute = given.get(name)
        type = INT if code == COUNT else code
        if attribute is None:
            if code == COUNT:
                raise InvalidModelError(f"{node.op_type}: the required attribute {name} is missing", location=location)
            continue
        if attribute.type != type and not attribute.ref_attr_name:
            kind = AttributeProto.AttributeType.Name(type).lower()
            raise InvalidModelError(f"{node.op_type}: attribute {name} must be {kind}", location=location)
        if code == COUNT and not attribute.ref_attr_name and attribute.i < 1:
            raise InvalidModelError(f"{node.op_type}: attribute {name} is {attribute.i}, not 1 or more", location=location)
    for k, (value, wanted) in enumerate(zip(inputs, formal.inputs)):
        if isinstance(value, Node):
            _check_input(f"{node.op_type}: input {k}", value, wanted, location)


def _check_input(what: str, value: Node, wanted: str, location: str) -> None:
    kind, ranks = wanted[0], wanted[1:]
    type = value.type
    if not isinstance(type, TensorType):
        raise InvalidModelError(f"{what} is {type}, not a tensor of numbers", location=location)
    fits = {"f": type.dtype.is_float and not type.dtype.is_narrow, "i": type.dtype.is_integer, "*": True}[kind]
    if not fits:
        raise InvalidModelError(f"{what} is of {type.dtype}, not of {'floats' if kind == 'f' else 'integers'}", location=location)
    if ranks and str(type.rank) not in ranks:
        raise InvalidModelError(f"{what} has rank {type.rank}, not {' or '.join(ranks)}", location=location)
