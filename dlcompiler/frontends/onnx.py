"""The ONNX front end: `import_onnx`."""

from __future__ import annotations

from dlcompiler.frontends.onnx_import import import_onnx

__all__ = ["import_onnx"]
