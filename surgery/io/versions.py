"""Which versions of ONNX are read and written."""

from __future__ import annotations

__all__ = ["IR_VERSION", "MAX_OPSET", "MIN_OPSET"]

IR_VERSION = 10  # the newest that ONNX Runtime 1.19 reads, and the oldest with metadata on every part
MAX_OPSET = 21  # likewise
MIN_OPSET = 7  # the oldest that ONNX Runtime reads
