"""Load and save models: files that are not ONNX get a clear error, and a failed save leaves the old file.

Weights stay in their files until somebody looks at them, and go from file to file when nobody does.
"""

from surgery.io.files import file_mode, replacing
from surgery.io.reading import load
from surgery.io.shapes import infer_shapes
from surgery.io.versions import IR_VERSION, MAX_OPSET, MIN_OPSET
from surgery.io.writing import save

__all__ = ["IR_VERSION", "MAX_OPSET", "MIN_OPSET", "file_mode", "infer_shapes", "load", "replacing", "save"]
