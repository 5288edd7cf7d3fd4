"""Imports every module of operator entries, which fills the table."""

from __future__ import annotations

from dlcompiler.frontends import (  # noqa: F401
    onnx_ops_activation,
    onnx_ops_attention,
    onnx_ops_contraction,
    onnx_ops_contrib,
    onnx_ops_contrib_attention,
    onnx_ops_contrib_blocked,
    onnx_ops_contrib_blocks,
    onnx_ops_contrib_fused,
    onnx_ops_contrib_quantize,
    onnx_ops_elementwise,
    onnx_ops_fourier,
    onnx_ops_index,
    onnx_ops_ml,
    onnx_ops_ml_trees,
    onnx_ops_ml_vectors,
    onnx_ops_normalization,
    onnx_ops_order,
    onnx_ops_pooling,
    onnx_ops_quantize,
    onnx_ops_random,
    onnx_ops_recurrent,
    onnx_ops_reduction,
    onnx_ops_resize,
    onnx_ops_sample,
    onnx_ops_shape,
    onnx_ops_source,
    onnx_ops_training,
    onnx_ops_view,
)
