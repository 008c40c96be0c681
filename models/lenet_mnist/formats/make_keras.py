"""Writes the LeNet of the folder above as Keras 3 saves it, with the channels last: lenet.keras. Needs Keras.

python models/lenet_mnist/formats/make_keras.py
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))
os.environ.setdefault("KERAS_BACKEND", "torch")

import keras  # noqa: E402

from converters import convert  # noqa: E402

L = keras.layers


def network() -> Any:
    """LeNet, its layers named as the Caffe layers."""
    layers = [
        keras.Input((28, 28, 1), name="data"),
        L.Conv2D(20, 5, name="conv1"),
        L.MaxPooling2D(2, name="pool1"),
        L.Conv2D(50, 5, name="conv2"),
        L.MaxPooling2D(2, name="pool2"),
        L.Flatten(name="flatten"),
        L.Dense(500, name="ip1"),
        L.ReLU(name="relu1"),
        L.Dropout(0.5, name="drop1"),
        L.Dense(10, name="ip2"),
        L.Softmax(name="prob"),
    ]
    return keras.Sequential(layers, name="LeNet-MNIST")


def main() -> None:
    """Takes the weights from the caffemodel."""
    initializers = convert(HERE.parent / "lenet_mnist.prototxt").graph.initializers
    weights = {name: value.const_value.numpy() for name, value in initializers.items() if value.const_value is not None}
    net = network()
    for name in ("conv1", "conv2"):
        net.get_layer(name).set_weights([weights[f"{name}.weight"].transpose(2, 3, 1, 0), weights[f"{name}.bias"]])
    # Keras flattens [4, 4, 50], Caffe [50, 4, 4].
    first = np.moveaxis(weights["ip1.weight"].reshape(500, 50, 4, 4), 1, -1).reshape(500, 800)
    net.get_layer("ip1").set_weights([first.T, weights["ip1.bias"]])
    net.get_layer("ip2").set_weights([weights["ip2.weight"].T, weights["ip2.bias"]])
    net.save(HERE / "lenet.keras")


if __name__ == "__main__":
    main()
