"""With Keras itself: converting by TensorFlow and tf2onnx, and running a network to compare with."""

from __future__ import annotations

import importlib
import importlib.util
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from surgery.errors import SurgeryError

__all__ = ["convert_with_tf2onnx", "run_in_keras"]

_OPSET = 18  # the newest that tf2onnx writes
_ANY_SIZE = 64  # what stands for sizes that are not known


def convert_with_tf2onnx(source: Path) -> ir.Model:
    """Converts a model that Keras can load, with TensorFlow and tf2onnx.

    Raises:
        SurgeryError: They are not installed, or one of them cannot.
    """
    from surgery.io import load

    purpose = f"{source}: --via tf2onnx needs TensorFlow and tf2onnx"
    packages = "tensorflow-cpu tf2onnx"
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    for module in ("tensorflow", "tf2onnx"):
        _imported(module, purpose, packages)
    keras = _imported("keras", purpose, packages)
    if keras.backend.backend() != "tensorflow":
        raise SurgeryError(f"{purpose}, and Keras runs on {keras.backend.backend()}; set KERAS_BACKEND=tensorflow")
    model = _loaded(keras, source)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "model.onnx"
        try:
            _called(keras, model)
            model.export(str(target), format="onnx", opset_version=_OPSET, verbose=False)
        except Exception as error:  # whatever TensorFlow meets
            raise SurgeryError(f"{source}: tf2onnx cannot convert it ({_in_one_line(error)})") from error
        return ir.from_proto(ir.to_proto(load(target)))


def _called(keras: Any, model: Any) -> None:
    """Calls a model once, without which Keras does not export it."""
    shapes = [[_ANY_SIZE if d is None else d for d in tensor.shape[1:]] for tensor in model.inputs]
    _run(keras, model, [np.zeros([1, *shape], np.float32) for shape in shapes])


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _imported(module: str, purpose: str, packages: str) -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow tells of itself
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
        raise SurgeryError(f"{source}: Keras cannot load it ({_in_one_line(error)})") from error


def _run(keras: Any, model: Any, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a list of one is taken as well as the one
        result = model(list(arrays) if len(arrays) > 1 else arrays[0], training=False)
    return [keras.ops.convert_to_numpy(each) for each in keras.tree.flatten(result)]


def run_in_keras(source: Path, inputs: dict[str, np.ndarray], weights: Path | None, layout: str) -> list[np.ndarray]:
    """Returns what Keras computes, in the order of the network's outputs.

    Raises:
        SurgeryError: Keras is not installed, or cannot load or run the network.
    """
    if "KERAS_BACKEND" not in os.environ:
        known = (name for name in ("tensorflow", "torch", "jax") if importlib.util.find_spec(name))
        os.environ["KERAS_BACKEND"] = next(known, "tensorflow")
    keras = _imported("keras", f"{source}: comparing with Keras needs it and one of its backends", "keras torch")
    model = _loaded(keras, source)
    arrays = list(inputs.values())
    if layout == "nchw":
        arrays = [np.moveaxis(a, 1, -1) if a.ndim >= 4 else a for a in arrays]
    try:
        if source.suffix == ".json":
            from converters.keras.read import weights_of

            model.load_weights(weights or weights_of(source))
        return _run(keras, model, arrays)
    except Exception as error:  # whatever Keras meets
        raise SurgeryError(f"{source}: Keras cannot run it ({_in_one_line(error)})") from error
