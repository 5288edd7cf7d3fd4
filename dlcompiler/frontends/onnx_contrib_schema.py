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
    are: `f` for floats, `i` for integers, `q` for integers of any width, `b` for bools, `*` for any, then the ranks that they may
    have, none for all.
    """

    least: int
    most: int
    attributes: Mapping[str, int]
    inputs: tuple[str, ...] = ()


_HEADS = {"num_heads": COUNT, "scale": FLOAT, "unidirectional": INT, "mask_filter_value": FLOAT}
_PRODUCT = {"alpha": FLOAT, "transA": INT, "transB": INT, "transBatchA": INT, "transBatchB": INT}
_NORM = {"epsilon": FLOAT, "axis": INT, "stash_type": INT}

STRING, FLOATS, STRINGS = AttributeProto.STRING, AttributeProto.FLOATS, AttributeProto.STRINGS
MANY = 2**31 - 1
_WINDOW = {"auto_pad": STRING, "dilations": INTS, "kernel_shape": INTS, "pads": INTS, "strides": INTS}
_CONV = {**_WINDOW, "group": INT, "activation": STRING, "activation_params": FLOATS}
_ACTIVATION = {"activation": STRING, "activation_alpha": FLOAT, "activation_beta": FLOAT, "activation_gamma": FLOAT}
_GEMM = {"alpha": FLOAT, "beta": FLOAT, "transA": INT, "transB": INT}
_GROUPS = {"channels_last": INT, "activation": INT, "groups": COUNT, "epsilon": FLOAT}
_POOL = {**_WINDOW, "ceil_mode": INT, "count_include_pad": INT, "channels_last": INT}
_UNARY = ("q", "f", "q", "f", "q")
_LSTM = {
    "activation_alpha": FLOATS,
    "activation_beta": FLOATS,
    "activations": STRINGS,
    "clip": FLOAT,
    "direction": STRING,
    "hidden_size": INT,
    "input_forget": INT,
}

# what ONNX Runtime's optimisers and quantisers put in the place of several operators
_MADE: Mapping[str, Formal] = {
    "FusedConv": Formal(2, 4, _CONV, ("f", "f", "f1", "f")),
    "NhwcConv": Formal(2, 3, _CONV, ("f", "f", "f1")),
    "NhwcFusedConv": Formal(2, 4, _CONV, ("f", "f", "f1", "f")),
    "NhwcMaxPool": Formal(1, 1, {**_WINDOW, "ceil_mode": INT}, ("*",)),
    "GroupNorm": Formal(3, 3, _GROUPS, ("f", "f1", "f1")),
    "SkipGroupNorm": Formal(4, 5, _GROUPS, ("f", "f1", "f1", "f", "f1")),
    "FusedGemm": Formal(2, 3, {**_GEMM, **_ACTIVATION}, ("f2", "f2", "f012")),
    "GemmFastGelu": Formal(2, 3, {}, ("f", "f2", "f1")),
    "FusedMatMulActivation": Formal(2, 2, {**_PRODUCT, **_ACTIVATION, "activation_axis": INT}, ("f", "f")),
    "BiasSoftmax": Formal(2, 2, {"axis": INT, "is_inner_broadcast": INT}, ("f", "f")),
    "BiasAdd": Formal(3, 3, {}, ("f", "f1", "f")),
    "BiasSplitGelu": Formal(2, 2, {}, ("f", "f1")),
    "QuantizeLinear": Formal(2, 3, {"axis": INT}, ("f", "f01", "q01")),
    "DequantizeLinear": Formal(2, 3, {"axis": INT}, ("q", "f01", "q01")),
    "QLinearAdd": Formal(7, 8, {}, ("q", "f", "q", "q", "f", "q", "f", "q")),
    "QLinearMul": Formal(7, 8, {}, ("q", "f", "q", "q", "f", "q", "f", "q")),
    "QLinearSigmoid": Formal(4, 5, {}, _UNARY),
    "QLinearLeakyRelu": Formal(4, 5, {"alpha": FLOAT}, _UNARY),
    "QLinearSoftmax": Formal(5, 5, {"axis": INT, "opset": COUNT}, _UNARY),
    "QLinearReduceMean": Formal(4, 5, {"axes": INTS, "keepdims": INT}, _UNARY),
    "QLinearAveragePool": Formal(4, 5, _POOL, _UNARY),
    "QLinearGlobalAveragePool": Formal(5, 5, {"channels_last": INT}, _UNARY),
    "QLinearConcat": Formal(5, MANY, {"axis": INT}, ("f", "q")),
    "QLinearWhere": Formal(9, 9, {}, ("b", "q", "f", "q", "q", "f", "q", "f", "q")),
    "QLinearConv": Formal(8, 9, {**_CONV, "channels_last": INT}, ("q", "f", "q", "q", "f", "q", "f", "q", "q1")),
    "QGemm": Formal(6, 9, _GEMM, ("q2", "f", "q", "q2", "f", "q", "q012", "f", "q")),
    "MatMulIntegerToFloat": Formal(4, 7, {}, ("q", "q", "f", "f", "q", "q", "f")),
    "DynamicQuantizeMatMul": Formal(3, 5, {}, ("f", "q", "f", "q", "f")),
    "QAttention": Formal(
        5,
        9,
        {**_HEADS, "do_rotary": INT, "past_present_share_buffer": INT},
        ("q3", "q2", "f1", "f", "f", "*1234", "q", "q", "f5"),
    ),
    "QEmbedLayerNormalization": Formal(
        18, 18, {"epsilon": FLOAT}, ("i2", "i2", "q2", "q2", "q2", "q1", "q1", "i2", *"fffff", *"qqqqq")
    ),
    "DynamicQuantizeLSTM": Formal(12, 12, _LSTM, ("f3", "q3", "q3", "f2", "i1", "f3", "f3", "f2", "f12", "q12", "f12", "q12")),
    "MatMulBnb4": Formal(
        3,
        3,
        {"K": COUNT, "N": COUNT, "block_size": COUNT, "quant_type": INT, "transB": INT, "training_mode": INT},
        ("f", "i1", "f1"),
    ),
    "GatherBlockQuantized": Formal(
        3, 4, {"bits": INT, "block_size": COUNT, "gather_axis": INT, "quantize_axis": INT}, ("*", "i", "f", "*")
    ),
}

# what exporters write for operators that the default domain has, or had not yet
_PLAIN: Mapping[str, Formal] = {
    "CDist": Formal(2, 2, {"metric": STRING}, ("f2", "f2")),
    "ExpandDims": Formal(2, 2, {}, ("*", "i01")),
    "GatherND": Formal(2, 2, {}, ("*", "i")),
    "GridSample": Formal(2, 2, {"align_corners": INT, "mode": STRING, "padding_mode": STRING}, ("f4", "f4")),
    "Inverse": Formal(1, 1, {}, ("f",)),
    "Pad": Formal(2, 3, {"mode": STRING}, ("*", "i1", "*01")),
    "Range": Formal(2, 3, {}, ("*01", "*01", "*01")),
    "RelativePositionBias": Formal(3, 3, {"is_bidirectional": INT, "max_distance": COUNT}, ("f2", "i01", "i01")),
    "Trilu": Formal(1, 2, {"upper": INT}, ("*", "i01")),
    "Unique": Formal(1, 1, {}, ("*1",)),
}

# what is laid out in blocks of channels
_BLOCKED: Mapping[str, Formal] = {
    "ReorderInput": Formal(1, 1, {"channels_last": INT}, ("f4",)),
    "ReorderOutput": Formal(1, 1, {"channels": COUNT, "channels_last": INT}, ("f4",)),
    "Conv": Formal(2, 4, _CONV, ("f4", "f4", "f1", "f4")),
    "MaxPool": Formal(1, 1, {**_WINDOW, "ceil_mode": INT, "storage_order": INT}, ("f4",)),
    "AveragePool": Formal(1, 1, {**_WINDOW, "ceil_mode": INT, "count_include_pad": INT}, ("f4",)),
    "GlobalAveragePool": Formal(1, 1, {}, ("f4",)),
    "GlobalMaxPool": Formal(1, 1, {}, ("f4",)),
    "Upsample": Formal(1, 1, {"scales": INTS, "mode": STRING, "coordinate_transformation_mode": STRING}, ("f4",)),
}

FORMALS: Mapping[str, Formal] = {
    **_MADE,
    **_PLAIN,
    "Tokenizer": Formal(
        1, 1,
        {"mark": INT, "pad_value": STRING, "mincharnum": INT, "separators": STRINGS, "tokenexp": STRING, "stopwords": STRINGS},
    ),
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


# a few are found in the default domain too
DOMAINS: Mapping[str, Mapping[str, Formal]] = {
    "com.microsoft": FORMALS,
    "com.microsoft.nchwc": _BLOCKED,
    "": {"SimplifiedLayerNormalization": FORMALS["SimplifiedLayerNormalization"]},
}


def check_contrib(node: NodeProto, inputs: Sequence[Any], location: str) -> None:
    """Numbers of inputs and their ranks, and attributes, of an operator that has no schema. Raises InvalidModelError."""
    formal = DOMAINS.get(node.domain, {}).get(node.op_type)
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
    names = {"f": "floats", "i": "integers", "q": "integers", "b": "bools"}
    fits = {
        "f": type.dtype.is_float and not type.dtype.is_narrow,
        "i": type.dtype.is_integer,
        "q": type.dtype.is_integer or type.dtype.is_narrow,
        "b": type.dtype.name == "bool",
        "*": True,
    }[kind]
    if not fits:
        raise InvalidModelError(f"{what} is of {type.dtype}, not of {names[kind]}", location=location)
    if ranks and str(type.rank) not in ranks:
        raise InvalidModelError(f"{what} has rank {type.rank}, not {' or '.join(ranks)}", location=location)
