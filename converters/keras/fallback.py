"""With Keras itself: converting by TensorFlow and tf2onnx, and running a network to compare with."""

from __future__ import annotations

import importlib
import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from surgery.errors import SurgeryError

__all__ = ["convert_with_tf2onnx", "run_in_keras"]

_OPSET = 18  # the newest that tf2onnx writes


def convert_with_tf2onnx(source: Path) -> ir.Model:
    """Converts a model that Keras can load, with TensorFlow and tf2onnx."""
    from surgery.io import load

    tensorflow = _imported("tensorflow", f"{source}: --via tf2onnx needs it and TensorFlow", "tensorflow-cpu tf2onnx")
    _imported("tf2onnx", f"{source}: --via tf2onnx needs it and TensorFlow", "tensorflow-cpu tf2onnx")
    model = _loaded(tensorflow.keras, source)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "model.onnx"
        try:
            model.export(str(target), format="onnx", opset_version=_OPSET, verbose=False)
        except Exception as error:  # whatever TensorFlow meets
            raise SurgeryError(f"{source}: tf2onnx cannot convert it ({' '.join(str(error).split())[:300]})") from error
        return ir.from_proto(ir.to_proto(load(target)))


def _imported(module: str, purpose: str, packages: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SurgeryError(f"{purpose}: pip install {packages} ({error})") from error


def _loaded(keras: Any, source: Path) -> Any:
    try:
        if source.suffix == ".json":
            return keras.models.model_from_json(source.read_text(encoding="utf-8"))
        return keras.models.load_model(source, compile=False)
    except Exception as error:  # whatever Keras meets
        raise SurgeryError(f"{source}: Keras cannot load it ({' '.join(str(error).split())[:300]})") from error


def run_in_keras(source: Path, inputs: dict[str, np.ndarray], weights: Path | None, layout: str) -> list[np.ndarray]:
    """Returns what Keras computes, in the order of the network's outputs."""
    if "KERAS_BACKEND" not in os.environ:
        known = (name for name in ("tensorflow", "torch", "jax") if importlib.util.find_spec(name))
        os.environ["KERAS_BACKEND"] = next(known, "tensorflow")
    keras = _imported("keras", f"{source}: comparing with Keras needs it and one of its backends", "keras torch")
    model = _loaded(keras, source)
    if source.suffix == ".json":
        from converters.keras.read import weights_of

        model.load_weights(weights or weights_of(source))
    arrays = list(inputs.values())
    if layout == "nchw":
        arrays = [np.moveaxis(a, 1, -1) if a.ndim >= 4 else a for a in arrays]
    result = model(arrays if len(arrays) > 1 else arrays[0], training=False)
    tree: Any = keras.tree.flatten(result)
    return [keras.ops.convert_to_numpy(each) for each in tree]
