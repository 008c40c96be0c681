"""What the tests of the Keras converter share: models built with Keras itself, saved, converted and compared."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import numpy as np
import onnx_ir as ir
import pytest
import torch

from converters import convert
from tests.converters.caffe_checks import run

__all__ = ["Array", "compare", "expected", "functional", "inputs_of", "keras", "parameter", "randomize", "run", "save"]

Array = np.ndarray
keras: Any = pytest.importorskip("keras", reason="Keras is not installed (it needs Python 3.11)")
torch.set_num_threads(1)


def randomize(model: Any, rng: np.random.Generator) -> Any:
    """Gives a model's variables random numbers with which a signal neither dies nor explodes in many layers."""
    for variable in model.weights:
        shape, name = tuple(variable.shape), variable.path.rpartition("/")[2]
        if name in ("count", "seed_generator_state") or "seed" in variable.path:
            continue
        if "variance" in name or name in ("gamma", "scale"):
            variable.assign(rng.uniform(0.7, 1.4, shape).astype(np.float32))
            continue
        depthwise = len(shape) > 2 and "depthwise" in variable.path and "pointwise" not in name
        fan_in = np.prod(shape[:-2] if depthwise else shape[:-1]) if len(shape) > 1 else 10.0
        variable.assign((rng.normal(size=shape) * np.sqrt(1.5 / fan_in)).astype(np.float32))
    return model


def functional(layers: Sequence[Any] | Any, *shapes: Sequence[int | None], dtype: str = "float32") -> Any:
    """A model of `layers`, one behind the other; several inputs go to the first as a list."""
    inputs = [keras.Input(shape, dtype=dtype, name=f"in{i}") for i, shape in enumerate(shapes)]
    x: Any = inputs if len(inputs) > 1 else inputs[0]
    for layer in layers if isinstance(layers, Sequence) else [layers]:
        x = layer(x)
    return keras.Model(inputs, x)


def inputs_of(model: Any, rng: np.random.Generator, batch: int = 2, size: int = 9) -> list[Array]:
    """Random inputs for a model; axes of any size are `size`."""
    arrays = []
    for tensor in model.inputs:
        shape = [batch, *(size if d is None else d for d in tensor.shape[1:])]
        if "int" in str(tensor.dtype):
            arrays.append(rng.integers(0, 5, shape).astype(np.int32))
        else:
            arrays.append(rng.normal(size=shape).astype(np.float32))
    return arrays


def expected(model: Any, arrays: Sequence[Array]) -> list[Array]:
    """What Keras computes at inference."""
    with torch.no_grad():
        result = model(list(arrays) if len(arrays) > 1 else arrays[0], training=False)
    return [keras.ops.convert_to_numpy(each) for each in keras.tree.flatten(result)]


def save(model: Any, path: Path) -> Path:
    """Saves a model; Keras tells that HDF5 is old."""
    model.save(path)
    return path


def compare(
    model: Any,
    rng: np.random.Generator,
    formats: Sequence[str] = (".keras", ".h5"),
    tolerance: float = 2e-5,
    arrays: Sequence[Array] | None = None,
    randomized: bool = True,
    **options: Any,
) -> ir.Model:
    """Converts `model` from each of `formats` and compares its outputs with Keras's; returns the last conversion."""
    if randomized:
        randomize(model, rng)
    arrays = inputs_of(model, rng) if arrays is None else arrays
    want = expected(model, arrays)
    with tempfile.TemporaryDirectory() as folder:
        for ending in formats:
            converted = convert(save(model, Path(folder) / f"model{ending}"), **options)
            found = list(run(converted, *arrays).values())
            assert len(found) == len(want)
            for have, right in zip(found, want, strict=True):
                assert have.shape == right.shape
                np.testing.assert_allclose(have, right, rtol=tolerance, atol=tolerance)
    return converted


def parameter(model: ir.Model, name: str) -> Array:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()
