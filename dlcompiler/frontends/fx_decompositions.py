"""Which ATen operators torch breaks up before we see them, and which stay whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch

from dlcompiler.frontends.fx_foreach import foreach_decompositions
from dlcompiler.frontends.fx_random import random_decompositions

# Composites of the IR, or library calls, that torch's table would break into parts
_KEPT_WHOLE = (
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention_math", "scaled_dot_product_attention",
    "silu", "mish", "softplus", "hardsigmoid", "hardswish", "relu6", "elu", "logsumexp", "baddbmm", "addmv", "mv", "dot", "vdot",
    "var", "std", "std_mean", "stack", "split", "unbind", "tril", "triu", "roll", "eye", "floor_divide", "clamp_min", "clamp_max",
    "masked_fill", "select_scatter", "unsafe_split", "unsafe_split_with_sizes", "take", "t", "transpose", "rsub", "ones",
    "new_full", "new_ones", "new_zeros", "ones_like", "fill", "arange", "_unsafe_index", "expand_copy", "adaptive_avg_pool1d",
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "reshape", "narrow", "linear", "lstm", "gru", "rnn_tanh",
    "rnn_relu", "embedding_dense_backward",
    *(f"{kind}_pad{rank}d{pass_}" for kind in ("reflection", "replication") for rank in (1, 2, 3) for pass_ in ("", "_backward")),
)  # fmt: skip
# Operators outside torch's core table whose parts we have rules for
_BROKEN_UP = (
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d",
    "_upsample_nearest_exact3d", "upsample_bilinear2d", "upsample_bicubic2d", "grid_sampler_2d", "norm", "linalg_vector_norm",
    "_addmm_activation", "addr", "lerp", "frac", "diag_embed", "nan_to_num", "native_batch_norm",
    "log_sigmoid_forward", "glu", "logit", "heaviside", "hinge_embedding_loss",
)  # fmt: skip


@lru_cache(maxsize=2)
def _table(keep_random: bool) -> Mapping[Any, Callable[..., Any]]:
    from torch._decomp import core_aten_decompositions, decomposition_table

    table = dict(core_aten_decompositions().items())
    for operator in list(table):
        if _packet_name(operator) in _KEPT_WHOLE and not _is_in_place(operator):
            del table[operator]
    for operator, function in decomposition_table.items():
        if _packet_name(operator) in _BROKEN_UP:
            table.setdefault(operator, function)
    table |= foreach_decompositions()
    if not keep_random:
        return {**table, **random_decompositions()}
    return {k: f for k, f in table.items() if torch.Tag.nondeterministic_seeded not in getattr(k, "tags", ())}


def _packet_name(operator: Any) -> str:
    return operator._schema.name.removeprefix("aten::") if isinstance(operator, torch._ops.OpOverload) else ""


def _is_in_place(operator: Any) -> bool:
    return operator._schema.is_mutable


def decompositions(numerics: str = "fast") -> dict[Any, Callable[..., Any]]:
    """The table for AOTAutograd and `ExportedProgram.run_decompositions`: what is left out of it stays whole.

    It is torch's core table, less what the IR has whole, plus what it has in parts. Random numbers become functions of a seed
    (`fx_random`); under "eager" numerics they stay operators of ATen, which draw what eager draws.
    """
    return dict(_table(numerics == "eager"))
