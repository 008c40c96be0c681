"""Comparing with Keras, and the way by TensorFlow."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import converters
from surgery.errors import SurgeryError
from tests.converters.keras_checks import functional, keras, parameter, randomize, run, save

ROOT = Path(__file__).resolve().parents[2]
L = keras.layers


def net(rng: np.random.Generator) -> keras.Model:
    layers = [L.Conv2D(4, 3, name="conv"), L.BatchNormalization(), L.Flatten(), L.Dropout(0.5), L.Dense(3, name="head")]
    return randomize(functional(layers, (6, 6, 2)), rng)


@pytest.mark.parametrize("layout", ["keras", "nchw"])
def test_a_conversion_is_compared_with_keras(layout: str, tmp_path: Path, rng: np.random.Generator) -> None:
    path = save(net(rng), tmp_path / "net.keras")
    model = converters.convert(path, layout=layout)
    assert converters.verify(path, model, layout=layout).equal
    tensor = parameter(model, "head/kernel")
    import onnx_ir as ir

    model.graph.initializers["head/kernel"].const_value = ir.tensor(tensor * 1.01)
    assert not converters.verify(path, model, layout=layout).equal


def test_a_configuration_with_weights_is_compared(tmp_path: Path, rng: np.random.Generator) -> None:
    network = net(rng)
    (tmp_path / "net.json").write_text(network.to_json())
    network.save_weights(tmp_path / "net.weights.h5")
    model = converters.convert(tmp_path / "net.json")
    assert converters.verify(tmp_path / "net.json", model).equal
    assert json.loads((tmp_path / "net.json").read_text())["class_name"] == "Functional"


def test_without_tensorflow_the_other_way_says_what_to_install(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(net(rng), tmp_path / "net.keras")
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(SurgeryError, match="needs TensorFlow and tf2onnx: pip install tensorflow-cpu tf2onnx"):
        converters.convert(path, via="tf2onnx")


@pytest.mark.slow
@pytest.mark.skipif(
    not (importlib.util.find_spec("tensorflow") and importlib.util.find_spec("tf2onnx")),
    reason="TensorFlow and tf2onnx are not installed; they are not needed for anything else",
)
def test_the_way_by_tensorflow_and_tf2onnx(tmp_path: Path, rng: np.random.Generator) -> None:
    """In a process of its own, with Keras on TensorFlow."""
    path = save(net(rng), tmp_path / "net.keras")
    target = tmp_path / "net.onnx"
    command = [sys.executable, "-m", "surgery", "convert", str(path), "-o", str(target), "--via", "tf2onnx"]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"KERAS_BACKEND": "tensorflow"})
    import surgery

    x = rng.normal(size=(1, 6, 6, 2)).astype(np.float32)
    (found,) = run(surgery.load(target), x).values()
    (want,) = run(converters.convert(path), x).values()
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
