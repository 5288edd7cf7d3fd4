"""The ONNX front end: `import_onnx`."""

from __future__ import annotations

from dlcompiler.frontends.onnx_import import SeenNode, import_onnx
from dlcompiler.frontends.onnx_registry import NeedsValuesError

__all__ = ["NeedsValuesError", "SeenNode", "import_onnx"]
